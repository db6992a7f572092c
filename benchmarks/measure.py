"""Measurements that the benchmarks share: times of variants in turns, the device's ceilings, memory, and reports.

The GPU is measured if there is one; with CUDA_VISIBLE_DEVICES= in front of the command the CPU is.

On a machine that does other work, only ratios within one run are meaningful. So the variants take turns, and a ratio is
the median over the rounds of the ratio of two times from the same round.
"""

import argparse
import json
import math
import multiprocessing
import platform
import re
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from wrcan_arch.errors import is_full_gpu
from wrcan_arch.source_commit import source_commit

RESULTS = Path(__file__).parent / 'results'
LIBRARIES = ('torch', 'numpy', 'opencv-python', 'lmdb', 'basicsr')
DEVICE = torch.device('cuda' if torch.cuda.is_available() else 'cpu')
MATRIX_ROWS = {'cpu': 4096, 'cuda': 8192}[DEVICE.type]
MATRIX_SIDES = {'cpu': (512, 4096), 'cuda': (8192,)}[DEVICE.type]  # of the square matrices to multiply by
WARMUPS = {'cpu': 1, 'cuda': 3}[DEVICE.type]
COPY_BYTES = 256 << 20


@dataclass(frozen=True)
class Times:
    """Seconds of one variant, round by round."""

    seconds: tuple[float, ...]

    @property
    def median(self) -> float:
        return statistics.median(self.seconds)

    @property
    def spread(self) -> float:
        """The slowest round's seconds less the fastest's, over the median; NaN after a single round."""
        return (max(self.seconds) - min(self.seconds)) / self.median if self.seconds[1:] else math.nan

    def times_faster_than(self, other: 'Times') -> float:
        return statistics.median(theirs / ours for ours, theirs in zip(self.seconds, other.seconds, strict=True))


def _wait() -> None:
    if DEVICE.type == 'cuda':
        torch.cuda.synchronize()


def rounds(text: str) -> int:
    """Parse an argument as a number of rounds, 2 or more."""
    if not text.isdecimal() or int(text) < 2:
        raise argparse.ArgumentTypeError(f'2 rounds or more, not {text}')
    return int(text)


def fits(run: Callable[[], object]) -> bool:
    """Call `run`; return whether the GPU's memory holds it."""
    try:
        run()
    except Exception as error:
        cause = error.__cause__ or error
        if not (is_full_gpu(cause) or 'of memory, but only' in str(cause)):  # restore says so before it computes
            raise
    else:
        return True
    torch.cuda.empty_cache()  # outside `except`: the error no longer holds its tensors
    return False


def take_turns(variants: Mapping[str, Callable[[], object]], *, rounds: int = 7, calls: int = 1) -> dict[str, Times]:
    """Return each variant's time per call, by name. Each round times every variant once, over `calls` calls.

    `rounds` is at least 2. Variants that the GPU's memory does not hold are left out.
    """
    running = {name: run for name, run in variants.items() if all(fits(run) for _ in range(WARMUPS))}
    seconds: dict[str, list[float]] = {name: [] for name in running}
    for _ in range(rounds):
        for name, run in tuple(running.items()):
            _wait()
            started = time.perf_counter()
            if all(fits(run) for _ in range(calls)):
                _wait()
                seconds[name].append((time.perf_counter() - started) / calls)
            else:  # those that warmed up after it have made their gradients and moments since
                del running[name]
    return {name: Times(tuple(seconds[name])) for name in running}


def matrix_product(dtype: torch.dtype) -> tuple[Callable[[], object], float]:
    """Return a function that multiplies matrices, the ceiling of arithmetic, and its floating-point operations.

    It is the fastest of `torch.mm` and a 1 x 1 convolution, on a CPU in two sizes: MKL has no AVX-512 for processors
    that are not Intel's, and large matrices leave the caches.
    """
    ways = [partial(_products, side, dtype, multiply) for side in MATRIX_SIDES for multiply in (torch.mm, _convolve)]
    seconds = {way: take_turns({'': way()}, rounds=2)[''].median for way in ways}
    return min(ways, key=lambda way: seconds[way])(), 2.0 * MATRIX_ROWS * MATRIX_SIDES[-1] ** 2


def _products(side: int, dtype: torch.dtype, multiply: Callable[[Tensor, Tensor], Tensor]) -> Callable[[], None]:
    """Return a function that makes products with a square matrix, with the operations of one with the largest."""
    left, right = (torch.randn(rows, side, device=DEVICE).to(dtype) for rows in (MATRIX_ROWS, side))

    def run() -> None:
        for _ in range((MATRIX_SIDES[-1] // side) ** 2):
            multiply(left, right)

    return run


def _convolve(left: Tensor, right: Tensor) -> Tensor:
    """Multiply `left` by the transpose of `right`: a row of `left` is the features of a pixel."""
    image = left.view(1, 64, -1, left.shape[1]).permute(0, 3, 1, 2)  # in channels last
    return F.conv2d(image, right[:, :, None, None])


def operations(run: Callable[[], object]) -> float:
    """Return the floating-point operations of a call."""
    with FlopCounterMode(display=False) as counter:
        run()
    return counter.get_total_flops()


def copy() -> tuple[Callable[[], object], float]:
    """Return a function that copies, the ceiling of the CPU's memory, and the bytes that it reads and writes."""
    source = torch.ones(COPY_BYTES // 4)
    target = torch.empty_like(source)
    return lambda: target.copy_(source), 2.0 * COPY_BYTES


def peak_memory(function: Callable[..., object], *arguments: Any) -> tuple[int, Any]:
    """Return the bytes by which `function(*arguments)` raises a new process's peak memory, and its result.

    What the process held before the call (libraries) is subtracted. Function, arguments and result must be picklable.
    """
    with multiprocessing.get_context('spawn').Pool(1) as pool:  # a fork would break OpenMP's threads
        return pool.apply(_peak_of_this_process, (function, arguments))


def peak_on_gpu(function: Callable[[], object]) -> int:
    """Return the peak bytes that `function()` allocates on the GPU, above what is allocated already."""
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    function()
    _wait()
    return torch.cuda.max_memory_allocated() - before


def _peak_of_this_process(function: Callable[..., object], arguments: tuple) -> tuple[int, Any]:
    Path('/proc/self/clear_refs').write_text('5')  # resets the peak (VmHWM) to the current size
    before = _status_bytes('VmRSS')
    result = function(*arguments)
    return _status_bytes('VmHWM') - before, result


def _status_bytes(name: str) -> int:
    """Return the bytes of a line in /proc/self/status such as 'VmRSS:  1234 kB'."""
    found = re.search(rf'^{name}:\s+(\d+) kB', Path('/proc/self/status').read_text(), re.MULTILINE)
    assert found, f'/proc/self/status has no {name}'
    return int(found[1]) << 10


def machine(device: torch.device = DEVICE) -> dict[str, Any]:
    """Describe what the numbers were measured on."""
    info = Path('/proc/cpuinfo').read_text()
    names = re.findall(r'^model name\s*: (.*)', info, re.MULTILINE)
    units = sorted(set(re.findall(r'\b(?:amx_bf16|avx512_bf16|avx512f|avx2)\b', info)))
    return {
        'date': date.today().isoformat(),
        'commit': source_commit(),
        'command': ' '.join([Path(sys.argv[0]).name, *sys.argv[1:]]),
        'processor': names[0] if names else platform.machine(),
        'units': units,
        'threads': torch.get_num_threads(),
        'gpu': torch.cuda.get_device_name() if device.type == 'cuda' else None,
        'python': platform.python_version(),
        **{name: version(name) for name in LIBRARIES},
    }


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Return Markdown with a column for each key of the longest row; floats have three digits, gaps are dashes."""
    columns = max((list(row) for row in rows), key=len)
    lines = [columns, ['---'] * len(columns), *([_cell(row.get(column)) for column in columns] for row in rows)]
    widths = [max(len(line[number]) for line in lines) for number in range(len(columns))]
    return '\n'.join(
        '| ' + ' | '.join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) + ' |' for line in lines
    )


def _cell(value: Any) -> str:
    if value is None:
        return '-'
    if isinstance(value, float):
        return f'{value:.3g}' if abs(value) < 1000 else f'{value:,.0f}'
    return str(value)


class Report:
    """Print and store a script's tables, each as soon as it is added, so that an interrupted run is not lost.

    They are stored in benchmarks/results/NAME.json, a GPU's in NAME_gpu.json.
    """

    def __init__(self, name: str, device: torch.device = DEVICE) -> None:
        about = machine(device)
        self.path = RESULTS / f'{name}{"_gpu" if device.type == "cuda" else ""}.json'
        self.content: dict[str, Any] = {'machine': about, 'tables': {}}
        print(f'# {name}\n\n' + ', '.join(f'{key} {value}' for key, value in about.items()) + '\n', flush=True)

    def add(self, title: str, rows: Sequence[Mapping[str, Any]]) -> None:
        if not rows:  # a small GPU's memory may hold none of the variants
            print(f'{title}\n\ndoes not fit\n', flush=True)
            return
        print(f'{title}\n\n{table(rows)}\n', flush=True)
        self.content['tables'][title] = rows
        RESULTS.mkdir(exist_ok=True)
        self.path.write_text(json.dumps(self.content, indent=1) + '\n', encoding='utf-8')
