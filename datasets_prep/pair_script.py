"""Run a script that makes pairs: add the common options, and check them and the names that it is to write."""

import argparse
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

from pair_writer import store_names
from pairs import FILE_ENDINGS, out_name, quality_range
from script import GO_ON, errors_in_one_line
from wrcan_arch.data.store_writer import LONGEST_KEY, is_complete, partial_of
from wrcan_arch.errors import InputError
from wrcan_arch.system.files import LONGEST_NAME, check_writable, refuse_link
from wrcan_arch.system.folders import ignores_case, is_one_of
from wrcan_arch.system.terminal import say


def folders_of(arguments: argparse.Namespace) -> list[Path]:
    return [Path(name) for name in store_names(arguments) if arguments.files]


def stores_of(arguments: argparse.Namespace) -> list[Path]:
    return [Path(f'{name}.lmdb') for name in store_names(arguments)]


def check_names(arguments: argparse.Namespace) -> None:
    """Raise InputError if what the run is to write exists, its folders cannot be used or nothing can be written."""
    names = [*folders_of(arguments), *stores_of(arguments)]
    left = ', '.join(str(partial) for partial in map(partial_of, names) if partial.exists())
    is_whole = any(map(is_complete, stores_of(arguments)))
    stopped = f', or if a run was stopped while it renamed them, take .partial off {left}' if is_whole else ''
    if there := [str(path) for path in names if path.exists()]:
        advice = 'exists already; remove it' if len(there) == 1 else 'exist already; remove them'
        raise InputError(f'{", ".join(there)}: {advice} or choose another name{stopped}')
    for folder in map(partial_of, folders_of(arguments)):
        refuse_link(folder)
        for inside in folder.iterdir() if folder.is_dir() else ():
            refuse_link(inside)
            if inside.is_dir():
                raise InputError(f'{inside}: a folder among the images of a stopped run; move it away')
    place = arguments.out.parent
    check_writable(next(each for each in (place, *place.parents) if each.exists()))


def say_what_is_not_used(arguments: argparse.Namespace) -> None:
    """Print what a stopped run with other --val or --files has left under this name."""
    names = [f'{arguments.out}{side}_{role}' for side in ('', '_train', '_val') for role in FILE_ENDINGS]
    unused = {Path(f'{name}{ending}') for name in names for ending in ('', '.lmdb')}
    unused.difference_update(folders_of(arguments), stores_of(arguments))
    if left := ', '.join(str(path) for path in sorted(map(partial_of, unused)) if path.exists()):
        say(f'not used, left by another run (stopped or still at work) with another --val or --files: {left}')


def check_common_options(arguments: argparse.Namespace) -> None:
    """Check the options of `run`; convert `arguments.quality` to (lowest, highest) and `arguments.out` to a Path."""
    arguments.out = out_name(arguments.out)
    arguments.quality = quality_range(arguments.quality)
    if arguments.val is not None and not 0 < arguments.val < 1:
        raise InputError(f'--val {arguments.val}: give a fraction between 0 and 1, such as 0.1')
    if arguments.seed < 0:
        raise InputError(f'--seed {arguments.seed}: at least 0')


def check_files_lie_apart(arguments: argparse.Namespace, inputs: Iterable[Path]) -> None:
    """Raise InputError if --files would lie in a folder of `inputs`: the next run would take them for inputs."""
    for entry in inputs if arguments.files else ():
        if entry.is_dir() and is_one_of(entry.resolve(), arguments.out.resolve().parents):
            raise InputError(f'-o {arguments.out}: its --files would lie in {entry}; choose a folder elsewhere')


def check_names_fit(arguments: argparse.Namespace, found: Mapping[str, Path], more: str) -> None:
    """Raise InputError if a pair's name, one in `found` with `more` appended, is not fit for a store or --files.

    It may be too long, or differ from another only in case on a disk that ignores case.
    """
    fit = LONGEST_NAME - max(map(len, FILE_ENDINGS.values())) if arguments.files else LONGEST_KEY
    for name, path in found.items():
        if (length := len(name + more)) > fit:
            advice = "shorten its name, or its folders'"
            raise InputError(f'{path}: its pairs would have names of {length} letters, at most {fit} fit; {advice}')
    alike: dict[str, Path] = {}
    for name, path in found.items() if arguments.files and ignores_case(arguments.out.parent) else ():
        if (other := alike.setdefault(name.lower(), path)) is not path:
            advice = 'rename one, or leave --files out'
            message = 'their --files would have the same names, as the disk ignores case'
            raise InputError(f'{other} and {path}: {message}; {advice}')


def run(parser: argparse.ArgumentParser, write_pairs: Callable[[argparse.Namespace], None]) -> None:
    """Add the common options to `parser`, check them and call `write_pairs`; exit as `errors_in_one_line` does."""
    parser.add_argument('-o', '--out', required=True, help='OUT_blur.lmdb and OUT_sharp.lmdb are written')
    parser.add_argument(
        '--val', type=float, metavar='FRACTION',
        help='keep about this fraction of the pairs for validation, by whole photographs or videos (of a single video '
        'by its scenes): writes OUT_train_* and OUT_val_*',
    )  # fmt: skip
    parser.add_argument(
        '--quality', default='25', help='JPEG quality, or a range to draw it from, such as 15-95 (default 25)'
    )
    parser.add_argument('--seed', type=int, default=0, help='seed of all that is drawn at random (default 0)')
    parser.add_argument('--files', action='store_true', help='also write the images as files: OUT_blur/, OUT_sharp/')
    arguments = parser.parse_args()
    with errors_in_one_line(stopped=GO_ON):
        check_common_options(arguments)
        check_names(arguments)
        say_what_is_not_used(arguments)
        write_pairs(arguments)
