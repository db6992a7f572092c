"""WRCAN and the JPEG auto-encoder loss for BasicSR.

Importing this package is cheap: a module is loaded when one of its names is used. BasicSR is repaired and gets our
classes when it is imported, or at once if it already is.
"""

import importlib.util
from typing import TYPE_CHECKING, Any

from .errors import InputError
from .import_hook import when_imported

__version__ = '0.1.0'
__all__ = [
    'WRCAN',
    'InputError',
    'JPEGAutoEncoderLoss',
    'JPEGDeblurDataset',
    'WRCANModel',
    'load_network',
    'restore',
]

if TYPE_CHECKING:
    from .checkpoint import load_network
    from .data.jpeg_deblur_dataset import JPEGDeblurDataset
    from .inference import restore
    from .train.jpeg_autoencoder_loss import JPEGAutoEncoderLoss
    from .train.wrcan_model import WRCANModel
    from .wrcan_arch import WRCAN

_HOMES = {
    'WRCAN': 'wrcan_arch',
    'JPEGAutoEncoderLoss': 'train.jpeg_autoencoder_loss',
    'JPEGDeblurDataset': 'data.jpeg_deblur_dataset',
    'WRCANModel': 'train.wrcan_model',
    'load_network': 'checkpoint',
    'restore': 'inference',
}
_OF_THE_TOOLBOX = ('JPEGAutoEncoderLoss', 'JPEGDeblurDataset', 'WRCANModel')


if not TYPE_CHECKING:  # type checkers would take it to define any name

    def __getattr__(name: str) -> Any:
        if name not in _HOMES:
            raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
        try:
            value = getattr(importlib.import_module(f'.{_HOMES[name]}', __name__), name)
        except ModuleNotFoundError as error:
            if error.name != 'basicsr':
                raise
            message = f'{name} needs BasicSR, which is not installed; basicsr doctor says how to install it'
            raise ModuleNotFoundError(message, name='basicsr') from error
        globals()[name] = value
        return value

    if importlib.util.find_spec('basicsr') is None:  # help() and `import *` import each of these names
        __all__ = [name for name in __all__ if name not in _OF_THE_TOOLBOX]


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


def _before_basicsr() -> None:
    from .train.toolbox import make_importable

    make_importable()


def _after_basicsr() -> None:
    from .train.toolbox import plug_in

    plug_in()


when_imported('basicsr', before=_before_basicsr, after=_after_basicsr)
