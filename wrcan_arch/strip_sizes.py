"""What strips take of the memory, and how high those of encoder and decoder can be for it."""

from collections.abc import Mapping
from typing import Any

import torch

from .convolution import margin_of, onednn_computes_in
from .wrcan_arch import ATROUS_RATES, SIZE_MULTIPLE

BRANCH_MATRICES = 4  # of 4F x 4F at each of 9 places: the weights of a block's convolutions
WEIGHT_COPIES = 2  # converted or packed, and one more while that is done
BRANCH_MAPS = 6  # maps of 4F channels that a strip of a block takes, the library's own copies included
END_MAPS = 16  # maps of F channels that a strip of encoder and decoder takes
UNFOLDED_MAPS = 18  # more where PyTorch's own convolution unfolds its input: 9 positions of twice as many channels
END_IMAGES = 6  # and of the image, in fp32
END_ROWS = 24  # rows of the image by which the decoder is behind the encoder, about
# Numbers in F channels of a strip of the encoder and decoder, at least and at most: what caches and kernels like.
CPU_END_STRIP, GPU_END_STRIP = (5 << 16, 2 << 20), (4 << 20, 64 << 20)
WORKSPACE = 32 << 20  # bytes of the library's scratch, whatever the size


def padded_to_multiple(size: tuple[int, int]) -> tuple[int, int]:
    height, width = size
    return height + -height % SIZE_MULTIPLE, width + -width % SIZE_MULTIPLE


def end_rows_and_bytes(
    feat: int, padded: tuple[int, int], rows: int, dtype: torch.dtype, device: torch.device
) -> tuple[int, int]:
    """The height of the encoder's and decoder's strips, in rows of the image, and the bytes that are held at most.

    While these two run, all but one of the blocks' maps are gone: their strips may be as high as that memory allows.
    """
    unfolded = UNFOLDED_MAPS if device.type == 'cpu' and not onednn_computes_in(dtype) else 0
    height, width = (side // SIZE_MULTIPLE for side in padded)
    a_row = 4 * feat * width  # numbers: of a map of the features, and of F channels at the image's size
    a_map, strip_rows = a_row * height, min(rows, height) + 2 * max(ATROUS_RATES)
    margins = 4 * feat * height * 2 * margin_of(device, dtype, width, max(ATROUS_RATES))
    in_blocks = 3 * a_map + margins + (BRANCH_MAPS + unfolded) * strip_rows * a_row

    image_row = 3 * padded[1] * torch.float32.itemsize // dtype.itemsize
    an_end_row = (END_MAPS + unfolded) * a_row + END_IMAGES * image_row
    fitting = (in_blocks - a_map) // an_end_row - END_ROWS
    least, most = (numbers // a_row for numbers in (CPU_END_STRIP if device.type == 'cpu' else GPU_END_STRIP))
    end_rows = SIZE_MULTIPLE * min(height, max(2, min(rows, max(least, min(fitting, most)) // SIZE_MULTIPLE)))
    at_ends = a_map + (end_rows + END_ROWS) * an_end_row
    weights = WEIGHT_COPIES * 9 * BRANCH_MATRICES * (4 * feat) ** 2
    return end_rows, dtype.itemsize * (max(in_blocks, at_ends) + weights) + WORKSPACE


def bytes_needed(
    config: Mapping[str, Any], size: tuple[int, int], *, rows: int, dtype: torch.dtype, device: torch.device
) -> int:
    """What `restore_in_strips` holds at most, above the weights and what `read` and `write` keep."""
    return end_rows_and_bytes(config['num_feat'], padded_to_multiple(size), rows, dtype, device)[1]
