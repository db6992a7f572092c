"""WRCAN's function of a whole image, computed strip by strip: the same result in bounded memory, and from the cache.

Channel attention pools the whole image, so the network on a tile is another function. Here each block makes one pass
over the whole map: it computes its branch, strip after strip, and sums it for the mean. What the attention makes of the
branch is added to the features when the next pass reads them, just ahead of it, while they are in the cache. Encoder
and decoder are local: any of their rows are computed from the image's rows around them, and never kept. So three maps
of 4F channels at a sixteenth of the pixels are all that is held.

Rows beyond an edge of a map are zeros to a convolution. They are so only at the image's own edge: everywhere else a
strip reads its neighbours' rows.
"""

from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .wrcan_arch import SIZE_MULTIPLE, WRCAN, ChannelAttention, ResidualBlock, WideReceptiveField

Span = tuple[int, int]  # rows [start, stop)

BRANCH_MAPS = 6  # maps of 4F channels that a strip of a block takes, the library's own copies included
END_MAPS = 12  # maps of F channels that a strip of encoder and decoder takes
END_HALO = 48  # rows of the image that such a strip reads around its own, at most
WORKSPACE = 32 << 20  # bytes that are taken whatever the size: converted weights, the library's scratch


class Strip(NamedTuple):
    """Some rows of a map, from row `top` on; the whole map has `height`."""

    values: Tensor  # (1, C, rows, W)
    top: int
    height: int

    def rows(self, span: Span) -> Tensor:
        start, stop = span
        return self.values[:, :, start - self.top : stop - self.top]


class Convolution:
    """A 3 x 3 convolution of the network, for any rows of its output; weights in the type that is computed in."""

    def __init__(self, conv: nn.Module, dtype: torch.dtype) -> None:
        assert isinstance(conv, nn.Conv2d) and conv.bias is not None
        self.weight = conv.weight.to(dtype, memory_format=torch.channels_last)
        self.bias = conv.bias.to(dtype)
        self.stride, self.rate = conv.stride[0], conv.dilation[0]

    def reads(self, span: Span, height: int) -> Span:
        """The rows of the input, `height` rows high, that these rows of the output are made from."""
        start, stop = span
        return max(0, start * self.stride - self.rate), min(height, (stop - 1) * self.stride + self.rate + 1)

    def __call__(self, strip: Strip, span: Span) -> Tensor:
        start, stop = span
        first, last = self.reads(span, strip.height)
        inside = last - first == (stop - 1 - start) * self.stride + 2 * self.rate + 1  # away from the map's edges
        padding = (0 if inside else self.rate, self.rate)
        out = F.conv2d(strip.rows((first, last)), self.weight, self.bias, self.stride, padding, self.rate)
        if inside:
            return out
        skipped = start - first // self.stride  # rows that were padded although the map goes on
        return out[:, :, skipped : skipped + stop - start]


def spans(height: int, rows: int) -> Iterator[Span]:
    """[0, height) in strips."""
    for start in range(0, height, rows):
        yield start, min(start + rows, height)


class Encoded(NamedTuple):
    """What the encoder makes of some rows of the image."""

    shallow: Strip  # (1, F, rows, W)
    skip0: Strip  # (1, F, rows, W)
    skip1: Strip  # (1, 2F, rows, W/2)
    expanded: Strip  # (1, 4F, rows, W/4)


class EncoderAndDecoder:
    """The local layers. `read(span)` gives rows of the image (1, C, rows, W), whose sizes are multiples of 4."""

    def __init__(self, network: WRCAN, read: Callable[[Span], Tensor], height: int, dtype: torch.dtype) -> None:
        self.read, self.height = read, height

        def prepared(conv: nn.Module) -> Convolution:
            return Convolution(conv, dtype)

        self.head, self.expand, self.tail = map(prepared, (network.head, network.expand, network.tail))
        self.body_conv = prepared(network.body_conv)
        self.encoders = [(prepared(each.conv), prepared(each.down)) for each in network.encoders]  # type: ignore[arg-type]
        self.decoders = [(prepared(each.up), prepared(each.conv)) for each in network.decoders]  # type: ignore[arg-type]

    def encode(self, span: Span) -> Encoded:
        """`span` counts rows of the expanded features, at a quarter of the image's size."""
        (conv0, down0), (conv1, down1) = self.encoders
        height = self.height
        at_down1 = self.expand.reads(span, height // 4)
        at_skip1 = down1.reads(at_down1, height // 2)
        at_down0 = conv1.reads(at_skip1, height // 2)
        at_skip0 = down0.reads(at_down0, height)
        at_shallow = conv0.reads(at_skip0, height)
        at_image = self.head.reads(at_shallow, height)

        image = Strip(self.read(at_image), at_image[0], height)
        shallow = Strip(self.head(image, at_shallow), at_shallow[0], height)
        skip0 = Strip(F.relu_(conv0(shallow, at_skip0)), at_skip0[0], height)
        features0 = Strip(down0(skip0, at_down0), at_down0[0], height // 2)
        skip1 = Strip(F.relu_(conv1(features0, at_skip1)), at_skip1[0], height // 2)
        features1 = Strip(down1(skip1, at_down1), at_down1[0], height // 4)
        expanded = Strip(self.expand(features1, span), span[0], height // 4)
        return Encoded(shallow, skip0, skip1, expanded)

    def decode(self, features: Tensor, span: Span) -> Tensor:
        """Rows of the restored image, from the groups' output (1, 4F, H/4, W/4); `span` counts the image's rows."""
        (up0, conv0), (up1, conv1) = self.decoders
        height = self.height
        at_decoded0 = self.tail.reads(span, height)
        at_fused0 = conv0.reads(at_decoded0, height)
        at_decoded1 = up0.reads(_halved(at_fused0), height // 2)
        at_fused1 = conv1.reads(at_decoded1, height // 2)
        at_deep = up1.reads(_halved(at_fused1), height // 4)

        encoded = self.encode(at_deep)
        deep = self.body_conv(Strip(features, 0, height // 4), at_deep).add_(encoded.expanded.values)  # Eq. 4
        deep_strip = Strip(deep, at_deep[0], height // 4)
        decoded1 = _decode(up1, conv1, deep_strip, encoded.skip1, at_fused1, at_decoded1)
        decoded0 = _decode(up0, conv0, decoded1, encoded.skip0, at_fused0, at_decoded0)
        decoded0.values.add_(encoded.shallow.rows(at_decoded0))
        return self.tail(decoded0, span)


def _halved(span: Span) -> Span:
    """The rows before sub-pixel upsampling that these rows come from."""
    start, stop = span
    return start // 2, (stop + 1) // 2


def _decode(up: Convolution, conv: Convolution, deep: Strip, skip: Strip, at_fused: Span, at_decoded: Span) -> Strip:
    """One scale of the decoder (Eqs. 5.1 and 5.2)."""
    before = _halved(at_fused)
    upsampled = Strip(F.pixel_shuffle(up(deep, before), 2), 2 * before[0], skip.height)
    fused = Strip(torch.cat([skip.rows(at_fused), upsampled.rows(at_fused)], dim=1), at_fused[0], skip.height)
    return Strip(F.relu_(conv(fused, at_decoded)), at_decoded[0], skip.height)


class Update:
    """Brings a map up to date, rows after rows, just ahead of who reads it."""

    def __init__(self, apply: Callable[[Span], None]) -> None:
        self.apply, self.done = apply, 0

    def until(self, stop: int) -> None:
        if stop > self.done:
            self.apply((self.done, stop))
            self.done = stop


def run_branch(block: ResidualBlock, features: Tensor, update: Update, out: Tensor, rows: int) -> Tensor:
    """The block's branch of `features` (1, C, H, W), in strips, into `out`; returns its sum (1, C, 1, 1) in float32.

    Rows of `out` are written only after `update` has passed them: it may still read what `out` held before.
    """
    branch, dtype = block.branch, features.dtype
    layers = (branch.atrous, branch.fuse) if isinstance(branch, WideReceptiveField) else ([branch.conv1], branch.conv2)
    parallel, last = [Convolution(conv, dtype) for conv in layers[0]], Convolution(layers[1], dtype)
    reach = max(conv.rate for conv in parallel)
    height, width = features.shape[2:]
    whole = Strip(features, 0, height)
    hidden = _empty_map(last.weight.shape[1], min(rows, height) + 2, width, like=features)  # (1, 2C, rows, W)
    total = torch.zeros(1, out.shape[1], 1, 1, device=features.device)
    top = done = 0  # hidden holds rows [top, done)
    for start, stop in spans(height, rows):
        wanted = min(stop + last.rate, height)
        update.until(min(wanted + reach, height))
        new_top = max(0, start - last.rate)
        kept = done - new_top  # rows that the strip before has computed already
        hidden[:, :, :kept] = hidden[:, :, new_top - top : done - top].clone()
        if wanted > done:
            place = hidden[:, :, kept : wanted - new_top].chunk(len(parallel), dim=1)
            for conv, channels in zip(parallel, place, strict=True):
                torch.clamp_min(conv(whole, (done, wanted)), 0, out=channels)
        top, done = new_top, wanted
        part = last(Strip(hidden, top, height), (start, stop))
        out[:, :, start:stop] = part
        total += part.sum((2, 3), keepdim=True, dtype=torch.float32)
    return total


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
        self.sums = self.values[: self.rows].sum(0, dtype=torch.float32)  # (W, C), of the rows of the window

    def __call__(self, span: Span) -> Tensor:
        """(1, C, rows, W - window + 1): one mean for each place of the window along these rows."""
        height = self.values.shape[0]
        tops = torch.arange(*span).sub_((self.rows - 1) // 2).clamp_(0, height - self.rows)
        moves = int(tops[-1]) - self.top
        entering = self.values[self.top + self.rows : self.top + self.rows + moves]
        leaving = self.values[self.top : self.top + moves]
        sums = torch.cat([self.sums[None], entering.float() - leaving]).cumsum_(0)  # (moves + 1, W, C)
        sums, self.sums, self.top = sums[(tops - self.top).to(sums.device)], sums[-1].clone(), self.top + moves
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


def run_group(group: nn.Module, entry: Tensor, features: Tensor, branch: Tensor, rows: int, window: int | None) -> None:
    """A residual group, in place: entry += Conv(blocks(entry)). `features` and `branch` are maps to work in."""
    height = entry.shape[2]

    def take(span: Span) -> None:
        start, stop = span
        features[:, :, start:stop] = entry[:, :, start:stop]

    update = Update(take)
    for block in group.blocks:  # type: ignore[union-attr]
        total = run_branch(block, features, update, branch, rows)
        update = attend(block.attention, total, features, branch, window)
        if window is not None:  # a window reads rows of the branch that the next pass would write over
            for _, stop in spans(height, max(1, rows // 4)):
                update.until(stop)
    conv = Convolution(group.conv, features.dtype)  # type: ignore[arg-type]
    for start, stop in spans(height, rows):
        update.until(min(stop + conv.rate, height))
        entry[:, :, start:stop] += conv(Strip(features, 0, height), (start, stop))


def _empty_map(channels: int, height: int, width: int, *, like: Tensor) -> Tensor:
    shape = (1, channels, height, width)
    return torch.empty(shape, dtype=like.dtype, device=like.device, memory_format=torch.channels_last)


def _padded(size: tuple[int, int]) -> tuple[int, int]:
    height, width = size
    return height + -height % SIZE_MULTIPLE, width + -width % SIZE_MULTIPLE


def _end_rows(config: Mapping[str, Any], padded: tuple[int, int], dtype: torch.dtype, rows: int) -> int:
    """The height of the encoder's and decoder's strips, at a quarter of the size: the taller, the less is done twice.

    They work while two of the three maps are not there, and may take as much memory as those.
    """
    row_bytes = END_MAPS * config['num_feat'] * SIZE_MULTIPLE * padded[1] * dtype.itemsize
    beside_maps = padded[0] // SIZE_MULTIPLE // 24
    return max(1, min(rows, max(4, beside_maps, WORKSPACE // row_bytes)))


def bytes_needed(config: Mapping[str, Any], size: tuple[int, int], *, rows: int, dtype: torch.dtype) -> int:
    """What `restore_in_strips` holds at most, above the weights and what `read` and `write` keep."""
    padded = _padded(size)
    feat, columns = config['num_feat'], padded[1] // SIZE_MULTIPLE
    maps = 3 * 4 * feat * padded[0] // SIZE_MULTIPLE * columns
    in_blocks = BRANCH_MAPS * 4 * feat * (rows + 8) * columns
    at_ends = END_MAPS * feat * (SIZE_MULTIPLE * _end_rows(config, padded, dtype, rows) + END_HALO) * padded[1]
    return dtype.itemsize * (maps + max(in_blocks, at_ends)) + WORKSPACE


def restore_in_strips(
    network: WRCAN,
    read: Callable[[Span], Tensor],
    write: Callable[[Span, Tensor], None],
    size: tuple[int, int],
    *,
    rows: int,
    window: int | None = None,
    dtype: torch.dtype = torch.float32,
) -> None:
    """Restore one image.

    Args:
        network: a WRCAN, on the device it shall run on.
        read: gives rows [start, stop) of the image, (1, C, rows, W), RGB in [0, 1], in any type, on any device.
        write: takes rows of the restored image, float32, neither clamped nor rounded, on the network's device.
        size: the image's height and width.
        rows: the strips' height, in rows of the features at a quarter of the size. It changes time and memory alone.
        window: pool the attention over a window of that many positions a side, instead of the whole image.
        dtype: what is computed in.
    """
    height, width = size
    device = network.head.weight.device
    padded = _padded(size)

    def read_padded(span: Span) -> Tensor:
        """As the network pads: by its last rows and columns."""
        start, stop = min(span[0], height - 1), min(span[1], height)
        missing = (0, padded[1] - width, 0, span[1] - span[0] - (stop - start))
        image = read((start, stop)).to(device, dtype)
        image = F.pad(image, missing, mode='replicate') if any(missing) else image
        return image.contiguous(memory_format=torch.channels_last)

    ends = EncoderAndDecoder(network, read_padded, padded[0], dtype)
    channels = ends.expand.weight.shape[0]
    shape = (channels, padded[0] // 4, padded[1] // 4)
    entry = _empty_map(*shape, like=ends.expand.weight)
    end_rows = _end_rows(network.config, padded, dtype, rows)
    for start, stop in spans(padded[0] // 4, end_rows):
        entry[:, :, start:stop] = ends.encode((start, stop)).expanded.values
    features, branch = (_empty_map(*shape, like=entry) for _ in range(2))
    for group in network.groups:
        run_group(group, entry, features, branch, rows, window)
    del features, branch
    for start, stop in spans(height, SIZE_MULTIPLE * end_rows):
        write((start, stop), ends.decode(entry, (start, stop))[..., :width].float())
