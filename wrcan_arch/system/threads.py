"""What all threads share: locks that are free in a forked process, and Pillow's limit on pixels, lifted under one."""

import os
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from threading import RLock


def lock_of_threads() -> AbstractContextManager[bool]:
    """A lock that is free in a forked process: the fork waits for another thread that holds it."""
    lock = RLock()
    os.register_at_fork(before=lock.acquire, after_in_parent=lock.release, after_in_child=lock.release)
    return lock


_pillow_limit = lock_of_threads()


@contextmanager
def without_pillow_size_limit() -> Iterator[None]:
    """Lift Pillow's own limit on pixels, for callers that check the size themselves or read only the header.

    All threads share that limit, so they enter one at a time.
    """
    from PIL import Image

    with _pillow_limit:
        limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
        try:
            yield
        finally:
            Image.MAX_IMAGE_PIXELS = limit
