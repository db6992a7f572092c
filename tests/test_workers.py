"""Calls shared out to processes: results in order, few of them waiting, exceptions as raised."""

import argparse
import errno
import gc
import multiprocessing
import os
import struct
import time
from multiprocessing.queues import SimpleQueue
from unittest import mock

import pytest

from workers import AHEAD, Workers, add_workers_option
from wrcan_arch.data.lmdb_store import in_own_process
from wrcan_arch.errors import InputError


def slow_at_first(number):
    time.sleep(0.2 if number == 0 else 0)
    return number, os.getpid()


def refuse(number):
    if number == 3:
        raise InputError(f'{number}: refused')
    return number


@pytest.mark.parametrize('start', [lambda: Workers(1), lambda: in_own_process(refuse, 'a.lmdb')])
def test_a_small_dev_shm_is_not_taken_for_a_full_disk(start):
    full = OSError(errno.ENOSPC, 'No space left on device')
    with (
        mock.patch('concurrent.futures.ProcessPoolExecutor.__init__', side_effect=full),
        pytest.raises(InputError, match=r'^/dev/shm: .*No space left on device.*--shm-size'),
    ):
        start()


def test_results_are_in_order_and_only_a_few_calls_are_ahead():
    taken = []

    def calls():
        for number in range(40):
            taken.append(number)
            yield (number,)

    with Workers(2) as workers:
        results = workers.in_order(slow_at_first, calls())
        first = next(results)
        assert len(taken) == 2 * AHEAD, 'the memory for results would grow with their number'
        found = [first, *results]
    assert [number for number, _ in found] == taken == list(range(40))
    assert os.getpid() not in {process for _, process in found} and len({process for _, process in found}) == 2


def test_an_error_in_a_worker_is_raised_in_the_caller():
    with Workers(2) as workers:
        results = workers.in_order(refuse, ((number,) for number in range(100)))
        assert [next(results) for _ in range(3)] == [0, 1, 2]
        with pytest.raises(InputError, match='^3: refused$'):
            next(results)
        assert workers.call(refuse, 1) == 1, 'the others still work'


def wait(folder, number):
    (folder / f'began {number}').touch()
    time.sleep(10)
    (folder / f'ended {number}').touch()


def send_half_a_result(folder, number):
    for queue in gc.get_objects():
        if isinstance(queue, SimpleQueue):
            os.write(queue._writer.fileno(), struct.pack('!i', 1000) + b'half')
    wait(folder, number)


@pytest.mark.parametrize('function', [wait, send_half_a_result])
def test_a_stop_does_not_wait_for_calls_that_run(tmp_path, function):
    with pytest.raises(KeyboardInterrupt), Workers(2) as workers:
        for number in range(2):
            workers._pool.submit(function, tmp_path, number)
        while len(list(tmp_path.iterdir())) < 2:
            time.sleep(0.01)
        raise KeyboardInterrupt
    assert sorted(path.name for path in tmp_path.iterdir()) == ['began 0', 'began 1']
    assert not multiprocessing.active_children()


def test_there_are_as_many_workers_as_this_process_may_use_cores(monkeypatch):
    """On a cluster a job has only part of the machine's cores."""
    monkeypatch.setattr(os, 'sched_getaffinity', lambda process: {3, 5, 8})
    parser = argparse.ArgumentParser()
    add_workers_option(parser)
    assert parser.parse_args([]).workers == 3
