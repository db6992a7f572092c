"""WRCAN and the JPEG auto-encoder loss for BasicSR. Importing this registers the classes with the toolbox."""

from .toolbox import repair_toolbox

repair_toolbox()  # before anything imports basicsr

from . import lpips_metric  # noqa: E402, F401  (registers the metric)
from .checkpoint import load_network  # noqa: E402
from .errors import InputError  # noqa: E402
from .inference import restore  # noqa: E402
from .jpeg_autoencoder_loss import JPEGAutoEncoderLoss  # noqa: E402
from .jpeg_deblur_dataset import JPEGDeblurDataset  # noqa: E402
from .wrcan_arch import WRCAN  # noqa: E402
from .wrcan_model import WRCANModel  # noqa: E402

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
