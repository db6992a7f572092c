"""Tests for a GPU, on a real one if there is one, else on a simulated one. test_gpu.py runs them in a subprocess."""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from basicsr.models import build_model
from conftest import SMALL_TRAINING, picture, set_options, train
from simulated_gpu import simulated_gpu
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from wrcan_arch import WRCAN, chop, inference, load_network, restore
from wrcan_arch.cli import main
from wrcan_arch.precision import dtype_for
from wrcan_arch.strips.convolution import set_channels_last
from wrcan_arch.strips.network import restore_in_strips
from wrcan_arch.train import options
from wrcan_arch.wrcan_arch import ChannelAttention

LARGEST_ERROR = {'fp32': 5e-5, 'bf16': 0.01, 'fp16': 0.002}  # of a result in [0, 1]; a GPU's fp32 may be Winograd's
UPDATE_ERROR = 0.15  # Adam divides by the gradients' size, so rounding shows where they are small: 0.06 in bf16


class GPU:
    @property
    def calls(self) -> int:
        return torch.cuda.memory_stats().get('allocation.all.allocated', 0)  # allocations; most calls make one

    @contextmanager
    def nothing_waits(self) -> Iterator[None]:
        torch.cuda.set_sync_debug_mode('error')
        try:
            yield
        finally:
            torch.cuda.set_sync_debug_mode('default')


@pytest.fixture
def gpu():
    if torch.cuda.is_available():
        yield GPU()
    else:
        with simulated_gpu() as simulated:
            yield simulated


def network_of(block):
    torch.manual_seed(0)
    network = WRCAN(num_feat=8, num_group=1, num_block=2, block=block).eval()
    network.metadata = {'patch_size': 32}
    set_channels_last(network)
    return network


def bundled_network():
    """The small network: unlike in an untrained one, groups and window matter; the modes' results differ by 0.1."""
    network = load_network()
    network.metadata['patch_size'] = 16
    set_channels_last(network)
    return network


@pytest.mark.parametrize('mode', ['exact', 'local', 'chop'])
@pytest.mark.parametrize(
    ('make', 'precision'),
    [*((bundled_network, each) for each in LARGEST_ERROR), (partial(network_of, 'res'), 'fp32')],
    ids=[*LARGEST_ERROR, 'no attention'],
)
def test_restores_as_a_cpu_does(gpu, make, precision, mode, monkeypatch):
    monkeypatch.setattr(chop, 'CHOP_SHAVE', 3)  # else a quadrant is nearly the whole image
    on_cpu, on_gpu = make(), make().cuda()
    bound = LARGEST_ERROR[precision] * (3 if mode == 'chop' else 1)  # there the skips are rounded too
    for size in ((1, 1), (45, 62)):
        image = (picture(*size) / 255).astype(np.float32)
        expected = restore(on_cpu, image, mode=mode, precision='fp32')
        found = restore(on_gpu, image, mode=mode, precision=precision)
        assert np.abs(found - expected).max() <= bound, size


@pytest.mark.parametrize('window', [None, 4])
def test_strips_do_not_wait_for_each_other(gpu, window):
    network, image, restored = network_of('wrca').cuda(), torch.rand(1, 3, 64, 50).cuda(), []
    with gpu.nothing_waits():
        restore_in_strips(
            network,
            lambda span: image[:, :, slice(*span)],
            lambda _, rows: restored.append(rows),
            (64, 50),
            strip_rows=6,
            window=window,
            dtype=torch.bfloat16,
        )
    assert len(restored) > 2 and sum(rows.shape[2] for rows in restored) == 64


@pytest.mark.parametrize('mode', ['exact', 'local', 'chop'])
@pytest.mark.parametrize('ensemble', [False, True])
def test_only_results_are_waited_for(gpu, mode, ensemble, monkeypatch):
    monkeypatch.setattr(inference, '_store', lambda *_: None)
    network, image = network_of('wrca').cuda(), np.random.default_rng(0).random((40, 50, 3), np.float32)
    with gpu.nothing_waits():
        restore(network, image, mode=mode, ensemble=ensemble, precision='fp32')


def test_tensors_come_back_to_the_device_that_they_came_from(gpu):
    on_cpu, on_gpu, image = network_of('wrca'), network_of('wrca').cuda(), torch.rand(2, 3, 16, 20)
    expected = restore(on_cpu, image, ensemble=True, precision='fp32')
    for given in (image, image.cuda()):
        restored = restore(on_gpu, given, ensemble=True, precision='fp32')
        assert restored.device == given.device
        assert torch.allclose(restored.cpu(), expected, atol=1e-5)


class SumTypes(TorchDispatchMode):
    """Notes the types of sums."""

    def __init__(self):
        super().__init__()
        self.found = set()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        if function is torch.ops.aten.sum.dim_IntList:
            self.found.add(result.dtype)
        return result


@pytest.mark.parametrize(('dtype', 'summed_in'), [(torch.bfloat16, torch.bfloat16), (torch.float16, torch.float32)])
def test_autocast_leaves_the_type_of_the_attentions_sums(gpu, dtype, summed_in):
    attention, features = ChannelAttention(16).cuda(), torch.rand(1, 16, 3, 5).cuda().to(dtype)
    with torch.autocast('cuda', dtype), torch.no_grad(), SumTypes() as sums:
        attention(features)
    assert sums.found == {summed_in}


def model_with(num_gpu, optim_g=None, **chosen):
    opt = yaml.load(SMALL_TRAINING, options.OptionLoader)
    opt['train'] |= chosen
    opt['train']['optim_g'] |= optim_g or {}
    torch.manual_seed(1)
    return build_model({**opt, 'num_gpu': num_gpu, 'dist': False, 'rank': 0, 'world_size': 1, 'is_train': True})


def weights_of(model):
    networks = {name: getattr(model, name) for name in ('net_g', 'net_g_ema') if hasattr(model, name)}
    return {
        name: torch.cat([each.detach().cpu().flatten() for each in net.parameters()]) for name, net in networks.items()
    }


def check_update(on_gpu, on_cpu, before):
    for name, first in before.items():
        ours, expected = (weights_of(model)[name] - first for model in (on_gpu, on_cpu))
        assert float(ours @ expected / expected.norm() ** 2) == pytest.approx(1, abs=0.02), name
        assert float((ours - expected).norm() / expected.norm()) < UPDATE_ERROR, name


def batch():
    torch.manual_seed(0)
    return {name: torch.randint(256, (2, 3, 32, 32), dtype=torch.uint8) for name in ('lq', 'gt', 'gt_jpeg')}


STEPS = {
    'fp32': {'amp': 'off'},
    'the defaults': {'amp': 'auto'},
    'fp16': {'amp': 'fp16'},
    'two parts': {'amp': 'bf16', 'accumulate': 2},
    'checkpointing': {'amp': 'bf16', 'checkpointing': True},
    'averaged': {'amp': 'bf16', 'ema_decay': 0.9},
    'averaged, fp16': {'amp': 'fp16', 'ema_decay': 0.9},
}


@pytest.mark.parametrize('chosen', STEPS.values(), ids=STEPS)
def test_steps_are_a_cpus_and_the_host_waits_for_none(gpu, chosen):
    on_cpu, on_gpu = model_with(0, **{**chosen, 'amp': 'off'}), model_with(1, **chosen)
    computed_in = set()
    on_gpu.net_g.body_conv.register_forward_hook(lambda _, __, out: computed_in.add(out.dtype))
    before = weights_of(on_cpu)
    for iteration in (1, 2, 3):
        for model, place in ((on_cpu, nullcontext()), (on_gpu, gpu.nothing_waits())):
            with place:
                model.update_learning_rate(iteration)
                model.feed_data(batch())
                model.optimize_parameters(iteration)
    assert computed_in == {dtype_for({'off': 'fp32'}.get(chosen['amp'], chosen['amp']), on_gpu.device)}
    assert on_gpu.get_current_log() == pytest.approx(on_cpu.get_current_log(), rel=0.01)
    check_update(on_gpu, on_cpu, before)


def test_the_host_does_not_wait_for_its_copies_to_the_gpu(gpu, monkeypatch):
    """It would from memory that is not pinned, even if told not to."""
    model, data, pin, pinned = model_with(1), batch(), Tensor.pin_memory, []
    monkeypatch.setattr(Tensor, 'pin_memory', lambda tensor: pinned.append(id(tensor)) or pin(tensor))
    model.feed_data(data)
    model.feed_data({name: each.cuda() for name, each in data.items()})
    assert pinned == [id(each) for each in data.values()]


@pytest.mark.parametrize('optim_g', [{'type': 'Muon'}, {'fused': False}], ids=['Muon', 'unfused Adam'])
def test_other_optimizers_make_steps_too(gpu, optim_g):
    on_cpu, on_gpu = (model_with(number, optim_g) for number in (0, 1))
    before = weights_of(on_cpu)
    for model in (on_cpu, on_gpu):
        for iteration in (1, 2):
            model.feed_data(batch())
            model.optimize_parameters(iteration)
    assert on_gpu.get_current_log() == pytest.approx(on_cpu.get_current_log(), rel=0.01)
    check_update(on_gpu, on_cpu, before)


def test_commands_use_the_gpu(gpu, quick):
    train_yml, test_yml = Path('train.yml'), Path('test.yml')
    text = set_options(train_yml.read_text(), num_gpu=1, amp='auto', total_iter=6)
    loading = 'pin_memory: true\n    prefetch_mode: cuda\n'
    train_yml.write_text(text.replace('    gt_size', f'    {loading}    gt_size'))
    test_yml.write_text(set_options(test_yml.read_text(), num_gpu=1))
    weights = 'experiments/small/models/net_g_best.pth'
    for command in (
        train,
        partial(train, 'train:total_iter=10', resume=True),
        partial(main, ['test', '-opt', 'test.yml']),
        partial(main, ['restore', 'photos', '-o', 'restored', '-w', weights]),
    ):
        before = gpu.calls
        assert command() == 0
        assert gpu.calls > before + 100, command
    assert len(list(Path('restored').iterdir())) == 6
