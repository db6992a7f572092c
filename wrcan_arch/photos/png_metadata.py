"""Read and write what libvips ignores in PNG files: metadata after the pixels or in texts, and texts.

exiftool writes metadata after the pixels; ImageMagick and others as hexadecimal texts.
"""

import os
import struct
import zlib
from collections.abc import Iterator
from typing import BinaryIO, NamedTuple

from .tiff_exif import EXIF_HEAD, PHOTOSHOP_HEAD

MARKS = (b'cICP', b'iCCP', b'sRGB', b'gAMA', b'cHRM', b'pHYs', b'acTL')  # colours, resolution, animation
TEXTS = (b'tEXt', b'zTXt', b'iTXt')
XMP = b'XML:com.adobe.xmp'
RAW_PROFILE = b'Raw profile type '  # begins the keyword of such a text
RAW_NAMES = {b'exif': 'exif-data', b'xmp': 'xmp-data', b'iptc': 'iptc-data', b'8bim': 'iptc-data'}
LONGEST = 8_000_000  # bytes of a chunk or its text; libpng refuses longer ones
END = struct.pack('>I4sI', 0, b'IEND', zlib.crc32(b'IEND'))


class PngMetadata(NamedTuple):
    """What libvips does not read of a PNG file.

    Attributes:
        marks: chunks before the pixels that say how to show them, by chunk name.
        behind: metadata after the pixels, by libvips's names.
        in_texts: metadata in texts, by libvips's names. The orientation of its EXIF is outdated: programs that write it
            turn the pixels.
        texts: all other texts, as chunks in a row.
    """

    marks: dict[bytes, bytes]
    behind: dict[str, bytes]
    in_texts: dict[str, bytes]
    texts: bytes


def read_metadata(file: BinaryIO) -> PngMetadata:
    """Read what libvips does not; leave out what is damaged, empty or too long."""
    marks: dict[bytes, bytes] = {}
    metadata: dict[str, bytes] = {}
    in_texts: dict[str, bytes] = {}
    texts: list[bytes] = []
    is_behind = False
    for name, length in _chunks(file):
        is_behind = is_behind or name == b'IDAT'
        if name not in (b'eXIf', *TEXTS, *MARKS) or length > LONGEST:
            continue
        body, check = file.read(length), file.read(4)
        if check != zlib.crc32(name + body).to_bytes(4, 'big'):
            continue
        keyword, _, rest = body.partition(b'\0')
        if name in MARKS:
            if not is_behind:
                marks[name] = body
        elif name == b'eXIf':
            if is_behind and body:
                metadata['exif-data'] = EXIF_HEAD + body.removeprefix(EXIF_HEAD)  # some encoders write the head too
        elif keyword == XMP:
            if is_behind and name == b'iTXt' and (text := _text_of_itxt(rest)):
                metadata['xmp-data'] = text
        elif keyword.startswith(RAW_PROFILE):
            in_texts |= _in_raw_profile(keyword, _text(name, rest))
        else:
            texts.append(struct.pack('>I', length) + name + body + check)
    return PngMetadata(marks, metadata, in_texts, b''.join(texts))


def add_texts(file: BinaryIO, texts: bytes) -> None:
    """Insert text chunks, as `read_metadata` returns them, before the end of a PNG file."""
    file.seek(-len(END), os.SEEK_END)
    file.write(texts + END)


def _chunks(file: BinaryIO) -> Iterator[tuple[bytes, int]]:
    """Yield each chunk's name and length, with the file positioned at its content; the caller reads it or not."""
    at = 8
    while True:
        file.seek(at)
        head = file.read(8)
        if len(head) < 8 or head[4:] == b'IEND':
            return
        length = int.from_bytes(head[:4], 'big')
        yield head[4:], length
        at += 12 + length


def _in_raw_profile(keyword: bytes, text: bytes) -> dict[str, bytes]:
    """The metadata in a text that has a name, a length and hexadecimal digits on separate lines; none if damaged."""
    name = RAW_NAMES.get(keyword.removeprefix(RAW_PROFILE).lower())
    try:
        content = bytes.fromhex(b''.join(text.split(b'\n', 3)[3:]).decode('ascii'))
    except ValueError:
        return {}
    if name == 'exif-data':
        content = content and EXIF_HEAD + content.removeprefix(EXIF_HEAD)
    if name == 'iptc-data' and content.startswith(b'8BIM'):
        content = PHOTOSHOP_HEAD + content
    return {name: content} if name and content else {}


def _text(name: bytes, rest: bytes) -> bytes:
    """The text in what follows a chunk's keyword; b'' if it is damaged or longer than LONGEST."""
    if name == b'iTXt':
        return _text_of_itxt(rest)
    return _inflated(rest[1:]) if name == b'zTXt' else rest


def _text_of_itxt(rest: bytes) -> bytes:
    """The text in what follows the keyword: compression flag and method, language, translated keyword, text."""
    text = b''.join(rest[2:].split(b'\0', 2)[2:])
    return _inflated(text) if rest[:1] == b'\1' else text


def _inflated(text: bytes) -> bytes:
    decompressor = zlib.decompressobj()
    try:
        text = decompressor.decompress(text, LONGEST)
    except zlib.error:
        return b''
    return text if decompressor.eof else b''
