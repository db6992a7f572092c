"""The JPEG auto-encoder loss (section 3.2 of the paper)."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from basicsr.utils.registry import LOSS_REGISTRY
from torch import Tensor, nn

from ..errors import InputError


def _l2_norm(autoencoded: Tensor, sharp: Tensor) -> Tensor:
    return torch.linalg.vector_norm(autoencoded - sharp, dim=(1, 2, 3)).mean()


NORMS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {'mse': F.mse_loss, 'l2': _l2_norm}


def jpeg_autoencoder_loss(autoencoded: Tensor, sharp: Tensor, *, norm: str = 'mse') -> Tensor:
    """Return L_AE-JPEG between the auto-encoded sharp JPEG and the sharp image (Eq. 7).

    Args:
        autoencoded: I_AE-JPEG (B, C, H, W), the auto-encoder path's output for I_JPEG(HR).
        sharp: I_HR (B, C, H, W).
        norm: 'mse', the mean squared error, as the authors' code computes it; or 'l2', the L2 norm as Eq. 7 writes
            it: the root of the sum of squares of each image, averaged over the batch.

    Returns:
        the loss, a scalar.
    """
    if autoencoded.shape != sharp.shape:
        raise ValueError(f'autoencoded is {tuple(autoencoded.shape)} but sharp is {tuple(sharp.shape)}')
    return NORMS[norm](autoencoded, sharp)


@LOSS_REGISTRY.register()
class JPEGAutoEncoderLoss(nn.Module):
    """`loss_weight` times `jpeg_autoencoder_loss`. The paper's total is L1 + 0.1 L_AE-JPEG (Eq. 9)."""

    def __init__(self, *, loss_weight: float = 0.1, norm: str = 'mse') -> None:
        super().__init__()
        if norm not in NORMS:
            raise InputError(f"JPEGAutoEncoderLoss: norm '{norm}' is not one of {', '.join(NORMS)}")
        self.loss_weight = loss_weight
        self.norm = norm

    def forward(self, autoencoded: Tensor, sharp: Tensor) -> Tensor:
        return self.loss_weight * jpeg_autoencoder_loss(autoencoded, sharp, norm=self.norm)
