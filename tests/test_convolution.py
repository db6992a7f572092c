"""Rows of a convolution's output against the whole convolution, and how often weights are packed."""

import pytest
import torch
from torch import nn

from wrcan_arch.convolution import Convolution, packs_weights

CPU = torch.device('cpu')
needs_packing = pytest.mark.skipif(
    not packs_weights(CPU, torch.float32), reason='oneDNN packs no weights on this machine'
)


def conv_of(stride=1, rate=1):
    torch.manual_seed(0)
    return nn.Conv2d(6, 10, 3, stride=stride, padding=rate, dilation=rate)


@pytest.mark.parametrize('packs', [pytest.param(True, marks=needs_packing), False])
@pytest.mark.parametrize(('stride', 'rate'), [(1, 1), (1, 2), (1, 3), (1, 4), (2, 1)])
@pytest.mark.parametrize('width', [2, 12])
@torch.no_grad()
def test_any_rows_are_those_of_the_whole_convolution(packs, stride, rate, width, monkeypatch):
    if not packs:
        monkeypatch.setattr('wrcan_arch.convolution.packs_weights', lambda *_: False)
    plain, image = conv_of(stride, rate), torch.rand(1, 6, 14, width)
    conv, expected = Convolution(plain, torch.float32), plain(image)
    for span in ((0, 1), (0, 3), (2, 5), (3, 6), (6, 7), (0, 7)):
        top = max(0, span[0] * stride - rate)  # the rows above are not there
        found = conv(image[:, :, top:], top, 14, span)
        torch.testing.assert_close(found, expected[:, :, slice(*span)], rtol=1e-5, atol=1e-6)


@needs_packing
@torch.no_grad()
def test_weights_are_packed_once_for_strips_of_one_height():
    conv, image = Convolution(conv_of(rate=4), torch.float32), torch.rand(1, 6, 30, 9)
    packed = []
    for span in ((0, 8), (8, 16), (16, 24), (24, 30)):  # the first reads beyond the edge, the last is lower
        conv(image, 0, 30, span)
        packed.append(conv.packed)
    assert packed[0] is packed[1] is packed[2] is not packed[3]
