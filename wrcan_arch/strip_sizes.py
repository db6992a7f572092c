"""Choose the height of strips, and compute the memory that they need."""

from collections.abc import Mapping
from typing import Any

import torch

from .convolution import margin_of, onednn_computes_in
from .wrcan_arch import ATROUS_RATES, SIZE_MULTIPLE

BRANCH_MATRICES = 4  # of 4F x 4F at each of 9 places: the weights of a block's convolutions
WEIGHT_COPIES = 2  # one converted or packed, and one more during the conversion
BRANCH_MAPS = 6  # maps of 4F channels that a strip of a block takes, the library's own copies included
END_MAPS = 16  # maps of F channels that a strip of encoder and decoder takes
UNFOLDED_MAPS = 18  # more where PyTorch's own convolution unfolds its input: 9 positions of twice as many channels
END_IMAGES = 6  # maps of the image's channels that it takes too, in fp32
END_ROWS = 24  # rows of the image by which the decoder lags behind the encoder, about
# Elements in F channels of a strip of the encoder and decoder, least and most: what suits caches and kernels.
CPU_END_STRIP, GPU_END_STRIP = (5 << 16, 2 << 20), (4 << 20, 64 << 20)
CPU_STRIP, GPU_STRIP = 9 << 18, 64 << 20  # bytes of the features in one strip of the blocks: what suits them too
CPU_WHOLE = 1 << 20  # elements up to which one strip is used: more save little memory; 256 x 256 pixels, full width
WORKSPACE = 32 << 20  # bytes of the library's scratch, whatever the size


def padded_to_multiple(size: tuple[int, int]) -> tuple[int, int]:
    height, width = size
    return height + -height % SIZE_MULTIPLE, width + -width % SIZE_MULTIPLE


def _unfolded_maps(dtype: torch.dtype, device: torch.device) -> int:
    return UNFOLDED_MAPS if device.type == 'cpu' and not onednn_computes_in(dtype) else 0


def _row_numel(feat: int, padded: tuple[int, int]) -> int:
    """Elements in a row of the features, which are as many as in a row of F channels at the image's size."""
    return 4 * feat * padded[1] // SIZE_MULTIPLE


def _held_in_blocks(
    feat: int, padded: tuple[int, int], rows: int, dtype: torch.dtype, device: torch.device
) -> tuple[int, int]:
    """Elements held while the blocks run, and how many of them are one map of the features."""
    height, width = (side // SIZE_MULTIPLE for side in padded)
    row_numel, strip_rows = _row_numel(feat, padded), min(rows, height) + 2 * max(ATROUS_RATES)
    margins = 4 * feat * height * 2 * margin_of(device, dtype, width, max(ATROUS_RATES))
    strip = (BRANCH_MAPS + _unfolded_maps(dtype, device)) * strip_rows * row_numel
    return 3 * row_numel * height + margins + strip, row_numel * height


def _end_row_numel(feat: int, padded: tuple[int, int], dtype: torch.dtype, device: torch.device) -> int:
    """Elements that one row of the encoder's and decoder's strips takes."""
    image_row = 3 * padded[1] * torch.float32.itemsize // dtype.itemsize
    return (END_MAPS + _unfolded_maps(dtype, device)) * _row_numel(feat, padded) + END_IMAGES * image_row


def end_rows(feat: int, padded: tuple[int, int], rows: int, dtype: torch.dtype, device: torch.device) -> int:
    """The height of the encoder's and decoder's strips, in rows of the image.

    While these two run, all but one of the blocks' maps are freed: the strips may use that memory.
    """
    in_blocks, map_numel = _held_in_blocks(feat, padded, rows, dtype, device)
    fitting = (in_blocks - map_numel) // _end_row_numel(feat, padded, dtype, device) - END_ROWS
    preferred = CPU_END_STRIP if device.type == 'cpu' else GPU_END_STRIP
    least, most = (numbers // _row_numel(feat, padded) for numbers in preferred)
    height = padded[0] // SIZE_MULTIPLE
    return SIZE_MULTIPLE * min(height, max(2, min(rows, max(least, min(fitting, most)) // SIZE_MULTIPLE)))


def bytes_needed(
    config: Mapping[str, Any], size: tuple[int, int], *, rows: int, dtype: torch.dtype, device: torch.device
) -> int:
    """Peak bytes of `restore_in_strips`, besides the weights and what `read` and `write` hold."""
    feat, padded = config['num_feat'], padded_to_multiple(size)
    in_blocks, map_numel = _held_in_blocks(feat, padded, rows, dtype, device)
    at_ends = map_numel + (end_rows(feat, padded, rows, dtype, device) + END_ROWS) * _end_row_numel(
        feat, padded, dtype, device
    )
    weights = WEIGHT_COPIES * 9 * BRANCH_MATRICES * (4 * feat) ** 2
    return dtype.itemsize * (max(in_blocks, at_ends) + weights) + WORKSPACE


def strip_rows(
    config: Mapping[str, Any], size: tuple[int, int], *, budget: int, dtype: torch.dtype, device: torch.device
) -> tuple[int, int]:
    """The height of the blocks' strips, and the bytes that they need, which exceed `budget` if nothing fits.

    The height suits the caches, or is lower if the memory requires it. It is about the same for all strips, since
    weights are packed again for another height, which is costly if there are few strips. It is even, for whole pairs of
    rows (`PairedKernel`), unless only single rows fit.

    Args:
        config: the network's.
        size: (H, W) of the image.
        budget: bytes of working memory.
        dtype, device: of the computation.
    """
    padded = padded_to_multiple(size)
    height, row_numel = padded[0] // SIZE_MULTIPLE, _row_numel(config['num_feat'], padded)
    if device.type == 'cpu' and height * row_numel <= CPU_WHOLE:
        rows = height + height % 2
    else:
        strip = CPU_STRIP if device.type == 'cpu' else GPU_STRIP
        rows = max(4, strip // (row_numel * dtype.itemsize) // 2 * 2)

    def needed(rows: int) -> int:
        return bytes_needed(config, size, rows=rows, dtype=dtype, device=device)

    while rows > 1 and needed(rows) > budget:
        rows = rows // 4 * 2 or 1
    even = -(-height // -(-height // rows))
    return min(rows, even + even % 2), needed(rows)
