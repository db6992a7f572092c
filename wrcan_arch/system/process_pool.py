"""Start a pool of processes that calls are shared out to."""

from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor

from ..errors import InputError


def process_pool(count: int, initializer: Callable[[], object] | None = None) -> ProcessPoolExecutor:
    """Return a pool of `count` processes; InputError if it cannot make its locks, as in a container's small /dev/shm.

    They lie in /dev/shm, which the OSError does not name: without it, its "No space left" reads as if a disk were full.
    """
    try:
        return ProcessPoolExecutor(count, initializer=initializer)
    except OSError as error:
        hint = 'processes share memory through it; enlarge it (docker run --shm-size=1g)'
        raise InputError(f'/dev/shm: cannot be used ({error.strerror}): {hint}') from error
