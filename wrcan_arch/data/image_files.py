"""Image files that data sets read and stores are made from: which they are, how large, what their keys are."""

import os
import re
import warnings
import zlib
from pathlib import Path

import cv2
import numpy as np
from PIL import ExifTags, Image

from ..errors import InputError
from ..files import disk_errors_name, opened_at_any_size, written_whole
from ..folders import walk

IMAGE_ENDINGS = ('.jpg', '.jpeg', '.png', '.bmp', '.tif', '.tiff', '.webp')


def is_image(path: Path) -> bool:
    """By its name, which does not begin with a dot: macOS leaves ._NAME.jpg beside NAME.jpg, without an image in it."""
    return path.suffix.lower() in IMAGE_ENDINGS and not path.name.startswith('.')


def images_under(folder: Path) -> list[Path]:
    """The images of a folder and of all that `walk` finds in it, sorted. InputError if one cannot be read."""
    try:
        paths = (path for here, names in walk(folder) for path in map(here.joinpath, names))
        return sorted(filter(is_image, paths))
    except OSError as error:
        raise InputError(f'{error.filename}: cannot be read ({error.strerror})') from error


def size_of_image(path: Path | str) -> tuple[int, ...]:
    """(H, W) as it is decoded, upright, from the file's header; () of what is none."""
    try:
        with warnings.catch_warnings(), opened_at_any_size():
            warnings.simplefilter('ignore')  # whoever decodes it tells what else is wrong
            with Image.open(path) as image:
                exif = image.getexif() if 'exif' in image.info else {}  # unasked, Pillow decodes a PNG to look for it
                return image.size if exif.get(ExifTags.Base.Orientation) in (5, 6, 7, 8) else image.size[::-1]
    except (OSError, SyntaxError, ValueError):
        return ()


def decode_image(content: bytes | np.ndarray) -> np.ndarray | None:
    """uint8 (H, W, 3) in BGR, upright, from a file's bytes; None of what is no image.

    OpenCV is not given the path: one that is not UTF-8 ends the process.
    """
    try:
        return cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_COLOR) if len(content) else None
    except cv2.error:  # of an image that says it has more pixels than OpenCV takes
        return None


def write_png(path: Path, image: np.ndarray) -> None:
    """Write uint8 (H, W, 3) in BGR, whole, into a folder that is made where it is missing. InputError if it cannot be.

    OpenCV's own writing takes no such path either, and some full disks for written ones.
    """
    with disk_errors_name(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        with written_whole(path) as file:
            file.write(cv2.imencode('.png', image)[1].tobytes())


def key_for(name: str) -> str:
    """A key that BasicSR can read (ASCII, no dots), from a file's name without its ending.

    Where letters other than ASCII's are lost, a checksum of the name tells it from others.
    """
    key = re.sub(r'[^A-Za-z0-9_-]+', '_', name)
    if not name.isascii():
        return f'{key.strip("_")}_{zlib.crc32(os.fsencode(name)):08x}'.strip('_')
    if not key.strip('_'):
        raise InputError(f"'{name}' has no letter or digit to make a key from; rename the file")
    return key
