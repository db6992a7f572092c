"""The order in which a training run draws items: one endless sequence that depends on the seed alone.

Draw number n is item `permutation[n // size][n % size]`, so each pass shows every item once. The items' own randomness
comes from (seed, n) too. So neither the number of workers or processes nor a stop and resume changes what a run sees.
"""

from collections.abc import Iterator, Sized

import numpy as np
from torch.utils.data import Sampler


class Draw(int):
    """An item's index that also carries `number`, its place in the run's sequence of draws."""

    number: int

    def __new__(cls, index: int, number: int) -> 'Draw':
        draw = super().__new__(cls, index)
        draw.number = number
        return draw

    def __reduce__(self) -> tuple:
        return Draw, (int(self), self.number)


def draw_generator(seed: int, number: int) -> np.random.Generator:
    """Return the generator of all randomness in draw `number`."""
    return np.random.Generator(np.random.PCG64((seed, number)))  # the same as default_rng's, in half the time


class DrawSampler(Sampler[Draw]):
    """Yield one process's draws, in whole batches, for iterations `start_iter` to `total_iter` - 1.

    An epoch has as many iterations as it takes to show each item about `ratio` times, rounded up to whole batches.
    Iterations count from 0; in each, all processes together make batch_size * num_replicas draws.

    Args:
        dataset: the data set to draw from; only its length matters.
        num_replicas, rank: how many processes share a batch, and which one this is.
        ratio: the toolbox's dataset_enlarge_ratio.
        batch_size: items in one process's batch.
        seed: seed of the permutations.
        start_iter, total_iter: number of iterations made already, and at the end of the run.
        start_draw: number of draws made already; by default start_iter * batch_size * num_replicas.
    """

    def __init__(
        self,
        dataset: Sized,
        num_replicas: int,
        rank: int,
        ratio: float = 1,
        *,
        batch_size: int,
        seed: int,
        start_iter: int,
        total_iter: int,
        start_draw: int | None = None,
    ) -> None:
        self.size = len(dataset)
        self.rank = rank
        self.batch_size = batch_size
        self.batch_size_total = batch_size * num_replicas
        self.seed = seed
        self.start_iter = start_iter
        self.total_iter = total_iter
        self.start_draw = start_iter * self.batch_size_total if start_draw is None else start_draw
        self.iters_per_epoch = max(1, -(-int(self.size * ratio) // self.batch_size_total))
        self.epoch = self.start_epoch

    @property
    def start_epoch(self) -> int:
        return self.start_iter // self.iters_per_epoch

    @property
    def last_epoch(self) -> int:
        return max(self.start_iter, self.total_iter - 1) // self.iters_per_epoch

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def draws_before(self, iteration: int) -> int:
        """Return the number of draws that all processes make before `iteration`, earlier runs included."""
        return self.start_draw + (iteration - self.start_iter) * self.batch_size_total

    def __iter__(self) -> Iterator[Draw]:
        permutation, pass_number = np.empty(0, int), -1
        for iteration in self._iterations():
            first = self.draws_before(iteration) + self.rank * self.batch_size
            for number in range(first, first + self.batch_size):
                if pass_number != number // self.size:
                    pass_number = number // self.size
                    permutation = self._permutation(pass_number)
                yield Draw(int(permutation[number % self.size]), number)

    def __len__(self) -> int:
        return len(self._iterations()) * self.batch_size

    def _permutation(self, pass_number: int) -> np.ndarray:
        rng = np.random.default_rng((self.seed, pass_number, 1))  # 1: another stream than any draw's
        return rng.permutation(self.size)

    def _iterations(self) -> range:
        first = self.epoch * self.iters_per_epoch
        return range(max(first, self.start_iter), min(first + self.iters_per_epoch, self.total_iter))
