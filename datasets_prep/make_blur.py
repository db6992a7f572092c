"""Sharp photographs to pairs of a blurred JPEG and its sharp image, in LMDB stores that train and test.

A random camera-shake path moves the picture during the exposure. The exposure is averaged in linear light, where light
adds up, and its middle is the sharp image's position. The result is compressed as JPEG, quality 25 as in REDS's track.
"""

import argparse
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import cv2
import numpy as np
from tqdm import tqdm

from wrcan_arch.errors import InputError
from wrcan_arch.lmdb_store import StoreWriter, key_for

IMAGE_ENDINGS = ('.jpg', '.jpeg', '.png', '.bmp', '.tif', '.tiff', '.webp')
PATH_POINTS = 129  # moments of the exposure; odd, so that one is its middle
FILE_ENDINGS = {'blur': '.jpg', 'sharp': '.png'}


def shake_path(rng: np.random.Generator, length: float) -> np.ndarray:
    """A smooth random path, `length` pixels long, that is at (0, 0) in the middle of the exposure.

    Returns:
        (PATH_POINTS, 2), x and y in pixels.
    """
    direction = rng.uniform(0, 2 * np.pi)
    turns = np.cumsum(rng.normal(0, 1, PATH_POINTS - 1)) * rng.uniform(0.02, 0.25)  # radians: from straight to curled
    speed = np.exp(np.cumsum(rng.normal(0, 0.08, PATH_POINTS - 1)))
    steps = speed[:, None] * np.stack([np.cos(direction + turns), np.sin(direction + turns)], axis=1)
    steps *= length / np.linalg.norm(steps, axis=1).sum()
    path = np.concatenate([np.zeros((1, 2)), np.cumsum(steps, axis=0)])
    return path - path[PATH_POINTS // 2]


def blur_kernel(path: np.ndarray) -> np.ndarray:
    """What a point of light becomes along `path`: (2r + 1, 2r + 1), its sum 1, each moment spread bilinearly."""
    radius = int(np.ceil(np.abs(path).max())) + 1
    kernel = np.zeros((2 * radius + 1, 2 * radius + 1))
    corner = np.floor(path).astype(int)
    fraction = path - corner
    for dx, dy in ((0, 0), (1, 0), (0, 1), (1, 1)):
        weight = np.abs(1 - dx - fraction[:, 0]) * np.abs(1 - dy - fraction[:, 1])
        np.add.at(kernel, (corner[:, 1] + dy + radius, corner[:, 0] + dx + radius), weight)
    return kernel / kernel.sum()


def to_linear(image: np.ndarray) -> np.ndarray:
    """sRGB, uint8, to light in [0, 1] (IEC 61966-2-1)."""
    encoded = np.arange(256) / 255
    light = np.where(encoded <= 0.04045, encoded / 12.92, ((encoded + 0.055) / 1.055) ** 2.4)
    return light.astype(np.float32)[image]


def from_linear(light: np.ndarray) -> np.ndarray:
    """Light in [0, 1] to sRGB, uint8."""
    light = light.clip(0, 1)
    encoded = np.where(light <= 0.0031308, 12.92 * light, 1.055 * light ** (1 / 2.4) - 0.055)
    return np.rint(encoded * 255).astype(np.uint8)


def blur(sharp: np.ndarray, path: np.ndarray) -> np.ndarray:
    """`sharp`, uint8 (H, W, 3), as an exposure along `path` sees it. The border is mirrored."""
    kernel = cv2.flip(blur_kernel(path), -1)  # filter2D correlates
    light = cv2.filter2D(to_linear(sharp), -1, kernel, borderType=cv2.BORDER_REFLECT_101)
    return from_linear(light)


def encode(image: np.ndarray, ending: str, quality: int) -> bytes:
    parameters = [cv2.IMWRITE_JPEG_QUALITY, quality] if ending == '.jpg' else [cv2.IMWRITE_PNG_COMPRESSION, 3]
    return cv2.imencode(ending, image, parameters)[1].tobytes()


def find_photos(inputs: list[Path]) -> list[Path]:
    photos: list[Path] = []
    for entry in inputs:
        if not entry.exists():
            raise InputError(f'{entry}: no such photograph or folder')
        found = sorted(entry.rglob('*')) if entry.is_dir() else [entry]
        photos += [path for path in found if path.suffix.lower() in IMAGE_ENDINGS]
    if not photos:
        raise InputError(f'{", ".join(map(str, inputs))}: no photographs ({" ".join(IMAGE_ENDINGS)}) found')
    return photos


def make_pairs(photos: list[Path], arguments: argparse.Namespace) -> Iterator[tuple[str, dict[str, bytes], tuple]]:
    """Key, encoded blurred and sharp image, and shape, for each photograph and each of its paths."""
    for number, photo in enumerate(photos):
        sharp = cv2.imread(str(photo), cv2.IMREAD_COLOR)
        if sharp is None:
            raise InputError(f'{photo}: not a readable image; remove it or convert it to PNG')
        sharp_bytes = encode(sharp, FILE_ENDINGS['sharp'], arguments.quality)
        for copy in range(arguments.copies):
            rng = np.random.default_rng((arguments.seed, number, copy))
            blurred = blur(sharp, shake_path(rng, rng.uniform(*arguments.length)))
            pair = {'blur': encode(blurred, FILE_ENDINGS['blur'], arguments.quality), 'sharp': sharp_bytes}
            yield f'{key_for(photo.stem)}_{copy:03d}', pair, sharp.shape


def check(arguments: argparse.Namespace) -> None:
    shortest, longest = arguments.length
    if not 0 <= shortest <= longest:
        raise InputError(f'--length {shortest} {longest}: give the shortest, then the longest, from 0 up')
    if not 1 <= arguments.quality <= 100:
        raise InputError(f'--quality {arguments.quality}: JPEG quality goes from 1 to 100')
    if arguments.copies < 1:
        raise InputError(f'--copies {arguments.copies}: at least 1')


def write_stores(arguments: argparse.Namespace) -> None:
    check(arguments)
    photos = find_photos(arguments.photos)
    out: Path = arguments.out
    with ExitStack() as stack:
        stores = {role: stack.enter_context(StoreWriter(f'{out}_{role}.lmdb')) for role in FILE_ENDINGS}
        pairs = make_pairs(photos, arguments)
        for key, pair, shape in tqdm(pairs, total=len(photos) * arguments.copies, unit='pair', desc=out.name):
            for role, ending in FILE_ENDINGS.items():
                stores[role].put(key, ending, pair[role], shape)
                if arguments.files:
                    folder = Path(f'{out}_{role}')
                    folder.mkdir(parents=True, exist_ok=True)
                    (folder / f'{key}{ending}').write_bytes(pair[role])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('photos', type=Path, nargs='+', help='sharp photographs, or folders of them')
    parser.add_argument('-o', '--out', type=Path, required=True, help='OUT_blur.lmdb and OUT_sharp.lmdb are written')
    parser.add_argument('--copies', type=int, default=8, help='blur paths for each photograph (default 8)')
    parser.add_argument(
        '--length', type=float, nargs=2, default=(2, 16), metavar=('MIN', 'MAX'),
        help='length of the paths in pixels (default 2 16)',
    )  # fmt: skip
    parser.add_argument('--quality', type=int, default=25, help='JPEG quality, 1 to 100 (default 25)')
    parser.add_argument('--seed', type=int, default=0, help='of the paths (default 0)')
    parser.add_argument('--files', action='store_true', help='also write the images as files: OUT_blur/, OUT_sharp/')
    try:
        write_stores(parser.parse_args())
    except (InputError, OSError) as error:
        print(f'make_blur: {error}', file=sys.stderr)
        sys.exit(2)


if __name__ == '__main__':
    main()
