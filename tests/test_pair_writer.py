"""Pairs of make_blur.py in stores and files: a stopped run goes on, names are given together, none is written over."""

import errno
import multiprocessing
import os
import re
import shutil
import signal
import sys
from functools import partial
from pathlib import Path
from unittest import mock

import cv2
import numpy as np
import pytest
from conftest import picture

import make_blur
import pairs
from wrcan_arch.data import store_writer
from wrcan_arch.data.lmdb_store import open_store
from wrcan_arch.data.store_writer import StoreWriter
from wrcan_arch.errors import InputError


@pytest.fixture
def run(run_script):
    return partial(run_script, make_blur)


def test_pairs_of_stores_and_folders_get_their_names_together(run, tmp_path):
    cv2.imwrite(str(tmp_path / 'photo.png'), np.zeros((8, 8, 3), np.uint8))
    write = StoreWriter._write_text

    def fail_for_blur(self, name, text):
        if 'blur' in self.path.name:
            raise InputError(f'{self.path}: full')
        write(self, name, text)

    with mock.patch.object(StoreWriter, '_write_text', fail_for_blur):
        run('photo.png', '-o', 'out', '--files', '--copies', '1', exit_code=2)
    assert {path.suffix for path in tmp_path.glob('out*')} == {'.partial'}
    run('photo.png', '-o', 'out', '--files', '--copies', '1')
    names = {'out_blur', 'out_sharp', 'out_blur.lmdb', 'out_sharp.lmdb'}
    assert {path.name for path in tmp_path.glob('out*')} == names


def in_folder(folder):
    """The bytes of all files that are the same after each run with the same request."""
    return {
        path.relative_to(folder).as_posix().partition('_')[2]: path.read_bytes()
        for name in ('blur', 'sharp')
        for path in [*folder.glob(f'*_{name}/*'), *folder.glob(f'*_{name}.lmdb/m*')]
    }


def stop_at(count, how):
    """Call `how`, which ends the run, instead of putting the `count`-th value into a store."""
    put, calls = StoreWriter.put, []

    def dying(self, *arguments):
        calls.append(1)
        if len(calls) == count:
            how()
        put(self, *arguments)

    return mock.patch.object(StoreWriter, 'put', dying)


def run_and_die(count, batch, arguments):
    store_writer.BATCH_SIZE = batch
    sys.argv = ['make_blur.py', *arguments]
    with stop_at(count, lambda: os.kill(os.getpid(), signal.SIGKILL)):
        make_blur.main()


def test_a_disk_that_is_full_for_the_files_is_said_with_the_files_name(prepared, run, tmp_path):
    with mock.patch('pathlib.Path.write_bytes', side_effect=OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))):
        said = run(str(prepared / 'photos'), '-o', 'out', '--files', exit_code=2).err
    assert re.search(r'out_blur\S*/photo0_000\.jpg: cannot be written \(No space left on device\); make room', said)


@pytest.mark.parametrize(
    ('files', 'batch', 'kept'), [([], 1, 4), (['--files'], 1, 4), ([], 40_000, 3), ([], 1 << 20, 0)]
)
def test_a_killed_run_goes_on_where_it_was(prepared, run, tmp_path, files, batch, kept):
    """A pair has 14 kB, a tenth of it the blurred image: its store alone would flush only after 29 pairs."""
    shutil.copytree(prepared / 'photos', tmp_path / 'photos')
    arguments = ['photos', '--copies', '2', *files]
    for name in ('a', 'b'):
        (tmp_path / name).mkdir()
    run(*arguments, '-o', 'a/out')
    child = multiprocessing.get_context('fork').Process(
        target=run_and_die, args=(10, batch, [*arguments, '-o', 'b/out'])
    )
    child.start()
    child.join()
    assert child.exitcode == -signal.SIGKILL and not list(tmp_path.glob('b/*.lmdb')) + list(tmp_path.glob('b/*blur'))
    for stale in tmp_path.glob('b/out_*.partial'):
        if not stale.name.endswith('.lmdb.partial'):
            (stale / 'stale.png').touch()
    printed = run(*arguments, '-o', 'b/out')
    earlier = f', {kept} of them from an earlier run' if kept else ''
    assert printed.out == f'b/out: 12 pairs (6 of 6 photographs){earlier}\n', 'half a pair is none'
    assert in_folder(tmp_path / 'a') == in_folder(tmp_path / 'b')
    assert not list(tmp_path.rglob('*.partial'))


def test_ctrl_c_keeps_all_pairs_that_are_whole_and_says_so(prepared, run, tmp_path):
    def stop():
        raise KeyboardInterrupt

    with stop_at(8, stop):
        printed = run(prepared / 'photos', '-o', 'out', '--copies', '1', exit_code=130)
    assert printed.err.splitlines()[-1] == 'make_blur: stopped; run it again to go on'
    assert ', 3 of them from an earlier run' in run(prepared / 'photos', '-o', 'out', '--copies', '1').out


def run_and_die_naming(count, arguments):
    rename, calls = Path.rename, []

    def dying(self, target):
        calls.append(1)
        if len(calls) == count:
            os.kill(os.getpid(), signal.SIGKILL)
        return rename(self, target)

    sys.argv = ['make_blur.py', *arguments]
    with mock.patch.object(Path, 'rename', dying):
        make_blur.main()


@pytest.mark.parametrize('count', [1, 2, 4])
def test_a_run_that_is_killed_while_it_gives_names_can_be_finished(prepared, run, tmp_path, count):
    shutil.copytree(prepared / 'photos', tmp_path / 'photos')
    arguments = ['photos', '--copies', '1', '--files']
    for name in ('a', 'b'):
        (tmp_path / name).mkdir()
    run(*arguments, '-o', 'a/out')
    child = multiprocessing.get_context('fork').Process(
        target=run_and_die_naming, args=(count, [*arguments, '-o', 'b/out'])
    )
    child.start()
    child.join()
    assert child.exitcode == -signal.SIGKILL
    assert len([path for path in tmp_path.glob('b/out*') if path.suffix != '.partial']) == count - 1
    if count == 1:
        assert (
            'b/out: 6 pairs (6 of 6 photographs), 6 of them from an earlier run\n' in run(*arguments, '-o', 'b/out').out
        )
    else:
        said = run(*arguments, '-o', 'b/out', exit_code=2).err.splitlines()[-1]
        for path in map(Path, said.partition('take .partial off ')[2].split(', ')):
            path.rename(path.with_suffix(''))
    assert in_folder(tmp_path / 'a') == in_folder(tmp_path / 'b') != {}


def test_names_that_no_stopped_run_gave_are_refused(prepared, run, tmp_path):
    (tmp_path / 'out_blur').mkdir()
    printed = run(prepared / 'photos', '-o', 'out', '--copies', '1', '--files', exit_code=2)
    assert printed.err == 'make_blur: out_blur: exists already; remove it or choose another name\n'
    assert [path.name for path in tmp_path.iterdir()] == ['out_blur']


def test_what_a_run_with_other_options_left_is_told_and_stays(prepared, run, tmp_path):
    arguments = [prepared / 'photos', '-o', 'out', '--copies', '1']
    with mock.patch.object(StoreWriter, '_write_text', side_effect=InputError('the last')):
        run(*arguments, '--files', exit_code=2)
    said = 'not used, left by another run (stopped or still at work) with another --val or --files: {}\n'
    all_four = 'out_blur.lmdb.partial, out_blur.partial, out_sharp.lmdb.partial, out_sharp.partial'
    assert run(*arguments, '--val', '0.5').out.startswith(said.format(all_four))
    assert run(*arguments).out.startswith(said.format('out_blur.partial, out_sharp.partial'))
    assert len(list(tmp_path.glob('out_*.partial/*'))) == 12


def test_images_of_one_run_are_not_named_beside_the_stores_of_another(prepared, run, tmp_path):
    arguments = [prepared / 'photos', '-o', 'out', '--copies', '1']
    with stop_at(8, partial(os.kill, os.getpid(), signal.SIGINT)):
        run(*arguments, '--files', exit_code=130)
    run(*arguments)
    printed = run(*arguments, '--files', exit_code=2)
    assert 'make_blur: out_blur.lmdb, out_sharp.lmdb: exist already; remove them or choose another name' in printed.err
    assert not (tmp_path / 'out_blur').exists()


def test_a_folder_among_a_stopped_runs_images_is_refused_before_any_work(run, tmp_path):
    (tmp_path / 'out_blur.partial' / 'mine').mkdir(parents=True)
    with mock.patch('make_blur.find_photos', side_effect=AssertionError('refused after work')):
        printed = run('photo.png', '-o', 'out', '--files', exit_code=2)
    expected = 'out_blur.partial/mine: a folder among the images of a stopped run; move it away'
    assert printed.err == f'make_blur: {expected}\n'


@pytest.mark.parametrize('name', ['out_blur.partial', 'out_sharp.partial/photo_000.png'])
def test_links_under_the_temporary_names_of_images_are_refused(run, tmp_path, name):
    """A folder that was downloaded may hold them."""
    cv2.imwrite(str(tmp_path / 'photo.png'), np.zeros((8, 8, 3), np.uint8))
    (tmp_path / 'docs').mkdir()
    (tmp_path / 'docs/thesis.tex').write_text('mine')
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).symlink_to(tmp_path / ('docs/thesis.tex' if '/' in name else 'docs'))
    printed = run('photo.png', '-o', 'out', '--files', '--copies', '1', exit_code=2)
    assert printed.err == f'make_blur: {name}: a symbolic link where this run writes; remove it\n'
    assert (tmp_path / 'docs/thesis.tex').read_text() == 'mine' and not list(tmp_path.glob('out*.lmdb*'))


def test_a_run_that_is_stopped_before_the_first_pair_leaves_nothing(prepared, run, tmp_path):
    def stop():
        raise KeyboardInterrupt

    with stop_at(1, stop):
        run(prepared / 'photos', '-o', 'out', '--copies', '1', '--files', exit_code=130)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ('change', 'kept'),
    [
        ('nothing', 4), ('seed', 0), ('still', 2), ('photograph', 2), ('file', 3), ('missing file', 3), ('name', 2),
        ('script', 0), ('OpenCV', 0), ('NumPy', 0),
    ],
)  # fmt: skip
def test_a_pair_of_another_source_is_made_again(prepared, run, tmp_path, monkeypatch, change, kept):
    """Photographs are numbered and the number is part of the seed: if one is renamed, others may get another number."""
    for number in range(4):
        (tmp_path / 'photos').mkdir(exist_ok=True)
        shutil.copy(prepared / f'photos/photo{number}.png', tmp_path / 'photos')
    arguments = ['photos', '-o', 'out', '--copies', '1', '--files', '--length', '3', '3']

    with mock.patch.object(StoreWriter, '_write_text', side_effect=InputError('the last')):
        run(*arguments, exit_code=2)
    expected = arguments
    if change == 'seed':
        expected = [*arguments, '--seed', '1']
    elif change == 'still':
        expected = [*arguments, '--still', '0.5']
    elif change == 'photograph':
        for number in (1, 3):
            cv2.imwrite(str(tmp_path / f'photos/photo{number}.png'), picture(20, 30, number))
    elif change == 'file':
        (tmp_path / 'out_sharp.partial/photo2_000.png').write_bytes(b'cut')
    elif change == 'missing file':
        (tmp_path / 'out_blur.partial/photo0_000.jpg').unlink()
    elif change == 'name':
        (tmp_path / 'photos/photo2.png').rename(tmp_path / 'photos/photo4.png')
    elif change == 'script':
        monkeypatch.setattr(pairs, 'GENERATION', 0)
    elif change in ('OpenCV', 'NumPy'):
        monkeypatch.setattr({'OpenCV': cv2, 'NumPy': np}[change], '__version__', 'another')
    printed = run(*expected)
    earlier = f', {kept} of them from an earlier run' if kept else ''
    assert printed.out == f'out: 4 pairs (4 of 4 photographs){earlier}\n'
    run(*expected, '-o', 'fresh')
    for role in ('blur', 'sharp'):
        assert contents(tmp_path / f'out_{role}') == contents(tmp_path / f'fresh_{role}')
        found, fresh = (open_store(tmp_path / f'{name}_{role}.lmdb') for name in ('out', 'fresh'))
        assert [found.get(key) for key in fresh.keys()] == [fresh.get(key) for key in found.keys()]


def test_files_that_change_places_are_a_change(tmp_path):
    """Such as two frames of a video that were copied with the same date."""
    files = [tmp_path / name for name in ('0.png', '1.png')]
    for file in files:
        file.touch()
        os.utime(file, (0, 0))
    assert pairs.fingerprint_of(files) == pairs.fingerprint_of(files) != pairs.fingerprint_of(files[::-1])


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_the_number_of_workers_changes_no_byte(prepared, run, tmp_path):
    for count in ('1', '3'):
        (tmp_path / count).mkdir()
        run(prepared / 'photos', '-o', f'{count}/out', '--copies', '2', '--zoom', '0.5', '2', '--workers', count)
    assert in_folder(tmp_path / '1') == in_folder(tmp_path / '3') != {}


def test_rest_of_a_killed_run_is_no_obstacle(run, tmp_path):
    cv2.imwrite(str(tmp_path / 'photo.png'), np.zeros((8, 8, 3), np.uint8))
    for name in ('out_blur.partial', 'out_blur.lmdb.partial'):
        (tmp_path / name).mkdir()
        (tmp_path / name / 'old.jpg').touch()
    run('photo.png', '-o', 'out', '--files', '--copies', '1')
    assert [path.name for path in (tmp_path / 'out_blur').iterdir()] == ['photo_000.jpg']
    assert not list(tmp_path.glob('*.partial')) and not list(tmp_path.rglob('old.jpg'))


@pytest.mark.parametrize('name', ['out_blur', 'out_sharp', 'out_blur.lmdb', 'out_sharp.lmdb'])
def test_what_is_there_is_not_written_over(run, tmp_path, name):
    cv2.imwrite(str(tmp_path / 'photo.png'), np.zeros((8, 8, 3), np.uint8))
    (tmp_path / name).mkdir()
    (tmp_path / name / 'mine.txt').touch()
    before = sorted(tmp_path.rglob('*'))
    with mock.patch('make_blur.find_photos', side_effect=AssertionError('refused after work')):
        printed = run('photo.png', '-o', 'out', '--files', exit_code=2)
    assert f'make_blur: {name}: exists already; remove it or choose another name' in printed.err
    assert sorted(tmp_path.rglob('*')) == before


@pytest.mark.parametrize('name', ['out_train_sharp.lmdb', 'out_val_blur'])
def test_what_is_there_of_a_split_is_not_written_over(run, tmp_path, name):
    (tmp_path / name).mkdir()
    with mock.patch('make_blur.find_photos', side_effect=AssertionError('refused after work')):
        printed = run('photo.png', '-o', 'out', '--files', '--val', '0.5', exit_code=2)
    assert f'make_blur: {name}: exists already; remove it or choose another name' in printed.err


def test_where_nothing_can_be_written_is_refused_before_any_work(run, tmp_path):
    with mock.patch('make_blur.find_photos', side_effect=AssertionError('refused after work')):
        printed = run('photo.png', '-o', '/proc/nope/x', exit_code=2)
        assert printed.err.startswith('make_blur: /proc: cannot be written (No such file or directory)')
    cv2.imwrite(str(tmp_path / 'photo.png'), np.zeros((8, 8), np.uint8))
    run('photo.png', '-o', 'new/folder/out', '--val', '0.5', exit_code=2)
    assert [path.name for path in tmp_path.iterdir()] == ['photo.png']
