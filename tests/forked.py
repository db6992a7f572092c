"""The command in processes of its own that a loaded one forks: loading the toolbox takes ten seconds of a core."""

import multiprocessing
import os
import runpy
import socket
import sys
from multiprocessing.context import ForkServerProcess
from pathlib import Path

import torch

from wrcan_arch import cli

_forking = multiprocessing.get_context('forkserver')
_forking.set_forkserver_preload(['forked', 'wrcan_arch.train.option_checks', 'wrcan_arch.train.pipelines'])


def environment(**variables: object) -> dict[str, str]:
    """Of a process that is alone on its core and of no job, and these."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith(('TORCHELASTIC', 'SLURM', 'MASTER'))}
    return {**kept, 'OMP_NUM_THREADS': '1', **{name: str(value) for name, value in variables.items()}}


def free_port() -> int:
    with socket.socket() as asked:
        asked.bind(('localhost', 0))
        return asked.getsockname()[1]


def srun(processes: int, *command: object, script: str | None = None, **variables: object) -> tuple[list[int], str]:
    """As srun does it: processes with SLURM's variables, and no more. Their exit codes, and what all of them said.

    `script` is run in the command's place, with its arguments.
    """
    job = {'SLURM_STEP_NUM_TASKS': processes, 'SLURM_STEP_NODELIST': 'localhost', 'MASTER_PORT': free_port()}
    started = []
    for rank in range(processes):
        own = environment(**{**job, 'SLURM_PROCID': rank, 'SLURM_LOCALID': rank, **variables})
        started.append(_start(own, f'said_{rank}.txt', script, command))
    return [ended(each) for each in started], ''.join(Path(f'said_{rank}.txt').read_text() for rank in range(processes))


def basicsr(*command: object) -> tuple[int, str]:
    """Alone: the exit code, and what was said."""
    return ended(start(*command)), Path('said.txt').read_text()


def start(*command: object, script: str | None = None) -> ForkServerProcess:
    """Alone, to go on beside the test; said.txt holds what it says."""
    return _start(environment(), 'said.txt', script, command)


def ended(process: ForkServerProcess) -> int | None:
    """Its exit code; it is killed, and the code says so, if it does not end by itself."""
    process.join(200)
    process.kill()
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
    multiprocessing.set_start_method('fork', force=True)  # the default again, for data workers
    file = os.open(said, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    for output in (1, 2):
        os.dup2(file, output)
    if script:
        sys.argv = [script, *command]
        runpy.run_path(script, run_name='__main__')
    else:
        sys.exit(cli.main(list(command)))
