"""Apply part of a result, and judge whether its colours can be trusted."""

from itertools import pairwise

import numpy as np

BLOCK = 64  # pixels, side of a block
# The difference that a tenth of the blocks' means exceed: at most 15.4 levels between 60 sharp photographs and their
# blurred JPEGs (paths of 5 to 40 pixels), 20 to 202 between photographs and the results of random networks.
DRIFT = 16  # 8-bit levels
DRIFTING_SHARE = 0.1  # of the blocks: so many may differ by more


def blend(original: np.ndarray, restored: np.ndarray, strength: float) -> np.ndarray:
    """Interpolate from `original` (strength 0) to `restored` (1); both uint8 or uint16, (H, W, 3)."""
    blended = np.empty_like(restored)
    for top in range(0, len(restored), BLOCK):  # in strips, to save memory: floats take several times as much
        rows = slice(top, top + BLOCK)
        blended[rows] = np.rint((1 - strength) * original[rows] + strength * restored[rows])
    return blended


def block_means(image: np.ndarray) -> np.ndarray:
    """Means over blocks of 64 to 127 pixels a side, in 8-bit levels: (H, W, 3) to (max(1, H // 64), ..., 3)."""
    rows, columns = (_edges(size) for size in image.shape[:2])
    sums = [
        np.add.reduceat(image[top:bottom].sum(axis=0, dtype=np.int64), columns[:-1])  # (W // 64, 3)
        for top, bottom in pairwise(rows)
    ]
    areas = np.outer(np.diff(rows), np.diff(columns))[:, :, None]
    return np.stack(sums) / areas * (255 / np.iinfo(image.dtype).max)


def _edges(size: int) -> np.ndarray:
    """The edges of the blocks: from 0 to `size`, in steps that are as equal as possible."""
    count = max(1, size // BLOCK)
    return np.arange(count + 1) * size // count


def colours_drift(original: np.ndarray, restored: np.ndarray) -> bool:
    """Whether local means of result and photograph differ. Deblurring moves light across edges, not across blocks."""
    return bool(np.quantile(np.abs(block_means(original) - block_means(restored)), 1 - DRIFTING_SHARE) > DRIFT)
