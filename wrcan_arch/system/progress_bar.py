"""Show progress on stderr: as a bar in a terminal, as a line now and then in a log."""

import math
import sys
from collections.abc import Iterable, Sized
from typing import Any

from tqdm import tqdm
from tqdm.utils import ObjectWrapper

from .terminal import printable

LOG_AFTER = 30  # seconds at least between the lines of a log
LOG_LINES = 100  # about the most of a log, however long the run: all of it may be in a mail


class _Log(ObjectWrapper):
    """A file in which each update is a line. tqdm begins each with a carriage return, to draw over the one before."""

    def write(self, text: str) -> None:
        if text.strip():
            self._wrapped.write(f'{text.strip()}\n')


def progress_bar(iterable: Iterable[Any] | None = None, **options: Any) -> tqdm:
    """Return tqdm's bar; its options are tqdm's."""
    options['desc'] = printable(options.get('desc') or '')  # may be a name that holds escape sequences
    if sys.stderr is None:
        options['disable'] = True
    elif not sys.stderr.isatty():
        total = options.get('total') or (len(iterable) if isinstance(iterable, Sized) else 0)
        options |= {'file': _Log(sys.stderr), 'mininterval': LOG_AFTER, 'miniters': max(1, total / LOG_LINES)}
        options['maxinterval'] = math.inf  # else tqdm's monitor would write in between, and end the limit of lines
        options['leave'] = True  # else the last line would be an early one
    return tqdm(iterable, **options)
