"""Write photographs, in the format of the name's ending, with all of their metadata that the format can hold."""

import os
import re
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO

import numpy as np
import pyvips

from ..errors import InputError
from ..system.files import disk_errors_as_input_errors, written_whole
from .photo import ENDINGS, NO_RESOLUTION, PROFILE_LOST, Photo, format_of_name
from .png_metadata import add_texts
from .tiff_exif import add_metadata, as_jpeg_has_it, has_captions, says_adobe_rgb, says_colour_space
from .vips import KEPT, reason_of, to_srgb, vips_image, vips_lacks_memory

MAX_SIDE = {'jpeg': 65_500, 'webp': 16_383, 'avif': 16_384}  # pixels; a limit of the format or its encoder
DEFAULT_QUALITY = 95
# Q is the effort here: 75 takes four times as long for files 7 % smaller. `exact` keeps transparent pixels' colours.
LOSSLESS_WEBP = {'lossless': True, 'exact': True, 'Q': 20}

# Maximum bytes; libvips leaves out what is longer.
HELD_BY_JPEG = {'exif-data': 65_000, 'xmp-data': 59_999, 'iptc-data': 65_500}

# XMP that promises pieces which a result does not have (their list stays): the gain map for HDR screens, more XMP.
PIECES = b'(hdrgm:Version|xmpNote:HasExtendedXMP)'
PROMISES = re.compile(rb'%b\s*=\s*("[^"]*"|\'[^\']*\')|<%b>[^<]*</\3>' % (PIECES, PIECES))

LUMA = [0.299, 0.587, 0.114]  # ITU-R BT.601, as in JPEG


def check_fits(path: Path, photo: Photo) -> str:
    """The format in which a file of this name is written; InputError unless it can hold the photograph."""
    format = format_of_name(path)
    if format is None:
        raise InputError(f'{path}: cannot be written in this format; choose one of {", ".join(ENDINGS)}')
    if max(photo.pixels.shape[:2]) > MAX_SIDE.get(format, np.inf):
        raise InputError(f'{path}: {format} holds at most {MAX_SIDE[format]:,} pixels a side; choose --format png')
    if format == 'jpeg' and photo.alpha is not None and (photo.alpha < np.iinfo(photo.alpha.dtype).max).any():
        raise InputError(f'{path}: jpeg holds no transparency; choose --format png')
    return format


def _profile_fits(mode: str, profile: bytes) -> bool:
    """Whether libvips writes a profile with colours of this kind; it leaves out others, and damaged ones, silently."""
    bands, interpretation = {'grey': (1, 'b-w'), 'rgb': (3, 'srgb'), 'cmyk': (4, 'cmyk')}[mode]
    pixel = vips_image(np.zeros((1, 1, bands), np.uint8), interpretation)
    pixel.set_type(pyvips.GValue.blob_type, 'icc-profile-data', profile)
    written = pyvips.Image.new_from_buffer(pixel.tiffsave_buffer(keep='icc'), '')
    return 'icc-profile-data' in written.get_fields()


def loss_warnings(format: str, photo: Photo) -> list[str]:
    """Warnings about what the photograph's file has and a result in this format will not have."""
    lost = list(photo.not_read)
    if photo.pixels.dtype == np.uint16 and format in ('jpeg', 'webp'):
        lost.append(f'it has more than the 8 bits of {format}; --format png keeps them')
    profile = photo.metadata.get('icc-profile-data', b'')
    if profile and not _profile_fits(photo.mode, profile):
        lost.append(PROFILE_LOST)
    of_grey = photo.mode == 'grey' and profile[16:20] == b'GRAY'  # its colour space (ICC.1, 7.2.6)
    # In other formats EXIF's word on colours is not heeded.
    by_exif = not profile and format not in ('jpeg', 'tiff') and says_adobe_rgb(photo.metadata.get('exif-data', b''))
    if photo.declares_non_srgb or by_exif or (of_grey and format in ('webp', 'avif')):
        lost.append('its colours are not sRGB, and the result does not say so; convert it to sRGB first')
    held = HELD_BY_JPEG if format == 'jpeg' else {}
    too_long = any(len(photo.metadata.get(key, b'')) > most for key, most in held.items())
    if too_long or b'HasExtendedXMP' in photo.metadata.get('xmp-data', b''):
        lost.append('some of its metadata (EXIF, XMP, IPTC) is too long to be kept')
    if has_captions(photo.metadata.get('iptc-data', b'')) and format not in ('jpeg', 'tiff'):
        lost.append(f'{format} has no place for its captions (IPTC); --format tiff keeps them')
    if photo.extra is not None and format != 'tiff':
        lost.append('its extra channel, which is no transparency, is not kept; --format tiff keeps it')
    if photo.texts and format != 'png':
        lost.append(f'{format} has no place for its texts (such as Author, Description); --format png keeps them')
    return lost


def _to_cmyk(image: pyvips.Image, profile: bytes | None, depth: int) -> pyvips.Image:
    """Convert sRGB to CMYK by the file's profile; if missing or unfit, by libvips's own, which is not embedded."""
    independent = image.icc_import(input_profile='srgb').copy()
    if profile is not None and profile[16:20] == b'CMYK':  # its colour space (ICC.1, 7.2.6)
        independent.set_type(pyvips.GValue.blob_type, 'icc-profile-data', profile)
        try:
            return independent.icc_export(depth=depth).copy()
        except pyvips.Error:
            pass
    separated = independent.icc_export(output_profile='cmyk', depth=depth).copy()
    separated.remove('icc-profile-data')
    return separated


def _changed_inks(inks: np.ndarray, image: pyvips.Image, profile: bytes | None) -> pyvips.Image:
    """Apply the change between the file's pixels and `image`, both sRGB, to its inks; unchanged pixels keep theirs.

    A new separation would change all inks: a profile's two directions are not inverse, and how much of a grey is black
    ink was chosen when the file was made.
    """
    before, after = (_to_cmyk(each, profile, depth=8 * inks.itemsize) for each in (to_srgb(inks, profile), image))
    changed = after + (vips_image(inks, 'cmyk') - before)  # may lie below 0 or above the maximum
    black = changed[3]
    lacking = (black < 0).ifthenelse(black, 0)  # if there is too little black to remove: less of the other inks
    return (changed + lacking * [1, 1, 1, 0]).cast(after.format)  # clips


def _image_of(photo: Photo, format: str) -> pyvips.Image:
    """The image to write in a format, with the file's kind of colours, transparency and metadata; computed by rows."""
    is_16_bit = photo.pixels.dtype == np.uint16
    image = vips_image(photo.pixels, 'rgb16' if is_16_bit else 'srgb')
    metadata = dict(photo.metadata)
    if photo.mode == 'grey':
        image = image.recomb([LUMA]).rint().cast(image.format).copy(interpretation='grey16' if is_16_bit else 'b-w')
    elif photo.inks is not None:
        profile = metadata.pop('icc-profile-data', None)  # the pixels are sRGB
        if format in ('jpeg', 'tiff'):
            image = _changed_inks(photo.inks, image, profile)
    further = photo.extra if photo.extra is not None and format == 'tiff' else photo.alpha
    if further is not None and format != 'jpeg':
        image = image.bandjoin(vips_image(further[:, :, None], image.interpretation))

    if format == 'jpeg' and 'iptc-data' in metadata:
        metadata['iptc-data'] = as_jpeg_has_it(metadata['iptc-data'])
    if 'xmp-data' in metadata:
        metadata['xmp-data'] = PROMISES.sub(b'', metadata['xmp-data'])
    image = image.copy(xres=photo.pixels_per_mm[0], yres=photo.pixels_per_mm[1])
    for key, value in metadata.items():
        if value:  # libvips crashes on empty XMP
            image.set_type(pyvips.GValue.blob_type, key, value)
    image.set_type(pyvips.GValue.gint_type, 'orientation', 1)
    is_srgb = image.interpretation != 'cmyk' and not photo.declares_non_srgb and 'icc-profile-data' not in metadata
    if is_srgb and not says_colour_space(metadata.get('exif-data', b'')):
        # libexif adds the tag where it is missing, as "uncalibrated", which a photograph without a profile is not.
        image.set_type(pyvips.GValue.gstr_type, 'exif-ifd2-ColorSpace', '1')
    return image


def _keep_to_group(file: BinaryIO, group: int) -> None:
    """Give the file to `group` if its group may do more with it than others may.

    If that fails, take this surplus from the group that the file has.
    """
    status = os.fstat(file.fileno())
    more = status.st_mode & ~(status.st_mode << 3) & 0o070
    if not more or status.st_gid == group:
        return
    try:
        os.fchown(file.fileno(), -1, group)
    except OSError:  # the result's owner is not a member of the group
        with suppress(OSError):  # if the file system has no permissions
            os.fchmod(file.fileno(), status.st_mode & 0o777 & ~more)


def _ask_the_disk(file: BinaryIO) -> None:
    """Raise the disk's own OSError if the file cannot grow: libvips's words for it may be lost (`clear_messages`)."""
    file.seek(0, os.SEEK_END)
    file.write(bytes(1 << 16))
    file.flush()


def write_photo(path: Path | str, photo: Photo, *, quality: int = DEFAULT_QUALITY) -> None:
    """Write a photograph, whole or not at all, in the format of the name's ending.

    Args:
        path: ends in one of `ENDINGS`.
        photo: 16 bits are written as 16 in PNG and TIFF, 12 in AVIF, 8 in JPEG and WebP. CMYK stays CMYK in JPEG and
            TIFF and becomes sRGB in the others. JPEG drops an opaque alpha. Lossless WebP stays lossless.
        quality: of JPEG, AVIF and lossy WebP, 1 to 100.

    InputError if it cannot be written, or the format cannot hold it. MemoryError if there is not enough memory.
    """
    path = Path(path)
    format = check_fits(path, photo)
    is_16_bit = photo.pixels.dtype == np.uint16
    options: dict[str, dict] = {
        'jpeg': {'Q': quality},
        'png': {'compression': 3, 'filter': 'all'},
        'tiff': {'compression': 'deflate', 'level': 3, 'predictor': 'horizontal'},
        'webp': LOSSLESS_WEBP if photo.lossless_webp else {'Q': quality, 'smart_subsample': True},
        # effort 4: 55 s, not 4 s
        'avif': {'Q': quality, 'compression': 'av1', 'bitdepth': 12 if is_16_bit else 8, 'effort': 0},
    }
    image = _image_of(photo, format)
    fields = image.get_fields()
    kept = {flag for name, flag in KEPT.items() if name in fields}
    if format not in ('png', 'tiff') and photo.pixels_per_mm != NO_RESOLUTION:
        kept.add('exif')  # libvips writes the resolution only with it
    if format == 'tiff':
        kept.discard('iptc')  # add_metadata writes it: libvips writes a quarter of it
    keep = '|'.join(kept) or 'none'
    save = getattr(image, {'avif': 'heif'}.get(format, format) + 'save_target')
    with disk_errors_as_input_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        with written_whole(path, permissions=photo.permissions) as file:
            if photo.group is not None:
                _keep_to_group(file, photo.group)
            try:
                save(pyvips.Target.new_to_descriptor(file.fileno()), keep=keep, **options[format])
            except pyvips.Error as error:
                if vips_lacks_memory(error):
                    raise MemoryError from error
                _ask_the_disk(file)
                raise InputError(f'{path}: cannot be written ({reason_of(error)})') from error
            if format == 'tiff':
                exif, iptc = (photo.metadata.get(key, b'') for key in ('exif-data', 'iptc-data'))
                add_metadata(file, exif, iptc, has_unspecified_channel=photo.extra is not None)
            if format == 'png' and photo.texts:
                add_texts(file, photo.texts)
