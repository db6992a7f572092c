"""The metric LPIPS, by the `lpips` package with AlexNet, version 0.1, as in the challenge. Downloads nothing."""

import functools
import importlib.util
import re
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch
from basicsr.utils.registry import METRIC_REGISTRY
from torch import Tensor, nn

from ..checkpoint import read_file
from ..errors import InputError
from ..precision import exact_convolutions

BACKBONE = 'alexnet-owt-7be5be79.pth'  # the package contains the weights of LPIPS itself, not those of AlexNet
BACKBONE_ADDRESS = f'https://download.pytorch.org/models/{BACKBONE}'

_may_use_gpu = True


def use_gpu(wanted: bool) -> None:
    """Set whether LPIPS may use a GPU in this process; the toolbox does not tell a metric whether the run does."""
    global _may_use_gpu
    _may_use_gpu = wanted


def find_backbone() -> Path:
    """Return the path of AlexNet's weights; InputError, with what to do, if they or the package are missing."""
    if not importlib.util.find_spec('lpips'):
        raise InputError('calculate_lpips: no lpips package here; pip install "lpips>=0.1.4", or leave the metric out')
    path = Path(torch.hub.get_dir(), 'checkpoints', BACKBONE)
    if not path.is_file():
        raise InputError(
            f'calculate_lpips: no AlexNet weights here; put {BACKBONE_ADDRESS} at {path}, or leave the metric out'
        )
    return path


@functools.cache
def lpips_network(backbone: Path, device: torch.device) -> nn.Module:
    """Build LPIPS with AlexNet's weights from the file `backbone`, once per process and device."""
    import lpips

    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():  # leave a training's random numbers alone
        warnings.simplefilter('ignore', UserWarning)  # lpips builds AlexNet with arguments that torchvision deprecates
        network = lpips.LPIPS(net='alex', version='0.1', pnet_rand=True, verbose=False)
    tensors = read_file(backbone)
    try:
        # lpips cuts torchvision's `features.8` into slices and keeps the number: `slice4.8`.
        names = {name: re.sub(r'^slice\d', 'features', name) for name in network.net.state_dict()}
        network.net.load_state_dict({name: tensors[theirs] for name, theirs in names.items()})
    except (KeyError, RuntimeError, TypeError) as error:
        raise InputError(f"{backbone}: not AlexNet's weights; fetch {BACKBONE_ADDRESS} again") from error
    return network.to(device).eval()


def _to_tensor(image: np.ndarray) -> Tensor:
    """Convert BGR (H, W, 3) in [0, 255] to RGB (1, 3, H, W) in [-1, 1]."""
    rgb = np.ascontiguousarray(image[:, :, ::-1].transpose(2, 0, 1))
    return torch.from_numpy(rgb).float()[None] / 127.5 - 1


@METRIC_REGISTRY.register()
def calculate_lpips(img: np.ndarray, img2: np.ndarray, crop_border: int = 0, **_: Any) -> float:
    """LPIPS of two images; 0 for equal ones. Lower is better: set `better: lower` in val:metrics.

    Args:
        img, img2: (H, W, 3) in BGR, [0, 255].
        crop_border: pixels to leave out at each edge.

    Source: Zhang et al., "The Unreasonable Effectiveness of Deep Features as a Perceptual Metric", CVPR 2018.
    """
    if img.shape != img2.shape:
        raise ValueError(f'img is {img.shape} but img2 is {img2.shape}')
    inside = slice(crop_border, -crop_border or None)
    on_gpu = _may_use_gpu and torch.cuda.is_available()
    device = torch.device('cuda', torch.cuda.current_device()) if on_gpu else torch.device('cpu')
    network = lpips_network(find_backbone(), device)
    with exact_convolutions(device), torch.inference_mode():
        return float(network(*(_to_tensor(image[inside, inside]).to(device) for image in (img, img2))))
