"""What can end a run between two iterations: a signal, an unreadable frame, too many steps that are not finite."""

import logging
import multiprocessing
import os
import signal
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, distributed

from ..errors import InputError, RunError, one_line

ASKED = b'\nbasicsr: the run ends, and is saved, after this iteration or validation; Ctrl+\\ ends it at once\n'
logger = logging.getLogger('basicsr')  # the toolbox's


@dataclass
class StopReasons:
    """What asks a run to end before its next iteration."""

    asked_by: signal.Signals | None = None
    unreadable: InputError | None = None  # the batch that would be next


@contextmanager
def signals_ask(stop: StopReasons) -> Iterator[None]:
    """SIGTERM and Ctrl+C ask the run to end where it can go on, and no longer end it anywhere."""

    def ask(number: int, _: Any) -> None:
        is_first, stop.asked_by = stop.asked_by is None, signal.Signals(number)
        if is_first:
            with suppress(OSError):  # Ctrl+C ends the tee that reads it too
                os.write(2, ASKED)  # print is not safe in here

    before = {number: signal.signal(number, ask) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def ignore_signals() -> None:
    """In a data worker: a signal to the whole group must not take the data from a run that is about to save."""
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)


@contextmanager
def ending_data_workers() -> Iterator[None]:
    """End the data workers with their run: they ignore what Python would end them with."""
    others, handler = multiprocessing.active_children(), signal.getsignal(signal.SIGCHLD)
    try:
        yield
    finally:
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # PyTorch's makes an error of a worker's end
        for worker in set(multiprocessing.active_children()) - set(others):
            worker.kill()
            worker.join()
        signal.signal(signal.SIGCHLD, handler)


def ends_the_run(error: InputError) -> RunError:
    """What to say of an input that turns out bad when a run is long under way."""
    ends = RunError(f'{one_line(error)}; the run ends; fix that and go on with --auto_resume')
    ends.__cause__ = error  # for --debug
    return ends


def unread(error: Exception, what: str = 'the next batch') -> InputError:
    """What to say of data that could not be read: the toolbox's data sets, and workers that die, raise anything."""
    if isinstance(error, InputError):
        return error
    last_line = str(error).strip().rpartition('\n')[2]
    said = InputError(f'{what} cannot be read ({last_line or type(error).__name__})')
    said.__cause__ = error
    return said


class UntilUnreadable:
    """A data loader whose frames may turn out unreadable when a run is long under way.

    Then the batch before is given once more: the loop begins an iteration with it, which saves and ends the run before
    a step is made. With `saves_first` false the run ends at once: of several processes the others would wait for this
    one's step, and other models would make it.
    """

    def __init__(self, loader: Iterable[Any], stop: StopReasons, *, saves_first: bool) -> None:
        self.loader = loader
        self.stop = stop
        self.saves_first = saves_first
        self.last: Any = None

    def __iter__(self) -> Iterator[Any]:
        try:
            batches = iter(self.loader)  # has PyTorch's handler say that a worker is dead, in the middle of a step
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # the loader finds it out by itself, in seconds
            for batch in batches:
                self.last = batch
                yield batch
        except Exception as error:
            if self.last is None:
                raise
            if not self.saves_first:
                raise ends_the_run(unread(error)) from error
            self.stop.unreadable = unread(error)
            yield self.last
            raise


class StepGuard:
    """Finds steps that must not be made, counts them, and says when the run has to end.

    A device's answer is read when the next step has been handed to it, so that the host never waits for the device.
    All processes find the same, at the same step.

    Args:
        limit: broken steps in a row that are skipped; one more ends the run.
        device: where the network is.
        dist: whether there are several processes.
    """

    def __init__(self, *, limit: int, device: torch.device, dist: bool) -> None:
        self.limit = limit
        self.device = device
        self.dist = dist
        self.stop = StopReasons()
        self.delay = 0 if device.type == 'cpu' else 1
        self.unread: deque[tuple[int, Tensor, Sequence[str]]] = deque()
        self.in_a_row = 0
        self.skipped = 0
        self.asked: int | None = None

    def check(self, iteration: int, tensors: list[Tensor], keys: Sequence[str]) -> Tensor:
        """1 where a norm in `tensors` is not finite, in any process; else 0.

        Norms, and not values: Adam squares gradients, and a finite one above 1.8e19 would overflow there.

        Args:
            iteration: the one that these losses and gradients are of.
            tensors: losses and gradients.
            keys: of the samples.
        """
        largest = torch.stack(torch._foreach_norm(tensors)).max()
        flags = torch.stack([1 - largest.isfinite().float(), torch.full_like(largest, self.stop.asked_by or 0)])
        if self.dist:
            distributed.all_reduce(flags, distributed.ReduceOp.MAX)
        self.unread.append((iteration, flags, keys))
        return flags[0]

    def verdict(self, made: int) -> RunError | None:
        """Why the run has to end here, after `made` iterations, if it has to."""
        while len(self.unread) > self.delay:
            self._read(*self.unread.popleft())
        if self.stop.unreadable:
            return ends_the_run(self.stop.unreadable)
        if self.in_a_row > self.limit:
            return RunError(
                f'{self.in_a_row} steps in a row had a loss or a gradient that is not finite and were skipped; '
                'the weights from before are saved. Look at the samples in the log, lower train:optim_g:lr, '
                'or use train:amp bf16 or off'
            )
        if not self.dist and self.stop.asked_by:  # several processes stop at the same step, which the flags tell
            self.asked = self.stop.asked_by
        if self.asked:
            name = signal.Signals(self.asked).name
            if not made:
                return RunError(f'stopped by {name}; no iteration was made, so nothing is saved', 128 + self.asked)
            return RunError(f'stopped by {name}; go on with --auto_resume', 128 + self.asked)
        return None

    def _read(self, iteration: int, flags: Tensor, keys: Sequence[str]) -> None:
        broken, asked = map(int, flags.tolist())
        self.asked = asked or None
        self.in_a_row = self.in_a_row + 1 if broken else 0
        self.skipped += broken
        if broken:
            if self.dist:
                gathered: list[Any] = [None] * distributed.get_world_size()
                distributed.all_gather_object(gathered, keys)
                keys = [key for part in gathered for key in part]
            logger.warning(
                f'Iteration {iteration}: a loss or a gradient is not finite, the step is skipped '
                f'({self.skipped} so far). Samples: {", ".join(keys)}'
            )
