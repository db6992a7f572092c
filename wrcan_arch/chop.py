"""The authors' protocol of inference, in quadrants, with which the paper's scores were measured."""

from collections.abc import Callable

import torch
from torch import Tensor

CHOP_SHAVE = 36  # pixels by which the authors' quadrants reach beyond the image's halves
CHOP_PIXELS = 1_280_000  # if an image has at least this many, its quadrants are cut again


def restore_chop(network: Callable[[Tensor], Tensor], image: Tensor) -> Tensor:
    """The authors' protocol: four overlapping quadrants, restored one by one and joined without blending.

    Only for comparison with the paper: WRCAN pools over its whole input, so on quadrants it computes another function,
    with seams.
    """
    height, width = image.shape[2:]
    recurse = height * width >= CHOP_PIXELS
    restored = torch.empty_like(image)
    for rows, read_rows in _halves(height):
        for columns, read_columns in _halves(width):
            quadrant = image[:, :, read_rows, read_columns]
            part = restore_chop(network, quadrant) if recurse else network(quadrant)
            inner_rows = slice(rows.start - read_rows.start, rows.stop - read_rows.start)
            inner_columns = slice(columns.start - read_columns.start, columns.stop - read_columns.start)
            restored[:, :, rows, columns] = part[:, :, inner_rows, inner_columns]
    return restored


def _halves(size: int) -> list[tuple[slice, slice]]:
    """For each half of [0, size) that is not empty: the half, and the longer range that is read for it."""
    middle = size // 2
    halves = [
        (slice(0, middle), slice(0, min(size, middle + CHOP_SHAVE))),
        (slice(middle, size), slice(max(0, middle - CHOP_SHAVE), size)),
    ]
    return [(half, read) for half, read in halves if half.start < half.stop]
