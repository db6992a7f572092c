"""Make pairs of a blurred JPEG and its sharp image from sharp photographs, in LMDB stores to train and test on.

The camera shakes and rolls during the exposure, near things move more than distant ones, an object in front may move by
itself, the sensor adds noise (exposure.py). Then JPEG compresses, by default at quality 25 as in REDS's track. The
sharp image shows the picture at its average position over the exposure.
"""

import argparse
import math
import os
from functools import lru_cache
from pathlib import Path

import cv2
import numpy as np

import exposure
import pair_script
import pairs
from pair_writer import pair_stores
from workers import Workers, add_workers_option, check_workers
from wrcan_arch.data.image_files import IMAGE_ENDINGS, images_under, is_image, key_for
from wrcan_arch.errors import InputError, refuse
from wrcan_arch.system.progress_bar import progress_bar
from wrcan_arch.system.terminal import counted, say

WIDEST = 32766  # pixels a side, the limit of OpenCV's remap
LARGE = 4_000_000  # pixels
WIDEST_ROLL = 5  # degrees: exposure.py computes only a rotation's linear part, which stretches the picture
NOT_OF_A_PAIR = ('photos', 'out', 'val', 'files', 'copies', 'still', 'workers')  # options that make_pair does not take


def find_photos(inputs: list[Path]) -> dict[str, Path]:
    """Find photographs, by the name that their keys begin with."""
    photos: dict[str, Path] = {}
    found: set[str] = set()
    for entry in inputs:
        if not entry.exists():
            raise InputError(f'{entry}: no such photograph or folder')
        if not entry.is_dir() and not is_image(entry):
            raise InputError(f'{entry}: ends in none of {" ".join(IMAGE_ENDINGS)}; convert it to PNG')
        for path in images_under(entry) if entry.is_dir() else [entry]:
            inside = path.relative_to(entry if entry.is_dir() else entry.parent)
            if os.path.realpath(path) in found:  # or it could be in both parts of --val
                raise InputError(f'{path}: given twice; give it once')
            found.add(os.path.realpath(path))
            other = photos.setdefault(key_for('_'.join(inside.with_suffix('').parts)), path)
            if other is not path:
                # one picture under two names could be in both parts of --val
                advice = 'leave one out if they show the same picture, else rename it'
                more = '' if other.parent == path.parent else ', or give the folder around both'
                raise InputError(f'{other} and {path} have the same name; {advice}{more}')
    if not photos:
        raise InputError(f'{", ".join(map(str, inputs))}: no photographs ({" ".join(IMAGE_ENDINGS)}) found')
    return photos


def look_at(photo: Path, largest: int | None, grid: int, farthest: float) -> tuple[str, int]:
    """Return why no pairs can be made of a photograph, or '', and its number of pixels; see `check_photos`."""
    try:
        height, width = pairs.read_image(photo).shape[:2]
    except InputError as error:
        return str(error), 0
    longer = max(height, width)
    if min(longer, largest or longer) > WIDEST:
        return f'{photo}: is {width} x {height}, too large; set --largest to at most {WIDEST}', 0
    scaled = max(1, round(min(1, (largest or math.inf) / longer) * min(height, width)))
    if grid >= max(1, round(min(1, farthest) * scaled)):
        return f'--grid {grid}: {photo} is {width} x {height}, too small for it; leave the photograph out', 0
    return '', height * width


def check_photos(photos: dict[str, Path], largest: int | None, *, grid: int, farthest: float, workers: Workers) -> None:
    """Raise one InputError for all photographs that are unreadable, too large or too small; print a hint on large ones.

    Each is decoded for this, which takes a small part of the time of its copies.

    Args:
        photos: by name.
        largest: pixels of the longer side that they are scaled down to; None for no limit.
        grid: pixels that may be cut off the top and the left.
        farthest: the smallest zoom.
        workers: decode the photographs.
    """
    looked = workers.in_order(look_at, ((photo, largest, grid, farthest) for photo in photos.values()))
    found = list(progress_bar(looked, total=len(photos), unit='photograph', desc='check photographs'))
    refuse(problem for problem, _ in found if problem)
    large = sum(pixels > LARGE for _, pixels in found)
    if large and not largest:
        say(
            f'{counted(large, "photograph")} of more than {LARGE / 1e6:.0f} megapixels: '
            'a copy takes seconds, and training decodes it whole; --largest 1600 makes them smaller'
        )


@lru_cache(maxsize=1)  # a worker's next copy is often of the same photograph, if there are more copies than workers
def scaled_photo(photo: Path, largest: int | None) -> np.ndarray:
    """Read a photograph, uint8 (H, W, 3) in BGR, upright, scaled down to `largest` pixels on its longer side."""
    sharp = pairs.read_image(photo)
    height, width = sharp.shape[:2]
    scale = (largest or math.inf) / max(height, width)
    if scale >= 1:
        return sharp
    return cv2.resize(
        sharp, (max(1, round(scale * width)), max(1, round(scale * height))), interpolation=cv2.INTER_AREA
    )


def out_of_focus(rng: np.random.Generator, light: np.ndarray, softness: float) -> np.ndarray:
    """Return `light` with near or far parts out of focus, by a Gaussian of at most `softness` pixels."""
    height, width = light.shape[:2]
    distance = exposure.draw_nearness(rng, height, width, depth=1) - 1  # (H, W), -1 to 1
    share = (0.5 + 2 * distance + rng.uniform(-1, 1)).clip(0, 1)[:, :, None]  # mostly 0 or 1, in unequal parts
    return light + share * (cv2.GaussianBlur(light, (0, 0), rng.uniform(0.1, 1) * softness) - light)


def draw_view(
    rng: np.random.Generator, sharp: np.ndarray, *, zoom: tuple[float, float] = (1, 1), dim: float = 0, soft: float = 0
) -> np.ndarray:
    """Return `sharp` scaled down, or a part of it enlarged and so softer; dimmed; partly out of focus.

    Args:
        rng: source of all randomness.
        sharp: uint8 (H, W, 3), encoded as sRGB.
        zoom: the smallest and the largest factor; from 1 up the picture keeps its size.
        dim: the largest share of the light that is taken away.
        soft: the largest standard deviation of the blur of parts out of focus, in pixels.
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
    if not dim and not soft:
        return sharp  # to linear light and back would change nothing
    light = pairs.to_linear(sharp) * np.float32(rng.uniform(1 - dim, 1))
    return pairs.from_linear(out_of_focus(rng, light, soft) if soft else light)


def is_still(index: int, share: float) -> bool:
    """Whether nothing moves in copy `index`, as in a `share` of all copies: at 0.25 in 3, 7, 11 and so on."""
    return int((index + 1) * share) > int(index * share)


def make_pair(
    photo: Path, number: int, copy: int, still: bool, options: argparse.Namespace
) -> tuple[dict[str, bytes], tuple]:
    """Make pair `copy` of photograph `number`; return the encoded images by role, and their shape (H, W, 3)."""
    sharp = scaled_photo(photo, options.largest)
    view_rng = np.random.default_rng((options.seed, number, copy, 1))  # a stream of its own: exposures stay the same
    view = draw_view(view_rng, sharp, zoom=options.zoom, dim=options.dim, soft=options.soft)
    rng = np.random.default_rng((options.seed, number, copy))
    exposed = {name: getattr(options, name) for name in ('length', 'rotation', 'depth', 'objects', 'noise', 'glare')}
    if still:
        exposed['length'] = (0, 0)
    blurred = exposure.expose_at_random(rng, view, **exposed)
    quality = pairs.draw_quality(rng, options.quality)
    top, left = rng.integers(options.grid + 1, size=2)  # moves the grid of JPEG's blocks
    pair = {
        'blur': pairs.encode(blurred[top:, left:], 'blur', quality),
        'sharp': pairs.encode(view[top:, left:], 'sharp', quality),
    }
    return pair, view[top:, left:].shape


def check(arguments: argparse.Namespace) -> None:
    check_workers(arguments)
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
    if not 0 <= arguments.still <= 1:
        raise InputError(f'--still {arguments.still}: a share of all copies, from 0 to 1')
    for name in ('soft', 'rotation', 'noise', 'glare', 'grid'):
        if not 0 <= getattr(arguments, name) < math.inf:
            raise InputError(f'--{name} {getattr(arguments, name)}: a number from 0 up')
    if arguments.rotation > WIDEST_ROLL:
        reason = 'the script cannot compute a larger roll'
        raise InputError(f'--rotation {arguments.rotation}: at most {WIDEST_ROLL} degrees; {reason}')
    if arguments.largest is not None and arguments.largest < 1:
        raise InputError(f'--largest {arguments.largest}: at least 1')


def write_pairs(arguments: argparse.Namespace) -> None:
    check(arguments)
    pair_script.check_files_lie_apart(arguments, arguments.photos)
    photos = find_photos(arguments.photos)
    pair_script.check_names_fit(arguments, photos, f'_{arguments.copies - 1:03d}')
    pairs.say_what_is_left_out(arguments.photos, photos.values(), 'convert those that are pictures to JPEG or PNG')
    photos = pairs.without_copies(photos, 'picture')
    pair_counts = dict.fromkeys(photos, arguments.copies)
    total = sum(pair_counts.values())
    options = argparse.Namespace(
        **{name: value for name, value in vars(arguments).items() if name not in NOT_OF_A_PAIR}
    )
    with Workers(min(arguments.workers, total)) as workers:
        check_photos(photos, arguments.largest, grid=arguments.grid, farthest=arguments.zoom[0], workers=workers)
        with pair_stores(arguments, pair_counts, 'photograph') as writer:
            missing, calls = [], []
            for number, (name, photo) in enumerate(photos.items()):
                fingerprint = pairs.fingerprint_of([photo])
                for copy in range(arguments.copies):
                    still = is_still(number * arguments.copies + copy, arguments.still)
                    key, source = f'{name}_{copy:03d}', pairs.source_checksum(options, fingerprint, number, copy, still)
                    if not writer.keep(name, key, source):
                        missing.append((name, key, source))
                        calls.append((photo, number, copy, still, options))
            made = workers.in_order(make_pair, calls)
            progress = progress_bar(
                made, total=total, initial=total - len(missing), unit='pair', desc=arguments.out.name
            )
            for (name, key, source), (pair, shape) in zip(missing, progress, strict=True):
                writer.put(name, key, pair, shape, source)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('photos', type=Path, nargs='+', help='sharp photographs, or folders of them')
    parser.add_argument('--copies', type=int, default=8, help='blurred copies of each photograph (default 8)')
    parser.add_argument(
        '--largest', type=int, metavar='PIXELS',
        help='before blurring, scale larger photographs down to this longer side (default: do not)',
    )  # fmt: skip
    parser.add_argument(
        '--length', type=float, nargs=2, default=(2, 16), metavar=('MIN', 'MAX'),
        help='length of the blur paths in pixels; ten times the length takes ten times the time (default 2 16)',
    )  # fmt: skip
    parser.add_argument(
        '--zoom', type=float, nargs=2, default=(1, 1), metavar=('MIN', 'MAX'),
        help='random factor: below 1 shows the photograph smaller, above 1 a part of it larger and softer '
        '(default 1 1)',
    )  # fmt: skip
    for name, default, meaning in (
        ('still', 0, 'share of all copies in which nothing moves, to train a network to keep sharp photographs sharp'),
        ('soft', 0, 'how far parts of the sharp picture are out of focus at most, as a standard deviation in pixels'),
        ('dim', 0, 'largest share of the light that is missing: 0.8 leaves a fifth of it'),
        ('rotation', 0.5, f'largest roll of the camera in degrees, up to {WIDEST_ROLL}'),
        ('depth', 0.5, '0 for a flat scene; with 0.5 near things move up to three times as far as distant ones'),
        ('objects', 0.3, 'probability of an object in front that moves by itself'),
        ('noise', 2, 'largest noise of the sensor: standard deviation at a middle grey, in grey levels'),
        ('glare', 1, 'how much brighter than white the clipped parts are at most: 1 for twice as bright'),
    ):
        parser.add_argument(f'--{name}', type=float, default=default, help=f'{meaning} (default {default})')
    parser.add_argument(
        '--grid', type=int, default=0,
        help='cut up to this many pixels off the top and the left, so that the JPEG grid varies (default 0)',
    )  # fmt: skip
    add_workers_option(parser)
    pair_script.run(parser, write_pairs)


if __name__ == '__main__':
    main()
