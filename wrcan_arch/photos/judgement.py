"""Judges a result: how much of it to take, and whether its colours can be trusted."""

import numpy as np

BLOCK = 64  # pixels a side
# Of 60 sharp photographs and their blurred JPEGs (paths of 5 to 40 pixels), at most a tenth of the blocks' means
# differed by more than 15.4 levels; of photographs and what random networks make of them, by 20 to 202.
DRIFT = 16  # 8-bit levels
SHARE = 0.1  # of the blocks


def blend(original: np.ndarray, restored: np.ndarray, strength: float) -> np.ndarray:
    """`original` at a strength of 0, `restored` at 1; both uint8 or uint16, (H, W, 3)."""
    blended = np.empty_like(restored)
    for top in range(0, len(restored), BLOCK):  # in strips, as floats take four times the memory
        rows = slice(top, top + BLOCK)
        blended[rows] = np.rint((1 - strength) * original[rows] + strength * restored[rows])
    return blended


def block_means(image: np.ndarray) -> np.ndarray:
    """Means over blocks of about 64 pixels a side, in 8-bit levels: (H, W, 3) to (max(1, H // 64), ..., 3)."""
    rows, columns = (_edges(size) for size in image.shape[:2])
    sums = [
        np.add.reduceat(image[top:bottom].sum(axis=0, dtype=np.int64), columns[:-1])  # (W // 64, 3)
        for top, bottom in zip(rows, rows[1:], strict=False)
    ]
    areas = np.outer(np.diff(rows), np.diff(columns))[:, :, None]
    return np.stack(sums) / areas * (255 / np.iinfo(image.dtype).max)


def _edges(size: int) -> np.ndarray:
    """Where blocks begin and end: 0 to size, in steps as equal as they can be."""
    count = max(1, size // BLOCK)
    return np.arange(count + 1) * size // count


def drifts(original: np.ndarray, restored: np.ndarray) -> bool:
    """Whether the result's local means left the photograph's: deblurring moves light over edges, not over blocks."""
    return bool(np.quantile(np.abs(block_means(original) - block_means(restored)), 1 - SHARE) > DRIFT)
