"""The Makefile installs once, and again when .venv no longer fits; scripts run in any clone."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def planned(checkout):
    """What `make install` would run."""
    environment = {name: value for name, value in os.environ.items() if 'MAKE' not in name}  # of `make test`
    done = subprocess.run(
        ['make', '-n', 'install'], cwd=checkout, env=environment, capture_output=True, text=True, check=True
    )
    assert not done.stderr
    return done.stdout


@pytest.mark.parametrize('name', ['checkout', 'with spaces'])
def test_an_environment_that_no_longer_fits_is_made_anew(tmp_path, name):
    checkout = tmp_path / name
    python = checkout / '.venv/bin/python'
    checkout.mkdir()
    for each in ('Makefile', 'setup.py', 'pyproject.toml', 'constraints.txt'):
        shutil.copy(ROOT / each, checkout)
    assert '-m venv' in planned(checkout)

    python.parent.mkdir(parents=True)
    python.symlink_to(sys.executable)
    (checkout / '.venv/installed').write_text(f'{checkout}\n')
    assert 'venv' not in planned(checkout)

    moved = checkout.rename(tmp_path / 'moved')
    assert '-m venv --clear' in planned(moved)
    moved.rename(checkout)
    assert 'venv' not in planned(checkout)

    python.unlink()
    python.symlink_to('/gone/python3')
    assert '-m venv --clear' in planned(checkout)


def test_scripts_have_no_carriage_returns_in_a_clone_by_git_for_windows(tmp_path):
    """WSL and containers run what it checks out."""
    names = ('demo.sh', 'Makefile')
    for name in ('.gitattributes', *names):
        shutil.copy(ROOT / name, tmp_path)
    for command in ('init -q', 'add .', 'checkout-index --all --force --prefix=clone/'):
        subprocess.run(['git', '-c', 'core.autocrlf=true', *command.split()], cwd=tmp_path, check=True)
    for name in names:
        assert b'\r' not in (tmp_path / 'clone' / name).read_bytes()
