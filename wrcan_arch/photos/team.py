"""Several processes that restore one collection: torchrun starts them, and its key-value store is all they share.

A process takes the next photograph when it has time for it, so the work is balanced whatever the photographs' sizes and
the processors' speed. What a process that dies had not done is there for the next run with --skip-existing.
"""

import hashlib
import os
import time
from collections.abc import Callable, Iterator, Sequence
from datetime import timedelta

import torch.distributed as dist

from ..errors import InputError
from .plan import Job

PATIENCE = 1800  # seconds without a photograph finished anywhere, after which a process is given up


class Team:
    """The processes of one run; alone, one with a store of its own.

    Args:
        store: what all of them can read and count in.
        rank: of this process.
        size: how many there are.
    """

    def __init__(self, *, store: dist.Store | None = None, rank: int = 0, size: int = 1):
        self.store = store or dist.HashStore()
        self.rank = rank
        self.size = size

    @classmethod
    def from_environment(cls) -> 'Team':
        """As torchrun started it; alone if nobody did."""
        if int(os.environ.get('WORLD_SIZE', 1)) == 1:
            return cls()
        try:
            store, rank, size = next(dist.rendezvous('env://', timeout=timedelta(minutes=5)))
        except (RuntimeError, ValueError) as error:
            reason = str(error).splitlines()[0]
            raise InputError(f'the processes cannot reach each other ({reason}); start them with torchrun') from error
        return cls(store=store, rank=rank, size=size)

    def agree_on(self, jobs: Sequence[Job]) -> None:
        """InputError unless the first process has the same list: they share it out by number."""
        digest = hashlib.sha256()
        for job in jobs:
            digest.update(os.fsencode('\0'.join(job)) + b'\n')
        self.store.set(f'list {self.rank}', digest.hexdigest())
        if self.store.get('list 0').decode() != digest.hexdigest():
            raise InputError(f'process {self.rank} sees other photographs than process 0; give both the same list')

    def share_of(self, jobs: Sequence[Job]) -> Iterator[Job]:
        """The jobs that this process does: each is taken by one process, the next by the first that is free."""
        while (number := self.store.add('taken', 1) - 1) < len(jobs):
            yield jobs[number]

    def add_done(self, amount: int) -> None:
        self.store.add('done', amount)

    def done(self) -> int:
        """How much all of them have done."""
        return self.store.add('done', 0)

    def gather(self, message: str, waiting: Callable[[], None]) -> list[str]:
        """Everybody's message in the first process, nothing in the others; they go on when it has them all.

        `waiting` is called several times a second. InputError if nobody gets anything done for too long.
        """
        self.store.set(f'message {self.rank}', message)
        if self.rank != 0:
            self._wait_for('all gathered', waiting)
            return []
        keys = [f'message {rank}' for rank in range(self.size)]
        for key in keys:
            self._wait_for(key, waiting)
        self.store.set('all gathered', '')
        return [self.store.get(key).decode() for key in keys]

    def _wait_for(self, key: str, waiting: Callable[[], None]) -> None:
        done, since = self.done(), time.monotonic()
        while not self.store.check([key]):
            waiting()
            if done != (done := self.done()):
                since = time.monotonic()
            elif time.monotonic() - since > PATIENCE:
                raise InputError(f'a process does not answer (no {key}); run again with --skip-existing')
            time.sleep(0.2)
