"""libvips as both reading and writing need it: its messages, its images over our memory, its colours."""

import errno
from typing import Any

import numpy as np
import pyvips
import pyvips.error

# Metadata that is handed on: libvips's name of it, and of the flag that keeps it.
KEPT = {'exif-data': 'exif', 'xmp-data': 'xmp', 'iptc-data': 'iptc', 'icc-profile-data': 'icc'}

pyvips.cache_set_max(0)  # libvips would keep the last hundred photographs


def _text_of_any_bytes(text: Any) -> str:
    return pyvips.ffi.string(text).decode(errors='replace')


# libvips's messages may quote bytes of a damaged file, at which pyvips would stop: in this call and all that follow, as
# it clears a message when it has decoded it.
pyvips.error._to_string = _text_of_any_bytes


def forget_messages() -> None:
    """Or what libvips said of another file would be said of this one."""
    pyvips.vips_lib.vips_error_clear()


def is_out_of_memory(error: Exception) -> bool:
    """By libvips's own words: libtiff cannot "allocate memory" for what is damaged too."""
    return getattr(error, 'errno', None) == errno.ENOMEM or 'out of memory -- size' in str(error)


def one_line(error: Exception) -> str:
    """Its last lines: libvips's first ones may be of what it tried before."""
    lines = [line for line in map(str.strip, str(error).splitlines()) if line]
    return ' '.join(' '.join(lines[-3:]).split())[:200]


def vips_image(samples: np.ndarray, interpretation: str) -> pyvips.Image:
    """An image over the memory of samples (H, W, C), uint8 or uint16."""
    height, width, bands = samples.shape
    samples = np.ascontiguousarray(samples)
    image = pyvips.Image.new_from_memory(samples, width, height, bands, 'ushort' if samples.itemsize == 2 else 'uchar')
    return image.copy(interpretation=interpretation)


def to_srgb(inks: np.ndarray, profile: bytes | None) -> pyvips.Image:
    """CMYK (H, W, 4) to sRGB, by the file's profile; by libvips's own where that is missing or unfit."""
    image = vips_image(inks, 'cmyk')
    if profile is not None:
        image.set_type(pyvips.GValue.blob_type, 'icc-profile-data', profile)
    return image.icc_transform('srgb', embedded=True, input_profile='cmyk', depth=8 * inks.itemsize)
