"""What the scripts that make training pairs share: light, encoding, stores split by scene, options, the exit code.

A pair is a blurred JPEG and its sharp PNG. A scene is what must not be on both sides of a split: a photograph with all
its blurred copies, or a video between two cuts.
"""

import argparse
import hashlib
import shutil
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path

import cv2
import numpy as np

from wrcan_arch.errors import InputError
from wrcan_arch.train.lmdb_store import StoreWriter

FILE_ENDINGS = {'blur': '.jpg', 'sharp': '.png'}

Put = Callable[[str, str, dict[str, bytes], tuple], None]


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


def quality_range(text: str) -> tuple[int, int]:
    """The lowest and the highest JPEG quality of '25' or '15-95'."""
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
    """The image file of a pair's `role`: 'blur', a JPEG of that quality, or 'sharp', a PNG."""
    parameters = [cv2.IMWRITE_JPEG_QUALITY, quality] if role == 'blur' else [cv2.IMWRITE_PNG_COMPRESSION, 3]
    return cv2.imencode(FILE_ENDINGS[role], image, parameters)[1].tobytes()


def counted(number: int, noun: str) -> str:
    return f'{number} {noun}' if number == 1 else f'{number} {noun}s'


def choose_validation(sizes: Mapping[str, int], fraction: float, seed: int) -> set[str]:
    """Scenes drawn at random, with about `fraction` of all pairs where none is large: one at least, and never all.

    A scene's place in the draw comes from its own name. So where a few are added, those that the weights were trained
    on before stay on the side of training.

    Args:
        sizes: how many pairs each scene has; two scenes or more.
        fraction: between 0 and 1, without either.
        seed: of the draw.
    """
    room = fraction * sum(sizes.values())
    chosen, rest = set(), []
    for name in sorted(sizes, key=lambda name: hashlib.sha256(f'{seed} {name}'.encode()).digest()):
        if sizes[name] <= room:
            chosen.add(name)
            room -= sizes[name]
        else:
            rest.append(name)
    smallest = min(rest, key=lambda name: sizes[name])
    if not chosen or (len(rest) > 1 and sizes[smallest] <= 2 * room):  # the nearest, not what is below
        chosen.add(smallest)
    return chosen


def split_scenes(sizes: Mapping[str, int], fraction: float | None, seed: int) -> dict[str, str]:
    """What comes after OUT in the name of each scene's stores: '_train' or '_val', or '' without a split."""
    if fraction is None:
        return dict.fromkeys(sizes, '')
    if len(sizes) == 1:
        raise InputError(f'--val {fraction}: there is only one scene, {next(iter(sizes))}; give more, or no --val')
    validation = choose_validation(sizes, fraction, seed)
    return {scene: '_val' if scene in validation else '_train' for scene in sizes}


@contextmanager
def _new_folder(path: Path) -> Iterator[Path]:
    """A folder under a temporary name, which gets its own when all went well."""
    if path.exists():
        raise InputError(f'{path}: exists already; remove it or choose another name')
    partial = path.with_name(f'{path.name}.partial')
    shutil.rmtree(partial, ignore_errors=True)  # of a process that was killed
    partial.mkdir(parents=True)
    try:
        yield partial
    except BaseException:
        shutil.rmtree(partial)
        raise
    partial.rename(path)


@contextmanager
def pair_stores(arguments: argparse.Namespace, sizes: Mapping[str, int], noun: str) -> Iterator[Put]:
    """Gives `put(scene, key, {'blur': bytes, 'sharp': bytes}, shape)`, and says at the end what was written.

    Args:
        arguments: with the options of `run`.
        sizes: how many pairs each scene has.
        noun: what a scene is called in the report: 'photograph'.
    """
    sides = split_scenes(sizes, arguments.val, arguments.seed)
    out = arguments.out
    with ExitStack() as stack:
        names = [f'{out}{side}_{role}' for side in set(sides.values()) for role in FILE_ENDINGS]
        stores = {name: stack.enter_context(StoreWriter(f'{name}.lmdb')) for name in names}
        folders = {name: stack.enter_context(_new_folder(Path(name))) for name in names if arguments.files}

        made: Counter[str] = Counter()  # which may be less than was planned

        def put(scene: str, key: str, pair: dict[str, bytes], shape: tuple) -> None:
            made[scene] += 1
            for role, value in pair.items():
                name = f'{out}{sides[scene]}_{role}'
                stores[name].put(key, FILE_ENDINGS[role], value, shape)
                if arguments.files:
                    (folders[name] / f'{key}{FILE_ENDINGS[role]}').write_bytes(value)

        yield put
        for store in stores.values():
            store.complete()
    for side in sorted(set(sides.values())):
        here = [scene for scene in made if sides[scene] == side]
        count = sum(made[scene] for scene in here)
        print(f'{out}{side}: {counted(count, "pair")} ({len(here)} of {counted(len(sizes), noun)})')


def out_name(text: str) -> Path:
    """What stores' names begin with, from -o; InputError where it is a folder, beside which they would lie."""
    if text.endswith('/') or Path(text).is_dir():
        raise InputError(f'-o {text}: a folder; give a name in it, such as {Path(text, "mine")}')
    return Path(text)


def prepare(arguments: argparse.Namespace) -> None:
    """Checks the common options; the quality becomes a range, the name a path."""
    arguments.out = out_name(arguments.out)
    arguments.quality = quality_range(arguments.quality)
    if arguments.val is not None and not 0 < arguments.val < 1:
        raise InputError(f'--val {arguments.val}: give a fraction between 0 and 1, such as 0.1')
    if arguments.seed < 0:
        raise InputError(f'--seed {arguments.seed}: at least 0')


def check_files_lie_apart(arguments: argparse.Namespace, inputs: Iterable[Path]) -> None:
    """InputError if --files would lie in a folder of `inputs`: the next run would take them for new ones."""
    for entry in inputs if arguments.files else ():
        if entry.is_dir() and entry.resolve() in arguments.out.resolve().parents:
            raise InputError(f'-o {arguments.out}: its --files would lie in {entry}; choose a folder elsewhere')


@contextmanager
def errors_in_one_line(*, stopped: str = 'stopped') -> Iterator[None]:
    """A wrong request ends the script with one line and exit code 2, Ctrl+C with 130 and what `stopped` says."""
    name = Path(sys.argv[0]).stem
    try:
        yield
    except (InputError, OSError) as error:
        message = str(error)
        if isinstance(error, OSError) and error.filename:
            message = f'{error.filename}: cannot be read or written ({error.strerror}); choose another path'
        print(f'{name}: {message}', file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print(f'{name}: {stopped}', file=sys.stderr)
        sys.exit(130)


def run(parser: argparse.ArgumentParser, write_pairs: Callable[[argparse.Namespace], None]) -> None:
    """Adds the common options, and does the work."""
    parser.add_argument('-o', '--out', required=True, help='OUT_blur.lmdb and OUT_sharp.lmdb are written')
    parser.add_argument(
        '--val', type=float, metavar='FRACTION',
        help='keep whole scenes, about this fraction of the pairs, for validation: writes OUT_train_* and OUT_val_*',
    )  # fmt: skip
    parser.add_argument('--quality', default='25', help='JPEG quality, 25, or a range to draw from, 15-95 (default 25)')
    parser.add_argument('--seed', type=int, default=0, help='of all that is drawn at random (default 0)')
    parser.add_argument('--files', action='store_true', help='also write the images as files: OUT_blur/, OUT_sharp/')
    arguments = parser.parse_args()
    with errors_in_one_line():
        prepare(arguments)
        write_pairs(arguments)
