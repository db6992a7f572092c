import os
import subprocess
import sys
from argparse import Namespace
from functools import partial
from pathlib import Path
from unittest import mock

import cv2
import numpy as np
import pytest
from conftest import nobody_reads_stdout, picture
from PIL import Image

import make_blur
import pair_script
import pairs
import skimage_photos
from wrcan_arch.data.lmdb_store import open_store
from wrcan_arch.errors import InputError
from wrcan_arch.jpeg_quality import estimate_quality
from wrcan_arch.train import option_checks, options

PREP = Path(__file__).parent.parent / 'datasets_prep'


@pytest.fixture
def run(run_script):
    return partial(run_script, make_blur)


def test_linear_light_is_that_of_the_srgb_standard():
    np.testing.assert_allclose(pairs.to_linear(np.uint8([0, 10, 128, 255])), [0, 0.003035, 0.215861, 1], atol=1e-6)
    every = np.arange(256, dtype=np.uint8)
    np.testing.assert_array_equal(pairs.from_linear(pairs.to_linear(every)), every)


def test_light_has_the_bits_of_the_formula():
    image = picture(20, 30)[::2, 3:]
    encoded = image / 255
    light = np.where(encoded <= 0.04045, encoded / 12.92, ((encoded + 0.055) / 1.055) ** 2.4).astype(np.float32)
    for found, expected in ((image, light), (image[:, :, 0], light[:, :, 0]), (image[0, :, 0], light[0, :, 0])):
        np.testing.assert_array_equal(pairs.to_linear(found), expected, strict=True)


def test_stores_and_files_hold_the_same_pairs(prepared):
    for role, ending in (('blur', '.jpg'), ('sharp', '.png')):
        store = open_store(prepared / f'data_{role}.lmdb')
        files = sorted((prepared / f'data_{role}').iterdir())
        assert [f'{key}{ending}' for key in store.keys()] == [path.name for path in files]
        assert all(store.get(path.stem) == path.read_bytes() for path in files)
    sharp = cv2.imread(str(prepared / 'data_sharp' / 'photo2_000.png'))
    np.testing.assert_array_equal(sharp, cv2.imread(str(prepared / 'photos' / 'photo2.png')))


def test_reader_that_leaves_early_is_no_error(tmp_path, monkeypatch, capfd):
    for name in ('a', 'b'):  # alike, which the script prints before it makes pairs
        cv2.imwrite(str(tmp_path / f'{name}.png'), picture(16, 16))
    out = tmp_path / 'out'
    monkeypatch.setattr(sys, 'argv', ['make_blur.py', str(tmp_path), '-o', str(out), '--copies', '1', '--workers', '1'])
    with nobody_reads_stdout(buffering=1):
        make_blur.main()
    assert open_store(tmp_path / 'out_blur.lmdb').keys() == ['a_000']
    assert 'Broken pipe' not in capfd.readouterr().err


def test_blurred_files_are_jpegs_of_the_quality_asked_for(prepared):
    for path in (prepared / 'data_blur').iterdir():
        decoded = cv2.imread(str(path))
        assert path.read_bytes().startswith(b'\xff\xd8')
        # OpenCV at quality 25 scales the standard luminance table by two: its first entry 16 becomes 32
        tables = path.read_bytes().partition(b'\xff\xdb')[2]
        assert tables[3] == 32 and decoded.shape == (80, 96, 3)


def test_a_range_of_qualities_and_of_grids(prepared, run, tmp_path):
    options = '--copies 6 --quality 15-95 --grid 15 --seed 1'.split()  # with seed 0 two of the six grids agree
    run(prepared / 'photos' / 'photo1.png', '-o', 'a', '--length', '0', '0', '--noise', '0', '--files', *options)
    sharp = cv2.imread(str(prepared / 'photos' / 'photo1.png'))
    tables, shapes = set(), set()
    for path in (tmp_path / 'a_blur').iterdir():
        tables.add(path.read_bytes().partition(b'\xff\xdb')[2][:67])
        pair = cv2.imread(str(path)), cv2.imread(str(tmp_path / 'a_sharp' / f'{path.stem}.png'))
        height, width = pair[0].shape[:2]
        np.testing.assert_array_equal(pair[1], sharp[80 - height :, 96 - width :])
        assert 65 <= height <= 80 and 81 <= width <= 96 and cv2.PSNR(*pair) > 20
        shapes.add(pair[0].shape)
    assert len(tables) == len(shapes) == 6


def test_all_that_is_drawn_is_what_it_was(prepared, run, tmp_path):
    """If this changes with the same OpenCV and NumPy, raise GENERATION: else a resumed run mixes two kinds of pairs."""
    options = '--copies 4 --quality 15-95 --grid 15 --seed 1 --zoom 0.5 2 --dim 0.5 --soft 2 --objects 1'.split()
    run(prepared / 'photos' / 'photo1.png', '-o', 'a', '--files', *options)
    found = []
    for path in sorted((tmp_path / 'a_blur').iterdir()):
        pair = cv2.imread(str(path)), cv2.imread(str(tmp_path / 'a_sharp' / f'{path.stem}.png'))
        with path.open('rb') as file:
            found.append((estimate_quality(file), *pair[0].shape[:2], cv2.PSNR(*pair)))
    expected = [(41, 45, 45, 21.70), (78, 80, 93, 31.17), (94, 39, 54, 27.68), (76, 69, 86, 31.23)]
    np.testing.assert_allclose(found, expected, atol=0.05)  # quality, height, width, PSNR


def view(sharp, seed=0, **options):
    return make_blur.draw_view(np.random.default_rng(seed), sharp, **options)


def test_a_view_keeps_shrinks_or_enlarges_the_photograph(prepared):
    sharp = cv2.imread(str(prepared / 'photos' / 'photo1.png'))  # 80 x 96
    np.testing.assert_array_equal(view(sharp), sharp)
    halved = np.floor(sharp.reshape(40, 2, 48, 2, 3).mean((1, 3)) + 0.5)
    np.testing.assert_array_equal(view(sharp, zoom=(0.5, 0.5)), halved)
    quarter = make_blur.scaled_photo(prepared / 'photos' / 'photo1.png', 24)
    assert np.abs(quarter - sharp.reshape(20, 4, 24, 4, 3).mean((1, 3))).max() <= 0.5
    near = view(sharp, zoom=(2, 2))
    assert near.shape == sharp.shape
    part = cv2.resize(near, (48, 40), interpolation=cv2.INTER_AREA)
    found = cv2.minMaxLoc(cv2.matchTemplate(sharp, part, cv2.TM_CCOEFF_NORMED))
    assert found[1] > 0.98 and found[3] != (0, 0)
    sizes = {view(sharp, seed, zoom=(0.5, 2)).shape[0] for seed in range(20)}
    assert min(sizes) >= 40 and max(sizes) == 80 and len(sizes) > 5


def test_a_view_in_full_light_and_in_focus_is_not_computed_in_light():
    sharp, black = picture(20, 30), {'return_value': np.zeros((20, 30, 3), np.float32)}
    expected = pairs.from_linear(pairs.to_linear(view(sharp, zoom=(2, 2))))
    with mock.patch('pairs.to_linear', **black):
        np.testing.assert_array_equal(view(sharp, zoom=(2, 2)), expected)
        assert not view(sharp, dim=0.5).any() and not view(sharp, soft=1).any()


def test_a_dim_view_has_less_light():
    grey = np.full((4, 4, 3), 200, np.uint8)
    shares = [
        pairs.to_linear(view(grey, seed, dim=0.8)).mean() / pairs.to_linear(grey[:1]).mean() for seed in range(50)
    ]
    assert 0.19 < min(shares) < 0.3 and 0.9 < max(shares) < 1.01


def test_parts_of_a_view_are_out_of_focus():
    stripes = np.tile(np.uint8([[0, 255]]), (96, 48))[:, :, None].repeat(3, 2)  # 96 x 96, the finest stripes there are
    for seed in range(5):
        seen = view(stripes, seed, soft=3)
        contrast = np.abs(np.diff(seen[:, :, 0].astype(int), axis=1))
        assert seen.shape == stripes.shape and contrast.max() == 255 and contrast.min() < 150, seed


@pytest.mark.parametrize('zoom', [(0.1, 0.1), (9, 9)])
def test_a_photograph_of_one_pixel_has_a_view(zoom):
    pixel = np.uint8([[[1, 2, 3]]])
    np.testing.assert_array_equal(view(pixel, zoom=zoom, soft=2), pixel)


def test_one_photograph_is_not_taken_twice(tmp_path):
    """Otherwise it could be on both sides of --val."""
    (tmp_path / 'all' / 'best').mkdir(parents=True)
    (tmp_path / 'all' / 'best' / 'a.png').touch()
    with pytest.raises(InputError, match=r'best/a\.png: given twice; give it once'):
        make_blur.find_photos([tmp_path / 'all', tmp_path / 'all' / 'best'])


def test_copies_of_a_picture_are_one(run, tmp_path):
    """Otherwise copies could be on both sides of --val."""
    for number, name in enumerate(('a', 'b', 'copies/a', 'copies/b')):
        (tmp_path / 'all' / name).parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(tmp_path / 'all' / f'{name}.png'), picture(20, 30, number % 2))
    printed = run('all', '-o', 'mine', '--copies', '1', '--val', '0.5')
    assert '2 pictures left out, the same as another' in printed.out
    assert [*map(key_of_one, (tmp_path / 'mine_train_sharp.lmdb', tmp_path / 'mine_val_sharp.lmdb'))] in (
        ['a_000', 'b_000'], ['b_000', 'a_000'],
    )  # fmt: skip


def key_of_one(store):
    (key,) = open_store(store).keys()
    return key


def test_names_that_are_not_utf8_are_names(tmp_path):
    """OpenCV ends the process if it is given such a path."""
    path = tmp_path / os.fsdecode(b'caf\xe9.png')
    path.write_bytes(cv2.imencode('.png', picture(20, 30))[1].tobytes())
    ((name, photo),) = make_blur.find_photos([tmp_path]).items()
    assert name.startswith('caf_') and make_blur.scaled_photo(photo, None).shape == (20, 30, 3)


def test_same_seed_same_bytes(prepared, run, tmp_path):
    for name, seed in (('a', 1), ('b', 1), ('c', 2)):
        run(prepared / 'photos', '-o', name, '--seed', seed, '--copies', '2', '--length', '2', '9')
    values = {
        name: [open_store(tmp_path / f'{name}_blur.lmdb').get(f'photo1_{copy:03d}') for copy in (0, 1)]
        for name in 'abc'
    }
    assert values['a'] == values['b'] and not set(values['a']) & set(values['c']) and len(set(values['a'])) == 2


def test_in_a_share_of_the_copies_nothing_moves(prepared, run, tmp_path):
    photo = prepared / 'photos' / 'photo1.png'
    for name, still in (('moved', '0'), ('mixed', '0.5')):
        run(photo, '-o', name, '--copies', '4', '--noise', '0', '--quality', '95', '--still', still)
    moved, mixed = (open_store(tmp_path / f'{name}_blur.lmdb') for name in ('moved', 'mixed'))
    assert [moved.get(key) == mixed.get(key) for key in moved.keys()] == [True, False, True, False]
    still = pairs.encode(cv2.imread(str(photo)), 'blur', 95)
    assert [mixed.get(key) == still for key in mixed.keys()] == [False, True, False, True]
    options = '--copies 1 --noise 0 --quality 95 --still 0.5'.split()
    run(prepared / 'photos', '-o', 'one', *options)  # the share is of all copies, not of those of each photograph
    one = open_store(tmp_path / 'one_blur.lmdb')
    photos = [cv2.imread(str(path)) for path in sorted((prepared / 'photos').iterdir())]
    found = [one.get(key) == pairs.encode(sharp, 'blur', 95) for key, sharp in zip(one.keys(), photos, strict=True)]
    assert found == [False, True] * 3
    run(photo, '-o', 'noisy', '--copies', '1', '--noise', '9', '--quality', '95', '--still', '1')
    assert open_store(tmp_path / 'noisy_blur.lmdb').get('photo1_000') != still


@pytest.mark.parametrize(('share', 'still'), [(0, []), (0.25, [3, 7]), (0.4, [2, 4, 7]), (1, [*range(8)])])
def test_copies_that_do_not_move_are_spread(share, still):
    assert [index for index in range(8) if make_blur.is_still(index, share)] == still


def test_split_keeps_the_copies_of_a_photograph_together(prepared, run, tmp_path):
    def split(name, *arguments):
        printed = run(prepared / 'photos', '-o', name, '--copies', '3', '--val', '0.4', '--files', *arguments)
        assert printed.out == f'{name}_train: 12 pairs (4 of 6 photographs)\n{name}_val: 6 pairs (2 of 6 photographs)\n'
        keys = {}
        for side in ('train', 'val'):
            keys[side] = open_store(tmp_path / f'{name}_{side}_blur.lmdb').keys()
            assert keys[side] == open_store(tmp_path / f'{name}_{side}_sharp.lmdb').keys()
            assert keys[side] == sorted(path.stem for path in (tmp_path / f'{name}_{side}_blur').iterdir())
        return keys

    keys = split('a')
    photos = {side: {key[:-4] for key in keys[side]} for side in keys}
    assert not photos['train'] & photos['val']
    assert sorted(keys['train'] + keys['val']) == [
        f'photo{number}_{copy:03d}' for number in range(6) for copy in range(3)
    ]
    assert split('b') == keys
    assert any(split(f'c{seed}', '--seed', seed) != keys for seed in (1, 2, 3))


def test_six_photographs_make_two_for_validation_and_one_pair_is_one(prepared, run):
    printed = run(prepared / 'photos', '-o', 'a', '--copies', '1', '--val', '0.3')
    assert printed.out == 'a_train: 4 pairs (4 of 6 photographs)\na_val: 2 pairs (2 of 6 photographs)\n'
    printed = run(prepared / 'photos' / 'photo1.png', '-o', 'b', '--copies', '1')
    assert printed.out == 'b: 1 pair (1 of 1 photograph)\n'


def test_split_does_not_change_the_pairs(prepared, run, tmp_path):
    run(prepared / 'photos', '-o', 'split', '--copies', '1', '--length', '2', '5', '--val', '0.2')
    whole = open_store(prepared / 'data_blur.lmdb')
    for side in ('train', 'val'):
        store = open_store(tmp_path / f'split_{side}_blur.lmdb')
        assert store.keys() and all(store.get(key) == whole.get(key) for key in store.keys())


@pytest.mark.parametrize(
    ('name', 'overrides'),
    [
        ('train_finetune', ['path:pretrain_network_g=~']),
        ('train_finetune_small', []),
    ],  # the weights that the first file names are not here
)
def test_finetuning_takes_what_is_written_with_a_split(prepared, run, tmp_path, name, overrides):
    run(prepared / 'photos', '-o', 'datasets/mine', '--copies', '1', '--val', '0.2')
    file = options.read_options(PREP.parent / 'options' / f'{name}.yml', ['datasets:train:gt_size=64', *overrides])
    option_checks.check(file, 'train')


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        (['nowhere'], 'nowhere: no such photograph or folder'),
        (['empty'], 'empty: no photographs'),
        (['broken'], 'broken.png: not a readable image'),
        (['photo.png', '--quality', '0'], '--quality 0: JPEG quality goes from 1 to 100'),
        (['photo.png', '--quality', '15-101'], '--quality 15-101: JPEG quality goes from 1 to 100'),
        (['photo.png', '--quality', '15-high'], '--quality 15-high: give a JPEG quality such as 25, or a range'),
        (['photo.png', '--quality', '95-15'], '--quality 95-15: JPEG quality goes from 1 to 100, a range from low to'),
        (['photo.png', '--quality', 'high'], '--quality high: give a JPEG quality such as 25, or a range such as'),
        (['photo.png', '--depth', '1'], '--depth 1.0: from 0 to less than 1'),
        (['photo.png', '--objects', '2'], '--objects 2.0: a probability, from 0 to 1'),
        (['photo.png', '--soft', '-1'], '--soft -1.0: a number from 0 up'),
        (['photo.png', '--noise', '-1'], '--noise -1.0: a number from 0 up'),
        (['photo.png', '--noise', 'nan'], '--noise nan: a number from 0 up'),
        (['photo.png', '--rotation', '5.5'], '--rotation 5.5: at most 5 degrees; '),
        (['photo.png', '--workers', '0'], '--workers 0: at least 1'),
        (['photo.png', '--seed', '-1'], '--seed -1: at least 0'),
        (['photo.png', '--grid', '15'], '--grid 15: photo.png is 8 x 8, too small for it; leave the photograph out'),
        (['photo.png', '--grid', '4', '--zoom', '0.5', '1'], '--grid 4: photo.png is 8 x 8, too small for it'),
        (['photo.png', '--grid', '4', '--largest', '4'], '--grid 4: photo.png is 8 x 8, too small for it'),
        (['photo.png', 'broken/broken.txt'], 'broken/broken.txt: ends in none of .jpg'),
        (['photo.png', '--length', '5', '2'], '--length 5.0 2.0: give the shortest'),
        (['photo.png', '--zoom', '2', '1'], '--zoom 2.0 1.0: give the smallest factor, above 0, then the largest'),
        (['photo.png', '--zoom', '0', '1'], '--zoom 0.0 1.0: give the smallest factor'),
        (['photo.png', '--dim', '1'], '--dim 1.0: from 0 to less than 1'),
        (['photo.png', '--copies', '0'], '--copies 0: at least 1'),
        (['photo.png', '--val', '0'], '--val 0.0: give a fraction between 0 and 1'),
        (['photo.png', '--val', '0.5'], '--val 0.5: there is only one photograph, photo'),
        (['photo.png', 'broken', '--val', '0.5'], 'broken.png: not a readable image'),
        (
            ['photo.png', 'other'],
            'photo.png and other/photo.jpg have the same name; leave one out if they show the same picture, '
            'else rename it, or give the folder around both\n',
        ),
        (
            ['twins'],
            'twins/a.jpg and twins/a.png have the same name; leave one out if they show the same picture, '
            'else rename it\n',
        ),
        (['photo.png', '-o', 'new/'], '-o new/: a folder; give a name in it, such as new/mine'),
        (['photo.png', '-o', 'other'], '-o other: a folder; give a name in it, such as other/mine'),
        (['photo.png', '-o', '.'], '-o .: a folder; give a name in it, such as mine'),
        (
            ['photo.png', '-o', '/proc/nope/x'],
            '/proc: cannot be written (No such file or directory); choose another folder',
        ),
        (['photo.png', '-o', 'photo.png/x'], 'photo.png: cannot be written (File exists); choose'),
    ],
)
def test_bad_input_is_one_line_and_leaves_nothing(run, tmp_path, arguments, message):
    for folder in ('empty', 'broken', 'other', 'twins'):
        (tmp_path / folder).mkdir()
    for name in ('broken.png', 'broken.txt'):
        (tmp_path / 'broken' / name).write_text('broken')
    for name in ('photo.png', 'other/photo.jpg', 'twins/a.png', 'twins/a.jpg'):
        cv2.imwrite(str(tmp_path / name), np.zeros((8, 8, 3), np.uint8))
    before = sorted(tmp_path.rglob('*'))
    printed = run('-o', 'out', *arguments, '--files', exit_code=2)
    lines = [line for line in printed.err.splitlines() if line and '%|' not in line]
    assert len(lines) == 1 and lines[0].startswith('make_blur: ') and message in f'{lines[0]}\n'
    assert sorted(tmp_path.rglob('*')) == before


def test_names_of_any_letters_and_folders_are_taken(run, tmp_path):
    names = ('a/2020/DSC_1.png', 'a/2021/DSC_1.png', 'a/more1.png', 'a/лес1.png', 'a/закат.png')
    for number, name in enumerate(names):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(picture(24, 32, number)).save(tmp_path / name)
    (tmp_path / 'a/2020/._DSC_1.png').write_bytes(b'of macOS')
    run('a', '-o', 'out', '--copies', '1')
    keys = open_store(tmp_path / 'out_blur.lmdb').keys()
    assert len(keys) == 5 and {'2020_DSC_1_000', '2021_DSC_1_000'} < set(keys)


@pytest.mark.parametrize(
    ('longest', 'options', 'fit'),
    [(f'{"a" * 247}.png', ['--files'], 251), (f'{"a" * 200}/{"a" * 200}/{"a" * 105}.png', [], 511)],
)
def test_names_that_are_too_long_are_found_before_anything_is_made(run, tmp_path, longest, options, fit):
    for name in (f'long/{longest}', f'too_long/{longest.replace(".", "a.")}'):
        (tmp_path / name).parent.mkdir(parents=True)
        cv2.imwrite(str(tmp_path / name), np.zeros((8, 8, 3), np.uint8))
    run('long', '-o', 'a', '--copies', '1', *options)
    with mock.patch('make_blur.check_photos', side_effect=AssertionError('refused after work')):
        printed = run('too_long', '-o', 'b', *options, exit_code=2)
    assert printed.err.endswith(
        f'a.png: its pairs would have names of {fit + 1} letters, at most {fit} fit; shorten its name, or its '
        "folders'\n"
    )
    assert not list(tmp_path.glob('b*'))


def test_files_do_not_replace_each_other_where_the_disk_ignores_case(run, tmp_path, request):
    for name in ('a', 'A'):
        (tmp_path / 'photos' / name).mkdir(parents=True)
        cv2.imwrite(str(tmp_path / 'photos' / name / '1.png'), picture(8, 8, ord(name)))
    run('photos', '-o', 'apart', '--copies', '1', '--files')
    assert len([*(tmp_path / 'apart_sharp').iterdir()]) == 2
    request.getfixturevalue('case_is_ignored')
    run('photos', '-o', 'stores', '--copies', '1')
    printed = run('photos', '-o', 'new/files', '--copies', '1', '--files', exit_code=2)
    message = 'photos/A/1.png and photos/a/1.png: their --files would have the same names, as the disk ignores case; '
    assert f'{message}rename one, or leave --files out\n' in printed.err
    assert not (tmp_path / 'new').exists()
    with pytest.raises(InputError, match='-o PHOTOS/mine: its --files would lie in photos; choose a folder elsewhere'):
        pair_script.check_files_lie_apart(Namespace(out=Path('PHOTOS/mine'), files=True), [Path('photos')])


def test_what_cannot_be_read_is_found_before_anything_is_made(run, tmp_path):
    for number in range(3):
        cv2.imwrite(str(tmp_path / f'{number}.png'), np.zeros((8, 8, 3), np.uint8))
    whole = (tmp_path / '2.png').read_bytes()
    for damaged in (b'cut', whole[: len(whole) // 2]):  # the second still has its header
        (tmp_path / '2.png').write_bytes(damaged)
        printed = run('.', '-o', 'out', exit_code=2)
        assert '2.png: not a readable image; remove it' in printed.err and 'pair' not in printed.err


def test_all_that_cannot_be_read_are_named_at_once(run, tmp_path):
    cv2.imwrite(str(tmp_path / 'a.png'), np.zeros((8, 8, 3), np.uint8))
    for number in range(23):
        (tmp_path / f'{number:02d}.png').write_text(f'cut {number}')
    lines = [line for line in run('.', '-o', 'out', exit_code=2).err.splitlines() if line and '%|' not in line]
    named = [f'{number:02d}.png: not a readable image; remove it or convert it to PNG' for number in range(20)]
    assert lines == [f'make_blur: {named[0]}', *named[1:], 'and 3 more']
    for number in range(22):
        (tmp_path / f'{number:02d}.png').unlink()
    (tmp_path / '22.png').rename(tmp_path / '22\x1b[2J.png')
    printed = run('.', '-o', 'out', '--grid', '9', exit_code=2)
    expected = [r'22\x1b[2J.png: not a readable image', '--grid 9: a.png is 8 x 8, too small']
    assert all(each in printed.err for each in expected)


def test_a_photograph_that_must_not_be_read_is_a_problem_like_others(run, tmp_path, monkeypatch):
    read = Path.read_bytes

    def read_or_refuse(path):  # the tests may run as root, who may read everything
        if path.name == 'secret.png':
            raise PermissionError(13, 'Permission denied', str(path))
        return read(path)

    monkeypatch.setattr(Path, 'read_bytes', read_or_refuse)
    (tmp_path / 'broken.png').write_text('cut')
    (tmp_path / 'secret.png').write_text('secret')
    lines = [line for line in run('.', '-o', 'out', exit_code=2).err.splitlines() if line and '%|' not in line]
    assert lines == [
        'make_blur: broken.png: not a readable image; remove it or convert it to PNG',
        'secret.png: cannot be read (Permission denied); make it readable, or leave it out',
    ]


def test_photographs_are_counted_while_they_are_looked_at(prepared, run):
    printed = run(prepared / 'photos', '-o', 'out', '--copies', '1')
    assert 'check photographs: 100%' in printed.err and '6/6' in printed.err


def test_files_that_are_not_taken_are_told(run, tmp_path):
    (tmp_path / 'more').mkdir()
    for name in ('a.heic', 'more/b.HEIC', 'c.avif', 'notes', '.hidden.raf', 'e.\x1b[2J'):
        (tmp_path / name).touch()
    cv2.imwrite(str(tmp_path / 'd.png'), np.zeros((8, 8, 3), np.uint8))
    printed = run('.', '-o', 'out', '--copies', '1')
    listed = r'1 .\x1b[2j, 1 .avif, 2 .heic, 1 without ending'
    assert f'5 files left out ({listed}); convert those that are pictures to JPEG or PNG\n' in printed.out
    assert '1 pair (1 of 1 photograph)' in printed.out


def test_what_it_writes_is_no_photograph_of_the_next_run(run, tmp_path):
    (tmp_path / 'photos').mkdir()
    cv2.imwrite(str(tmp_path / 'photos/a.png'), np.zeros((8, 8, 3), np.uint8))
    printed = run('photos', '-o', 'photos/mine', '--copies', '1', '--files', exit_code=2)
    assert '-o photos/mine: its --files would lie in photos; choose a folder elsewhere' in printed.err
    run(tmp_path / 'photos', '-o', 'photos/mine', '--copies', '1', '--files', exit_code=2)
    run('photos', '-o', 'photos/mine', '--copies', '1')


def test_large_photographs_are_told_and_made_smaller(run, tmp_path):
    cv2.imwrite(str(tmp_path / 'large.png'), np.zeros((2100, 2000, 3), np.uint8))
    printed = run('large.png', '-o', 'out', '--copies', '1', '--length', '0', '0')
    assert '1 photograph of more than 4 megapixels: a copy takes seconds' in printed.out
    cv2.imwrite(str(tmp_path / 'wide.png'), np.zeros((20, 33000, 3), np.uint8))
    for too_large in ((), ('--largest', '32767'), ('--largest', '40000')):
        printed = run('wide.png', '-o', 'wide', '--copies', '1', *too_large, exit_code=2)
        assert 'wide.png: is 33000 x 20, too large; set --largest to at most 32766' in printed.err
    printed = run('large.png', 'wide.png', '-o', 'small', '--copies', '1', '--largest', '100')
    store = open_store(tmp_path / 'small_sharp.lmdb')
    assert [store.shape(key)[:2] for key in store.keys()] == [(100, 95), (1, 100)] and 'megapixels' not in printed.out


def test_photographs_of_scikit_image(tmp_path):
    command = [sys.executable, str(PREP / 'skimage_photos.py'), 'photos']
    result = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    names = {split.name: {path.stem for path in split.iterdir()} for split in (tmp_path / 'photos').iterdir()}
    assert names['test'] == {'coffee', 'chelsea'} and names['val'] == {'rocket'} and len(names['train']) == 12
    assert not names['train'] & (names['val'] | names['test'])


def test_photographs_of_scikit_image_that_cannot_be_read_or_written_are_one_line(run_script, monkeypatch, tmp_path):
    def last_line():
        return run_script(skimage_photos, 'photos', exit_code=2).err.splitlines()[-1]  # OpenCV may warn above it

    (tmp_path / 'photos').touch()
    picture = 'skimage_photos: photos/train/astronaut.png: cannot be written'
    assert last_line() == f'{picture} (Not a directory); choose another folder'
    (tmp_path / 'photos').unlink()
    (tmp_path / 'photos/train/astronaut.png').mkdir(parents=True)
    assert last_line() == f'{picture} (Is a directory); choose another folder'
    monkeypatch.setattr(skimage_photos, 'SPLITS', {'train': ('absent.png',)})
    assert 'absent.png: this scikit-image does not ship it; install' in last_line()
