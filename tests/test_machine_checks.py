"""What this machine cannot do of an option file is said before the run."""

import os
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
import yaml

from wrcan_arch.train import options
from wrcan_arch.train.machine_checks import LONGEST_TMPDIR, wrong_machine


@pytest.mark.parametrize(('gpus', 'num_gpu', 'refused'), [(1, 'auto', True), (0, 'auto', False), (1, 0, False)])
def test_local_is_refused_where_a_gpu_is_to_be_deterministic(demo, monkeypatch, gpus, num_gpu, refused):
    monkeypatch.setattr('torch.cuda.device_count', lambda: gpus)
    monkeypatch.setattr('torch.cuda.is_available', lambda: bool(gpus))
    values = yaml.safe_load(demo) | {'deterministic': True, 'num_gpu': num_gpu}
    values['val']['inference'] = {'mode': 'local'}
    Path('own.yml').write_text(yaml.safe_dump(values))
    said = list(wrong_machine(options.read_options('own.yml')))
    assert len(said) == refused and all('deterministic: a GPU adds the sums of mode local' in line for line in said)


@pytest.mark.parametrize(('num_gpu', 'refused'), [('auto', True), (1, True), (0, False)])
def test_gpus_that_the_driver_keeps_from_pytorch_are_no_reason_to_use_the_cpu(demo, monkeypatch, num_gpu, refused):
    monkeypatch.setattr('torch.cuda.device_count', lambda: 1)
    monkeypatch.setattr('torch.cuda.is_available', lambda: False)
    monkeypatch.setattr('torch.__version__', '2.13.0+cu130')
    Path('own.yml').write_text(yaml.safe_dump(yaml.safe_load(demo) | {'num_gpu': num_gpu}))
    said = list(wrong_machine(options.read_options('own.yml')))
    message = 'num_gpu: the driver is too old for PyTorch 2.13.0+cu130, or does not work; update it, or set num_gpu: 0'
    assert [line.partition(' ')[2] for line in said] == [message] * refused


@pytest.mark.parametrize(('gpus', 'pinned', 'refused'), [(1, True, False), (1, False, True), (0, True, True)])
def test_prefetching_needs_a_gpu_and_pinned_memory(demo, monkeypatch, gpus, pinned, refused):
    monkeypatch.setattr('torch.cuda.device_count', lambda: gpus)
    monkeypatch.setattr('torch.cuda.is_available', lambda: bool(gpus))
    values = yaml.safe_load(demo)
    values['datasets']['train'] |= {'prefetch_mode': 'cuda', 'pin_memory': pinned}
    Path('own.yml').write_text(yaml.safe_dump(values))
    said = list(wrong_machine(options.read_options('own.yml')))
    assert [line.endswith('cuda needs a GPU and pin_memory: true') for line in said] == [True] * refused


@pytest.fixture
def short_folder():
    with TemporaryDirectory(dir='/tmp') as folder:
        yield folder


@pytest.mark.parametrize('too_long', [0, 1])
def test_workers_need_a_temporary_folder_whose_path_is_short(demo, short_folder, monkeypatch, too_long):
    folder = Path(short_folder, 'x' * (LONGEST_TMPDIR + too_long - len(short_folder) - 1))
    folder.mkdir()
    monkeypatch.setattr('tempfile.tempdir', str(folder))
    values = yaml.safe_load(demo)
    values['datasets']['train']['num_worker_per_gpu'] = 1
    Path('own.yml').write_text(yaml.safe_dump(values))
    said = list(wrong_machine(options.read_options('own.yml')))
    listen = "from multiprocessing.connection import Listener; Listener(family='AF_UNIX')"
    environment = {**os.environ, 'TMPDIR': str(folder)}
    result = subprocess.run([sys.executable, '-c', listen], env=environment, capture_output=True, text=True)
    if too_long:
        assert len(said) == 1 and 'set TMPDIR to a folder whose path has at most 75 bytes' in said[0]
        assert 'AF_UNIX path too long' in result.stderr
    else:
        assert not said and result.returncode == 0
