"""Runs on_gpu.py, on this machine's GPU or on a simulated one."""

import subprocess
import sys
from pathlib import Path

import pytest
from conftest import environment_with_gpus
from simulated_gpu import build

NO_GPU = 77
LOAD_AND_RUN = f"""
import ctypes, sys
for library in sys.argv[2:]:
    ctypes.CDLL(library, mode=ctypes.RTLD_GLOBAL)
import pytest, torch
if not (sys.argv[2:] or torch.cuda.is_available()):
    sys.exit({NO_GPU})
sys.exit(pytest.main(['-q', '-p', 'no:cacheprovider', '-p', 'no:xdist', sys.argv[1]]))
"""


@pytest.mark.slow
def test_on_a_gpu(tmp_path):
    tests = Path(__file__).with_name('on_gpu.py')
    command = [sys.executable, '-c', LOAD_AND_RUN, tests, *build(tmp_path)]
    ran = subprocess.run(command, capture_output=True, text=True, env=environment_with_gpus())
    if ran.returncode == NO_GPU:
        pytest.skip('no GPU, and none can be simulated: that takes g++ and PyTorch for CPUs')
    assert ran.returncode == 0, ran.stdout + ran.stderr
