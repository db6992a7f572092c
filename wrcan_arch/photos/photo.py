"""What a photograph is, and what its files are called."""

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

import numpy as np

# What a file is called that is written in a format; the first ending is the usual one.
ENDINGS = {
    'jpeg': ('.jpg', '.jpeg', '.jpe', '.jfif'),
    'png': ('.png',),
    'tiff': ('.tif', '.tiff'),
    'webp': ('.webp',),
    'avif': ('.avif',),
}
PHOTO_ENDINGS = (*(ending for endings in ENDINGS.values() for ending in endings), '.bmp', '.heic', '.heif')

NO_RESOLUTION = (72 / 25.4, 72 / 25.4)  # pixels per mm where a file says nothing, as EXIF would have it (XResolution)


@dataclass(frozen=True)
class Photo:
    """A photograph, upright.

    `pixels` is uint8 or uint16, (H, W, 3): RGB in the file's own colour space, of CMYK in sRGB, of grey three times the
    same. `alpha` is (H, W), of the same type, where the file has transparency; `inks` (H, W, 4), the file's own CMYK.
    """

    pixels: np.ndarray
    alpha: np.ndarray | None = None
    inks: np.ndarray | None = None
    mode: Literal['grey', 'rgb', 'cmyk'] = 'rgb'
    metadata: dict[str, bytes] = field(default_factory=dict)  # EXIF, XMP, IPTC, ICC profile; by libvips's names
    texts: bytes = b''  # of a PNG file: its chunks of them
    pixels_per_mm: tuple[float, float] = NO_RESOLUTION
    permissions: int = 0o666  # who may read and write the file; a result is for nobody else
    jpeg_quality: int | None = None  # as estimated, of a JPEG file
    lossless_webp: bool = False
    marked_colours: bool = False  # not sRGB's, by a mark that has no place in a result
    pictures: int = 1  # that the file holds, 2 of any animation; this is the first, of a HEIC the main one
    left: tuple[str, ...] = ()  # what else of the file is not here, to warn of

    def with_pixels(self, pixels: np.ndarray) -> 'Photo':
        """The same photograph with other pixels of the same shape."""
        return replace(self, pixels=pixels)


def format_of_name(path: Path) -> str | None:
    """The format that a file of this name is written in; None where it cannot be written."""
    return next((name for name, endings in ENDINGS.items() if path.suffix.lower() in endings), None)
