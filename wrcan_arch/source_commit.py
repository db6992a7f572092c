"""Which commit this package runs from, as it is recorded with weights and measurements."""

import subprocess
from functools import cache
from pathlib import Path


@cache
def source_commit() -> str | None:
    """The commit of the checkout that this package runs from, with -dirty if tracked files differ from it.

    Measured results may differ: each of the benchmarks writes its own. None outside a checkout, or if git cannot say.
    """
    this = Path(__file__).resolve()
    # This checkout may be another user's, whose code we run anyway; a repository of theirs further up could run more.
    trusted = ('-c', f'safe.directory={this.parents[1]}', '-c', 'core.fsmonitor=false')

    def git(*arguments: str) -> str:
        command = ['git', *trusted, '--no-optional-locks', '-C', str(this.parent), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.strip()

    try:
        git('ls-files', '--error-unmatch', this.name)  # fails if git does not track us, as in a venv
        changed = git('status', '--porcelain', '--untracked-files=no', '--', ':/', ':(top,exclude)benchmarks/results')
        return git('rev-parse', 'HEAD') + ('-dirty' if changed else '')
    except (OSError, subprocess.SubprocessError):
        return None
