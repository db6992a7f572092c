"""Checks whether this machine can run an option file: its GPUs, their driver, its folders."""

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import torch

from ..system.files import is_utf8
from ..system.processes import problem_of_driver
from .options import OptionFile, find, sections

LONGEST_TMPDIR = 107 - len('/pymp-12345678/listener-12345678')  # bytes; the first is that of a socket's path, unix(7)


def wrong_machine(file: OptionFile) -> Iterator[str]:
    """Yield a line for each option that this machine cannot follow."""
    if not is_utf8(here := Path.cwd()):  # tensorboard fails, and the log lacks lines
        yield f'{here}: a name that is not UTF-8, which logs cannot hold; run this in another folder'
    found = torch.cuda.device_count()
    wanted = file.values['num_gpu']
    if isinstance(wanted, int) and wanted > found:
        hint = 'auto takes what is there'
        yield f'{file.at("num_gpu")}: {wanted} asked for, this machine has {found}; {hint}'
    elif wanted != 0 and (problem := problem_of_driver()):  # else the run would silently use the CPU
        yield f'{file.at("num_gpu")}: {problem}; update it, or set num_gpu: 0'
    is_local = find(file.values, 'val', 'inference', 'mode') == 'local'
    if file.values.get('deterministic') and is_local and found and wanted != 0:
        hint = 'a GPU adds the sums of mode local in another order each time; leave out one of the two'
        yield f'{file.at("deterministic")}: {hint}'
    for phase, dataset in sections(file.values, 'datasets').items():
        too_long = len(os.fsencode(tempfile.gettempdir())) > LONGEST_TMPDIR
        if phase == 'train' and dataset.get('num_worker_per_gpu') and too_long:  # the run would wait for them for ever
            where = file.at('datasets', phase, 'num_worker_per_gpu')
            hint = f'set TMPDIR to a folder whose path has at most {LONGEST_TMPDIR} bytes'
            yield f'{where}: workers pass data on through sockets in {tempfile.gettempdir()}, which is too long; {hint}'
        if dataset.get('prefetch_mode') == 'cuda' and not (found and dataset.get('pin_memory')):
            where = file.at('datasets', phase, 'prefetch_mode')
            yield f'{where}: cuda needs a GPU and pin_memory: true'
