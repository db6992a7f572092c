"""Tests what a run takes and goes on from; test_exact_resume.py and test_torchrun.py test whole runs."""

from contextlib import nullcontext
from pathlib import Path
from unittest import mock

import pytest
from conftest import resolved_options

from wrcan_arch import WRCAN, WRCANModel
from wrcan_arch.checkpoint import write_weights
from wrcan_arch.errors import InputError
from wrcan_arch.train import run_folder
from wrcan_arch.train.current_run import Run, load_resume_state


def test_several_gpus_of_one_process_are_one(workplace):
    opt = resolved_options(num_gpu=2)
    opt['path'] |= {'experiments_root': 'experiments/small'}
    run = Run()
    with run.held:
        assert load_resume_state(run, opt) is None and opt['num_gpu'] == 1
    assert run.warnings == ['One of 2 GPUs is used; torchrun --nproc_per_node=2 -m wrcan_arch train ... uses all.']


def test_processes_go_on_from_the_same_checkpoint(workplace):
    team = mock.Mock()
    team.noted_before_restart.return_value = False
    opt = resolved_options(dist=True, rank=1)
    opt['path'] |= {'experiments_root': 'experiments/small'}
    run = Run(team=team, timeout=7)
    with run.held:
        assert load_resume_state(run, opt) is None
    team.agree.assert_called_once_with({'the checkpoint to go on from as': 'None'}, timeout=7)


@pytest.mark.parametrize('ignored', [False, True])
def test_a_run_that_began_with_bare_tensors_goes_on_from_its_own_checkpoint(workplace, monkeypatch, ignored):
    monkeypatch.setattr(run_folder, 'newest_pair', lambda *_: ({'iter': 4}, []))
    opt = resolved_options(model_type='SRModel', auto_resume=True)
    opt['path'] |= {'experiments_root': 'experiments/small', 'models': 'models', 'param_key_g': None}
    if ignored:
        opt['path'] |= {'pretrain_network_g': 'bare.pth', 'ignore_resume_networks': ['network_g']}
    run = Run()
    with run.held:
        assert load_resume_state(run, opt) == {'iter': 4}
    expected = ('bare.pth', None) if ignored else ('models/net_g_4.pth', 'params')
    assert (opt['path']['pretrain_network_g'], opt['path']['param_key_g']) == expected


@pytest.mark.parametrize('case', ['ours', 'not strict', 'its own way to load', 'ignored', 'of the toolbox', 'no WRCAN'])
def test_weights_of_another_network_are_refused_where_our_model_would_load_them(workplace, monkeypatch, case):
    monkeypatch.setattr(run_folder, 'newest_pair', lambda *_: ({'iter': 4}, []))
    opt = resolved_options(model_type='SRModel' if case == 'of the toolbox' else 'WRCANModel', auto_resume=True)
    opt['path'] |= {'experiments_root': 'experiments/small', 'models': '.', 'strict_load_g': case != 'not strict'}
    if case == 'its own way to load':
        monkeypatch.setattr(WRCANModel, 'load_network', mock.Mock())
    if case == 'ignored':
        opt['path'] |= {'ignore_resume_networks': ['network_g']}
    if case == 'no WRCAN':
        opt['network_g'] = {'type': 'EDSR', 'num_in_ch': 3, 'num_out_ch': 3}
    write_weights('net_g_4.pth', {'params': WRCAN(num_feat=8, num_group=1, num_block=1).state_dict()}, {})
    expected = pytest.raises(InputError, match='set network_g:num_feat=8$') if case == 'ours' else nullcontext()
    run = Run()
    with run.held, expected:
        assert load_resume_state(run, opt) == {'iter': 4}


@pytest.mark.parametrize('is_restart', [False, True])
def test_processes_that_torchrun_restarts_go_on_without_what_their_own_run_put_aside(workplace, is_restart):
    older, folder = 'small_archived_20261029_010203_000004', 'small_archived_20261130_010203_000004'
    for each in ('small', older, folder):
        Path('experiments', each, 'training_states').mkdir(parents=True)
    for each in (older, folder):
        Path('experiments', each, 'training_states', '4.state').touch()
    team = mock.Mock()
    team.noted_before_restart.return_value = is_restart
    opt = resolved_options(dist=True, rank=1, auto_resume=not is_restart)
    opt['path'] |= {'experiments_root': 'experiments/small'}
    run = Run(team=team)
    with run.held:
        if is_restart:
            assert load_resume_state(run, opt) is None
        else:
            with pytest.raises(InputError, match=f'but {folder} beside it has'):
                load_resume_state(run, opt)
