"""Rows of a convolution's output against the whole convolution, and how often weights are packed."""

import platform
from copy import deepcopy

import pytest
import torch
from torch import nn

from wrcan_arch.convolution import Convolution, packs_weights

CPU = torch.device('cpu')
TYPES = [torch.float32, torch.bfloat16]


def conv_of(stride=1, rate=1):
    torch.manual_seed(0)
    return nn.Conv2d(6, 10, 3, stride=stride, padding=rate, dilation=rate)


@pytest.mark.parametrize('how', ['packed', 'in pairs', 'plain'])
@pytest.mark.parametrize(('dtype', 'rtol', 'atol'), [(torch.float32, 1e-5, 1e-6), (torch.bfloat16, 0.01, 0.01)])
@pytest.mark.parametrize(('stride', 'rate'), [(1, 1), (1, 2), (1, 3), (1, 4), (2, 1)])
@pytest.mark.parametrize('width', [2, 12])  # of the output: bf16 is wrong at 1 on AMX, and `restore` keeps away from it
@torch.no_grad()
def test_any_rows_are_those_of_the_whole_convolution(how, dtype, rtol, atol, stride, rate, width, monkeypatch):
    if how == 'plain':
        monkeypatch.setattr('wrcan_arch.convolution.packs_weights', lambda *_: False)
    if how == 'in pairs':
        monkeypatch.setattr('wrcan_arch.convolution.PAIRED_CHANNELS', 0)
        monkeypatch.setattr('wrcan_arch.convolution.PAIRED_POSITIONS', 0)
    plain, image = conv_of(stride, rate), torch.rand(1, 6, 14, width * stride)
    conv, expected = Convolution(plain, dtype), plain(image)
    end = expected.shape[2]
    for span in ((0, 1), (0, 3), (2, 5), (3, end - 1), (end - 3, end), (end - 1, end), (0, end)):
        top = max(0, span[0] * stride - rate)  # the rows above are not there
        found = conv(image[:, :, top:].to(dtype), top, 14, span)
        assert found.dtype == dtype
        torch.testing.assert_close(found.float(), expected[:, :, slice(*span)], rtol=rtol, atol=atol)


@pytest.mark.parametrize('dtype', TYPES)
def test_weights_are_packed_for_onednn_on_x86(dtype, monkeypatch):
    of_avx512 = torch.cpu._is_avx512_supported()
    has_onednn = torch.backends.mkldnn.is_available() and (dtype == torch.float32 or of_avx512)
    assert packs_weights(CPU, dtype) == (has_onednn and platform.machine() in ('x86_64', 'AMD64'))
    assert not packs_weights(CPU, torch.float16)
    assert not packs_weights(torch.device('cuda'), dtype)
    with torch.backends.mkldnn.flags(enabled=False):
        assert not packs_weights(CPU, dtype)
    monkeypatch.setattr('platform.machine', lambda: 'aarch64')
    assert not packs_weights(CPU, dtype)


@pytest.mark.parametrize('dtype', TYPES)
@torch.no_grad()
def test_weights_are_packed_once_for_strips_of_one_height(dtype):
    if not packs_weights(CPU, dtype):
        pytest.skip('oneDNN does not compute in this type here, so nothing is packed')
    conv, image = Convolution(conv_of(rate=4), dtype), torch.rand(1, 6, 30, 9, dtype=dtype)
    packed = []
    for span in ((0, 8), (8, 16), (16, 24), (24, 30)):  # the first reads beyond the edge, the last is lower
        conv(image, 0, 30, span)
        packed.append(conv.kernel.packed)
        assert conv.kernel.packed.dtype == dtype, 'or it would be converted on every call'
    assert packed[0] is packed[1] is packed[2] is not packed[3]


@pytest.mark.parametrize(
    ('of_pairs', 'channels', 'dtype', 'stride', 'rate', 'width'),
    [
        (True, 256, torch.float32, 1, 1, 1 << 10),
        (False, 128, torch.float32, 1, 1, 1 << 10),
        (False, 256, torch.bfloat16, 1, 1, 1 << 10),
        (False, 256, torch.float32, 2, 1, 1 << 10),
        (False, 256, torch.float32, 1, 2, 1 << 10),
        (False, 256, torch.float32, 1, 1, 1 << 9),
    ],
)
@torch.no_grad()
def test_rows_are_computed_in_pairs_where_that_pays(of_pairs, channels, dtype, stride, rate, width):
    plain = nn.Conv2d(channels, 8, 3, stride=stride, padding=rate, dilation=rate)
    conv = Convolution(plain, dtype)
    image = torch.rand(1, channels, 8, width, dtype=dtype).to(memory_format=torch.channels_last)
    rows = conv(image, 0, 16, (1, 3))
    assert (conv.kernel.packed is None) == (of_pairs or not conv.packs)
    if of_pairs and conv.packs:
        products = [product.packed for product in conv.paired.products]
        assert None not in products
        conv(image, 0, 16, (2, 4))
        conv(image, 0, 16, (4, 6))
        assert all(a is b.packed for a, b in zip(products, conv.paired.products, strict=True))
        exact = deepcopy(plain).double()(image.double())[:, :, 1:3]
        of_pairs, of_nine = ((each - exact).abs().mean() for each in (rows, conv.kernel(image[:, :, :4])))
        assert of_pairs < 1.5 * of_nine, 'as exact as a sum of nine products; it was 0.6 of it'
