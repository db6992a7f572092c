"""Cuts between scenes, still shots and missing frames, from changes between small pictures and names."""

from pathlib import Path

import cv2
import numpy as np
import pytest
from conftest import picture
from videos import moving

import average_frames
import cuts


def changes_of(frames):
    windows = iter([average_frames.Window(0, 2), average_frames.Window(10**6, 10**6)])
    return average_frames.survey(frames, windows, average_frames.tqdm(disable=True))[0]


def test_one_pixel_of_movement_is_more_than_noise():
    """In frames of 1280 x 720."""
    scene, rng = cv2.resize(picture(90, 162), (1281, 720)), np.random.default_rng(0)
    first, moved = scene[:, :1280], scene[:, 1:]
    noisy = (cv2.add(first, rng.normal(0, 8, first.shape), dtype=cv2.CV_8U) for _ in range(2))
    windows = average_frames.Window(0, 2), average_frames.Window(3, 5)
    changes = [cuts.change_between(*map(cuts.small_picture, pair)) for pair in (noisy, (first, moved))]
    left_out = average_frames.Counter()
    kept = average_frames.sort_windows('clip', [], [], dict(zip(windows, changes, strict=True)), left_out)
    assert list(kept) == [windows[1]] and left_out == {'standing still': 1}


def test_cuts_are_found_in_calm_and_in_hasty_video():
    for step in (0, 1, 2):
        frames = [frame for seed in range(4) for frame in moving(18 + seed, seed, step)]
        assert cuts.find_cuts(changes_of(frames)) == [18, 37, 57]


def test_what_moves_suddenly_or_in_jerks_is_no_cut():
    frames = moving(200, step=4)
    assert max(changes_of(frames)) > cuts.CUT_CHANGE  # a fixed limit would cut here
    slower = moving(100, step=2)
    jerk = slower[:50] + slower[51:]
    starts = [frames[0]] * 40 + frames[:40]
    doubled = [frame for frame in frames[:40] for _ in range(3)]
    for sequence in (frames, jerk, starts, doubled):
        assert cuts.find_cuts(changes_of(sequence)) == []


def test_photographs_that_are_no_video_are_not_averaged():
    photos = [picture(48, 64, seed) for seed in range(12)]
    assert cuts.find_cuts(changes_of(photos)) == [*range(1, 12)]


@pytest.mark.parametrize(
    ('names', 'gaps'),
    [
        ('1 2 3 5 6 7 10', [3, 6]),
        ('0 8 16 32 40 48', [3]),
        ('a_1_720p a_2_720p a_3_720p a_9_1080p', []),
        ('a1 a2 a3 b7 b8 b9 b10', [3]),
        ('a8 a9 a10 b1 b2 b3', []),
        ('763 771 779 788 804 812', [4]),  # milliseconds at 120 a second
        ('1 2 3 cover 7', []),
        ('7', []),
    ],
)
def test_missing_numbers_are_gaps(names, gaps):
    assert cuts.find_gaps([Path(f'{name}.png') for name in names.split()]) == gaps
