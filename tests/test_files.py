"""Files are written whole or not at all; names can be used and shown, whatever they are."""

import errno
import os
import re
import subprocess
import sys
from pathlib import Path
from unittest import mock

import pytest

from wrcan_arch import InputError
from wrcan_arch.system.files import (
    check_writable,
    disk_errors_as_input_errors,
    name_that_fits,
    without_root,
    write_text,
    written_whole,
)
from wrcan_arch.system.terminal import printable, printable_lines


def names(folder):
    return [path.name for path in folder.iterdir()]


def test_file_has_its_name_when_it_is_whole(tmp_path):
    path = tmp_path / 'a.json'
    path.write_text('before')
    (tmp_path / '.a.json.partial').write_text('what a writer left that was killed')
    on_disk = []

    def fsync(descriptor, fsync=os.fsync):
        fsync(descriptor)
        on_disk.append((os.fstat(descriptor).st_size, path.read_text()))

    with mock.patch('os.fsync', fsync), written_whole(path) as file:
        file.write(b'half')
        file.flush()
        assert path.read_text() == 'before' and len(list(tmp_path.glob('*.partial'))) == 1
        file.write(b' and half')
    assert on_disk == [(len('half and half'), 'before')], 'or a power loss may leave the name without the content'
    assert path.read_text() == 'half and half' and names(tmp_path) == ['a.json']


@pytest.mark.parametrize(('left', 'asked'), [(0o644, 0o600), (0o600, 0o644)])
def test_what_a_killed_writer_left_does_not_change_the_permissions(tmp_path, left, asked):
    partial = tmp_path / '.a.json.partial'
    partial.touch()
    partial.chmod(left)
    with written_whole(tmp_path / 'a.json', permissions=asked):
        pass
    assert oct((tmp_path / 'a.json').stat().st_mode & 0o777) == oct(asked)


@pytest.mark.parametrize('target', ['nowhere', 'secret'])
def test_nothing_is_written_through_a_link(tmp_path, target):
    """A downloaded folder may hold one under the temporary name of a result."""
    (tmp_path / 'secret').write_text('mine')
    link = tmp_path / '.a.png.partial'
    link.symlink_to(target)
    said = re.escape(f'{link}: a symbolic link where this run writes; remove it')
    with pytest.raises(InputError, match=f'^{said}$'), written_whole(tmp_path / 'a.png') as file:
        file.write(b'a picture')
    assert sorted(names(tmp_path)) == [link.name, 'secret'] and (tmp_path / 'secret').read_text() == 'mine'


@pytest.mark.parametrize('is_there', [False, True])
def test_what_another_users_run_left_is_named(tmp_path, is_there):
    """In a shared folder, where only its owner may open it."""
    partial = tmp_path / '.a.png.partial'
    said = f'{tmp_path}/a.png: cannot be written (Permission denied); choose another folder'
    if is_there:
        partial.touch()
        said = f"{partial}: left by another user's run; remove it, unless that run is still at work"
    refused = PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(partial))
    with mock.patch('os.open', side_effect=refused), pytest.raises(InputError, match=f'^{re.escape(said)}$'):
        write_text(tmp_path / 'a.png', 'a picture')


WRITER = """
import sys, time
from pathlib import Path
from wrcan_arch.system.files import written_whole
letter = sys.argv[1].encode()
for number in range(40):
    with written_whole(Path('a.bin')) as file:
        for _ in range(5):
            file.write(letter * (1000 if letter == b'a' else 700))
            file.flush()
            time.sleep(0.0005)
"""


def test_of_two_processes_that_write_one_file_each_writes_it_whole(tmp_path):
    writers = [subprocess.Popen([sys.executable, '-c', WRITER, letter], cwd=tmp_path) for letter in 'ab']
    path, seen = tmp_path / 'a.bin', set()
    while any(writer.poll() is None for writer in writers):
        if path.exists():
            seen.add(path.read_bytes())
    assert [writer.returncode for writer in writers] == [0, 0]
    assert seen == {b'a' * 5000, b'b' * 3500} and names(tmp_path) == ['a.bin']


@pytest.mark.parametrize('error', [ValueError, KeyboardInterrupt, OSError])
def test_error_leaves_what_was_there(tmp_path, error):
    path = tmp_path / 'a.json'
    path.write_text('before')
    with pytest.raises(error), written_whole(path) as file:
        file.write(b'half')
        raise error
    assert path.read_text() == 'before' and names(tmp_path) == ['a.json']


@pytest.mark.parametrize(
    ('number', 'advice'),
    [(errno.ENOSPC, 'make room'), (errno.EDQUOT, 'make room'), (errno.EMFILE, 'allow more open files (ulimit -n)')],
)
def test_refusing_system_is_told_with_the_files_name(tmp_path, number, advice):
    path, reason = tmp_path / 'a.json', os.strerror(number)
    with mock.patch('os.fsync', side_effect=OSError(number, reason)):
        with pytest.raises(OSError, match=rf'{reason}.*{re.escape(str(path))}'), written_whole(path):
            pass
        said = re.escape(f'{path}: cannot be written ({reason}); {advice}')
        with pytest.raises(InputError, match=f'^{said}$'), disk_errors_as_input_errors(path), written_whole(path):
            pass
    assert not names(tmp_path)


@pytest.mark.parametrize('name', ['nowhere/a.pth', 'file/a.pth', 'folder', 'x' * 300])
def test_what_cannot_be_written_is_named_as_it_was_asked_for(tmp_path, name):
    (tmp_path / 'folder').mkdir()
    (tmp_path / 'file').touch()
    with pytest.raises(OSError) as caught, written_whole(tmp_path / name):
        pass
    assert caught.value.filename == str(tmp_path / name)
    assert not list(tmp_path.rglob('*.partial'))


def test_errors_of_others_keep_their_words(tmp_path):
    for error in (OSError('the real reason'), OSError(2, 'not there', 'other.png')):
        with pytest.raises(OSError) as caught, written_whole(tmp_path / 'a.zip'):
            raise error
        assert caught.value is error


def test_writable_folders_are_made_and_stay_empty(tmp_path):
    check_writable(tmp_path / 'a' / 'b')
    check_writable(tmp_path / 'a' / 'b')
    assert not list((tmp_path / 'a' / 'b').iterdir())


def test_longest_names_can_be_written(tmp_path):
    path = tmp_path / ('é' * 125 + '.png')
    with written_whole(path):
        pass
    assert names(tmp_path) == [path.name]
    assert name_that_fits(path.name, '') == path.name != name_that_fits(path.name, '.jpg')
    assert name_that_fits('x' * 255, '') == 'x' * 255 and len(name_that_fits('x' * 256, '')) == 64


def test_a_pipe_is_written_into_and_stays(tmp_path):
    os.mkfifo(tmp_path / 'pipe')
    reader = os.open(tmp_path / 'pipe', os.O_RDONLY | os.O_NONBLOCK)
    try:
        write_text(tmp_path / 'pipe', 'text')
        assert (tmp_path / 'pipe').is_fifo() and os.read(reader, 9) == b'text'
    finally:
        os.close(reader)


def test_paths_stay_below_a_folder():
    assert without_root(Path('/data/../y')) == Path('y') and without_root(Path('a/b')) == Path('a/b')


def test_names_are_printable_whatever_they_are():
    for name in ('Zoë 海.png', '写真\u30001', 'at 3.15\u202fPM', 'a\xa0b', 'می\u200cخواهم', '👩\u200d🔬'):
        assert printable(name) == name
    assert printable('a\u202e\u2066\u200e\u2028\x85b') == r'a\u202e\u2066\u200e\u2028\x85b'
    assert printable(os.fsdecode(b'latin\xe9\n\x1b[31m')) == r'latin\udce9\n\x1b[31m'
    assert printable_lines('a\x1b[2J\r\nb\t\n') == 'a\\x1b[2J\\r\nb\t\n'
