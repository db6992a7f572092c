"""Read and write EXIF in TIFF files, where its tags stand among the image's own; drop its thumbnail.

libvips 8.18 neither reads nor writes EXIF in TIFF, and writes only a quarter of IPTC.

An image file directory (IFD) is a list of tags, each with a type, a count, and a value or the offset of a longer value.
"""

import struct
from io import BytesIO
from typing import Any, BinaryIO

import numpy as np

NEW_SUBFILE_TYPE, ORIENTATION = 0x00FE, 0x0112
COMPRESSION, PHOTOMETRIC, EXTRA_SAMPLES, YCBCR_SUBSAMPLING = 0x0103, 0x0106, 0x0152, 0x0212
YCBCR, JPEG_IN_TIFF = 6, (6, 7)  # values of the photometric interpretation and of the compression
EXIF, GPS, INTEROPERABILITY = 0x8769, 0x8825, 0xA005  # tags whose value is the offset of another directory
# Tags that are kept: title, camera, author, tone curve, white, primaries, rating, Windows's title to subject, GeoTIFF's
# place on a map. All others in the first directory are about how pixels are stored.
ABOUT = (0x010D, 0x010E, 0x010F, 0x0110, 0x012D, 0x0131, 0x0132, 0x013B, 0x013C, 0x013E, 0x013F, 0x4746, 0x4749,
         0x8298, *range(0x9C9B, 0x9CA0), 0x830E, 0x8482, 0x85D8, 0x87AF, 0x87B0, 0x87B1, EXIF, GPS)  # fmt: skip
IPTC, PHOTOSHOP = 0x83BB, 0x8649  # captions alone; Photoshop's resources with captions, as in JPEG
EXIF_HEAD = b'Exif\0\0'  # begins EXIF in libvips, as in JPEG, but not in PNG
PHOTOSHOP_HEAD = b'Photoshop 3.0\0'  # begins the resources in a JPEG
RESOURCES = (b'8BIM', b'PHUT', b'DCSR', b'AgHg', b'MeSa')  # signatures of a resource
CAPTION = b'\x1c'  # begins a caption, and so all of them (IPTC-IIM, 1.5)
CAPTIONS, THUMBNAILS = b'8BIM\x04\x04', (b'8BIM\x04\x09', b'8BIM\x04\x0c')  # signature and number of a resource
RESOLUTION_UNIT = 0x0128
RESOLUTION = (0x011A, 0x011B, RESOLUTION_UNIT)
NO_UNIT = 1  # a value of RESOLUTION_UNIT
LAYERS = 0x935C  # Photoshop's; may be very long
COLOUR_SPACE, INTEROPERABILITY_INDEX = 0xA001, 0x0001
ADOBE_RGB, UNCALIBRATED = 2, 0xFFFF  # colour spaces; the first is some programs' own
SIZES = (0xA002, 0xA003)  # width and height in EXIF: for compressed pictures, and outdated if turned
# Bytes by type; for a rational, those of each half.
ITEM_SIZES = dict(zip(range(1, 14), (1, 1, 2, 4, 4, 1, 1, 2, 4, 4, 4, 8, 4), strict=True))
SHORT, LONG, UNDEFINED = 3, 4, 7
ORDERS = {b'II*\0': '<', b'MM\0*': '>'}  # byte orders by a file's first bytes; BigTIFF has others

Directory = dict[int, Any]  # by tag: (type, count, value in little-endian order), or another Directory


def read_exif(file: BinaryIO) -> bytes | None:
    """The EXIF block that a JPEG of the same photograph would have; None if the file has no such tags."""
    about = _about(file)
    return EXIF_HEAD + b'II*\0' + struct.pack('<I', 8) + _directory_bytes(about, at=8) if about else None


def begins_with_preview(file: BinaryIO) -> bool:
    """Whether a TIFF file's first picture is marked as a smaller version of another one in it."""
    _, _, kind = _first_directory(file)[0].get(NEW_SUBFILE_TYPE, (0, 0, b'\0'))
    return bool(_number(kind[:4], '<') & 1)


def is_plain_ycbcr(file: BinaryIO) -> bool:
    """Whether a TIFF file's first picture is YCbCr, neither subsampled nor JPEG (TIFF 6.0, section 21)."""
    first = _first_directory(file)[0]
    subsampling = first[YCBCR_SUBSAMPLING][2][:4] if YCBCR_SUBSAMPLING in first else b''
    is_ycbcr = _short(first, PHOTOMETRIC, 0) == YCBCR and _short(first, COMPRESSION, 1) not in JPEG_IN_TIFF
    return is_ycbcr and subsampling == b'\1\0\1\0'


def has_unspecified_channel(file: BinaryIO) -> bool:
    """Whether a TIFF file says that its further channel is no transparency, as of a selection or infrared."""
    return _short(_first_directory(file)[0], EXTRA_SAMPLES, otherwise=1) == 0


def has_layers(file: BinaryIO) -> bool:
    """Whether a TIFF file has Photoshop's layers beside its picture."""
    return LAYERS in _first_directory(file)[0]


def orientation_of(exif: bytes) -> int:
    """The orientation in an EXIF block, 1 (upright) to 8; 1 if it has none or another value."""
    _, _, value = _first_directory(BytesIO(exif.removeprefix(EXIF_HEAD)))[0].get(ORIENTATION, (0, 0, b''))
    orientation = _number(value[:2], '<')
    return orientation if 1 <= orientation <= 8 else 1


def says_colour_space(exif: bytes) -> bool:
    """Whether an EXIF block has a tag on the colour space."""
    return COLOUR_SPACE in _about(BytesIO(exif.removeprefix(EXIF_HEAD))).get(EXIF, {})


def says_adobe_rgb(exif: bytes) -> bool:
    """Whether an EXIF block says that the colours are Adobe RGB, as cameras do (DCF 2.0: an "option file", R03)."""
    tags = _about(BytesIO(exif.removeprefix(EXIF_HEAD))).get(EXIF, {})
    space = _short(tags, COLOUR_SPACE, otherwise=0)
    _, _, index = tags.get(INTEROPERABILITY, {}).get(INTEROPERABILITY_INDEX, (0, 0, b''))
    return space == ADOBE_RGB or (space == UNCALIBRATED and index.startswith(b'R03'))


def add_metadata(file: BinaryIO, exif: bytes, iptc: bytes, has_unspecified_channel: bool = False) -> None:
    """Add a JPEG's EXIF and IPTC blocks to a little-endian TIFF file: a new directory at its end replaces the first.

    libvips writes a further channel as transparency; `has_unspecified_channel` says that it is none.
    """
    about = _about(BytesIO(exif.removeprefix(EXIF_HEAD)))
    for tag in SIZES:
        about.get(EXIF, {}).pop(tag, None)
    if iptc:
        captions = iptc.removeprefix(PHOTOSHOP_HEAD)
        about[IPTC if captions == iptc else PHOTOSHOP] = (UNDEFINED, len(captions), captions)
    if has_unspecified_channel:
        about[EXTRA_SAMPLES] = (SHORT, 1, bytes(2))
    if not about:
        return
    file.seek(4)
    first = _read_directory(file, _number(file.read(4), '<'), '<')
    at = file.seek(0, 2)
    at += at % 2
    file.seek(at)
    file.write(_directory_bytes({**first, **about}, at))
    file.seek(4)
    file.write(struct.pack('<I', at))


def has_captions(iptc: bytes) -> bool:
    return CAPTIONS in iptc if iptc.startswith(PHOTOSHOP_HEAD) else bool(iptc)


def in_order(captions: bytes) -> bytes:
    """Undo libtiff's swap of bytes in captions that stand alone, as 32-bit numbers, in a big-endian file."""
    if captions[3:4] != CAPTION or captions[:1] == CAPTION:
        return captions
    return b''.join(captions[at : at + 4][::-1] for at in range(0, len(captions), 4))


def as_jpeg_has_it(iptc: bytes) -> bytes:
    """Wrap captions in Photoshop's resources, unless they are already."""
    if iptc.startswith(PHOTOSHOP_HEAD):
        return iptc
    return PHOTOSHOP_HEAD + CAPTIONS + bytes(2) + struct.pack('>I', len(iptc)) + iptc + bytes(len(iptc) % 2)


def resources_without_thumbnail(iptc: bytes) -> bytes:
    """Remove the thumbnails, which show the unrestored photograph, from Photoshop's resources.

    Captions that stand alone are returned as they are.
    """
    if not iptc.startswith(PHOTOSHOP_HEAD):
        return iptc
    kept, at = [PHOTOSHOP_HEAD], len(PHOTOSHOP_HEAD)
    while len(iptc) - at >= 12:  # a resource: signature, number, name, length, content
        if iptc[at : at + 4] not in RESOURCES:  # damaged: a wrong length, or no padding after an odd one
            return iptc
        place = at + 6 + (iptc[at + 6] + 2) // 2 * 2  # the name: a length byte, then padded to an even total
        length = int.from_bytes(iptc[place : place + 4], 'big')
        end = place + 4 + (length + 1) // 2 * 2
        if iptc[at : at + 6] not in THUMBNAILS:
            kept.append(iptc[at:end])
        at = end
    return b''.join(kept)


def exif_of_result(exif: bytes) -> bytes:
    """Leave out of an EXIF block what libvips would take wrongly, or a result must not have.

    The second directory is the thumbnail: it shows the unrestored photograph, maybe not upright. A resolution without a
    unit says only how wide pixels are for their height; libvips takes it for pixels per mm.
    """
    start = len(exif) - len(exif.removeprefix(EXIF_HEAD))
    order = ORDERS.get(exif[start : start + 4])
    if order is None:
        return exif
    first = start + _number(exif[start + 4 : start + 8], order)
    end = first + 2 + 12 * _number(exif[first : first + 2], order)  # where the place of the second stands
    if end > len(exif):
        return exif
    entries = [exif[at : at + 12] for at in range(first + 2, end, 12)]
    if _short(_first_directory(BytesIO(exif[start:]))[0], RESOLUTION_UNIT, otherwise=0) == NO_UNIT:
        entries = [entry for entry in entries if _number(entry[:2], order) not in RESOLUTION]
    directory = struct.pack(order + 'H', len(entries)) + b''.join(entries)
    return exif[:first] + directory.ljust(end + 4 - first, b'\0') + exif[end + 4 :]


def _number(value: bytes, order: str) -> int:
    return int.from_bytes(value, 'little' if order == '<' else 'big')


def _short(directory: Directory, tag: int, otherwise: int) -> int:
    return _number(directory[tag][2][:2], '<') if tag in directory else otherwise


def _first_directory(file: BinaryIO) -> tuple[Directory, str]:
    """Return the first directory, empty if there is none (as in a BigTIFF), and the file's byte order."""
    file.seek(0)
    head = file.read(8)
    order = ORDERS.get(head[:4], '<')
    if head[:4] not in ORDERS or len(head) < 8:
        return {}, order
    return _read_directory(file, _number(head[4:], order), order), order


def _about(file: BinaryIO) -> Directory:
    """The tags about the photograph in the first directory, with the directories below it; empty if there are none."""
    first, order = _first_directory(file)
    about = {tag: entry for tag, entry in first.items() if tag in ABOUT}
    for tag in (EXIF, GPS):
        _follow(file, about, tag, order)
    if EXIF in about:
        _follow(file, about[EXIF], INTEROPERABILITY, order)
    return about


def _follow(file: BinaryIO, directory: Directory, tag: int, order: str) -> None:
    """Replace the offset under `tag`, if there is one, by the directory at that offset."""
    if tag in directory:
        directory[tag] = _read_directory(file, _number(directory[tag][2][:4], '<'), order)


def _read_directory(file: BinaryIO, at: int, order: str) -> Directory:
    """The entries of the directory at offset `at`, without damaged ones and without the content of layers."""
    end = file.seek(0, 2)
    file.seek(at)
    count = _number(file.read(2), order)
    rows = file.read(12 * count)
    directory: Directory = {}
    left = end  # bytes of values that may be read: more than the file has is a bomb that repeats one value
    for start in range(0, len(rows) - 11, 12):
        tag, kind, items, place = struct.unpack(order + 'HHII', rows[start : start + 12])
        size = ITEM_SIZES.get(kind, 1)
        length = items * size * (2 if kind in (5, 10) else 1)
        place = at + 2 + start + 8 if length <= 4 else place
        if tag == LAYERS:
            directory[tag] = (kind, items, b'')
        elif kind in ITEM_SIZES and place + length <= end and length <= left:
            left -= length
            file.seek(place)
            value = file.read(length)
            if order == '>':
                value = np.frombuffer(value, f'u{size}').byteswap().tobytes()
            directory[tag] = (kind, items, value)
    return directory


def _directory_bytes(directory: Directory, at: int) -> bytes:
    """The bytes of a directory to write at offset `at`, followed by its longer values and the directories below it."""
    rows, behind = bytearray(), bytearray()
    place = at + 2 + 12 * len(directory) + 4
    for tag, entry in sorted(directory.items()):
        if isinstance(entry, dict):
            kind, items, value = LONG, 1, struct.pack('<I', place + len(behind))
            behind += _directory_bytes(entry, place + len(behind))
        else:
            kind, items, value = entry
            if len(value) > 4:
                value, longer = struct.pack('<I', place + len(behind)), value
                behind += longer + bytes(len(longer) % 2)
        rows += struct.pack('<HHI', tag, kind, items) + value.ljust(4, b'\0')
    return struct.pack('<H', len(directory)) + rows + bytes(4) + behind
