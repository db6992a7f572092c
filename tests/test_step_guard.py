"""Steps that are not finite leave no trace in the weights and are counted; too many end the run."""

import errno
import multiprocessing
import os
import signal
from copy import deepcopy
from pathlib import Path
from unittest import mock

import pytest
import torch
import yaml
from basicsr.models import build_model
from conftest import SMALL_TRAINING

from wrcan_arch import InputError
from wrcan_arch.cli import main
from wrcan_arch.train import options, run_folder
from wrcan_arch.train.step_guard import StepGuard
from wrcan_arch.train.stopping import StopReasons, UntilUnreadable, as_input_error, ending_data_workers, signals_ask


@pytest.fixture(autouse=True)
def one_thread():
    """Use one thread: with networks this small more only wait for each other."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def test_a_signal_is_heard_where_nobody_reads_what_it_prints():
    stop = StopReasons()
    with signals_ask(stop), mock.patch('os.write', side_effect=BrokenPipeError) as write:
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop.asked_by == signal.SIGTERM
        os.kill(os.getpid(), signal.SIGTERM)
    assert write.call_count == 1, 'the notice is given once'


def test_the_folder_of_the_workers_sockets_is_there_in_each_run_of_a_process(tmp_path, monkeypatch):
    monkeypatch.setitem(multiprocessing.current_process()._config, 'tempdir', str(tmp_path / 'gone/pymp'))
    with ending_data_workers():
        assert (tmp_path / 'gone/pymp').is_dir()


def test_a_signal_that_is_ignored_stays_ignored():
    """A shell makes its background jobs ignore Ctrl+C, which is meant for the job in the foreground."""
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        stop = StopReasons()
        with signals_ask(stop):
            os.kill(os.getpid(), signal.SIGINT)
            assert stop.asked_by is None
        assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)


def test_a_first_batch_that_cannot_be_read_is_bad_input():
    def batches():
        yield None.astype

    with pytest.raises(InputError, match="^the next batch cannot be read .*no attribute 'astype'"):
        list(UntilUnreadable(batches(), StopReasons(), saves_first=True))


def test_the_reason_of_a_worker_is_the_last_line_of_its_traceback():
    error = RuntimeError("Caught KeyError in DataLoader worker process 0.\nTraceback:\n  ...\nKeyError: 'gt'\n")
    assert str(as_input_error(error)) == "the next batch cannot be read (KeyError: 'gt')"
    assert str(as_input_error(MemoryError(), 'image 3')) == 'image 3 cannot be read (MemoryError)'


@pytest.mark.parametrize(
    'error',
    [
        OSError(errno.ENOSPC, 'No space left on device'),  # at the start, when /dev/shm has no room for a lock
        RuntimeError('Caught RuntimeError in worker.\nunable to allocate shared memory(shm) for file </torch_1>: …'),
        RuntimeError('worker is killed by signal: Bus error. … out of shared memory. Please try to raise your limit.'),
    ],
)
def test_a_small_dev_shm_is_not_taken_for_a_full_disk(error):
    said = str(as_input_error(error))
    assert 'docker run --shm-size=1g' in said and 'num_worker_per_gpu' in said
    assert '/dev/shm' not in str(as_input_error(OSError(errno.ENOSPC, 'No space left on device', 'a_cache')))


@pytest.fixture
def opt(tmp_path):
    opt = yaml.load(SMALL_TRAINING, options.OptionLoader)
    opt['train'] |= {'ema_decay': 0.5, 'accumulate': 2}
    return {**opt, 'path': {'experiments_root': str(tmp_path)}, 'dist': False, 'rank': 0, 'is_train': True}


def batch(value=None):
    torch.manual_seed(0)
    data = {name: torch.rand(4, 3, 16, 16) for name in ('lq', 'gt', 'gt_jpeg')}
    if value is not None:
        data['lq'][3, 1, 2, 3] = value
    return {**data, 'key': ['first', 'second', 'third', 'fourth']}


def step(model, iteration, data):
    model.feed_data(data)
    model.optimize_parameters(iteration)


def inside(model):
    """Return copies of the weights, the averaged weights and the optimizer's state."""
    parts = model.net_g.state_dict(), model.net_g_ema.state_dict(), model.optimizer_g.state_dict()['state']
    return deepcopy(parts)


@pytest.mark.parametrize('value', [float('nan'), float('inf')])
@pytest.mark.parametrize(
    ('amp', 'optimizer'),
    [
        ('off', {}), ('bf16', {}), ('fp16', {}), ('off', {'fused': False}), ('fp16', {'fused': False}),
        ('off', {'type': 'Muon'}),
    ],
)  # fmt: skip
def test_broken_step_leaves_no_trace(opt, amp, optimizer, value):
    opt['train']['amp'] = amp
    opt['train']['optim_g'] |= optimizer
    model = build_model(opt)
    step(model, 1, batch())
    before = inside(model)
    step(model, 2, batch(value))
    for then, now in zip(before, inside(model), strict=True):
        assert str(then) == str(now)
        torch.testing.assert_close(now, then, rtol=0, atol=0)
    with mock.patch('wrcan_arch.train.step_guard.logger.warning') as warning:
        assert model.guard.verdict(made=2) is None
    warning.assert_called_once_with(
        'Iteration 2: a loss or a gradient is not finite, the step is skipped (1 so far). '
        'Samples: first, second, third, fourth'
    )
    step(model, 3, batch())
    assert model.guard.verdict(made=2) is None and model.guard.in_a_row == 0
    assert not torch.equal(inside(model)[0]['head.weight'], before[0]['head.weight']), 'the next step is made'


def test_fp16_skips_a_step_whose_loss_alone_is_broken(opt):
    """It is reported as skipped, so it has to be, although the scaler looks only at gradients."""
    opt['train']['amp'] = 'fp16'
    model = build_model(opt)
    step(model, 1, batch())
    before = inside(model)
    with mock.patch.object(model.guard, 'check', return_value=torch.ones(())):
        step(model, 2, batch())
    for then, now in zip(before, inside(model), strict=True):
        torch.testing.assert_close(now, then, rtol=0, atol=0)


def test_broken_loss_with_sound_gradients_is_found_too():
    guard = StepGuard(limit=1, device=torch.device('cpu'), dist=False)
    assert guard.check(1, [torch.tensor(float('inf')), torch.ones(3)], []) == 1
    assert guard.check(2, [torch.tensor(1.0), torch.full((3,), 1e18)], []) == 0, 'large is not infinite'
    assert guard.check(3, [torch.tensor(1.0), torch.full((3,), 1e20)], []) == 1, "Adam's second moment would be"
    assert guard.verdict(made=2) is None and (guard.skipped, guard.in_a_row) == (2, 1)


def test_host_reads_a_device_one_step_late():
    guard = StepGuard(limit=0, device=torch.device('cuda'), dist=False)  # the tensors are on the CPU
    guard.check(1, [torch.tensor(float('nan'))], [])
    assert guard.verdict(made=2) is None
    guard.check(2, [torch.tensor(1.0)], [])
    assert '1 steps in a row' in str(guard.verdict(made=2))


def test_too_many_in_a_row_end_the_run_with_the_weights_from_before(workplace, capsys, monkeypatch):
    check = StepGuard.check

    def broken_from_5_on(self, iteration, tensors, keys):
        return check(self, iteration, [torch.tensor(float('nan'))] if iteration >= 5 else tensors, keys)

    Path('train.yml').write_text(SMALL_TRAINING.replace('  amp: off', '  amp: off\n  max_skipped_steps: 2'))
    assert main(['train', '-opt', 'train.yml', '--force_yml', 'train:total_iter=4', 'val:val_freq=100']) == 0
    before = (workplace / 'experiments/small').rename('good')
    monkeypatch.setattr(StepGuard, 'check', broken_from_5_on)
    assert main(['train', '-opt', 'train.yml', '--force_yml', 'val:val_freq=100']) == 1
    said = capsys.readouterr().err.strip().splitlines()[-1]
    assert said.startswith('basicsr train: 3 steps in a row had a loss or a gradient that is not finite')
    folder = Path('experiments/small')
    assert run_folder.iterations(folder) == [7, 6]
    saved = run_folder.read_pair(folder, 7, ['g'])
    latest = run_folder.weights_path(before, 'latest')
    assert run_folder.checkpoint.read_file(latest)['metadata']['checksum'] == saved['weights']
