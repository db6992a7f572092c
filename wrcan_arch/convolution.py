"""A 3 x 3 convolution of the network, for any rows of its output, with its weights made ready once."""

import platform

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Span = tuple[int, int]  # rows [start, stop)


def packs_weights(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether `Convolution` packs its weights there, for oneDNN."""
    of_x86 = device.type == 'cpu' and platform.machine() in ('x86_64', 'AMD64')
    return of_x86 and onednn_computes_in(dtype)


def onednn_computes_in(dtype: torch.dtype) -> bool:
    """Whether PyTorch gives convolutions in `dtype` on a CPU to oneDNN, in fp32 and bf16; else it unfolds their input.

    Not where somebody switched oneDNN off (`torch.backends.mkldnn.flags`). bf16 takes AVX-512, which may emulate it.
    """
    if not (torch.backends.mkldnn.is_available() and torch._C._get_mkldnn_enabled()):
        return False
    return dtype == torch.float32 or (dtype == torch.bfloat16 and torch.ops.mkldnn._is_mkldnn_bf16_supported())


class Convolution:
    """A convolution of `conv3x3`, for any rows of its output; weights in the type that is computed in.

    oneDNN computes with weights in an order of its own, which depends on the size of the input. F.conv2d brings them
    into it on every call, which for a strip of 4 rows of 320 takes up to a quarter of the time. Here they stay in it
    for as long as the strips' height stays the same.
    """

    def __init__(self, conv: nn.Module, dtype: torch.dtype) -> None:
        assert isinstance(conv, nn.Conv2d) and conv.bias is not None
        self.out_channels, self.in_channels = conv.weight.shape[:2]
        self.stride, self.rate = conv.stride[0], conv.dilation[0]
        self.packs = packs_weights(conv.weight.device, dtype)
        self.weight = conv.weight if self.packs else conv.weight.to(dtype, memory_format=torch.channels_last)
        self.bias = conv.bias.to(dtype)
        self.packed: Tensor | None = None
        self.packed_for = torch.Size()  # the input's

    def __call__(self, rows: Tensor, top: int, height: int, span: Span) -> Tensor:
        """Rows `span` of the output, (1, C', stop - start, W / stride).

        Args:
            rows: (1, C, n, W), rows of the input from `top` on, at least those that these rows are made from.
            top: the number of the first of them.
            height: of the whole input, beyond which all is zero.
            span: which rows of the output.
        """
        start, stop = span
        first, last = start * self.stride - self.rate, (stop - 1) * self.stride + self.rate + 1
        above, below = max(0, -first), max(0, last - height)
        read = rows[:, :, first + above - top : last - below - top]
        if above or below:
            read = F.pad(read, (0, 0, above, below))
        if self.packs:
            return self._with_packed_weights(read)
        return F.conv2d(read, self.weight, self.bias, self.stride, (0, self.rate), self.rate)

    def _with_packed_weights(self, read: Tensor) -> Tensor:
        padding, stride, rate, groups = [0, self.rate], [self.stride] * 2, [self.rate] * 2, 1
        if read.shape != self.packed_for:
            self.packed = None  # its memory is for the next
            pack = torch.ops.aten.mkldnn_reorder_conv2d_weight
            self.packed = pack(self.weight.to(read.dtype).to_mkldnn(), padding, stride, rate, groups, read.shape)
            self.packed_for = read.shape
        convolve = torch.ops.mkldnn._convolution_pointwise
        return convolve(read, self.packed, self.bias, padding, stride, rate, groups, 'none', [], '')
