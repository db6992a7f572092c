"""What is replaced in BasicSR while its train_pipeline or test_pipeline runs: REPLACEMENTS, with why and until when.

The toolbox looks these names up when it calls them, so one assignment replaces each. No code is copied: a replacement
calls the toolbox's own function where that does most of the work.
"""

import logging
import os
import random
import shlex
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import basicsr.data
import basicsr.test
import basicsr.train
import basicsr.utils.logger
import numpy as np
import torch
from basicsr.utils import get_root_logger
from basicsr.utils.dist_util import master_only
from torch import distributed

from .. import __version__
from ..data.draws import DrawSampler
from ..data.jpeg_deblur_dataset import JPEGDeblurDataset
from ..errors import InputError
from ..source_commit import source_commit
from ..system.files import write_text
from ..system.processes import STARTED_BY_TORCHRUN, Team, take_own_gpu, take_slurms_environment
from ..system.terminal import printable, printable_lines
from . import run_folder
from .current_run import TIMEOUT, Run, begin_run, load_resume_state
from .several_processes import check_batch, share_of_batch, shared_inputs
from .stopping import UntilUnreadable, ignore_signals
from .wrcan_model import WRCANModel, is_wrcan_model

CURVES_PAUSE = 600  # seconds until TensorBoard's curves go on after the disk refused them

# What the replacements below call, found before they take its place.
_toolbox_init_tb_loggers = basicsr.train.init_tb_loggers
_toolbox_build_dataset = basicsr.data.build_dataset
_toolbox_create_loaders = basicsr.train.create_train_val_dataloader
_toolbox_build_model = basicsr.train.build_model
_toolbox_message_logger = basicsr.train.MessageLogger
_toolbox_make_exp_dirs = basicsr.test.make_exp_dirs
_toolbox_get_root_logger = basicsr.utils.logger.get_root_logger

# Groups of processes, for good: DistributedDataParallel would be the last to let go of its group, and wait with the
# GIL held for a thread of gloo that may wait for the GIL to free the last barrier (seen in PyTorch 2.13).
_kept: list[Any] = []


def init_dist(run: Run, launcher: str, **_: Any) -> None:
    """Connect the processes that torchrun or srun started: with GPUs by NCCL or the chosen backend, else by gloo.

    All must see the same options, data and weights.
    """
    chosen = run.options.get('dist_params') or {}  # the toolbox passes them on only for slurm
    if launcher == 'slurm' and STARTED_BY_TORCHRUN not in os.environ:
        take_slurms_environment(chosen.get('port'))
    timeout = run.timeout = chosen.get('timeout', TIMEOUT)
    team = Team.from_environment(timeout=timeout)
    team.agree(shared_inputs(run.options), timeout=timeout)
    check_batch(run, team.size)
    on_gpus = run.options['num_gpu'] != 0 and torch.cuda.is_available()
    if on_gpus:
        take_own_gpu()
    elif not is_wrcan_model(model := run.options['model_type']):
        raise InputError(
            f'model_type: {model} cannot run as several processes without GPUs; run it without torchrun or srun, '
            'or take WRCANModel'
        )
    distributed.init_process_group(
        (chosen.get('backend') or 'nccl') if on_gpus else 'gloo',  # though BasicSR's own files all name nccl
        store=distributed.PrefixStore('group', team.store),
        rank=team.rank,
        world_size=team.size,
        timeout=timedelta(seconds=timeout),
    )
    _kept.append(distributed.group.WORLD)
    run.team = team


def log_in_utf8(**options: Any) -> logging.Logger:
    """Open the toolbox's log, in UTF-8 whatever the locale is; begin it with the version of this package."""
    logger = _toolbox_get_root_logger(**options)
    for handler in logger.handlers:
        if isinstance(handler, logging.FileHandler) and handler.stream:
            handler.stream.reconfigure(encoding='utf-8')
            commit = source_commit()
            logger.info(f'wrcan-arch {__version__}' + (f', commit {commit}' if commit else ''))
    return logger


def init_tb_loggers(run: Run, opt: dict[str, Any]) -> Any:
    """Create the toolbox's writer of TensorBoard's curves; while the disk refuses them, the run goes on without."""
    writer, report = _toolbox_init_tb_loggers(opt), threading.excepthook
    if writer is None:
        return None
    paused_until = 0.0

    def unless_refused(write: Callable[..., None]) -> Callable[..., None]:
        def attempt(*arguments: Any, **options: Any) -> None:
            nonlocal paused_until
            if time.monotonic() < paused_until:
                return
            try:
                write(*arguments, **options)
            except OSError as error:
                paused_until = time.monotonic() + CURVES_PAUSE
                writer.file_writer = writer.all_writers = None  # its thread has ended: the next value begins a new file
                reason = error.strerror or error
                get_root_logger().warning(f'TensorBoard: {reason}; its curves get a gap, the run goes on')

        return attempt

    def excepthook(failed: Any) -> None:
        if not type(failed.thread).__module__.startswith('tensorboard.'):  # its error is raised again by the next call
            report(failed)

    writer.add_scalar, writer.close = map(unless_refused, (writer.add_scalar, writer.close))
    run.held.enter_context(mock.patch('threading.excepthook', excepthook))
    return writer


def build_dataset(opt: dict[str, Any]) -> Any:
    """Build the toolbox's data set; log what is likely a mistake in one of ours."""
    dataset = _toolbox_build_dataset(opt)
    if isinstance(dataset, JPEGDeblurDataset):
        for doubt in dataset.likely_mistakes():
            get_root_logger().warning(doubt)
    return dataset


def create_train_val_dataloader(run: Run, opt: dict[str, Any], logger: Any) -> tuple:
    """Create the toolbox's loaders; their draws start at the iteration to resume at and end with the run's last."""
    for warning in run.warnings:
        logger.warning(warning)
    train = opt['datasets']['train']
    gpus = 1 if opt['dist'] else max(1, opt['num_gpu'])  # of this process
    train['batch_size_per_gpu'] = share_of_batch(train, opt['world_size'] * gpus)
    sampler = partial(
        DrawSampler,
        batch_size=train['batch_size_per_gpu'] * gpus,
        seed=opt['manual_seed'],
        start_iter=run.resume_state['iter'] if run.resume_state else 0,
        total_iter=int(opt['train']['total_iter']),
        start_draw=run.resume_state.get('draws') if run.resume_state else None,  # batches may have had another size
    )
    train['manual_seed'] = opt['manual_seed']
    train['as_bytes'] = is_wrcan_model(opt['model_type'])  # WRCANModel converts them on its device
    # Workers start once, before the backward pass has threads: forking beside threads can leave a worker deadlocked.
    train['persistent_workers'] = train['num_worker_per_gpu'] > 0
    if train.get('prefetch_mode') == 'cpu':  # its thread would wait forever once a worker has failed
        train['prefetch_mode'] = None
    with mock.patch('basicsr.train.EnlargedSampler', sampler):
        loaders = _toolbox_create_loaders(opt, logger)
    train_loader, train_sampler, val_loaders, _, total_iters = loaders
    run.val_loaders, run.draws_before = val_loaders, train_sampler.draws_before
    if run.resume_state:
        run.resume_state['epoch'] = train_sampler.start_epoch  # the saved one may be over, or of another batch size
    saves_first = is_wrcan_model(opt['model_type']) and opt['world_size'] == 1
    train_loader = UntilUnreadable(train_loader, run.stop, saves_first=saves_first)
    return train_loader, train_sampler, val_loaders, train_sampler.last_epoch, total_iters


def build_model(run: Run, opt: dict[str, Any]) -> Any:
    """Build the toolbox's model; validate pretrained weights first, so that the best network is at least as good."""
    model = run.model = _toolbox_build_model(opt)
    if not isinstance(model, WRCANModel):
        return model
    model.guard.stop, model.draws_before = run.stop, run.draws_before
    model.check_disk_space(run.resume_state['iter'] if run.resume_state else 0)
    trains_on = opt['path'].get('pretrain_network_g') and not run.resume_state
    if trains_on and (opt.get('val') or {}).get('metrics'):
        get_root_logger().info('Validating the weights that the training begins with.')
        for val_loader in run.val_loaders:
            model.validation(val_loader, 0, None, opt['val']['save_img'])
    return model


def message_logger(run: Run, opt: dict[str, Any], *arguments: Any, **options: Any) -> Any:
    """Begin the run, as this logger is made last; return the toolbox's, its time left corrected by one iteration."""
    begin_run(run, opt)
    logger = _toolbox_message_logger(opt, *arguments, **options)
    logger.max_iters += 1
    return logger


def worker_init_fn(worker_id: int, **_: Any) -> None:
    """Seed the random modules from PyTorch's seed of this worker, which differs in each epoch; ignore signals."""
    ignore_signals()
    seed = torch.initial_seed() % 2**32
    random.seed(seed)
    np.random.seed(seed)


def make_exp_dirs(run: Run, opt: dict[str, Any]) -> None:
    """Lock a test's results folder against a second test of its name, put an older one aside, and make it.

    All processes wait until the first has done this, and raise its error if it fails.
    """
    refused: list[Exception | None] = [None]
    if opt['rank'] == 0:
        try:
            run.held.enter_context(run_folder.only_run_in(Path('results', opt['name'])))
            _toolbox_make_exp_dirs(opt)
        except (InputError, OSError) as error:
            refused[0] = error
    if opt['dist']:
        distributed.broadcast_object_list(refused)
    if refused[0]:
        raise refused[0]


@master_only
def copy_opt_file(opt_file: str, experiments_root: str) -> None:
    """Copy the option file, in UTF-8, with the command that was given; pipelines.py gives the toolbox another."""
    about = f'# GENERATE TIME: {time.asctime()}\n# CMD:\n# {printable(shlex.join(sys.orig_argv))}\n\n'
    path = Path(opt_file)
    write_text(Path(experiments_root, path.name), about + path.read_text(encoding='utf-8'))


def time_to_the_microsecond() -> str:
    """The current time in the toolbox's format, with microseconds added; in UTC, which is never put back."""
    return datetime.now(UTC).strftime('%Y%m%d_%H%M%S_%f')


@dataclass(frozen=True)
class Replacement:
    """One name of the toolbox that is replaced while a pipeline runs."""

    target: str
    by: Callable[[Run], Callable]
    why: str
    until: str


REPLACEMENTS = (
    Replacement(
        target='basicsr.utils.options.init_dist',
        by=lambda run: partial(init_dist, run),
        why='the toolbox takes the rank modulo the number of GPUs and only knows NCCL',
        until='BasicSR runs several processes without a GPU',
    ),
    Replacement(
        target='basicsr.train.load_resume_state',
        by=lambda run: partial(load_resume_state, run),
        why='it needs a GPU, looks beside the root folder and then silently starts over, and opens files unsafely',
        until='BasicSR resumes on a CPU, from root_path',
    ),
    Replacement(
        target='basicsr.train.copy_opt_file',
        by=lambda run: copy_opt_file,
        why='the command that it keeps with the options names a temporary file, which is gone after the run',
        until='BasicSR takes its arguments from a caller',
    ),
    *(
        Replacement(
            target=f'basicsr.{command}.get_root_logger',
            by=lambda run: log_in_utf8,
            why="a line that the locale's encoding lacks a character of is not logged, and a report lacks its scores",
            until='BasicSR opens its logs in UTF-8',
        )
        for command in ('train', 'test')
    ),
    Replacement(
        target='basicsr.train.init_tb_loggers',
        by=lambda run: partial(init_tb_loggers, run),
        why="a disk that is full for a moment when TensorBoard's curves are written ends the training",
        until='BasicSR trains on without them',
    ),
    *(
        Replacement(
            target=f'basicsr.{command}.build_dataset',
            by=lambda run: build_dataset,
            why='a data set whose blurred and sharp frames are swapped is trained on or scored without a word',
            until='BasicSR asks a data set for likely mistakes',
        )
        for command in ('train', 'test')
    ),
    Replacement(
        target='basicsr.train.create_train_val_dataloader',
        by=lambda run: partial(create_train_val_dataloader, run),
        why='epochs are rounded up but the last batch is dropped, so runs end early; the order ignores the seed and '
        'starts over on resume',
        until='BasicSR makes as many iterations as asked, from the iteration it resumes at',
    ),
    Replacement(
        target='basicsr.test.make_exp_dirs',
        by=lambda run: partial(make_exp_dirs, run),
        why='a second test of the same name writes into the results of the first, and processes may write into older '
        'results that are about to be put aside',
        until='BasicSR holds the results folder for one test, and its processes wait for it',
    ),
    Replacement(
        target='basicsr.train.build_model',
        by=lambda run: partial(build_model, run),
        why='the weights that a training begins with are not validated, so its best network can be worse than they are',
        until='BasicSR validates them',
    ),
    Replacement(
        target='basicsr.train.MessageLogger',
        by=lambda run: partial(message_logger, run),
        why='the time left is one iteration short, and in the end -1 day, 23:59:59',
        until='BasicSR counts the last iteration',
    ),
    Replacement(
        target='basicsr.data.worker_init_fn',
        by=lambda run: worker_init_fn,  # spawned workers get it without the run
        why='workers get the same seed in every epoch, so data sets of the toolbox repeat their crops',
        until='BasicSR seeds workers from torch.initial_seed()',
    ),
    Replacement(
        target='basicsr.train.get_time_str',
        by=lambda run: time_to_the_microsecond,
        why='logs are named by the second: a run that is resumed at once overwrites the log of the one before; and by '
        'local time, which may be put back',
        until='BasicSR appends to its logs',
    ),
    Replacement(
        target='basicsr.utils.misc.get_time_str',
        by=lambda run: time_to_the_microsecond,
        why='old experiments are renamed by the second too, so two of them within one second clash',
        until='BasicSR checks whether the name is free',
    ),
)


def printable_record(record: logging.LogRecord) -> bool:
    """A filter for the toolbox's logger, which prints texts of option files: a terminal obeys escape sequences."""
    record.msg, record.args = printable_lines(record.getMessage()), ()
    return True


@contextmanager
def replaced(run: Run) -> Iterator[None]:
    """Patch the toolbox with REPLACEMENTS, which share `run`."""
    logging.getLogger('basicsr').addFilter(printable_record)
    with ExitStack() as stack:
        stack.enter_context(mock.patch('logging.raiseExceptions', False))  # a full disk would print one for each line
        for replacement in REPLACEMENTS:
            stack.enter_context(mock.patch(replacement.target, replacement.by(run)))
        yield
