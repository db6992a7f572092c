"""A file lock that only one process holds. The kernel releases it however that process ends."""

import fcntl
import os
import platform
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ..errors import InputError
from .files import disk_errors_as_input_errors, open_no_link


def _open_own(name: str, flags: int) -> int:
    """An `opener` for `open` that refuses a link, and says so if another user's file is closed to this one."""
    try:
        return open_no_link(name, flags)
    except PermissionError as error:
        if Path(name).exists() and Path(name).stat().st_uid != os.geteuid():
            hint = 'choose another name, or share the folder with umask 002'
            raise InputError(f"{name}: another user's; {hint}") from error
        raise


@contextmanager
def locked(file: Path, what: str) -> Iterator[None]:
    """Create and lock `file`. If another process holds it, raise InputError with `what` and which process that is."""
    with open(file, 'a+', opener=_open_own) as opened:
        try:
            fcntl.lockf(opened, fcntl.LOCK_EX | fcntl.LOCK_NB)  # lockf: workers that outlive the run do not inherit it
        except (BlockingIOError, PermissionError) as error:
            opened.seek(0)
            raise InputError(f'{what} ({opened.read()}); wait for it, or choose another name') from error
        except OSError as error:
            if not opened.seek(0, os.SEEK_END):  # else another process may hold it, and its server only fail for now
                file.unlink()
            hint = 'choose a folder on another one'
            raise InputError(f'{file}: its file system keeps no locks ({error.strerror}); {hint}') from error
        with disk_errors_as_input_errors(file):
            opened.truncate(0)
            # Not through the buffer: what cannot be written would stay in it, and fail again when the file is closed.
            os.write(opened.fileno(), f'process {os.getpid()} on {platform.node()}'.encode())
        yield
