"""The inference modes against the official code's results and against their definitions."""

import numpy as np
import pytest
import torch

from wrcan_arch import WRCAN, InputError, inference, load_network, restore


@pytest.mark.parametrize(
    ('options', 'name'),
    [
        ({'mode': 'exact'}, 'out.whole'),
        ({'mode': 'exact', 'ensemble': True}, 'out.x8'),
        ({'mode': 'chop'}, 'out.chop36'),
        ({'mode': 'chop', 'ensemble': True}, 'out.x8_chop36'),
    ],
)
def test_each_mode_is_the_official_codes(golden, official_weights, options, name):
    restored = restore(load_network(official_weights), golden['in.blurred'], precision='fp32', **options)
    torch.testing.assert_close(restored, golden[name], rtol=1e-5, atol=1e-5)


def small_network():
    torch.manual_seed(0)
    return WRCAN(num_feat=8, num_group=1, num_block=1).eval()


def test_default_is_the_plain_forward():
    network, image = small_network(), torch.rand(2, 3, 13, 18)
    with torch.no_grad():
        assert torch.equal(restore(network, image, precision='fp32'), network(image))


@pytest.mark.parametrize('size', [(1, 1), (1, 7), (9, 2), (33, 47)])
def test_chop_and_ensemble_take_any_size(size):
    for options in ({'mode': 'chop'}, {'ensemble': True}):
        restored = restore(small_network(), torch.rand(1, 3, *size), precision='fp32', **options)
        assert restored.shape == (1, 3, *size) and restored.isfinite().all()


def test_chop_joins_the_right_parts(monkeypatch):
    monkeypatch.setattr(inference, 'CHOP_SHAVE', 3)
    image = torch.rand(1, 3, 21, 30)
    assert torch.equal(inference.restore_chop(lambda part: part, image), image)
    sizes = []
    monkeypatch.setattr(inference, 'CHOP_PIXELS', 21 * 30)
    inference.restore_chop(lambda part: sizes.append(part.shape[2:]) or part, image)
    assert len(sizes) == 16 and max(height * width for height, width in sizes) < 21 * 30 / 4


def test_ensemble_of_a_network_without_direction_is_the_network_itself():
    image = torch.rand(1, 3, 8, 10)
    torch.testing.assert_close(inference.restore_ensemble(lambda part: part * 2, image), image * 2)


@pytest.mark.parametrize(('dtype', 'peak'), [(np.uint8, 255), (np.uint16, 65535)])
def test_arrays_come_back_rounded_and_clipped_in_their_own_type(dtype, peak):
    network = small_network()
    image = np.random.default_rng(0).integers(0, peak + 1, (12, 15, 3)).astype(dtype)
    restored = restore(network, image, precision='fp32')
    tensor = torch.from_numpy(image.astype(np.float32) / peak).permute(2, 0, 1)[None]
    with torch.no_grad():
        expected = (network(tensor)[0].permute(1, 2, 0).clamp(0, 1) * peak).round().numpy()
    assert restored.dtype == dtype
    np.testing.assert_array_equal(restored, expected.astype(dtype))


@pytest.mark.parametrize('precision', ['bf16', 'auto'])
def test_lower_precision_stays_near_fp32(golden, official_weights, precision):
    network = load_network(official_weights)
    exact = restore(network, golden['in.blurred'], precision='fp32')
    near = restore(network, golden['in.blurred'], precision=precision)
    assert near.dtype == torch.float32
    assert (near - exact).norm() / exact.norm() < 0.01
    assert (near - exact).abs().max() < 0.01


def test_auto_precision_is_bf16_where_there_are_units(monkeypatch):
    for units, dtype in ((True, torch.bfloat16), (False, torch.float32)):
        monkeypatch.setattr(inference, 'has_bf16_units', lambda device, units=units: units)
        assert inference.autocast_dtype('auto', torch.device('cpu')) == dtype


def test_weights_are_left_without_gradients():
    network = small_network()
    restore(network, torch.rand(1, 3, 8, 8))
    assert all(parameter.grad is None for parameter in network.parameters())


@pytest.mark.parametrize(
    ('image', 'options', 'message'),
    [
        (torch.rand(1, 3, 8, 8), {'mode': 'tile'}, "inference mode 'tile' is not one of exact, chop"),
        (torch.rand(1, 3, 8, 8), {'precision': 'fp8'}, "precision 'fp8' is not one of auto, fp32, bf16, fp16"),
        (np.zeros((8, 8), np.uint8), {}, r'must be uint8 or uint16 \(H, W, 3\), not uint8 \(8, 8\)'),
        (np.zeros((8, 8, 3), np.int32), {}, r'must be uint8 or uint16 \(H, W, 3\), not int32'),
    ],
)
def test_wrong_requests_are_clear_errors(image, options, message):
    with pytest.raises(InputError, match=message):
        restore(small_network(), image, **options)
