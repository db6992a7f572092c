"""A photograph in memory, and the endings of photographs' files."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np

# The formats that are written, and the endings of their files; the first is the usual one.
ENDINGS = {
    'jpeg': ('.jpg', '.jpeg', '.jpe', '.jfif'),
    'png': ('.png',),
    'tiff': ('.tif', '.tiff'),
    'webp': ('.webp',),
    'avif': ('.avif',),
}
PHOTO_ENDINGS = (*(ending for endings in ENDINGS.values() for ending in endings), '.bmp', '.heic', '.heif')

NO_RESOLUTION = (72 / 25.4, 72 / 25.4)  # pixels per mm of a file that gives none: EXIF's default (XResolution)

PROFILE_LOST = 'its colour profile is damaged or does not fit its colours, and is not kept'


@dataclass(frozen=True)
class Photo:
    """A photograph, upright.

    `pixels` is uint8 or uint16, (H, W, 3): RGB in the file's own colour space; sRGB if the file is CMYK; three equal
    channels if it is grey. `alpha` is (H, W), of the same type, if the file has transparency; `inks` is (H, W, 4), the
    file's own CMYK. `extra` is a TIFF's further channel, (H, W), that is no transparency.
    """

    pixels: np.ndarray
    alpha: np.ndarray | None = None
    inks: np.ndarray | None = None
    extra: np.ndarray | None = None
    mode: Literal['grey', 'rgb', 'cmyk'] = 'rgb'
    metadata: dict[str, bytes] = field(default_factory=dict)  # EXIF, XMP, IPTC, ICC profile; by libvips's names
    texts: bytes = b''  # a PNG file's text chunks, one after the other
    pixels_per_mm: tuple[float, float] = NO_RESOLUTION
    permissions: int = 0o666  # read and write bits of the file, for the result too
    group: int | None = None  # number of the file's group, to which its permissions apply
    jpeg_quality: int | None = None  # estimated, of a JPEG file
    lossless_webp: bool = False
    declares_non_srgb: bool = False  # the file marks its colours as other than sRGB, in a way that no result can
    not_read: tuple[str, ...] = ()  # warnings about what else is in the file


def format_of_name(path: Path) -> str | None:
    """The format in which a file of this name is written; None if none is."""
    return next((name for name, endings in ENDINGS.items() if path.suffix.lower() in endings), None)
