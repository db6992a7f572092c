"""Rows of a convolution's output against the whole convolution; how often weights are packed."""

import platform
from copy import deepcopy
from functools import cache

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from wrcan_arch import cli
from wrcan_arch.strips.convolution import Convolution, Kernel, PairedKernel, can_pack, margin_of, packs_weights

CPU = torch.device('cpu')
TYPES = [torch.float32, torch.bfloat16]


def conv_of(stride=1, rate=1):
    torch.manual_seed(0)
    return nn.Conv2d(6, 10, 3, stride=stride, padding=rate, dilation=rate)


@pytest.mark.parametrize('how', ['packed', 'in pairs', 'plain'])
@pytest.mark.parametrize(('dtype', 'rtol', 'atol'), [(torch.float32, 1e-5, 1e-6), (torch.bfloat16, 0.01, 0.01)])
@pytest.mark.parametrize(('stride', 'rate'), [(1, 1), (1, 2), (1, 3), (1, 4), (2, 1)])
@pytest.mark.parametrize('width', [2, 12])  # of the output: bf16 is wrong at 1 on AMX, so `restore` avoids it
@torch.no_grad()
def test_any_rows_are_those_of_the_whole_convolution(how, dtype, rtol, atol, stride, rate, width, monkeypatch):
    if how == 'plain':
        monkeypatch.setattr('wrcan_arch.strips.convolution.packs_weights', lambda *_: False)
    if how == 'in pairs':
        monkeypatch.setattr('wrcan_arch.strips.convolution.PAIRED_CHANNELS', 0)
        monkeypatch.setattr('wrcan_arch.strips.convolution.PAIRED_POSITIONS', 0)
    plain, image = conv_of(stride, rate), torch.rand(1, 6, 14, width * stride)
    conv, expected = Convolution(plain, dtype, positions=14 * width), plain(image)
    end = expected.shape[2]
    for span in ((0, 1), (0, 3), (2, 5), (3, end - 1), (end - 3, end), (end - 1, end), (0, end)):
        found = conv.rows_of_map(image.to(dtype), span)
        assert found.dtype == dtype
        torch.testing.assert_close(found.float(), expected[:, :, slice(*span)], rtol=rtol, atol=atol)


@pytest.mark.parametrize('packs', [True, False])
@pytest.mark.parametrize(('dtype', 'rtol', 'atol'), [(torch.float32, 1e-5, 1e-6), (torch.bfloat16, 0.01, 0.01)])
@pytest.mark.parametrize('rate', [1, 2, 3, 4])
@torch.no_grad()
def test_columns_of_zeros_may_be_there_already(packs, dtype, rtol, atol, rate, monkeypatch):
    if not packs:
        monkeypatch.setattr('wrcan_arch.strips.convolution.packs_weights', lambda *_: False)
    plain, image = conv_of(rate=rate), torch.rand(1, 6, 14, 12)
    conv, expected = Convolution(plain, dtype, positions=14 * 12, margin=4), plain(image)
    for span in ((0, 3), (5, 9), (0, 14)):
        found = conv.rows_of_map(F.pad(image, (4, 4)).to(dtype), span)
        torch.testing.assert_close(found.float(), expected[:, :, slice(*span)], rtol=rtol, atol=atol)


def test_wide_maps_have_margins_for_amx(monkeypatch):
    monkeypatch.setattr('wrcan_arch.strips.convolution.packs_weights', lambda *_: True)
    monkeypatch.setattr(torch.cpu, '_is_amx_tile_supported', lambda: True, raising=False)
    assert margin_of(CPU, torch.bfloat16, 128, rate=4) == 4
    assert margin_of(CPU, torch.bfloat16, 127, rate=4) == margin_of(CPU, torch.float32, 128, rate=4) == 0
    monkeypatch.setattr('wrcan_arch.strips.convolution.packs_weights', lambda *_: False)
    assert margin_of(CPU, torch.bfloat16, 128, rate=4) == 0
    monkeypatch.setattr('wrcan_arch.strips.convolution.packs_weights', lambda *_: True)
    monkeypatch.delattr(torch.cpu, '_is_amx_tile_supported')
    assert margin_of(CPU, torch.bfloat16, 128, rate=4) == 0


@pytest.mark.parametrize('dtype', TYPES)
def test_weights_are_packed_for_onednn_on_x86(dtype, monkeypatch):
    of_avx512 = torch.cpu._is_avx512_supported()
    has_onednn = torch.backends.mkldnn.is_available() and (dtype == torch.float32 or of_avx512)
    assert packs_weights(CPU, dtype) == (has_onednn and platform.machine() in ('x86_64', 'AMD64'))
    assert can_pack(dtype) or not has_onednn, 'or restoring is slow, and nobody is told'
    assert not packs_weights(CPU, torch.float16)
    assert not packs_weights(torch.device('cuda'), dtype)
    with torch.backends.mkldnn.flags(enabled=False):
        assert not packs_weights(CPU, dtype)
    monkeypatch.setattr('platform.machine', lambda: 'aarch64')
    assert not packs_weights(CPU, dtype)


def broken_operator(*_):
    raise TypeError('another number of arguments')


def wrong_operator(self, rows, zeros=0, right=Kernel.__call__):
    return 2 * right(self, rows, zeros)


def other_operator(self, rows, zeros=0, right=Kernel.__call__):
    return right(self, rows, zeros).double()


@pytest.mark.parametrize('operator', [broken_operator, wrong_operator, other_operator])
@torch.no_grad()
def test_a_pytorch_whose_operators_have_changed_is_done_without_them(monkeypatch, capsys, operator):
    """PyTorch does not promise to keep these operators."""
    monkeypatch.setattr('wrcan_arch.strips.convolution.can_pack', cache(can_pack.__wrapped__))
    monkeypatch.setattr(Kernel, '__call__', operator)
    conv, image = conv_of(), torch.rand(1, 6, 9, 9)
    torch.testing.assert_close(Convolution(conv, torch.float32, positions=81).rows_of_map(image, (0, 9)), conv(image))
    assert cli.main(['doctor']) == 0 and 'slower; no oneDNN here that fits' in capsys.readouterr().out


@pytest.mark.parametrize('dtype', TYPES)
@torch.no_grad()
def test_weights_are_packed_once_for_strips_of_one_height(dtype):
    conv, image = Convolution(conv_of(rate=4), dtype, positions=30 * 9), torch.rand(1, 6, 30, 9, dtype=dtype)
    packed = []
    for span in ((0, 8), (8, 16), (16, 24), (24, 30)):  # the first reads beyond the edge, the last has fewer rows
        conv.rows_of_map(image, span)
        packed.append(conv.kernel and conv.kernel.packed)
    if packs_weights(CPU, dtype):
        assert {each.dtype for each in packed} == {dtype}, 'or they would be converted on every call'
        assert packed[0] is packed[1] is packed[2] is not packed[3]
    else:
        assert packed == [None] * 4


@pytest.mark.parametrize(
    ('of_pairs', 'channels', 'dtype', 'stride', 'rate', 'width'),
    [
        (True, 256, torch.float32, 1, 1, 256),
        (False, 128, torch.float32, 1, 1, 256),
        (False, 256, torch.bfloat16, 1, 1, 256),
        (False, 256, torch.float32, 2, 1, 256),
        (False, 256, torch.float32, 1, 2, 256),
        (False, 256, torch.float32, 1, 1, 255),
    ],
)
@torch.no_grad()
def test_rows_are_computed_in_pairs_where_that_pays(of_pairs, channels, dtype, stride, rate, width):
    plain = nn.Conv2d(channels, 8, 3, stride=stride, padding=rate, dilation=rate)
    conv = Convolution(plain, dtype, positions=16 * width)
    image = torch.rand(1, channels, 16, width, dtype=dtype).to(memory_format=torch.channels_last)
    rows = conv.rows_of_map(image, (1, 3))
    assert isinstance(conv.kernel, PairedKernel) == (of_pairs and packs_weights(CPU, dtype))
    if isinstance(conv.kernel, PairedKernel):
        products = [product.packed for product in conv.kernel.products]
        assert None not in products
        conv.rows_of_map(image, (2, 4))
        conv.rows_of_map(image, (4, 6))
        assert all(a is b.packed for a, b in zip(products, conv.kernel.products, strict=True))
        exact = deepcopy(plain).double()(image.double())[:, :, 1:3]
        of_nine = Kernel(lambda: plain.weight, plain.bias)(image[:, :, :4])
        error_of_pairs, error_of_nine = ((each - exact).abs().mean() for each in (rows, of_nine))
        assert error_of_pairs < 1.5 * error_of_nine, 'as exact as a sum of nine products; it was 0.6 of it'
