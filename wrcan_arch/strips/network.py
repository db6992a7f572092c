"""WRCAN on a whole image, computed strip by strip: the same result in bounded memory, with strips that fit the cache.

Channel attention pools over the whole image, so on a tile the network computes another function. Here each block makes
one pass over the whole map: it computes its branch strip by strip and sums it for the mean. The next pass scales that
branch by the attention and adds it to the features just before it reads them, while they are in the cache. Encoder and
decoder are local: rows flow through them and are not kept, and the encoder runs a second time beside the decoder. So
only three maps are held for the whole image, of 4F channels at a sixteenth of the pixels.

A convolution sees zeros only beyond the image's own edges. Everywhere else a strip reads its neighbours' rows, so
strips do not overlap.
"""

from collections import deque
from collections.abc import Callable, Iterator
from functools import cache
from typing import Any, NamedTuple, TypeGuard

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..wrcan_arch import (
    ATROUS_RATES,
    SIZE_MULTIPLE,
    WRCAN,
    ChannelAttention,
    Decoder,
    Encoder,
    ResidualBlock,
    ResidualGroup,
    WideReceptiveField,
)
from .convolution import Convolution, Span, empty_map, margin_of
from .progress import WorkDone, weight_count
from .sizes import StripSizes, padded_to_multiple


def is_as_built(network: nn.Module) -> TypeGuard[WRCAN]:
    """Whether `network` is a WRCAN with its original parts and no hooks, so that strips do what its forward does."""
    if type(network) is not WRCAN or any('forward' in vars(module) for module in network.modules()):
        return False
    of_all = nn.modules.module  # its _has_any_global_hook came with PyTorch 2.8
    hooked = bool(of_all._global_forward_hooks or of_all._global_forward_pre_hooks)
    hooked = hooked or any(module._forward_hooks or module._forward_pre_hooks for module in network.modules())
    return not hooked and _parts(network) == _parts_as_built(**network.config)


def _parts(network: WRCAN) -> list[tuple[str, type, str]]:
    """Name, class and settings of each part; its repr would show the class's name only."""
    modules = network.named_modules(remove_duplicate=False)
    return [(name, type(module), module.extra_repr()) for name, module in modules]


@cache
def _parts_as_built(**config: Any) -> list[tuple[str, type, str]]:
    with torch.device('meta'):
        return _parts(WRCAN(**config))


class RowBuffer:
    """Rows [top, stop) of a map that are still needed. The map begins and ends with `zeros` more rows of zeros.

    From the map's last row on, `stop` also counts the zeros below it, by which `Flow.next_rows` knows that all output
    rows can be computed.
    """

    def __init__(self, memory: Tensor, height: int, zeros: int) -> None:
        memory[:, :, :zeros] = 0
        self.memory, self.height, self.zeros = memory, height, zeros
        self.top, self.stop = -zeros, 0

    def rows(self, span: Span) -> Tensor:
        return self.memory[:, :, span[0] - self.top : span[1] - self.top]

    def space_for(self, count: int, still_needed: int) -> Tensor:
        """A view, (1, C, count, W), to write the next `count` rows into; rows above row `still_needed` are dropped."""
        kept_rows = self.rows((still_needed, self.stop))
        kept = kept_rows.shape[2]
        below = self.zeros if self.stop + count == self.height else 0
        if kept + count + below > self.memory.shape[2]:
            most_kept = max(kept, 2 * self.zeros)  # in this and later calls
            channels, width = self.memory.shape[1], self.memory.shape[3]
            self.memory = empty_map(channels, most_kept + count + self.zeros, width, like=self.memory)
        else:
            kept_rows = kept_rows.clone()  # it may overlap its destination
        self.memory[:, :, :kept] = kept_rows
        self.memory[:, :, kept + count : kept + count + below] = 0
        self.top, self.stop = still_needed, self.stop + count + below
        return self.memory[:, :, kept : kept + count]


class Flow:
    """A streaming convolution: takes input rows as they arrive and returns each output row once it can be computed."""

    def __init__(self, conv: Convolution, height: int, width: int, memory: Tensor | None = None) -> None:
        """`memory`: for input rows, such as that of a finished Flow; by default new."""
        memory = empty_map(conv.in_channels, conv.rate, width, like=conv.bias) if memory is None else memory
        self.conv, self.out_width = conv, width // conv.stride
        self.input = RowBuffer(memory, height, zeros=conv.rate)
        self.done = 0  # output rows returned so far

    def space_for(self, count: int) -> Tensor:
        """A view, (1, C, count, W), to write the next `count` input rows into."""
        still_needed, _ = self.conv.input_rows_for((self.done, self.done))
        return self.input.space_for(count, still_needed)

    def next_rows(self, at_most: int | None = None) -> Tensor:
        """The next output rows that can be computed, up to `at_most`, (1, C', rows, W / stride); perhaps none."""
        conv, start = self.conv, self.done
        last_known = (self.input.stop - conv.rate - 1) // conv.stride
        stop = max(start, last_known + 1)
        stop = stop if at_most is None else min(stop, start + at_most)
        self.done = stop
        if start == stop:
            return empty_map(conv.out_channels, 0, self.out_width, like=conv.bias)
        return conv(self.input.rows(conv.input_rows_for((start, stop))))

    def __call__(self, rows: Tensor) -> Tensor:
        self.space_for(rows.shape[2]).copy_(rows)
        return self.next_rows()


def _flow(conv: nn.Module, size: tuple[int, int], dtype: torch.dtype, scale: int = 1) -> Flow:
    """The Flow of a convolution whose input is `scale` times smaller than the image along each side."""
    height, width = size[0] // scale, size[1] // scale
    return Flow(Convolution(conv, dtype, height * width), height, width)


class Queue:
    """Rows of a skip connection that wait for the decoder."""

    def __init__(self) -> None:
        self.waiting: deque[Tensor] = deque()

    def put(self, rows: Tensor) -> None:
        self.waiting.append(rows)

    def take_into(self, room: Tensor) -> None:
        """Fill `room` with the next rows and drop them from the queue."""
        done = 0
        while done < room.shape[2]:
            first = self.waiting.popleft()
            taken = first[:, :, : room.shape[2] - done]
            room[:, :, done : done + taken.shape[2]] = taken
            done += taken.shape[2]
            if taken.shape[2] < first.shape[2]:
                self.waiting.appendleft(first[:, :, taken.shape[2] :])


class EncoderRows(NamedTuple):
    """What the encoder returns for some more rows of the image: the next rows of each map."""

    skip0: Tensor  # (1, F, rows, W)
    skip1: Tensor  # (1, 2F, rows, W/2)
    expanded: Tensor  # (1, 4F, rows, W/4)


class EncoderStream:
    """Streaming head, encoder and f_EXP, for one pass over the rows of one image."""

    def __init__(self, network: WRCAN, size: tuple[int, int], dtype: torch.dtype) -> None:
        outer, inner = network.encoders
        assert isinstance(outer, Encoder) and isinstance(inner, Encoder)  # a ModuleList loses their type
        self.head, self.expand = _flow(network.head, size, torch.float32), _flow(network.expand, size, dtype, scale=4)
        self.conv0, self.down0 = _flow(outer.conv, size, dtype), _flow(outer.down, size, dtype)
        self.conv1, self.down1 = _flow(inner.conv, size, dtype, scale=2), _flow(inner.down, size, dtype, scale=2)

    def __call__(self, image: Tensor) -> EncoderRows:
        skip0 = F.relu_(self.conv0(self.head(image)))
        skip1 = F.relu_(self.conv1(self.down0(skip0)))
        return EncoderRows(skip0, skip1, self.expand(self.down1(skip1)))


class DecoderStream:
    """Streaming body conv, decoder and tail, beside a second pass of the encoder that supplies f_EXP and the skips.

    The global skip takes the image through the head to the tail. Both compute in fp32: bf16 would keep only 8 bits
    of the image. The head runs again here because image rows take less memory to hold than its shallow features.
    """

    def __init__(
        self, network: WRCAN, size: tuple[int, int], dtype: torch.dtype, features: Tensor, end_rows: int
    ) -> None:
        """`end_rows`: the most image rows in a call, and the most rows in a step of the tail."""
        outer, inner = network.decoders
        assert isinstance(outer, Decoder) and isinstance(inner, Decoder)  # a ModuleList loses their type
        self.features = features  # (1, 4F, H/4, W/4), the groups' output
        self.body_conv = Convolution(network.body_conv, dtype, features[0, 0].numel())
        self.up1, self.conv1 = _flow(inner.up, size, dtype, scale=4), _flow(inner.conv, size, dtype, scale=2)
        self.up0, self.conv0 = _flow(outer.up, size, dtype, scale=2), _flow(outer.conv, size, dtype)
        self.head, self.tail = (_flow(conv, size, torch.float32) for conv in (network.head, network.tail))
        self.skip0, self.skip1 = Queue(), Queue()
        self.end_rows = end_rows
        self.done = 0  # rows of the features

    def __call__(self, image: Tensor, encoded: EncoderRows) -> Tensor:
        """The next rows of the restored image, (1, C, rows, W), fp32; perhaps none."""
        self.head.space_for(image.shape[2]).copy_(image)
        self.skip0.put(encoded.skip0)
        self.skip1.put(encoded.skip1)
        count = encoded.expanded.shape[2]
        deep = self.up1.space_for(count)
        if count:
            span = (self.done, self.done + count)
            body = self.body_conv.rows_of_map(self.features, span)
            torch.add(encoded.expanded, body, out=deep)  # Eq. 4
            self.done += count
        decoded1 = _decode(self.up1.next_rows(), self.skip1, self.conv1)
        decoded0 = _decode(self.up0(decoded1), self.skip0, self.conv0)
        restored = [self.tail.next_rows()]  # no rows yet, but torch.cat needs a tensor if none follow
        # The last strip makes many rows computable at once; in steps they take less memory.
        for start, stop in spans(decoded0.shape[2], self.end_rows):
            shallow = self.head.next_rows(at_most=stop - start)
            torch.add(shallow, decoded0[:, :, start:stop], out=self.tail.space_for(stop - start))
            restored.append(self.tail.next_rows())
        return torch.cat(restored, dim=2)


def _decode(upsampled: Tensor, skips: Queue, conv: Flow) -> Tensor:
    """One scale of the decoder, after its first convolution (Eqs. 5.1 and 5.2)."""
    upsampled = F.pixel_shuffle(upsampled, 2)
    room = conv.space_for(upsampled.shape[2])
    skip, deep = room.split([room.shape[1] - upsampled.shape[1], upsampled.shape[1]], dim=1)
    skips.take_into(skip)
    deep.copy_(upsampled)
    return F.relu_(conv.next_rows())


def spans(height: int, strip_rows: int) -> Iterator[Span]:
    """Split [0, height) into strips of `strip_rows` rows; the last may be shorter."""
    for start in range(0, height, strip_rows):
        yield start, min(start + strip_rows, height)


class PendingUpdate:
    """An in-place change to a map, applied row by row just before the rows are read."""

    def __init__(self, apply: Callable[[Span], None]) -> None:
        self.apply, self.done = apply, 0

    def apply_until(self, stop: int) -> None:
        if stop > self.done:
            self.apply((self.done, stop))
            self.done = stop


class Workspace:
    """The working memory that all groups share, besides their input."""

    def __init__(self, network: WRCAN, entry: Tensor, strip_rows: int) -> None:
        channels, height, width = entry.shape[1:]
        self.margin = margin = margin_of(entry.device, entry.dtype, width, max(ATROUS_RATES))
        self.padded_features = empty_map(channels, height, width + 2 * margin, like=entry)  # zeros on either side
        self.features = self.padded_features[..., margin : margin + width]  # a block's input, (1, C, H, W)
        for side in (self.padded_features[..., :margin], self.padded_features[..., margin + width :]):
            side.zero_()
        self.branch = torch.empty_like(entry)
        widest = max(conv.in_channels for conv in network.groups.modules() if isinstance(conv, nn.Conv2d))
        # 3 more rows: 2 of the last strip, 1 of zeros.
        self.fuse_input = empty_map(widest, min(strip_rows, height) + 3, width, like=entry)

    def convolution(self, conv: nn.Module) -> Convolution:
        """`conv` for use on `padded_features`, the features with their margins."""
        return Convolution(conv, self.padded_features.dtype, self.branch[0, 0].numel(), self.margin)


def run_branch(
    block: ResidualBlock, workspace: Workspace, pending: PendingUpdate, strip_rows: int, work: WorkDone
) -> Tensor:
    """Compute the block's branch, strip by strip, into workspace.branch; return its sum (1, C, 1, 1) in float32.

    A row of workspace.branch is written only after `pending` has passed it: the update may still read the old row.
    """
    branch, dtype = block.branch, workspace.branch.dtype
    layers = (branch.atrous, branch.fuse) if isinstance(branch, WideReceptiveField) else ([branch.conv1], branch.conv2)
    channels, height, width = workspace.branch.shape[1:]
    parallel = [workspace.convolution(conv) for conv in layers[0]]
    last = Flow(Convolution(layers[1], dtype, height * width), height, width, memory=workspace.fuse_input)
    reach, products = max(conv.rate for conv in parallel), weight_count(block)
    total = torch.zeros(channels, dtype=torch.float32, device=workspace.branch.device)
    summed_in = torch.float32 if dtype == torch.float16 else dtype  # a sum may exceed fp16's 65504; bf16 only rounds
    for start, stop in spans(height, strip_rows):
        pending.apply_until(min(stop + reach, height))
        hidden = last.space_for(stop - start).chunk(len(parallel), dim=1)  # (1, 2C, rows, W)
        for conv, part in zip(parallel, hidden, strict=True):
            torch.clamp_min(conv.rows_of_map(workspace.padded_features, (start, stop)), 0, out=part)
        done = last.done
        out = last.next_rows()
        workspace.branch[:, :, done : last.done] = out
        of_rows = out[0].permute(1, 2, 0).sum(1, dtype=summed_in)  # (rows, C)
        total += of_rows.sum(0, dtype=torch.float32)
        work.add(products * (stop - start))
    return total[None, :, None, None]


class WindowMeans:
    """Means over a window around each position, for consecutive spans of rows from the top.

    At the edges the window is shifted inwards to lie within the map (Chu et al., "Improving Image Restoration by
    Revisiting Global Information Aggregation", ECCV 2022).
    """

    def __init__(self, values: Tensor, size: int) -> None:
        self.values = values[0].permute(1, 2, 0)  # (H, W, C)
        height, width = self.values.shape[:2]
        self.rows, self.columns = min(size, height), min(size, width)
        self.top = 0
        first = self.values[: self.rows].split(4)  # in parts: a sum in another type copies its input
        nothing = self.values.new_zeros((), dtype=torch.float32)
        self.sums = sum((rows.sum(0, dtype=torch.float32) for rows in first), nothing)  # (W, C), of the window's rows

    def __call__(self, span: Span) -> Tensor:
        """The means for rows `span`, (1, C, rows, W - window + 1): one for each place of the window along a row."""
        above, lowest = (self.rows - 1) // 2, self.values.shape[0] - self.rows
        tops = torch.arange(*span, device=self.values.device).sub_(above).clamp_(0, lowest)
        moves = min(max(0, span[1] - 1 - above), lowest) - self.top  # to the last of `tops`, without waiting for a GPU
        entering = self.values[self.top + self.rows : self.top + self.rows + moves]
        leaving = self.values[self.top : self.top + moves]
        sums = torch.cat([self.sums[None], entering.float() - leaving]).cumsum_(0)  # (moves + 1, W, C)
        sums, self.sums, self.top = sums[tops - self.top], sums[-1].clone(), self.top + moves
        ends = F.pad(sums.cumsum_(1), (0, 0, 1, 0))  # (rows, W + 1, C)
        means = (ends[:, self.columns :] - ends[:, : -self.columns]).div_(self.rows * self.columns)
        return means.permute(2, 0, 1)[None]

    def places(self) -> Tensor:
        """The window's place (its first column) for each column of the map, (W,)."""
        width = self.values.shape[1]
        centred = torch.arange(width, device=self.values.device) - (self.columns - 1) // 2
        return centred.clamp_(0, width - self.columns)


def attend(attention: nn.Module, total: Tensor, features: Tensor, branch: Tensor, window: int | None) -> PendingUpdate:
    """The PendingUpdate that adds attention(branch) to the features (Eq. 6).

    Args:
        total: sum of the branch over the image, (1, C, 1, 1).
        window: side of the window that the attention pools over; None for the whole image.
    """

    def add(span: Span, weights: Tensor | None) -> None:
        start, stop = span
        into, added = features[:, :, start:stop], branch[:, :, start:stop]
        into.add_(added) if weights is None else into.addcmul_(added, weights)

    if not isinstance(attention, ChannelAttention):
        return PendingUpdate(lambda span: add(span, None))
    height, width = features.shape[2:]
    if window is None or (window >= height and window >= width):
        weights = attention.weights(total / (height * width)).to(features.dtype)
        return PendingUpdate(lambda span: add(span, weights))

    means = WindowMeans(branch, window)
    places = means.places()
    return PendingUpdate(lambda span: add(span, attention.weights(means(span)).to(features.dtype)[..., places]))


def run_group(
    group: nn.Module, entry: Tensor, workspace: Workspace, strip_rows: int, window: int | None, work: WorkDone
) -> None:
    """Apply a residual group in place: entry += Conv(blocks(entry)).

    A block's pass over the strips applies the pending update to the features just before it reads them, and computes
    and sums the branch. The sum gives the attention, which adds the branch to the features: the next pending update.
    """
    height = entry.shape[2]

    def copy_entry(span: Span) -> None:
        start, stop = span
        workspace.features[:, :, start:stop] = entry[:, :, start:stop]

    pending = PendingUpdate(copy_entry)
    assert isinstance(group, ResidualGroup)  # a Sequential loses their type
    for block in group.blocks:
        assert isinstance(block, ResidualBlock)
        total = run_branch(block, workspace, pending, strip_rows, work)
        pending = attend(block.attention, total, workspace.features, workspace.branch, window)
        if window is not None:  # a window reads rows of the branch that the next pass would overwrite
            for _, stop in spans(height, max(1, strip_rows // 4)):
                pending.apply_until(stop)
    conv = workspace.convolution(group.conv)
    for start, stop in spans(height, strip_rows):
        pending.apply_until(min(stop + conv.rate, height))
        entry[:, :, start:stop] += conv.rows_of_map(workspace.padded_features, (start, stop))
        work.add(weight_count(group.conv) * (stop - start))


def _expand(
    network: WRCAN, strips: Iterator[Tensor], size: tuple[int, int], dtype: torch.dtype, work: WorkDone
) -> Tensor:
    """f_EXP of the image, (1, 4F, H/4, W/4)."""
    encoder = EncoderStream(network, size, dtype)
    height, width = (side // SIZE_MULTIPLE for side in size)
    out = empty_map(4 * network.head.out_channels, height, width, like=encoder.expand.conv.bias)
    done = 0
    for image in strips:
        expanded = encoder(image).expanded
        out[:, :, done : done + expanded.shape[2]] = expanded
        done += expanded.shape[2]
        work.add(work.encoder_products * image.shape[2] // SIZE_MULTIPLE)
    return out


@torch.no_grad()
def restore_in_strips(
    network: WRCAN,
    read: Callable[[Span], Tensor],
    write: Callable[[Span, Tensor], None],
    size: tuple[int, int],
    *,
    strip_rows: int,
    window: int | None = None,
    dtype: torch.dtype = torch.float32,
    progress: Callable[[float], None] = lambda share: None,
) -> None:
    """Restore one image, strip by strip.

    Args:
        network: a WRCAN that `is_as_built`, with float32 weights, on the device to run on; not under autocast.
        read: returns rows [start, stop) of the image, (1, C, rows, W), RGB in [0, 1], in any type, on any device.
        write: takes rows of the restored image, float32, neither clamped nor rounded, on the network's device.
        size: the image's height and width.
        strip_rows: the strips' height, in rows of the features at a quarter of the size; affects only time and memory.
        window: side, in positions of the features, of the window that the attention pools over; None: the whole image.
        dtype: type of the computation. Head and tail, through which the image bypasses the rest, compute in float32.
        progress: called after each strip with the share of the work that is done, up to 1.
    """
    height, width = size
    device = network.head.weight.device
    padded = padded_to_multiple(size)

    def read_padded(span: Span) -> Tensor:
        """Rows of the image, padded as the network pads: by repeating the last row and column."""
        start, stop = span[0], min(span[1], height)
        missing = (0, padded[1] - width, 0, span[1] - span[0] - (stop - start))
        image = read((start, stop)).to(device, torch.float32)
        image = F.pad(image, missing, mode='replicate') if any(missing) else image
        return image.contiguous(memory_format=torch.channels_last)

    at_ends = StripSizes(network.head.out_channels, size, dtype, device).end_rows(strip_rows)
    strips = list(spans(padded[0], at_ends))
    work = WorkDone(network, padded[0], progress)
    entry = _expand(network, map(read_padded, strips), padded, dtype, work)
    workspace = Workspace(network, entry, strip_rows)
    for group in network.groups:
        run_group(group, entry, workspace, strip_rows, window, work)
    del workspace

    encoder, decoder = EncoderStream(network, padded, dtype), DecoderStream(network, padded, dtype, entry, at_ends)
    done = 0
    for image in map(read_padded, strips):
        restored = decoder(image, encoder(image))
        stop = min(done + restored.shape[2], height)  # without the padding
        if stop > done:
            write((done, stop), restored[:, :, : stop - done, :width])
        done = stop
        work.add((work.encoder_products + work.decoder_products) * image.shape[2] // SIZE_MULTIPLE)
