"""Restore whole images with a trained network: the inference modes of validation, testing and restoring."""

import warnings
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from itertools import chain, product
from numbers import Integral
from typing import NamedTuple, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from .chop import restore_chop
from .errors import InputError
from .precision import PRECISIONS, dtype_for, exact_convolutions, name_of
from .strips.convolution import Span
from .strips.network import is_as_built, restore_in_strips, spans
from .strips.sizes import StripSizes
from .system.free_memory import free_memory
from .wrcan_arch import SIZE_MULTIPLE, WRCAN

MODES = ('exact', 'local', 'chop', 'input')
PEAKS = {np.dtype(np.uint8): 255, np.dtype(np.uint16): 65535}  # of integer images; that of floats is 1

FREE_SHARE = 0.8  # of the free memory, for one image

Pixels = TypeVar('Pixels', Tensor, np.ndarray)


class Turn(NamedTuple):
    """One of the eight flips and transposes of an image."""

    transpose: bool
    flip_rows: bool
    flip_columns: bool

    def __call__(self, image: np.ndarray) -> np.ndarray:
        """A view of an image (H, W, C), flipped, and (W, H, C) if transposed."""
        turned = image.swapaxes(0, 1) if self.transpose else image
        return turned[:: -1 if self.flip_rows else 1, :: -1 if self.flip_columns else 1]

    def add_rows(self, total: Tensor, span: Span, rows: Tensor) -> None:
        """Add rows `span` of a turned image to `total`, at the place that they had before the turn."""
        total = total.transpose(0, 1) if self.transpose else total
        start, stop = (len(total) - span[1], len(total) - span[0]) if self.flip_rows else span
        flipped = [axis for axis, flip in enumerate((self.flip_rows, self.flip_columns)) if flip]
        total[start:stop] += rows.flip(flipped)


ALL_TURNS = [Turn(*each) for each in product((False, True), repeat=3)]


@dataclass(frozen=True, kw_only=True)
class Request:
    """How to restore an image; see `restore`. Raises InputError for invalid values."""

    mode: str = 'exact'
    ensemble: bool = False
    precision: str = 'auto'
    patch_size: int | None = None
    max_memory: int | None = None

    def __post_init__(self) -> None:
        if self.mode not in MODES:
            raise InputError(f"inference mode '{self.mode}' is not one of {', '.join(MODES)}")
        if self.precision != 'auto' and self.precision not in PRECISIONS:
            raise InputError(f"precision '{self.precision}' is not one of auto, {', '.join(PRECISIONS)}")
        if not isinstance(self.ensemble, bool):
            raise InputError(f"ensemble is true or false, not '{self.ensemble}'")
        for name, value in {'patch_size': self.patch_size, 'max_memory': self.max_memory}.items():
            if value is not None and not (isinstance(value, Integral) and value > 0):
                raise InputError(f"{name} is a whole number from 1 up, not '{value}'")
        if self.max_memory is not None and self.mode not in ('exact', 'local'):
            raise InputError(f'max_memory is for the modes exact and local, which work in strips, not for {self.mode}')
        if self.patch_size is not None and self.mode != 'local':
            raise InputError(f'patch_size is for the mode local, as the size of its window, not for {self.mode}')

    def describe(self, device: torch.device) -> str:
        """A description for results, such as 'chop x8 fp32'."""
        computed_in = name_of(dtype_for(self.precision, device))
        return ' '.join([self.mode, *(['x8'] if self.ensemble else []), computed_in])


def window_of(network: nn.Module, mode: str, patch_size: int | None) -> int | None:
    """Side of the attention's window in mode local, in positions of the features; else None, for the whole image."""
    if mode != 'local':
        return None
    if not is_as_built(network):
        raise InputError(f'mode local needs a WRCAN without changed parts or hooks, not this {type(network).__name__}')
    patch_size = patch_size or network.metadata.get('patch_size')
    if patch_size is None:
        raise InputError('mode local: the weights do not say their patch size; give --patch-size (patch_size)')
    return max(1, patch_size // SIZE_MULTIPLE)


def device_of(network: nn.Module) -> torch.device:
    """Where the first of a network's parameters and buffers is; the CPU if it has none, like frozen TorchScript."""
    return next((each.device for each in chain(network.parameters(), network.buffers())), torch.device('cpu'))


class _NotFinite(Exception):
    """The result contains a NaN or an infinity."""


Write = Callable[[Span, Tensor], None]  # takes rows (rows, W, C), float32, on any device
Progress = Callable[[float], None]  # takes the share of the work that is done, up to 1


def _part_of(progress: Progress, number: int, count: int) -> Progress:
    """The progress of image or turn `number`, which is one of `count`."""
    return lambda share: progress((number + share) / count)


def _store(result: np.ndarray, span: Span, rows: Tensor) -> None:
    """Write rows (rows, W, C) into `result` in its type: integers rounded and clipped, floats as they are."""
    if peak := PEAKS.get(result.dtype):
        rows = rows.clamp(0, 1).mul_(peak).round_()
    if result.dtype == np.uint8:  # convert on the device, to copy a quarter of the bytes
        rows = rows.to(torch.uint8)
    result[slice(*span)] = rows.cpu().numpy()


class _Restoring:
    """A network and a request, which are checked together once for all images. Each call restores one image."""

    def __init__(self, network: nn.Module, request: Request) -> None:
        self.network, self.request = network, request
        self.window = window_of(network, request.mode, request.patch_size)
        self.in_strips = request.mode in ('exact', 'local') and is_as_built(network)
        if request.max_memory is not None and not self.in_strips:
            name = type(network).__name__
            raise InputError(f'max_memory needs a WRCAN without changed parts or hooks; this {name} takes whole images')
        self.device = device_of(network)
        self.requested_dtype = dtype_for(request.precision, self.device)

    def __call__(self, image: np.ndarray, result: np.ndarray, dtype: torch.dtype, progress: Progress) -> None:
        """Restore `image` into `result`, both (H, W, C). Raises _NotFinite, except for float results in fp32."""
        must_be_finite = dtype != torch.float32 or result.dtype in PEAKS
        on_host = self.device.type == 'cpu'
        if not self.request.ensemble:
            image_bytes = image.nbytes + result.nbytes if on_host else 0
            self._run(image, partial(_store, result), image_bytes, dtype, must_be_finite, progress)
            return
        total = torch.zeros(image.shape, dtype=torch.float32, device=self.device)
        image_bytes = total.nbytes + (image.nbytes if on_host else 0)
        for number, turn in enumerate(ALL_TURNS):
            part = _part_of(progress, number, len(ALL_TURNS))
            self._run(turn(image), partial(turn.add_rows, total), image_bytes, dtype, must_be_finite, part)
        for start, stop in spans(len(total), 256):
            _store(result, (start, stop), total[start:stop].div_(len(ALL_TURNS)))

    def _run(
        self,
        image: np.ndarray,
        write: Write,
        image_bytes: int,
        dtype: torch.dtype,
        must_be_finite: bool,
        progress: Progress,
    ) -> None:
        """Restore one turn of an image; `image_bytes`: bytes that images take in the device's memory."""
        height, width = image.shape[:2]

        def read(span: Span) -> Tensor:
            sent = image[slice(*span)].astype(np.uint8 if image.dtype == np.uint8 else np.float32)
            # A blocking copy would convert on the host first and send four times the bytes.
            rows = torch.from_numpy(sent).to(self.device, torch.float32, non_blocking=True)
            return rows.div_(PEAKS.get(image.dtype, 1)).permute(2, 0, 1)[None]

        def write_tensor(span: Span, rows: Tensor) -> None:
            if must_be_finite and not rows.isfinite().all():
                raise _NotFinite
            write(span, rows[0].permute(1, 2, 0))

        if self.in_strips:
            assert isinstance(self.network, WRCAN)
            strip_rows = self._strip_rows((height, width), image_bytes, dtype)
            restore_in_strips(
                self.network,
                read,
                write_tensor,
                (height, width),
                strip_rows=strip_rows,
                window=self.window,
                dtype=dtype,
                progress=progress,
            )
        else:
            write_tensor((0, height), self._whole(read((0, height)), dtype))
            progress(1)

    def _whole(self, image: Tensor, dtype: torch.dtype) -> Tensor:
        if self.request.mode == 'input':  # the first row of Table 2, with which the others are compared
            return image
        with torch.autocast(self.device.type, dtype, enabled=dtype != torch.float32):
            restored = restore_chop(self._run_whole, image) if self.request.mode == 'chop' else self._run_whole(image)
        return restored.float()

    def _run_whole(self, image: Tensor) -> Tensor:
        restored = self.network(image)
        if not isinstance(restored, Tensor):
            raise InputError(f'the network returns a {type(restored).__name__}, not one restored image')
        if restored.shape != image.shape:
            raise InputError(
                f'the network turns {tuple(image.shape)} into {tuple(restored.shape)}, not a restored image'
            )
        return restored

    def _strip_rows(self, size: tuple[int, int], image_bytes: int, dtype: torch.dtype) -> int:
        """The strips' height for an image of `size`; InputError if memory is too small even for the lowest strips."""
        assert isinstance(self.network, WRCAN)
        budget = self.request.max_memory or int(FREE_SHARE * free_memory(self.device))
        sizes = StripSizes(self.network.head.out_channels, size, dtype, self.device)
        strip_rows, needed = sizes.rows_within(budget - image_bytes)
        if needed > budget - image_bytes:
            hint = 'raise --max-memory (max_memory)' if self.request.max_memory else 'free some'
            raise InputError(
                f'{size[1]} x {size[0]} pixels need {(needed + image_bytes) / 1e6:,.0f} MB of memory, but only '
                f'{budget / 1e6:,.0f} MB are available; scale the image down, or {hint}'
            )
        return strip_rows


def _restore_finite(restoring: _Restoring, image: np.ndarray, result: np.ndarray, progress: Progress) -> None:
    """Restore into `result`, in fp32 if the requested precision gives wrong or non-finite numbers.

    Raises InputError if an integer result is not finite in fp32 either.
    """
    requested = restoring.requested_dtype
    if min(image.shape[:2]) <= SIZE_MULTIPLE:  # oneDNN 3.12 on AMX reads wrong rows in bf16, stride 2, output one wide
        requested = torch.float32
    for dtype in dict.fromkeys([requested, torch.float32]):  # each once
        with suppress(_NotFinite):
            return restoring(image, result, dtype, progress)
        if dtype != torch.float32:
            message = f'the result in {dtype} was not finite; computed again in fp32'
            warnings.warn(message, RuntimeWarning, stacklevel=4)
    raise InputError('the network gives no finite numbers for this image: its weights are damaged')


def _check_weights(network: nn.Module, device: torch.device) -> None:
    """Raise InputError unless all weights are float32 and on `device`."""
    for name, weight in network.named_parameters():
        if weight.dtype != torch.float32 or weight.device != device or weight.is_meta:
            raise InputError(
                'weights must be torch.float32 (call network.float(); for bf16 or fp16 set precision) and on one '
                f'device: {name} is {weight.dtype} on {weight.device}, others on {device}'
            )


def _channels_of(network: nn.Module) -> int | str:
    """The channels that an image must have; 'C', any number, if only the network knows."""
    if not isinstance(network, WRCAN):
        return 'C'
    taken, made = network.head.in_channels, network.tail.out_channels
    if taken != made:
        raise InputError(f'the network turns {taken} channels into {made}, not a restored image')
    return taken


@torch.no_grad()
def restore(
    network: nn.Module,
    image: Pixels,
    *,
    mode: str = 'exact',
    ensemble: bool = False,
    precision: str = 'auto',
    patch_size: int | None = None,
    max_memory: int | None = None,
    progress: Progress = lambda share: None,
) -> Pixels:
    """Restore one image, or a batch of images of one size.

    Args:
        network: a WRCAN with float32 weights, on the device to run on. In mode 'exact' another network, or a WRCAN
            that was modified (parts changed or wrapped, hooks, its own forward), runs on the whole image at once. One
            without parameters and buffers, such as frozen TorchScript, runs on the CPU.
        image: RGB, a float tensor (B, 3, H, W) in [0, 1]; or an array (H, W, 3), uint8, uint16, or float in [0, 1].
            For another network the channels are that network's, whatever their number.
        mode: 'exact', the network's function of the whole image, in strips; 'local', its attention pooled over a window
            of the training patch's size; 'chop', the authors' overlapping quadrants; 'input', the image as it is.
        ensemble: average over the eight flips and transposes; eight times the work.
        precision: 'fp32', 'bf16', 'fp16', or 'auto': bf16 where the processor has units for it, else fp32. A result
            that is not finite is computed again in fp32, with a RuntimeWarning. If that is not finite either, an
            integer image raises InputError and a float one is returned as computed. A side of 4 pixels or less is
            always computed in fp32.
        patch_size: side of the training patch in pixels, for 'local'; by default the one in the weight file.
        max_memory: working memory in bytes, besides the weights and the results of a batch (on a GPU, besides cuDNN's
            own too); by default most of what is free. An image that needs more raises InputError.
        progress: called with the share of the work that is done, up to 1: after each strip in 'exact' and 'local',
            after each image or turn otherwise. The share drops back if an image is computed again in fp32. On a GPU it
            runs ahead of the computation.

    Returns:
        The same kind, shape and type as `image`, in the processor's order of bytes: floats neither clamped nor rounded,
        integers rounded and clipped.
    """
    request = Request(mode=mode, ensemble=ensemble, precision=precision, patch_size=patch_size, max_memory=max_memory)
    restoring = _Restoring(network, request)
    _check_weights(network, restoring.device)
    channels = _channels_of(network)
    with exact_convolutions(restoring.device), torch.autocast(restoring.device.type, enabled=False):
        if isinstance(image, np.ndarray):
            image = image.astype(image.dtype.newbyteorder('='), copy=False)
            is_known = image.dtype in PEAKS or np.issubdtype(image.dtype, np.floating)
            fits = image.ndim == 3 and channels in ('C', image.shape[2]) and 0 not in image.shape
            if not fits or not is_known:
                raise InputError(
                    f'an image array must be uint8, uint16 or float (H, W, {channels}), not {image.dtype} {image.shape}'
                )
            result = np.empty(image.shape, image.dtype)
            _restore_finite(restoring, image, result, progress)
            return result

        if not isinstance(image, Tensor):
            raise InputError(f'an image must be a NumPy array or a tensor, not {type(image).__name__}')
        fits = image.ndim == 4 and channels in ('C', image.shape[1]) and 0 not in image.shape[1:]
        if not fits or not image.is_floating_point():
            shape = tuple(image.shape)
            raise InputError(f'an image tensor must be float (B, {channels}, H, W), not {image.dtype} {shape}')
        results = np.empty(image.shape, np.float32)
        for number, one in enumerate(image.detach().to('cpu', torch.float32).numpy()):
            part = _part_of(progress, number, len(results))
            _restore_finite(restoring, one.transpose(1, 2, 0), results[number].transpose(1, 2, 0), part)
        return torch.from_numpy(results).to(image.device, image.dtype)
