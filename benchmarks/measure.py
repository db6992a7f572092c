"""What the benchmarks share: times of variants taken in turn, the device's ceilings, memory, a table and JSON.

The GPU is measured where there is one; with CUDA_VISIBLE_DEVICES= in front of the command the CPU is.

On a machine with other work on it only ratios within one run mean something. So the variants take turns, and a ratio is
the median over the rounds of two times that were taken one after the other.
"""

import json
import math
import multiprocessing
import platform
import re
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

RESULTS = Path(__file__).parent / 'results'
LIBRARIES = ('torch', 'numpy', 'opencv-python', 'lmdb', 'basicsr')
DEVICE = torch.device('cuda' if torch.cuda.is_available() else 'cpu')
MATRIX_SIDE = {'cpu': 4096, 'cuda': 8192}[DEVICE.type]
torch.backends.cudnn.allow_tf32 = False  # fp32 is fp32, in convolutions as in the matrix product beside them
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
        """Half the distance between the quartiles, over the median; not a number of a single round."""
        if len(self.seconds) == 1:
            return math.nan
        low, _, high = statistics.quantiles(self.seconds, n=4, method='inclusive')
        return (high - low) / 2 / self.median

    def times_faster_than(self, other: 'Times') -> float:
        return statistics.median(theirs / ours for ours, theirs in zip(self.seconds, other.seconds, strict=True))


def _wait() -> None:
    if DEVICE.type == 'cuda':
        torch.cuda.synchronize()


def take_turns(variants: Mapping[str, Callable[[], object]], *, rounds: int = 7, warmups: int = 1) -> dict[str, Times]:
    """Times of every variant, by its name; all run once in each round. `rounds` is at least 2."""
    seconds: dict[str, list[float]] = {name: [] for name in variants}
    for number in range(-warmups, rounds):
        for name, run in variants.items():
            _wait()
            started = time.perf_counter()
            run()
            _wait()
            if number >= 0:
                seconds[name].append(time.perf_counter() - started)
    return {name: Times(tuple(taken)) for name, taken in seconds.items()}


def matrix_product(dtype: torch.dtype) -> tuple[Callable[[], object], float]:
    """The ceiling of arithmetic: a product of two square matrices, and its floating-point operations."""
    left, right = (torch.randn(MATRIX_SIDE, MATRIX_SIDE, device=DEVICE).to(dtype) for _ in range(2))
    product = torch.empty_like(left)
    return lambda: torch.mm(left, right, out=product), 2.0 * MATRIX_SIDE**3


def copy() -> tuple[Callable[[], object], float]:
    """The ceiling of the CPU's memory: a copy, and the bytes that it reads and writes."""
    source = torch.ones(COPY_BYTES // 4)
    target = torch.empty_like(source)
    return lambda: target.copy_(source), 2.0 * COPY_BYTES


def peak_memory(function: Callable[..., object], *arguments: Any) -> tuple[int, Any]:
    """Bytes by which `function(*arguments)` raises the memory of a fresh process, and what it gives; all picklable.

    What the process held before the call (libraries) is taken off, what the function itself makes is not.
    """
    with multiprocessing.get_context('spawn').Pool(1) as pool:  # a fork would break OpenMP's threads
        return pool.apply(_peak_of_this_process, (function, arguments))


def peak_on_gpu(function: Callable[[], object]) -> int:
    """Bytes that `function()` allocates on the GPU at most, above what is allocated there already."""
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    function()
    _wait()
    return torch.cuda.max_memory_allocated() - before


def _peak_of_this_process(function: Callable[..., object], arguments: tuple) -> tuple[int, Any]:
    Path('/proc/self/clear_refs').write_text('5')  # the peak starts from what is held now
    before = _held('VmRSS')
    given = function(*arguments)
    return _held('VmHWM') - before, given


def _held(name: str) -> int:
    """Bytes, from a line such as 'VmRSS:  1234 kB'."""
    found = re.search(rf'^{name}:\s+(\d+) kB', Path('/proc/self/status').read_text(), re.MULTILINE)
    assert found, f'/proc/self/status has no {name}'
    return int(found[1]) << 10


def machine() -> dict[str, Any]:
    """What the numbers were measured on."""
    info = Path('/proc/cpuinfo').read_text()
    names = re.findall(r'^model name\s*: (.*)', info, re.MULTILINE)
    units = sorted(set(re.findall(r'\b(?:amx_bf16|avx512_bf16|avx512f|avx2)\b', info)))
    return {
        'date': date.today().isoformat(),
        'processor': names[0] if names else platform.machine(),
        'units': units,
        'threads': torch.get_num_threads(),
        'gpu': torch.cuda.get_device_name() if DEVICE.type == 'cuda' else None,
        'python': platform.python_version(),
        **{name: version(name) for name in LIBRARIES},
    }


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Markdown, a column for each key of the fullest row; floats with three digits, what is missing as a dash."""
    columns = list(max(rows, key=len))
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


def report(name: str, tables: Mapping[str, Sequence[Mapping[str, Any]]]) -> None:
    """Print the tables, by their titles, and write benchmarks/results/NAME.json."""
    about = machine()
    print(f'# {name}\n\n' + ', '.join(f'{key} {value}' for key, value in about.items()) + '\n')
    for title, rows in tables.items():
        print(f'{title}\n\n{table(rows)}\n')
    RESULTS.mkdir(exist_ok=True)
    text = json.dumps({'machine': about, 'tables': tables}, indent=1) + '\n'
    (RESULTS / f'{name}.json').write_text(text, encoding='utf-8')
