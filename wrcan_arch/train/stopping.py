"""Why a run is to end before its next iteration: a signal, or data that cannot be read; and the end of its workers."""

import multiprocessing
import os
import re
import signal
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from multiprocessing.util import get_temp_dir
from pathlib import Path
from typing import Any

from ..errors import InputError, RunError, one_line
from ..system.signals import handling

ENDING_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)  # a scheduler's, Ctrl+C, a terminal that closes
STOP_NOTICE = b'\nbasicsr: the run ends, and is saved, after this iteration or validation; Ctrl+\\ ends it at once\n'
# PyTorch's messages about /dev/shm, through which workers pass batches, and that of an OSError which names no file.
NO_SHARED_MEMORY = re.compile('shared memory|No space left on device$')


@dataclass
class StopReasons:
    """Reasons for a run to end before its next iteration.

    That iteration still has to begin: WRCANModel.update_learning_rate then finds the reason, saves and raises.
    """

    asked_by: signal.Signals | None = None
    unreadable: InputError | None = None  # why the next batch cannot be read


@contextmanager
def signals_ask(stop: StopReasons) -> Iterator[None]:
    """Have the signals that end a run request an end at a point that can be resumed from, instead of at once.

    One that the run was started with as ignored, as Ctrl+C in a script's background job, stays ignored.
    """

    def ask(number: int, _: Any) -> None:
        is_first, stop.asked_by = stop.asked_by is None, signal.Signals(number)
        if is_first:
            with suppress(OSError):  # Ctrl+C also ends a tee that reads this
                os.write(2, STOP_NOTICE)  # print is not safe in here

    with handling(ENDING_SIGNALS, ask):
        yield


def ignore_signals() -> None:
    """Ignore them in a data worker: the whole group gets them, and the run still has to save."""
    for number in ENDING_SIGNALS:
        signal.signal(number, signal.SIG_IGN)


@contextmanager
def ending_data_workers() -> Iterator[None]:
    """Kill the data workers when their run ends: they ignore the signal that Python would end them with."""
    # Workers inherit this folder for their sockets, and this process removes it: a killed one cannot. If it is
    # gone since an earlier run of this process, a worker fails where nobody sees it, and the run waits for its batch.
    Path(get_temp_dir()).mkdir(0o700, parents=True, exist_ok=True)
    others, handler = multiprocessing.active_children(), signal.getsignal(signal.SIGCHLD)
    try:
        yield
    finally:
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # PyTorch's handler raises when a worker ends
        for worker in set(multiprocessing.active_children()) - set(others):
            worker.kill()
            worker.join()
        signal.signal(signal.SIGCHLD, handler)


def ending_error(error: InputError) -> RunError:
    """Return the error that ends a run whose input turns out bad after it has begun."""
    ends = RunError(f'{one_line(error)}; the run ends; fix that and go on with --auto_resume')
    ends.__cause__ = error  # for --debug
    return ends


def as_input_error(error: Exception, what: str = 'the next batch') -> InputError:
    """Return `error` as an InputError for unreadable data: the toolbox's data sets and dead workers raise any kind."""
    if isinstance(error, InputError):
        return error
    last_line = str(error).strip().rpartition('\n')[2]
    hint = ''
    if NO_SHARED_MEMORY.search(last_line):
        hint = '; /dev/shm is full: enlarge it (docker run --shm-size=1g), or set a smaller num_worker_per_gpu'
    elif isinstance(error, FileNotFoundError) and not (folder := Path(get_temp_dir())).is_dir():
        hint = f'; {folder}, through which data workers pass batches, was removed: it has to stay during a run'
    unreadable = InputError(f'{what} cannot be read ({last_line or type(error).__name__}){hint}')
    unreadable.__cause__ = error
    return unreadable


class UntilUnreadable:
    """Iterate over a data loader; if a batch cannot be read, have the run save and end.

    The previous batch is then yielded once more: the loop begins an iteration with it, and the model saves and ends
    the run before it makes a step. With `saves_first` false the run ends at once instead: other processes would wait
    for this one's step, and models other than WRCANModel would make that step.
    """

    def __init__(self, loader: Iterable[Any], stop: StopReasons, *, saves_first: bool) -> None:
        self.loader = loader
        self.stop = stop
        self.saves_first = saves_first
        self.last: Any = None

    def __iter__(self) -> Iterator[Any]:
        try:
            batches = iter(self.loader)  # installs PyTorch's handler, which raises amid a step if a worker dies
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # the loader notices by itself, within seconds
            for batch in batches:
                self.last = batch
                yield batch
        except Exception as error:
            unreadable = as_input_error(error)
            if self.last is None:
                raise unreadable from unreadable.__cause__
            if not self.saves_first:
                raise ending_error(unreadable) from error
            self.stop.unreadable = unreadable
            yield self.last
            raise
