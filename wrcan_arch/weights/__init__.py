"""The weights that are part of the package, by the names that option files can use."""

from pathlib import Path

BUNDLED = {'small': Path(__file__).parent / 'wrcan_small.safetensors'}
