"""Shows that the replacements are needed, and tests parts of them; test_end_to_end.py tests whole runs with them."""

import errno
import logging
import os
import random
import re
import shutil
import threading
import time
from contextlib import contextmanager, nullcontext, suppress
from datetime import timedelta
from functools import partial
from pathlib import Path
from unittest import mock

import basicsr.test
import basicsr.train
import numpy as np
import pytest
import torch
from basicsr.data import build_dataloader, worker_init_fn
from basicsr.utils.misc import mkdir_and_rename
from conftest import resolved_options
from fresh import run_python
from torch.utils.data import Dataset

from wrcan_arch import __version__
from wrcan_arch.errors import InputError
from wrcan_arch.train import pipelines, replacements, several_processes


def iterations_of(opt, create):
    """Return how many iterations the toolbox's loop makes with the loaders of `create`."""
    for phase, dataset in opt['datasets'].items():
        dataset |= {'phase': phase, 'scale': 1}
    loader, sampler, _, epochs, total = create(opt, logging.getLogger('test'))
    made = 0
    for epoch in range(epochs + 1):
        sampler.set_epoch(epoch)
        for _ in loader:
            made += 1
            if made == total:
                return made
    return made


@pytest.mark.parametrize(('batch', 'stock'), [(4, 6), (8, 0)])
def test_loader_replacement_is_needed(workplace, batch, stock):
    """With six images the toolbox rounds epochs up, but its loader drops the last batch."""
    opt = resolved_options()
    opt['datasets']['train'] |= {'batch_size_per_gpu': batch, 'num_worker_per_gpu': 0}
    opt['train']['total_iter'] = 10
    assert iterations_of(opt, replacements._toolbox_create_loaders) == stock
    ours = partial(replacements.create_train_val_dataloader, replacements.Run())
    assert iterations_of(opt, ours) == 10


@pytest.mark.parametrize(('model_type', 'dtype'), [('WRCANModel', torch.uint8), ('SRModel', torch.float32)])
def test_patches_are_bytes_for_the_model_that_makes_floats_of_them(workplace, model_type, dtype):
    opt = resolved_options(model_type=model_type)
    for phase, dataset in opt['datasets'].items():
        dataset |= {'phase': phase, 'scale': 1}
    loader = replacements.create_train_val_dataloader(replacements.Run(), opt, logging.getLogger('test'))[0]
    assert loader.loader.dataset[0]['lq'].dtype == dtype


class Asked(Exception):
    """What the toolbox is asked for."""


@pytest.mark.parametrize(
    ('num_gpu', 'dist', 'batch'), [(0, False, 4), (1, False, 4), (2, False, 8), (2, True, 4)], ids=str
)
def test_draws_are_of_all_gpus_of_a_process_and_of_the_iterations_that_are_left(workplace, num_gpu, dist, batch):
    def ask(opt, logger):
        raise Asked(opt['datasets']['train'], basicsr.train.EnlargedSampler.keywords)

    opt = resolved_options()
    opt |= {'num_gpu': num_gpu, 'dist': dist, 'manual_seed': 5}
    opt['datasets']['train'] |= {'batch_size_per_gpu': 4, 'num_worker_per_gpu': 2, 'prefetch_mode': 'cpu'}
    run, logger = replacements.Run(resume_state={'iter': 7, 'draws': 40}, warnings=['a doubt']), mock.Mock()
    with mock.patch.object(replacements, '_toolbox_create_loaders', ask), pytest.raises(Asked) as asked:
        replacements.create_train_val_dataloader(run, opt, logger)
    train, draws = asked.value.args
    total = opt['train']['total_iter']
    assert draws == {'batch_size': batch, 'seed': 5, 'start_iter': 7, 'start_draw': 40, 'total_iter': total}
    assert train['persistent_workers'] and train['prefetch_mode'] is None
    assert logger.warning.mock_calls == [mock.call('a doubt')]


def last_line_without_a_gpu(code):
    """Return the last line of stderr of a process that sees no GPU, even if there is one."""
    code = f'import wrcan_arch, basicsr.train, basicsr.utils.dist_util\n{code}'
    return run_python(code, CUDA_VISIBLE_DEVICES='', RANK='0').stderr.splitlines()[-1]


def test_resume_replacement_is_needed():
    opt = {'auto_resume': False, 'path': {'resume_state': 'x.state'}}
    said = last_line_without_a_gpu(f'basicsr.train.load_resume_state({opt})')
    assert re.match('(AssertionError|RuntimeError): .*(CUDA|NVIDIA)', said)


def test_init_dist_replacement_is_needed():
    said = last_line_without_a_gpu("basicsr.utils.dist_util.init_dist('pytorch')")
    assert re.match('ZeroDivisionError|AssertionError', said)


@contextmanager
def joining(*, rank=1, **options):
    """Let init_dist run as one of two processes on a machine with GPUs, without the other one."""
    about = {'name': 'small', 'model_type': 'WRCANModel', 'num_gpu': 0, 'datasets': {}}
    options = pipelines.with_hash(about | options)
    run = replacements.Run(command='test', options=options)
    with (
        mock.patch.object(replacements.Team, 'from_environment', lambda **_: mock.Mock(rank=rank, size=2)),
        mock.patch.object(replacements, 'take_own_gpu') as take,
        mock.patch('torch.cuda.is_available', lambda: True),
        mock.patch('torch.distributed.PrefixStore'),
        mock.patch('torch.distributed.init_process_group') as init,
        run.held,
    ):
        yield run, init, take


@pytest.mark.parametrize(('num_gpu', 'backend'), [(0, 'gloo'), ('auto', 'nccl')])
def test_processes_without_gpus_leave_those_that_are_there(num_gpu, backend):
    with joining(num_gpu=num_gpu) as (run, init, take):
        replacements.init_dist(run, 'pytorch')
    assert init.call_args.args[0] == backend and take.called == (backend == 'nccl')


@pytest.mark.parametrize(('num_gpu', 'backend'), [(0, 'gloo'), ('auto', 'mpi')])
def test_port_and_timeout_may_be_chosen_and_on_gpus_the_backend(monkeypatch, num_gpu, backend):
    monkeypatch.delenv(replacements.STARTED_BY_TORCHRUN, raising=False)
    with (
        joining(num_gpu=num_gpu, dist_params={'backend': 'mpi', 'port': 1234, 'timeout': 7}) as (run, init, _),
        mock.patch.object(replacements, 'take_slurms_environment') as take,
    ):
        replacements.init_dist(run, 'slurm')
        assert init.call_args.args[0] == backend and take.call_args.args == (1234,)
        assert init.call_args.kwargs['timeout'] == timedelta(seconds=7) and run.timeout == 7
        (seen,), how = run.team.agree.call_args
        assert seen == {'the options with SHA-256': run.options['options_sha256'][:16]} and how == {'timeout': 7}
        take.reset_mock()
        monkeypatch.setenv(replacements.STARTED_BY_TORCHRUN, 'none')  # torchrun under srun, which knows better
        replacements.init_dist(run, 'slurm')
        assert not take.called


@pytest.mark.parametrize(('num_gpu', 'ours', 'toolboxs'), [('auto', 1, 3), (0, 1, 0), (1, 1, 1), (2, None, 2)])
def test_one_process_takes_one_gpu_for_our_model(monkeypatch, num_gpu, ours, toolboxs):
    monkeypatch.setattr('torch.cuda.device_count', lambda: 3)
    asked = {'num_gpu': num_gpu, 'model_type': 'SRModel'}
    assert several_processes.gpus_of_one_process('test', asked) == toolboxs
    asked['model_type'] = 'WRCANModel'
    if ours is None:
        with pytest.raises(InputError, match='torchrun --nproc_per_node=2 -m wrcan_arch test ... takes 2'):
            several_processes.gpus_of_one_process('test', asked)
    else:
        assert several_processes.gpus_of_one_process('test', asked) == ours


def test_the_order_in_which_a_disk_lists_its_files_is_no_difference(tmp_path):
    for name in ('a.png', 'b.png'):
        (tmp_path / name).touch()
    files, seen = [*tmp_path.iterdir()], set()
    for listed in (files, files[::-1]):
        with mock.patch.object(Path, 'rglob', return_value=listed):
            seen.add(several_processes._describe_data(tmp_path))
    assert len(seen) == 1
    (tmp_path / 'b.png').rename(tmp_path / 'c.png')
    assert several_processes._describe_data(tmp_path) not in seen


def test_the_toolboxs_own_models_are_not_several_processes_without_gpus():
    with joining(model_type='SRModel', num_gpu='auto') as (run, init, _):
        replacements.init_dist(run, 'pytorch')
    with joining(model_type='SRModel') as (run, init, _), pytest.raises(InputError, match='SRModel cannot run as sev'):
        replacements.init_dist(run, 'pytorch')
    assert not init.called


@pytest.mark.parametrize(('rank', 'held'), [(0, [mock.call(Path('results/small'))]), (1, [])])
def test_the_first_of_several_processes_holds_a_test_s_results_and_the_others_wait(rank, held):
    run = replacements.Run()
    with (
        mock.patch.object(replacements.run_folder, 'only_run_in') as only_run_in,
        mock.patch.object(replacements, '_toolbox_make_exp_dirs') as make,
        mock.patch.object(replacements.distributed, 'broadcast_object_list') as wait,
        run.held,
    ):
        replacements.make_exp_dirs(run, {'name': 'small', 'rank': rank, 'dist': True})
        assert only_run_in.call_args_list == held and make.called is (rank == 0) and wait.called
        wait.reset_mock()
        make.side_effect = OSError('no folder')
        with pytest.raises(OSError, match='no folder') if rank == 0 else nullcontext():
            replacements.make_exp_dirs(run, {'name': 'small', 'rank': rank, 'dist': True})
        assert wait.called, 'the others are told'


def test_the_kept_options_name_the_command_that_was_given(tmp_path, monkeypatch):
    (tmp_path / 'own.yml').write_text('name: a\n')
    (tmp_path / 'kept').mkdir()
    monkeypatch.setattr('sys.orig_argv', ['python', '-m', 'wrcan_arch', 'train', '-opt', 'my 海\udcff\n.yml'])
    with replacements.replaced(replacements.Run()), mock.patch('sys.argv', ['basicsr', '-opt', '/tmp/gone.yml']):
        basicsr.train.copy_opt_file(str(tmp_path / 'own.yml'), str(tmp_path / 'kept'))
    kept = (tmp_path / 'kept/own.yml').read_text(encoding='utf-8')
    assert "# python -m wrcan_arch train -opt 'my 海\\udcff\\n.yml'\n" in kept and kept.endswith('name: a\n')


def test_a_batch_that_processes_cannot_share_is_said_before_they_join():
    options = {'num_gpu': 0, 'options_sha256': '0', 'datasets': {'train': {'batch_size_total': 3}}}
    run = replacements.Run(command='train', options=options)
    with (
        mock.patch.object(replacements.Team, 'from_environment', lambda **_: mock.Mock(rank=0, size=2)),
        mock.patch('torch.distributed.init_process_group') as init,
        pytest.raises(InputError, match='3 cannot be divided over 2 processes'),
    ):
        replacements.init_dist(run, 'pytorch')
    assert not init.called


class RandomNumbers(Dataset):
    """Items from the global random modules, which the toolbox's data sets use for crops and flips."""

    def __len__(self):
        return 4

    def __getitem__(self, index):
        return random.random(), np.random.rand()


def epochs_of(init):
    with mock.patch('basicsr.data.worker_init_fn', init):
        opt = {'phase': 'train', 'batch_size_per_gpu': 1, 'num_worker_per_gpu': 1}
        loader = build_dataloader(RandomNumbers(), opt, num_gpu=0, seed=1)
    return [[float(value) for pair in loader for value in pair] for _ in range(3)]


def test_worker_seed_replacement_is_needed():
    first, second, third = epochs_of(worker_init_fn)
    assert first == second == third, 'every epoch has the same crops'
    assert len({value for epoch in epochs_of(replacements.worker_init_fn) for value in epoch}) == 24


def start_over(folder):
    """Start three times within a second, as a run that is killed and restarted before its first checkpoint."""
    for _ in range(3):
        mkdir_and_rename(str(folder))
        (folder / 'log').touch()


def test_message_replacement_is_needed():
    said = {}
    for maker in (replacements._toolbox_message_logger, partial(replacements.message_logger, replacements.Run())):
        opt = {'name': 'a', 'rank': 0, 'logger': {'print_freq': 1, 'use_tb_logger': False}, 'train': {'total_iter': 3}}
        logger = maker({**opt, 'path': {'experiments_root': 'experiments/a'}})
        logger.logger = mock.Mock()
        logger.start_time -= 30
        logger({'epoch': 0, 'iter': 3, 'lrs': [1e-3], 'time': 1.0, 'data_time': 0.0})
        said[maker] = logger.logger.info.call_args.args[0]
    stock, ours = said.values()
    assert 'eta: -1 day' in stock and 'eta: 0:00:00' in ours


def curves_on_a_full_disk(create):
    """Write six values of a curve, the third on a full disk. Return the iterations that TensorBoard finds."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from tensorboard.compat.tensorflow_stub.io.gfile import LocalFileSystem

    writer = create({'name': 'small', 'root_path': '.', 'logger': {'use_tb_logger': True}})
    for iteration in range(1, 7):
        if iteration != 3:
            writer.add_scalar('losses/l_pix', iteration, iteration)
            writer.flush()
            continue
        full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        with mock.patch.object(LocalFileSystem, 'append', side_effect=full):
            writer.add_scalar('losses/l_pix', iteration, iteration)
            for each in threading.enumerate():
                if type(each).__module__.startswith('tensorboard.'):
                    each.join(10)
    writer.close()
    return [each.step for each in EventAccumulator('tb_logger/small').Reload().Scalars('losses/l_pix')]


def test_curves_replacement_is_needed(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with mock.patch('threading.excepthook') as traceback, pytest.raises(OSError, match='No space left'):
        curves_on_a_full_disk(replacements._toolbox_init_tb_loggers)
    assert traceback.called
    said = 'TensorBoard: No space left on device; its curves get a gap, the run goes on'
    for pause, iterations in ((0, [1, 2, 5, 6]), (600, [1, 2])):
        shutil.rmtree('tb_logger')
        monkeypatch.setattr(replacements, 'CURVES_PAUSE', pause)
        run = replacements.Run()
        with (
            mock.patch('threading.excepthook') as traceback,
            mock.patch.object(replacements, 'get_root_logger') as logger,
            run.held,
        ):
            assert curves_on_a_full_disk(partial(replacements.init_tb_loggers, run)) == iterations
        assert not traceback.called and logger().warning.mock_calls == [mock.call(said)]
    with mock.patch.object(replacements, 'get_root_logger') as logger, run.held:
        writer = replacements.init_tb_loggers(
            run, {'name': 'small', 'root_path': '.', 'logger': {'use_tb_logger': True}}
        )
        writer.add_scalar('losses/l_pix', 1, 1)
        with mock.patch.object(writer.file_writer.event_writer, 'flush', side_effect=OSError(errno.ENOSPC, 'full')):
            writer.close()
    assert logger().warning.called, 'a training ends well, though the disk is full when its last curves are written'
    assert replacements.init_tb_loggers(run, {'name': 'small', 'logger': {}}) is None, 'as in all processes but one'


def test_a_log_on_a_full_disk_prints_no_tracebacks(capsys):
    handler = logging.FileHandler('/dev/full')
    record = logging.makeLogRecord({'msg': 'a line'})
    with replacements.replaced(replacements.Run()):
        handler.emit(record)
    assert capsys.readouterr().err == ''
    handler.emit(record)
    assert 'Logging error' in capsys.readouterr().err, 'as before'
    with suppress(OSError):
        handler.close()


def test_log_replacement_is_needed(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr('io.text_encoding', lambda encoding, *_: encoding or 'ascii')  # as in a locale of its own

    def logged(module):
        pipelines._forget_logger()
        module.get_root_logger(log_file=str(tmp_path / 'a.log')).info('Validated 海')
        pipelines._forget_logger()
        return (tmp_path / 'a.log').read_text(encoding='utf-8')

    for module in (basicsr.train, basicsr.test):
        with mock.patch('logging.raiseExceptions', False):
            assert logged(module) == ''
        with replacements.replaced(replacements.Run()):
            first, second = logged(module).splitlines()
        assert re.search(rf' INFO: wrcan-arch {re.escape(__version__)}(, commit [0-9a-f]{{40}}(-dirty)?)?$', first)
        assert second.endswith(' INFO: Validated 海')


def test_time_replacement_is_needed(tmp_path):
    with (
        mock.patch('basicsr.utils.misc.get_time_str', return_value='20260101_000000'),
        pytest.raises(OSError, match='not empty'),
    ):
        start_over(tmp_path / 'stock')
    with replacements.replaced(replacements.Run()):
        start_over(tmp_path / 'ours')
        logs = {basicsr.train.get_time_str() for _ in range(3)}
    assert len(list(tmp_path.glob('ours*'))) == 3 and len(logs) == 3


def test_logs_are_in_order_when_the_clock_is_put_back(monkeypatch):
    """A report reads them by name."""
    names = []
    for zone in ('Pacific/Kiritimati', 'Pacific/Honolulu'):
        with monkeypatch.context() as patched:
            patched.setenv('TZ', zone)
            time.tzset()
            names.append(replacements.time_to_the_microsecond())
    time.tzset()
    assert names == sorted(names)


def test_replacements_are_taken_back():
    names = {each.target: each.target.rpartition('.') for each in replacements.REPLACEMENTS}

    def current():
        import importlib

        return {target: getattr(importlib.import_module(module), name) for target, (module, _, name) in names.items()}

    before = current()
    with replacements.replaced(replacements.Run()):
        for target, replacement in current().items():
            assert replacement is not before[target]
            function = getattr(replacement, 'func', replacement)  # of a partial
            assert function.__name__.replace('_', '') in (
                names[target][2].lower().replace('_', ''),
                'timetothemicrosecond',
                'loginutf8',
            )
    assert current() == before
