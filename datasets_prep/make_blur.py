"""Sharp photographs to pairs of a blurred JPEG and its sharp image, in LMDB stores that train and test.

A random camera-shake path moves the picture during the exposure. The exposure is averaged in linear light, where light
adds up, and its middle is the sharp image's position. The result is compressed as JPEG, quality 25 as in REDS's track.
"""

import argparse
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
from tqdm import tqdm

import pairs
from wrcan_arch.errors import InputError
from wrcan_arch.train.lmdb_store import key_for

PATH_POINTS = 129  # moments of the exposure; odd, so that one is its middle


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


def blur(sharp: np.ndarray, path: np.ndarray) -> np.ndarray:
    """`sharp`, uint8 (H, W, 3), as an exposure along `path` sees it. The border is mirrored."""
    kernel = cv2.flip(blur_kernel(path), -1)  # filter2D correlates
    light = cv2.filter2D(pairs.to_linear(sharp), -1, kernel, borderType=cv2.BORDER_REFLECT_101)
    return pairs.from_linear(light)


def find_photos(inputs: list[Path]) -> dict[str, Path]:
    """Photographs by the name that their keys begin with."""
    photos: dict[str, Path] = {}
    for entry in inputs:
        if not entry.exists():
            raise InputError(f'{entry}: no such photograph or folder')
        found = sorted(entry.rglob('*')) if entry.is_dir() else [entry]
        for path in (path for path in found if path.suffix.lower() in pairs.IMAGE_ENDINGS):
            other = photos.setdefault(key_for(path.stem), path)
            if other is not path:
                raise InputError(f'{other} and {path} have the same name; rename one of them or leave it out')
    if not photos:
        raise InputError(f'{", ".join(map(str, inputs))}: no photographs ({" ".join(pairs.IMAGE_ENDINGS)}) found')
    return photos


def make_pairs(
    photos: dict[str, Path], arguments: argparse.Namespace
) -> Iterator[tuple[str, str, dict[str, bytes], tuple]]:
    """The photograph's name, a key, the encoded blurred and sharp image, and the shape, for each path of each."""
    for number, (name, photo) in enumerate(photos.items()):
        sharp = cv2.imread(str(photo), cv2.IMREAD_COLOR)
        if sharp is None:
            raise InputError(f'{photo}: not a readable image; remove it or convert it to PNG')
        sharp_bytes = pairs.encode(sharp, 'sharp', arguments.quality)
        for copy in range(arguments.copies):
            rng = np.random.default_rng((arguments.seed, number, copy))
            blurred = blur(sharp, shake_path(rng, rng.uniform(*arguments.length)))
            pair = {'blur': pairs.encode(blurred, 'blur', arguments.quality), 'sharp': sharp_bytes}
            yield name, f'{name}_{copy:03d}', pair, sharp.shape


def write_pairs(arguments: argparse.Namespace) -> None:
    shortest, longest = arguments.length
    if not 0 <= shortest <= longest:
        raise InputError(f'--length {shortest} {longest}: give the shortest, then the longest, from 0 up')
    if arguments.copies < 1:
        raise InputError(f'--copies {arguments.copies}: at least 1')
    photos = find_photos(arguments.photos)
    sizes = dict.fromkeys(photos, arguments.copies)
    with pairs.pair_stores(arguments, sizes, 'photographs') as put:
        made = make_pairs(photos, arguments)
        for pair in tqdm(made, total=sum(sizes.values()), unit='pair', desc=arguments.out.name):
            put(*pair)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('photos', type=Path, nargs='+', help='sharp photographs, or folders of them')
    parser.add_argument('--copies', type=int, default=8, help='blur paths for each photograph (default 8)')
    parser.add_argument(
        '--length', type=float, nargs=2, default=(2, 16), metavar=('MIN', 'MAX'),
        help='length of the paths in pixels (default 2 16)',
    )  # fmt: skip
    pairs.run(parser, write_pairs)


if __name__ == '__main__':
    main()
