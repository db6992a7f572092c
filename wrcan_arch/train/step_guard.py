"""Ends a run between two iterations: on a signal, an unreadable frame, or too many steps that are not finite."""

import logging
import multiprocessing
import os
import re
import signal
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, distributed

from ..errors import InputError, RunError, one_line

STOP_NOTICE = b'\nbasicsr: the run ends, and is saved, after this iteration or validation; Ctrl+\\ ends it at once\n'
# PyTorch's messages about /dev/shm, through which workers pass batches, and that of an OSError which names no file.
NO_SHARED_MEMORY = re.compile('shared memory|No space left on device$')
logger = logging.getLogger('basicsr')  # the toolbox's


@dataclass
class StopReasons:
    """Reasons for a run to end before its next iteration.

    That iteration still has to begin: WRCANModel.update_learning_rate then finds the reason, saves and raises.
    """

    asked_by: signal.Signals | None = None
    unreadable: InputError | None = None  # why the next batch cannot be read


@contextmanager
def signals_ask(stop: StopReasons) -> Iterator[None]:
    """Have SIGTERM and Ctrl+C request an end at a point that can be resumed from, instead of ending the run at once.

    A signal that the run was started with as ignored, as Ctrl+C in a script's background job, stays ignored.
    """

    def ask(number: int, _: Any) -> None:
        is_first, stop.asked_by = stop.asked_by is None, signal.Signals(number)
        if is_first:
            with suppress(OSError):  # Ctrl+C also ends a tee that reads this
                os.write(2, STOP_NOTICE)  # print is not safe in here

    handled = [each for each in (signal.SIGTERM, signal.SIGINT) if signal.getsignal(each) is not signal.SIG_IGN]
    before = {number: signal.signal(number, ask) for number in handled}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def ignore_signals() -> None:
    """Ignore SIGTERM and Ctrl+C in a data worker: the whole group gets them, and the run still has to save."""
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)


@contextmanager
def ending_data_workers() -> Iterator[None]:
    """Kill the data workers when their run ends: they ignore the signal that Python would end them with."""
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


class StepGuard:
    """Find and count steps whose losses or gradients are not finite, and decide when the run has to end.

    A GPU's flags are read only once the next step has been queued on it, so that the host does not wait for the GPU.
    All processes come to the same result at the same step.

    Args:
        limit: number of broken steps in a row that are skipped; one more ends the run.
        device: where the network is.
        dist: whether there are several processes.
    """

    def __init__(self, *, limit: int, device: torch.device, dist: bool) -> None:
        self.limit = limit
        self.device = device
        self.dist = dist
        self.stop = StopReasons()
        self.delay = 0 if device.type == 'cpu' else 1
        self.pending_flags: deque[tuple[int, Tensor, torch.cuda.Event | None, Sequence[str]]] = deque()
        self.in_a_row = 0
        self.skipped = 0
        self.agreed_signal: int | None = None

    def check(self, iteration: int, tensors: list[Tensor], keys: Sequence[str]) -> Tensor:
        """Return 1 if the norm of any of `tensors` is not finite in any process, else 0, as a tensor on the device.

        Norms rather than values: Adam squares gradients, and a finite one above 1.8e19 would overflow there.

        Args:
            iteration: the iteration of these losses and gradients.
            tensors: losses and gradients.
            keys: names of the batch's samples, for the log.
        """
        largest = torch.stack(torch._foreach_norm(tensors)).max()
        flags = torch.stack([1 - largest.isfinite().float(), torch.full_like(largest, self.stop.asked_by or 0)])
        if self.dist:
            distributed.all_reduce(flags, distributed.ReduceOp.MAX)
        copied = flags.to('cpu', non_blocking=True)
        # Reading the flags themselves would wait for all that is queued by then: the next step too.
        arrived = torch.cuda.Event() if flags.is_cuda else None
        if arrived:
            arrived.record()
        self.pending_flags.append((iteration, copied, arrived, keys))
        return flags[0]

    def verdict(self, made: int) -> RunError | None:
        """Return the error that ends the run here, after `made` iterations, or None."""
        while len(self.pending_flags) > self.delay:
            self._read(*self.pending_flags.popleft())
        if self.stop.unreadable:
            return ending_error(self.stop.unreadable)
        if self.in_a_row > self.limit:
            return RunError(
                f'{self.in_a_row} steps in a row had a loss or a gradient that is not finite and were skipped; '
                'the weights from before them are saved. Look at the samples in the log, lower train:optim_g:lr, '
                'or use train:amp bf16 or off'
            )
        if not self.dist and self.stop.asked_by:  # several processes agree on the step through the flags
            self.agreed_signal = self.stop.asked_by
        if self.agreed_signal:
            name, code = signal.Signals(self.agreed_signal).name, 128 + self.agreed_signal
            if not made:
                return RunError(f'stopped by {name}; no iteration was made, so nothing is saved', code)
            return RunError(f'stopped by {name}; go on with --auto_resume', code)
        return None

    def _read(self, iteration: int, flags: Tensor, arrived: torch.cuda.Event | None, keys: Sequence[str]) -> None:
        if arrived:
            arrived.synchronize()
        broken, asked = map(int, flags.tolist())
        self.agreed_signal = asked or None
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
