"""Where a video's scenes begin, where it stands still, and where frames are missing."""

import re
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from statistics import median

import cv2
import numpy as np

# A change is the mean absolute difference, in grey levels, of two frames scaled down to SMALL_SIDE pixels. At 1280 x
# 720, noise of sigma 10 makes 0.4; moving the picture by one pixel makes 0.2 (a night sky) to 1.4 (machinery).
SMALL_SIDE = 64
STILL_CHANGE = 0.4  # a window whose last frame differs less from its first is still

# A cut is a change that stands out from its neighbours. A relative limit suits calm and hasty video alike; the
# difference of pictures, unlike that of histograms, also detects a cut between shots of the same colours. The limit
# uses the neighbours' upper quartile, not their median: if a converter doubled the frames, the median is zero.
CUT_CHANGE = 6.0  # smallest change of a cut; shots of unlike things differ by 20 to 120
CUT_RATIO = 3.0  # times the upper quartile of the neighbouring changes
CUT_NEIGHBOURS = 15  # on each side
UNLIKE = 30.0  # always a cut, whatever its neighbours: a folder may hold photographs that are no video at all


def small_picture(frame: np.ndarray) -> np.ndarray:
    """Return the frame's luminance, uint8 (h, w), its longer side at most SMALL_SIDE."""
    scale = min(1, SMALL_SIDE / max(frame.shape))
    height, width = (max(1, round(scale * side)) for side in frame.shape[:2])
    return cv2.resize(cv2.cvtColor(frame, cv2.COLOR_BGR2GRAY), (width, height), interpolation=cv2.INTER_AREA)


def change_between(one: np.ndarray, other: np.ndarray) -> float:
    return float(cv2.absdiff(one, other).mean())


def find_cuts(changes: Sequence[float]) -> list[int]:
    """Return the numbers of the frames that begin a scene, from each frame's change against the one before.

    A sudden change of light is taken for a cut; a slow fade from one shot to another is not found.
    """
    cuts = []
    for index, change in enumerate(changes):
        around = changes[max(0, index - CUT_NEIGHBOURS) : index + CUT_NEIGHBOURS + 1]
        limit = min(UNLIKE, CUT_RATIO * np.quantile(around, 0.75))
        if change >= max(CUT_CHANGE, limit):
            cuts.append(index)
    return cuts


def find_gaps(files: Sequence[Path]) -> list[int]:
    """Return the numbers of the frames before which others are missing, from the last number in each file's name.

    Half a step more than usual is no gap: names may be times, which are not quite regular.
    """
    numbers = [int(found[-1]) for file in files if (found := re.findall('[0-9]+', file.stem))]
    if len(numbers) < max(2, len(files)):
        return []
    steps = [after - before for before, after in pairwise(numbers)]
    usual = median(steps)
    return [index for index, step in enumerate(steps, start=1) if step > 1.5 * usual > 0]
