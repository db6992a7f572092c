"""Choose the type that convolutions compute in: fp32, bf16 or fp16."""

from contextlib import AbstractContextManager, nullcontext
from threading import Lock
from typing import Any

import torch

PRECISIONS = {'fp32': torch.float32, 'bf16': torch.bfloat16, 'fp16': torch.float16}


def has_bf16_units(device: torch.device) -> bool:
    """Whether `device` computes bf16 in hardware: a GPU's or AMX's matrix units, or AVX-512's bf16 dot product."""
    if device.type == 'cuda':
        with torch.cuda.device(device):
            return torch.cuda.is_bf16_supported(including_emulation=False)
    names = ('_is_amx_tile_supported', '_is_avx512_bf16_supported')  # not in every release
    return device.type == 'cpu' and any(getattr(torch.cpu, name, bool)() for name in names)


def dtype_for(precision: str, device: torch.device) -> torch.dtype:
    """The type that convolutions compute in. 'auto': bf16 where the processor has units for it, else fp32."""
    if precision == 'auto':
        return torch.bfloat16 if has_bf16_units(device) else torch.float32
    return PRECISIONS[precision]


def name_of(dtype: torch.dtype) -> str:
    """The options' name for a type that convolutions compute in."""
    return next(name for name, each in PRECISIONS.items() if each == dtype)


class _ExactConvolutions:
    """Switch TF32 and `benchmark` off.

    `benchmark`, which the toolbox sets, times cuDNN's algorithms anew for every size of image, and the fastest this
    time may round differently. All threads share PyTorch's switches: the first to enter sets them, the last to leave
    resets them.
    """

    def __init__(self) -> None:
        self.lock, self.inside = Lock(), 0
        self.before: list[tuple[Any, str, Any]] = []

    @staticmethod
    def switches() -> list[tuple[Any, str, Any]]:
        """The objects, the names of their attributes, and the values that switch TF32 and `benchmark` off."""
        cudnn = torch.backends.cudnn
        timed, older, conv = (cudnn, 'benchmark', False), (cudnn, 'allow_tf32', False), getattr(cudnn, 'conv', None)
        if conv is None:
            return [timed, older]
        newer = (conv, 'fp32_precision', 'ieee')
        try:
            # Both: after the newer alone, whoever reads the older one gets an error, as in cudnn.flags().
            return [timed, older, newer] if cudnn.allow_tf32 else [timed, newer]
        except RuntimeError:  # somebody else has set the newer alone
            return [timed, newer]

    def __enter__(self) -> None:
        with self.lock:
            self.inside += 1
            if self.inside == 1:
                switches = self.switches()
                self.before = [(switch, name, getattr(switch, name)) for switch, name, _ in switches]
                for each in switches:
                    setattr(*each)

    def __exit__(self, *_: object) -> None:
        with self.lock:
            self.inside -= 1
            if self.inside == 0:
                for each in self.before:
                    setattr(*each)


_exact_convolutions = _ExactConvolutions()


def exact_convolutions(device: torch.device) -> AbstractContextManager[None]:
    """Context in which fp32 convolutions stay fp32 and no algorithms are timed.

    By default PyTorch lets a GPU round the inputs of fp32 convolutions to TF32.
    """
    return _exact_convolutions if device.type == 'cuda' else nullcontext()
