"""The weights that come with this, by the names that the command and option files know."""

from pathlib import Path

SHIPPED = {'small': Path(__file__).parent / 'wrcan_small.safetensors'}
