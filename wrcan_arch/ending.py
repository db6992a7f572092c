"""How a command ends: which process reports what, and with which exit code."""

import json
import os
import signal
import sys
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from .errors import GPU_IS_FULL, NO_TOOLBOX, UNUSABLE_GPU, InputError, RunError, is_full_gpu, one_line
from .system.signals import handling
from .system.terminal import print_error, printable_lines


@contextmanager
def signals_exit() -> Iterator[None]:
    """Have SIGTERM and SIGHUP, unless they are ignored, end the command as an error does, which clears files away."""

    def leave(number: int, _: Any) -> None:
        sys.exit(128 + number)

    with handling((signal.SIGTERM, signal.SIGHUP), leave):
        yield


@contextmanager
def ctrl_c_ends() -> Iterator[None]:
    """Have Ctrl+C end the process at once while libraries and weights load: some of them swallow an exception."""

    def end(*_: Any) -> None:
        with suppress(OSError):
            os.write(2, b'basicsr: stopped\n')
        os._exit(130)

    before = signal.getsignal(signal.SIGINT)
    if before is signal.default_int_handler:  # else it is ignored, or the caller's
        signal.signal(signal.SIGINT, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def is_one_of_several() -> bool:
    processes = (os.environ.get(name, '1') for name in ('WORLD_SIZE', 'SLURM_STEP_NUM_TASKS'))
    return any(each.isdecimal() and int(each) > 1 for each in processes)


def exit_code_of_several(error: Exception, command: str, *, debug: bool) -> int:
    """The exit code of one of several processes. Only the first with an error prints its message."""
    from .system.processes import ERROR_WAIT, Team, contact_lost

    error = contact_lost(error) or error
    try:
        tells = Team.from_environment(timeout=ERROR_WAIT).is_first_error()
    except (InputError, RuntimeError):  # no other process to ask
        tells = True
    message = message_for_user(error)
    if tells:
        line = printable_lines(f'basicsr {command}: {message or repr(error)}')
        print_error(''.join(traceback.format_exception(error)).rstrip() if message is None or debug else line)
        _name_to_torchrun(line)
    return getattr(error, 'exit_code', 2 if message else 1)


def end_in_nccl_group(code: int) -> None:
    """End the process at once if it is in an NCCL group: Python's own end would leave it, and wait for the others."""
    from .system.processes import in_nccl_group

    if in_nccl_group():
        for stream in filter(None, (sys.stdout, sys.stderr)):
            with suppress(OSError):
                stream.flush()
        os._exit(code)


def _name_to_torchrun(line: str) -> None:
    """Have torchrun name this process as the root cause in its table of failed processes."""
    path = os.environ.get('TORCHELASTIC_ERROR_FILE')
    if path:
        about = {'message': line, 'extraInfo': {'timestamp': int(time.time()), 'py_callstack': line}}
        Path(path).write_text(json.dumps({'message': about}), encoding='utf-8')


def message_for_user(error: Exception) -> str | None:
    """The message for an error that the request caused; None for a defect, whose traceback is shown."""
    if isinstance(error, RunError):
        return str(error)
    if isinstance(error, InputError):
        return one_line(error)
    if isinstance(error, RuntimeError) and is_full_gpu(error):
        return GPU_IS_FULL
    if isinstance(error, RuntimeError) and UNUSABLE_GPU.search(str(error)):
        return f'{str(error).splitlines()[0]}; see basicsr doctor, or compute on the CPU (CUDA_VISIBLE_DEVICES=)'
    if isinstance(error, ImportError) and error.name == 'basicsr' and sys.version_info >= (3, 13):
        return NO_TOOLBOX
    if isinstance(error, ImportError):  # of a package or a system library
        return f'{error}; basicsr doctor says what is missing'
    if isinstance(error, OSError):
        return f'{error.filename}: {error.strerror}' if error.filename else str(error)
    return None
