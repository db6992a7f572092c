"""Muon against PyTorch's Muon, which takes only matrices, and its Adam."""

import io

import pytest
import torch

from wrcan_arch import WRCAN
from wrcan_arch.train.muon import Muon, is_hidden_kernel, orthogonalize

SIZES = [(6, 4, 3, 3), (16, 8, 3, 3), (64, 4, 1, 1), (4, 64, 1, 1)]


def draws(sizes, seed):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(size, generator=generator) for size in sizes]


@pytest.mark.parametrize('size', [(3, 8, 30), (2, 30, 8), (1, 1, 5), (1, 16, 16)])
def test_orthogonalized_keeps_the_singular_vectors_and_evens_the_values(size):
    (matrices,) = draws([size], 0)
    u, values, vt = torch.linalg.svd(matrices, full_matrices=False)
    values = values[:, :1] * torch.linspace(1, 0.05, values.shape[1])  # far apart, all large enough for five steps
    result = u.mT @ orthogonalize(u @ torch.diag_embed(values) @ vt) @ vt.mT
    evened = torch.diagonal(result, dim1=1, dim2=2)
    assert evened.min() > 0.65 and evened.max() < 1.25
    torch.testing.assert_close(result, torch.diag_embed(evened), rtol=0, atol=1e-4)


def test_orthogonalized_zeros_stay_zeros():
    assert orthogonalize(torch.zeros(2, 4, 9)).abs().max() == 0


def test_kernels_move_as_by_pytorchs_muon():
    ours = [each.requires_grad_() for each in draws(SIZES, 1)]
    theirs = [each.flatten(1).requires_grad_() for each in draws(SIZES, 1)]
    optimizer = Muon(ours, lr=0.01)
    reference = torch.optim.Muon(theirs, lr=0.01, weight_decay=0, momentum=0.95)
    for step in range(4):
        for kernel, matrix, gradient in zip(ours, theirs, draws(SIZES, 2 + step), strict=True):
            kernel.grad, matrix.grad = gradient, gradient.flatten(1)
        optimizer.step()
        reference.step()
    for kernel, matrix, start in zip(ours, theirs, draws(SIZES, 1), strict=True):
        moved, expected = (kernel - start).flatten(1), matrix - start.flatten(1)
        assert (moved - expected).norm() < 0.02 * expected.norm()  # theirs multiplies in bf16


def test_the_others_move_as_by_pytorchs_adam():
    sizes = [(16,), (16, 3, 3, 3), (3, 16, 3, 3)]
    assert not any(map(is_hidden_kernel, draws(sizes, 1)))
    ours, theirs = ([each.requires_grad_() for each in draws(sizes, 1)] for _ in range(2))
    optimizer = Muon(ours, adam_lr=0.01, betas=(0.8, 0.9))
    reference = torch.optim.Adam(theirs, lr=0.01, betas=(0.8, 0.9))
    for step in range(5):
        for parameter, other, gradient in zip(ours, theirs, draws(sizes, 2 + step), strict=True):
            parameter.grad = other.grad = gradient
        optimizer.step()
        reference.step()
    for parameter, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(parameter, other)


def test_a_weight_without_gradient_is_not_changed():
    kernels = [each.requires_grad_() for each in draws([(6, 4, 3, 3), (16,)] * 2, 1)]
    before = [each.detach().clone() for each in kernels]
    for each in kernels[:2]:
        each.grad = torch.ones_like(each)
    Muon(kernels).step()
    assert [torch.equal(each, other) for each, other in zip(kernels, before, strict=True)] == [False, False, True, True]


def steps_of(network, optimizer, count):
    for seed in range(count):
        torch.manual_seed(seed)
        network(torch.rand(1, 3, 12, 12)).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    return torch.cat([each.detach().reshape(-1) for each in network.parameters()])


def network():
    torch.manual_seed(0)
    return WRCAN(num_feat=16, num_group=1, num_block=1)


def test_a_stored_state_goes_on_to_the_same_bits():
    first = network()
    optimizer = Muon(first.parameters())
    steps_of(first, optimizer, 3)
    file = io.BytesIO()
    torch.save((first.state_dict(), optimizer.state_dict()), file)
    file.seek(0)
    weights, state = torch.load(file)
    second = network()
    second.load_state_dict(weights)
    resumed = Muon(second.parameters())
    resumed.load_state_dict(state)
    assert torch.equal(steps_of(first, optimizer, 3), steps_of(second, resumed, 3))


def test_a_closure_is_called_for_the_gradients():
    parameter = torch.ones(3, requires_grad=True)
    optimizer = Muon([parameter], adam_lr=0.1)

    def closure():
        optimizer.zero_grad()
        loss = parameter.square().sum()
        loss.backward()
        return loss

    assert optimizer.step(closure) == 3 and optimizer.step(closure) < 3
    assert optimizer.step() is None


def test_channels_last_moves_alike():
    plain, last = network(), network().to(memory_format=torch.channels_last)
    torch.testing.assert_close(
        steps_of(plain, Muon(plain.parameters()), 2), steps_of(last, Muon(last.parameters()), 2), rtol=1e-3, atol=1e-5
    )


def test_kernels_are_what_goes_from_features_to_features():
    others = {name for name, each in network().named_parameters() if not is_hidden_kernel(each)}
    assert {name for name in others if name.endswith('weight')} == {'head.weight', 'tail.weight'}


@pytest.mark.parametrize('wrong', [{'momentum': 1.0}, {'betas': (0.9, 1.5)}, {'lr': -1.0}, {'adam_lr': -1.0}])
def test_invalid_settings_are_refused(wrong):
    with pytest.raises(ValueError, match='|'.join(wrong)):
        Muon(draws([(4,)], 0), **wrong)
