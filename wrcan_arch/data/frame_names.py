"""Names of frames: SEQUENCE_NUMBER in stores and results, such as 003_00000060, and 003/00000060 for people."""

import re


def sequence_of(key: str) -> str:
    """Return what precedes the last underscore, '003' of '003_00000060'; without one, the whole key."""
    return key.rpartition('_')[0] or key


def number_of(key: str) -> int | None:
    """Return the number that the name ends in, None if it has none."""
    match = re.search(r'(?:^|_)(\d+)$', key)
    return int(match[1]) if match else None


def is_submitted(key: str, every: int) -> bool:
    """Whether val:submission takes the frame: numbers 9, 19, ... if `every` is 10, as the challenge's server asked."""
    number = number_of(key)
    return number is not None and number % every == every - 1


def key_of_frame(frame: str) -> str:
    """Return '003_00000060' for '003/00000060'."""
    return frame.replace('/', '_')


def frame_of_key(key: str) -> str:
    """Return '003/00000060' for '003_00000060'."""
    return '/'.join(key.rsplit('_', 1))
