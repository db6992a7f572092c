"""Tell from a file's first bytes its format, and what libvips does not report."""

import re
from collections.abc import Mapping

HEAD = 64  # bytes that are enough to tell the format
AVIF_BRANDS = {b'avif', b'avis'}
HEIC_BRANDS = {b'heic', b'heix', b'heim', b'heis', b'hevc', b'hevx', b'hevm', b'hevs'}  # ISO/IEC 23008-12, annex B
SRGB_PRIMARIES, SRGB_TRANSFERS = (1, 2, 5, 6), (1, 2, 6, 13)  # H.273: sRGB, near to it, unspecified (2)
SRGB_NUMBERS = (45_455, 31_270, 32_900, 64_000, 33_000, 30_000, 60_000, 15_000, 6_000)  # of PNG's gAMA and cHRM
GAMMA_TOLERANCE = 0.05  # relative; libpng takes two gammas for equal up to this difference


def format_of_content(head: bytes) -> str | None:
    """The format of a file that begins with `head`, its first HEAD bytes; None if it is not one that is read."""
    if head[4:8] == b'ftyp':
        brands = head[8 : int.from_bytes(head[:4], 'big')]
        own, others = brands[:4], [brands[start : start + 4] for start in range(8, len(brands), 4)]
        general = own in (b'mif1', b'msf1')  # HEIF image or sequence; the other brands name the codec
        if own in AVIF_BRANDS or (general and not AVIF_BRANDS.isdisjoint(others)):
            return 'avif'
        return 'heic' if general or own in HEIC_BRANDS else None  # else a film, or a camera's raw file
    if head[:4] == b'RIFF' and head[8:12] == b'WEBP':
        return 'webp'
    magics = {b'\xff\xd8\xff': 'jpeg', b'\x89PNG': 'png', b'II*\0': 'tiff', b'MM\0*': 'tiff', b'II+\0': 'tiff',
              b'MM\0+': 'tiff', b'BM': 'bmp'}  # fmt: skip
    return next((name for magic, name in magics.items() if head.startswith(magic)), None)


def declares_non_srgb(start: bytes, format: str, chunks: Mapping[bytes, bytes], has_profile: bool) -> bool:
    """Whether a file that begins with `start` says by numbers, not by its profile, that it is not sRGB.

    `chunks`: those before the pixels of a PNG file, by chunk name.
    """
    if b'cICP' in chunks:  # takes precedence over a profile
        return _codes_are_not_srgb(chunks[b'cICP'][:2])
    if has_profile or b'sRGB' in chunks:
        return False
    if format in ('avif', 'heic'):
        return _codes_are_not_srgb(start.partition(b'colrnclx')[2][1:4:2])  # low bytes of two 16-bit numbers
    if b'gAMA' in chunks:  # browsers ignore cHRM without gAMA
        return _values_are_not_srgb(chunks[b'gAMA'] + chunks.get(b'cHRM', b''))
    return False


def _values_are_not_srgb(content: bytes) -> bool:
    """Whether PNG's gamma, or one of the chromaticities that follow it if there are any, is far from sRGB's."""
    numbers = (int.from_bytes(content[at : at + 4], 'big') for at in range(0, len(content), 4))
    return any(abs(number - srgb) > GAMMA_TOLERANCE * srgb for number, srgb in zip(numbers, SRGB_NUMBERS, strict=False))


def _codes_are_not_srgb(numbers: bytes) -> bool:
    """Whether primaries and transfer, two ITU-T H.273 numbers of a byte each, are not sRGB's; False if cut off."""
    return len(numbers) == 2 and (numbers[0] not in SRGB_PRIMARIES or numbers[1] not in SRGB_TRANSFERS)


def is_lossless(start: bytes) -> bool:
    """Whether the first picture of a WebP file that begins with `start` is lossless."""
    kind = re.search(b'VP8[L ]', start)  # lossy or lossless; VP8X is only a header
    return kind is not None and kind[0] == b'VP8L'
