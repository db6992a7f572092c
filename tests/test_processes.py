import itertools
import threading
from pathlib import Path
from types import SimpleNamespace

import cv2
import pytest
import torch.distributed as dist
from conftest import in_threads, picture
from forked import free_port

from wrcan_arch import WRCAN, InputError
from wrcan_arch.photos.bulk_restore import Options, restore_photos
from wrcan_arch.photos.plan import Job, plan
from wrcan_arch.system import processes
from wrcan_arch.system.processes import Team

JOBS = [Job(f'{number}.png', f'out/{number}.png') for number in range(20)]


@pytest.fixture
def pair():
    store = dist.HashStore()
    return [Team(store=store, rank=rank, size=2) for rank in range(2)]


def test_every_photograph_goes_to_one_process_and_the_free_one_takes_more(pair):
    busy, free = (each.share_of(JOBS) for each in pair)
    first = next(busy)
    assert [first, *free, *busy] == JOBS


def test_processes_begin_with_the_largest(pair, tmp_path, monkeypatch):
    """The small ones are left for whichever process is free. All share one order, divided by number."""
    sizes = {'a.png': 8, 'b.png': 8, 'c.png': 8, 'd.png': 64}
    for name, side in sizes.items():
        cv2.imwrite(str(tmp_path / name), picture(side, side, 0))
    taken = []
    monkeypatch.setattr(Team, 'share_of', lambda self, jobs: taken.extend(jobs) or iter(()))
    monkeypatch.setattr(Team, 'gather', lambda *_, **__: [])
    jobs = plan([tmp_path], out=tmp_path / 'out')
    network = WRCAN(num_feat=4, num_group=1, num_block=1)
    in_threads(*(lambda team=team: restore_photos(network, jobs, options=Options(), team=team) for team in pair))
    assert [Path(job.source).name for job in taken] == 2 * ['d.png', 'a.png', 'b.png', 'c.png']


def test_one_team_can_do_several_collections(pair):
    for jobs in (JOBS[:3], JOBS[3:]):
        in_threads(*(lambda each=each, jobs=jobs: each.agree_on(jobs) for each in pair))
        assert [*pair[0].share_of(jobs), *pair[1].share_of(jobs)] == jobs
        assert pair[0].add_done(4) == pair[1].done() == 4
        talk = [lambda each=each, jobs=jobs: each.gather(f'{each.rank} of {len(jobs)}', lambda: None) for each in pair]
        assert in_threads(*talk) == [[f'0 of {len(jobs)}', f'1 of {len(jobs)}'], []]


def test_page_is_in_the_photographs_order(pair, tmp_path):
    """Restoring starts in the order of their sizes; the page does not follow it."""
    for name, side in (('a.png', 8), ('b.png', 64)):
        cv2.imwrite(str(tmp_path / name), picture(side, side, 0))
    jobs = plan([tmp_path], out=tmp_path / 'out', compare=tmp_path / 'look')
    network, options = WRCAN(num_feat=4, num_group=1, num_block=1), Options(compare=tmp_path / 'look')
    in_threads(*(lambda team=team: restore_photos(network, jobs, options=options, team=team) for team in pair))
    page = (tmp_path / 'look' / 'index.html').read_text()
    assert -1 < page.find('a.png</a>') < page.find('b.png</a>')


def test_processes_with_different_lists_are_told_apart(pair):
    assert in_threads(lambda: pair[0].agree_on(JOBS), lambda: pair[1].agree_on(list(JOBS))) == [None, None]
    elsewhere = [*JOBS[:-1], Job(JOBS[-1].source, 'other/19.png')]
    for theirs in (JOBS[:-1], elsewhere):
        said = in_threads(lambda: pair[0].agree_on(JOBS), lambda theirs=theirs: pair[1].agree_on(theirs))
        assert said[0] == said[1] and said[0].startswith('process 1 sees photographs ')


def test_none_begins_while_another_still_looks_for_photographs(pair, monkeypatch):
    """Otherwise the other would find the first one's results and take them for photographs."""
    began = []
    first = threading.Thread(target=lambda: began.append(pair[0].agree_on(JOBS)), daemon=True)
    first.start()
    first.join(0.3)
    assert first.is_alive() and not began
    pair[1].agree_on(JOBS)
    first.join()
    assert began == [None]


def test_the_first_stays_until_the_others_know_that_all_is_done(pair):
    """The key-value store ends with the first process."""
    ended = []
    first = threading.Thread(target=lambda: ended.append(pair[0].gather('from 0', lambda: None)), daemon=True)
    pair[1].store.set('message 1', 'from 1')
    first.start()
    pair[1]._wait_for('all gathered', lambda: None)
    first.join(0.3)
    assert first.is_alive()
    pair[1].gather('from 1', lambda: None)
    first.join()
    assert ended == [['from 0', 'from 1']]


def test_the_first_gathers_and_the_others_wait_for_it(pair):
    results = {}
    other = threading.Thread(target=lambda: results.update(other=pair[1].gather('from 1', lambda: None)), daemon=True)
    other.start()
    pair[0].add_done(3)
    pair[1].add_done(4)
    assert pair[0].done() == 7
    assert pair[0].gather('from 0', lambda: None) == ['from 0', 'from 1']
    other.join()
    assert results == {'other': []}


def test_a_process_that_never_answers_is_given_up(pair, monkeypatch):
    monkeypatch.setattr(processes, 'STALL_LIMIT', 0.3)
    with pytest.raises(InputError, match='a process does not answer .*; run again with --skip-existing'):
        pair[0].gather('from 0', lambda: None)


def test_processes_that_get_something_done_are_waited_for(pair, monkeypatch):
    """For twenty hours, with a photograph every four."""
    hours, calls = itertools.count(), itertools.count(1)
    clock = SimpleNamespace(monotonic=lambda: 3600 * next(hours), sleep=lambda _: None)
    monkeypatch.setattr(processes, 'time', clock)

    def waiting():
        if (call := next(calls)) % 4 == 0 and pair[1].add_done(1) and call == 20:
            pair[1].store.set('message 1', 'from 1')
            pair[1].store.add('told', 1)

    assert pair[0].gather('from 0', waiting) == ['from 0', 'from 1']


def test_the_first_error_does_not_wait_for_processes_that_hang(pair, monkeypatch):
    monkeypatch.setattr(processes, 'ERROR_WAIT', 0.1)
    assert in_threads(pair[0].is_first_error) == [True]
    assert in_threads(pair[1].is_first_error) == [False]


def test_a_run_without_torchrun_is_alone(monkeypatch):
    monkeypatch.delenv('WORLD_SIZE', raising=False)
    alone = Team.from_environment()
    assert (alone.rank, alone.size) == (0, 1)
    alone.agree_on(JOBS)
    assert list(alone.share_of(JOBS)) == JOBS and alone.gather('text', lambda: None) == ['text']


def test_processes_that_cannot_reach_each_other_say_so(monkeypatch):
    for name, value in {'WORLD_SIZE': '2', 'RANK': '1', 'MASTER_PORT': '1'}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv('MASTER_ADDR', raising=False)
    with pytest.raises(InputError, match='cannot reach each other .*; start them with torchrun'):
        Team.from_environment()


@pytest.mark.parametrize('by_torchrun', [False, True])
def test_another_jobs_processes_at_the_same_port_do_not_join(monkeypatch, by_torchrun):
    """Such as those of a job that was refused the port. torchruns of one job may be several steps of SLURM's."""
    variables = {'MASTER_ADDR': 'localhost', 'MASTER_PORT': str(free_port()), 'SLURM_STEP_NUM_TASKS': '2'}
    for name, value in (variables | {'SLURM_JOB_ID': '7', 'SLURM_STEP_ID': '0'}).items():
        monkeypatch.setenv(name, value)
    if by_torchrun:
        monkeypatch.setenv(processes.STARTED_BY_TORCHRUN, 'x')
    else:
        monkeypatch.delenv(processes.STARTED_BY_TORCHRUN, raising=False)
    first = processes._connect(0, 10)
    first.set('key', '')
    seen = [processes._connect(1, 10).check(['key'])]
    for name in ('SLURM_STEP_ID', 'SLURM_JOB_ID'):
        monkeypatch.setenv(name, '8')
        seen.append(processes._connect(1, 10).check(['key']))
    assert seen == [True, by_torchrun, by_torchrun]
