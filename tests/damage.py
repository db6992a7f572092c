"""Steps that damage the data and option files of conftest's `workplace`."""

import struct
import zlib
from pathlib import Path

import cv2
import lmdb

STORE = Path('data_blur.lmdb')


def swap(old, new, file='train.yml'):
    """Return a step that replaces the first `old` in an option file."""

    def prepare():
        text = Path(file).read_text()
        assert old in text
        Path(file).write_text(text.replace(old, new, 1))

    return prepare


def add(text, file='train.yml'):
    return lambda: Path(file).write_text(Path(file).read_text() + text)


def write(name, content):
    return lambda: Path(name).write_bytes(content)


def change(name, of):
    """Return a step that replaces a file's bytes by `of(bytes)`."""
    return lambda: Path(name).write_bytes(of(Path(name).read_bytes()))


def folders():
    """Make the option file read folders of files instead of stores."""
    text = Path('train.yml').read_text()
    Path('train.yml').write_text(text.replace('.lmdb', '').replace('type: lmdb', 'type: disk'))


def value(content, key=b'photo3_000'):
    """Return a step that replaces a value in a store, but not its meta_info.txt and manifest.json."""

    def prepare():
        with lmdb.open(str(STORE), map_size=1 << 26) as environment, environment.begin(write=True) as transaction:
            transaction.put(key, content() if callable(content) else content)

    return prepare


def png(image):
    return cv2.imencode('.png', image)[1].tobytes()


def bomb(width=60_000, height=60_000):
    """Return a PNG of a few bytes whose header claims 3.6 gigapixels."""

    def chunk(kind, data):
        return struct.pack('>I', len(data)) + kind + data + struct.pack('>I', zlib.crc32(kind + data))

    header = struct.pack('>IIBBBBB', width, height, 8, 2, 0, 0, 0)
    return (
        b'\x89PNG\r\n\x1a\n' + chunk(b'IHDR', header) + chunk(b'IDAT', zlib.compress(bytes(1000))) + chunk(b'IEND', b'')
    )
