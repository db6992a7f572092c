"""Pretends to be a GPU: tensors that claim to be on it but keep their data in the CPU's memory.

It detects what a GPU refuses (tensors of two devices in one operation) and where the host waits for it. It says nothing
of a GPU's kernels, their time or their rounding.
"""

import shutil
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map
from torch.utils.cpp_extension import include_paths

aten = torch.ops.aten
MIX_DEVICES = {aten.copy_.default, aten._to_copy.default}
TAKE_INDICES_OF_BOTH = {aten.index.Tensor, aten.index_put_.default}
REFUSE_CPU_SCALARS = ('aten::cat', 'aten::stack', 'aten::_foreach', 'aten::_fused')  # refuse 0-d CPU tensors
READ_BACK = {aten._local_scalar_dense.default, aten.nonzero.default, aten.equal.default, aten.masked_select.default}
MEMORY = 8 << 30  # bytes that it reports as free


def build(folder: Path) -> list[Path]:
    """Build the device's library. Return what to load, in order, before torch is imported; [] if it cannot be built."""
    compiler, lib = shutil.which('g++'), Path(torch.__file__).parent / 'lib'
    if torch.version.cuda or torch.version.hip or not compiler:
        return []
    source, simulated = Path(__file__).with_suffix('.cpp'), folder / 'simulated_gpu.so'
    options = ['-std=c++20', '-shared', '-fPIC', f'-D_GLIBCXX_USE_CXX11_ABI={torch.compiled_with_cxx11_abi():d}']
    places = [*(f'-I{path}' for path in include_paths()), f'-L{lib}']
    subprocess.run([compiler, *options, *places, source, '-o', simulated, '-lc10', '-ltorch_cpu'], check=True)
    return [lib / 'libc10.so', lib / 'libtorch_cpu.so', simulated]


class OnGPU(Tensor):
    """A tensor that claims to be on the GPU; `held` is its data, on the CPU."""

    held: Tensor
    __torch_function__ = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(cls, held: Tensor) -> 'OnGPU':
        made = Tensor._make_wrapper_subclass(
            cls,
            held.size(),
            strides=held.stride(),
            storage_offset=held.storage_offset(),
            dtype=held.dtype,
            device=torch.device('cuda', 0),
            requires_grad=held.requires_grad,
        )
        made.held = held
        return made

    @classmethod
    def __torch_dispatch__(cls, function: Any, *_: Any) -> Any:
        raise AssertionError(f'{function}: where no GPU is simulated')

    def tolist(self) -> Any:
        return self.cpu().tolist()

    def __deepcopy__(self, memo: Any) -> Tensor:
        return self.detach().clone().requires_grad_(self.requires_grad)

    def __reduce_ex__(self, protocol: Any) -> Any:  # files are loaded to the CPU
        return self.held.__reduce_ex__(protocol)


class SimulatedGPU(TorchDispatchMode):
    """Computes on the CPU what is asked of the GPU.

    Attributes:
        calls: number of operations so far, views included.
        may_wait: whether the host may read results, which makes it wait for the GPU.
    """

    def __init__(self) -> None:
        super().__init__()
        self._mode_key = torch._C._TorchDispatchModeKey.FAKE  # else torch would look for a driver
        self.calls = 0
        self.may_wait = True

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        tensors = [each for each in tree_leaves((args, kwargs)) if isinstance(each, Tensor)]
        inside = {id(each.held): each for each in tensors if isinstance(each, OnGPU)}
        outside = [each for each in tensors if not isinstance(each, OnGPU)]
        device = kwargs.get('device')
        to_gpu = bool(inside) if device is None else torch.device(device).type == 'cuda'
        if inside:
            self.calls += 1
            if outside and not _takes_both(function, args, outside):
                raise RuntimeError(f'{function}: tensors on the GPU and tensors on the CPU')
        if not self.may_wait and (inside or to_gpu) and _waits(function, args, kwargs, to_gpu, outside):
            raise RuntimeError(f'{function}: the host waits for the GPU')
        if device is not None and to_gpu:
            kwargs = {**kwargs, 'device': torch.device('cpu')}
        result = function(*tree_map(_held, args), **tree_map(_held, kwargs))
        if not to_gpu:
            return result
        # An operation in place returns the tensor that it was given.
        return tree_map(lambda each: inside.get(id(each), OnGPU(each)) if isinstance(each, Tensor) else each, result)

    @contextmanager
    def nothing_waits(self) -> Iterator[None]:
        self.may_wait = False
        try:
            yield
        finally:
            self.may_wait = True


def _held(each: Any) -> Any:
    return each.held if isinstance(each, OnGPU) else each


def _takes_both(function: Any, args: Any, outside: list[Tensor]) -> bool:
    if function in TAKE_INDICES_OF_BOTH:
        return isinstance(args[0], OnGPU)
    is_number = not any(each.ndim for each in outside)
    return function in MIX_DEVICES or (is_number and not function._schema.name.startswith(REFUSE_CPU_SCALARS))


def _waits(function: Any, args: Any, kwargs: Any, to_gpu: bool, outside: list[Tensor]) -> bool:
    if function is aten._to_copy.default:  # to the GPU, or from it
        return (not to_gpu or bool(outside)) and not kwargs.get('non_blocking')
    if function is aten.copy_.default:
        return bool(outside) and not (args[2:] and args[2])
    if function is aten.index.Tensor:
        return bool(outside) or any(index is not None and index.dtype == torch.bool for index in args[1])
    return function in READ_BACK


@contextmanager
def simulated_gpu() -> Iterator[SimulatedGPU]:
    gpu, stream = SimulatedGPU(), SimpleNamespace(wait_stream=lambda other: None)
    event = SimpleNamespace(record=lambda: None, synchronize=lambda: None)
    answers = {
        'is_available': True, 'device_count': 1, 'current_device': 0, 'set_device': None, 'get_device_name': 'none',
        'is_bf16_supported': True, 'mem_get_info': (MEMORY, MEMORY), 'memory_reserved': 0, 'memory_allocated': 0,
        'empty_cache': None, 'synchronize': None, 'manual_seed': None, 'manual_seed_all': None, '_lazy_init': None,
        'Stream': stream, 'current_stream': stream, 'stream': nullcontext(), 'Event': event,
        'device': nullcontext(),
    }  # fmt: skip
    with ExitStack() as stack:
        for name, answer in answers.items():
            stack.enter_context(mock.patch.object(torch.cuda, name, return_value=answer))
        stack.enter_context(mock.patch.object(Tensor, 'record_stream'))
        torch.__future__.set_overwrite_module_params_on_conversion(True)  # a parameter's class changes with its device
        stack.callback(torch.__future__.set_overwrite_module_params_on_conversion, False)
        stack.enter_context(gpu)
        yield gpu
