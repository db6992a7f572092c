"""Several processes, started by torchrun and as by srun: their results equal those of one, and errors are reported
once, in time."""

import json
import os
import re
import socket
import subprocess
import sys
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import cv2
import pytest
import torch
import torch.distributed as dist
import yaml
from basicsr.models import build_model
from conftest import SMALL_TRAINING, in_threads, picture, set_options
from forked import environment, free_port, srun
from runs import assert_equal, outcome

from wrcan_arch import InputError
from wrcan_arch.checkpoint import read_file, write_weights
from wrcan_arch.cli import main
from wrcan_arch.errors import RunError
from wrcan_arch.look.report import read_curves
from wrcan_arch.system import processes
from wrcan_arch.system.processes import Team, contact_lost, first_host, launcher_of_environment, take_slurms_environment
from wrcan_arch.train import options
from wrcan_arch.wrcan_arch import WRCAN

FOLDER = Path('experiments/small')

# Runs the command, records what each process draws, and can kill the second process in the middle of its work.
WORKER = """
import os, signal, sys, time
from pathlib import Path

dies_at = int(sys.argv.pop(1))
rank = os.environ.get('RANK') or os.environ.get('SLURM_PROCID')
attempt = os.environ.get('TORCHELASTIC_RESTART_COUNT')
with Path(f'attempts_{rank}').open('a') as file:  # before the slow imports: torchrun kills it once the other fails
    print(attempt, file=file)

from wrcan_arch import cli
from wrcan_arch.photos import bulk_restore
from wrcan_arch.train.step_guard import StepGuard

def maybe_die(number):
    if (rank, attempt, number) == ('1', '0', dies_at):
        Path('dies').touch()
        os.kill(os.getpid(), signal.SIGKILL)

def check(self, iteration, tensors, keys, check=StepGuard.check):
    with Path(f'draws_{rank}').open('a') as file:
        print(iteration, *keys, file=file)
    maybe_die(iteration)
    return check(self, iteration, tensors, keys)

def write(*arguments, write=bulk_restore._write, done=[0]):
    while (rank, attempt) == ('0', '0') and not Path('dies').exists():
        time.sleep(0.01)  # or it might leave too little to do for the other to die of
    write(*arguments)
    done[0] += 1
    maybe_die(done[0])

StepGuard.check, bulk_restore._write = check, write
if '-opt' in sys.argv and rank == '1' and Path('other.yml').exists():
    sys.argv[sys.argv.index('-opt') + 1] = 'other.yml'
sys.exit(cli.main(sys.argv[1:]))
"""


def torchrun(processes, *command, dies_at=0, restarts=0):
    start = [sys.executable, '-m', 'torch.distributed.run', f'--nproc_per_node={processes}', '--standalone']
    start += [f'--max-restarts={restarts}', '--log-dir=logs', 'worker.py', str(dies_at), *map(str, command)]
    return subprocess.run(start, capture_output=True, text=True, env=environment())


def torchrun_on_two_machines(*command):
    """Run torchrun twice on this machine, as on two, with one process each. Returns what `srun` does."""
    start = [sys.executable, '-m', 'torch.distributed.run', '--nnodes=2', '--nproc_per_node=1']
    start += ['--rdzv-backend=c10d', f'--rdzv-endpoint=localhost:{free_port()}', '--rdzv-id=two']
    start += ['--log-dir=logs', '-m', 'wrcan_arch']
    options = {'stdout': subprocess.PIPE, 'stderr': subprocess.STDOUT, 'text': True, 'env': environment()}
    started = [subprocess.Popen([*start, *map(str, command)], **options) for _ in range(2)]
    said = [each.communicate()[0] for each in started]
    return [each.returncode for each in started], ''.join(said)


def own_lines(text):
    """Return the lines of a job's output that are our messages."""
    return [line for line in text.splitlines() if line.startswith('basicsr ')]


@pytest.fixture
def job(workplace):
    """A training of twenty iterations with batches of eight, whose only randomness is the draws.

    Adam's eps is large: with 1e-8, a weight of small gradient moves differently where rounding moves a pixel over the
    kink of a ReLU or of L1 (4e-5 after 20 iterations). A sum instead of the mean differs by 3e-3, with 1e-8 by 2e-3.
    """
    text = set_options(Path('train.yml').read_text(), gt_size=16, total_iter=20, save_checkpoint_freq=5, val_freq=20)
    text = text.replace('batch_size_per_gpu: 4', 'batch_size_total: 8').replace('lr: 1e-3,', 'lr: 1e-3, eps: 1e-3,')
    Path('train.yml').write_text(text.replace('amp: off', 'accumulate: 1\n  checkpointing: false\n  amp: off'))
    Path('worker.py').write_text(WORKER)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield workplace
    torch.set_num_threads(threads)


def draws(processes):
    """Return the keys of each iteration's batch, over all processes."""
    batches = {}
    for rank in range(processes):
        for line in Path(f'draws_{rank}').read_text().splitlines():
            iteration, *keys = line.split()
            batches.setdefault(int(iteration), []).extend(keys)
    return batches


@pytest.fixture
def drawn_alone(monkeypatch):
    from wrcan_arch.train.step_guard import StepGuard

    batches, check = {}, StepGuard.check

    def recorded(self, iteration, tensors, keys):
        batches[iteration] = list(keys)
        return check(self, iteration, tensors, keys)

    monkeypatch.setattr(StepGuard, 'check', recorded)
    return batches


@pytest.mark.slow
def test_training_is_the_same_whatever_the_number_of_processes(job, drawn_alone):
    """Compare 1 process, 2 with 2 parts each and 4 with checkpointing; and, bit by bit, 2 of which one is killed.

    The undisturbed processes start as by srun. The others are started, and restarted, by torchrun.
    """
    assert main(['train', '-opt', 'train.yml']) == 0
    alone, curves = read_file(FOLDER / 'models/net_g_latest.pth')['params'], read_curves(FOLDER)
    for count, option in ((4, 'train:checkpointing=true'), (2, 'train:accumulate=2')):
        codes, said = srun(count, 0, 'train', '-opt', 'train.yml', '--force_yml', option, script='worker.py')
        assert codes == [0] * count, said[-3000:]
        for name, value in read_file(FOLDER / 'models/net_g_latest.pth')['params'].items():
            torch.testing.assert_close(value, alone[name], rtol=0, atol=1e-6)
        assert draws(count) == drawn_alone
        ours = read_curves(FOLDER)
        for name, points in curves.losses.items():
            assert ours.losses[name] == [(iteration, pytest.approx(value, rel=1e-3)) for iteration, value in points]
        assert len(list(FOLDER.glob('train_*.log'))) == 1
        for path in Path().glob('draws_*'):
            path.unlink()

    expected = outcome(iteration=20)
    FOLDER.rename('undisturbed')
    command = ('train', '-opt', 'train.yml', '--force_yml', 'train:accumulate=2')
    ended = torchrun(2, *command, dies_at=13, restarts=1)
    assert ended.returncode == 0, ended.stderr[-3000:]
    (line,) = own_lines(ended.stderr)
    assert 'another process is gone or does not answer' in line and '/wrcan_arch/' not in ended.stderr
    assert 'iter: 10.' in ''.join(path.read_text() for path in FOLDER.glob('train_*.log'))
    assert_equal(outcome(iteration=20), expected)


@pytest.mark.slow
def test_test_is_the_same_whatever_the_number_of_processes(job):
    """Six images over 1, 2 (torchrun on two machines) and 4 processes (srun) give the same scores and pictures."""
    torch.manual_seed(0)
    network = WRCAN(num_feat=4, num_group=1, num_block=1)
    Path('experiments/small/models').mkdir(parents=True)
    write_weights(FOLDER / 'models/net_g_best.pth', {'params': network.state_dict()}, {'network_g': network.config})
    assert main(['test', '-opt', 'test.yml']) == 0
    results = Path('results/small_test')

    def left():
        files = {path.name: path.read_text() for path in results.glob('*.csv')}
        result = json.loads((results / 'result_small_set.json').read_text())
        pictures = {path.name: path.read_bytes() for path in results.rglob('*.png')}
        return files, result['metrics'], result['images'], pictures

    expected = left()
    assert len(expected[0]) == 2 and len(expected[3]) == 6
    for start, count in ((torchrun_on_two_machines, 2), (partial(srun, 4), 4)):
        codes, said = start('test', '-opt', 'test.yml')
        assert codes == [0] * count, said[-3000:]
        assert left() == expected and len(list(results.glob('*.log'))) == 1


@pytest.mark.slow
def test_restoring_survives_a_death_and_tells_everything_once(job):
    """One of two processes is killed after its second photograph; torchrun restarts them, and they do the rest.

    Their exit code makes torchrun restart them once more, when all is already done and reported.
    """
    write_weights(Path('net.pth'), {'params': WRCAN(num_feat=4, num_group=1, num_block=1).state_dict()}, {})
    Path('many').mkdir()
    for number in range(12):
        cv2.imwrite(f'many/{number}.png', picture(40, 50, number))
    Path('many/bad.png').write_bytes(b'no picture')
    ended = torchrun(2, 'restore', 'many', '-o', 'out', '-w', 'net.pth', '--skip-existing', dies_at=2, restarts=2)
    assert ended.returncode == 1, ended.stderr[-3000:]
    assert Path('dies').exists() and Path('attempts_0').read_text().split() == ['0', '1', '2']
    assert sorted(path.name for path in Path('out').iterdir()) == sorted(f'{number}.png' for number in range(12))
    assert ended.stderr.count('many/bad.png') == 1
    bars = [each for each in ended.stderr.splitlines() if 'restore: 100%' in each]
    assert len(bars) <= 2 and len(re.findall(r'\d of \d+ restored', ended.stdout)) == 1, ended.stdout
    assert '/wrcan_arch/' not in ended.stderr, 'no traceback of ours'


@pytest.mark.slow
def test_processes_with_different_options_say_so_once(job):
    Path('other.yml').write_text(Path('train.yml').read_text().replace('lr: 1e-3', 'lr: 2e-3'))
    ended = torchrun(2, 'train', '-opt', 'train.yml')
    assert ended.returncode == 1
    (line,) = own_lines(ended.stderr)
    assert 'process 1 sees the options with SHA-256' in line and line.endswith('give all processes the same')
    assert ended.stderr.count(line) == 2, "ours, and the root cause in torchrun's table"
    assert 'Traceback' not in ended.stderr.partition(line)[0] and not FOLDER.exists()


@pytest.mark.slow
def test_bad_request_and_bad_start_are_said_once_and_in_time(job):
    codes, said = srun(2, 'train', '-opt', 'absent.yml')
    assert codes == [2, 2]
    own = [line for line in said.splitlines() if not line.startswith('[W')]  # torch's warnings, as without DNS
    assert own_lines(said) == ['basicsr train: absent.yml: there is no such option file'] == own

    text = Path('train.yml').read_text() + 'dist_params: {timeout: 3}\n'
    Path('train.yml').write_text(text)
    with socket.socket() as other:
        other.bind(('', 0))
        other.listen()
        codes, said = srun(1, 'train', '-opt', 'train.yml', MASTER_PORT=other.getsockname()[1], SLURM_STEP_NUM_TASKS=2)
    assert codes == [2] and re.search(r'^basicsr train: port \d+ of localhost is taken; set MASTER_PORT', said, re.M)
    codes, said = srun(1, 'train', '-opt', 'train.yml', SLURM_STEP_NUM_TASKS=2)
    (line,) = own_lines(said)
    assert codes == [2] and '1 of 2 processes did not reach this point within 3 s: number 1' in line


# The second process fails alone in the fifth iteration; to leave its group, it would wait for the first, as with NCCL.
FAILS_ALONE = """
import os, sys, time
from functools import partial
from wrcan_arch import InputError, cli
from wrcan_arch.train.wrcan_model import WRCANModel

def optimize_parameters(self, iteration, step=WRCANModel.optimize_parameters):
    if iteration == 5:
        raise InputError('a frame is damaged')
    step(self, iteration)

if os.environ['SLURM_PROCID'] == '1':
    from torch import distributed
    wait = partial(time.sleep, 60)
    distributed.get_backend, distributed.destroy_process_group = lambda: 'nccl', wait
    WRCANModel.optimize_parameters = optimize_parameters
    cli.main(sys.argv[1:])
    wait()  # as Python's end would, which destroys the group
sys.exit(cli.main(sys.argv[1:]))
"""


@pytest.mark.slow
def test_a_process_that_fails_alone_under_nccl_says_why_and_ends(job):
    Path('worker.py').write_text(FAILS_ALONE)
    Path('train.yml').write_text(Path('train.yml').read_text() + 'dist_params: {timeout: 15}\n')
    codes, said = srun(2, 'train', '-opt', 'train.yml', script='worker.py')
    assert codes == [1, 2] and own_lines(said) == ['basicsr train: a frame is damaged'], said[-3000:]


# Single functions


def test_processes_agree_or_all_say_on_what_they_do_not():
    store = dist.HashStore()
    teams = [Team(store=store, rank=rank, size=3) for rank in range(3)]
    assert in_threads(*(lambda each=each: each.agree({'a': '1'}) for each in teams)) == [None] * 3
    seen = ({'data': 'x', 'file': 'y'}, {'data': 'x', 'file': 'y'}, {'data': 'z', 'file': 'y'})
    said = in_threads(*(lambda each=each, see=see: each.agree(see) for each, see in zip(teams, seen, strict=True)))
    assert said == ['process 2 sees data z, process 0 x; give all processes the same'] * 3
    said = in_threads(*(lambda each=each: each.agree({f'data{each.rank // 2} with': 'x'}) for each in teams))
    assert said == ['process 2 sees data0 with nothing, process 0 x; give all processes the same'] * 3
    said = in_threads(*(lambda each=each: each.agree({'b': '2'} if each.rank else {}) for each in teams))
    assert said == ['process 1 sees b 2, process 0 nothing; give all processes the same'] * 3
    assert [each.is_first_error() for each in teams[1:]] == [True, False]


def test_process_that_does_not_come_is_named():
    with pytest.raises(InputError, match='2 of 3 processes did not reach this point within 0 s: number 1, 2'):
        Team(store=dist.HashStore(), rank=0, size=3).agree({'a': '1'}, timeout=0)


def test_data_of_other_content_is_told_apart(workplace):
    from wrcan_arch.train.pipelines import with_hash
    from wrcan_arch.train.several_processes import shared_inputs

    opt = with_hash(options.read_options('train.yml').values)
    before = shared_inputs(opt)
    assert shared_inputs(with_hash(options.read_options('train.yml').values)) == before
    Path('data_blur.lmdb/meta_info.txt').write_text('more.png (8,8,3) 1\n')
    changed = {key for key, value in shared_inputs(opt).items() if value != before[key]}
    blurred = {f'datasets:{phase}:dataroot_lq data_blur.lmdb with' for phase in ('train', 'val')}
    assert changed == blurred
    Path('data_sharp.lmdb/manifest.json').write_text('{}')
    changed = {key for key, value in shared_inputs(opt).items() if value != before[key]}
    assert changed - blurred == {f'datasets:{phase}:dataroot_gt data_sharp.lmdb with' for phase in ('train', 'val')}


def test_launcher_is_found(monkeypatch):
    for name in ('TORCHELASTIC_RUN_ID', 'SLURM_STEP_NUM_TASKS'):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv('SLURM_NTASKS', '4')  # as in a batch script, which is one process
    assert launcher_of_environment() == 'none'
    monkeypatch.setenv('SLURM_STEP_NUM_TASKS', '4')
    assert launcher_of_environment() == 'slurm'
    monkeypatch.setenv('TORCHELASTIC_RUN_ID', 'x')  # as under torchrun started by srun
    assert launcher_of_environment() == 'pytorch'


@pytest.mark.parametrize(
    ('hosts', 'first'),
    [('a', 'a'), ('a1,b', 'a1'), ('gpu[03-07,12],b', 'gpu03'), ('n[9,11]-ib,x', 'n9-ib'), ('r[1-2]n[3-4]', 'r1n3')],
)
def test_first_host_of_slurms_list(hosts, first):
    assert first_host(hosts) == first


def test_slurms_variables_become_torchruns(monkeypatch):
    taken = ('RANK', 'WORLD_SIZE', 'LOCAL_RANK', 'MASTER_ADDR', 'MASTER_PORT', 'SLURM_STEP_NODELIST', 'SLURM_STEP_ID')
    for name in taken:
        monkeypatch.setenv(name, '')  # so that monkeypatch restores them
        monkeypatch.delenv(name)
    for name, value in {'PROCID': 5, 'STEP_NUM_TASKS': 8, 'LOCALID': 1, 'NODELIST': 'n[2-3]', 'JOB_ID': 123456}.items():
        monkeypatch.setenv(f'SLURM_{name}', str(value))
    take_slurms_environment()
    names = ('RANK', 'WORLD_SIZE', 'LOCAL_RANK', 'MASTER_ADDR', 'MASTER_PORT')
    assert [os.environ[name] for name in names] == ['5', '8', '1', 'n2', '23456']
    monkeypatch.setenv('MASTER_ADDR', 'chosen')
    take_slurms_environment(port=7)
    assert (os.environ['MASTER_ADDR'], os.environ['MASTER_PORT']) == ('chosen', '7')
    monkeypatch.setenv('SLURM_STEP_ID', '2')
    monkeypatch.delenv('MASTER_PORT')
    take_slurms_environment()
    assert os.environ['MASTER_PORT'] == str(23456 + 2 * 997), 'steps of one job do not meet at one port'
    monkeypatch.delenv('SLURM_LOCALID')
    with pytest.raises(InputError, match='there is no SLURM_LOCALID here; start the processes with srun'):
        take_slurms_environment()


def test_lost_contact_is_no_defect():
    gloo = RuntimeError('[/pytorch/third_party/gloo/gloo/transport/tcp/pair.cc:538] Connection closed by peer [::1]:5')
    assert isinstance(contact_lost(gloo), RunError) and '(Connection closed by peer [::1]:5)' in str(contact_lost(gloo))
    assert contact_lost(dist.DistStoreError('wait timeout')) and contact_lost(RuntimeError('shape mismatch')) is None


def nccl_error(kind, last):
    """As in PyTorch's NCCLUtils.hpp."""
    where = 'NCCL error in: /pytorch/torch/csrc/distributed/c10d/NCCLUtils.cpp:94, unhandled system error'
    return dist.DistBackendError(f'{where} (run with NCCL_DEBUG=INFO for details), NCCL version 2.27.5\n{kind}\n{last}')


def test_nccls_own_error_is_said_and_not_taken_for_a_lost_process():
    system = 'ncclSystemError: System call (e.g. socket, malloc) or external library call failed or device error. '
    fault = nccl_error(system, 'Last error:\nBootstrap : no socket interface found')
    assert str(contact_lost(fault)) == 'NCCL: Bootstrap : no socket interface found'
    reason = 'Error while creating shared memory segment /dev/shm/nccl-AbCdEf (size 9637888)'
    said = str(contact_lost(nccl_error(system, f'Last error:\n{reason}')))
    assert said == f'NCCL: {reason}; /dev/shm may be full: enlarge it (docker run --shm-size=1g)'
    assert 'another process is gone' in str(contact_lost(nccl_error(system, 'Last error:\n')))
    remote = 'ncclRemoteError: A call failed possibly due to a network error or a remote process exiting prematurely.'
    lost = 'socketProgress: Connection closed by remote peer host<40001>'
    said = str(contact_lost(nccl_error(remote, f'Last error:\n{lost}')))
    assert said.startswith(f'another process is gone or does not answer ({lost}); what was saved')


def test_each_process_takes_its_own_gpu(monkeypatch):
    taken = []
    two = SimpleNamespace(device_count=lambda: 2, set_device=taken.append)
    monkeypatch.setattr(processes, 'torch', SimpleNamespace(cuda=two))
    monkeypatch.setenv('LOCAL_RANK', '1')
    processes.take_own_gpu()
    assert taken == [1]
    monkeypatch.setenv('LOCAL_RANK', '2')
    with pytest.raises(InputError, match='no GPU is left for process 2 of this machine, which has 2; start one'):
        processes.take_own_gpu()


@pytest.fixture
def group():
    dist.init_process_group('gloo', store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.mark.parametrize(('accumulate', 'compression'), [(1, 'none'), (4, 'none'), (4, 'bf16')])
def test_gradients_are_reduced_once_a_step(group, tmp_path, accumulate, compression):
    """However many parts the batch is split into; with compression they are rounded to bf16."""
    opt = yaml.load(SMALL_TRAINING, options.OptionLoader)
    opt |= {'path': {'experiments_root': str(tmp_path)}, 'dist': True, 'rank': 0, 'world_size': 2, 'is_train': True}
    opt['train'] |= {'accumulate': accumulate, 'gradient_compression': compression}
    model = build_model(opt)
    reduced = []
    torch.manual_seed(0)
    data = {name: torch.rand(4, 3, 16, 16) for name in ('lq', 'gt', 'gt_jpeg')}
    sizes = sum(each.numel() for each in model.net_g.parameters())
    if compression == 'none':

        def counted(_, bucket):
            reduced.append(bucket.buffer().numel())
            future = torch.futures.Future()
            future.set_result(bucket.buffer())
            return future

        model.net_g.register_comm_hook(None, counted)
    for iteration in range(1, 4):
        model.feed_data(data)
        model.optimize_parameters(iteration)
    if compression == 'none':
        assert sum(reduced) == (3 + 1) * sizes, 'and once for DDP to learn the graph'
    else:
        for each in model.net_g.parameters():
            assert torch.equal(each.grad, each.grad.bfloat16().float())
    assert model.net_g.static_graph and model.net_g.gradient_as_bucket_view


def test_one_process_alone_splits_its_batch_under_torchrun_too(group, tmp_path):
    opt = yaml.load(SMALL_TRAINING, options.OptionLoader)
    opt |= {'path': {'experiments_root': str(tmp_path)}, 'dist': True, 'rank': 0, 'world_size': 1, 'is_train': True}
    opt['train']['accumulate'] = 'auto'
    model = build_model(opt)
    backward = model._backward

    def backward_in_little_memory(fraction, piece):
        losses = backward(fraction, piece)
        if len(piece['lq']) > 1 and model.last_iter == 2:  # where DDP could not begin a step anew
            raise torch.cuda.OutOfMemoryError('CUDA out of memory. Tried')
        return losses

    model._backward = backward_in_little_memory
    for iteration in (1, 2, 3):
        model.feed_data({name: torch.rand(4, 3, 16, 16) for name in ('lq', 'gt', 'gt_jpeg')})
        model.optimize_parameters(iteration)
        assert model.accumulate == (1 if iteration == 1 else 4)


def test_damaged_variables_are_said(monkeypatch):
    monkeypatch.setattr(processes, '_teams', {})
    for name, value in {'WORLD_SIZE': '2', 'RANK': '1', 'MASTER_ADDR': 'localhost', 'MASTER_PORT': 'x'}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(InputError, match='the processes cannot reach each other'):
        Team.from_environment()
