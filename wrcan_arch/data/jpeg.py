"""JPEG compression of a crop, bit-identical to compressing the whole frame and then cropping.

JPEG transforms blocks on a grid anchored at the frame's corner: 8 x 8 pixels in luma, 16 x 16 frame pixels in chroma
(4:2:0). The decoder interpolates chroma from one neighbouring sample if a row has more than two samples. So a crop's
pixels are determined by the blocks that it touches after it is widened by one pixel.
"""

import cv2
import numpy as np

from ..errors import InputError

MCU = 16  # pixels: the minimum coded unit of 4:2:0
MARGIN = 1  # pixel: chroma samples further away have no influence
NARROWEST = 5  # pixels: the fewest that have three samples of chroma


def jpeg_roundtrip(image: np.ndarray, quality: int) -> np.ndarray:
    """Return `image`, uint8 (H, W, 3) in BGR, after OpenCV's JPEG compression (4:2:0) at `quality` 1 to 100."""
    ok, encoded = cv2.imencode(
        '.jpg',
        image,
        [cv2.IMWRITE_JPEG_QUALITY, quality, cv2.IMWRITE_JPEG_SAMPLING_FACTOR, cv2.IMWRITE_JPEG_SAMPLING_FACTOR_420],
    )
    if not ok:
        raise ValueError(f'OpenCV could not compress an image of shape {image.shape} as JPEG')
    return np.asarray(cv2.imdecode(encoded, cv2.IMREAD_COLOR))


def jpeg_crop(frame: np.ndarray, top: int, left: int, height: int, width: int, quality: int) -> np.ndarray:
    """Return the pixels that a crop of `frame` has after JPEG compression of the whole frame at `quality`.

    Equals ``jpeg_roundtrip(frame, quality)[top:top + height, left:left + width]`` bit for bit, at the cost of the crop.

    Args:
        frame: uint8 (H, W, 3), BGR.
        top, left, height, width: the crop, inside the frame, in pixels.
        quality: 1 to 100.

    Returns:
        uint8 (height, width, 3).
    """
    frame_height, frame_width = frame.shape[:2]
    if frame.dtype != np.uint8 or frame.ndim != 3 or frame.shape[2] != 3:
        raise ValueError(f'a frame must be uint8 (H, W, 3), not {frame.dtype} {frame.shape}')
    if not 1 <= quality <= 100:
        raise InputError(f'JPEG quality must be 1 to 100, not {quality}')
    if not (0 <= top < top + height <= frame_height and 0 <= left < left + width <= frame_width):
        raise ValueError(f'crop {height} x {width} at ({top}, {left}) is not inside {frame_height} x {frame_width}')

    window_top, window_bottom = _block_window(top, top + height, frame_height)
    window_left, window_right = _block_window(left, left + width, frame_width)
    window = frame[window_top:window_bottom, window_left:window_right]
    top, left = top - window_top, left - window_left
    return jpeg_roundtrip(window, quality)[top : top + height, left : left + width]


def _block_window(start: int, stop: int, size: int) -> tuple[int, int]:
    """Widen [start, stop) by MARGIN, to at least NARROWEST pixels and to whole coded units, within [0, size)."""
    first = min(start - MARGIN, size - NARROWEST)
    return max(0, first // MCU * MCU), min(size, -(-(stop + MARGIN) // MCU) * MCU)
