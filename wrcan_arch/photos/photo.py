"""Photographs in and out: the file comes back upright, of the same size, with its colour profile and transparency."""

import os
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from ..errors import InputError

PHOTO_ENDINGS = ('.jpg', '.jpeg', '.png', '.bmp', '.tif', '.tiff', '.webp')


@dataclass(frozen=True)
class Photo:
    """A photograph, upright. `pixels` is uint8 (H, W, 3), RGB; `alpha` uint8 (H, W) where the file has transparency."""

    pixels: np.ndarray
    alpha: np.ndarray | None
    grey: bool
    icc_profile: bytes | None
    exif: bytes | None  # without the orientation, which has been applied

    def with_pixels(self, pixels: np.ndarray) -> 'Photo':
        """The same photograph with other pixels of the same shape."""
        return replace(self, pixels=pixels)


def _is_deep(file: Image.Image) -> bool:
    """Whether the file has 16 bits a channel: Pillow takes 8 of them without a word. Its decoder's raw mode tells."""
    for tile in getattr(file, 'tile', []):
        raw_mode = tile[3] if isinstance(tile[3], str) else (tile[3] or ('',))[0]
        if isinstance(raw_mode, str) and ('16' in raw_mode or ';32' in raw_mode):
            return True
    return file.mode.startswith(('I', 'F'))


def read_photo(path: Path | str) -> Photo:
    """A photograph of 8 bits a channel: RGB, grey or palette, with or without transparency."""
    path = Path(path)
    try:
        with Image.open(path) as file:
            if _is_deep(file):
                raise InputError(f'{path}: images of 16 bits a channel are not read yet; convert it to 8-bit RGB')
            if file.mode not in ('RGB', 'RGBA', 'L', 'LA', 'P', 'PA', '1'):
                raise InputError(f'{path}: images of kind {file.mode} are not read yet; convert it to 8-bit RGB')
            image = ImageOps.exif_transpose(file)
            image.load()
    except FileNotFoundError as error:
        raise InputError(f'{path}: no such photograph') from error
    except UnidentifiedImageError as error:
        raise InputError(f'{path}: not an image that can be read; convert it to PNG or JPEG') from error
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f'{path}: cannot be read, it may be cut or damaged ({error})') from error

    exif = image.getexif().tobytes() if len(image.getexif()) else None
    return Photo(
        pixels=np.asarray(image.convert('RGB')),
        alpha=np.asarray(image.convert('RGBA').getchannel('A')) if image.has_transparency_data else None,
        grey=image.mode in ('L', 'LA', '1'),
        icc_profile=image.info.get('icc_profile'),
        exif=exif,
    )


def write_photo(path: Path | str, photo: Photo) -> None:
    """Write a PNG, whole or not at all."""
    path = Path(path)
    image = Image.fromarray(photo.pixels)
    if photo.grey:
        image = image.convert('L')
    if photo.alpha is not None:
        image.putalpha(Image.fromarray(photo.alpha))
    about = {name: value for name, value in {'icc_profile': photo.icc_profile, 'exif': photo.exif}.items() if value}
    partial = path.with_name(f'{path.name}.{os.getpid()}.partial')
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f'{path.parent}: cannot be made ({error.strerror}); choose another folder') from error
    try:
        image.save(partial, format='PNG', **about)
        partial.replace(path)
    except OSError as error:
        partial.unlink(missing_ok=True)
        raise InputError(f'{path}: cannot be written ({error.strerror or error}); choose another folder') from error
