"""Photographs in and out: upright, of the same size, mode and depth, with colour profile, EXIF and transparency.

libvips does it, and Pillow and pi-heif what libvips's wheel cannot read (BMP and HEIC). Measured with 24 megapixels and
the libraries' own defaults for writing (libvips 8.18, Pillow 13 for 8 bit, OpenCV 5 for 16 bit, two cores; seconds,
and memory beyond the pixels handed in or out):

           read JPEG    read PNG     read 16-bit PNG  write JPEG   write PNG    write 16-bit TIFF
  libvips  0.2 s 16 MB  0.4 s  8 MB  0.9 s  16 MB     0.1 s  7 MB  1.2 s  9 MB  0.1 s  19 MB
  others   0.3 s 160 MB 0.6 s 158 MB 2.3 s 134 MB     0.2 s 94 MB  9.6 s 94 MB  1.6 s 140 MB

Pillow takes 8 of 16 bits of a colour photograph without a word; OpenCV knows no CMYK and no profiles.
"""

import errno
import json
import os
import re
import stat
import subprocess
import sys
from dataclasses import dataclass, field, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any, BinaryIO, Literal

import numpy as np
import pyvips
import pyvips.error
from PIL import Image, UnidentifiedImageError

from ..errors import InputError
from ..files import disk_errors_name, opened_at_any_size, written_whole
from ..jpeg_quality import estimate_quality
from .first_bytes import HEAD, format_of_content, has_comment, holds_more, is_lossless, marks_colours, png_chunks
from .png_metadata import add_texts, read_metadata
from .tiff_exif import (
    PHOTOSHOP_HEAD,
    add_metadata,
    as_jpeg_has_it,
    begins_with_preview,
    has_captions,
    has_layers,
    orientation_of,
    read_exif,
    resources_without_thumbnail,
    without_thumbnail,
)

MAX_PIXELS = 200_000_000
MAX_SIDE = {'jpeg': 65_500, 'webp': 16_383, 'avif': 16_384}  # what the format, or its encoder, holds
DEFAULT_QUALITY = 95
# Q is how long it tries: 75 takes four times as long for 7 % less. Colours that are transparent stay too.
LOSSLESS_WEBP = {'lossless': True, 'exact': True, 'Q': 20}

# What a file is called that is written in a format; the first ending is the usual one.
ENDINGS = {
    'jpeg': ('.jpg', '.jpeg', '.jpe', '.jfif'),
    'png': ('.png',),
    'tiff': ('.tif', '.tiff'),
    'webp': ('.webp',),
    'avif': ('.avif',),
}
PHOTO_ENDINGS = (*(ending for endings in ENDINGS.values() for ending in endings), '.bmp', '.heic', '.heif')

# Metadata that is handed on: libvips's name of it, and of the flag that keeps it.
KEPT = {'exif-data': 'exif', 'xmp-data': 'xmp', 'iptc-data': 'iptc', 'icc-profile-data': 'icc'}

# Bytes, as libvips writes it; it leaves out what is longer.
HELD_BY_JPEG = {'exif-data': 65_000, 'xmp-data': 59_999, 'iptc-data': 65_500}

DESCRIPTION = 1 << 16  # bytes from the start, and as many as the metadata are, in which files describe their pictures

NO_RESOLUTION = (72 / 25.4, 72 / 25.4)  # pixels per mm where a file says nothing, as EXIF would have it (XResolution)

LUMA = [0.299, 0.587, 0.114]  # ITU-R BT.601, as in JPEG

HEIC_DECODER = Path(__file__).with_name('heic_decoder.py')

pyvips.cache_set_max(0)  # libvips would keep the last hundred photographs


def _text_of_any_bytes(text: Any) -> str:
    return pyvips.ffi.string(text).decode(errors='replace')


# libvips's messages may quote bytes of a damaged file, at which pyvips would stop: in this call and all that follow, as
# it clears a message when it has decoded it.
pyvips.error._to_string = _text_of_any_bytes


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


# Reading


def read_photo(path: Path | str, *, max_pixels: int = MAX_PIXELS) -> Photo:
    """Any photograph of 8 or 16 bits: grey, palette, RGB or CMYK, with or without transparency.

    InputError, naming the file, if it cannot be read whole or has more than `max_pixels` pixels. MemoryError.
    """
    path = Path(path)
    try:
        mode = path.stat().st_mode
        if not stat.S_ISREG(mode):  # a pipe would be waited for
            raise InputError('not a file')
        with path.open('rb', buffering=0) as file:
            return replace(_read(file, max_pixels), permissions=mode & 0o666)
    except FileNotFoundError as error:
        raise InputError(f'{path}: no such photograph') from error
    except UnidentifiedImageError as error:
        raise InputError(f'{path}: not an image that can be read; convert it to PNG or JPEG') from error
    except InputError as error:
        raise InputError(f'{path}: {error}') from error
    except PermissionError as error:
        raise InputError(f'{path}: cannot be read ({error.strerror})') from error
    except (OSError, pyvips.Error, SyntaxError, ValueError, OverflowError) as error:
        if _is_out_of_memory(error):
            raise MemoryError from error
        raise InputError(f'{path}: cannot be read, it may be cut or damaged ({_one_line(error)})') from error


def _read(file: BinaryIO, max_pixels: int) -> Photo:
    pyvips.vips_lib.vips_error_clear()  # or what it said of another file would be said of this one
    head = file.read(HEAD)
    content = format_of_content(head)
    if not head:
        raise InputError('the file is empty')
    if content is None:
        raise UnidentifiedImageError
    quality = estimate_quality(file) if content == 'jpeg' else None
    exif = read_exif(file) if content == 'tiff' else None
    behind, texts = read_metadata(file) if content == 'png' else ({}, b'')
    if content == 'tiff' and begins_with_preview(file):
        raise InputError('begins with a small preview, as raw files do; develop it to TIFF or JPEG first')
    file.seek(0)
    if content == 'bmp':
        image = _open_bmp(file, max_pixels)
    elif content == 'heic':
        image = _open_heic(file, max_pixels)
    else:
        image = _open_with_vips(file, content)
    _check_pixels(image.width, image.height, max_pixels)

    if 'exif-data' in behind and image.get_typeof('exif-data') == 0:
        image = image.copy()
        image.set_type(pyvips.GValue.gint_type, 'orientation', orientation_of(behind['exif-data']))
    fields = image.get_fields()
    metadata = behind | {name: image.get(name) for name in KEPT if name in fields}
    if exif is not None:
        metadata['exif-data'] = exif
    if content == 'tiff' and 'photoshop-data' in fields:
        metadata.setdefault('iptc-data', PHOTOSHOP_HEAD + image.get('photoshop-data'))
    if 'iptc-data' in metadata:
        metadata['iptc-data'] = resources_without_thumbnail(metadata['iptc-data'])
    left = []
    if head[:4] in (b'II+\0', b'MM\0+'):
        left.append('EXIF is not read from a BigTIFF; the result has none')
    if 'exif-data' in metadata:
        metadata['exif-data'] = without_thumbnail(metadata['exif-data'])
    if 'xmp-data' in metadata:
        metadata['xmp-data'] = re.sub(rb'(tiff:Orientation\s*(=\s*["\']|>)\s*)[1-8]', rb'\g<1>1', metadata['xmp-data'])
        metadata['xmp-data'], films = re.subn(
            rb'((MotionPhoto|MicroVideo)\s*(=\s*["\']|>)\s*)1', rb'\g<1>0', metadata['xmp-data']
        )
        if films:
            left.append('the file holds a film too; the picture was restored')
    if content == 'tiff' and has_layers(file):
        left.append("Photoshop's layers are not kept; the picture was restored")
    mode = _mode(image)
    file.seek(0)
    start = file.read(DESCRIPTION + sum(map(len, metadata.values())))
    if content == 'jpeg' and has_comment(start):
        left.append('its JPEG comment is not kept')
    resolution = _resolution(image, start, content)
    orientation = image.get('orientation') if 'orientation' in fields else 1
    if orientation > 1:
        image = image.copy_memory().autorot()  # turning needs all rows
        resolution = resolution[::-1] if orientation > 4 else resolution  # a quarter turn
    samples = np.atleast_3d(image.numpy())  # (H, W, 1 to 5)
    if content in ('avif', 'heic') and samples.itemsize == 2:  # of 10 or 12 bits, which are the upper ones
        samples = samples | samples >> image.get('bits-per-sample')  # white is 65535
    alpha = np.ascontiguousarray(samples[:, :, -1]) if image.hasalpha() else None
    colours = samples if alpha is None else samples[:, :, :-1]
    inks = None
    if mode == 'cmyk':
        inks = np.ascontiguousarray(colours)
        colours = _to_srgb(inks, metadata.get('icc-profile-data')).numpy()
    return Photo(
        pixels=np.ascontiguousarray(np.broadcast_to(colours, (*colours.shape[:2], 3))),
        alpha=alpha,
        inks=inks,
        mode=mode,
        metadata=metadata,
        texts=texts,
        pixels_per_mm=resolution,
        jpeg_quality=quality,
        lossless_webp=content == 'webp' and is_lossless(start),
        marked_colours=marks_colours(start, content, has_profile='icc-profile-data' in metadata),
        pictures=2 if holds_more(start, content) else image.get('n-pages') if 'n-pages' in fields else 1,
        left=tuple(left),
    )


def _resolution(image: pyvips.Image, start: bytes, content: str) -> tuple[float, float]:
    """Pixels per mm, across and down; that of EXIF goes before it when libvips writes."""
    said = image.xres, image.yres
    unsaid = content == 'tiff' and 'resolution-unit' not in image.get_fields()
    if content == 'png':
        unsaid = png_chunks(start).get(b'pHYs', b'')[8:9] != b'\1'  # or it is of a pixel's shape alone
    if unsaid or said == (1, 1) or np.allclose(said, NO_RESOLUTION, rtol=1e-3):  # what libvips says instead; PNG: 2.834
        return NO_RESOLUTION
    return said


def _open_with_vips(file: BinaryIO, content: str) -> pyvips.Image:
    """The header of an image; its rows are decoded as they are asked for, from the top."""
    source = pyvips.Source.new_from_descriptor(file.fileno())
    load = getattr(pyvips.Image, {'avif': 'heif'}.get(content, content) + 'load_source')
    try:
        return load(source, access='sequential', fail_on='error')
    except pyvips.Error as error:
        if 'labq' in str(error):
            raise InputError('images of kind Lab are not read; convert it to 8-bit or 16-bit RGB') from error
        raise


def _check_pixels(width: int, height: int, max_pixels: int) -> None:
    if width * height > max_pixels:
        raise InputError(f'{width} x {height} is more than {max_pixels:,} pixels; raise --max-pixels')


def _open_bmp(file: BinaryIO, max_pixels: int) -> pyvips.Image:
    with opened_at_any_size():
        opened = Image.open(file, formats=['BMP'])
    with opened:
        _check_pixels(*opened.size, max_pixels)
        grey = opened.mode in ('1', 'L')
        samples = np.asarray(opened.convert('L' if grey else 'RGBA' if opened.has_transparency_data else 'RGB'))
        image = _vips_image(np.atleast_3d(samples), 'b-w' if grey else 'srgb')
        across, down = opened.info.get('dpi', (0, 0))
        said = 0 < min(across, down) <= max(across, down) < 1_000_000  # more is damage, and libvips complains
        return image.copy(xres=across / 25.4, yres=down / 25.4) if said else image


def _open_heic(file: BinaryIO, max_pixels: int) -> pyvips.Image:
    if find_spec('pi_heif') is None:
        raise InputError('HEIC needs pi-heif: pip install "wrcan-arch[heic]"; or convert it to JPEG')
    command = [sys.executable, '-P', str(HEIC_DECODER), str(max_pixels)]
    decoder = subprocess.run(command, stdin=file, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    answer = decoder.stdout
    at = answer.find(b'\n') + 1
    told: dict[str, Any] = {'error': 'its decoder crashed'} if decoder.returncode else json.loads(answer[:at])
    if 'error' in told:
        raise InputError(f'cannot be decoded ({told["error"]}); it may be damaged, if not convert it to JPEG')
    width, height = told['size']
    _check_pixels(width, height, max_pixels)
    metadata = {}
    for name, length in told['metadata'].items():
        metadata[name] = answer[at : at + length]
        at += length
    samples = np.frombuffer(answer, np.uint16 if told['bits'] > 8 else np.uint8, offset=at).reshape(told['shape'])
    image = _vips_image(samples, 'b-w' if samples.shape[2] == 1 else 'srgb')
    for name, content in metadata.items():
        image.set_type(pyvips.GValue.blob_type, name, content)
    image.set_type(pyvips.GValue.gint_type, 'n-pages', told['pictures'])
    image.set_type(pyvips.GValue.gint_type, 'bits-per-sample', told['bits'])
    return image


def _mode(image: pyvips.Image) -> Literal['grey', 'rgb', 'cmyk']:
    """What the file's colours are. InputError for what a photograph is not."""
    if image.format in ('uchar', 'ushort'):
        if image.interpretation in ('b-w', 'grey16') and image.bands <= 2:
            return 'grey'
        if image.interpretation in ('srgb', 'rgb16') and image.bands in (3, 4):
            return 'rgb'
        if image.interpretation == 'cmyk' and image.bands in (4, 5):
            return 'cmyk'
    kind = f'{image.interpretation} of {image.bands} x {image.format}'
    raise InputError(f'images of kind {kind} are not read; convert it to 8-bit or 16-bit RGB')


def _to_srgb(inks: np.ndarray, profile: bytes | None) -> pyvips.Image:
    """CMYK (H, W, 4) to sRGB, by the file's profile; by libvips's own where that is missing or unfit."""
    image = _vips_image(inks, 'cmyk')
    if profile is not None:
        image.set_type(pyvips.GValue.blob_type, 'icc-profile-data', profile)
    return image.icc_transform('srgb', embedded=True, input_profile='cmyk', depth=8 * inks.itemsize)


# Writing


def check_fits(path: Path, photo: Photo) -> str:
    """The format that a file of this name is written in; InputError unless it can hold the photograph."""
    name = format_of_name(path)
    if name is None:
        raise InputError(f'{path}: not a format that is written; choose one of {", ".join(ENDINGS)}')
    if max(photo.pixels.shape[:2]) > MAX_SIDE.get(name, np.inf):
        raise InputError(f'{path}: {name} holds at most {MAX_SIDE[name]:,} pixels a side; choose --format png')
    if name == 'jpeg' and photo.alpha is not None and (photo.alpha < np.iinfo(photo.alpha.dtype).max).any():
        raise InputError(f'{path}: jpeg holds no transparency; choose --format png')
    return name


def what_is_lost(name: str, photo: Photo) -> list[str]:
    """What to warn of before a photograph is written in a format: what its file has, and the result will not."""
    lost = list(photo.left)
    if photo.pictures > 1:
        lost.append('the file holds several pictures; the first was restored')
    if photo.pixels.dtype == np.uint16 and name in ('jpeg', 'webp'):
        lost.append(f'it has more than the 8 bits of {name}; --format png keeps them')
    of_grey = photo.metadata.get('icc-profile-data', b'')[16:20] == b'GRAY'  # what the profile is of (ICC.1, 7.2.6)
    if photo.marked_colours or (of_grey and name in ('webp', 'avif')):
        lost.append('its colours are other than sRGB, and the result does not say so; convert it to sRGB first')
    held = HELD_BY_JPEG if name == 'jpeg' else {}
    too_long = any(len(photo.metadata.get(key, b'')) > most for key, most in held.items())
    if too_long or b'HasExtendedXMP' in photo.metadata.get('xmp-data', b''):
        lost.append('some of its metadata (EXIF, XMP, IPTC) is too long to be kept')
    if has_captions(photo.metadata.get('iptc-data', b'')) and name not in ('jpeg', 'tiff'):
        lost.append(f'{name} has no place for its captions (IPTC); --format tiff keeps them')
    if photo.texts and name != 'png':
        lost.append(f'{name} has no place for its texts (as Author, Description); --format png keeps them')
    return lost


def write_photo(path: Path | str, photo: Photo, *, quality: int = DEFAULT_QUALITY) -> None:
    """Write a photograph, whole or not at all, in the format of the name's ending.

    Args:
        path: ends in one of `ENDINGS`.
        photo: of 16 bits is written with 16 by PNG and TIFF, 12 by AVIF, 8 by JPEG and WebP; CMYK stays so in JPEG and
            TIFF, and becomes sRGB in the others; what is opaque loses its transparency in JPEG; lossless WebP stays so.
        quality: 1 to 100, of JPEG, AVIF and lossy WebP.
    """
    path = Path(path)
    pyvips.vips_lib.vips_error_clear()
    name = check_fits(path, photo)
    deep = photo.pixels.dtype == np.uint16
    options: dict[str, dict] = {
        'jpeg': {'Q': quality},
        'png': {'compression': 3, 'filter': 'all'},
        'tiff': {'compression': 'deflate', 'level': 3, 'predictor': 'horizontal'},
        'webp': LOSSLESS_WEBP if photo.lossless_webp else {'Q': quality, 'smart_subsample': True},
        'avif': {'Q': quality, 'compression': 'av1', 'bitdepth': 12 if deep else 8, 'effort': 0},  # 4: 55 s, not 4 s
    }
    image = _image_of(photo, name)
    fields = image.get_fields()
    kept = {flag for field_name, flag in KEPT.items() if field_name in fields}
    if name not in ('png', 'tiff') and photo.pixels_per_mm != NO_RESOLUTION:
        kept.add('exif')  # without it libvips leaves the resolution out too
    if name == 'tiff':
        kept.discard('iptc')  # it is written here: libvips writes a quarter
    keep = '|'.join(kept) or 'none'
    save = getattr(image, {'avif': 'heif'}.get(name, name) + 'save_target')
    with disk_errors_name(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        with written_whole(path, permissions=photo.permissions) as file:
            try:
                save(pyvips.Target.new_to_descriptor(file.fileno()), keep=keep, **options[name])
            except pyvips.Error as error:
                if _is_out_of_memory(error):
                    raise MemoryError from error
                if (number := _error_number(error)) is not None:
                    raise OSError(number, os.strerror(number)) from error
                raise InputError(f'{path}: cannot be written ({_one_line(error)})') from error
            if name == 'tiff':
                add_metadata(file, *(photo.metadata.get(key, b'') for key in ('exif-data', 'iptc-data')))
            if name == 'png' and photo.texts:
                add_texts(file, photo.texts)


def _image_of(photo: Photo, name: str) -> pyvips.Image:
    """What is to be written in a format: colours as the file had them, transparency, metadata. Computed row by row."""
    deep = photo.pixels.dtype == np.uint16
    image = _vips_image(photo.pixels, 'rgb16' if deep else 'srgb')
    metadata = dict(photo.metadata)
    if photo.mode == 'grey':
        image = image.recomb([LUMA]).rint().cast(image.format).copy(interpretation='grey16' if deep else 'b-w')
    elif photo.inks is not None:
        profile = metadata.pop('icc-profile-data', None)  # the pixels are sRGB
        if name in ('jpeg', 'tiff'):
            image = _changed_inks(photo.inks, image, profile)
    if photo.alpha is not None and name != 'jpeg':
        image = image.bandjoin(_vips_image(photo.alpha[:, :, None], image.interpretation))

    if name == 'jpeg' and 'iptc-data' in metadata:
        metadata['iptc-data'] = as_jpeg_has_it(metadata['iptc-data'])
    image = image.copy(xres=photo.pixels_per_mm[0], yres=photo.pixels_per_mm[1])
    for key, value in metadata.items():
        image.set_type(pyvips.GValue.blob_type, key, value)
    image.set_type(pyvips.GValue.gint_type, 'orientation', 1)
    return image


def _changed_inks(inks: np.ndarray, image: pyvips.Image, profile: bytes | None) -> pyvips.Image:
    """The file's own inks, changed as much as the image's, now in sRGB, are; what stayed as it was keeps them.

    Separated anew, all would change: a profile's two directions are not inverse, and how much of a grey is black ink
    was chosen when the file was made.
    """
    before, after = (_to_cmyk(each, profile, depth=8 * inks.itemsize) for each in (_to_srgb(inks, profile), image))
    changed = after + (_vips_image(inks, 'cmyk') - before)  # beyond 8 or 16 bits, on both sides
    black = changed[3]
    lacking = (black < 0).ifthenelse(black, 0)  # to be taken away where there is none, so the others give it
    return (changed + lacking * [1, 1, 1, 0]).cast(after.format)  # which clips


def _to_cmyk(image: pyvips.Image, profile: bytes | None, depth: int) -> pyvips.Image:
    """sRGB to CMYK, by the file's profile; by libvips's own, which is not put in, where that is missing or unfit."""
    independent = image.icc_import(input_profile='srgb').copy()
    if profile is not None and profile[16:20] == b'CMYK':  # what it is of (ICC.1, 7.2.6)
        independent.set_type(pyvips.GValue.blob_type, 'icc-profile-data', profile)
        try:
            return independent.icc_export(depth=depth).copy()
        except pyvips.Error:
            pass
    separated = independent.icc_export(output_profile='cmyk', depth=depth).copy()
    separated.remove('icc-profile-data')
    return separated


def _vips_image(samples: np.ndarray, interpretation: str) -> pyvips.Image:
    """An image over the memory of samples (H, W, C), uint8 or uint16."""
    height, width, bands = samples.shape
    samples = np.ascontiguousarray(samples)
    image = pyvips.Image.new_from_memory(samples, width, height, bands, 'ushort' if samples.itemsize == 2 else 'uchar')
    return image.copy(interpretation=interpretation)


def _error_number(error: pyvips.Error) -> int | None:
    """What the system said to libvips; None where it was not the system."""
    said = re.search('system error: (.+)', str(error))
    return next((number for number in errno.errorcode if said and os.strerror(number) == said[1]), None)


def _is_out_of_memory(error: Exception) -> bool:
    """By libvips's own words: libtiff cannot "allocate memory" for what is damaged too."""
    return getattr(error, 'errno', None) == errno.ENOMEM or 'out of memory -- size' in str(error)


def _one_line(error: Exception) -> str:
    """Its last lines: libvips's first ones may be of what it tried before."""
    lines = [line for line in map(str.strip, str(error).splitlines()) if line]
    return ' '.join(' '.join(lines[-3:]).split())[:200]
