"""A lock on what one process writes. The kernel gives it back however that process ends."""

import fcntl
import os
import platform
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ..errors import InputError


@contextmanager
def locked(file: Path, what: str, advice: str) -> Iterator[None]:
    """Hold `file`, which is made; InputError where another process does: `what` (that process); `advice`."""
    with file.open('a+') as opened:
        try:
            fcntl.lockf(opened, fcntl.LOCK_EX | fcntl.LOCK_NB)  # lockf: a worker that outlives its run has no part
        except (BlockingIOError, PermissionError) as error:
            opened.seek(0)
            raise InputError(f'{what} ({opened.read()}); {advice}') from error
        except OSError as error:
            advice = 'choose a folder on another one'
            raise InputError(f'{file}: its file system keeps no locks ({error.strerror}); {advice}') from error
        opened.truncate(0)
        opened.write(f'process {os.getpid()} on {platform.node()}')
        opened.flush()
        yield
