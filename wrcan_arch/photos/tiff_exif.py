"""EXIF as bytes: without its thumbnail, and in TIFF files, where it is no block but entries among the image's own.

libvips 8.18 neither reads nor writes it there, and of IPTC it writes a quarter.

An image file directory (IFD) is a list of tags, each with a type, a count and a value, or the place of a longer value.
"""

import struct
from io import BytesIO
from typing import Any, BinaryIO

NEW_SUBFILE_TYPE, ORIENTATION = 0x00FE, 0x0112
EXIF, GPS, INTEROPERABILITY = 0x8769, 0x8825, 0xA005  # tags whose value is the place of another directory
# What a photograph is of, of which camera and by whom, its rating, Windows's title to subject; all else in the first
# directory is about how pixels are stored.
ABOUT = (0x010D, 0x010E, 0x010F, 0x0110, 0x0131, 0x0132, 0x013B, 0x013C, 0x4746, 0x4749, 0x8298, *range(0x9C9B, 0x9CA0),
         EXIF, GPS)  # fmt: skip
IPTC, PHOTOSHOP = 0x83BB, 0x8649  # captions as they are, and among Photoshop's resources, as JPEG has them
PHOTOSHOP_HEAD = b'Photoshop 3.0\0'  # of the resources in a JPEG
RESOURCES = (b'8BIM', b'PHUT', b'DCSR', b'AgHg', b'MeSa')  # whose they are
CAPTIONS, THUMBNAILS = b'8BIM\x04\x04', (b'8BIM\x04\x09', b'8BIM\x04\x0c')  # what resources begin with
LAYERS = 0x935C  # Photoshop's, of any length
SIZES = (0xA002, 0xA003)  # of the picture, in EXIF: for compressed ones, and it may have been turned since
# Bytes by type; of a rational, those of either half.
ITEM_SIZES = dict(zip(range(1, 14), (1, 1, 2, 4, 4, 1, 1, 2, 4, 4, 4, 8, 4), strict=True))
LONG, UNDEFINED = 4, 7
ORDERS = {b'II*\0': '<', b'MM\0*': '>'}  # by what a file begins with; a BigTIFF begins otherwise

Directory = dict[int, Any]  # by tag: (type, count, value in little-endian order), or another Directory


def read_exif(file: BinaryIO) -> bytes | None:
    """The block that a JPEG of the same photograph would have; None where the file says nothing of it."""
    about = _about(file)
    return b'Exif\0\0II*\0' + struct.pack('<I', 8) + _directory_bytes(about, at=8) if about else None


def begins_with_preview(file: BinaryIO) -> bool:
    """Whether a TIFF file's first picture is a smaller version of another one in it."""
    _, _, kind = _first_directory(file)[0].get(NEW_SUBFILE_TYPE, (0, 0, b'\0'))
    return bool(_number(kind[:4], '<') & 1)


def has_layers(file: BinaryIO) -> bool:
    """Whether a TIFF file has Photoshop's layers beside its picture."""
    return LAYERS in _first_directory(file)[0]


def orientation_of(exif: bytes) -> int:
    """As a block says that the picture is to be turned: 1, for not at all, to 8."""
    first, _ = _first_directory(BytesIO(exif.removeprefix(b'Exif\0\0')))
    _, _, value = first.get(ORIENTATION, (0, 0, b''))
    said = _number(value[:2], '<')
    return said if 1 <= said <= 8 else 1


def add_metadata(file: BinaryIO, exif: bytes, iptc: bytes) -> None:
    """Put blocks as a JPEG has them into a little-endian TIFF file: a new directory at its end replaces the first."""
    about = _about(BytesIO(exif.removeprefix(b'Exif\0\0')))
    for tag in SIZES:
        about.get(EXIF, {}).pop(tag, None)
    if iptc:
        captions = iptc.removeprefix(PHOTOSHOP_HEAD)
        about[IPTC if captions == iptc else PHOTOSHOP] = (UNDEFINED, len(captions), captions)
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


def as_jpeg_has_it(iptc: bytes) -> bytes:
    """Captions among Photoshop's resources, if they are not there already."""
    if iptc.startswith(PHOTOSHOP_HEAD):
        return iptc
    return PHOTOSHOP_HEAD + CAPTIONS + bytes(2) + struct.pack('>I', len(iptc)) + iptc + bytes(len(iptc) % 2)


def resources_without_thumbnail(iptc: bytes) -> bytes:
    """Captions as they are; Photoshop's resources but for the small pictures of the photograph as it was."""
    if not iptc.startswith(PHOTOSHOP_HEAD):
        return iptc
    kept, at = PHOTOSHOP_HEAD, len(PHOTOSHOP_HEAD)
    while len(iptc) - at >= 12:  # a resource: 8BIM, its number, its name, its length, its content
        if iptc[at : at + 4] not in RESOURCES:  # its length was wrong, or an odd one is not filled up
            return iptc
        place = at + 6 + (iptc[at + 6] + 2) // 2 * 2  # the name has its length before it, and an even number of bytes
        length = int.from_bytes(iptc[place : place + 4], 'big')
        end = place + 4 + (length + 1) // 2 * 2
        if iptc[at : at + 6] not in THUMBNAILS:
            kept += iptc[at:end]
        at = end
    return kept


def without_thumbnail(exif: bytes) -> bytes:
    """The block without its second directory: a small picture of the photograph as it was, and not upright perhaps."""
    start = len(exif) - len(exif.removeprefix(b'Exif\0\0'))
    order = ORDERS.get(exif[start : start + 4])
    if order is None:
        return exif
    first = start + _number(exif[start + 4 : start + 8], order)
    place_of_second = first + 2 + 12 * _number(exif[first : first + 2], order)
    return exif[:place_of_second] + bytes(4) + exif[place_of_second + 4 :]


def _number(value: bytes, order: str) -> int:
    return int.from_bytes(value, 'little' if order == '<' else 'big')


def _first_directory(file: BinaryIO) -> tuple[Directory, str]:
    """And the order of bytes in the file; empty where there is none, as in a BigTIFF."""
    file.seek(0)
    head = file.read(8)
    order = ORDERS.get(head[:4], '<')
    if head[:4] not in ORDERS or len(head) < 8:
        return {}, order
    return _read_directory(file, _number(head[4:], order), order), order


def _about(file: BinaryIO) -> Directory:
    """What the first directory and the two below it say of the photograph; empty where there is none."""
    first, order = _first_directory(file)
    about = {tag: entry for tag, entry in first.items() if tag in ABOUT}
    for tag in (EXIF, GPS):
        _follow(file, about, tag, order)
    if EXIF in about:
        _follow(file, about[EXIF], INTEROPERABILITY, order)
    return about


def _follow(file: BinaryIO, directory: Directory, tag: int, order: str) -> None:
    """Replace the place that stands under `tag`, if it does, by the directory that is there."""
    if tag in directory:
        directory[tag] = _read_directory(file, _number(directory[tag][2][:4], '<'), order)


def _read_directory(file: BinaryIO, at: int, order: str) -> Directory:
    """The entries of the directory at a place; those that are damaged are left out, and what layers hold."""
    end = file.seek(0, 2)
    file.seek(at)
    count = _number(file.read(2), order)
    rows = file.read(12 * count)
    directory: Directory = {}
    left = end  # bytes of values: more than the file has are one value again and again, to fill the memory
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
                value = b''.join(value[i : i + size][::-1] for i in range(0, length, size))
            directory[tag] = (kind, items, value)
    return directory


def _directory_bytes(directory: Directory, at: int) -> bytes:
    """A directory as it is written at a place, with its longer values and the directories below it behind it."""
    rows, behind = b'', b''
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
