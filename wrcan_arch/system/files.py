"""Write files whole or not at all, refuse links, and handle names that are too long or not UTF-8."""

import errno
import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from hashlib import sha256
from pathlib import Path
from tempfile import TemporaryFile
from typing import BinaryIO

from ..errors import InputError

ADVICE: dict[int | None, str] = {
    errno.ENOSPC: 'make room',
    errno.EDQUOT: 'make room',
    errno.EFBIG: 'allow larger files (ulimit -f, or another file system)',
    errno.EIO: 'check the disk',
    errno.EMFILE: 'allow more open files (ulimit -n)',
    errno.ENAMETOOLONG: 'give it a shorter name',
}
LONGEST_NAME = 255  # bytes, in most file systems


def is_utf8(path: Path) -> bool:
    """Whether the path's bytes are UTF-8; some libraries open no other."""
    try:
        os.fsencode(path).decode()
    except UnicodeDecodeError:
        return False
    return True


def name_that_fits(name: str, more: str) -> str:
    """Return `name`, or its SHA-256 if `name` with `more` appended is too long for a file system."""
    fits = len(os.fsencode(name + more)) <= LONGEST_NAME
    return name if fits else sha256(os.fsencode(name)).hexdigest()


def name_is_too_long(path: Path) -> bool:
    """Whether the name is too long for the path's own file system."""
    try:
        path.lstat()
    except OSError as error:
        return error.errno == errno.ENAMETOOLONG
    return False


def refuse_link(path: Path) -> None:
    """Raise InputError if `path` is a symbolic link, for names that the user did not choose, such as temporary ones.

    In a folder that was downloaded such a link may lead to any file of the user's.
    """
    if path.is_symlink():
        raise InputError(f'{path}: a symbolic link where this run writes; remove it')


def open_no_link(name: str, flags: int, permissions: int = 0o666) -> int:
    """An `opener` for `open` that refuses a link, as `refuse_link` does."""
    try:
        return os.open(name, flags | os.O_NOFOLLOW, permissions)
    except OSError:
        refuse_link(Path(name))
        raise


@contextmanager
def written_whole(path: Path, *, permissions: int = 0o666) -> Iterator[BinaryIO]:
    """Yield a file to write into. It gets the name `path` once all of it is on the disk; on an error it is removed.

    Its mode is `permissions` less the umask; its owner may always read and write it.

    If two processes write the same file, the second waits for the first. A killed process leaves `.NAME.partial`, which
    the next run overwrites. OSError, naming `path`, if the disk refuses; InputError if `.NAME.partial` is a link or
    another user's.
    """
    partial = path.with_name(f'.{name_that_fits(path.name, ".partial.")}.partial')
    try:
        with _opened_alone(partial, permissions | 0o600) as file:
            try:
                yield file
                file.flush()
                os.fsync(file.fileno())
                partial.replace(path)
            except BaseException:
                partial.unlink(missing_ok=True)
                raise
    except OSError as error:
        if error.errno and error.filename in (None, str(partial)):  # None if writing into the open file failed
            raise OSError(error.errno, error.strerror, str(path)) from error
        raise


def _is_at(path: Path, file: BinaryIO) -> bool:
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except FileNotFoundError:
        return False


@contextmanager
def _opened_alone(path: Path, permissions: int) -> Iterator[BinaryIO]:
    """Open an empty file; other processes that open it through this function wait until it is closed."""

    def create(name: str, flags: int) -> int:
        try:
            return open_no_link(name, flags | os.O_CREAT, permissions)
        except PermissionError as error:
            if path.exists():
                hint = 'remove it, unless that run is still at work'
                raise InputError(f"{path}: left by another user's run; {hint}") from error
            raise

    while True:
        existed = path.exists()
        with open(path, 'r+b', opener=create) as file:
            with suppress(OSError):  # if the file system has no locks
                fcntl.flock(file, fcntl.LOCK_EX)  # a lockf lock ends when libvips closes its copy of the descriptor
            if not _is_at(path, file):  # another process renamed or removed it while this one waited
                continue
            if existed:
                path.unlink()  # left by a killed process, perhaps with other permissions
                continue
            file.truncate()  # another process may have made it since, and been killed
            yield file
            return


@contextmanager
def disk_errors_as_input_errors(path: Path, otherwise: str = 'choose another folder') -> Iterator[None]:
    """Turn an OSError into an InputError that names `path`; its advice is `otherwise` where ADVICE has none."""
    try:
        yield
    except OSError as error:
        advice = ADVICE.get(error.errno, otherwise)
        raise InputError(f'{path}: cannot be written ({error.strerror or error}); {advice}') from error


def write_text(path: Path, text: str) -> None:
    """Write a text in UTF-8, whole or not at all, and make its folder if it is missing. InputError if it cannot."""
    with disk_errors_as_input_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.is_symlink() or (path.exists() and not path.is_file()):  # such as /dev/stdout: do not replace it
            path.write_text(text, encoding='utf-8')
        else:
            with written_whole(path) as file:
                file.write(text.encode())


def check_writable(folder: Path) -> None:
    """Make the folder if it is missing; InputError if no file can be written in it."""
    with disk_errors_as_input_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        with TemporaryFile(dir=folder):
            pass


def without_root(path: Path) -> Path:
    """Return `path` without its root and without '..', so that it can be joined to any folder."""
    inside = path.resolve() if '..' in path.parts else path
    return inside.relative_to(inside.anchor)
