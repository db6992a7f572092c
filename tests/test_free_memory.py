"""Free memory under the limits of containers and jobs, with cgroups of both versions imitated by files."""

import pytest
import torch

from wrcan_arch.system import free_memory as memory

GB = 1 << 30


@pytest.fixture
def free(tmp_path):
    """Return a function from /proc/self/cgroup's text and each group's files to the free memory in each group."""

    def found(own, groups):
        (tmp_path / 'own').write_text(own)
        for name, files in groups.items():
            folder = tmp_path / 'root' / name
            folder.mkdir(parents=True, exist_ok=True)
            for file, content in files.items():
                (folder / file).write_text(content)
        return list(memory._free_in_groups(tmp_path / 'own', tmp_path / 'root'))

    return found


def test_free_memory_of_the_machine_is_the_kernels_memavailable(tmp_path, monkeypatch):
    assert 1 << 20 < memory.free_memory(torch.device('cpu')) < 1 << 50
    (tmp_path / 'meminfo').write_text('MemTotal: 9 kB\nMemFree: 1 kB\nMemAvailable: 5 kB\n')
    assert list(memory._free_in_machine(tmp_path / 'meminfo')) == [5 * 1024]
    for unknown in ('_free_in_machine', '_free_in_groups'):
        monkeypatch.setattr(memory, unknown, lambda: [])
    assert memory.free_memory(torch.device('cpu')) == 8 * GB


@pytest.mark.parametrize(('said', 'groups', 'share'), [
    ({}, [], 12), ({'LOCAL_WORLD_SIZE': '4'}, [], 3), ({'SLURM_STEP_TASKS_PER_NODE': '3(x2),2'}, [], 4),
    ({}, [6 * GB, 24 * GB], 6), ({'LOCAL_WORLD_SIZE': '2'}, [6 * GB], 3), ({}, [24 * GB], 12),
])  # fmt: skip
def test_processes_of_one_machine_share_its_memory(monkeypatch, said, groups, share):
    monkeypatch.setattr(memory, '_free_in_machine', lambda: [12 * GB])
    monkeypatch.setattr(memory, '_free_in_groups', lambda: groups)
    for name, value in said.items():
        monkeypatch.setenv(name, value)
    assert memory.free_memory(torch.device('cpu')) == share * GB


def test_memory_that_pytorch_has_reserved_counts_as_free(monkeypatch):
    for name, value in {'mem_get_info': (GB, 8 * GB), 'memory_reserved': 5 * GB, 'memory_allocated': 2 * GB}.items():
        monkeypatch.setattr(torch.cuda, name, lambda device, value=value: value)
    assert memory.free_memory(torch.device('cuda')) == 4 * GB


def test_a_job_has_its_limit_less_what_it_uses_but_its_cache(free):
    limit = {'memory.max': str(4 * GB), 'memory.current': str(3 * GB), 'memory.stat': f'anon 1\ninactive_file {GB}\n'}
    nothing = {'memory.max': 'max\n', 'memory.current': '5\n'}
    assert free('0::/a/job\n', {'': {}, 'a': limit, 'a/job': nothing}) == [2 * GB]
    above = {'memory.max': str(GB), 'memory.current': '0\n'}
    assert sorted(free('0::/a/job\n', {'': above})) == [GB, 2 * GB], 'the limit of each group above holds too'
    assert free('0::/\n', {'': {**above, 'memory.current': str(2 * GB)}}) == [0]


def test_version_1_and_a_container_that_shows_itself_as_the_root(free):
    container = {'memory.limit_in_bytes': str(2 * GB), 'memory.usage_in_bytes': str(GB)}
    container['memory.stat'] = f'inactive_file 7\ntotal_inactive_file {GB // 2}\n'  # its own, and with groups inside
    assert free('9:cpu,memory:/docker/4f\n8:pids:/docker/4f\n', {'memory': container}) == [3 * GB // 2]


def test_a_system_without_control_groups(tmp_path):
    assert not list(memory._free_in_groups(tmp_path / 'nowhere'))
    assert not list(memory._free_in_machine(tmp_path / 'nowhere'))
