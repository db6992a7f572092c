"""Progress is a bar in a terminal and lines in a log."""

import io
import math

import pytest

from wrcan_arch.system import progress_bar


@pytest.mark.parametrize('leave', [True, False])
@pytest.mark.parametrize('is_terminal', [True, False])
def test_updates_are_lines_unless_a_terminal_can_draw_over_them(monkeypatch, is_terminal, leave):
    said = io.StringIO()
    said.isatty = lambda: is_terminal
    monkeypatch.setattr('sys.stderr', said)
    monkeypatch.setattr(progress_bar, 'LOG_AFTER', 0)
    bar = progress_bar.progress_bar(range(2), mininterval=0, desc='\x1b', leave=leave)
    assert (bar.maxinterval == math.inf) == (not is_terminal), "in a log tqdm's monitor would write stale lines"
    list(bar)
    assert '\x1b' not in said.getvalue(), 'a name may hold escape sequences, which a terminal obeys'
    lines = said.getvalue().split('\n')
    assert ('\r' in said.getvalue()) == is_terminal
    if not is_terminal:
        assert [line[:11] for line in lines] == [f'\\x1b: {share:3}%|' for share in (0, 50, 100, 100)] + ['']


@pytest.mark.parametrize('counted', [0, 100_000])
def test_log_of_a_long_run_stays_short(monkeypatch, counted):
    """A cron job's mail holds all of it."""
    monkeypatch.setattr('sys.stderr', said := io.StringIO())
    monkeypatch.setattr(progress_bar, 'LOG_AFTER', 0)
    if counted:
        with progress_bar.progress_bar(total=counted) as bar:
            for _ in range(counted // 10):
                bar.update(10)
    else:
        list(progress_bar.progress_bar(range(1000)))
    assert 100 <= said.getvalue().count('\n') <= 102
