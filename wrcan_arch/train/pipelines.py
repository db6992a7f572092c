"""BasicSR's train_pipeline and test_pipeline, with what does not hold in them replaced while they run.

The toolbox looks these names up when it calls them, so each can be replaced by one assignment: REPLACEMENTS says which,
why, and when it can go. Nothing is pasted; where the toolbox's own function does most of the work, it is called.
"""

import hashlib
import importlib
import logging
import os
import random
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
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
import yaml
from basicsr.utils import check_resume
from basicsr.utils.dist_util import master_only
from torch import distributed

from .. import checkpoint
from ..errors import InputError
from .draws import DrawSampler


def init_dist(launcher: str, backend: str | None = None, **options: Any) -> None:
    """Join the processes that torchrun (or slurm) started: NCCL with GPUs, gloo without."""
    if torch.cuda.is_available():
        _toolbox_init_dist(launcher, backend or 'nccl', **options)
    else:
        distributed.init_process_group(backend or 'gloo', **options)


_toolbox_init_dist = basicsr.utils.dist_util.init_dist


_resume_state: dict[str, Any] | None = None  # of the run under way: its loaders correct the epoch in it


def load_resume_state(opt: dict[str, Any]) -> dict[str, Any] | None:
    """The state to go on from: with auto_resume the newest in the experiment's own folder, else the one named."""
    global _resume_state
    _resume_state = None
    path = opt['path'].get('resume_state')
    if opt['auto_resume']:
        states = [state for state in Path(opt['path']['training_states']).glob('*.state') if state.stem.isdecimal()]
        path = max(states, key=lambda state: int(state.stem), default=None)
    if path is None:
        return None
    _resume_state = checkpoint.read_file(path)
    if missing := {'iter', 'epoch', 'optimizers', 'schedulers'} - _resume_state.keys():
        raise InputError(f'{path}: not a training state, there is no {", ".join(sorted(missing))}; give a .state file')
    opt['path']['resume_state'] = str(path)
    check_resume(opt, _resume_state['iter'])
    return _resume_state


def share_of_batch(train: dict[str, Any], parts: int) -> int:
    """batch_size_per_gpu, or batch_size_total divided over `parts`: the processes, or the GPUs of a single one."""
    total = train.get('batch_size_total')
    if total is None:
        return train['batch_size_per_gpu']
    if total % parts:
        near = [each for each in (total - total % parts, total - total % parts + parts) if each]
        raise InputError(
            f'datasets:train:batch_size_total: {total} does not divide over {parts} processes or GPUs; '
            f'{" or ".join(map(str, near))} would'
        )
    return total // parts


def create_train_val_dataloader(opt: dict[str, Any], logger: Any) -> tuple:
    """The toolbox's loaders over draws that start where the run stands and end with its last iteration."""
    train = opt['datasets']['train']
    train['batch_size_per_gpu'] = share_of_batch(train, opt['world_size'] if opt['dist'] else max(1, opt['num_gpu']))
    sampler = partial(
        DrawSampler,
        batch_size=train['batch_size_per_gpu'] * (1 if opt['dist'] else max(1, opt['num_gpu'])),
        seed=opt['manual_seed'],
        start_iter=_resume_state['iter'] if _resume_state else 0,
        total_iter=int(opt['train']['total_iter']),
    )
    train['manual_seed'] = opt['manual_seed']
    with mock.patch('basicsr.train.EnlargedSampler', sampler):
        loaders = _toolbox_create_loaders(opt, logger)
    train_loader, train_sampler, val_loaders, _, total_iters = loaders
    if _resume_state:
        _resume_state['epoch'] = train_sampler.start_epoch  # an epoch that was just full, or of another batch size
    return train_loader, train_sampler, val_loaders, train_sampler.last_epoch, total_iters


_toolbox_create_loaders = basicsr.train.create_train_val_dataloader


def worker_init_fn(worker_id: int, **_: Any) -> None:
    """Seed the random modules from PyTorch's own seed of this worker, which differs in every epoch."""
    seed = torch.initial_seed() % 2**32
    random.seed(seed)
    np.random.seed(seed)


@dataclass(frozen=True)
class Replacement:
    """One name of the toolbox that is assigned anew while a pipeline runs."""

    target: str
    by: Callable
    why: str
    until: str


REPLACEMENTS = (
    Replacement(
        target='basicsr.utils.options.init_dist',
        by=init_dist,
        why='the toolbox takes the rank modulo the number of GPUs and knows NCCL alone',
        until='BasicSR runs several processes without a GPU',
    ),
    Replacement(
        target='basicsr.train.load_resume_state',
        by=load_resume_state,
        why='it needs a GPU, looks beside the root folder and then silently starts over, and opens files unsafely',
        until='BasicSR resumes on a CPU, from root_path',
    ),
    Replacement(
        target='basicsr.train.create_train_val_dataloader',
        by=create_train_val_dataloader,
        why='epochs are rounded up but the last batch is dropped, so runs end early; the order ignores the seed and '
        'starts over on resume',
        until='BasicSR makes as many iterations as asked, from the iteration it resumes at',
    ),
    Replacement(
        target='basicsr.data.worker_init_fn',
        by=worker_init_fn,
        why='workers get the same seed in every epoch, so data sets of the toolbox repeat their crops',
        until='BasicSR seeds workers from torch.initial_seed()',
    ),
)


@contextmanager
def replaced() -> Iterator[None]:
    """The toolbox with REPLACEMENTS in it."""
    with ExitStack() as stack:
        for replacement in REPLACEMENTS:
            stack.enter_context(mock.patch(replacement.target, replacement.by))
        yield


@contextmanager
def _arguments(*arguments: str) -> Iterator[None]:
    """The toolbox reads its arguments from sys.argv."""
    with mock.patch.object(sys, 'argv', [sys.argv[0], *arguments]):
        yield


def _forget_logger() -> None:
    """Let the next run open a log file of its own: the toolbox gives one to the first user of its logger alone."""
    logger = logging.getLogger('basicsr')
    for handler in list(logger.handlers):
        logger.removeHandler(handler)
        handler.close()
    basicsr.utils.logger.initialized_logger.clear()


def launcher_of_environment() -> str:
    """'pytorch' in a process that torchrun started, else 'none'."""
    return 'pytorch' if 'TORCHELASTIC_RUN_ID' in os.environ else 'none'


def with_hash(options: dict[str, Any]) -> dict[str, Any]:
    """The options and their own hash, which weights and results carry on."""
    options = {key: value for key, value in options.items() if key != 'options_sha256'}
    return {**options, 'options_sha256': hashlib.sha256(yaml.safe_dump(options).encode()).hexdigest()}


@master_only
def _keep_test_options(options: dict[str, Any], debug: bool) -> None:
    """results/NAME/options.yml; the toolbox keeps those of a training alone."""
    name = options['name']
    if debug and not name.startswith('debug'):
        name = f'debug_{name}'  # as the toolbox calls it then
    text = yaml.safe_dump({**with_hash(options), 'name': name}, sort_keys=False)
    Path('results', name, 'options.yml').write_text(text, encoding='utf-8')


def run(
    command: str,
    options: dict[str, Any],
    name: str,
    *,
    launcher: str = 'none',
    auto_resume: bool = False,
    debug: bool = False,
) -> None:
    """Run the toolbox's pipeline; experiments/ and results/ go under the current folder.

    Args:
        command: 'train' or 'test'.
        options: the resolved options. The toolbox reads them from a file, and keeps a copy with a training run.
        name: the file name that this copy gets.
        launcher: 'none', 'pytorch' or 'slurm'.
        auto_resume: go on from the newest training state, where there is one.
        debug: the toolbox's debug mode: an experiment named debug_..., validated and saved every 8 iterations.
    """
    pipeline = importlib.import_module(f'basicsr.{command}')
    flags = [flag for flag, given in {'--auto_resume': auto_resume, '--debug': debug}.items() if given]
    with tempfile.TemporaryDirectory(prefix='basicsr-options-') as folder:
        path = Path(folder, name)
        path.write_text(yaml.safe_dump(with_hash(options), sort_keys=False), encoding='utf-8')
        with replaced(), _arguments('-opt', str(path), '--launcher', launcher, *flags):
            _forget_logger()
            try:
                getattr(pipeline, f'{command}_pipeline')(str(Path.cwd()))
                if command == 'test':
                    _keep_test_options(options, debug)
                if distributed.is_initialized():
                    distributed.barrier()  # processes that leave one by one can take the others down
            finally:
                if distributed.is_initialized():
                    distributed.destroy_process_group()
                _forget_logger()
