"""Read photographs: upright, with all metadata that a result can hold.

libvips decodes them; Pillow and pi-heif decode what libvips's wheel cannot (BMP and HEIC). Measured with 24 megapixels
and the libraries' own defaults for writing (libvips 8.18, Pillow 13 for 8 bit, OpenCV 5 for 16 bit, two cores; seconds,
and memory beyond the pixels handed in or out):

           read JPEG    read PNG     read 16-bit PNG  write JPEG   write PNG    write 16-bit TIFF
  libvips  0.2 s 16 MB  0.4 s  8 MB  0.9 s  16 MB     0.1 s  7 MB  1.2 s  9 MB  0.1 s  19 MB
  others   0.3 s 160 MB 0.6 s 158 MB 2.3 s 134 MB     0.2 s 94 MB  9.6 s 94 MB  1.6 s 140 MB

Pillow silently drops 8 of the 16 bits of a colour photograph; OpenCV supports neither CMYK nor profiles.
"""

import json
import re
import stat
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any, BinaryIO, Literal, NamedTuple

import numpy as np
import pyvips
from PIL import UnidentifiedImageError
from PIL.BmpImagePlugin import BmpImageFile

from ..errors import InputError
from ..jpeg_quality import estimate_quality, segments
from .first_bytes import HEAD, declares_non_srgb, format_of_content, is_lossless
from .photo import NO_RESOLUTION, PROFILE_LOST, Photo
from .png_metadata import PngMetadata, read_metadata
from .tiff_exif import (
    NO_UNIT,
    PHOTOSHOP_HEAD,
    begins_with_preview,
    exif_of_result,
    has_captions,
    has_layers,
    has_unspecified_channel,
    in_order,
    is_plain_ycbcr,
    orientation_of,
    read_exif,
    resources_without_thumbnail,
)
from .vips import KEPT, clear_messages, reason_of, to_srgb, vips_image, vips_lacks_memory

MAX_PIXELS = 200_000_000
DESCRIPTION = 1 << 16  # bytes of a file's start to search, in addition to the length of its metadata
APP0, APP2, APP15, COMMENT = 0xE0, 0xE2, 0xEF, 0xFE  # markers of a JPEG's segments
END_OF_IMAGE = b'\xff\xd9'
# How segments of a JPEG begin that are kept, warned of elsewhere, or about the thumbnail and the encoding.
EXPECTED = (b'JFIF\0', b'JFXX\0', b'Exif\0', b'http://ns.adobe.com/xap/1.0/\0', b'http://ns.adobe.com/xmp/extension/\0',
            b'ICC_PROFILE\0', b'MPF\0', b'Photoshop 3.0\0', b'Adobe\0', b'Adobe_CM\0', b'Ducky\0')  # fmt: skip

HEIC_DECODER = Path(__file__).with_name('heic_decoder.py')


# The picture: its header, then its pixels


def _open(file: BinaryIO, format: str, max_pixels: int) -> pyvips.Image:
    """Open an image; in most formats its pixels are decoded later. InputError if they are more than `max_pixels`."""
    file.seek(0)
    if format == 'bmp':
        image = _open_bmp(file, max_pixels)
    elif format == 'heic':
        image = _open_heic(file, max_pixels)
    else:
        image = _open_with_vips(file, format)
    _check_pixels(image.width, image.height, max_pixels)
    return image


def _open_with_vips(file: BinaryIO, format: str) -> pyvips.Image:
    """Read the header of an image; rows are decoded when they are needed, from the top."""
    source = pyvips.Source.new_from_descriptor(file.fileno())
    load = getattr(pyvips.Image, {'avif': 'heif'}.get(format, format) + 'load_source')
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
    with BmpImageFile(file) as opened:  # Image.open would check Pillow's own limit, which all threads share
        _check_pixels(*opened.size, max_pixels)
        grey = opened.mode in ('1', 'L')
        samples = np.asarray(opened.convert('L' if grey else 'RGBA' if opened.has_transparency_data else 'RGB'))
        image = vips_image(np.atleast_3d(samples), 'b-w' if grey else 'srgb')
        across, down = opened.info.get('dpi', (0, 0))
        has_resolution = 0 < min(across, down) <= max(across, down) < 1_000_000  # more is damage: libvips would warn
        return image.copy(xres=across / 25.4, yres=down / 25.4) if has_resolution else image


def _open_heic(file: BinaryIO, max_pixels: int) -> pyvips.Image:
    if find_spec('pi_heif') is None:
        raise InputError('HEIC needs pi-heif: pip install "pi-heif>=1.0"; or convert it to JPEG')
    command = [sys.executable, '-P', str(HEIC_DECODER), str(max_pixels)]
    decoder = subprocess.run(command, stdin=file, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    answer = decoder.stdout
    at = answer.find(b'\n') + 1
    description: dict[str, Any] = {'error': 'its decoder crashed'} if decoder.returncode else json.loads(answer[:at])
    if 'error' in description:
        raise InputError(f'cannot be decoded ({description["error"]}); it may be damaged; if not, convert it to JPEG')
    width, height = description['size']
    _check_pixels(width, height, max_pixels)
    metadata = {}
    for name, length in description['metadata'].items():
        metadata[name] = answer[at : at + length]
        at += length
    type_of_samples = np.uint16 if description['bits'] > 8 else np.uint8
    samples = np.frombuffer(answer, type_of_samples, offset=at).reshape(description['shape'])
    image = vips_image(samples, 'b-w' if samples.shape[2] == 1 else 'srgb')
    for name, content in metadata.items():
        image.set_type(pyvips.GValue.blob_type, name, content)
    image.set_type(pyvips.GValue.gint_type, 'n-pages', description['pictures'])
    image.set_type(pyvips.GValue.gint_type, 'bits-per-sample', description['bits'])
    return image


def _mode(image: pyvips.Image) -> Literal['grey', 'rgb', 'cmyk']:
    """The kind of an image's colours. InputError if it is not one that is read."""
    if image.format in ('uchar', 'ushort'):
        if image.interpretation in ('b-w', 'grey16') and image.bands <= 2:
            return 'grey'
        if image.interpretation in ('srgb', 'rgb16') and image.bands in (3, 4):
            return 'rgb'
        if image.interpretation == 'cmyk' and image.bands in (4, 5):
            return 'cmyk'
    kind = f'{image.interpretation} of {image.bands} x {image.format}'
    raise InputError(f'images of kind {kind} are not read; convert it to 8-bit or 16-bit RGB')


def _scaled_down(image: pyvips.Image, largest: int, has_alpha: bool) -> pyvips.Image:
    """Scale an image so that its longer side is at most `largest` pixels; what is smaller stays as it is."""
    longer = max(image.width, image.height)
    if longer <= largest:
        return image
    across, down = (max(1, round(side * largest / longer)) / side for side in (image.width, image.height))
    white = {'max_alpha': 65535 if image.format == 'ushort' else 255}
    # Premultiplied, so that colours of transparent pixels stay unseen. In floats: libvips's integers make white darker.
    light = image.premultiply(**white) if has_alpha else image.cast('float')
    scaled = light.resize(across, vscale=down)
    return (scaled.unpremultiply(**white) if has_alpha else scaled).rint().cast(image.format)


def _decode(
    image: pyvips.Image, format: str, orientation: int, profile: bytes | None, largest: int | None, has_extra: bool
) -> tuple[np.ndarray, np.ndarray | None, np.ndarray | None]:
    """Decode, scale and turn upright: pixels (H, W, 3), alpha or extra (H, W) and inks (H, W, 4), as in `Photo`."""
    is_cmyk = _mode(image) == 'cmyk'
    if format in ('avif', 'heic') and image.format == 'ushort':  # 10 or 12 bits, in the upper ones of 16
        image |= image >> image.get('bits-per-sample')  # so that white is 65535
    if largest is not None:
        image = _scaled_down(image, largest, has_alpha=image.hasalpha() and not has_extra)
    if orientation > 1:
        image = image.copy_memory().copy()  # turning needs all rows in memory
        image.set_type(pyvips.GValue.gint_type, 'orientation', orientation)
        image = image.autorot()
    samples = np.atleast_3d(image.numpy())  # (H, W, 1 to 5)
    further = np.ascontiguousarray(samples[:, :, -1]) if image.hasalpha() else None
    colours = samples if further is None else samples[:, :, :-1]
    inks = None
    if is_cmyk:
        inks = np.ascontiguousarray(colours)
        colours = to_srgb(inks, profile).numpy()
    return np.ascontiguousarray(np.broadcast_to(colours, (*colours.shape[:2], 3))), further, inks


# The file's metadata


class FileMetadata(NamedTuple):
    metadata: dict[str, bytes]
    png: PngMetadata
    orientation: int
    not_read: list[str]


def _read_metadata(file: BinaryIO, format: str, image: pyvips.Image) -> FileMetadata:
    """Read a file's metadata, corrected for a result: upright, a single picture, without thumbnails."""
    from_vips = {name: image.get(name) for name in KEPT if name in image.get_fields()}
    orientation = _field(image, 'orientation', 1)
    png = read_metadata(file) if format == 'png' else PngMetadata({}, {}, {}, b'')
    if 'exif-data' in png.behind and 'exif-data' not in from_vips:
        orientation = orientation_of(png.behind['exif-data'])
    metadata = png.in_texts | png.behind | from_vips
    not_read: list[str] = []
    if b'iCCP' in png.marks and 'icc-profile-data' not in metadata:  # libpng checks it
        not_read.append(PROFILE_LOST)
    if format == 'tiff':
        metadata |= _tiff_metadata(file, image, metadata.get('iptc-data'))
        not_read += _not_read_of_tiff(file)
    if 'iptc-data' in metadata:
        metadata['iptc-data'] = resources_without_thumbnail(metadata['iptc-data'])
    if 'exif-data' in metadata:
        metadata['exif-data'] = exif_of_result(metadata['exif-data'])
    if 'xmp-data' in metadata:
        metadata['xmp-data'], warnings = _xmp_of_result(metadata['xmp-data'], format, orientation)
        not_read += warnings
    return FileMetadata(metadata, png, orientation, not_read)


def _tiff_metadata(file: BinaryIO, image: pyvips.Image, captions: bytes | None) -> dict[str, bytes]:
    """EXIF and IPTC as a JPEG of the same photograph would have them; `captions`: those that stand alone."""
    metadata = {}
    if (exif := read_exif(file)) is not None:
        metadata['exif-data'] = exif
    if (resources := _field(image, 'photoshop-data', None)) is not None:
        if has_captions(PHOTOSHOP_HEAD + resources) or captions is None:
            metadata['iptc-data'] = PHOTOSHOP_HEAD + resources  # they hold the captions that stand alone too
    elif captions is not None:
        metadata['iptc-data'] = in_order(captions)
    return metadata


def _not_read_of_tiff(file: BinaryIO) -> Iterator[str]:
    """Yield warnings about what a TIFF file has and its result will not have."""
    if has_layers(file):
        yield "Photoshop's layers are not kept; the picture was restored"
    file.seek(0)
    if file.read(4) in (b'II+\0', b'MM\0+'):
        yield 'EXIF is not read from a BigTIFF; the result has none'


def _xmp_of_result(xmp: bytes, format: str, orientation: int) -> tuple[bytes, list[str]]:
    """XMP of the picture, maybe turned, without thumbnail and film; warnings about what in it is no longer so."""
    warnings = []
    for name in (b'xmp:Thumbnails', b'xap:Thumbnails'):  # the second is older
        start, end = xmp.find(b'<' + name), xmp.find(b'</%b>' % name)
        if 0 <= start < end:
            xmp = xmp[:start] + xmp[end + len(name) + 3 :]
    if orientation > 1 or format == 'avif':  # which libvips may have turned, by the file's own mark
        xmp = re.sub(rb'(tiff:Orientation\s*(=\s*["\']|>)\s*)[1-8]', rb'\g<1>1', xmp)
    film = rb'((MotionPhoto|MicroVideo)\s*(=\s*["\']|>)\s*)1'
    without_film, films = re.subn(film, rb'\g<1>0', xmp)
    if films:
        warnings.append('the file also holds a video; the picture was restored')
    if orientation > 1 and re.search(b'mwg-rs:Regions|MP:RegionInfo', xmp):
        warnings.append('the faces marked in it were not turned upright with the picture')
    return without_film, warnings


def _also_in_file(file: BinaryIO, format: str, is_animated: bool, image: pyvips.Image) -> Iterator[str]:
    """Yield warnings about further pictures, and a JPEG's comment and further data."""
    parts = [*segments(file)] if format == 'jpeg' else []
    # MPF lists further JPEGs behind the first: a camera's for 3D, a phone's HDR gain map (CIPA DC-007, 5.1).
    of_several = any(marker == APP2 and body.startswith(b'MPF\0') for marker, body in parts)
    if of_several or is_animated or _field(image, 'n-pages', 1) > 1:
        yield 'the file holds several pictures; the first was restored'
    if any(marker == COMMENT for marker, _ in parts):
        yield 'its JPEG comment is not kept'
    if format == 'jpeg' and (lost := [*_further_data(parts, rest=file.read())]):
        yield f'further data in it is not kept ({", ".join(dict.fromkeys(lost))})'


def _further_data(parts: list[tuple[int, bytes]], rest: bytes) -> Iterator[str]:
    """Yield names of what a JPEG holds that is no part of its picture or metadata; `rest`: from its pixels on."""
    for marker, body in parts:
        is_application = APP0 <= marker <= APP15 and body.strip(b'\0')  # zeros fill
        if is_application and not body.startswith(EXPECTED):
            yield 'content credentials' if b'c2pa' in body else f'APP{marker - APP0}'
    end = rest.rfind(END_OF_IMAGE)  # the last: previews of some cameras and further pictures of MPF follow the first
    if end >= 0 and rest[end + 2 :].strip(b'\0\r\n'):
        yield 'behind the picture'


def _field(image: pyvips.Image, name: str, otherwise: Any) -> Any:
    return image.get(name) if name in image.get_fields() else otherwise


def _resolution(image: pyvips.Image, format: str, png: PngMetadata) -> tuple[float, float]:
    """Pixels per mm, across and down; when libvips writes, the resolution in EXIF overrides it."""
    resolution = image.xres, image.yres
    has_no_unit = format == 'tiff' and 'resolution-unit' not in image.get_fields()
    if format == 'png':
        has_no_unit = png.marks.get(b'pHYs', b'')[8:9] != b'\1'  # unit 1 is the metre; 0: only an aspect ratio
    has_no_unit |= _field(image, 'exif-ifd0-ResolutionUnit', '').startswith(f'{NO_UNIT} ')
    # libvips's defaults are 1, and 2.834 of a PNG.
    if has_no_unit or resolution == (1, 1) or np.allclose(resolution, NO_RESOLUTION, rtol=1e-3):
        return NO_RESOLUTION
    return resolution


# The photograph


def _read(file: BinaryIO, max_pixels: int, largest: int | None) -> Photo:
    clear_messages()
    head = file.read(HEAD)
    if not head:
        raise InputError('the file is empty')
    format = format_of_content(head)
    if format is None:
        raise UnidentifiedImageError
    if format == 'tiff' and begins_with_preview(file):
        raise InputError('begins with a small preview, as raw files do; develop it to TIFF or JPEG first')
    if format == 'tiff' and is_plain_ycbcr(file):  # libvips would take Y, Cb, Cr for R, G, B
        raise InputError('images of kind YCbCr without subsampling are not read; convert it to RGB')
    image = _open(file, format, max_pixels)
    found = _read_metadata(file, format, image)
    file.seek(0)
    start = file.read(DESCRIPTION + sum(map(len, found.metadata.values())))
    resolution = _resolution(image, format, found.png)
    is_animated = start[8:12] == b'avis' or b'acTL' in found.png.marks  # AVIF, PNG: libvips reports one picture
    profile = found.metadata.get('icc-profile-data')
    has_extra = format == 'tiff' and has_unspecified_channel(file)
    pixels, further, inks = _decode(image, format, found.orientation, profile, largest, has_extra)
    return Photo(
        pixels=pixels,
        alpha=None if has_extra else further,
        inks=inks,
        extra=further if has_extra else None,
        mode=_mode(image),
        metadata=found.metadata,
        texts=found.png.texts,
        pixels_per_mm=resolution[::-1] if found.orientation > 4 else resolution,  # a quarter turn
        jpeg_quality=estimate_quality(file) if format == 'jpeg' else None,
        lossless_webp=format == 'webp' and is_lossless(start),
        declares_non_srgb=declares_non_srgb(start, format, found.png.marks, has_profile=profile is not None),
        not_read=(*found.not_read, *_also_in_file(file, format, is_animated, image)),
    )


def read_photo(path: Path | str, *, max_pixels: int = MAX_PIXELS, largest: int | None = None) -> Photo:
    """Read a photograph of 8 to 16 bits: grey, palette, RGB or CMYK, with or without transparency.

    If `largest` is given, a photograph whose longer side has more pixels is scaled down to so many.

    InputError, naming the file, if it cannot be read whole or has more than `max_pixels` pixels. MemoryError if there
    is not enough memory. In a fork of a process that has read one, libvips hangs: start processes by spawn.
    """
    path = Path(path)
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):  # reading a pipe would wait for data
            raise InputError('not a file')
        with path.open('rb', buffering=0) as file:
            photo = _read(file, max_pixels, largest)
        return replace(photo, permissions=status.st_mode & 0o666, group=status.st_gid)
    except FileNotFoundError as error:
        raise InputError(f'{path}: no such photograph') from error
    except UnidentifiedImageError as error:
        raise InputError(f'{path}: not an image that can be read; convert it to PNG or JPEG') from error
    except InputError as error:
        raise InputError(f'{path}: {error}') from error
    except PermissionError as error:
        raise InputError(f'{path}: cannot be read ({error.strerror})') from error
    except (OSError, pyvips.Error, SyntaxError, ValueError, OverflowError) as error:
        if vips_lacks_memory(error):
            raise MemoryError from error
        reason = reason_of(error)
        if re.search('tiff.* not (configured|supported)', reason):  # in libvips's words
            raise InputError(f'{path}: is of a kind that is not read ({reason}); save it uncompressed') from error
        raise InputError(f'{path}: cannot be read, it may be cut or damaged ({reason})') from error
