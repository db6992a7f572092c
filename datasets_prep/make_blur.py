"""Sharp photographs to pairs of a blurred JPEG and its sharp image, in LMDB stores that train and test.

The camera shakes and rolls during the exposure, near things move more than distant ones, an object in front may move by
itself, the sensor adds noise (exposure.py). Then JPEG compresses, quality 25 as in REDS's track. The sharp image is
where the picture was on the average of the exposure.
"""

import argparse
import hashlib
import math
import os
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
from tqdm import tqdm

import exposure
import pairs
from wrcan_arch.errors import InputError
from wrcan_arch.train.image_files import (
    IMAGE_ENDINGS,
    OTHER_ENDINGS,
    decode_image,
    images_under,
    is_image,
    key_for,
)

WIDEST = 32766  # pixels a side: OpenCV moves no larger picture
LARGE = 4_000_000  # pixels


def find_photos(inputs: list[Path]) -> dict[str, Path]:
    """Photographs by the name that their keys begin with."""
    photos: dict[str, Path] = {}
    found: set[str] = set()
    for entry in inputs:
        if not entry.exists():
            raise InputError(f'{entry}: no such photograph or folder')
        if not entry.is_dir() and not is_image(entry):
            raise InputError(f'{entry}: is none of {" ".join(IMAGE_ENDINGS)}; convert it to PNG')
        for path in images_under(entry) if entry.is_dir() else [entry]:
            inside = path.relative_to(entry if entry.is_dir() else entry.parent)
            if os.path.realpath(path) in found:  # or it could be in both parts of --val
                raise InputError(f'{path}: given twice; leave it out once')
            found.add(os.path.realpath(path))
            other = photos.setdefault(key_for('_'.join(inside.with_suffix('').parts)), path)
            if other is not path:
                advice = 'rename one' if other.parent == path.parent else 'rename one, or give the folder around both'
                raise InputError(f'{other} and {path} have the same name; {advice}')
    if not photos:
        raise InputError(f'{", ".join(map(str, inputs))}: no photographs ({" ".join(IMAGE_ENDINGS)}) found')
    return photos


def decode_photo(photo: Path) -> np.ndarray:
    """uint8 (H, W, 3) in BGR, upright. InputError for what is no image."""
    image = decode_image(photo.read_bytes())
    if image is None:
        raise InputError(f'{photo}: not a readable image; remove it or convert it to PNG')
    return image


def without_copies(photos: dict[str, Path]) -> dict[str, Path]:
    """Of files that are the same the first, or a copy could be on the other side of --val."""
    names: dict[bytes, str] = {}
    for name, photo in photos.items():
        names.setdefault(hashlib.sha256(photo.read_bytes()).digest(), name)
    if copies := len(photos) - len(names):
        print(f'{pairs.counted(copies, "picture")} left out, the same as another')
    return {name: photos[name] for name in names.values()}


def check_photos(photos: dict[str, Path], largest: int | None, *, grid: int, farthest: float) -> None:
    """InputError for what cannot be read, is too large or too small, before anything is made; a hint on what is slow.

    Each is decoded for it, which takes a small part of what its copies do.

    Args:
        photos: by name.
        largest: pixels of the longer side that they are scaled down to.
        grid: pixels that may be cut off.
        farthest: the smallest zoom.
    """
    large = 0
    for photo in tqdm(photos.values(), unit='photograph', desc='look at each'):
        height, width = decode_photo(photo).shape[:2]
        longer = max(height, width)
        if min(longer, largest or longer) > WIDEST:
            raise InputError(f'{photo}: is {width} x {height}; set --largest, at most {WIDEST}')
        scaled = max(1, round(min(1, (largest or math.inf) / longer) * min(height, width)))
        if grid >= max(1, round(min(1, farthest) * scaled)):
            raise InputError(f'--grid {grid}: {photo} is {width} x {height}, too small for it; leave it out')
        large += height * width > LARGE
    if large and not largest:
        print(
            f'{pairs.counted(large, "photograph")} of more than {LARGE / 1e6:.0f} megapixels: '
            'a copy takes seconds, and training decodes it whole; --largest 1600 makes them smaller'
        )


def read_photo(photo: Path, largest: int | None) -> np.ndarray:
    """uint8 (H, W, 3) in BGR, upright, scaled down to `largest` pixels on its longer side."""
    sharp = decode_photo(photo)
    height, width = sharp.shape[:2]
    scale = (largest or math.inf) / max(height, width)
    if scale >= 1:
        return sharp
    return cv2.resize(
        sharp, (max(1, round(scale * width)), max(1, round(scale * height))), interpolation=cv2.INTER_AREA
    )


def out_of_focus(rng: np.random.Generator, light: np.ndarray, softness: float) -> np.ndarray:
    """`light`, of which what is near, or what is far, is softer, by Gaussians of `softness` pixels at most."""
    height, width = light.shape[:2]
    distance = exposure.draw_nearness(rng, height, width, depth=1) - 1  # (H, W), -1 to 1
    share = (0.5 + 2 * distance + rng.uniform(-1, 1)).clip(0, 1)[:, :, None]  # mostly 0 or 1, and not half of each
    return light + share * (cv2.GaussianBlur(light, (0, 0), rng.uniform(0.1, 1) * softness) - light)


def draw_view(
    rng: np.random.Generator, sharp: np.ndarray, *, zoom: tuple[float, float] = (1, 1), dim: float = 0, soft: float = 0
) -> np.ndarray:
    """`sharp` seen from further away, or a part of it enlarged, so softer; in less light; in parts out of focus.

    Args:
        rng: source of all randomness.
        sharp: uint8 (H, W, 3), encoded as sRGB.
        zoom: the smallest and the largest factor. From 1 up the size stays.
        dim: how much of the light is missing, at most.
        soft: standard deviation of what is out of focus, at most, in pixels.
    """
    factor = np.exp(rng.uniform(*np.log(zoom)))
    height, width = sharp.shape[:2]
    if factor > 1:
        part_height, part_width = max(1, round(height / factor)), max(1, round(width / factor))
        top, left = rng.integers(height - part_height + 1), rng.integers(width - part_width + 1)
        part = sharp[top : top + part_height, left : left + part_width]
        sharp = cv2.resize(part, (width, height), interpolation=cv2.INTER_CUBIC)
    elif factor < 1:
        size = max(1, round(width * factor)), max(1, round(height * factor))
        sharp = cv2.resize(sharp, size, interpolation=cv2.INTER_AREA)
    light = pairs.to_linear(sharp) * np.float32(rng.uniform(1 - dim, 1))
    return pairs.from_linear(out_of_focus(rng, light, soft) if soft else light)


def make_pairs(
    photos: dict[str, Path], arguments: argparse.Namespace
) -> Iterator[tuple[str, str, dict[str, bytes], tuple]]:
    """The photograph's name, a key, the encoded blurred and sharp image, and the shape, for each path of each."""
    for number, (name, photo) in enumerate(photos.items()):
        sharp = read_photo(photo, arguments.largest)
        for copy in range(arguments.copies):
            view_rng = np.random.default_rng((arguments.seed, number, copy, 1))  # exposures are the same without views
            view = draw_view(view_rng, sharp, zoom=arguments.zoom, dim=arguments.dim, soft=arguments.soft)
            rng = np.random.default_rng((arguments.seed, number, copy))
            names = ('length', 'rotation', 'depth', 'objects', 'noise', 'glare')
            blurred = exposure.expose_at_random(rng, view, **{name: getattr(arguments, name) for name in names})
            quality = pairs.draw_quality(rng, arguments.quality)
            top, left = rng.integers(arguments.grid + 1, size=2)  # where JPEG's blocks begin
            pair = {
                'blur': pairs.encode(blurred[top:, left:], 'blur', quality),
                'sharp': pairs.encode(view[top:, left:], 'sharp', quality),
            }
            yield name, f'{name}_{copy:03d}', pair, view[top:, left:].shape


def write_pairs(arguments: argparse.Namespace) -> None:
    shortest, longest = arguments.length
    if not 0 <= shortest <= longest < math.inf:
        raise InputError(f'--length {shortest} {longest}: give the shortest, then the longest, from 0 up')
    if arguments.copies < 1:
        raise InputError(f'--copies {arguments.copies}: at least 1')
    if not 0 <= arguments.depth < 1:
        raise InputError(f'--depth {arguments.depth}: from 0 to less than 1')
    smallest, largest = arguments.zoom
    if not 0 < smallest <= largest < math.inf:
        raise InputError(f'--zoom {smallest} {largest}: give the smallest factor, above 0, then the largest')
    if not 0 <= arguments.dim < 1:
        raise InputError(f'--dim {arguments.dim}: from 0 to less than 1')
    if not 0 <= arguments.objects <= 1:
        raise InputError(f'--objects {arguments.objects}: a probability, from 0 to 1')
    for name in ('soft', 'rotation', 'noise', 'glare', 'grid'):
        if not 0 <= getattr(arguments, name) < math.inf:
            raise InputError(f'--{name} {getattr(arguments, name)}: a number from 0 up')
    if arguments.largest is not None and arguments.largest < 1:
        raise InputError(f'--largest {arguments.largest}: at least 1')
    pairs.check_files_lie_apart(arguments, arguments.photos)
    photos = find_photos(arguments.photos)
    folders = [entry for entry in arguments.photos if entry.is_dir()]
    if others := [path for folder in folders for path in images_under(folder, OTHER_ENDINGS)]:
        endings = ' '.join(sorted({path.suffix.lower() for path in others}))
        print(f'{pairs.counted(len(others), "picture")} left out ({endings}); convert them to JPEG or PNG')
    photos = without_copies(photos)
    check_photos(photos, arguments.largest, grid=arguments.grid, farthest=smallest)
    sizes = dict.fromkeys(photos, arguments.copies)
    with pairs.pair_stores(arguments, sizes, 'photograph') as put:
        made = make_pairs(photos, arguments)
        for pair in tqdm(made, total=sum(sizes.values()), unit='pair', desc=arguments.out.name):
            put(*pair)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('photos', type=Path, nargs='+', help='sharp photographs, or folders of them')
    parser.add_argument('--copies', type=int, default=8, help='blur paths for each photograph (default 8)')
    parser.add_argument(
        '--largest', type=int, metavar='PIXELS',
        help='scale photographs down to so many on the longer side, before they are blurred (default: as they are)',
    )  # fmt: skip
    parser.add_argument(
        '--length', type=float, nargs=2, default=(2, 16), metavar=('MIN', 'MAX'),
        help='length of the paths in pixels; ten times as long takes ten times as long (default 2 16)',
    )  # fmt: skip
    parser.add_argument(
        '--zoom', type=float, nargs=2, default=(1, 1), metavar=('MIN', 'MAX'),
        help='see the photograph by a random factor smaller, or a part of it larger and softer (default 1 1)',
    )  # fmt: skip
    for name, default, meaning in (
        ('soft', 0, 'how far parts of the sharp picture are out of focus, at most: standard deviation in pixels'),
        ('dim', 0, 'how much of the light is missing, at most: 0.8 for a fifth of it'),
        ('rotation', 0.5, 'degrees that the camera rolls, at most'),
        ('depth', 0.5, '0 for a flat scene; 0.5: near things move three times as far as distant ones, at most'),
        ('objects', 0.3, 'probability of an object in front that moves by itself'),
        ('noise', 2, "the sensor's, at most: standard deviation at a middle grey, in grey levels"),
        ('glare', 1, 'how much brighter than white the clipped parts are, at most: 1 for twice'),
    ):
        parser.add_argument(f'--{name}', type=float, default=default, help=f'{meaning} (default {default})')
    parser.add_argument(
        '--grid', type=int, default=0,
        help='cut up to so many pixels off the top and the left, so that the JPEG grid varies (default 0)',
    )  # fmt: skip
    pairs.run(parser, write_pairs)


if __name__ == '__main__':
    main()
