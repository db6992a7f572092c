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


def autocast_dtype(precision: str, device: torch.device) -> torch.dtype:
    """The type that convolutions compute in. 'auto': bf16 where the processor has units for it, else fp32."""
    if precision == 'auto':
        return torch.bfloat16 if has_bf16_units(device) else torch.float32
    return PRECISIONS[precision]


def name_of(dtype: torch.dtype) -> str:
    """The options' name for a type that convolutions compute in."""
    return next(name for name, each in PRECISIONS.items() if each == dtype)


class _ExactConvolutions:
    """Switch TF32 off. All threads share PyTorch's switch: the first to enter sets it, the last to leave resets it."""

    def __init__(self) -> None:
        self.lock, self.inside = Lock(), 0
        self.before: list[tuple[Any, str, Any]] = []

    @staticmethod
    def switches() -> list[tuple[Any, str, Any]]:
        """The objects and the names of their attributes that control TF32, and the values that switch it off."""
        cudnn = torch.backends.cudnn
        older, conv = (cudnn, 'allow_tf32', False), getattr(cudnn, 'conv', None)
        if conv is None:
            return [older]
        newer = (conv, 'fp32_precision', 'ieee')
        try:
            # Both: after the newer alone, whoever reads the older one gets an error, as in cudnn.flags().
            return [older, newer] if cudnn.allow_tf32 else [newer]
        except RuntimeError:  # somebody else has set the newer alone
            return [newer]

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
    """Context in which fp32 convolutions stay fp32: by default PyTorch lets a GPU round their inputs to TF32."""
    return _exact_convolutions if device.type == 'cuda' else nullcontext()
