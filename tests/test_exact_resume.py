"""A run that is stopped anywhere and resumed ends with the same bits as an undisturbed one; a damaged checkpoint costs
only the iterations since the one before. Kills at random moments are in benchmarks/chaos.py."""

import json
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

from wrcan_arch import InputError, WRCANModel
from wrcan_arch.checkpoint import read_file
from wrcan_arch.errors import RunError
from wrcan_arch.look.report import read_curves
from wrcan_arch.train import run_folder
from wrcan_arch.train.step_guard import StepGuard

FOLDER = Path('experiments/small')


def stop_at(iteration, number=signal.SIGTERM):
    """Send a signal to this process in the middle of the step `iteration`."""
    check = StepGuard.check

    def check_and_signal(self, current, *rest):
        if current == iteration:
            os.kill(os.getpid(), number)
        return check(self, current, *rest)

    return mock.patch.object(StepGuard, 'check', check_and_signal)


def assert_equal(first, second, place='state'):
    """Compare two training states bit by bit."""
    if isinstance(first, torch.Tensor):
        assert torch.equal(first, second), place
    elif isinstance(first, dict):
        assert first.keys() == second.keys(), place
        for key in first:
            assert_equal(first[key], second[key], f'{place}/{key}')
    elif isinstance(first, list | tuple):
        assert len(first) == len(second), place
        for number, pair in enumerate(zip(first, second, strict=True)):
            assert_equal(*pair, f'{place}/{number}')
    else:
        assert first == second, place


def outcome(folder=FOLDER, iteration=10):
    """The state with its weights' checksum; the weights of `iteration`, the best, the latest; what was logged."""
    weights = {
        label: {
            key: value
            for key, value in read_file(folder / f'models/net_g_{label}.pth').items() if key.startswith('params')
        }
        for label in (iteration, 'best', 'latest')
    }  # fmt: skip
    curves = read_curves(folder)
    return read_file(folder / f'training_states/{iteration}.state'), weights, curves.losses, curves.metrics


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


def damage(path, how):
    content = bytearray(path.read_bytes())
    if how == 'cut':
        content = content[: len(content) // 2]
    elif how == 'flipped':
        middle = len(content) // 2
        content[middle : middle + 400] = bytes(
            byte ^ 0x10 for byte in content[middle : middle + 400]
        )  # more than padding
    path.write_bytes(content)


DAMAGES = {
    'state cut': ('training_states/8.state', 'cut', '8.state: not a readable weight file, it may be cut or damaged'),
    'state flipped': ('training_states/8.state', 'flipped', '8.state: '),
    'state empty': ('training_states/8.state', 'empty', '8.state: not a readable weight file'),
    'weights cut': ('models/net_g_8.pth', 'cut', 'net_g_8.pth: not a readable weight file'),
    'weights flipped': ('models/net_g_8.pth', 'flipped', 'net_g_8.pth: '),
    'weights gone': ('models/net_g_8.pth', 'gone', 'net_g_8.pth: cannot be opened (No such file or directory)'),
    'of another moment': ('models/net_g_8.pth', 'swapped', 'net_g_8.pth: not the weights that 8.state was saved with'),
}


def test_resume_takes_the_newest_whole_pair_and_says_what_it_passed_over(quick):
    """Each kind of damage is done to the newest of two pairs. The resumed run ends like an undisturbed one."""
    assert train('train:total_iter=8') == 0
    expected = outcome(iteration=8)
    whole = {path: path.read_bytes() for part in ('models', 'training_states') for path in (FOLDER / part).iterdir()}
    for name, how, message in DAMAGES.values():
        for path, content in whole.items():
            path.write_bytes(content)
        path = FOLDER / name
        if how == 'gone':
            path.unlink()
        elif how == 'swapped':
            path.write_bytes(whole[FOLDER / 'models/net_g_4.pth'])
        elif how == 'empty':
            path.write_bytes(b'')
        else:
            damage(path, how)
        state, passed_over = run_folder.newest_pair(FOLDER, ['g'])
        assert state['iter'] == 4 and len(passed_over) == 1 and message in passed_over[0]
    assert train('train:total_iter=8', resume=True) == 0
    log = max(FOLDER.glob('train_*.log')).read_text()
    assert 'Passed over: ' in log and 'net_g_8.pth: not the weights that' in log and 'iter: 4.' in log
    assert not [*FOLDER.rglob('*.after_*')], 'a damaged pair is overwritten'
    assert_equal(outcome(iteration=8), expected)


def test_every_flipped_bit_is_found_or_harmless(quick):
    """A state with a flipped bit is refused, unless the same values are read from it."""
    assert train('train:total_iter=4') == 0
    path = FOLDER / 'training_states/4.state'
    content, state = path.read_bytes(), read_file(path)
    found = 0
    for place in torch.randint(len(content), (60,), generator=torch.Generator().manual_seed(0)).tolist():
        path.write_bytes(content[:place] + bytes([content[place] ^ 1 << place % 8]) + content[place + 1 :])
        try:
            again = run_folder.read_state(path)
        except ValueError:
            found += 1
        else:
            assert_equal(again, state)
    assert found > 30


def test_run_without_a_whole_checkpoint_does_not_start_over_by_itself(quick, capsys):
    assert train('train:total_iter=4') == 0
    damage(FOLDER / 'training_states/4.state', 'cut')
    before = sorted(Path('experiments').iterdir())
    assert train(resume=True) == 2
    said = capsys.readouterr().err.strip().splitlines()[-1]
    assert 'none of its 1 checkpoints is whole' in said and said.endswith('run it without --auto_resume')
    assert sorted(Path('experiments').iterdir()) == before


def test_rest_of_a_killed_save_is_removed(quick):
    assert train('train:total_iter=4') == 0
    rests = [FOLDER / 'training_states/.5.state.partial', FOLDER / 'models/.net_g_5.pth.partial']
    for rest in rests:  # of an iteration that is not saved again, which would take the same name
        rest.write_bytes(b'x' * 1000)
    assert train(resume=True) == 0
    assert not any(map(Path.exists, rests))


def test_state_that_is_named_has_to_have_its_own_weights(quick, capsys):
    assert train('train:total_iter=8') == 0
    state = f'path:resume_state={FOLDER}/training_states/4.state'
    shutil.copy(FOLDER / 'models/net_g_8.pth', FOLDER / 'models/net_g_4.pth')
    assert train(state) == 2
    assert 'net_g_4.pth: not the weights that 4.state was saved with' in capsys.readouterr().err
    (FOLDER / 'models/net_g_4.pth').unlink()
    assert train(state) == 2
    assert 'net_g_4.pth: cannot be opened (No such file or directory)' in capsys.readouterr().err


def test_weights_that_a_new_run_would_put_aside_are_not_its_beginning(quick, capsys):
    assert train('train:total_iter=4') == 0
    capsys.readouterr()
    assert train(f'path:pretrain_network_g={FOLDER}/models/net_g_4.pth') == 2
    assert "net_g_4.pth is in this run's own folder, which a new run puts aside" in capsys.readouterr().err
    assert run_folder.iterations(FOLDER) == [4]


def test_code_in_a_state_is_not_run(quick, capsys):
    class Exploit:
        def __reduce__(self):
            return open, ('written', 'w')

    assert train('train:total_iter=4') == 0
    torch.save({'iter': Exploit()}, FOLDER / 'training_states/9.state')
    assert train('train:total_iter=5', resume=True) == 0, 'the newest whole one is taken'
    assert '9.state: holds objects that could run code' in max(FOLDER.glob('train_*.log')).read_text()
    assert train(f'path:resume_state={FOLDER}/training_states/9.state') == 2
    assert 'could run code' in capsys.readouterr().err
    assert not Path('written').exists()


def test_state_is_plain_data(quick):
    """weights_only can read it; besides optimizers and schedulers it holds only what JSON can."""
    assert train('train:total_iter=4') == 0
    state = read_file(FOLDER / 'training_states/4.state')
    assert json.dumps({key: value for key, value in state.items() if key not in ('optimizers', 'schedulers')})


def best_of_log():
    return re.search(r'Best (\w+): ([\d.]+) at iteration (\d+)', max(FOLDER.glob('train_*.log')).read_text()).groups()


def test_best_network_stays_when_a_metric_is_added_or_removed(quick):
    """No worse network of later iterations replaces it."""
    best = FOLDER / 'models/net_g_best.pth'
    assert train('train:total_iter=8', 'train:start_from_image=true') == 0
    kept, (metric, score, _) = best.read_bytes(), best_of_log()
    worse = ('train:pixel_opt:loss_weight=-1.0', 'train:optim_g:lr=0.01')
    for total, more in ((12, ['val:metrics:ssim={type: calculate_ssim, crop_border: 0}']), (16, [])):
        assert train(f'train:total_iter={total}', *worse, *more, resume=True) == 0
        assert best.read_bytes() == kept and best_of_log()[:2] == (metric, score)


def test_best_network_that_the_last_state_does_not_know_stays(quick):
    """The run was killed after a validation, before the next state was saved."""
    best = FOLDER / 'models/net_g_best.pth'
    assert train('train:total_iter=8', 'val:val_freq=4', 'logger:save_checkpoint_freq=6') == 0
    kept, (metric, score, iteration) = best.read_bytes(), best_of_log()
    assert iteration == '8'
    (FOLDER / 'training_states/8.state').unlink()
    assert train('train:total_iter=12', 'val:val_freq=4', 'train:optim_g:lr=1e-9', resume=True) == 0
    assert best.read_bytes() == kept and best_of_log() == (metric, score, '8')


def test_best_network_beyond_the_end_of_the_resumed_run_is_its_outcome(quick):
    """Even if the run is trained on: the network at the same iteration may be worse then."""
    best = FOLDER / 'models/net_g_best.pth'
    assert train('train:total_iter=8', 'logger:save_checkpoint_freq=6') == 0
    kept, found = best.read_bytes(), best_of_log()
    assert found[2] == '8'
    (FOLDER / 'training_states/8.state').unlink()
    for total in (7, 12):
        assert train(f'train:total_iter={total}', 'train:optim_g:lr=1e-9', resume=True) == 0
        assert best.read_bytes() == kept and best_of_log() == found


def test_run_from_an_older_state_has_a_best_network_of_its_own(quick):
    best = FOLDER / 'models/net_g_best.pth'
    assert train('train:total_iter=8') == 0
    kept = best.read_bytes()
    assert best_of_log()[2] == '8'
    worse = 'train:optim_g:lr=0.5'  # than the best of the record of iteration 4, whose file is there no more
    assert train(f'path:resume_state={FOLDER}/training_states/4.state', 'train:total_iter=8', worse) == 0
    assert (FOLDER / 'models/net_g_best.pth.after_4').read_bytes() == kept
    about = read_file(best)['metadata']
    own = f'{about["metrics"]["psnr"]:.4f}'
    assert best.read_bytes() != kept and best_of_log() == ('psnr', own, '8') and about['iter'] == 8


def test_record_without_its_network_is_forgotten(quick):
    """A run from a named older state was killed after the best network was put aside, before its first checkpoint."""
    best = FOLDER / 'models/net_g_best.pth'
    assert train('train:total_iter=8') == 0
    best.rename(f'{best}.after_4')
    assert train('train:total_iter=12', 'train:optim_g:lr=0.5', resume=True) == 0  # a worse network than the record's
    assert read_file(best)['metadata']['iter'] == int(best_of_log()[2]) > 8


def test_older_state_that_nothing_is_trained_from_leaves_the_best_network(quick):
    best = FOLDER / 'models/net_g_best.pth'
    assert train('train:total_iter=8') == 0
    kept, found = best.read_bytes(), best_of_log()
    assert found[2] == '8'
    assert train(f'path:resume_state={FOLDER}/training_states/4.state', 'train:total_iter=4') == 0
    assert best.read_bytes() == kept and best_of_log() == found


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


SSIM = 'val:metrics:ssim={type: calculate_ssim, crop_border: 0}'


@pytest.mark.parametrize(
    ('before', 'after'),
    [
        ([], ['datasets:val:name=other']),
        ([SSIM], [SSIM, 'val:best_metric=ssim']),
        ([], ['val:metrics:psnr={type: calculate_ssim, crop_border: 0, better: lower}']),
    ],
    ids=['another set', 'another metric', 'the other direction'],
)
def test_best_network_that_something_else_chose_is_put_aside(quick, before, after):
    best = FOLDER / 'models/net_g_best.pth'
    assert train('train:total_iter=8', *before) == 0
    kept = best.read_bytes()
    for total in (12, 16):
        assert train(f'train:total_iter={total}', *after, resume=True) == 0
        assert (FOLDER / 'models/net_g_best_until_8.pth').read_bytes() == kept
        iteration = read_file(best)['metadata']['iter']
        assert iteration > 8 and str(iteration) == best_of_log()[2]
    logs = ''.join(path.read_text() for path in FOLDER.glob('train_*.log'))
    assert logs.count('net_g_best_until_8.pth is the best by psnr of small_val; from here on net_g_best.pth is') == 1
