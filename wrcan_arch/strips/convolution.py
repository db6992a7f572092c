"""Compute any rows of the output of the network's 3 x 3 convolutions, with weights that are prepared once."""

import platform
from collections.abc import Callable
from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Span = tuple[int, int]  # rows [start, stop)

# Smallest input for which `PairedKernel` pays: below, its extra additions cost more than the products that it saves.
PAIRED_CHANNELS = 256
PAIRED_POSITIONS = 1 << 12  # of the whole map: 64 x 64, a quarter of the size of 256 x 256 pixels

MARGIN_WIDTH = 128  # positions; for narrower maps oneDNN's copies cost less than the margins' extra columns


def packs_weights(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether `Convolution` packs its weights for oneDNN on this device and in this type."""
    of_x86 = device.type == 'cpu' and platform.machine() in ('x86_64', 'AMD64')
    return of_x86 and onednn_computes_in(dtype) and can_pack(dtype)


@cache
def can_pack(dtype: torch.dtype) -> bool:
    """Whether `Kernel` works here and agrees with F.conv2d: it calls two operators that are private to PyTorch."""
    weight = torch.arange(36, dtype=dtype, device='cpu').view(2, 2, 3, 3).contiguous(memory_format=torch.channels_last)
    rows, bias = weight[:1] / 36, weight[0, :, 0, 0]
    try:
        packed = Kernel(lambda: weight, bias)(rows, 1)
        return torch.allclose(packed, F.conv2d(rows, weight, bias, padding=1), rtol=0.02)
    except Exception:  # a later release may raise anything
        return False


def onednn_computes_in(dtype: torch.dtype) -> bool:
    """Whether PyTorch runs CPU convolutions in `dtype`, fp32 or bf16, by oneDNN; otherwise it unfolds their input.

    False if oneDNN is switched off (`torch.backends.mkldnn.flags`). bf16 needs AVX-512, if only to emulate it.
    """
    if not (torch.backends.mkldnn.is_available() and torch._C._get_mkldnn_enabled()):
        return False
    return dtype == torch.float32 or (dtype == torch.bfloat16 and torch.ops.mkldnn._is_mkldnn_bf16_supported())


def margin_of(device: torch.device, dtype: torch.dtype, width: int, rate: int) -> int:
    """Columns of zeros to keep on either side of a map for convolutions up to `rate`; 0 if they pad it themselves.

    On AMX, oneDNN copies an input that it pads; for an atrous convolution of a wide map, most rows more than once.
    """
    if width < MARGIN_WIDTH:
        return 0
    has_amx = getattr(torch.cpu, '_is_amx_tile_supported', bool)()  # not in every release
    return rate if has_amx and dtype == torch.bfloat16 and packs_weights(device, dtype) else 0


class Kernel:
    """A oneDNN convolution whose weights stay packed in oneDNN's order as long as the input shape stays the same.

    The order depends on that shape. F.conv2d packs the weights on every call, which for a strip of 4 rows of 320 takes
    up to a quarter of the time.
    """

    def __init__(
        self, make: Callable[[], Tensor], bias: Tensor | None, stride: int = 1, rate: int = 1, padding: int = 1
    ) -> None:
        """`make` returns the weights in the type of the computation; `padding` is that of the columns."""
        self.make, self.bias, self.stride, self.rate, self.padding = make, bias, stride, rate, padding
        self.packed: Tensor | None = None
        self.packed_for: tuple[torch.Size, int] | None = None

    def __call__(self, rows: Tensor, zeros: int = 0) -> Tensor:
        """Convolve `rows`, padded by `zeros` rows of zeros above and below."""
        geometry = [zeros, self.padding], [self.stride] * 2, [self.rate] * 2, 1  # padding, stride, rate, groups
        if self.packed_for != (rows.shape, zeros):
            self.packed = None  # frees its memory before the next are packed
            self.packed = torch.ops.mkldnn._reorder_convolution_weight(self.make(), *geometry, rows.shape)
            self.packed_for = rows.shape, zeros
        return torch.ops.mkldnn._convolution_pointwise(rows, self.packed, self.bias, *geometry, 'none', [], '')


class PairedKernel:
    """A convolution of stride and rate 1 that computes two output rows with four products instead of six.

    Winograd's F(2, 3) along the columns (Lavin and Gray, "Fast Algorithms for Convolutional Neural Networks", CVPR
    2016): with input rows d and kernel rows g, m0 = (d0 - d2) g0, m1 = (d1 + d2)(g0 + g1 + g2) / 2,
    m2 = (d2 - d1)(g0 - g1 + g2) / 2 and m3 = (d1 - d3) g2 give the rows m0 + m1 + m2 and m1 - m2 - m3. Each product is
    a convolution along the rows. The measured rounding error is 0.6 of that of oneDNN's own sum of nine products.
    """

    def __init__(self, weight: Tensor, bias: Tensor) -> None:
        g0, g1, g2 = weight.split(1, dim=2)
        self.products = (
            Kernel(lambda: g0, None),
            Kernel(lambda: (g0 + g2).add_(g1).div_(2), bias),  # m1 is added to both rows, and the bias with it
            Kernel(lambda: (g0 + g2).sub_(g1).div_(2), None),
            Kernel(lambda: g2, None),
        )

    def __call__(self, rows: Tensor, zeros: int = 0) -> Tensor:
        """Convolve `rows`, padded by a column of zeros on either side and `zeros` rows of zeros above and below."""
        channels, count, width = rows.shape[1], rows.shape[2] + 2 * zeros - 2, rows.shape[3]
        pairs = -(-count // 2)
        if zeros:
            rows = pad_rows(rows, zeros, zeros)
        d0, d1, d2 = (rows[:, :, start : start + 2 * pairs - 1 : 2] for start in range(3))
        d3 = rows[:, :, 3::2]  # an odd count's last pair has none: its lower row is dropped below
        times0, times1, times2, times3 = self.products
        terms = empty_map(channels, pairs, width, like=rows)
        m1 = times1(torch.add(d1, d2, out=terms))
        m2 = times2(torch.sub(d2, d1, out=terms))
        out = empty_map(m1.shape[1], 2 * pairs, width, like=rows)
        upper, lower = out[:, :, ::2], out[:, :, 1::2]
        torch.add(m1, m2, out=upper)
        torch.sub(m1, m2, out=lower)
        del m1, m2
        upper += times0(torch.sub(d0, d2, out=terms))
        whole_pairs = d3.shape[2]
        torch.sub(d1[:, :, :whole_pairs], d3, out=terms[:, :, :whole_pairs])
        lower -= times3(terms)
        return out[:, :, :count]


class Convolution:
    """A `conv3x3` that computes any rows of its output, in the type `dtype`."""

    def __init__(self, conv: nn.Module, dtype: torch.dtype, positions: int, margin: int = 0) -> None:
        """
        Args:
            positions: number of positions of the whole input, all strips together.
            margin: columns of zeros that the input has on either side and the output has not; 0: pad here.
        """
        assert isinstance(conv, nn.Conv2d) and conv.bias is not None
        weight, bias = conv.weight, conv.bias.to(dtype)
        self.out_channels, self.in_channels = weight.shape[:2]
        self.stride, self.rate, self.bias = conv.stride[0], conv.dilation[0], bias
        self.margin, self.padding = margin, 0 if margin else self.rate
        self.kernel: Kernel | PairedKernel | None = None
        if packs_weights(weight.device, dtype):
            can_pair = dtype == torch.float32 and self.stride == self.rate == self.padding == 1
            pairing_pays = self.in_channels >= PAIRED_CHANNELS and positions >= PAIRED_POSITIONS
            if can_pair and pairing_pays:
                self.kernel = PairedKernel(weight, bias)
            else:
                self.kernel = Kernel(lambda: weight.to(dtype), bias, self.stride, self.rate, self.padding)
        else:
            self.weight = weight.to(dtype, memory_format=torch.channels_last)

    def input_rows_for(self, span: Span) -> Span:
        """The input rows that output rows `span` are computed from; they may lie beyond the input's edges."""
        start, stop = span
        return start * self.stride - self.rate, (stop - 1) * self.stride + self.rate + 1

    def __call__(self, rows: Tensor, zeros: int = 0) -> Tensor:
        """(1, C', n', W / stride) from `rows` (1, C, n, W + 2 margin) and `zeros` rows of zeros above and below."""
        if self.kernel is not None:
            out = self.kernel(rows, zeros)
        else:
            out = F.conv2d(rows, self.weight, self.bias, self.stride, (zeros, self.padding), self.rate)
        if not self.margin:
            return out
        of_margin = self.margin - self.rate
        return out[..., of_margin : out.shape[3] - of_margin]

    def rows_of_map(self, whole: Tensor, span: Span) -> Tensor:
        """Rows `span` of the output, (1, C', stop - start, W / stride), from a whole map (1, C, H, W + 2 margin)."""
        first, last = self.input_rows_for(span)
        above, below = max(0, -first), max(0, last - whole.shape[2])
        rows = whole[:, :, first + above : last - below]
        if above == below:
            return self(rows, above)
        return self(pad_rows(rows, above, below))


def pad_rows(rows: Tensor, above: int, below: int) -> Tensor:
    """`rows` with rows of zeros added above and below. F.pad would write everything twice."""
    channels, count, width = rows.shape[1:]
    padded = empty_map(channels, above + count + below, width, like=rows)
    padded[:, :, :above] = 0
    padded[:, :, above : above + count] = rows
    padded[:, :, above + count :] = 0
    return padded


def set_channels_last(network: nn.Module) -> None:
    """Store the weights channels last: in this layout, convolutions and the packing of weights are fastest."""
    network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # missing in torch's own types


def empty_map(channels: int, height: int, width: int, *, like: Tensor) -> Tensor:
    """An uninitialized map (1, C, H, W), channels last, with the type and device of `like`."""
    shape = (1, channels, height, width)
    return torch.empty(shape, dtype=like.dtype, device=like.device, memory_format=torch.channels_last)
