"""Runs BasicSR's train_pipeline and test_pipeline, with what replacements.py replaces in them."""

import hashlib
import logging
import sys
import tempfile
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any
from unittest import mock

import basicsr.test
import basicsr.train
import basicsr.utils.logger
import yaml
from basicsr.utils import get_root_logger
from basicsr.utils.dist_util import master_only
from torch import distributed

from ..system.files import write_text
from ..system.processes import in_nccl_group
from .current_run import Run
from .lpips_metric import use_gpu
from .replacements import replaced
from .several_processes import check_batch, gpus_of_one_process
from .stopping import ending_data_workers
from .wrcan_model import WRCANModel


def _forget_logger() -> None:
    """Let the next run open its own log file: the toolbox opens one only for the first user of its logger."""
    logger = logging.getLogger('basicsr')
    for handler in list(logger.handlers):
        logger.removeHandler(handler)
        with suppress(OSError):  # of a full disk, which would hide why the run ends
            handler.close()
    basicsr.utils.logger.initialized_logger.clear()


def with_hash(options: dict[str, Any]) -> dict[str, Any]:
    """Return the options with their own SHA-256, which is stored with weights and results."""
    options = {key: value for key, value in options.items() if key != 'options_sha256'}
    return {**options, 'options_sha256': hashlib.sha256(yaml.safe_dump(options).encode()).hexdigest()}


@master_only
def _keep_test_options(options: dict[str, Any]) -> None:
    """Write results/NAME/options.yml; the toolbox keeps only a training's options."""
    write_text(Path('results', options['name'], 'options.yml'), yaml.safe_dump(options, sort_keys=False))


def run_pipeline(
    command: str, options: dict[str, Any], name: str, *, launcher: str = 'none', auto_resume: bool = False
) -> None:
    """Run the toolbox's pipeline; experiments/ and results/ go under the current folder.

    Args:
        command: 'train' or 'test'.
        options: the resolved options. The toolbox reads them from a file, and keeps a copy with a training run.
        name: the copy's file name.
        launcher: 'none', 'pytorch' or 'slurm'.
        auto_resume: resume from the newest training state, if there is one.
    """
    pipeline = {'train': basicsr.train.train_pipeline, 'test': basicsr.test.test_pipeline}[command]
    options = with_hash({key: value for key, value in options.items() if value is not None})  # without `dist_params: ~`
    use_gpu(options['num_gpu'] != 0)
    flags = ['--auto_resume'] if auto_resume else []
    with tempfile.TemporaryDirectory(prefix='basicsr-options-') as folder:
        path = Path(folder, name)
        path.write_text(yaml.safe_dump(options, sort_keys=False), encoding='utf-8')
        with ExitStack() as held:
            run = Run(command, options, held)
            held.enter_context(replaced(run))
            arguments = [sys.argv[0], '-opt', str(path), '--launcher', launcher, *flags]
            held.enter_context(mock.patch('sys.argv', arguments))  # from which the toolbox reads them
            if command == 'train':
                held.enter_context(ending_data_workers())
            _forget_logger()
            if launcher == 'none':
                check_batch(run, max(1, gpus_of_one_process(command, options)))
            try:
                pipeline(str(Path.cwd()))
                if command == 'test':
                    _keep_test_options(options)
                elif isinstance(run.model, WRCANModel):
                    get_root_logger().info(run.model.outcome())
                if distributed.is_initialized():
                    distributed.barrier()  # processes that leave one by one can take the others down
                    distributed.destroy_process_group()
            finally:
                if distributed.is_initialized() and not in_nccl_group():  # else the command ends the process
                    distributed.destroy_process_group()
                _forget_logger()
