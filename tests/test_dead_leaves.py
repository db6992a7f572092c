"""Synthetic images: the same from the same seed, with the intended sizes and colours."""

from functools import partial
from unittest import mock

import cv2
import numpy as np
import pytest

import dead_leaves


@pytest.fixture
def run(run_script):
    return partial(run_script, dead_leaves)


def test_an_image_depends_on_seed_and_number_alone(run, tmp_path):
    run('a', '--count', 3, '--size', 64, '--seed', 5)
    run('c', '--count', 3, '--size', 64, '--seed', 6)
    images = {path.relative_to(tmp_path).as_posix(): cv2.imread(str(path)) for path in tmp_path.rglob('*.png')}
    assert len(images) == 6 and all(image.shape == (64, 64, 3) for image in images.values())
    np.testing.assert_array_equal(images['a/leaves_5_000002.png'], dead_leaves.dead_leaves(5, 2, 64))
    assert (images['a/leaves_5_000000.png'] != images['a/leaves_5_000001.png']).any()
    assert (images['a/leaves_5_000000.png'] != images['c/leaves_6_000000.png']).any()


THIRDS = [  # means of the grey levels in 3 x 3 parts of images 0 to 3 of seed 0, 96 pixels a side
    [[87, 96, 106], [126, 88, 92], [185, 109, 103]],
    [[132, 112, 160], [65, 132, 163], [95, 183, 225]],
    [[76, 101, 255], [69, 199, 246], [89, 136, 115]],
    [[97, 105, 73], [134, 54, 87], [132, 104, 112]],
]
DETAIL = [7.89, 14.92, 3.07, 12.95]  # mean differences of neighbours in a row


def test_images_are_those_of_the_versions_before():
    """A version that draws others would mix them with those that an older run left in the folder."""
    images = [dead_leaves.dead_leaves(0, index, 96).mean(2) for index in range(4)]
    np.testing.assert_allclose([np.abs(np.diff(image)).mean() for image in images], DETAIL, rtol=0.03)
    found = [cv2.resize(image, (3, 3), interpolation=cv2.INTER_AREA) for image in images]
    np.testing.assert_allclose(found, THIRDS, rtol=0, atol=1)


@pytest.mark.parametrize('size', [40, 65])
def test_textures_are_contrast_alone(size):
    for seed in range(5):
        texture = dead_leaves.noise_texture(np.random.default_rng(seed), size)
        assert texture.std() == pytest.approx(1, abs=1e-5) and texture.mean() == pytest.approx(0, abs=1e-5)


@pytest.mark.parametrize('place', [(0, 0, 40, 40), (3, 7, 20, 33), (39, 39, 1, 1)])
def test_a_window_is_of_the_texture_moved_all_around(place):
    scene = dead_leaves.Scene(np.random.default_rng(1), 40)
    top, left, height, width = place
    for seed in range(5):
        scene.rng = np.random.default_rng(seed)
        moved = np.roll(scene.sheet[:40, :40], np.random.default_rng(seed).integers(40, size=2), (0, 1))
        found = scene._window(scene.sheet, *place)
        np.testing.assert_array_equal(found, moved[top : top + height, left : left + width])


def test_a_stopped_run_goes_on_and_nothing_half_written_stays(run, tmp_path):
    run('a', '--count', 2, '--size', 32)
    (tmp_path / 'a' / 'leaves_0_000001.png').unlink()
    first = (tmp_path / 'a' / 'leaves_0_000000.png').stat().st_mtime_ns
    run('a', '--count', 2, '--size', 32)
    assert sorted(path.name for path in (tmp_path / 'a').iterdir()) == ['leaves_0_000000.png', 'leaves_0_000001.png']
    assert (tmp_path / 'a' / 'leaves_0_000000.png').stat().st_mtime_ns == first
    (tmp_path / 'a' / 'leaves_0_000001.png').unlink()
    with mock.patch('os.fsync', side_effect=OSError(28, 'No space left on device')):
        run('a', '--count', 2, '--size', 32, exit_code=2)
    assert [path.name for path in (tmp_path / 'a').iterdir()] == ['leaves_0_000000.png']


def test_images_of_another_size_are_not_taken_for_these(run, tmp_path):
    run('leaves', '--count', '1', '--size', '40')
    printed = run('leaves', '--count', '1', '--size', '32', exit_code=2)
    assert 'leaves_0_000000.png: exists already with another size; choose another folder' in printed.err


def test_radii_follow_the_power_law():
    """With density r^-3 the share of radii above 2r is a quarter of that above r."""
    for seed in range(4):
        radii = np.sort(dead_leaves.draw_radii(np.random.default_rng(seed), 2048))
        low = radii[0]
        above = [(radii > factor * low).mean() for factor in (2, 4)]
        assert above[0] == pytest.approx(1 / 4, abs=0.03) and above[1] == pytest.approx(1 / 16, abs=0.015)
        assert 2.4 < low < 30 and radii[-1] < 0.7 * 2048
        assert np.pi * np.square(radii).sum() / 2048**2 == pytest.approx(3, abs=0.6), 'their cover'


def test_colours_are_moderate_and_luminance_is_spread():
    colours = np.concatenate([dead_leaves.draw_palette(np.random.default_rng(seed), 24) for seed in range(200)])
    chroma = np.ptp(colours.clip(0, 1), axis=1)
    assert np.median(chroma) < 0.15 and (chroma > 0.3).mean() > 0.01  # most are near grey, a few are vivid
    luminance = colours @ (0.114, 0.587, 0.299)
    assert 0.2 < luminance.std() < 0.35 and 0.35 < luminance.mean() < 0.6


def test_spectrum_falls_as_that_of_photographs():
    """The amplitude falls about as 1 / f: between f^-0.7 and f^-1.8 (sharp edges give f^-1.5)."""
    slopes = []
    for index in range(4):
        grey = dead_leaves.dead_leaves(0, index, 256).mean(2)
        window = np.outer(np.hanning(256), np.hanning(256))
        amplitude = np.abs(np.fft.fft2((grey - grey.mean()) * window))
        frequency = np.hypot(*np.meshgrid(np.fft.fftfreq(256), np.fft.fftfreq(256)))
        bands = [amplitude[(low <= frequency) & (frequency < 2 * low)].mean() for low in (0.02, 0.04, 0.08, 0.16)]
        slopes.append(np.polyfit(np.arange(4), np.log2(bands), 1)[0])
    assert -1.8 < np.mean(slopes) < -0.7


@pytest.mark.parametrize('name', dead_leaves.PATTERNS)
def test_patterns_repeat_and_use_both_inks(name):
    y, x = np.mgrid[:64, :64].astype(np.float32)
    ink = np.asarray(dead_leaves.PATTERNS[name](x, y, 8.0), np.float32)
    assert ink.shape == (64, 64) and ink.min() == pytest.approx(0, abs=0.05) and ink.max() == pytest.approx(1, abs=0.05)
    if name != 'rings':
        assert (np.abs(ink[:, 16:] - ink[:, :-16]) > 0.01).mean() < 0.1  # except for rounding at a hard edge


@pytest.mark.parametrize('size', [32, 33, 100])
def test_an_image_has_the_size_asked_for(size):
    image = dead_leaves.dead_leaves(1, 1, size)
    assert image.shape == (size, size, 3) and image.std() > 5


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        (['--count', '0'], '--count 0: at least 1'),
        (['--size', '8'], '--size 8: at least 32'),
        (['--seed', '-1'], '--seed -1: at least 0'),
    ],
)
def test_bad_requests_are_one_line(run, tmp_path, arguments, message):
    printed = run('out', *arguments, exit_code=2)
    assert printed.err.splitlines() == [f'dead_leaves: {message}']
    assert not (tmp_path / 'out').exists()


def test_a_file_in_place_of_the_output_folder_is_refused(run, tmp_path):
    (tmp_path / 'out').touch()
    printed = run('out', exit_code=2)
    assert printed.err.startswith('dead_leaves: ') and len(printed.err.splitlines()) == 1
