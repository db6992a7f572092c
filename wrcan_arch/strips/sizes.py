"""Choose the height of strips, and compute the memory that they need."""

import math

import torch

from ..wrcan_arch import ATROUS_RATES, SIZE_MULTIPLE
from .convolution import margin_of, onednn_computes_in

BRANCH_MATRICES = 4  # of 4F x 4F for each of a kernel's 9 places: the weights of a block's convolutions
WEIGHT_COPIES = 3  # one converted or packed, one more during the conversion, and freed memory that the heap keeps
BRANCH_MAPS = 6  # maps of 4F channels that a strip of a block takes, the library's own copies included
END_MAPS = 16  # maps of F channels that a strip of encoder and decoder takes
UNFOLDED_MAPS = 18  # more maps if PyTorch's own convolution unfolds its input: 9 positions of twice as many channels
END_IMAGES = 6  # maps of the image's channels, in fp32, that a strip of encoder and decoder takes too
END_ROWS = 24  # rows of the image by which the decoder lags behind the encoder, about
# Least and most elements, in F channels, of a strip of the encoder and decoder: what suits caches and kernels.
CPU_END_STRIP, GPU_END_STRIP = (5 << 16, 2 << 20), (4 << 20, 64 << 20)
CPU_STRIP, GPU_STRIP = 2 << 20, 64 << 20  # bytes of the features in a strip of the blocks: what suits these too
# Elements of the features up to which one strip is used: more save little memory. 256 x 256 pixels at full width.
CPU_WHOLE = 1 << 20
WORKSPACE = 32 << 20  # bytes of the library's scratch memory, whatever the image's size


def padded_to_multiple(size: tuple[int, int]) -> tuple[int, int]:
    height, width = size
    return height + -height % SIZE_MULTIPLE, width + -width % SIZE_MULTIPLE


class StripSizes:
    """The heights of one image's strips, and the memory that they need.

    Args:
        feat: F, the network's features at full resolution.
        size: (H, W) of the image.
        dtype, device: of the computation.
    """

    def __init__(self, feat: int, size: tuple[int, int], dtype: torch.dtype, device: torch.device) -> None:
        height, width = padded_to_multiple(size)
        self.feat, self.dtype, self.on_cpu = feat, dtype, device.type == 'cpu'
        self.height = height // SIZE_MULTIPLE  # of the features
        # Elements of the features in one row (4F channels at a quarter of the width) and in all rows.
        self.row_numel, self.map_numel = feat * width, feat * width * self.height
        self.margins = 4 * feat * self.height * 2 * margin_of(device, dtype, width // SIZE_MULTIPLE, max(ATROUS_RATES))
        unfolded = UNFOLDED_MAPS if self.on_cpu and not onednn_computes_in(dtype) else 0
        self.branch_row_numel = (BRANCH_MAPS + unfolded) * self.row_numel  # that a row of a block's strip takes
        image_row = 3 * width * torch.float32.itemsize // dtype.itemsize
        self.end_row_numel = (END_MAPS + unfolded) * self.row_numel + END_IMAGES * image_row

    def _held_in_blocks(self, strip_rows: int) -> int:
        """Elements held while the blocks run."""
        strip = (min(strip_rows, self.height) + 2 * max(ATROUS_RATES)) * self.branch_row_numel
        return 3 * self.map_numel + self.margins + strip

    def end_rows(self, strip_rows: int) -> int:
        """The height of the encoder's and decoder's strips, in rows of the image, if the blocks' have `strip_rows`.

        While encoder and decoder run, all but one of the blocks' maps are freed: their strips may use that memory.
        """
        fitting = (self._held_in_blocks(strip_rows) - self.map_numel) // self.end_row_numel - END_ROWS
        preferred = CPU_END_STRIP if self.on_cpu else GPU_END_STRIP
        least, most = (numel // self.row_numel for numel in preferred)
        image_rows = max(least, min(fitting, most))
        feature_rows = max(2, min(strip_rows, image_rows // SIZE_MULTIPLE))
        return SIZE_MULTIPLE * min(self.height, feature_rows)

    def bytes_needed(self, strip_rows: int) -> int:
        """Peak bytes of `restore_in_strips`, besides the weights and what `read` and `write` hold."""
        at_ends = self.map_numel + (self.end_rows(strip_rows) + END_ROWS) * self.end_row_numel
        weights = WEIGHT_COPIES * 9 * BRANCH_MATRICES * (4 * self.feat) ** 2
        return self.dtype.itemsize * (max(self._held_in_blocks(strip_rows), at_ends) + weights) + WORKSPACE

    def rows_within(self, budget: int) -> tuple[int, int]:
        """The height of the blocks' strips, and the bytes that they need, which exceed `budget` if nothing fits.

        The height suits the caches, or is lower if the memory requires it. All strips are about equally high: weights
        are packed again for each other height, which is costly if there are few strips. The height is even, for whole
        pairs of rows (`PairedKernel`), unless only single rows fit.
        """
        if self.on_cpu and self.map_numel <= CPU_WHOLE:
            strip_rows = self.height + self.height % 2
        else:
            strip = CPU_STRIP if self.on_cpu else GPU_STRIP
            strip_rows = max(4, strip // (self.row_numel * self.dtype.itemsize) // 2 * 2)
        while strip_rows > 1 and self.bytes_needed(strip_rows) > budget:
            strip_rows = strip_rows // 4 * 2 or 1  # about half, and even
        count = math.ceil(self.height / strip_rows)
        equal = math.ceil(self.height / count)
        return min(strip_rows, equal + equal % 2), self.bytes_needed(strip_rows)
