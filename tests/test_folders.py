"""Which folders are walked: links, hidden folders, unreadable ones."""

import os
import shutil
from pathlib import Path
from unittest import mock

import pytest

from wrcan_arch.system.folders import ignores_case, real, walk


@pytest.fixture(autouse=True)
def folders(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ('in/b/2.jpg', 'in/a/1.jpg', 'in/.hidden/3.jpg', 'in/.4.jpg', 'disk/more/5.jpg', 'disk/6.jpg'):
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Path(name).touch()


def found(folder='in', **options):
    return [str(here / name) for here, names in walk(Path(folder), **options) for name in names]


def test_folders_come_in_order_without_hidden_ones():
    assert found() == ['in/a/1.jpg', 'in/b/2.jpg']
    assert found('in/.hidden') == ['in/.hidden/3.jpg'], 'it was asked for'


def test_links_to_folders_elsewhere_are_followed_once():
    Path('in/linked').symlink_to('../disk')
    Path('in/again').symlink_to('../disk/more')
    Path('disk/more/round').symlink_to('..')
    assert found() == ['in/a/1.jpg', 'in/again/5.jpg', 'in/b/2.jpg', 'in/linked/6.jpg']
    Path('to').symlink_to('in')
    assert found('to')[0] == 'to/a/1.jpg'


def test_links_into_the_folder_and_above_it_are_not():
    Path('in/a/up').symlink_to('../..')
    Path('in/a/beside').symlink_to('../b')
    Path('in/a/self').symlink_to('self')
    Path('in/.current').symlink_to('b')
    Path('in/0').symlink_to('b')  # comes before b
    assert found() == ['in/a/1.jpg', 'in/a/self', 'in/b/2.jpg'], 'b under its own name; self is no folder'


def test_folders_to_avoid_are_left_out_however_they_are_reached():
    Path('in/linked').symlink_to('../disk')
    Path('in/below').symlink_to('../disk/more')
    assert found(avoid={real('disk'), real('in/b')}) == ['in/a/1.jpg']
    assert found('disk/more', avoid={real('disk')}) == ['disk/more/5.jpg'], 'it was asked for'


def test_folders_to_avoid_are_left_out_in_other_letters(case_is_ignored):
    Path('in/linked').symlink_to('../disk')
    Path('in/below').symlink_to('../disk/more')
    assert found(avoid={real('DISK'), real('IN/B'), real('nowhere')}) == ['in/a/1.jpg']


def test_folder_that_cannot_be_read_is_an_error_or_told():
    errors = []
    with mock.patch('os.scandir', side_effect=PermissionError(13, 'Permission denied', 'in')):
        with pytest.raises(PermissionError):
            found()
        assert found(on_error=errors.append) == []
    assert [error.filename for error in errors] == ['in']


def test_a_link_to_itself_leads_to_itself(tmp_path):
    Path('loop').symlink_to('loop')
    assert real('loop') == tmp_path / 'loop'


def test_folder_whose_path_is_too_long_is_told_alone(tmp_path):
    for _ in range(17):  # 4096 bytes are the most that Linux takes
        Path('d' * 250).mkdir()
        os.chdir('d' * 250)
    os.chdir(tmp_path)
    errors = []
    assert found('.', on_error=errors.append)[-2:] == ['in/a/1.jpg', 'in/b/2.jpg']
    assert [error.strerror for error in errors] == ['File name too long']
    shutil.rmtree('d' * 250)


def test_case_is_found_out_without_writing_beside_photographs(tmp_path):
    (tmp_path / 'in/2024/01').mkdir(parents=True)
    with mock.patch('wrcan_arch.system.folders.NamedTemporaryFile', side_effect=AssertionError):
        assert not ignores_case(tmp_path / 'in/2024')  # its name says it, as nothing in it has letters


@pytest.mark.parametrize('folder', ['in/2024/01', 'in/2024', 'in', 'not/yet'])
def test_case_is_ignored_where_the_disk_does(case_is_ignored, tmp_path, folder):
    (tmp_path / 'in/2024/01').mkdir(parents=True)
    assert ignores_case(tmp_path / folder)
