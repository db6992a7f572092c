"""A run that is stopped and resumed ends with the bits of an undisturbed one. benchmarks/chaos.py kills at random."""

import math
import multiprocessing
import os
import re
import shutil
import signal
import time
from pathlib import Path
from unittest import mock

import pytest
import torch
from conftest import set_options, train
from forked import ended, srun, start
from runs import FOLDER, assert_equal, outcome, stop_at

from wrcan_arch import InputError, WRCANModel
from wrcan_arch.checkpoint import read_file
from wrcan_arch.errors import RunError
from wrcan_arch.train import run_folder
from wrcan_arch.train.step_guard import StepGuard

CASES = {
    'fp32': ({}, 0, 0),
    'averaged, warm-up, workers': ({'ema_decay': 0.9, 'warmup_iter': 7}, 2, 1),
    'bf16, accumulated': ({'amp': 'bf16', 'accumulate': 2}, 1, 2),
    'fp16': ({'amp': 'fp16', 'ema_decay': 0.5}, 1, 0),
    'cosine': ({'scheduler': '{type: CosineAnnealingRestartLR, periods: [10], eta_min: 1e-6}'}, 0, 2),
}


@pytest.mark.parametrize(('changes', 'before', 'after'), CASES.values(), ids=CASES.keys())
def test_stopped_and_resumed_run_is_the_undisturbed_one(quick, capsys, changes, before, after):
    """SIGTERM stops it in iteration 5, in the middle of an epoch; most cases resume with another number of workers."""
    changes = {**changes, 'save_checkpoint_freq': 5}
    Path('train.yml').write_text(set_options(Path('train.yml').read_text(), **changes))
    assert train('logger:save_checkpoint_freq=10') == 0
    expected = outcome()
    FOLDER.rename('undisturbed')

    with stop_at(5):
        assert train(f'datasets:train:num_worker_per_gpu={before}', 'logger:save_checkpoint_freq=10') == 143
    assert 'basicsr train: stopped by SIGTERM; go on with --auto_resume' in capsys.readouterr().err
    assert run_folder.iterations(FOLDER) == [5]
    assert train(f'datasets:train:num_worker_per_gpu={after}', resume=True) == 0
    assert_equal(outcome(), expected)
    if changes.get('amp') == 'fp16':
        assert expected[0]['scaler']['_growth_tracker'] > 0, 'there is a state of the scaler to keep'


@pytest.mark.parametrize('val_freq', [4, 6])
def test_finished_run_is_trained_on_as_the_option_file_says_by_then(quick, val_freq):
    """The last iteration is always saved; a resume takes the schedule from the option file, so the end may move."""
    text = set_options(Path('train.yml').read_text(), total_iter=6, save_checkpoint_freq=4, val_freq=val_freq)
    Path('train.yml').write_text(set_options(text, scheduler='{type: CosineAnnealingRestartLR}'))
    assert train() == 0
    assert run_folder.iterations(FOLDER) == [6, 4]
    state = run_folder.read_pair(FOLDER, 6, ['g'])
    assert state['best_metric_results']['small_val'] and state['schedulers'][0]['periods'] == [6]
    assert train('train:total_iter=9', resume=True) == 0
    assert run_folder.iterations(FOLDER) == [9, 8, 6, 4]
    rate = run_folder.read_pair(FOLDER, 9, ['g'])['optimizers'][0]['param_groups'][0]['lr']
    assert rate == pytest.approx(0.5 * 1e-3 * (1 + math.cos(math.pi * 8 / 9)))
    assert train('train:total_iter=10', 'val=null', resume=True) == 0
    assert 'Trained: ' in max(FOLDER.glob('train_*.log')).read_text()
    log = min(FOLDER.glob('train_*.log')).read_text()
    assert re.search(r'Best psnr: [\d.]+ at iteration \d, .*experiments/small/models/net_g_best.pth', log)


def test_metric_that_fails_ends_a_run_with_what_is_learnt(quick, capsys):
    Path('train.yml').write_text(set_options(Path('train.yml').read_text(), save_checkpoint_freq=10))
    singular = ArithmeticError('SVD did\nnot converge')  # such as NumPy raises in NIQE
    with mock.patch('wrcan_arch.train.scoring.calculate_metric', side_effect=singular):
        assert train() == 1
    said = capsys.readouterr().err.splitlines()[-1]
    assert "val:metrics:psnr of '" in said
    assert 'ArithmeticError: SVD did not converge; leave that metric or image out' in said
    assert run_folder.iterations(FOLDER) == [4], 'the first that is validated'


@pytest.mark.parametrize('schedule', [{}, {'warmup_iter': 8}], ids=['', 'warm-up'])
def test_memory_that_runs_out_costs_no_iteration(quick, capsys, schedule):
    text = set_options(Path('train.yml').read_text(), save_checkpoint_freq=10, **schedule)
    Path('train.yml').write_text(text)
    assert train() == 0
    expected = outcome()
    FOLDER.rename('undisturbed')
    accumulate = WRCANModel._accumulate_gradients

    def accumulate_or_fail(self, parts):
        losses = accumulate(self, parts)
        if self.last_iter == 6:  # where MultiStepLR halves the rate
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes.")
        return losses

    with mock.patch.object(WRCANModel, '_accumulate_gradients', accumulate_or_fail):
        assert train() == 1
    said = capsys.readouterr().err.splitlines()[-1]
    assert 'the memory does not hold 2 patches in 1 part(s)' in said and said.endswith('go on with --auto_resume')
    assert run_folder.iterations(FOLDER) == [5]
    assert train(resume=True) == 0
    assert_equal(outcome(), expected)


@pytest.mark.parametrize(('workers', 'prefetch'), [(0, '~'), (1, '~'), (1, 'cpu')])
def test_frame_that_turns_out_unreadable_costs_no_iteration(quick, capsys, workers, prefetch):
    text = set_options(Path('train.yml').read_text(), num_worker_per_gpu=workers, save_checkpoint_freq=10)
    text = text.replace('gt_size: 16\n', f'gt_size: 16\n    prefetch_mode: {prefetch}\n', 1)
    Path('train.yml').write_text(text.replace('{type: lmdb}', '{type: disk}').replace('.lmdb', ''))
    assert train() == 0
    expected = outcome()
    FOLDER.rename('undisturbed')
    check = StepGuard.check

    def check_and_damage(self, current, *rest):
        if current == 2:
            Path('data_blur').rename('away')
            shutil.copytree('data_sharp', 'data_blur')  # with no .jpg in it
        return check(self, current, *rest)

    with mock.patch.object(StepGuard, 'check', check_and_damage):
        assert train() == 1
    said = capsys.readouterr().err.splitlines()[-1]
    assert re.fullmatch(r'basicsr train: .*data_blur.*; the run ends; fix that and go on with --auto_resume', said)
    (iteration,) = run_folder.iterations(FOLDER)
    assert 2 <= iteration < 10
    shutil.rmtree('data_blur')
    Path('away').rename('data_blur')
    assert train(resume=True) == 0
    assert_equal(outcome(), expected)


def test_sockets_that_somebody_tidies_away_cost_no_iteration(quick, capsys, monkeypatch):
    text = set_options(Path('train.yml').read_text(), num_worker_per_gpu=1, total_iter=100, save_checkpoint_freq=100)
    Path('train.yml').write_text(text)
    Path('pymp').mkdir()
    monkeypatch.setitem(multiprocessing.current_process()._config, 'tempdir', 'pymp')
    check = StepGuard.check

    def check_and_tidy(self, current, *rest):
        if current == 2:
            shutil.rmtree('pymp')
        return check(self, current, *rest)

    with mock.patch.object(StepGuard, 'check', check_and_tidy):
        assert train() == 1
    assert capsys.readouterr().err.splitlines()[-1] == (
        'basicsr train: the next batch cannot be read ([Errno 2] No such file or directory); pymp, through which data '
        'workers pass batches, was removed: it has to stay during a run; the run ends; '
        'fix that and go on with --auto_resume'
    )
    assert run_folder.iterations(FOLDER)[0] >= 2


def test_data_worker_that_dies_costs_no_iteration(quick, capsys):
    text = set_options(Path('train.yml').read_text(), num_worker_per_gpu=1, save_checkpoint_freq=10)
    Path('train.yml').write_text(text)
    check = StepGuard.check

    def check_and_kill(self, current, *rest):
        if current == 2:
            for worker in multiprocessing.active_children():
                worker.kill()
            time.sleep(0.5)  # so that the signal arrives during this step
        return check(self, current, *rest)

    with mock.patch.object(StepGuard, 'check', check_and_kill):
        assert train() == 1
    said = capsys.readouterr().err.splitlines()[-1]
    assert re.fullmatch(
        r'basicsr train: the next batch cannot be read \(DataLoader worker .*\); the run ends; .*', said
    )
    (iteration,) = run_folder.iterations(FOLDER)
    assert 2 <= iteration < 10
    assert train(resume=True) == 0


def test_run_from_an_older_state_is_the_one_that_is_resumed(quick):
    Path('train.yml').write_text(set_options(Path('train.yml').read_text(), save_checkpoint_freq=2, total_iter=6))
    assert train() == 0 and run_folder.iterations(FOLDER) == [6, 4, 2]
    older = f'path:resume_state={FOLDER}/training_states/2.state'
    assert train(older, 'train:total_iter=3') == 0
    assert run_folder.iterations(FOLDER) == [3, 2]
    names = {path.name for path in FOLDER.rglob('*.after_2')}
    aside = ('4.state', '6.state', 'net_g_4.pth', 'net_g_6.pth', 'net_g_best.pth')
    assert names == {f'{name}.after_2' for name in aside}
    assert train(resume=True) == 0 and run_folder.iterations(FOLDER) == [6, 4, 3, 2]
    assert train(older, 'train:total_iter=3', 'train:optim_g={type: Muon, lr: 1e-2}') == 2
    assert run_folder.iterations(FOLDER) == [6, 4, 3, 2], 'a run that does not begin puts nothing aside'
    assert train(older, 'train:total_iter=3') == 0 and len([*FOLDER.rglob('*.after_2_')]) == 5, 'nothing is overwritten'


def test_state_that_is_named_is_taken_where_auto_resume_finds_none(quick, capsys):
    Path('train.yml').write_text(set_options(Path('train.yml').read_text(), save_checkpoint_freq=2, total_iter=4))
    assert train() == 0
    FOLDER.rename('other')
    assert train('path:resume_state=other/training_states/2.state', resume=True) == 2
    said = capsys.readouterr().err.splitlines()[-1]
    assert said == (
        'basicsr train: path:resume_state: other/training_states/2.state is of another experiment; give the run the '
        'name other, or begin a new one with its weights as path:pretrain_network_g'
    )


def test_resuming_after_a_run_without_auto_resume_names_the_archived_training(quick, capsys):
    """A run without --auto_resume puts the trained one aside; the next run with the flag must not start anew."""
    assert train('train:total_iter=4') == 0
    with mock.patch.object(StepGuard, 'verdict', return_value=RunError('stopped')):
        assert train('train:total_iter=4') == 1
    (archive,) = Path('experiments').glob('small_archived_*')
    capsys.readouterr()
    assert train('train:total_iter=8', resume=True) == 2
    said = capsys.readouterr().err.splitlines()[-1]
    assert said.endswith(
        f'experiments/small has no training state, but {archive.name} beside it has: to go on from that, move '
        f'small away, rename {archive.name} to small and run this again; to start over, leave --auto_resume out'
    )
    assert sorted(Path('experiments').glob('s*')) == [FOLDER, archive], 'nothing more was put aside'
    FOLDER.rename('stopped')
    archive.rename(FOLDER)
    assert train('train:total_iter=8', resume=True) == 0
    assert run_folder.iterations(FOLDER) == [8, 4]


def test_resume_with_another_network_is_refused_before_anything_is_written(quick, capsys):
    assert train('train:total_iter=4', 'train:ema_decay=0.9', 'logger:save_checkpoint_freq=2') == 0
    before = {path: path.read_bytes() for path in Path('experiments').rglob('*') if path.is_file()}
    capsys.readouterr()
    assert train('train:total_iter=8', 'network_g:num_feat=8', 'logger:keep_last=1', resume=True) == 2
    said = capsys.readouterr().err.splitlines()[-1]
    assert said.endswith('net_g_4.pth: not the weights of the network in the option file; set network_g:num_feat=4')
    assert {path: path.read_bytes() for path in Path('experiments').rglob('*') if path.is_file()} == before


def test_muon_may_leave_the_other_weights_and_be_resumed(quick):
    held = 'train:optim_g={type: Muon, lr: 1e-2, adam_lr: 0.0}'
    assert train('train:total_iter=4', held) == 0
    assert train('train:total_iter=6', held, resume=True) == 0
    groups = read_file(FOLDER / 'training_states/6.state')['optimizers'][0]['param_groups']
    assert [group['lr'] for group in groups] == [0.5 * 1e-2, 0.0]


def test_validation_that_fails_costs_no_iteration(quick, capsys):
    Path('train.yml').write_text(set_options(Path('train.yml').read_text(), save_checkpoint_freq=10, val_freq=4))
    assert train() == 0
    expected = read_file(FOLDER / 'models/net_g_10.pth')['params']
    FOLDER.rename('undisturbed')
    with mock.patch('wrcan_arch.train.scoring.score_images', side_effect=InputError("'x' is not a readable image")):
        assert train() == 1
    said = capsys.readouterr().err.splitlines()[-1]
    assert said.endswith("train: 'x' is not a readable image; the run ends; fix that and go on with --auto_resume")
    assert run_folder.iterations(FOLDER) == [4]
    assert train(resume=True) == 0
    for name, tensor in read_file(FOLDER / 'models/net_g_10.pth')['params'].items():
        assert torch.equal(tensor, expected[name])


@pytest.mark.slow
def test_two_processes_stop_and_resume_exactly(quick):
    """They agree on the last iteration and on a step to skip, though only one process has a reason."""
    text = set_options(Path('train.yml').read_text(), ema_decay=0.9, batch_size_per_gpu=1, save_checkpoint_freq=10)
    Path('train.yml').write_text(text)
    Path('stopping.py').write_text(  # rank 1 has a broken loss in iteration 2, and may be asked to stop in iteration 5
        'import os, signal, sys, time, torch\nfrom pathlib import Path\nfrom wrcan_arch import cli\n'
        'from wrcan_arch.train.recorded_model import RecordedModel\n'
        'from wrcan_arch.train import replacements\n'
        'from wrcan_arch.train.step_guard import StepGuard\n'
        'check, save = StepGuard.check, RecordedModel._save_training_state\n'
        'stop = sys.argv.pop(1) == "stop"\n'
        'def checked(self, current, tensors, keys):\n'
        '    if os.environ["RANK"] == "1" and stop and current == 5: os.kill(os.getpid(), signal.SIGTERM)\n'
        '    if os.environ["RANK"] == "1" and current == 2: tensors[0] = tensors[0] * float("nan")\n'
        '    return check(self, current, tensors, keys)\n'
        'def slowly(*arguments):\n'
        '    time.sleep(stop)\n'
        '    save(*arguments)\n'
        'StepGuard.check, RecordedModel._save_training_state = checked, slowly\n'
        'code = cli.main(sys.argv[1:])\n'
        'assert replacements._kept, "the model, freed last, may wait for ever for a thread of the group"\n'
        'if os.environ["RANK"] == "1": print("then there were", *Path("experiments").rglob("5.state"))\n'
        'sys.exit(code)\n'
    )

    def run(what, *flags):
        return srun(2, what, 'train', '-opt', 'train.yml', *flags, script='stopping.py')

    codes, said = run('go')
    assert codes == [0, 0], said[-3000:]
    expected = outcome()
    assert expected[0]['optimizers'][0]['state'][0]['step'] == 9, 'one of ten was skipped'
    skipped = re.search(r'Iteration 2: .* the step is skipped .*Samples: (.*)', said)
    assert len(set(skipped[1].split(', '))) == 2, "each process's"
    FOLDER.rename('undisturbed')
    codes, said = run('stop')
    assert codes == [143, 143], said[-3000:]
    assert run_folder.iterations(FOLDER) == [5]
    assert re.search(r'^then there were .*5\.state$', said, re.M), 'neither ends before it is saved'
    codes, said = run('go', '--auto_resume')
    assert codes == [0, 0], said[-3000:]
    assert_equal(outcome(), expected)


@pytest.mark.slow
@pytest.mark.parametrize('val_freq', [4, 10], ids=['in validation', 'in training'])
def test_frame_that_turns_out_unreadable_ends_two_processes_too(quick, val_freq):
    text = set_options(Path('train.yml').read_text(), batch_size_per_gpu=1, save_checkpoint_freq=2, val_freq=val_freq)
    Path('train.yml').write_text(text.replace('{type: lmdb}', '{type: disk}').replace('.lmdb', ''))
    Path('damaging.py').write_text(
        'import os, pathlib, shutil, sys\nfrom wrcan_arch import cli\n'
        'from wrcan_arch.train.step_guard import StepGuard\n'
        'check = StepGuard.check\n'
        'def checked(self, current, tensors, keys):\n'
        '    if os.environ["RANK"] == "1" and current == 4:\n'
        '        pathlib.Path("data_blur").rename("away")\n'
        '        shutil.copytree("data_sharp", "data_blur")\n'  # with no .jpg in it
        '    return check(self, current, tensors, keys)\n'
        'StepGuard.check = checked\n'
        'sys.exit(cli.main(sys.argv[1:]))\n'
    )
    codes, said = srun(2, 'train', '-opt', 'train.yml', script='damaging.py')
    assert codes == [1, 1], said[-3000:]
    (line,) = [line for line in said.splitlines() if line.startswith('basicsr ')]
    assert 'data_blur' in line and line.endswith('; the run ends; fix that and go on with --auto_resume')
    assert run_folder.iterations(FOLDER)[0] in (2, 4)


@pytest.mark.slow
@pytest.mark.parametrize('error', ['InputError', 'ArithmeticError'])
def test_validation_that_fails_in_one_process_ends_both_and_is_saved(quick, error):
    text = set_options(Path('train.yml').read_text(), batch_size_per_gpu=1, save_checkpoint_freq=4, val_freq=4)
    Path('train.yml').write_text(text)
    Path('failing.py').write_text(
        'import os, sys, time\nfrom pathlib import Path\nfrom wrcan_arch import InputError, cli\n'
        'from wrcan_arch.train import scoring\n'
        'from wrcan_arch.train.recorded_model import RecordedModel\n'
        'share, save = scoring.score_share, RecordedModel._save_training_state\n'
        'def scored(*arguments):\n'
        f'    if os.environ["RANK"] == "1": raise {error}("one frame is broken")\n'
        '    return share(*arguments)\n'
        'def slowly(*arguments):\n'
        '    time.sleep(1)\n'
        '    save(*arguments)\n'
        'scoring.score_share, RecordedModel._save_training_state = scored, slowly\n'
        'code = cli.main(sys.argv[1:])\n'
        'if os.environ["RANK"] == "1": print("then there were", *Path("experiments").rglob("4.state"))\n'
        'sys.exit(code)\n'
    )
    codes, said = srun(2, 'train', '-opt', 'train.yml', script='failing.py')
    assert codes == [1, 1], said[-3000:]
    if error == 'InputError':
        (line,) = [line for line in said.splitlines() if line.startswith('basicsr ')]
        assert line == 'basicsr train: one frame is broken; the run ends; fix that and go on with --auto_resume'
    else:
        assert 'SharedError: ArithmeticError: one frame is broken' in said
    assert re.search(r'^then there were .*4\.state$', said, re.M), 'neither ends before it is saved'


def test_ctrl_c_saves_too_and_has_its_own_exit_code(quick, capsys):
    with stop_at(3, signal.SIGINT):
        assert train() == 130
    assert 'stopped by SIGINT' in capsys.readouterr().err and run_folder.iterations(FOLDER) == [3]
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler, 'given back'


def test_ctrl_c_before_the_first_iteration_promises_nothing(quick, capfd):
    """It comes twice while the weights to train on are scored; only one answer is printed."""

    def stop(*_):
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)
        return {'photo0_000': {'psnr': 20.0}}, 1.0

    assert train('train:total_iter=2', 'logger:save_checkpoint_freq=5') == 0
    FOLDER.rename('before')
    with mock.patch('wrcan_arch.train.scoring.score_images', side_effect=stop):
        assert train('path:pretrain_network_g=before/models/net_g_latest.pth') == 130
    said = capfd.readouterr().err
    assert 'stopped by SIGINT; no iteration was made, so nothing is saved' in said and said.count('Ctrl+') == 1
    assert train('train:total_iter=2', resume=True) == 0
    assert f'{FOLDER.name} had no training state to go on from' in max(FOLDER.glob('train_*.log')).read_text()


@pytest.mark.slow
@pytest.mark.parametrize('number', [signal.SIGTERM, signal.SIGHUP])
def test_signal_to_the_whole_group_finds_the_data_workers_at_work(quick, number):
    """So do Ctrl+C, a closed terminal and some schedulers: a worker that ended first would end the run."""
    Path('train.yml').write_text(set_options(Path('train.yml').read_text(), total_iter=100_000, num_worker_per_gpu=2))
    Path('t').mkdir()
    Path('own_group.py').write_text(
        'import multiprocessing, os, sys, tempfile\nfrom wrcan_arch import cli\n'
        'tempfile.tempdir = "t"\n'  # a longer path would not do for sockets
        'multiprocessing.current_process()._config.pop("tempdir", None)\n'  # of the process that this is forked from
        'os.setsid()\nsys.exit(cli.main(sys.argv[1:]))\n'
    )
    overrides = ('logger:save_checkpoint_freq=50_000', 'val:val_freq=50_000')
    said = Path('said.txt')
    with start('train', '-opt', 'train.yml', '--force_yml', *overrides, script='own_group.py') as run:
        while not (said.exists() and re.search(r'iter: +20,', said.read_text())):
            time.sleep(0.05)
            assert run.is_alive(), said.read_text()[-3000:]
        os.killpg(run.pid, number)
        assert ended(run) == 128 + number, said.read_text()[-3000:]
    assert 'Traceback' not in said.read_text()
    assert said.read_text().strip().endswith(f'stopped by {number.name}; go on with --auto_resume')
    (iteration,) = run_folder.iterations(FOLDER)
    assert iteration >= 20
    assert not list(Path('t').iterdir()), 'the workers were killed, but not their folder of sockets'


def test_rates_of_a_resumed_run_are_those_of_its_options(quick):
    halved = 'train:scheduler={type: MultiStepLR, milestones: [1], gamma: 0.5}'
    assert train('train:total_iter=2', halved) == 0
    changed = ('train:optim_g:lr=0.5', 'train:optim_g:weight_decay=0.25', 'train:optim_g:betas=[0.5, 0.6]')
    assert train('train:total_iter=3', halved, *changed, resume=True) == 0
    group = read_file(FOLDER / 'training_states/3.state')['optimizers'][0]['param_groups'][0]
    assert (group['lr'], group['weight_decay'], list(group['betas'])) == (0.25, 0.25, [0.5, 0.6])


@pytest.mark.parametrize(
    ('before', 'after', 'factors'),
    [
        (['train:warmup_iter=8'], [], [1, 1, 0.5]),
        ([], ['train:scheduler={type: MultiStepLR, milestones: [2, 4], gamma: 0.5}'], [0.5, 0.25, 0.25]),
        (['train:scheduler={type: CosineAnnealingRestartLR}'], [], [1, 1, 0.5]),
    ],
    ids=['no warm-up any more', 'another milestone', 'another schedule'],
)
def test_schedule_of_a_resumed_run_is_that_of_its_options(quick, before, after, factors):
    assert train('train:total_iter=3', *before) == 0
    assert train('train:total_iter=6', *after, resume=True) == 0
    rates = re.findall(r'lr:\((\S+),\)', max(FOLDER.glob('train_*.log')).read_text())
    assert [float(each) for each in rates] == pytest.approx([factor * 1e-3 for factor in factors])


def test_resume_of_a_run_that_has_all_its_iterations_says_so(quick):
    assert train('train:total_iter=4', resume=True) == 0, 'a first run may be asked to go on, as in the script of a job'
    assert 'no training state' not in max(FOLDER.glob('train_*.log')).read_text()
    for total in (4, 2):
        assert train(f'train:total_iter={total}', resume=True) == 0
        log = max(FOLDER.glob('train_*.log')).read_text()
        assert f'The run is at iteration 4 already, train:total_iter is {total}: nothing is trained.' in log
