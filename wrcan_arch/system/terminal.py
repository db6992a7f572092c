"""Print texts with foreign names in them: to any terminal, and to pipes that nobody reads any more."""

import io
import os
import select
import signal
import sys
from typing import TextIO
from unicodedata import category

JOINERS = '\u200c\u200d'  # in Persian words and in emoji


def _can_be_shown(character: str) -> bool:
    """Whether a terminal shows it as it is. Python calls no space but the ASCII one printable."""
    return character.isprintable() or character in JOINERS or category(character) == 'Zs'


def printable(name: str) -> str:
    """Return `name` for one line of any terminal: bytes not in UTF-8 and what would reorder the line are escaped."""
    return ''.join(c if _can_be_shown(c) else c.encode('unicode_escape', 'surrogatepass').decode() for c in name)


def printable_lines(text: str) -> str:
    """Return `text` as `printable` does, but keep its newlines and tabs."""
    return ''.join(c if c in '\n\t' else printable(c) for c in text)


def counted(number: int, noun: str) -> str:
    """'1 image', '2 images'."""
    return f'{number} {noun}' if number == 1 else f'{number} {noun}s'


def escape_on_stdout() -> None:
    """Have stdout escape the characters that a terminal lacks, as stderr does: names of files may hold any."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors='backslashreplace')


def _nobody_reads(stream: TextIO) -> bool:
    """Whether `stream` is a pipe whose reader is gone."""
    poll = select.poll()
    poll.register(stream, 0)
    return any(event & select.POLLERR for _, event in poll.poll(0))


def discard_unread() -> bool:
    """Discard what goes to pipes whose readers are gone; exit if stderr is one. Return whether stdout is one."""
    left = [stream for stream in (sys.stdout, sys.stderr) if stream and _nobody_reads(stream)]
    for stream in left:
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
    if sys.stderr in left:
        sys.exit(128 + signal.SIGPIPE)  # the code of a process that SIGPIPE has ended
    return bool(left)


def say(text: str) -> None:
    """Print to stdout, without escape sequences: terminals obey those in the names and texts of others' files.

    Nobody has to read it, as in `basicsr show ... | head`; but exit if stderr goes to a closed pipe too.
    """
    try:
        print(printable_lines(text), flush=True)
    except BrokenPipeError:
        if not discard_unread():
            raise


def print_error(text: str) -> None:
    """Print printable lines to stderr if it is still open; the exit code must not depend on whether it is."""
    if sys.stderr is None:  # print(file=None) would use stdout
        return
    try:
        print(printable_lines(text), file=sys.stderr)
    except OSError:  # the reader is gone: a terminal, or a tee that Ctrl+C has ended too
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stderr.fileno())
