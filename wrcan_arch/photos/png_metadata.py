"""Read and write what libvips ignores in PNG files: metadata after the pixels, as exiftool writes it, and texts."""

import os
import struct
import zlib
from collections.abc import Iterator
from typing import BinaryIO

TEXTS = (b'tEXt', b'zTXt', b'iTXt')
XMP = b'XML:com.adobe.xmp'
RAW_PROFILE = b'Raw profile type'  # of ImageMagick's texts with EXIF and others, whose orientation is outdated
LONGEST = 8_000_000  # bytes of a chunk or its text; libpng refuses longer ones
EXIF_HEAD = b'Exif\0\0'  # begins EXIF in libvips, as in JPEG, but not in PNG
END = struct.pack('>I4sI', 0, b'IEND', zlib.crc32(b'IEND'))


def read_metadata(file: BinaryIO) -> tuple[dict[str, bytes], bytes]:
    """The EXIF and XMP after the pixels, by libvips's names, and all texts, as their chunks one after the other.

    What is damaged, empty or too long is left out.
    """
    metadata: dict[str, bytes] = {}
    texts: list[bytes] = []
    is_behind = False
    for name, length in _chunks(file):
        is_behind = is_behind or name == b'IDAT'
        if name not in (b'eXIf', *TEXTS) or length > LONGEST:
            continue
        body, check = file.read(length), file.read(4)
        if check != _check(name, body):
            continue
        keyword, _, rest = body.partition(b'\0')
        if name == b'eXIf':
            if is_behind and body:
                metadata['exif-data'] = EXIF_HEAD + body.removeprefix(EXIF_HEAD)  # some encoders write it too
        elif keyword == XMP:
            if is_behind and name == b'iTXt' and (text := _text_of_itxt(rest)):
                metadata['xmp-data'] = text
        elif not keyword.startswith(RAW_PROFILE):
            texts.append(_chunk(name, body))
    return metadata, b''.join(texts)


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


def _chunk(name: bytes, body: bytes) -> bytes:
    return struct.pack('>I', len(body)) + name + body + _check(name, body)


def _check(name: bytes, body: bytes) -> bytes:
    return zlib.crc32(name + body).to_bytes(4, 'big')


def _text_of_itxt(rest: bytes) -> bytes:
    """The text in what follows the keyword: compression flag and method, language, translated keyword, text.

    b'' if it is damaged or longer than LONGEST.
    """
    text = b''.join(rest[2:].split(b'\0', 2)[2:])
    if rest[:1] != b'\1':
        return text
    decompressor = zlib.decompressobj()
    try:
        text = decompressor.decompress(text, LONGEST)
    except zlib.error:
        return b''
    return text if decompressor.eof else b''
