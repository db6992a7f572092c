"""Repairs BasicSR 1.4.2 and torchvision, and registers our classes, in every process that imports both packages.

replacements.py has such a table of what is replaced only while a training or a test runs. `basicsr doctor` prints both.
"""

import importlib
import importlib.util
import sys
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from types import ModuleType

import torch


@dataclass(frozen=True)
class Repair:
    """One thing that is changed in a library: what, why, and when it can go."""

    target: str
    why: str
    until: str
    needed: Callable[[], bool]
    apply: Callable[[], None]


NMS_OPERATORS = ('nms', 'qnms')
_library: torch.library.Library | None = None  # kept alive: the operators go with it


def _torchvision_import_fails() -> bool:
    try:
        importlib.import_module('torchvision')
    except RuntimeError as error:
        if 'operator torchvision::' not in str(error):
            raise
        for name in [name for name in sys.modules if name.split('.')[0] == 'torchvision']:
            del sys.modules[name]
        return True
    return False


def _define_nms_operators() -> None:
    global _library
    _library = torch.library.Library('torchvision', 'FRAGMENT')
    for name in NMS_OPERATORS:
        _library.define(f'{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor')


FUNCTIONAL_TENSOR = 'torchvision.transforms.functional_tensor'


def _functional_tensor_is_gone() -> bool:
    return FUNCTIONAL_TENSOR not in sys.modules and importlib.util.find_spec(FUNCTIONAL_TENSOR) is None


def _alias_functional_tensor() -> None:
    from torchvision.transforms.functional import rgb_to_grayscale

    module = ModuleType(FUNCTIONAL_TENSOR, 'What BasicSR imports from here; wrcan_arch/train/toolbox.py put it here.')
    module.__dict__['rgb_to_grayscale'] = rgb_to_grayscale
    sys.modules[FUNCTIONAL_TENSOR] = module


def _store_backend_is_missing() -> bool:
    from basicsr.utils import FileClient

    return not FileClient._backends['lmdb'].__module__.startswith('wrcan_arch')


def _register_store_backend() -> None:
    from basicsr.utils import FileClient

    from ..data.lmdb_store import StoreBackend

    FileClient._backends['lmdb'] = StoreBackend


# These two make `import basicsr` work; BACKEND_REPAIRS fix it once it is imported.
IMPORT_REPAIRS = (
    Repair(
        target='torchvision::nms, torchvision::qnms',
        why='torchvision for CUDA beside a torch for CPU does not load its operators, and its import fails',
        until='torchvision and torch are a matching pair',
        needed=_torchvision_import_fails,
        apply=_define_nms_operators,
    ),
    Repair(
        target=FUNCTIONAL_TENSOR,
        why='basicsr.data.degradations imports it; torchvision 0.17 removed it',
        until='BasicSR imports rgb_to_grayscale from torchvision.transforms.functional',
        needed=_functional_tensor_is_gone,
        apply=_alias_functional_tensor,
    ),
)
BACKEND_REPAIRS = (
    Repair(
        target="basicsr.utils.FileClient._backends['lmdb']",
        why='two data sets on one LMDB cannot be opened in one process; a missing key or a cut file ends in a '
        'TypeError or kills the process',
        until='BasicSR opens each LMDB once in a process and checks what it reads',
        needed=_store_backend_is_missing,
        apply=_register_store_backend,
    ),
)

REPAIRS = IMPORT_REPAIRS + BACKEND_REPAIRS

applied: list[Repair] = []


def _apply(repairs: tuple[Repair, ...]) -> None:
    for repair in repairs:
        if repair.needed():
            repair.apply()
            applied.append(repair)


def make_importable() -> None:
    """Repair what makes `import basicsr` fail; call it before that import."""
    _apply(IMPORT_REPAIRS)


# By name in the toolbox: the registry, and our module. Importing the module registers the class, except for WRCAN.
PLUGINS = {
    'JPEGDeblurDataset': ('DATASET_REGISTRY', 'wrcan_arch.data.jpeg_deblur_dataset'),
    'JPEGAutoEncoderLoss': ('LOSS_REGISTRY', 'wrcan_arch.train.jpeg_autoencoder_loss'),
    'PSNRLoss': ('LOSS_REGISTRY', 'wrcan_arch.train.psnr_loss'),
    'calculate_lpips': ('METRIC_REGISTRY', 'wrcan_arch.train.lpips_metric'),
    'WRCANModel': ('MODEL_REGISTRY', 'wrcan_arch.train.wrcan_model'),
    'WRCAN': ('ARCH_REGISTRY', 'wrcan_arch.wrcan_arch'),
}


def plug_in() -> None:
    """Make the toolbox's LMDB reading safe and register our classes; call it once basicsr is imported.

    Warns of a class whose name another module has registered, and leaves the name to that.
    """
    from basicsr.utils import registry

    from ..wrcan_arch import WRCAN

    _apply(BACKEND_REPAIRS)
    for name, (kind, module) in PLUGINS.items():
        registered = getattr(registry, kind)
        owner = registered.get(name).__module__ if name in registered else module
        if owner == module:
            importlib.import_module(module)
        else:
            warnings.warn(
                f"BasicSR's {name} is that of {owner}, which registered it first; to use that of {module}, "
                'rename the other',
                stacklevel=2,
            )
    if 'WRCAN' not in registry.ARCH_REGISTRY:  # it is there if wrcan_arch is imported a second time
        registry.ARCH_REGISTRY.register(WRCAN)
