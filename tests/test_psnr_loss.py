import numpy as np
import pytest
import torch
from basicsr.losses import build_loss
from skimage.metrics import peak_signal_noise_ratio

from wrcan_arch.train.psnr_loss import psnr_loss


def test_is_minus_the_mean_psnr_of_scikit_image():
    torch.manual_seed(0)
    restored, sharp = torch.rand(2, 3, 3, 5, 7, dtype=torch.float64)
    restored[2] = sharp[2] + 0.05  # a much better patch
    each = [peak_signal_noise_ratio(*pair, data_range=1) for pair in zip(sharp.numpy(), restored.numpy(), strict=True)]
    assert psnr_loss(restored, sharp).item() == pytest.approx(-np.mean(each), abs=0.02)
    assert build_loss({'type': 'PSNRLoss', 'loss_weight': 0.5})(restored, sharp) == 0.5 * psnr_loss(restored, sharp)


def test_nothing_to_gain_gives_no_gradient():
    sharp = torch.rand(1, 3, 4, 4)
    restored = sharp.clone().requires_grad_()
    loss = psnr_loss(restored, sharp)
    loss.backward()
    assert loss == -50 and not restored.grad.any()


def test_unequal_shapes_are_an_error():
    with pytest.raises(ValueError, match='restored is .* but sharp is'):
        psnr_loss(torch.rand(1, 3, 4, 4), torch.rand(1, 1, 4, 4))
