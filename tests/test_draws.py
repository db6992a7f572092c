import pickle
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from wrcan_arch.data.draws import Draw, DrawSampler, draw_generator
from wrcan_arch.train.options import read_options

ROOT = Path(__file__).parent.parent


def draws_of_run(size=10, processes=1, rank=0, batch=2, start=0, total=25, ratio=1.0, seed=3, **more):
    """Return all draws of a run, epoch by epoch, as the toolbox's loop takes them."""
    sampler = DrawSampler(
        range(size), processes, rank, ratio, batch_size=batch, seed=seed, start_iter=start, total_iter=total, **more
    )
    taken = []
    for epoch in range(sampler.start_epoch, sampler.last_epoch + 1):
        sampler.set_epoch(epoch)
        draws = list(sampler)
        assert len(draws) == len(sampler)
        taken += [(int(draw), draw.number) for draw in draws]
    return taken


@pytest.mark.parametrize(('size', 'batch', 'total'), [(10, 2, 25), (6, 4, 20), (6, 8, 20), (1, 3, 5), (7, 1, 3)])
def test_run_makes_as_many_iterations_as_asked_whatever_the_size(size, batch, total):
    draws = draws_of_run(size=size, batch=batch, total=total)
    assert [number for _, number in draws] == list(range(batch * total))


def test_each_pass_shows_every_item_once_in_another_order():
    draws = [index for index, _ in draws_of_run(size=10, batch=2, total=15)]
    passes = [draws[start : start + 10] for start in (0, 10, 20)]
    assert all(sorted(one) == list(range(10)) for one in passes)
    assert len({tuple(one) for one in passes}) == 3
    assert passes[2] == np.random.default_rng((3, 2, 1)).permutation(10).tolist(), 'or runs cannot be repeated later'


def test_items_are_seen_equally_often_when_the_batch_does_not_divide():
    counts = Counter(index for index, _ in draws_of_run(size=6, batch=4, total=15))
    assert set(counts.values()) == {10}


@pytest.mark.parametrize('stop', [1, 7, 10, 24, 25])
def test_resumed_run_goes_on_with_the_same_draws(stop):
    assert draws_of_run(total=stop) + draws_of_run(start=stop, total=25) == draws_of_run(total=25)


@pytest.mark.parametrize('batch', [1, 2, 5])
def test_a_resume_with_another_batch_goes_on_with_the_next_draws(batch):
    sampler = DrawSampler(range(10), 2, 0, batch_size=1, seed=3, start_iter=0, total_iter=7)
    draws = draws_of_run(total=7) + draws_of_run(batch=batch, start=7, total=9, start_draw=sampler.draws_before(7))
    assert draws == draws_of_run(batch=1, total=14 + 2 * batch)


@pytest.mark.parametrize('processes', [2, 4])
def test_processes_share_the_batches_of_one(processes):
    alone = draws_of_run(batch=4, total=9)
    shared = [draws_of_run(batch=4 // processes, processes=processes, rank=rank, total=9) for rank in range(processes)]
    batch = 4 // processes
    merged = [draw for i in range(9) for rank in range(processes) for draw in shared[rank][i * batch : (i + 1) * batch]]
    assert merged == alone


def test_another_seed_is_another_order():
    assert draws_of_run(seed=1) != draws_of_run(seed=2)


@pytest.mark.parametrize(('ratio', 'batch', 'length'), [(3, 2, 30), (1, 4, 12), (0.01, 4, 4)])
def test_epochs_are_whole_batches_that_show_each_item_ratio_times(ratio, batch, length):
    sampler = DrawSampler(range(10), 1, 0, ratio, batch_size=batch, seed=0, start_iter=0, total_iter=100)
    assert len(sampler) == length


@pytest.mark.parametrize(('name', 'batch'), [('train_finetune_small', 8), ('train_finetune', 16)])
def test_few_photographs_are_no_short_epochs(name, batch):
    """The batch that begins an epoch is not prepared during the step before."""
    data = read_options(ROOT / 'options' / f'{name}.yml').values['datasets']['train']
    ratio = data.get('dataset_enlarge_ratio', 1)
    sampler = DrawSampler(range(18), 1, 0, ratio, batch_size=batch, seed=0, start_iter=0, total_iter=1000)
    assert sampler.iters_per_epoch > 100


@pytest.mark.parametrize(('start', 'total', 'last'), [(0, 5, 0), (0, 10, 1), (0, 11, 2), (10, 10, 2)])
def test_no_epoch_is_begun_that_has_no_iteration_left(start, total, last):
    sampler = DrawSampler(range(10), 1, 0, batch_size=2, seed=0, start_iter=start, total_iter=total)
    assert sampler.last_epoch == last


@pytest.mark.parametrize(('seed', 'number'), [(0, 0), (5, 1), (5, 1001), (2**31, 12_800_000)])
def test_each_draw_has_numpys_generator_of_seed_and_number(seed, number):
    expected = np.random.default_rng((seed, number)).integers(1 << 62, size=3)
    assert np.array_equal(draw_generator(seed, number).integers(1 << 62, size=3), expected)


def test_draw_is_an_index_and_survives_pickling():
    draw = pickle.loads(pickle.dumps(Draw(4, 1234)))
    assert ['a', 'b', 'c', 'd', 'e'][draw] == 'e'
    assert draw.number == 1234
