"""A small network, one that returns its input, and small photographs, for tests of restoring."""

import torch
from conftest import picture
from PIL import Image
from torch import nn

from wrcan_arch import WRCAN


def network():
    torch.manual_seed(0)
    return WRCAN(num_feat=4, num_group=1, num_block=1).eval()


class Same(nn.Module):
    """A fast network that returns its input."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1))

    def forward(self, image):
        return image


def save(path, seed=0):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(picture(12, 16, seed)).save(path)
    return path


def names(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob('*') if path.is_file())
