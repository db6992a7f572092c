"""What reading and writing with libvips share: its error messages, images over NumPy's memory, CMYK to sRGB."""

import errno
from typing import Any

import numpy as np
import pyvips
import pyvips.error

# Metadata that is kept: libvips's field name, and the flag that keeps it when writing.
KEPT = {'exif-data': 'exif', 'xmp-data': 'xmp', 'iptc-data': 'iptc', 'icc-profile-data': 'icc'}

pyvips.cache_set_max(0)  # libvips would keep the last 100 operations, with their photographs


def _text_of_any_bytes(text: Any) -> str:
    return pyvips.ffi.string(text).decode(errors='replace')


# libvips's messages may quote bytes of a damaged file that are not UTF-8. For an error, pyvips would raise in this call
# and in all that follow, since it clears a message only after decoding it; for a warning, it would print a traceback.
pyvips.error._to_string = pyvips._to_string = _text_of_any_bytes


def clear_messages() -> None:
    """Clear libvips's messages, so that those of an earlier file are not reported for this one.

    All threads share them, so only the thread that reads calls this. Even so, a message of the thread that writes may
    be lost: nothing may depend on it.
    """
    pyvips.vips_lib.vips_error_clear()


def vips_lacks_memory(error: Exception) -> bool:
    """Whether libvips itself is out of memory; libtiff fails to "allocate memory" for damaged files too."""
    return getattr(error, 'errno', None) == errno.ENOMEM or 'out of memory -- size' in str(error)


def reason_of(error: Exception) -> str:
    """The last 3 lines of an error as one, at most 200 characters: libvips's first may be about earlier attempts.

    A repeated line is given once. pyvips's own line, such as "unable to write to memory", is left out: it names the
    call and not the reason.
    """
    lines = [line for line in map(str.strip, str(error).splitlines()) if line and not line.startswith('unable to ')]
    return ' '.join(' '.join(dict.fromkeys(lines[-3:])).split())[:200] or 'for an unknown reason'


def vips_image(samples: np.ndarray, interpretation: str) -> pyvips.Image:
    """An image of samples (H, W, C), uint8 or uint16; it shares their memory if they are contiguous."""
    height, width, bands = samples.shape
    samples = np.ascontiguousarray(samples)
    image = pyvips.Image.new_from_memory(samples, width, height, bands, 'ushort' if samples.itemsize == 2 else 'uchar')
    return image.copy(interpretation=interpretation)


def to_srgb(inks: np.ndarray, profile: bytes | None) -> pyvips.Image:
    """Convert CMYK (H, W, 4) to sRGB by the file's profile, or by libvips's own if that is missing or unfit."""
    image = vips_image(inks, 'cmyk')
    if profile is not None:
        image.set_type(pyvips.GValue.blob_type, 'icc-profile-data', profile)
    return image.icc_transform('srgb', embedded=True, input_profile='cmyk', depth=8 * inks.itemsize)
