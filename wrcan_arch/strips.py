"""WRCAN's function of a whole image, computed strip by strip: the same result in bounded memory, and from the cache.

Channel attention pools the whole image, so the network on a tile is another function. Here each block makes one pass
over the whole map: it computes its branch, strip after strip, and sums it for the mean. What the attention makes of the
branch is added to the features when the next pass reads them, just ahead of it, while they are in the cache. Encoder
and decoder are local: rows flow through them and are not kept; the encoder runs a second time beside the decoder. So
three maps of 4F channels at a sixteenth of the pixels are all that is held of the whole image.

Rows beyond an edge of a map are zeros to a convolution. They are so only at the image's own edge: everywhere else a
strip reads its neighbours' rows, and strips do not overlap.
"""

from collections import deque
from collections.abc import Callable, Iterator
from functools import cache
from typing import Any, NamedTuple, TypeGuard

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .convolution import Convolution, Span, empty_map, margin_of
from .strip_progress import Progress, weight_count
from .strip_sizes import end_rows, padded_to_multiple
from .wrcan_arch import (
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


def is_as_built(network: nn.Module) -> TypeGuard[WRCAN]:
    """Whether it is a WRCAN whose parts are those it was built of, without hooks: strips do what its forward does."""
    if type(network) is not WRCAN or any('forward' in vars(module) for module in network.modules()):
        return False
    hooked = any(module._forward_hooks or module._forward_pre_hooks for module in network.modules())
    hooked = hooked or nn.modules.module._has_any_global_hook()
    return not hooked and [repr(part) for part in network.children()] == _parts(**network.config)


@cache
def _parts(**config: Any) -> list[str]:
    with torch.device('meta'):
        return [repr(part) for part in WRCAN(**config).children()]


class Flow:
    """A convolution that is given its input rows after rows, and gives its output's as soon as they are known."""

    def __init__(self, conv: Convolution, height: int, width: int, held: Tensor | None = None) -> None:
        """`held`: the memory of another one that is done, to keep rows in."""
        self.conv, self.height, self.width = conv, height, width
        held = empty_map(conv.in_channels, conv.rate, width, like=conv.bias) if held is None else held
        held[:, :, : conv.rate] = 0
        self.held = held  # input rows [top, stop)
        self.top, self.stop, self.done = -conv.rate, 0, 0  # done: output rows that were given

    def room(self, count: int) -> Tensor:
        """Where the next `count` rows of the input are to be written, (1, C, count, W)."""
        rate = self.conv.rate
        top, _ = self.conv.read_for((self.done, self.done))
        still_needed = self.held[:, :, top - self.top : self.stop - self.top]
        kept, stop = still_needed.shape[2], self.stop + count
        beyond = rate if stop == self.height else 0  # rows of zeros
        if kept + count + beyond > self.held.shape[2]:
            most_kept = max(kept, 2 * rate)  # from the next time on
            self.held = empty_map(self.held.shape[1], most_kept + count + rate, self.width, like=self.held)
        else:
            still_needed = still_needed.clone()  # it may overlap the place that it goes to
        self.held[:, :, :kept] = still_needed
        self.held[:, :, kept + count : kept + count + beyond] = 0
        self.top, self.stop = top, stop
        return self.held[:, :, kept : kept + count]

    def out(self, at_most: int | None = None) -> Tensor:
        """The rows of the output that can be made by now, after those that were given; perhaps none."""
        conv, start = self.conv, self.done
        last_known = (self.stop - conv.rate - 1) // conv.stride
        stop = self.height // conv.stride if self.stop == self.height else max(start, last_known + 1)
        stop = stop if at_most is None else min(stop, start + at_most)
        self.done = stop
        if start == stop:
            return empty_map(conv.out_channels, 0, self.width // conv.stride, like=self.held)
        first, last = conv.read_for((start, stop))
        return conv(self.held[:, :, first - self.top : last - self.top])

    def __call__(self, rows: Tensor) -> Tensor:
        self.room(rows.shape[2]).copy_(rows)
        return self.out()


def _flow(conv: nn.Module, size: tuple[int, int], dtype: torch.dtype, scale: int = 1) -> Flow:
    """Of a convolution whose input is `scale` times smaller than the image, along each side."""
    height, width = size[0] // scale, size[1] // scale
    return Flow(Convolution(conv, dtype, height * width), height, width)


class Queue:
    """Rows that wait for the decoder."""

    def __init__(self) -> None:
        self.waiting: deque[Tensor] = deque()

    def put(self, rows: Tensor) -> None:
        self.waiting.append(rows)

    def take_into(self, room: Tensor) -> None:
        """The next rows, as many as `room` has."""
        done = 0
        while done < room.shape[2]:
            first = self.waiting.popleft()
            taken = first[:, :, : room.shape[2] - done]
            room[:, :, done : done + taken.shape[2]] = taken
            done += taken.shape[2]
            if taken.shape[2] < first.shape[2]:
                self.waiting.appendleft(first[:, :, taken.shape[2] :])


class Encoded(NamedTuple):
    """What the encoder knows after some more rows of the image: the next rows of each map."""

    skip0: Tensor  # (1, F, rows, W)
    skip1: Tensor  # (1, 2F, rows, W/2)
    expanded: Tensor  # (1, 4F, rows, W/4)


class Encoding:
    """Head, encoder and f_EXP; one image's rows go through it once."""

    def __init__(self, network: WRCAN, size: tuple[int, int], dtype: torch.dtype) -> None:
        outer, inner = network.encoders
        assert isinstance(outer, Encoder) and isinstance(inner, Encoder)  # a ModuleList forgets their type
        self.head, self.expand = _flow(network.head, size, torch.float32), _flow(network.expand, size, dtype, scale=4)
        self.conv0, self.down0 = _flow(outer.conv, size, dtype), _flow(outer.down, size, dtype)
        self.conv1, self.down1 = _flow(inner.conv, size, dtype, scale=2), _flow(inner.down, size, dtype, scale=2)

    def __call__(self, image: Tensor) -> Encoded:
        skip0 = F.relu_(self.conv0(self.head(image)))
        skip1 = F.relu_(self.conv1(self.down0(skip0)))
        return Encoded(skip0, skip1, self.expand(self.down1(skip1)))


class Decoding:
    """Body conv, decoder and tail, beside an encoder whose rows they need again.

    The image goes past the network, by way of the head, to the tail. These two compute in fp32: bf16 would leave 8 bits
    of it. So the head is run once more here, on rows of the image, which take less room than its shallow features.
    """

    def __init__(
        self, network: WRCAN, size: tuple[int, int], dtype: torch.dtype, features: Tensor, end_rows: int
    ) -> None:
        """`end_rows`: the most that it is given at a time, but for the last rows, which it gives back in such steps."""
        outer, inner = network.decoders
        assert isinstance(outer, Decoder) and isinstance(inner, Decoder)  # a ModuleList forgets their type
        self.features = features  # (1, 4F, H/4, W/4), the groups' output
        self.body_conv = Convolution(network.body_conv, dtype, features[0, 0].numel())
        self.up1, self.conv1 = _flow(inner.up, size, dtype, scale=4), _flow(inner.conv, size, dtype, scale=2)
        self.up0, self.conv0 = _flow(outer.up, size, dtype, scale=2), _flow(outer.conv, size, dtype)
        self.head, self.tail = (_flow(conv, size, torch.float32) for conv in (network.head, network.tail))
        self.skip0, self.skip1 = Queue(), Queue()
        self.end_rows = end_rows
        self.done = 0  # rows of the features

    def __call__(self, image: Tensor, encoded: Encoded) -> Tensor:
        """The next rows of the restored image, (1, C, rows, W), fp32; perhaps none."""
        self.head.room(image.shape[2]).copy_(image)
        self.skip0.put(encoded.skip0)
        self.skip1.put(encoded.skip1)
        count = encoded.expanded.shape[2]
        deep = self.up1.room(count)
        if count:
            span = (self.done, self.done + count)
            body = self.body_conv.of_map(self.features, span)
            torch.add(encoded.expanded, body, out=deep)  # Eq. 4
            self.done += count
        decoded1 = _decode(self.up1.out(), self.skip1, self.conv1)
        decoded0 = _decode(self.up0(decoded1), self.skip0, self.conv0)
        restored = [self.tail.out()]  # no rows, if there are no others
        # The last strip frees many rows at once, which would take their memory at once.
        for start, stop in spans(decoded0.shape[2], self.end_rows):
            shallow = self.head.out(at_most=stop - start)
            torch.add(shallow, decoded0[:, :, start:stop], out=self.tail.room(stop - start))
            restored.append(self.tail.out())
        return torch.cat(restored, dim=2)


def _decode(upsampled: Tensor, skips: Queue, conv: Flow) -> Tensor:
    """One scale of the decoder, after its first convolution (Eqs. 5.1 and 5.2)."""
    upsampled = F.pixel_shuffle(upsampled, 2)
    room = conv.room(upsampled.shape[2])
    skip, deep = room.split([room.shape[1] - upsampled.shape[1], upsampled.shape[1]], dim=1)
    skips.take_into(skip)
    deep.copy_(upsampled)
    return F.relu_(conv.out())


def spans(height: int, rows: int) -> Iterator[Span]:
    """[0, height) in strips."""
    for start in range(0, height, rows):
        yield start, min(start + rows, height)


class Update:
    """Brings a map up to date, rows after rows, just ahead of who reads it."""

    def __init__(self, apply: Callable[[Span], None]) -> None:
        self.apply, self.done = apply, 0

    def until(self, stop: int) -> None:
        if stop > self.done:
            self.apply((self.done, stop))
            self.done = stop


class Maps:
    """What the groups work in, beside their input."""

    def __init__(self, network: WRCAN, entry: Tensor, rows: int) -> None:
        channels, height, width = entry.shape[1:]
        self.margin = margin = margin_of(entry.device, entry.dtype, width, max(ATROUS_RATES))
        self.wide = empty_map(channels, height, width + 2 * margin, like=entry)  # zeros on either side
        self.features = self.wide[..., margin : margin + width]  # of a block, (1, C, H, W)
        for side in (self.wide[..., :margin], self.wide[..., margin + width :]):
            side.zero_()
        self.branch = torch.empty_like(entry)
        widest = max(conv.in_channels for conv in network.groups.modules() if isinstance(conv, nn.Conv2d))
        self.hidden = empty_map(widest, min(rows, height) + 3, width, like=entry)  # 2 of the last strip, 1 of zeros

    def convolution(self, conv: nn.Module) -> Convolution:
        """Of the features: of `wide`."""
        return Convolution(conv, self.wide.dtype, self.branch[0, 0].numel(), self.margin)


def run_branch(block: ResidualBlock, maps: Maps, update: Update, rows: int, progress: Progress) -> Tensor:
    """The block's branch of the features, in strips, into maps.branch; returns its sum (1, C, 1, 1) in float32.

    Rows of the branch are written only after `update` has passed them: it may still read what they held before.
    """
    branch, dtype = block.branch, maps.branch.dtype
    layers = (branch.atrous, branch.fuse) if isinstance(branch, WideReceptiveField) else ([branch.conv1], branch.conv2)
    channels, height, width = maps.branch.shape[1:]
    parallel = [maps.convolution(conv) for conv in layers[0]]
    last = Flow(Convolution(layers[1], dtype, height * width), height, width, held=maps.hidden)
    reach, products = max(conv.rate for conv in parallel), weight_count(block)
    total = torch.zeros(channels, dtype=torch.float32, device=maps.branch.device)
    summed_in = torch.float32 if dtype == torch.float16 else dtype  # fp16 ends at 65504; bf16 rounds
    for start, stop in spans(height, rows):
        update.until(min(stop + reach, height))
        hidden = last.room(stop - start).chunk(len(parallel), dim=1)  # (1, 2C, rows, W)
        for conv, part in zip(parallel, hidden, strict=True):
            torch.clamp_min(conv.of_map(maps.wide, (start, stop)), 0, out=part)
        done = last.done
        out = last.out()
        maps.branch[:, :, done : last.done] = out
        of_rows = out[0].permute(1, 2, 0).sum(1, dtype=summed_in)  # (rows, C)
        total += of_rows.sum(0, dtype=torch.float32)
        progress.add(products * (stop - start))
    return total[None, :, None, None]


class WindowMeans:
    """Means over a window around each position, asked for from the top row on.

    At the edges a window is moved inwards, so that it lies in the map whole (Chu et al., "Improving Image Restoration
    by Revisiting Global Information Aggregation", ECCV 2022).
    """

    def __init__(self, values: Tensor, size: int) -> None:
        self.values = values[0].permute(1, 2, 0)  # (H, W, C)
        height, width = self.values.shape[:2]
        self.rows, self.columns = min(size, height), min(size, width)
        self.top = 0
        first = self.values[: self.rows].split(4)  # a sum in another type copies what it sums
        self.sums = sum((rows.sum(0, dtype=torch.float32) for rows in first), torch.zeros(()))  # (W, C), of the window

    def __call__(self, span: Span) -> Tensor:
        """(1, C, rows, W - window + 1): one mean for each place of the window along these rows."""
        above, lowest = (self.rows - 1) // 2, self.values.shape[0] - self.rows
        tops = torch.arange(*span, device=self.values.device).sub_(above).clamp_(0, lowest)
        moves = min(max(0, span[1] - 1 - above), lowest) - self.top  # of the last of them, without asking a GPU
        entering = self.values[self.top + self.rows : self.top + self.rows + moves]
        leaving = self.values[self.top : self.top + moves]
        sums = torch.cat([self.sums[None], entering.float() - leaving]).cumsum_(0)  # (moves + 1, W, C)
        sums, self.sums, self.top = sums[tops - self.top], sums[-1].clone(), self.top + moves
        ends = F.pad(sums.cumsum_(1), (0, 0, 1, 0))  # (rows, W + 1, C)
        means = (ends[:, self.columns :] - ends[:, : -self.columns]).div_(self.rows * self.columns)
        return means.permute(2, 0, 1)[None]

    def places(self) -> Tensor:
        """For each column of the map, the place of its window."""
        width = self.values.shape[1]
        centred = torch.arange(width, device=self.values.device) - (self.columns - 1) // 2
        return centred.clamp_(0, width - self.columns)


def attend(attention: nn.Module, total: Tensor, features: Tensor, branch: Tensor, window: int | None) -> Update:
    """What adds attention(branch) to the features (Eq. 6), with the attention's means over the image or a window."""

    def add(span: Span, weights: Tensor | None) -> None:
        start, stop = span
        into, added = features[:, :, start:stop], branch[:, :, start:stop]
        into.add_(added) if weights is None else into.addcmul_(added, weights.to(features.dtype))

    if not isinstance(attention, ChannelAttention):
        return Update(lambda span: add(span, None))
    height, width = features.shape[2:]
    if window is None or (window >= height and window >= width):
        weights = attention.weights(total / (height * width))
        return Update(lambda span: add(span, weights))

    means = WindowMeans(branch, window)
    places = means.places()
    return Update(lambda span: add(span, attention.weights(means(span)).to(features.dtype)[..., places]))


def run_group(group: nn.Module, entry: Tensor, maps: Maps, rows: int, window: int | None, progress: Progress) -> None:
    """A residual group, in place: entry += Conv(blocks(entry))."""
    height = entry.shape[2]

    def take(span: Span) -> None:
        start, stop = span
        maps.features[:, :, start:stop] = entry[:, :, start:stop]

    update = Update(take)
    assert isinstance(group, ResidualGroup)  # a Sequential forgets their type
    for block in group.blocks:
        assert isinstance(block, ResidualBlock)
        total = run_branch(block, maps, update, rows, progress)
        update = attend(block.attention, total, maps.features, maps.branch, window)
        if window is not None:  # a window reads rows of the branch that the next pass would write over
            for _, stop in spans(height, max(1, rows // 4)):
                update.until(stop)
    conv = maps.convolution(group.conv)
    for start, stop in spans(height, rows):
        update.until(min(stop + conv.rate, height))
        entry[:, :, start:stop] += conv.of_map(maps.wide, (start, stop))
        progress.add(weight_count(group.conv) * (stop - start))


def _expand(
    network: WRCAN, strips: Iterator[Tensor], size: tuple[int, int], dtype: torch.dtype, progress: Progress
) -> Tensor:
    """f_EXP of the image, (1, 4F, H/4, W/4)."""
    encoding = Encoding(network, size, dtype)
    height, width = (side // SIZE_MULTIPLE for side in size)
    out = empty_map(4 * network.head.out_channels, height, width, like=encoding.expand.held)
    done = 0
    for image in strips:
        expanded = encoding(image).expanded
        out[:, :, done : done + expanded.shape[2]] = expanded
        done += expanded.shape[2]
        progress.add(progress.encoder * image.shape[2] // SIZE_MULTIPLE)
    return out


@torch.no_grad()
def restore_in_strips(
    network: WRCAN,
    read: Callable[[Span], Tensor],
    write: Callable[[Span, Tensor], None],
    size: tuple[int, int],
    *,
    rows: int,
    window: int | None = None,
    dtype: torch.dtype = torch.float32,
    tell: Callable[[float], None] = lambda share: None,
) -> None:
    """Restore one image.

    Args:
        network: a WRCAN that `is_as_built`, of float32 weights, on the device it shall run on; no autocast around it.
        read: gives rows [start, stop) of the image, (1, C, rows, W), RGB in [0, 1], in any type, on any device.
        write: takes rows of the restored image, float32, neither clamped nor rounded, on the network's device.
        size: the image's height and width.
        rows: the strips' height, in rows of the features at a quarter of the size. It changes time and memory alone.
        window: pool the attention over a window of that many positions a side, instead of the whole image.
        dtype: what is computed in, except for what of the image goes past the network: that is fp32.
        tell: is given the share of the work that is done, up to 1, after each strip.
    """
    height, width = size
    device = network.head.weight.device
    padded = padded_to_multiple(size)

    def read_padded(span: Span) -> Tensor:
        """As the network pads: by its last rows and columns."""
        start, stop = span[0], min(span[1], height)
        missing = (0, padded[1] - width, 0, span[1] - span[0] - (stop - start))
        image = read((start, stop)).to(device, torch.float32)
        image = F.pad(image, missing, mode='replicate') if any(missing) else image
        return image.contiguous(memory_format=torch.channels_last)

    at_ends = end_rows(network.head.out_channels, padded, rows, dtype, device)
    strips = list(spans(padded[0], at_ends))
    progress = Progress(network, padded[0], tell)
    entry = _expand(network, map(read_padded, strips), padded, dtype, progress)
    maps = Maps(network, entry, rows)
    for group in network.groups:
        run_group(group, entry, maps, rows, window, progress)
    del maps

    encoding, decoding = Encoding(network, padded, dtype), Decoding(network, padded, dtype, entry, at_ends)
    done = 0
    for image in map(read_padded, strips):
        restored = decoding(image, encoding(image))
        stop = min(done + restored.shape[2], height)  # the padding is left out
        if stop > done:
            write((done, stop), restored[:, :, : stop - done, :width])
        done = stop
        progress.add((progress.encoder + progress.decoder) * image.shape[2] // SIZE_MULTIPLE)
