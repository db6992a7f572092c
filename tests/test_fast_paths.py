"""Each fast path of a training step against the plain step: fp32, two calls, the default layout, unfused Adam."""

from contextlib import ExitStack
from unittest import mock

import pytest
import torch
import torch.nn.functional as F
import yaml
from basicsr.models import build_model
from conftest import SMALL_TRAINING

from wrcan_arch import WRCAN
from wrcan_arch.train import options
from wrcan_arch.wrcan_arch import WideReceptiveField

NETWORK = {'num_feat': 16, 'num_group': 1, 'num_block': 2}


def batch():
    torch.manual_seed(1)  # by AVX2's rounding, a value of seed 0 is on the other side of a kink (a ReLU's or L1's)
    return {name: torch.rand(2, 3, 32, 32) for name in ('lq', 'gt', 'gt_jpeg')}


def model_with(optim_g=None, **train):
    """Build a model with default options, except those given."""
    opt = yaml.load(SMALL_TRAINING, options.OptionLoader)
    del opt['train']['amp']
    opt['train'] |= train
    opt['train']['optim_g'] |= optim_g or {}
    opt |= {'path': {}, 'network_g': {'type': 'WRCAN', **NETWORK}}
    torch.manual_seed(1)
    return build_model({**opt, 'dist': False, 'rank': 0, 'world_size': 1, 'is_train': True})


def has_channels_last(model):
    return model.net_g.groups[0].conv.weight.is_contiguous(memory_format=torch.channels_last)


def plain_step(data):
    """Return the restored batch and the network with the gradients of Eq. 9, computed in two calls."""
    torch.manual_seed(1)
    network = WRCAN(**NETWORK)
    restored = network(data['lq'])
    with mock.patch.object(network.body_conv, 'forward', torch.zeros_like):  # f_NLT := f_EXP
        autoencoded = network(data['gt_jpeg'])
    (F.l1_loss(restored, data['gt']) + 0.1 * F.mse_loss(autoencoded, data['gt'])).backward()
    return restored.detach(), network


def relative(ours, plain):
    return ((ours - plain).norm() / plain.norm()).item()


def errors(model):
    """Return relative errors of the output, of all gradients together and of the worst; the output's largest error.

    The groups' gradients are only a thousandth of all.
    """
    data = batch()
    restored, network = plain_step(data)
    model.feed_data(data)
    model.optimize_parameters(1)
    ours, plain = ([each.grad.flatten() for each in net.parameters()] for net in (model.net_g, network))
    of_all, worst = relative(torch.cat(ours), torch.cat(plain)), max(map(relative, ours, plain))
    return relative(model.output, restored), of_all, worst, (model.output - restored).abs().max().item()


@pytest.mark.parametrize('train', [{}, {'channels_last': True}, {'checkpointing': True}, {'optim_g': {'fused': False}}])
def test_in_fp32_it_is_the_plain_step(train):
    output, gradients, worst, largest = errors(model_with(amp='off', **train))
    assert output < 1e-5 and gradients < 1e-5 and largest < 1e-5
    assert worst < 3e-5, "a bias's is a sum over all pixels, in another order: 6e-6"


@pytest.mark.parametrize('train', [{}, {'channels_last': False}, {'checkpointing': True}])
def test_in_bf16_it_is_near_the_plain_step(train):
    output, _, worst, largest = errors(model_with(amp='bf16', **train))
    assert output < 0.01 and largest < 0.01
    assert worst < 0.03, 'a rounding is 0.002 to 0.004, and a gradient adds up those of the layers behind: 0.019'


def test_fused_adam_makes_the_plain_steps():
    """From the same gradients, in channels-last memory, where an optimizer's passes could disagree on the order."""
    data = batch()
    model = model_with(amp='off', channels_last=True)
    network = WRCAN(**NETWORK)
    network.load_state_dict(model.net_g.state_dict())
    (settings,) = model.optimizer_g.param_groups
    assert settings['fused']
    plain = torch.optim.Adam(network.parameters(), settings['lr'], settings['betas'], foreach=False, fused=False)
    for iteration in (1, 2, 3):
        model.feed_data(data)
        model.optimize_parameters(iteration)
        for ours, theirs in zip(model.net_g.parameters(), network.parameters(), strict=True):
            theirs.grad = ours.grad.contiguous()
        plain.step()
    for ours, theirs in zip(model.net_g.parameters(), network.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-7)


def test_defaults_are_the_fast_ones_and_each_can_be_turned_off():
    def state(model):
        return model.amp_dtype, has_channels_last(model), model.optimizer_g.defaults['fused']

    with mock.patch('wrcan_arch.precision.has_bf16_units', return_value=True):
        assert state(model_with()) == (torch.bfloat16, True, True)
    with mock.patch('wrcan_arch.precision.has_bf16_units', return_value=False):
        assert state(model_with()) == (torch.float32, False, True)
    assert state(model_with(amp='off', channels_last=True)) == (torch.float32, True, True)
    plain = model_with(amp='bf16', channels_last=False, optim_g={'fused': False})
    assert state(plain) == (torch.bfloat16, False, False)


def test_testing_has_channels_last():
    network = {'type': 'WRCAN', **NETWORK}
    opt = {'model_type': 'WRCANModel', 'num_gpu': 0, 'dist': False, 'rank': 0, 'is_train': False, 'network_g': network}
    assert has_channels_last(build_model({**opt, 'path': {}}))


@pytest.mark.parametrize(('checkpointing', 'times'), [(False, 1), (True, 2)])
def test_checkpointing_runs_blocks_twice_and_nothing_else(checkpointing, times):
    model = model_with(checkpointing=checkpointing)
    calls = {'head': 0, 'expand': 0, 'blocks': 0}

    def count(name):
        def hook(*_):
            calls[name] += 1

        return hook

    model.net_g.head.register_forward_hook(count('head'))
    model.net_g.expand.register_forward_hook(count('expand'))
    for module in model.net_g.modules():
        if isinstance(module, WideReceptiveField):
            module.register_forward_hook(count('blocks'))
    model.feed_data(batch())
    model.optimize_parameters(1)
    assert calls == {'head': 1, 'expand': 1, 'blocks': times * NETWORK['num_block']}


@pytest.mark.parametrize('ema_decay', [0, 0.9])
def test_step_reads_nothing_back(ema_decay):
    """With the default fast paths the host queues a step and does not wait for it."""
    model = model_with(ema_decay=ema_decay)
    model.feed_data(batch())
    with ExitStack() as stack:
        for name in ('item', 'tolist', 'numpy', '__bool__', '__int__', '__float__', '__index__'):
            stack.enter_context(mock.patch.object(torch.Tensor, name, side_effect=AssertionError('the host waited')))
        model.optimize_parameters(1)
