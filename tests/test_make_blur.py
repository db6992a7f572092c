import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest

from wrcan_arch.lmdb_store import open_store

PREP = Path(__file__).parent.parent / 'datasets_prep'
sys.path.insert(0, str(PREP))

import make_blur  # noqa: E402  (a script, found beside the package)


def run(script, *arguments, folder):
    command = [sys.executable, str(PREP / script), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, cwd=folder, timeout=120)


@pytest.mark.parametrize('length', [0.0, 1.5, 12.0, 60.0])
def test_path_has_its_length_and_its_middle_is_the_sharp_position(length):
    for seed in range(20):
        path = make_blur.shake_path(np.random.default_rng(seed), length)
        assert path.shape == (make_blur.PATH_POINTS, 2)
        assert (path[make_blur.PATH_POINTS // 2] == 0).all()
        assert np.linalg.norm(np.diff(path, axis=0), axis=1).sum() == pytest.approx(length)


def test_blur_is_the_mean_of_moved_exposures_in_linear_light():
    """Against moving the picture itself, by OpenCV's warp, and averaging."""
    rng = np.random.default_rng(1)
    sharp = cv2.resize(rng.integers(0, 256, (20, 24, 3), dtype=np.uint8), (96, 80), interpolation=cv2.INTER_CUBIC)
    path = make_blur.shake_path(rng, 9.0)
    light = make_blur.to_linear(sharp)
    moved = [
        cv2.warpAffine(light, np.float32([[1, 0, x], [0, 1, y]]), (96, 80), borderMode=cv2.BORDER_REFLECT_101)
        for x, y in path
    ]
    expected = make_blur.from_linear(np.mean(moved, axis=0)).astype(int)
    difference = np.abs(make_blur.blur(sharp, path).astype(int) - expected)
    assert difference.max() <= 3 and difference.mean() < 0.3  # warpAffine places pixels on a grid of 1/32


def test_no_movement_is_no_blur():
    sharp = np.random.default_rng(0).integers(0, 256, (17, 9, 3), dtype=np.uint8)
    np.testing.assert_array_equal(make_blur.blur(sharp, np.zeros((5, 2))), sharp)


def test_light_is_srgbs():
    np.testing.assert_allclose(make_blur.to_linear(np.uint8([0, 10, 128, 255])), [0, 0.003035, 0.215861, 1], atol=1e-6)
    every = np.arange(256, dtype=np.uint8)
    np.testing.assert_array_equal(make_blur.from_linear(make_blur.to_linear(every)), every)


def test_stores_and_files_hold_the_same_pairs(prepared):
    for role, ending in (('blur', '.jpg'), ('sharp', '.png')):
        store = open_store(prepared / f'data_{role}.lmdb')
        files = sorted((prepared / f'data_{role}').iterdir())
        assert [f'{key}{ending}' for key in store.keys()] == [path.name for path in files]
        assert all(store.get(path.stem) == path.read_bytes() for path in files)
    sharp = cv2.imread(str(prepared / 'data_sharp' / 'photo2_000.png'))
    np.testing.assert_array_equal(sharp, cv2.imread(str(prepared / 'photos' / 'photo2.png')))


def test_blurred_files_are_jpegs_of_the_quality_asked_for(prepared):
    for path in (prepared / 'data_blur').iterdir():
        decoded = cv2.imread(str(path))
        assert path.read_bytes().startswith(b'\xff\xd8')
        # OpenCV at quality 25 scales the standard luminance table by two: its first entry 16 becomes 32
        tables = path.read_bytes().partition(b'\xff\xdb')[2]
        assert tables[3] == 32 and decoded.shape == (80, 96, 3)


def test_same_seed_same_bytes(prepared, tmp_path):
    options = ['--copies', '2', '--length', '2', '9']
    for name, seed in (('a', 1), ('b', 1), ('c', 2)):
        assert (
            run('make_blur.py', prepared / 'photos', '-o', name, '--seed', seed, *options, folder=tmp_path).returncode
            == 0
        )
    values = {
        name: [open_store(tmp_path / f'{name}_blur.lmdb').get(f'photo1_{copy:03d}') for copy in (0, 1)]
        for name in 'abc'
    }
    assert values['a'] == values['b'] and not set(values['a']) & set(values['c']) and len(set(values['a'])) == 2


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        (['nowhere'], 'nowhere: no such photograph or folder'),
        (['empty'], 'empty: no photographs'),
        (['broken'], 'broken.png: not a readable image'),
        (['photo.png', '--quality', '0'], '--quality 0: JPEG quality goes from 1 to 100'),
        (['photo.png', '--length', '5', '2'], '--length 5.0 2.0: give the shortest'),
        (['photo.png', '--copies', '0'], '--copies 0: at least 1'),
    ],
)
def test_bad_input_is_one_line_and_leaves_nothing(tmp_path, arguments, message):
    for folder in ('empty', 'broken'):
        (tmp_path / folder).mkdir()
    (tmp_path / 'broken' / 'broken.png').write_text('broken')
    cv2.imwrite(str(tmp_path / 'photo.png'), np.zeros((8, 8, 3), np.uint8))
    result = run('make_blur.py', *arguments, '-o', 'out', folder=tmp_path)
    lines = [line for line in result.stderr.splitlines() if line and '%|' not in line]
    assert result.returncode == 2 and len(lines) == 1 and message in lines[0]
    assert sorted(path.name for path in tmp_path.iterdir()) == ['broken', 'empty', 'photo.png']


def test_photographs_of_scikit_image(tmp_path):
    result = run('skimage_photos.py', 'photos', folder=tmp_path)
    assert result.returncode == 0, result.stderr
    names = {split.name: {path.stem for path in split.iterdir()} for split in (tmp_path / 'photos').iterdir()}
    assert names['test'] == {'coffee', 'chelsea'} and names['val'] == {'rocket'} and len(names['train']) == 12
    assert not names['train'] & (names['val'] | names['test'])
