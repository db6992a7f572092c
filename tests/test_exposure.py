"""Exposures: what moves, in which light, and that the mean position is the sharp picture's."""

import cv2
import numpy as np
import pytest
from conftest import picture

import exposure
import pairs


def motion_of(path: np.ndarray, height: int, width: int, **others: np.ndarray) -> exposure.Motion:
    nothing = np.zeros((height, width), np.float32)
    still = {
        'roll': np.zeros(len(path)),
        'nearness': nothing + 1,
        'object_mask': nothing,
        'object_path': np.zeros_like(path),
    }
    return exposure.Motion(path=path, **(still | others))


@pytest.mark.parametrize('length', [0.0, 1.5, 12.0, 60.0])
def test_path_has_its_length_and_its_mean_is_the_sharp_position(length):
    for seed in range(20):
        path = exposure.shake_path(np.random.default_rng(seed), length)
        assert path.shape == (exposure.PATH_POINTS, 2)
        np.testing.assert_allclose(path.mean(axis=0), 0, atol=1e-9)
        assert np.linalg.norm(np.diff(path, axis=0), axis=1).sum() == pytest.approx(length)


def test_blur_is_the_mean_of_moved_exposures_in_linear_light():
    """Compared with a convolution whose kernel is the path, each moment spread bilinearly."""
    rng = np.random.default_rng(1)
    sharp = picture(80, 96)
    motion = motion_of(exposure.shake_path(rng, 9.0), 80, 96)
    kernel = np.zeros((31, 31))
    moments = motion.moments()
    for x, y in moments[:, :2] + 15:
        for dx, dy in ((0, 0), (1, 0), (0, 1), (1, 1)):
            column, row = int(x) + dx, int(y) + dy
            kernel[row, column] += (1 - abs(x - column)) * (1 - abs(y - row)) / len(moments)
    light = cv2.filter2D(pairs.to_linear(sharp), -1, cv2.flip(kernel, -1), borderType=cv2.BORDER_REFLECT_101)
    difference = np.abs(exposure.expose(rng, sharp, motion).astype(int) - pairs.from_linear(light))
    assert difference.max() <= 3 and difference.mean() < 0.3  # remap places pixels on a grid of 1/32


def test_moments_are_dense_enough_and_their_mean_is_the_path_s():
    for length in (0.0, 0.3, 3.0, 15.0, 100.0):
        path = exposure.shake_path(np.random.default_rng(0), length)
        moments = motion_of(path, 64, 64).moments()
        assert np.linalg.norm(moments[:, :2].mean(axis=0)) < 0.1
        assert len(moments) >= exposure.MOMENTS_PER_PIXEL * length


def test_moments_of_short_paths_are_points_of_them():
    """The bundled weights and RESULTS.md's pictures were made with such moments."""
    for seed in range(20):
        rng = np.random.default_rng(seed)
        motion = exposure.draw_motion(rng, 384, 384, length=18, rotation=0.5, depth=0.5, objects=1)
        paths = np.column_stack([motion.path, motion.roll, motion.object_path])
        moments = motion.moments()
        np.testing.assert_array_equal(moments, paths[128 // len(moments) // 2 :: 128 // len(moments)])


@pytest.mark.parametrize('length', [25, 60, 200])
def test_moments_of_long_paths_are_dense_where_they_are_fastest(length):
    for seed in range(20):
        rng = np.random.default_rng(seed)
        motion = exposure.draw_motion(rng, 128, 128, length=length, rotation=90, depth=0.5, objects=0.5)
        x, y, roll, own_x, own_y = motion.moments().T
        steps = [
            np.hypot(*np.diff([x, y])) * motion.nearness.max(),
            np.abs(np.diff(roll)) * np.hypot(64, 64),
            np.hypot(*np.diff([x + own_x, y + own_y])),
        ]
        assert 0.9 < np.max(steps) < 1.001
        np.testing.assert_allclose(motion.moments().mean(axis=0), 0, atol=1e-9)


@pytest.mark.parametrize('length', [40, 200])
def test_a_point_of_light_leaves_one_trace_without_gaps(length):
    dot = np.zeros((255, 255, 3), np.float32)
    dot[127, 127] = 1
    motion = exposure.draw_motion(np.random.default_rng(161), 255, 255, length=length)  # the most uneven path of 300
    trace = exposure.average_light(dot, motion)[:, :, 0]
    assert cv2.connectedComponents(np.uint8(trace > 1e-4))[0] == 2  # the trace and the background


def test_no_movement_is_no_blur():
    sharp = np.random.default_rng(0).integers(0, 256, (17, 9, 3), dtype=np.uint8)
    rng = np.random.default_rng(0)
    motion = exposure.draw_motion(rng, 17, 9, length=0, rotation=5, depth=0.5, objects=1)
    np.testing.assert_array_equal(exposure.expose(rng, sharp, motion, glare=2), sharp)


def test_near_things_move_more_and_a_roll_turns_the_corners():
    path = np.linspace(-6, 6, exposure.PATH_POINTS)[:, None] * [1.0, 0.0]
    dots = np.zeros((81, 81, 3), np.float32)
    dots[20, 40] = dots[60, 40] = 1
    nearness = np.ones((81, 81), np.float32)
    nearness[40:] = 0.5
    spread = (exposure.average_light(dots, motion_of(path, 81, 81, nearness=nearness))[:, :, 0] > 1e-3).sum(1)
    assert 12 <= spread[20] <= 14 and 6 <= spread[60] <= 8
    roll = np.linspace(-0.05, 0.05, exposure.PATH_POINTS)
    dots[40, 40] = dots[40, 80] = 1
    rolled = exposure.average_light(dots, motion_of(0 * path, 81, 81, roll=roll))[:, :, 0]
    assert rolled[40, 40] == pytest.approx(1) and 4 <= (rolled[:, 80] > 1e-3).sum() <= 6


def test_a_roll_is_a_rotation_about_the_middle():
    roll = np.linspace(-0.03, 0.03, exposure.PATH_POINTS)
    light = cv2.GaussianBlur(pairs.to_linear(picture(81, 121)), (0, 0), 2)
    motion = motion_of(np.zeros((len(roll), 2)), 81, 121, roll=roll)
    rotated = np.zeros_like(light)
    for angle in motion.moments()[:, 2]:
        from_place = cv2.getRotationMatrix2D((60, 40), np.rad2deg(angle), 1)  # counterclockwise on a screen
        rotated += cv2.warpAffine(light, from_place, (121, 81), borderMode=cv2.BORDER_REFLECT_101)
    expected = rotated / len(motion.moments())
    inside = slice(8, -8), slice(8, -8)
    found = exposure.average_light(light, motion)
    # The ratio is 0.2, since both place pixels on a grid of 1/32. It is 0.5 or more for what is not a rotation.
    assert np.abs(found - expected)[inside].mean() < 0.3 * np.abs(light - expected)[inside].mean()


@pytest.mark.parametrize('angle', [0, 0.1], ids=['', 'which rolls'])
def test_an_object_that_does_not_move_by_itself_moves_with_the_camera(angle):
    light = pairs.to_linear(picture(64, 64))
    roll = np.linspace(-angle, angle, exposure.PATH_POINTS)
    mask = np.zeros((64, 64), np.float32)
    mask[24:40, 40:60] = 1
    path = exposure.shake_path(np.random.default_rng(3), 9.0)
    with_object = exposure.average_light(light, motion_of(path, 64, 64, roll=roll, object_mask=mask))
    without = exposure.average_light(light, motion_of(path, 64, 64, roll=roll))
    # Where the edge is uncovered they differ a little.
    assert np.abs(with_object - without).mean() < 1e-3 * np.abs(light - without).mean()
    np.testing.assert_array_equal(with_object[28:36, 45:55], without[28:36, 45:55])


def test_an_object_moves_over_a_ground_that_stands():
    sharp = np.full((64, 64, 3), 60, np.uint8)
    sharp[24:40, 24:40] = 220
    mask = np.zeros((64, 64), np.float32)
    mask[24:40, 24:40] = 1
    path = np.linspace(-4, 4, exposure.PATH_POINTS)[:, None] * [1.0, 0.0]
    motion = motion_of(0 * path, 64, 64, object_mask=mask, object_path=path)
    blurred = exposure.expose(np.random.default_rng(0), sharp, motion)[:, :, 0]
    assert (blurred[:, :19] == 60).all() and (blurred[:23] == 60).all()  # the ground
    assert (blurred[25:39, 29:35] == 220).all()  # always covered
    edge = blurred[32, 20:28].astype(int)
    assert (np.diff(edge) > 0).all()  # from ground to object without a ghost


def test_behind_the_object_the_ground_goes_on_as_it_is_beside_it():
    light = pairs.to_linear(picture(48, 48))
    mask = np.zeros((48, 48), np.float32)
    mask[10:30, 15:35] = 1
    ground = exposure.behind(light, mask)
    np.testing.assert_array_equal(ground[mask == 0], light[mask == 0])
    np.testing.assert_array_equal(ground[10:14, 25], light[[9] * 4, 25])
    np.testing.assert_array_equal(ground[20, 32:35], light[20, [35] * 3])
    np.testing.assert_array_equal(exposure.behind(light, mask * 0 + 1), light)


def test_noise_is_as_strong_as_asked_at_a_middle_grey_and_leaves_the_mean():
    rng = np.random.default_rng(0)
    grey = np.full((256, 256, 3), 128, np.uint8)
    motion = exposure.draw_motion(rng, 256, 256, length=0)
    noisy = exposure.expose(rng, grey, motion, noise=8)
    assert noisy.std() == pytest.approx(8, rel=0.02) and noisy.mean() == pytest.approx(128, abs=0.5)


def test_what_is_over_white_leaves_a_brighter_trace():
    sharp = np.zeros((32, 64, 3), np.uint8)
    sharp[:, 30:34] = 255
    path = np.linspace(-8, 8, exposure.PATH_POINTS)[:, None] * [1.0, 0.0]
    plain, bright = (
        exposure.expose(np.random.default_rng(0), sharp, motion_of(path, 32, 64), glare=glare)[16:17, 32, 0]
        for glare in (0, 1)
    )
    assert pairs.to_linear(bright) == pytest.approx(2 * pairs.to_linear(plain), rel=0.05)


def test_same_seed_same_photograph():
    def photograph(seed):
        rng = np.random.default_rng(seed)
        motion = exposure.draw_motion(rng, 64, 64, length=9, rotation=0.5, depth=0.5, objects=1)
        return exposure.expose(rng, picture(64, 64), motion, noise=2, glare=1)

    np.testing.assert_array_equal(photograph(1), photograph(1))
    assert (photograph(1) != photograph(2)).any()
