"""A crop's JPEG against OpenCV's JPEG of the whole frame."""

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from wrcan_arch import InputError
from wrcan_arch.data.jpeg import jpeg_crop


def whole_frame_then_crop(frame, top, left, height, width, quality):
    encoded = cv2.imencode('.jpg', frame, [cv2.IMWRITE_JPEG_QUALITY, quality])[1]
    return cv2.imdecode(encoded, cv2.IMREAD_COLOR)[top : top + height, left : left + width]


@st.composite
def crops(draw):
    """Draw a frame of any size from 1 x 1, a crop in it, and a quality."""
    frame_height, frame_width = draw(st.integers(1, 130)), draw(st.integers(1, 130))
    top, left = draw(st.integers(0, frame_height - 1)), draw(st.integers(0, frame_width - 1))
    height, width = draw(st.integers(1, frame_height - top)), draw(st.integers(1, frame_width - left))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    grain = draw(st.integers(1, 12))  # pixels; from noise to smooth
    coarse = rng.integers(0, 256, (frame_height // grain + 1, frame_width // grain + 1, 3), dtype=np.uint8)
    frame = cv2.resize(coarse, (frame_width, frame_height), interpolation=cv2.INTER_LINEAR)
    return frame, top, left, height, width, draw(st.integers(1, 100))


@settings(max_examples=500, deadline=None)
@given(crops())
def test_crop_is_bit_identical_to_the_whole_frame_cropped(crop):
    np.testing.assert_array_equal(jpeg_crop(*crop), whole_frame_then_crop(*crop))


def test_paper_sized_patches_are_bit_identical():
    rng = np.random.default_rng(0)
    frame = cv2.resize(rng.integers(0, 256, (180, 320, 3), dtype=np.uint8), (1280, 720))
    for _ in range(20):
        top, left = int(rng.integers(720 - 256 + 1)), int(rng.integers(1280 - 256 + 1))
        crop = (frame, top, left, 256, 256, 25)
        np.testing.assert_array_equal(jpeg_crop(*crop), whole_frame_then_crop(*crop))


def test_crops_in_a_narrow_last_unit_are_bit_identical():
    """A decoder does not interpolate chroma rows of one or two samples, so the window must have more."""
    rng = np.random.default_rng(0)
    for width in range(33, 40):
        frame = rng.integers(0, 256, (40, width, 3), dtype=np.uint8)
        for left in range(32, width):
            crop = (frame, 3, left, 30, width - left, 50)
            np.testing.assert_array_equal(jpeg_crop(*crop), whole_frame_then_crop(*crop))


def test_frame_is_left_as_it_was():
    frame = np.random.default_rng(0).integers(0, 256, (40, 40, 3), dtype=np.uint8)
    before = frame.copy()
    jpeg_crop(frame, 3, 5, 20, 20, 25)
    np.testing.assert_array_equal(frame, before)


@pytest.mark.parametrize('quality', [0, 101])
def test_quality_out_of_range_is_an_error(quality):
    with pytest.raises(InputError, match=f'JPEG quality must be 1 to 100, not {quality}'):
        jpeg_crop(np.zeros((8, 8, 3), np.uint8), 0, 0, 8, 8, quality)


@pytest.mark.parametrize('crop', [(0, 0, 9, 8), (-1, 0, 4, 4), (0, 5, 4, 4), (0, 0, 0, 4)])
def test_crop_outside_the_frame_is_an_error(crop):
    with pytest.raises(ValueError, match='is not inside 8 x 8'):
        jpeg_crop(np.zeros((8, 8, 3), np.uint8), *crop, 25)


@pytest.mark.parametrize(
    'frame', [np.zeros((8, 8), np.uint8), np.zeros((8, 8, 3), np.uint16), np.zeros((8, 8, 4), np.uint8)]
)
def test_other_kinds_of_frames_are_an_error(frame):
    with pytest.raises(ValueError, match='a frame must be uint8'):
        jpeg_crop(frame, 0, 0, 8, 8, 25)
