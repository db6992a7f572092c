"""Choose the crops that reports and figures show."""

from collections.abc import Sequence

import cv2
import numpy as np

CROP = 160  # pixels, the side of a crop
ZOOM = 2  # of crops on the page


def busiest_crops(images: Sequence[np.ndarray], count: int) -> list[tuple[int, int]]:
    """Top left corners of up to `count` crops that do not overlap, where the images differ most."""
    difference = np.ptp(np.stack(images), axis=0).astype(np.float32).sum(axis=2)  # (H, W)
    height, width = difference.shape
    high, wide = min(CROP, height), min(CROP, width)
    sums = cv2.boxFilter(difference, -1, (wide, high), anchor=(0, 0), normalize=False, borderType=cv2.BORDER_CONSTANT)
    sums = sums[: height - high + 1, : width - wide + 1].copy()
    corners: list[tuple[int, int]] = []
    while len(corners) < count and (sums >= 0).any():
        top, left = divmod(int(sums.argmax()), sums.shape[1])
        corners.append((top, left))
        sums[max(0, top - high + 1) : top + high, max(0, left - wide + 1) : left + wide] = -1
    return corners
