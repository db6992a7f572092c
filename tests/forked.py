"""Runs the command in forks of a process that has loaded the toolbox: loading it takes ten seconds of a core."""

import multiprocessing
import os
import random
import runpy
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from multiprocessing.context import ForkServerProcess
from pathlib import Path

import torch

from wrcan_arch import cli

_forking = multiprocessing.get_context('forkserver')
_forking.set_forkserver_preload(['forked', 'wrcan_arch.train.option_checks', 'wrcan_arch.train.pipelines'])


def environment(**variables: object) -> dict[str, str]:
    """The environment of a single-threaded process that belongs to no torchrun or SLURM job, with `variables` set."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith(('TORCHELASTIC', 'SLURM', 'MASTER'))}
    return {**kept, 'OMP_NUM_THREADS': '1', **{name: str(value) for name, value in variables.items()}}


def free_port() -> int:
    """A port that nothing listens on, below those that the system gives to others meanwhile (ip_local_port_range)."""
    while True:
        port = random.SystemRandom().randrange(20_000, 32_000)  # not of a generator that a training has seeded
        with socket.socket() as asked, suppress(OSError):
            asked.bind(('', port))
            return port


def srun(processes: int, *command: object, script: str | None = None, **variables: object) -> tuple[list[int], str]:
    """Start processes with SLURM's variables, as srun does. Return their exit codes and their joined output.

    If `script` is given, it runs instead of `basicsr`, with the arguments `command`.
    """
    job = {'SLURM_STEP_NUM_TASKS': processes, 'SLURM_STEP_NODELIST': 'localhost', 'MASTER_PORT': free_port()}
    started = []
    for rank in range(processes):
        own = environment(**{**job, 'SLURM_PROCID': rank, 'SLURM_LOCALID': rank, **variables})
        started.append(_start(own, f'said_{rank}.txt', script, command))
    try:
        codes = [ended(each) for each in started]
    finally:  # pytest's time limit raises, and then waits for all processes when it ends
        for each in started:
            each.kill()
    return codes, ''.join(Path(f'said_{rank}.txt').read_text() for rank in range(processes))


@contextmanager
def start(*command: object, script: str | None = None) -> Iterator[ForkServerProcess]:
    """Run the command, or `script`, in one process beside the test. Its output goes to said.txt."""
    process = _start(environment(), 'said.txt', script, command)
    try:
        yield process
    finally:
        process.kill()


def ended(process: ForkServerProcess) -> int | None:
    """Wait for a process; return its exit code."""
    process.join()
    return process.exitcode


def _start(variables: dict[str, str], said: str, script: str | None, command: tuple) -> ForkServerProcess:
    arguments = tuple(map(str, command))
    process = _forking.Process(target=_run, args=(str(Path.cwd()), variables, said, script, arguments))
    process.start()
    return process


def _run(folder: str, variables: dict[str, str], said: str, script: str | None, command: tuple[str, ...]) -> None:
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(variables)
    torch.set_num_threads(1)
    multiprocessing.set_start_method('fork', force=True)  # data workers use the default, fork, again
    file = os.open(said, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    for output in (1, 2):
        os.dup2(file, output)
    if script:
        sys.argv = [script, *command]
        runpy.run_path(script, run_name='__main__')
    else:
        sys.exit(cli.main(list(command)))
