"""Convert REDS as it is downloaded, folders or zip files, to LMDB stores.

Blurred frames keep their JPEG bytes. Sharp frames keep their PNG bytes, or become rows of pixels (`--store raw`), from
which a crop is read without decoding a frame; JPEGDeblurDataset can read those, BasicSR's own data sets cannot. Each
frame is decoded once, so that no unreadable one is stored.

After a run was stopped or killed, the next one writes what is missing. A store gets its name when it is complete; until
then it is NAME.lmdb.partial.
"""

import argparse
import re
import sys
import zipfile
import zlib
from collections.abc import Collection, Iterator
from functools import cache, partial
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np

import script
from workers import Workers, add_workers_option, check_workers
from wrcan_arch.data.lmdb_store import RAW_ENDING, in_own_process, open_store, stores_in, verify_store
from wrcan_arch.data.store_writer import StoreWriter
from wrcan_arch.errors import SHOWN_PROBLEMS, InputError
from wrcan_arch.system.folders import walk
from wrcan_arch.system.progress_bar import progress_bar
from wrcan_arch.system.terminal import counted, print_error, say

SEQUENCES = {'train': 240, 'val': 30, 'test': 30}
FRAMES = 100  # in each sequence
SIZE = (720, 1280)
SETS = ('train_blur_jpeg', 'train_sharp', 'val_blur_jpeg', 'val_sharp', 'test_blur_jpeg')  # test_sharp is not public
USES = {'train': 'training', 'val': 'validation and no tests of Tables 1 and 2', 'test': 'Table 3'}
ENDINGS = {'blur_jpeg': '.jpg', 'sharp': '.png'}
FRAME_PATH = re.compile(rf'(?:.*/)?({"|".join(SETS)})/(\d{{3}})/(\d{{8}})(\.\w+)', re.ASCII)
REDS_ZIP = re.compile(r'(train|val|test)_(blur|sharp)(_bicubic|_comp|_jpeg)?')
PNG_START = b'\x89PNG\r\n\x1a\n'
JPEG_START, JPEG_SCAN, JPEG_END = b'\xff\xd8', b'\xff\xda', b'\xff\xd9'


class Frame(NamedTuple):
    """A frame that was found and is not read yet."""

    key: str
    path: Path  # of the frame's own file, or of the zip file that holds it
    member: str  # its name in the zip file; '' for a file of its own
    source: str  # size, and checksum or time of change: shows a change without reading the frame

    def __str__(self) -> str:
        return f'{self.path}: {self.member}' if self.member else str(self.path)


def placed(name: re.Match[str], path: Path, member: str, source: str) -> tuple[str, Frame]:
    """Return a frame's set and the frame, from the match of FRAME_PATH; InputError for a wrong ending."""
    set_name, sequence, number, ending = name.groups()
    frame = Frame(f'{sequence}_{number}', path, member, source)
    expected = ENDINGS[set_name.partition('_')[2]]
    if ending != expected:
        raise InputError(f'{frame}: the frames of {set_name} are {expected} files; move it away or download REDS again')
    return set_name, frame


def frames_in_zip(path: Path) -> Iterator[tuple[str, Frame]]:
    try:
        with zipfile.ZipFile(path) as file:
            members = file.infolist()
    except (zipfile.BadZipFile, NotImplementedError, OSError) as error:  # the second: a newer version of the format
        raise InputError(f'{path}: not a whole zip file ({error}); download it again or move it away') from error
    for member in members:
        if name := FRAME_PATH.fullmatch(member.filename):
            source = f'{member.file_size} bytes with CRC-32 {member.CRC:08x}'
            yield placed(name, path, member.filename, source)


def frames_in_files(files: list[Path]) -> Iterator[tuple[str, Frame]]:
    for path in files:
        if name := FRAME_PATH.fullmatch(path.as_posix()):
            status = path.stat()
            yield placed(name, path, '', f'{status.st_size} bytes changed at {status.st_mtime_ns}')


def files_under(downloads: list[Path]) -> list[Path]:
    files = []
    for download in downloads:
        if not download.exists():
            raise InputError(f'{download}: no such folder or zip file')
        if download.is_file():
            files.append(download.absolute())
        else:
            files += [folder / name for folder, names in walk(download.absolute()) for name in names]
    return sorted(files)


def find_frames(downloads: list[Path], splits: list[str]) -> dict[str, dict[str, Frame]]:
    """Find the frames of each set of `splits`, sorted by key. A frame in a zip file takes precedence over its file."""
    wanted = [name for name in SETS if name.partition('_')[0] in splits]
    files = files_under(downloads)
    zips = [path for path in files if path.suffix.lower() == '.zip']
    other = {path for path in zips if REDS_ZIP.fullmatch(path.stem) and path.stem not in wanted}
    found: dict[str, dict[str, Frame]] = {name: {} for name in wanted}
    for frames in (frames_in_files(files), *(frames_in_zip(path) for path in zips if path not in other)):
        for set_name, frame in frames:
            if set_name not in found:
                continue
            before = found[set_name].get(frame.key)
            if before and before.member == frame.member and before.path.samefile(frame.path):
                continue
            if before and bool(before.member) == bool(frame.member):
                raise InputError(f'{before} and {frame}: the same frame twice; move one of them away')
            found[set_name][frame.key] = frame
    return {name: dict(sorted(frames.items())) for name, frames in found.items() if frames}


def check_names(found: dict[str, dict[str, Frame]], any_size: bool) -> None:
    """Raise InputError for sets whose frames are not REDS's (unless `any_size`), and for frames without a partner."""
    for name, frames in found.items():
        split, _, role = name.partition('_')
        reds = {f'{sequence:03d}_{number:08d}' for sequence in range(SEQUENCES[split]) for number in range(FRAMES)}
        differences = {'missing': reds - frames.keys(), 'too many': frames.keys() - reds}
        for what, keys in differences.items():
            if keys and not any_size:
                raise InputError(
                    f'{name}: {counted(len(keys), "frame")} {what} ({len(frames)} found, REDS has {len(reds)}), '
                    f'the first is {min(keys).replace("_", "/")}{ENDINGS[role]}; download it again, or give --any-size'
                )
    for split in SEQUENCES:
        blurred, sharp = f'{split}_blur_jpeg', f'{split}_sharp'
        if blurred in found and sharp in found and (unpaired := found[blurred].keys() ^ found[sharp].keys()):
            first = min(unpaired)
            frame, partner = (found[blurred], sharp) if first in found[blurred] else (found[sharp], blurred)
            count = counted(len(unpaired), 'frame')
            raise InputError(
                f'{frame[first]}: there is no such frame in {partner} ({count} without a partner); '
                'remove those without one, or download it again'
            )


def png_problem(value: bytes) -> str | None:
    """Return what is wrong with a PNG file's chunks, or None: not every OpenCV refuses a cut or damaged file."""
    if not value.startswith(PNG_START):
        return 'not a PNG file'
    start, kind = len(PNG_START), b''
    while kind != b'IEND':
        kind, end = value[start + 4 : start + 8], start + 12 + int.from_bytes(value[start : start + 4], 'big')
        if len(kind) < 4 or end > len(value):
            return 'it was cut'
        if zlib.crc32(value[start + 4 : end - 4]) != int.from_bytes(value[end - 4 : end], 'big'):
            return f'its {kind.decode("ascii", "replace")} chunk is damaged'
        start = end
    return None


def jpeg_problem(value: bytes) -> str | None:
    """Return what is wrong with a JPEG file, or None. The searches are safe: no such marker occurs inside a scan."""
    if not value.startswith(JPEG_START):
        return 'not a JPEG file'
    return None if value.rfind(JPEG_END) > value.rfind(JPEG_SCAN) > 0 else 'it was cut'


def decode(value: bytes, ending: str, size: tuple[int, int] | None) -> np.ndarray:
    """Decode a frame to uint8 (H, W, 3) in BGR; ValueError if it is damaged, no 8-bit colour image or not of `size`."""
    problem = png_problem(value) if ending == '.png' else jpeg_problem(value)
    if problem:
        raise ValueError(problem)
    try:
        image = cv2.imdecode(np.frombuffer(value, np.uint8), cv2.IMREAD_UNCHANGED)
    except cv2.error as error:
        raise ValueError(f'OpenCV cannot decode it ({error.err})') from error
    if image is None:
        raise ValueError('OpenCV cannot decode it')
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
        raise ValueError(f'not an 8-bit colour image but {image.dtype} of shape {image.shape}')
    if size and image.shape[:2] != size:
        raise ValueError(f'it is {image.shape[1]} x {image.shape[0]}, not {size[1]} x {size[0]} like the others')
    return image


@cache
def _zip_of_this_worker(path: Path) -> zipfile.ZipFile:
    return zipfile.ZipFile(path)


def read_frame(frame: Frame) -> bytes:
    try:
        return _zip_of_this_worker(frame.path).read(frame.member) if frame.member else frame.path.read_bytes()
    except (zipfile.BadZipFile, zlib.error, EOFError, OSError, RuntimeError) as error:
        raise InputError(f'{frame}: cannot be read ({error}); download it again') from error


def load_frame(frame: Frame, size: tuple[int, int] | None, raw: bool) -> tuple[bytes, tuple[int, ...]]:
    """Read and decode a frame; return the value to store and its shape (H, W, C). InputError if it is faulty.

    Args:
        frame: what to read.
        size: (H, W) that it must have; None for any.
        raw: return rows of pixels, not the file's own bytes.
    """
    value = read_frame(frame)
    try:
        image = decode(value, Path(frame.member or frame.path).suffix, size)
    except ValueError as error:
        raise InputError(f'{frame}: {error}; download it again') from error
    return image.tobytes() if raw else value, image.shape


def check_store(path: Path, frames: dict[str, Frame], kind: str, size: tuple[int, int]) -> None:
    """Raise InputError if the existing store has another kind, other frames or other sizes than the one wanted."""
    store = open_store(path)
    if store.kind != kind:
        raise InputError(f'{path}: exists already and is {store.kind}, not {kind}; remove it or choose another --out')
    if store.keys() != list(frames) or any(store.shape(key)[:2] != size for key in frames):
        raise InputError(f'{path}: exists already with other frames; remove it or choose another --out')


def write_store(path: Path, frames: dict[str, Frame], ending: str, size: tuple[int, int], workers: Workers) -> None:
    """Write the missing frames into the store at `path`, as files with that ending, or as rows (RAW_ENDING)."""
    kind = 'raw' if ending == RAW_ENDING else 'encoded'
    with StoreWriter(path, kind=kind, resume=True) as store:
        missing = []
        for key, frame in frames.items():
            record = store.resumed.get(key)
            if record and (record.source, record.shape[:2], record.ending) == (frame.source, size, ending):
                store.keep(key)
            else:
                missing.append(frame)
        kept = len(frames) - len(missing)
        with progress_bar(total=len(frames), initial=kept, unit='frame', desc=path.name) as progress:
            loaded = workers.in_order(load_frame, ((frame, size, kind == 'raw') for frame in missing))
            for frame, (value, shape) in zip(missing, loaded, strict=True):
                store.put(frame.key, ending, value, shape, frame.source)
                progress.update()
    say(f'{path}: {counted(len(frames), "frame")}' + (f', {kept} of them from an earlier run' if kept else ''))


def missing_uses(found: Collection[str], arguments: argparse.Namespace) -> list[str]:
    """Return what cannot be done with the sets found and the existing stores, and which sets are missing for it."""
    wanted = [name for name in SETS if name not in found and not (arguments.out / f'{name}.lmdb').exists()]
    lacking = {split: [name for name in wanted if name.startswith(split)] for split in arguments.splits}
    return [f'no {USES[split]} without {" and ".join(names)}' for split, names in lacking.items() if names]


def prepare(arguments: argparse.Namespace) -> None:
    check_workers(arguments)
    found = find_frames(arguments.downloads, arguments.splits)
    if not found:
        where, wanted = ' '.join(map(str, arguments.downloads)), ' '.join(arguments.splits)
        raise InputError(f'{where}: no frames of REDS ({wanted}) such as train_sharp/000/00000000.png, or zips of them')
    check_names(found, arguments.any_size)
    if lacking := missing_uses(found.keys(), arguments):
        say(f'warning: {"; ".join(lacking)}')
    sizes = {} if arguments.any_size else dict.fromkeys(SEQUENCES, SIZE)
    with Workers(arguments.workers) as workers:
        missing = []
        for name, frames in found.items():
            split, _, role = name.partition('_')
            if split not in sizes:
                height, width = workers.call(load_frame, next(iter(frames.values())), None, False)[1][:2]
                sizes[split] = height, width
            ending = RAW_ENDING if arguments.store == 'raw' and role == 'sharp' else ENDINGS[role]
            path = arguments.out / f'{name}.lmdb'
            if path.exists():
                check_store(path, frames, 'raw' if ending == RAW_ENDING else 'encoded', sizes[split])
                say(f'{path}: {counted(len(frames), "frame")}, exists already')
            else:
                missing.append((path, frames, ending, sizes[split]))
        for store in missing:  # after all existing ones were checked
            write_store(*store, workers)


def find_stores(places: list[Path]) -> list[Path]:
    """Return the stores that are given or lie in a given folder."""
    stores: list[Path] = []
    for place in places:
        found = stores_in(place)
        if not found:
            raise InputError(f'{place}: no store and no folder of stores; give one, such as datasets/REDS')
        stores += found
    return stores


def verify(stores: list[Path]) -> int:
    """Print what is wrong with each store; return how many are not sound."""
    failed = 0
    for path in stores:
        read = partial(verify_store, progress=partial(progress_bar, unit='value', desc=path.name))
        problems = in_own_process(read, path)
        for problem in problems[:SHOWN_PROBLEMS]:
            print_error(f'prepare_reds: {problem}')
        if problems:
            failed += 1
            count = counted(len(problems), 'problem')
            print_error(f'prepare_reds: {path}: {count}; move it away and prepare it again')
        else:
            say(f'{path}: sound')
    return failed


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        'downloads', type=Path, nargs='*',
        help=f'zip files or folders of REDS, or folders that hold them: {", ".join(SETS)}',
    )  # fmt: skip
    parser.add_argument(
        '-o', '--out', type=Path, default=Path('datasets/REDS'),
        help='folder to write train_blur_jpeg.lmdb, train_sharp.lmdb and so on to (default datasets/REDS)',
    )  # fmt: skip
    parser.add_argument(
        '--store', choices=('encoded', 'raw'), default='encoded',
        help='how sharp frames are stored: encoded, as PNG, or raw, as rows (three times the space, no decoding); '
        'blurred frames are always stored as JPEG',
    )  # fmt: skip
    parser.add_argument(
        '--splits',
        nargs='+',
        choices=list(SEQUENCES),
        default=list(SEQUENCES),
        help='parts of REDS to look for (default all)',
    )
    add_workers_option(parser)
    parser.add_argument(
        '--any-size', action='store_true', help="accept another number and size of frames than REDS's, such as a subset"
    )
    parser.add_argument(
        '--verify', type=Path, nargs='+', metavar='STORE',
        help='write nothing; compare these stores, or all stores in a folder, with their manifests',
    )  # fmt: skip
    arguments = parser.parse_args()
    if bool(arguments.downloads) == bool(arguments.verify):
        parser.error('give DOWNLOADS to prepare, or --verify STORE')
    with script.errors_in_one_line(stopped='stopped' if arguments.verify else script.GO_ON):
        if arguments.verify:
            sys.exit(1 if verify(find_stores(arguments.verify)) else 0)
        prepare(arguments)


if __name__ == '__main__':
    main()
