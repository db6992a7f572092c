"""WRCAN: wide receptive field and channel attention network.

Lee, Lee and Kim, "Wide Receptive Field and Channel Attention Network for JPEG Compressed Image Deblurring", CVPR
Workshops (NTIRE) 2021. Section, equation and figure numbers below are that paper's.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from .errors import InputError

ATROUS_RATES = (1, 2, 3, 4)
ATTENTION_REDUCTION = 16
SIZE_MULTIPLE = 4  # two halvings in the encoder


def conv3x3(in_channels: int, out_channels: int, *, stride: int = 1, rate: int = 1) -> nn.Conv2d:
    """3 x 3 convolution with bias; zero padding keeps the size when `stride` is 1. `rate` is the atrous rate."""
    return nn.Conv2d(in_channels, out_channels, 3, stride=stride, padding=rate, dilation=rate)


class ChannelAttention(nn.Module):
    """Scales each channel by a weight in (0, 1) computed from all channels' global means (Fig. 3b)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.squeeze = nn.Conv2d(channels, channels // ATTENTION_REDUCTION, 1)
        self.excite = nn.Conv2d(channels // ATTENTION_REDUCTION, channels, 1)

    def weights(self, means: Tensor) -> Tensor:
        """Attention weights for the channels' means, in the same shape: (B, C, 1, 1), or (B, C, H, W) for windows."""
        return torch.sigmoid(self.excite(F.relu(self.squeeze(means))))

    def forward(self, features: Tensor) -> Tensor:
        # Sum over channels-last data: in fp32 and bf16 the sum's gradient is a view. The gradient of a mean is a map in
        # another memory layout; adding it to the features' own gradient took a tenth of a block's step.
        # Without a type a GPU's autocast would sum bf16 in fp32 and copy the gradient. In fp16 the sum may overflow.
        summed_in = torch.float32 if features.dtype == torch.float16 else features.dtype
        sums = features.permute(0, 2, 3, 1).sum((1, 2), dtype=summed_in)  # (B, C)
        means = (sums / (features.shape[2] * features.shape[3])).to(features.dtype)
        return features * self.weights(means[:, :, None, None])


class WideReceptiveField(nn.Module):
    """Four parallel atrous convolutions and the convolution that fuses them (Fig. 3a without the attention)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        branch_channels = channels // 2
        self.atrous = nn.ModuleList(conv3x3(channels, branch_channels, rate=rate) for rate in ATROUS_RATES)
        self.fuse = conv3x3(len(ATROUS_RATES) * branch_channels, channels)

    def forward(self, features: Tensor) -> Tensor:
        branches = torch.cat([conv(features) for conv in self.atrous], dim=1)  # (B, 2C, H, W)
        return self.fuse(F.relu_(branches))  # (B, C, H, W)


class PlainConvolutions(nn.Module):
    """Conv-ReLU-Conv, the residual branch of EDSR's block (Table 1, cases 1 and 3)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1 = conv3x3(channels, channels)
        self.conv2 = conv3x3(channels, channels)

    def forward(self, features: Tensor) -> Tensor:
        return self.conv2(F.relu_(self.conv1(features)))


class ResidualBlock(nn.Module):
    """x + attention(branch(x)), Eq. 6; without attention x + branch(x)."""

    def __init__(self, channels: int, *, wide: bool, attention: bool) -> None:
        super().__init__()
        self.branch = WideReceptiveField(channels) if wide else PlainConvolutions(channels)
        self.attention = ChannelAttention(channels) if attention else nn.Identity()
        self.checkpointing = False  # keep only the input for the backward pass, and recompute the rest there

    def forward(self, features: Tensor) -> Tensor:
        if self.checkpointing and torch.is_grad_enabled():
            return checkpoint(self._forward, features, use_reentrant=False, preserve_rng_state=False)
        return self._forward(features)

    def _forward(self, features: Tensor) -> Tensor:
        return features + self.attention(self.branch(features))


# Values of the option `block`: the parts of the block, and its case in Table 1.
BLOCKS = {
    'wrca': {'wide': True, 'attention': True},  # case 4, WRCAN
    'wr': {'wide': True, 'attention': False},  # case 2, WRN
    'rca': {'wide': False, 'attention': True},  # case 3
    'res': {'wide': False, 'attention': False},  # case 1, EDSR
}


class ResidualGroup(nn.Module):
    """x + Conv(blocks(x)) (Fig. 2b)."""

    def __init__(self, channels: int, num_block: int, block: str) -> None:
        super().__init__()
        self.blocks = nn.Sequential(*(ResidualBlock(channels, **BLOCKS[block]) for _ in range(num_block)))
        self.conv = conv3x3(channels, channels)

    def forward(self, features: Tensor) -> Tensor:
        return features + self.conv(self.blocks(features))


class Encoder(nn.Module):
    """One scale of the encoder: returns features for the skip (Eq. 2.1), and features at half the size (Eq. 2.2)."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.conv = conv3x3(in_channels, out_channels)
        self.down = conv3x3(out_channels, out_channels, stride=2)

    def forward(self, features: Tensor) -> tuple[Tensor, Tensor]:
        skip = F.relu_(self.conv(features))  # (B, C, H, W)
        return skip, self.down(skip)  # (B, C, H/2, W/2)


class Decoder(nn.Module):
    """One scale of the decoder: sub-pixel upsampling by two (Eq. 5.1), then fusion with the skip (Eq. 5.2)."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.up = conv3x3(in_channels, 4 * out_channels)
        self.conv = conv3x3(2 * out_channels, out_channels)

    def forward(self, features: Tensor, skip: Tensor) -> Tensor:
        upsampled = F.pixel_shuffle(self.up(features), 2)  # (B, C, 2H, 2W)
        return F.relu_(self.conv(torch.cat([skip, upsampled], dim=1)))


class WRCAN(nn.Module):
    """Wide receptive field and channel attention network (section 3.1, Fig. 2).

    ::

        blurred ── head ─┬─ encoder 0 ─── encoder 1 ─── expand ─┬─ groups ── body conv ─ + ─┐
        (B, 3, H, W)     │  (B, F, H, W)  (B, 2F, H/2, W/2)      └───────── Eq. 4 ─────────┘ │ (B, 4F, H/4, W/4)
                         │       │              │                                            │
                         │       │ skip         │ skip                                       │
                         + ─ decoder 0 ──── decoder 1 ───────────────────────────────────────┘
                         │
                        tail ── restored (B, 3, H, W)

    The auto-encoder path (section 3.2) is the same network without groups and body conv. Its input, the sharp image
    after JPEG, can be passed to the same call: the rest of the network then processes both inputs as one batch.

    Args:
        num_in_ch, num_out_ch: image channels.
        num_feat: F, the features at full resolution; a multiple of 4.
        num_group, num_block: residual groups, and blocks in each. With num_feat 64, num_group 4 and num_block 16 it is
            the full network of 156,974,339 parameters.
        block: 'wrca' (WRCAN), 'wr' (WRN), 'rca' or 'res' (Table 1).
    """

    def __init__(
        self,
        *,
        num_in_ch: int = 3,
        num_out_ch: int = 3,
        num_feat: int = 64,
        num_group: int = 4,
        num_block: int = 16,
        block: str = 'wrca',
    ) -> None:
        super().__init__()
        if block not in BLOCKS:
            raise InputError(f"WRCAN: block '{block}' is not one of {', '.join(BLOCKS)}")
        for name, value in {'num_feat': num_feat, 'num_group': num_group, 'num_block': num_block}.items():
            if not isinstance(value, int):
                raise InputError(f"WRCAN: {name} must be a whole number, not '{value}'")
            if value < 1:
                raise InputError(f'WRCAN: {name} must be at least 1, not {value}')
        if num_feat % 4:
            raise InputError(f'WRCAN: num_feat must be a multiple of 4, not {num_feat}')

        self.config: dict[str, Any] = {
            'num_in_ch': num_in_ch,
            'num_out_ch': num_out_ch,
            'num_feat': num_feat,
            'num_group': num_group,
            'num_block': num_block,
            'block': block,
        }  # the arguments that rebuild this network
        self.metadata: dict[str, Any] = {}  # of the weight file
        wide = 4 * num_feat
        self.head = conv3x3(num_in_ch, num_feat)  # f_FE, Eq. 1
        self.encoders = nn.ModuleList([Encoder(num_feat, num_feat), Encoder(num_feat, 2 * num_feat)])
        self.expand = conv3x3(2 * num_feat, wide)  # f_EXP, Eq. 3
        self.groups = nn.Sequential(*(ResidualGroup(wide, num_block, block) for _ in range(num_group)))
        self.body_conv = conv3x3(wide, wide)
        self.decoders = nn.ModuleList([Decoder(2 * num_feat, num_feat), Decoder(wide, 2 * num_feat)])
        self.tail = conv3x3(num_feat, num_out_ch)

    def forward(self, blurred: Tensor, jpeg_sharp: Tensor | None = None) -> Tensor | tuple[Tensor, Tensor]:
        """Restore `blurred`; given `jpeg_sharp`, also run it through the auto-encoder path, in one pass.

        Args:
            blurred: (B, C, H, W), RGB in [0, 1], any H and W from 1 up.
            jpeg_sharp: I_JPEG(HR) of section 3.2, of the same shape.

        Returns:
            restored (B, C, H, W), neither clamped nor rounded; or (restored, autoencoded).
        """
        self._check_image(blurred, 'blurred')
        batch = blurred.shape[0]
        if jpeg_sharp is None:
            return self._restore_and_autoencode(blurred, batch)
        self._check_image(jpeg_sharp, 'jpeg_sharp')
        if jpeg_sharp.shape != blurred.shape:
            raise ValueError(f'blurred is {tuple(blurred.shape)} but jpeg_sharp is {tuple(jpeg_sharp.shape)}')
        both = self._restore_and_autoencode(torch.cat([blurred, jpeg_sharp]), batch)
        restored, autoencoded = both.split([batch, jpeg_sharp.shape[0]])  # a trace would keep .split(batch)'s number
        return restored, autoencoded

    def _restore_and_autoencode(self, images: Tensor, batch: int) -> Tensor:
        """Run the first `batch` images through the whole network, the others through the auto-encoder path."""
        height, width = images.shape[2:]
        pad = (0, -width % SIZE_MULTIPLE, 0, -height % SIZE_MULTIPLE)
        # What is traced or exported is for other sizes too.
        if torch.jit.is_tracing() or torch.compiler.is_compiling() or any(pad):
            images = F.pad(images, pad, mode='replicate')

        shallow = self.head(images)  # (B, F, H, W)
        skip0, down0 = self.encoders[0](shallow)  # (B, F, H, W), (B, F, H/2, W/2)
        skip1, down1 = self.encoders[1](down0)  # (B, 2F, H/2, W/2), (B, 2F, H/4, W/4)
        expanded = self.expand(down1)  # (B, 4F, H/4, W/4)
        # Split instead of sliced: the gradients of slices would not be channels last.
        deep, bypass = expanded.split([batch, images.shape[0] - batch])
        deep = deep + self.body_conv(self.groups(deep))  # f_NLT, Eq. 4
        if bypass.shape[0]:  # len() would be a constant in a trace
            deep = torch.cat([deep, bypass])  # the auto-encoder path: f_NLT := f_EXP
        decoded = self.decoders[0](self.decoders[1](deep, skip1), skip0)  # r_S (B, F, H, W)
        return self.tail(shallow + decoded)[:, :, :height, :width]

    def _check_image(self, image: Tensor, name: str) -> None:
        channels = self.head.in_channels
        if image.ndim != 4 or image.shape[1] != channels or 0 in image.shape[2:]:
            raise ValueError(f'{name} must be (B, {channels}, H, W) with H and W from 1 up, not {tuple(image.shape)}')
        expected = self.head.weight.dtype
        if image.dtype != expected and not (image.is_floating_point() and torch.is_autocast_enabled(image.device.type)):
            raise TypeError(f'{name} must be {expected}, as the weights are, not {image.dtype}')
