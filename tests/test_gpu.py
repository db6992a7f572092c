"""Runs on_gpu.py: on the GPU that is here, or on one that is pretended."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from pretended_gpu import build

LOAD_AND_RUN = """
import ctypes, sys
for library in sys.argv[2:]:
    ctypes.CDLL(library, mode=ctypes.RTLD_GLOBAL)
import pytest
sys.exit(pytest.main(['-q', '-p', 'no:cacheprovider', '-p', 'no:xdist', sys.argv[1]]))
"""


@pytest.mark.slow
def test_on_a_gpu(tmp_path):
    libraries = build(tmp_path)
    if not libraries and not torch.cuda.is_available():
        pytest.skip('no GPU, and none can be pretended: that takes g++ and PyTorch for CPUs')
    tests = Path(__file__).with_name('on_gpu.py')
    ran = subprocess.run([sys.executable, '-c', LOAD_AND_RUN, tests, *libraries], capture_output=True, text=True)
    assert ran.returncode == 0, ran.stdout + ran.stderr
