"""Share work out to processes and take its results in order."""

import argparse
import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from typing import Any, TypeVar

import cv2

from wrcan_arch.errors import InputError
from wrcan_arch.system.process_pool import process_pool

AHEAD = 4  # calls per worker that run or whose results wait to be taken

Result = TypeVar('Result')


def _start_worker() -> None:
    """Set up a worker: it leaves Ctrl+C to its parent and does not outlive it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    cv2.setNumThreads(1)
    threading.Thread(target=_exit_after, args=(multiprocessing.parent_process(),), daemon=True).start()


def _exit_after(parent: Any) -> None:
    parent.join()
    os._exit(1)


class Workers:
    """A pool of processes, as a context manager: they end with the `with` block, on an exception at once."""

    def __init__(self, count: int) -> None:
        self._ahead = AHEAD * count
        # Before the fork: a worker that ends OpenCV's threads waits for ever, since it did not inherit them.
        self._threads = cv2.getNumThreads()
        cv2.setNumThreads(1)
        self._pool = process_pool(count, _start_worker)

    def __enter__(self) -> 'Workers':
        return self

    def __exit__(self, kind: type | None, *_: object) -> None:
        if kind:
            self._end_calls()
        self._pool.shutdown(cancel_futures=True)
        cv2.setNumThreads(self._threads)

    def _end_calls(self) -> None:
        """End the processes: a call may take minutes, and nobody takes its result."""
        for process in list(self._pool._processes.values()):  # from Python 3.14 on there is terminate_workers()
            process.terminate()
        # Else the pool would wait for the rest of a result that one of them was sending.
        self._pool._result_queue._writer.close()  # type: ignore[attr-defined]

    def call(self, function: Callable[..., Result], *arguments: object) -> Result:
        return self._pool.submit(function, *arguments).result()

    def in_order(self, function: Callable[..., Result], calls: Iterable[tuple]) -> Iterator[Result]:
        """Yield `function(*arguments)` for each of `calls`, in order, with at most AHEAD calls per worker ahead."""
        rest = iter(calls)
        running = deque(self._pool.submit(function, *arguments) for arguments in islice(rest, self._ahead))
        while running:
            yield running.popleft().result()
            running.extend(self._pool.submit(function, *arguments) for arguments in islice(rest, 1))


def add_workers_option(parser: argparse.ArgumentParser) -> None:
    cores = len(os.sched_getaffinity(0))  # a job's own cores; os.cpu_count() gives the machine's
    parser.add_argument('--workers', type=int, default=cores, help='number of processes (default one for each core)')


def check_workers(arguments: argparse.Namespace) -> None:
    if arguments.workers < 1:
        raise InputError(f'--workers {arguments.workers}: at least 1')
