"""Errors that the command reports in one line, and PyTorch's memory errors."""

import re
from collections.abc import Iterable

SHOWN_PROBLEMS = 20
# In PyTorch's messages. Where no algorithm of cuDNN gets the memory that it needs, it finds no 'engine'.
FULL_GPU = re.compile('(CUDA|HIP)( error:)? out of memory|STATUS_ALLOC_FAILED|unable to find an engine to execute')
NO_MEMORY = re.compile(f'out of memory|not enough memory|allocate memory|{FULL_GPU.pattern}')
UNUSABLE_GPU = re.compile('CUDA error: (no kernel image|.*busy or unavailable)')
GPU_IS_FULL = "the GPU's memory is full; take a smaller image or patch, or compute on the CPU (CUDA_VISIBLE_DEVICES=)"
NO_TOOLBOX = 'BasicSR 1.4.2 cannot be installed on Python 3.13 and newer; for training, use Python 3.11 or 3.12'


class InputError(ValueError):
    """The request cannot be carried out with the given input.

    The message is one line, or one for each of several mistakes: what, where, and what to do. The `basicsr` command
    prints it and exits with code 2; for one photograph among several it is reported at the end, and the exit code is 1.
    """


def refuse(problems: Iterable[str]) -> None:
    """Raise one InputError that shows the first 20 problems; do nothing if there are none."""
    problems = list(problems)
    more = [f'and {len(problems) - SHOWN_PROBLEMS} more'] if len(problems) > SHOWN_PROBLEMS else []
    if problems:
        raise InputError('\n'.join([*problems[:SHOWN_PROBLEMS], *more]))


def one_line(error: InputError) -> str:
    """The error's own message, without the traceback that PyTorch puts before it if a data worker raised it."""
    return str(error).strip().rpartition('wrcan_arch.errors.InputError: ')[2]


class RunError(RuntimeError):
    """A run under way must end. The message is one line, like InputError's."""

    def __init__(self, message: str, exit_code: int = 1) -> None:
        super().__init__(message)
        self.exit_code = exit_code


def is_out_of_memory(error: Exception) -> bool:
    """Whether the host or a GPU ran out of memory: PyTorch raises errors of several types for it."""
    return isinstance(error, MemoryError) or bool(NO_MEMORY.search(str(error)))


def is_full_gpu(error: BaseException) -> bool:
    return bool(FULL_GPU.search(str(error)))
