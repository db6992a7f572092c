"""What an image file says of itself in its first bytes: its format, and what libvips does not tell of it."""

import re

HEAD = 64  # bytes that tell a file's format
AVIF_BRANDS = {b'avif', b'avis'}
SRGB_PRIMARIES, SRGB_TRANSFERS = (1, 2, 5, 6), (1, 2, 6, 13)  # or near to it, or not said
SRGB_NUMBERS = (45_455, 31_270, 32_900, 64_000, 33_000, 30_000, 60_000, 15_000, 6_000)  # of PNG's gAMA and cHRM
NEAR = 0.05  # of a number; libpng takes two gammas for one up to there


def format_of_content(head: bytes) -> str | None:
    """The format of a file that begins with these HEAD bytes; None for none of ours."""
    if head[4:8] == b'ftyp':
        brands = head[8 : int.from_bytes(head[:4], 'big')]
        own, others = brands[:4], [brands[start : start + 4] for start in range(8, len(brands), 4)]
        general = own in (b'mif1', b'msf1')  # an image, or several, of the kind that the others say
        return 'avif' if own in AVIF_BRANDS or (general and not AVIF_BRANDS.isdisjoint(others)) else 'heic'
    if head[:4] == b'RIFF' and head[8:12] == b'WEBP':
        return 'webp'
    magics = {b'\xff\xd8\xff': 'jpeg', b'\x89PNG': 'png', b'II*\0': 'tiff', b'MM\0*': 'tiff', b'II+\0': 'tiff',
              b'MM\0+': 'tiff', b'BM': 'bmp'}  # fmt: skip
    return next((name for magic, name in magics.items() if head.startswith(magic)), None)


def marks_colours(start: bytes, content: str, has_profile: bool) -> bool:
    """Whether a file that begins so says in numbers, which hold beside its profile, that its colours are not sRGB's."""
    chunks = png_chunks(start) if content == 'png' else {}
    if b'cICP' in chunks:  # goes before a profile
        return _are_not_srgb(chunks[b'cICP'][:2])
    if has_profile or b'sRGB' in chunks:
        return False
    if content in ('avif', 'heic'):
        return _are_not_srgb(start.partition(b'colrnclx')[2][1:4:2])  # 2 bytes each
    said = chunks[b'gAMA'] + chunks.get(b'cHRM', b'') if b'gAMA' in chunks else b''  # browsers need both for cHRM
    numbers = (int.from_bytes(said[at : at + 4], 'big') for at in range(0, len(said), 4))
    return any(abs(number - srgb) > NEAR * srgb for number, srgb in zip(numbers, SRGB_NUMBERS, strict=False))


def _are_not_srgb(numbers: bytes) -> bool:
    """Of primaries and transfer, as ITU-T H.273 numbers them; of none, where the mark is cut, it is not known."""
    return len(numbers) == 2 and (numbers[0] not in SRGB_PRIMARIES or numbers[1] not in SRGB_TRANSFERS)


def is_lossless(start: bytes) -> bool:
    """Whether a WebP file that begins so has its pixels, the first picture's, in the lossless way."""
    kind = re.search(b'VP8[L ]', start)  # either; VP8X is of what else there is
    return kind is not None and kind[0] == b'VP8L'


def holds_more(start: bytes, content: str) -> bool:
    """Whether a file that begins so has more pictures than the one that libvips sees."""
    if content == 'jpeg':  # one behind the other, as cameras do for 3D and phones for a map of what HDR screens add
        return re.search(rb'\xff\xe2..MPF\0', start, re.DOTALL) is not None  # CIPA DC-007, 5.1
    return start[8:12] == b'avis' or (content == 'png' and b'acTL' in png_chunks(start))


def has_comment(start: bytes) -> bool:
    """Whether a JPEG file that begins so has a comment in front of its pixels."""
    at = 2
    while start[at : at + 1] == b'\xff' and start[at + 1 : at + 2] not in (b'\xda', b''):
        if start[at + 1] == 0xFE:
            return True
        at += 2 + int.from_bytes(start[at + 2 : at + 4], 'big')
    return False


def png_chunks(start: bytes) -> dict[bytes, bytes]:
    """What stands before the pixels of a PNG file that begins so, by its name there."""
    chunks, at = {}, 8
    while start[at + 4 : at + 8] not in (b'IDAT', b''):
        length = int.from_bytes(start[at : at + 4], 'big')
        chunks[start[at + 4 : at + 8]] = start[at + 8 : at + 8 + length]
        at += length + 12  # a checksum behind it
    return chunks
