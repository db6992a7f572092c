"""Tests parts of pipelines.py; test_end_to_end.py tests whole runs."""

import logging
import sys

import basicsr.train
import pytest

from wrcan_arch.errors import RunError
from wrcan_arch.train import options, pipelines


def test_options_that_a_run_kept_have_the_hash_of_those_it_was_given():
    kept = pipelines.with_hash({'name': 'small'})
    assert pipelines.with_hash(kept) == kept != pipelines.with_hash({'name': 'other'})


def test_an_option_set_to_nothing_is_not_passed_on(workplace, monkeypatch):
    """The toolbox takes the mapping of dist_params apart."""
    seen = []
    monkeypatch.setattr(
        basicsr.train, 'train_pipeline', lambda _: seen.append(options.read_options(sys.argv[2]).values)
    )
    pipelines.run_pipeline('train', {**options.read_options('train.yml').values, 'dist_params': None}, 'train.yml')
    assert seen[0]['name'] == 'small' and 'dist_params' not in seen[0]


def test_a_run_that_a_full_disk_ends_says_so_though_its_log_cannot_be_closed(workplace, monkeypatch, capsys):
    def train_pipeline(_):
        logger = logging.getLogger('basicsr')
        logger.addHandler(logging.FileHandler('/dev/full'))
        logger.warning('a line')
        raise RunError('the run ends, make room')

    monkeypatch.setattr(basicsr.train, 'train_pipeline', train_pipeline)
    with pytest.raises(RunError, match='the run ends, make room'):
        pipelines.run_pipeline('train', options.read_options('train.yml').values, 'train.yml')
    assert 'Traceback' not in capsys.readouterr().err and not logging.getLogger('basicsr').handlers
