"""Tests the file lock. test_store_writer.py and test_run_folder.py test it between two processes."""

import errno
import os
import platform
import resource
from unittest import mock

import pytest

from wrcan_arch import InputError
from wrcan_arch.system.file_lock import locked


def test_the_file_says_who_holds_it_and_not_who_did(tmp_path):
    (tmp_path / 'lock').write_text('process 12345678 on another machine')
    with locked(tmp_path / 'lock', 'taken'):
        assert (tmp_path / 'lock').read_text() == f'process {os.getpid()} on {platform.node()}'


def test_a_full_disk_is_said_with_the_files_name(tmp_path):
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, limits[1]))  # as a full disk does, it fails each write
    try:
        with pytest.raises(InputError, match='/lock: cannot be written'), locked(tmp_path / 'lock', 'taken'):
            pass
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def test_a_link_is_not_followed(tmp_path):
    (tmp_path / 'thesis.tex').write_text('mine')
    (tmp_path / 'lock').symlink_to('thesis.tex')
    with pytest.raises(InputError, match='/lock: a symbolic link.*; remove it'), locked(tmp_path / 'lock', 'taken'):
        pass
    assert (tmp_path / 'thesis.tex').read_text() == 'mine'


@pytest.mark.parametrize('owner', [None, 'self', 'another'])
def test_another_users_file_is_named(tmp_path, monkeypatch, owner):
    said, is_named = 'Permission denied', owner == 'another'
    if owner:
        (tmp_path / 'lock').touch()
    if is_named:
        monkeypatch.setattr('os.geteuid', lambda: (tmp_path / 'lock').stat().st_uid + 1)
        said = f"^{tmp_path}/lock: another user's; choose another name, or share the folder with umask 002$"
    refused = PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(tmp_path / 'lock'))
    with (
        mock.patch('os.open', side_effect=refused),
        pytest.raises(InputError if is_named else PermissionError, match=said),
        locked(tmp_path / 'lock', 'taken'),
    ):
        pass


@pytest.mark.parametrize('before', [None, 'process 12345678 on another machine'])
@pytest.mark.parametrize('number', [errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP])
def test_file_system_without_locks_is_named(tmp_path, number, before):
    """Of an NFS server that only fails for a moment another process may still hold the lock, so its file stays."""
    if before:
        (tmp_path / 'lock').write_text(before)
    said = f'{tmp_path}/lock: its file system keeps no locks .*; choose a folder on another one'
    with (
        mock.patch('fcntl.lockf', side_effect=OSError(number, os.strerror(number))),
        pytest.raises(InputError, match=said),
        locked(tmp_path / 'lock', 'taken'),
    ):
        pass
    assert [path.read_text() for path in tmp_path.iterdir()] == ([before] if before else [])
