"""Free memory in bytes: of a GPU, or of this machine within the limits of this process's containers and jobs."""

import os
import re
from collections.abc import Iterator
from pathlib import Path

import torch

UNKNOWN = 8 << 30  # assumed if the system does not say

# For control groups of version 2 and 1: the files of limit and use, and memory.stat's key for the reclaimable cache.
VERSION_2 = ('memory.max', 'memory.current', 'inactive_file')
VERSION_1 = ('memory.limit_in_bytes', 'memory.usage_in_bytes', 'total_inactive_file')


def free_memory(device: torch.device) -> int:
    """Free bytes on `device`; on a CPU, divided by the number of this run's processes on this machine."""
    if device.type == 'cuda':
        kept_for_reuse = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + kept_for_reuse
    return min([*_free_in_machine(), *_free_in_groups()], default=UNKNOWN) // _processes_here()


def _processes_here() -> int:
    """Number of this run's processes on this machine; if srun gives '4(x2),3' for several machines, the first one."""
    count_text = os.environ.get('LOCAL_WORLD_SIZE') or os.environ.get('SLURM_STEP_TASKS_PER_NODE') or '1'
    return int(re.split('[(,]', count_text)[0])


def _free_in_machine(meminfo: Path = Path('/proc/meminfo')) -> Iterator[int]:
    kilobytes = _number_after('MemAvailable:', meminfo)
    if kilobytes is not None:
        yield 1024 * kilobytes


def _free_in_groups(own: Path = Path('/proc/self/cgroup'), root: Path = Path('/sys/fs/cgroup')) -> Iterator[int]:
    """Yield the free bytes of each control group of this process and those above it, such as a container's or job's."""
    try:
        lines = own.read_text().splitlines()  # 0::/job, or 9:cpu,memory:/job
    except OSError:
        return
    for line in lines:
        _, controllers, path = line.split(':', 2)
        if not controllers:
            top, files = root, VERSION_2
        elif 'memory' in controllers.split(','):
            top, files = root / 'memory', VERSION_1
        else:
            continue
        group = top / path.lstrip('/')  # in a container this may be the host's path, of which only top exists
        for folder in (group, *group.parents):
            if folder.is_relative_to(top):
                yield from _free_in_group(folder, *files)


def _free_in_group(folder: Path, limit_file: str, used_file: str, cache: str) -> Iterator[int]:
    try:
        limit, used = (int((folder / name).read_text()) for name in (limit_file, used_file))
    except (OSError, ValueError):  # no such group; or 'max', no limit
        return
    yield max(0, limit - used + (_number_after(cache, folder / 'memory.stat') or 0))


def _number_after(word: str, path: Path) -> int | None:
    try:
        words = path.read_text().split()
        return int(words[words.index(word) + 1])
    except (OSError, ValueError, IndexError):
        return None
