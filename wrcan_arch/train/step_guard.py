"""Skips steps that are not finite, and says when the run has to end: StepGuard reads stopping.py's reasons too."""

import logging
import signal
from collections import deque
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, distributed

from ..errors import RunError
from .stopping import StopReasons, ending_error

logger = logging.getLogger('basicsr')  # the toolbox's


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
