"""Whole image in, restored image out. Pure functions of a network; validation, testing and restoring all come here."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import overload

import numpy as np
import torch
from torch import Tensor, nn

from .errors import InputError

CHOP_SHAVE = 36  # pixels by which the authors' quadrants overlap the image's halves
CHOP_PIXELS = 1_280_000  # their quadrants are cut again while the image has at least this many

PRECISIONS = {'fp32': torch.float32, 'bf16': torch.bfloat16, 'fp16': torch.float16}
INTEGER_PEAKS = {np.dtype(np.uint8): 255, np.dtype(np.uint16): 65535}


def restore_whole(network: Callable[[Tensor], Tensor], image: Tensor) -> Tensor:
    """The network's own function of the whole image."""
    return network(image)


def restore_chop(network: Callable[[Tensor], Tensor], image: Tensor) -> Tensor:
    """The authors' protocol: four overlapping quadrants, restored one by one and joined without blending.

    To compare with the paper alone: WRCAN pools over its whole input, so quadrants are another function, with seams.
    """
    height, width = image.shape[2:]
    recurse = height * width >= CHOP_PIXELS
    restored = torch.empty_like(image)
    for rows, read_rows in _halves(height):
        for columns, read_columns in _halves(width):
            quadrant = image[:, :, read_rows, read_columns]
            part = restore_chop(network, quadrant) if recurse else network(quadrant)
            inner_rows = slice(rows.start - read_rows.start, rows.stop - read_rows.start)
            inner_columns = slice(columns.start - read_columns.start, columns.stop - read_columns.start)
            restored[:, :, rows, columns] = part[:, :, inner_rows, inner_columns]
    return restored


def _halves(size: int) -> list[tuple[slice, slice]]:
    """For each half of [0, size): the half, and the longer stretch that is read for it. An empty half is left out."""
    middle = size // 2
    halves = [
        (slice(0, middle), slice(0, min(size, middle + CHOP_SHAVE))),
        (slice(middle, size), slice(max(0, middle - CHOP_SHAVE), size)),
    ]
    return [(half, read) for half, read in halves if half.start < half.stop]


def restore_nothing(network: Callable[[Tensor], Tensor], image: Tensor) -> Tensor:
    """The input itself: the row of Table 2 that every other is compared with."""
    return image


MODES = {'exact': restore_whole, 'chop': restore_chop, 'input': restore_nothing}


def restore_ensemble(restore_one: Callable[[Tensor], Tensor], image: Tensor) -> Tensor:
    """x8 self-ensemble: the mean, in float, over flips and transpose (section 4.3)."""
    total = torch.zeros_like(image)
    for transpose in (False, True):
        for flips in ((), (2,), (3,), (2, 3)):
            turned = (image.transpose(2, 3) if transpose else image).flip(flips)
            restored = restore_one(turned.contiguous()).flip(flips)
            total += restored.transpose(2, 3) if transpose else restored
    return total / 8


def has_bf16_units(device: torch.device) -> bool:
    """Whether bf16 is computed in hardware there: a GPU's or AMX's matrix units, or AVX-512's bf16 dot product."""
    if device.type == 'cuda':
        return torch.cuda.is_bf16_supported(including_emulation=False)
    names = ('_is_amx_tile_supported', '_is_avx512_bf16_supported')  # not in every release
    return device.type == 'cpu' and any(getattr(torch.cpu, name, bool)() for name in names)


def autocast_dtype(precision: str, device: torch.device) -> torch.dtype:
    """The type that convolutions compute in. 'auto': bf16 where the processor has units for it, else fp32."""
    if precision == 'auto':
        return torch.bfloat16 if has_bf16_units(device) else torch.float32
    return PRECISIONS[precision]


def check_request(*, mode: str = 'exact', ensemble: bool = False, precision: str = 'auto') -> None:
    """InputError unless `restore` knows these."""
    if mode not in MODES:
        raise InputError(f"inference mode '{mode}' is not one of {', '.join(MODES)}")
    if precision != 'auto' and precision not in PRECISIONS:
        raise InputError(f"precision '{precision}' is not one of auto, {', '.join(PRECISIONS)}")
    if not isinstance(ensemble, bool):
        raise InputError(f"ensemble is true or false, not '{ensemble}'")


def describe(device: torch.device, *, mode: str = 'exact', ensemble: bool = False, precision: str = 'auto') -> str:
    """The protocol in words, for results: 'chop x8 fp32'."""
    dtype = autocast_dtype(precision, device)
    computed_in = next(name for name, each in PRECISIONS.items() if each == dtype)
    return ' '.join([mode, *(['x8'] if ensemble else []), computed_in])


@contextmanager
def _exact_convolutions() -> Iterator[None]:
    """fp32 means fp32: PyTorch lets cuDNN's convolutions round to TF32 unless it is told not to."""
    allowed = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = False
    try:
        yield
    finally:
        torch.backends.cudnn.allow_tf32 = allowed


@overload
def restore(
    network: nn.Module, image: Tensor, *, mode: str = ..., ensemble: bool = ..., precision: str = ...
) -> Tensor: ...
@overload
def restore(
    network: nn.Module, image: np.ndarray, *, mode: str = ..., ensemble: bool = ..., precision: str = ...
) -> np.ndarray: ...


@torch.no_grad()
def restore(network, image, *, mode='exact', ensemble=False, precision='auto'):
    """Restore one image, or a batch of one size.

    Args:
        network: a WRCAN, on the device it shall run on.
        image: a float tensor (B, 3, H, W), RGB in [0, 1]; or a uint8 or uint16 array (H, W, 3), RGB.
        mode: 'exact', the network's function of the whole image; 'chop', the authors' overlapping quadrants; 'input',
            the image as it is.
        ensemble: average over the eight flips and transposes; eight times the work.
        precision: 'fp32', 'bf16', 'fp16', or 'auto': bf16 where the processor has units for it, else fp32.

    Returns:
        The same kind and shape as `image`: a tensor in its own type, neither clamped nor rounded; an array rounded and
        clipped to its type's range.
    """
    check_request(mode=mode, ensemble=ensemble, precision=precision)
    if isinstance(image, np.ndarray):
        return _restore_array(network, image, mode=mode, ensemble=ensemble, precision=precision)

    device = next(network.parameters()).device
    dtype = autocast_dtype(precision, device)

    def restore_one(part: Tensor) -> Tensor:
        return MODES[mode](network, part).float()

    with _exact_convolutions(), torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
        inside = image.to(device, torch.float32)
        restored = restore_ensemble(restore_one, inside) if ensemble else restore_one(inside)
    return restored.to(image.device, image.dtype)


def _restore_array(network: nn.Module, image: np.ndarray, **options) -> np.ndarray:
    peak = INTEGER_PEAKS.get(image.dtype)
    if peak is None or image.ndim != 3 or image.shape[2] != 3:
        raise InputError(f'an image array must be uint8 or uint16 (H, W, 3), not {image.dtype} {image.shape}')
    scaled = torch.from_numpy(image.astype(np.float32) / peak).permute(2, 0, 1)[None]  # (1, 3, H, W)
    restored = restore(network, scaled, **options)[0].permute(1, 2, 0).numpy()
    return np.rint(restored.clip(0, 1) * peak).astype(image.dtype)
