"""A short campaign of benchmarks/chaos.py; the long one is `nice python benchmarks/chaos.py`."""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

CHAOS = Path(__file__).parent.parent / 'benchmarks' / 'chaos.py'


@pytest.mark.slow
def test_kills_and_faults_leave_nothing_but_what_should_be(tmp_path):
    command = [sys.executable, str(CHAOS), '--kills', '3', '3', '1', '1', '-o', str(tmp_path / 'chaos.json')]
    with tempfile.TemporaryDirectory() as private:  # rwx------; tmp_path is too long for the data workers' sockets
        env = {**os.environ, 'TMPDIR': private}
        result = subprocess.run(command, capture_output=True, text=True, env=env)
    assert result.returncode == 0, result.stdout[-3000:] + result.stderr[-3000:]
    assert 'kills survived, results identical, files lost: 8, 8, 0' in result.stdout
    figures = json.loads((tmp_path / 'chaos.json').read_text())
    assert len(figures['faults']) == 6 and set(figures['faults'].values()) == {'identical'}
