import numpy as np
import pytest
import torch
from basicsr.losses import build_loss

from wrcan_arch import InputError
from wrcan_arch.train.jpeg_autoencoder_loss import jpeg_autoencoder_loss


def images() -> tuple[torch.Tensor, torch.Tensor]:
    torch.manual_seed(0)
    return torch.rand(3, 3, 5, 7), torch.rand(3, 3, 5, 7)


def test_mean_squared_error_is_numpys():
    autoencoded, sharp = images()
    expected = np.mean((autoencoded.numpy().astype(np.float64) - sharp.numpy()) ** 2)
    assert jpeg_autoencoder_loss(autoencoded, sharp).item() == pytest.approx(expected, rel=1e-6)


def test_l2_norm_is_numpys_averaged_over_the_batch():
    autoencoded, sharp = images()
    difference = (autoencoded - sharp).numpy().astype(np.float64).reshape(3, -1)
    expected = np.linalg.norm(difference, axis=1).mean()
    assert jpeg_autoencoder_loss(autoencoded, sharp, norm='l2').item() == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize('norm', ['mse', 'l2'])
def test_toolbox_builds_it_and_weighs_it(norm):
    autoencoded, sharp = images()
    loss = build_loss({'type': 'JPEGAutoEncoderLoss', 'loss_weight': 0.25, 'norm': norm})
    assert loss(autoencoded, sharp) == 0.25 * jpeg_autoencoder_loss(autoencoded, sharp, norm=norm)


def test_default_weight_is_the_papers():
    autoencoded, sharp = images()
    loss = build_loss({'type': 'JPEGAutoEncoderLoss'})
    assert loss(autoencoded, sharp) == 0.1 * jpeg_autoencoder_loss(autoencoded, sharp)


def test_unequal_shapes_are_an_error():
    with pytest.raises(ValueError, match='autoencoded is .* but sharp is'):
        jpeg_autoencoder_loss(torch.rand(1, 3, 4, 4), torch.rand(1, 1, 4, 4))


def test_unknown_norm_is_an_error():
    with pytest.raises(InputError, match="norm 'l3' is not one of mse, l2"):
        build_loss({'type': 'JPEGAutoEncoderLoss', 'norm': 'l3'})
