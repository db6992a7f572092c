"""Find, measure, decode and write the image files of data sets and stores, and derive keys from their names."""

import os
import re
import warnings
import zlib
from pathlib import Path

import cv2
import numpy as np
from PIL import ExifTags, Image

from ..errors import InputError
from ..system.files import disk_errors_as_input_errors, written_whole
from ..system.folders import walk
from ..system.threads import without_pillow_size_limit

IMAGE_ENDINGS = ('.jpg', '.jpeg', '.png', '.bmp', '.tif', '.tiff', '.webp')
FORMATS = ('JPEG', 'PNG', 'BMP', 'TIFF', 'WEBP')  # else Pillow would run Ghostscript on an EPS named .png


def is_image(path: Path) -> bool:
    """Whether the name is an image's. One with a leading dot is not: macOS puts ._NAME.jpg, no image, by NAME.jpg."""
    return path.suffix.lower() in IMAGE_ENDINGS and not path.name.startswith('.')


def images_under(folder: Path) -> list[Path]:
    """Return the images of all folders that `walk` visits from `folder`, sorted; InputError if one is unreadable."""
    try:
        paths = (path for here, names in walk(folder) for path in map(here.joinpath, names))
        return sorted(filter(is_image, paths))
    except OSError as error:
        raise InputError(f'{error.filename}: cannot be read ({error.strerror})') from error


def size_of_image(path: Path | str) -> tuple[int, ...]:
    """Return (H, W) of the upright image from the file's header; () if Pillow cannot open it."""
    try:
        with without_pillow_size_limit(), warnings.catch_warnings():  # in this order: threads share the filters too
            warnings.simplefilter('ignore')  # other problems are reported when it is decoded
            with Image.open(path, formats=FORMATS) as image:
                exif = image.getexif() if 'exif' in image.info else {}  # else Pillow decodes a PNG to look for it
                return image.size if exif.get(ExifTags.Base.Orientation) in (5, 6, 7, 8) else image.size[::-1]
    except (OSError, SyntaxError, ValueError):
        return ()


def decode_image(content: bytes) -> np.ndarray | None:
    """Decode a file's bytes to uint8 (H, W, 3) in BGR, upright; None if OpenCV cannot.

    OpenCV is not given the path: one that is not UTF-8 would kill the process.
    """
    try:
        return cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_COLOR) if content else None
    except cv2.error:  # for an image that claims more pixels than OpenCV takes
        return None


def write_png(path: Path, image: np.ndarray) -> None:
    """Write uint8 (H, W, 3) in BGR, whole or not at all; make the folder if it is missing. InputError if that fails.

    Does not use cv2.imwrite: it too cannot take a path that is not UTF-8, and it reports success on some full disks.
    """
    with disk_errors_as_input_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        with written_whole(path) as file:
            file.write(cv2.imencode('.png', image)[1].tobytes())


def key_for(name: str) -> str:
    """Make a key that BasicSR can read (ASCII, no dots) from a file's name without its ending.

    A name that is not ASCII loses letters, so a checksum of it is appended to keep keys apart. InputError for an ASCII
    name of which nothing would be left.
    """
    key = re.sub(r'[^A-Za-z0-9_-]+', '_', name)
    if not name.isascii():
        return f'{key.strip("_")}_{zlib.crc32(os.fsencode(name)):08x}'.strip('_')
    if not key.strip('_'):
        raise InputError(f"'{name}' has no letter or digit to make a key from; rename the file")
    return key
