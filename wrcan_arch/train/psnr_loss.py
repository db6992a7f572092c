"""The negative PSNR as a loss: a decibel counts the same in every patch."""

import torch.nn.functional as F
from basicsr.utils.registry import LOSS_REGISTRY
from torch import Tensor, nn

FLOOR = 1e-5  # mean squared error, 50 dB: below it nothing is gained, and the logarithm would diverge


def psnr_loss(restored: Tensor, sharp: Tensor) -> Tensor:
    """Return the negative mean PSNR of the patches, in dB.

    With the paper's L1 a badly blurred patch weighs many times as much as a good one. Data that hold both need another
    balance, or good patches get worse: here a decibel lost on one patch weighs as much as one gained on another.

    Args:
        restored, sharp: (B, C, H, W), in [0, 1].

    Returns:
        a scalar, at least -50.
    """
    if restored.shape != sharp.shape:
        raise ValueError(f'restored is {tuple(restored.shape)} but sharp is {tuple(sharp.shape)}')
    errors = F.mse_loss(restored, sharp, reduction='none').mean(dim=(1, 2, 3))  # (B,)
    return 10 * (errors + FLOOR).log10().mean()


@LOSS_REGISTRY.register()
class PSNRLoss(nn.Module):
    """`loss_weight` times `psnr_loss`."""

    def __init__(self, *, loss_weight: float = 1.0) -> None:
        super().__init__()
        self.loss_weight = loss_weight

    def forward(self, restored: Tensor, sharp: Tensor) -> Tensor:
        return self.loss_weight * psnr_loss(restored, sharp)
