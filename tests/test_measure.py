"""What benchmarks/measure.py says of times, and what it does on a card that is too small."""

import math
from unittest import mock

import pytest
import torch
from conftest import benchmark_script

from wrcan_arch.errors import InputError


@pytest.fixture(scope='module')
def measure():
    return benchmark_script('measure')


@pytest.mark.parametrize('chained', [False, True])
@pytest.mark.parametrize(
    'error',
    [
        torch.cuda.OutOfMemoryError('CUDA out of memory. Tried to allocate'),
        RuntimeError('FIND was unable to find an engine to execute this computation'),
        InputError('6000 x 4000 pixels need 4750 MB of memory, but only 4000 MB are available; scale the image down'),
    ],
)
def test_a_variant_that_the_memory_does_not_hold_does_not_fit(measure, error, chained):
    raised = error
    if chained:
        raised = ValueError('advice')
        raised.__cause__ = error
    assert not measure.fits(mock.Mock(side_effect=raised))
    with pytest.raises(RuntimeError, match='a defect'):
        measure.fits(mock.Mock(side_effect=RuntimeError('a defect')))


def test_a_variant_that_no_longer_fits_once_the_others_have_run_is_left_out(measure):
    taken = []

    def first():
        if 'second' in taken:
            raise torch.cuda.OutOfMemoryError('CUDA out of memory. Tried to allocate')

    times = measure.take_turns({'first': first, 'second': lambda: taken.append('second')}, rounds=3)
    assert list(times) == ['second'] and len(times['second'].seconds) == 3


def test_a_table_of_which_nothing_fits_says_so(measure, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(measure, 'RESULTS', tmp_path)
    measure.Report('small').add('A step', [])
    assert capsys.readouterr().out.endswith('A step\n\ndoes not fit\n\n')
    assert not list(tmp_path.iterdir())


def test_spread_is_the_range_of_the_rounds(measure):
    assert measure.Times((3.0, 4.0, 5.0)).spread == 0.5 and measure.Times((76.8, 106.0)).spread > 0.3
    assert math.isnan(measure.Times((1.0,)).spread)
