"""Estimate how strongly a JPEG file was compressed: libjpeg's quality factor, from its quantisation table."""

from collections.abc import Iterator
from typing import BinaryIO

import numpy as np

# ITU-T T.81, table K.1 (luminance), in the zigzag order in which files store it.
STANDARD = np.array([
    16, 11, 12, 14, 12, 10, 16, 14, 13, 14, 18, 17, 16, 19, 24, 40,
    26, 24, 22, 22, 24, 49, 35, 37, 29, 40, 58, 51, 61, 60, 57, 51,
    56, 55, 64, 72, 92, 78, 64, 68, 87, 69, 55, 56, 80, 109, 81, 87,
    95, 98, 103, 104, 103, 62, 77, 113, 121, 112, 100, 120, 92, 101, 103, 99,
])  # fmt: skip

START_OF_SCAN, QUANTISATION = 0xDA, 0xDB  # markers of a JPEG's segments
FAR_RATIO = 2  # quantisation steps this many times coarser or finer than in training are another task for the network


def scale(quality: float) -> float:
    """The percentage by which libjpeg scales the standard table for a quality of 1 to 100."""
    return 5000 / quality if quality < 50 else 200 - 2 * quality


TABLES = np.array([np.clip((STANDARD * int(scale(quality)) + 50) // 100, 1, 255) for quality in range(1, 101)])


def _next_marker(file: BinaryIO) -> int | None:
    """The second byte of the next marker; None if no marker follows. The first byte may repeat (T.81, B.1.1.2)."""
    byte = first = file.read(1)
    while byte == b'\xff':
        byte = file.read(1)
    return byte[0] if byte and first == b'\xff' else None


def segments(file: BinaryIO) -> Iterator[tuple[int, bytes]]:
    """Yield the marker and the content of each segment of a JPEG stream before its pixels."""
    file.seek(2)
    while (marker := _next_marker(file)) is not None and marker != START_OF_SCAN:
        yield marker, file.read(max(0, int.from_bytes(file.read(2), 'big') - 2))


def luminance_table(file: BinaryIO) -> np.ndarray | None:
    """The first quantisation table of a JPEG stream, (64,), in zigzag order; None if there is none."""
    for marker, body in segments(file):
        if marker == QUANTISATION and body:  # tables, each after a byte: if it is 16 or more, a value has two bytes
            kind = np.dtype('>u2') if body[0] >> 4 else np.dtype(np.uint8)
            values = body[1 : 1 + 64 * kind.itemsize]
            return np.frombuffer(values, kind).astype(int) if len(values) == 64 * kind.itemsize else None
    return None


def estimate_quality(file: BinaryIO) -> int | None:
    """The quality factor, 1 to 100, whose table is nearest to the file's; None if the file has no table."""
    table = luminance_table(file)
    return None if table is None else int(np.abs(TABLES - table).sum(axis=1).argmin()) + 1


def is_far(quality: int, trained: int | list[int]) -> bool:
    """Whether `quality` is far from the one quality, or the range, that the weights were trained for."""
    low, high = (trained, trained) if isinstance(trained, int) else (min(trained), max(trained))

    def step(quality: int) -> float:
        return max(scale(quality), 20)  # from 90 up compression loses hardly anything

    return step(quality) > FAR_RATIO * step(low) or step(quality) * FAR_RATIO < step(high)
