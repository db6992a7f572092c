"""What the scripts that make training pairs share: linear light, encoding, duplicates.

A pair is a blurred JPEG and its sharp PNG.
"""

import hashlib
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable
from pathlib import Path

import cv2
import numpy as np

from wrcan_arch.data.image_files import decode_image
from wrcan_arch.errors import InputError
from wrcan_arch.system.folders import walk
from wrcan_arch.system.terminal import counted, say

FILE_ENDINGS = {'blur': '.jpg', 'sharp': '.png'}
ENCODED = np.arange(256) / 255
LIGHT = np.where(ENCODED <= 0.04045, ENCODED / 12.92, ((ENCODED + 0.055) / 1.055) ** 2.4).astype(np.float32)
GENERATION = 2  # raise it whenever the scripts make other pairs of the same input and options


def to_linear(image: np.ndarray) -> np.ndarray:
    """Convert uint8 sRGB to linear light in [0, 1], float32 (IEC 61966-2-1)."""
    return cv2.LUT(image, LIGHT).reshape(image.shape)  # three times as fast as LIGHT[image]


def from_linear(light: np.ndarray) -> np.ndarray:
    """Convert linear light, clipped to [0, 1], to uint8 sRGB."""
    light = light.clip(0, 1)
    encoded = np.where(light <= 0.0031308, 12.92 * light, 1.055 * light ** (1 / 2.4) - 0.055)
    return np.rint(encoded * 255).astype(np.uint8)


def quality_range(text: str) -> tuple[int, int]:
    """Parse '25' or '15-95' to the lowest and the highest JPEG quality; InputError for anything else."""
    lowest, _, highest = text.partition('-')
    if not all(part.isdecimal() for part in (lowest, highest or '1')):
        raise InputError(f'--quality {text}: give a JPEG quality such as 25, or a range such as 15-95')
    qualities = int(lowest), int(highest or lowest)
    if not 1 <= qualities[0] <= qualities[1] <= 100:
        raise InputError(f'--quality {text}: JPEG quality goes from 1 to 100, a range from low to high')
    return qualities


def draw_quality(rng: np.random.Generator, qualities: tuple[int, int]) -> int:
    return int(rng.integers(qualities[0], qualities[1] + 1))


def encode(image: np.ndarray, role: str, quality: int) -> bytes:
    """Encode an image as the file of its `role`: 'blur', a JPEG of that quality, or 'sharp', a PNG."""
    parameters = [cv2.IMWRITE_JPEG_QUALITY, quality] if role == 'blur' else [cv2.IMWRITE_PNG_COMPRESSION, 3]
    return cv2.imencode(FILE_ENDINGS[role], image, parameters)[1].tobytes()


def read_image(path: Path) -> np.ndarray:
    """Read an image as uint8 (H, W, 3) in BGR, upright; InputError if it cannot be read or decoded."""
    try:
        image = decode_image(path.read_bytes())
    except OSError as error:
        raise InputError(f'{path}: cannot be read ({error.strerror}); make it readable, or leave it out') from error
    if image is None:
        raise InputError(f'{path}: not a readable image; remove it or convert it to PNG')
    return image


def _digests(files: list[Path]) -> tuple[bytes, ...]:
    """Return the SHA-256 digest of each file."""
    digests = []
    for file in files:
        with file.open('rb') as opened:
            digests.append(hashlib.file_digest(opened, 'sha256').digest())
    return tuple(digests)


def without_copies(
    found: dict[str, Path], noun: str, files_of: Callable[[Path], list[Path]] = lambda path: [path]
) -> dict[str, Path]:
    """Return `found` without byte-for-byte copies of earlier ones, and print how many are left out.

    A copy could be on the other side of --val.

    Args:
        found: photographs or videos, by name.
        noun: what one of them is called in the report, such as 'picture'.
        files_of: returns the files that one consists of, in order.
    """
    alike: dict[tuple[int, ...], list[str]] = defaultdict(list)
    for name, path in found.items():
        alike[tuple(file.stat().st_size for file in files_of(path))].append(name)
    names = set()
    for same_size in alike.values():
        if len(same_size) == 1:
            names.add(same_size[0])
        else:  # reversed, so that the first one wins
            names.update({_digests(files_of(found[name])): name for name in reversed(same_size)}.values())
    if copies := len(found) - len(names):
        say(f'{counted(copies, noun)} left out, the same as another')
    return {name: path for name, path in found.items() if name in names}


def say_what_is_left_out(inputs: Iterable[Path], taken: Iterable[Path], advice: str) -> None:
    """Print how many files of which ending lie in the folders of `inputs` and are not `taken`, and `advice`."""
    there = {here / name for entry in inputs if entry.is_dir() for here, names in walk(entry) for name in names}
    if endings := Counter(path.suffix.lower() or 'without ending' for path in there.difference(taken)):
        listed = ', '.join(f'{count} {ending}' for ending, count in sorted(endings.items()))
        say(f'{counted(endings.total(), "file")} left out ({listed}); {advice}')


def fingerprint_of(files: Iterable[Path]) -> list[tuple[str, int, int]]:
    """Return name, size and modification time (ns) of each file, which show a change without reading the file."""
    return [(file.name, status.st_size, status.st_mtime_ns) for file, status in ((each, each.stat()) for each in files)]


def source_checksum(*parts: object) -> str:
    """Return a checksum of everything that a pair is made from: `parts`, these scripts, OpenCV and NumPy."""
    return hashlib.sha256(repr((GENERATION, cv2.__version__, np.__version__, *parts)).encode()).hexdigest()


def out_name(text: str) -> Path:
    """Return what stores' names begin with, from -o; InputError if it is a folder: stores would lie beside it."""
    if text.endswith('/') or Path(text).is_dir():
        raise InputError(f'-o {text}: a folder; give a name in it, such as {Path(text, "mine")}')
    return Path(text)
