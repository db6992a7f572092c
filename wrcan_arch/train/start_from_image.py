"""Draw weights for a short training: the network begins as one that returns its input."""

import torch
from torch import nn

from ..wrcan_arch import WRCAN, ResidualBlock

DETAIL_GAIN = 5.0  # scales the head's filters: they see variation, not brightness
HEADROOM = 0.1  # bias by which negative values pass the last ReLU


def draw_evenly(network: WRCAN) -> None:
    """Draw all weights anew with variance 1 / fan-in, and zero the biases, so that signals keep their magnitude.

    See LeCun et al., "Efficient BackProp", 1998. PyTorch's default has a third of that variance: after the encoder, the
    variation over the image is then 20 times smaller than before it and five times smaller than the biases. The groups
    need long training to pick it up.
    """
    blocks = []
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            assert module.bias is not None  # conv3x3 and the attention's have one
            nn.init.kaiming_normal_(module.weight, nonlinearity='linear')
            nn.init.zeros_(module.bias)
        elif isinstance(module, ResidualBlock):
            blocks.append(module)
    for block in blocks:  # so that all of them together add no more than their input
        *_, last = block.branch.children()
        last.weight.data /= len(blocks) ** 0.5


def start_from_image(network: WRCAN) -> None:
    """Draw weights with which the network returns its input, so that a short training only learns the difference.

    The paper's network has no skip from image to image, and trains long enough to learn one. Here the head copies the
    image into its first channels, the last decoder adds nothing to them, and the tail reads only them. All other
    weights come from `draw_evenly`. The head's other filters each sum to zero per input channel: brightness, common to
    the whole image, would drown its edges. The last decoder's bias raises the image's channels by HEADROOM, and the
    tail's bias subtracts it: so the ReLU between them passes gradients, and each weight has one after one step.
    """
    channels = network.head.in_channels
    if not channels == network.tail.out_channels <= network.head.out_channels:
        given = f'{channels} channels in, {network.tail.out_channels} out, {network.head.out_channels} features'
        raise ValueError(f'start_from_image needs as many channels out as in, and at least as many features: {given}')
    draw_evenly(network)
    head = network.head.weight.data
    head -= head.mean(dim=(2, 3), keepdim=True)
    head *= DETAIL_GAIN
    weights = network.state_dict()  # shares the network's tensors
    image = slice(channels)
    for name in ('head.weight', 'head.bias', 'decoders.0.conv.weight'):
        weights[name][image] = 0
    weights['tail.weight'][:] = 0
    for name in ('head.weight', 'tail.weight'):
        weights[name][image, image, 1, 1] = torch.eye(channels)
    weights['decoders.0.conv.bias'][image] = HEADROOM
    weights['tail.bias'][:] = -HEADROOM
