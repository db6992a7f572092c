"""Find what is wrong with a run's frames: quickly before it starts, or by reading all (`basicsr doctor --data`)."""

import io
import math
import operator
from collections.abc import Callable, Iterator, Mapping
from copy import deepcopy
from functools import partial
from pathlib import Path
from typing import Any

from basicsr.utils.registry import DATASET_REGISTRY
from PIL import Image, UnidentifiedImageError

from ..errors import InputError
from ..system.progress_bar import progress_bar
from ..system.threads import without_pillow_size_limit
from .frame_names import is_submitted, number_of
from .image_files import FORMATS, decode_image, images_under
from .jpeg_deblur_dataset import JPEGDeblurDataset, error_in, error_of_small, sources_of
from .lmdb_store import in_own_process, open_store, verify_store

MOST_PIXELS = 1 << 30  # OpenCV's limit
TOOLBOX_DATASETS = ('PairedImageDataset', 'SingleImageDataset')


def quick_problems(
    dataset: Mapping[str, Any], phase: str, *, scale: int = 1, every: int | None = None
) -> Iterator[str]:
    """Yield what is wrong with an option file's data set: its stores or folders, their pairing, the sizes of frames.

    Sizes come from meta_info.txt or from the files' headers; only a file that Pillow cannot open is decoded.

    Args:
        dataset: the section of the option file.
        phase: 'train' or another.
        scale: the option file's: how many times larger sharp frames are in the toolbox's own data sets.
        every: val:submission:every, if it is set: names must then end in the frame's number, as in 000_00000012.
    """
    try:
        for source in sources_of(dataset).values():
            if source.is_store:
                store = open_store(source.root)
                yield from (f'{source.root}: {each}; prepare it again' for each in store.disagreements())
                if store.kind == 'raw' and dataset['type'] != 'JPEGDeblurDataset':
                    yield f'{source.root}: a raw store, which a {dataset["type"]} cannot read; take an encoded one'
            else:
                _check_folder(Path(source.root))
        if dataset['type'] == 'JPEGDeblurDataset':
            data = JPEGDeblurDataset({**dataset, 'phase': phase})
            keys = [frame['key'] for frame in data.frames]
            if every:
                yield from _unfit_for_submission(dataset['name'], keys, every)
            frames = {role: [frame[role] for frame in data.frames] for role in data.sources}
            yield from _wrong_sizes(dataset, phase, keys, frames, agree=operator.eq)
        elif dataset['type'] in TOOLBOX_DATASETS:
            paths = _paths_of_toolbox_dataset(dataset, phase)
            yield from _wrong_sizes(dataset, phase, paths['lq'], paths, agree=_agreement(phase, scale))
    except InputError as error:
        yield str(error)


def _unfit_for_submission(name: str, keys: list[str], every: int) -> Iterator[str]:
    unnumbered = next((key for key in keys if number_of(key) is None), None)
    if unnumbered is not None:
        yield f"data set {name}: '{unnumbered}' does not end in a frame's number, as val:submission needs"
    elif not any(is_submitted(key, every) for key in keys):
        taken = f'{every - 1}, {2 * every - 1}, ...'
        yield f'data set {name}: val:submission:every={every} takes the frames {taken}, none is there; make it smaller'


def _check_folder(folder: Path) -> None:
    if not folder.exists():
        raise InputError(f'{folder}: there is no such folder; prepare it, or correct the path')
    if (folder / 'data.mdb').is_file():
        raise InputError(f'{folder}: a store, not a folder of images; io_backend: {{type: lmdb}} reads it')


def _paths_of_toolbox_dataset(dataset: Mapping[str, Any], phase: str) -> dict[str, list[str]]:
    """Return the paths, or keys in stores, that the toolbox's data set reads, by role; InputError if it cannot."""
    kind = dataset['type']
    if kind == 'PairedImageDataset' and not dataset.get('dataroot_gt'):  # else it would list the current folder
        raise error_in(dataset, f'a {kind} needs dataroot_gt; name it, or take a SingleImageDataset')
    try:
        paths = DATASET_REGISTRY.get(kind)(deepcopy({**dataset, 'phase': phase})).paths
    except Exception as error:  # the toolbox checks few options before it uses them
        reason = ' '.join(f'{type(error).__name__}: {error}'.split())
        raise error_in(dataset, f'{kind} cannot read it ({reason}); correct the names or the options') from error
    if not paths:
        hint = 'it ignores the folders in a folder; a JPEGDeblurDataset reads them'
        raise error_in(dataset, f'{kind} finds no images in {dataset["dataroot_lq"]}; {hint}')
    if kind == 'SingleImageDataset':
        return {'lq': paths}
    return {role: [pair[f'{role}_path'] for pair in paths] for role in ('lq', 'gt')}


def _agreement(phase: str, scale: int) -> Callable[[tuple[int, ...], tuple[int, ...]], bool]:
    """Return a function that tells whether PairedImageDataset pairs a blurred and a sharp frame of given sizes.

    The sharp frame must be `scale` times as large; except in training it may be larger, and is cropped.
    """
    compare = operator.eq if phase == 'train' else operator.ge
    return lambda blurred, sharp: all(compare(s, scale * b) for b, s in zip(blurred, sharp, strict=True))


def _wrong_sizes(
    dataset: Mapping[str, Any],
    phase: str,
    keys: list[str],
    frames: Mapping[str, list[str]],
    agree: Callable[[tuple[int, ...], tuple[int, ...]], bool],
) -> Iterator[str]:
    """Report each role's first frame that does not `agree` with its sharp partner, and the smallest below gt_size."""
    name, sources = dataset['name'], sources_of(dataset)
    sizes = {role: [sources[role].size(frame) for frame in own] for role, own in frames.items()}  # (H, W)
    guide = 'gt' if 'gt' in sizes else 'lq'
    for role in (each for each in sizes if each != guide):
        for key, size, other in zip(keys, sizes[role], sizes[guide], strict=True):
            if not agree(size, other):
                where = f'is {_text(size)} in {sources[role].root} but {_text(other)} in {sources[guide].root}'
                yield f"data set {name}: '{key}' {where}; prepare both from the same frame"
                break
    patch = (dataset.get('gt_size') or 0) if phase == 'train' else 0
    small = [(min(size), key, size) for key, size in zip(keys, sizes[guide], strict=True) if min(size) < patch]
    if small:
        _, key, size = min(small)
        yield str(error_of_small(dataset, key, size, f' (and {len(small) - 1} more)' if small[1:] else ''))


def _text(size: tuple[int, ...]) -> str:
    return f'{size[1]} x {size[0]}'


def all_problems(root: Path | str) -> list[str]:
    """Read all of one store or folder; return what is wrong with it.

    Image files are decoded; those in a store only if nothing else is wrong with it.
    """
    if Path(root).suffix != '.lmdb':
        try:
            return list(_problems_of_files(Path(root)))
        except InputError as error:
            return [str(error)]
    return in_own_process(_read_all, root)


def _problems_of_files(folder: Path) -> Iterator[str]:
    _check_folder(folder)
    images = images_under(folder)
    if not images:
        yield f'{folder}: there are no images in it'
    for path in progress_bar(images, unit='image', desc=str(folder)):
        try:
            problem = _image_problem(path.read_bytes())
        except OSError as error:
            problem = f'cannot be read ({error.strerror})'
        if problem:
            yield f'{path}: {problem}'


def _read_all(root: Path | str) -> list[str]:
    try:
        store = open_store(root)
        if (Path(root) / 'manifest.json').is_file():
            problems = verify_store(root, partial(progress_bar, unit='value', desc=str(root)))
        else:
            problems = [f'{root}: {each}' for each in store.disagreements()]
        if store.kind == 'encoded' and not problems:
            keys = progress_bar(store.keys(), unit='image', desc=str(root))
            by_key = ((key, _image_problem(store.get(key), store.shape(key))) for key in keys)
            problems = [f"{root}: '{key}' {problem}" for key, problem in by_key if problem]
        elif not problems:
            for key in store.keys():
                with store.view(key):  # InputError if the value's size is not its shape's
                    pass
    except InputError as error:
        return [str(error)]
    return problems


def _image_problem(value: bytes, shape: tuple[int, int, int] | None = None) -> str | None:
    """Return what is wrong with an image file, or None. A file whose size differs from `shape` is not decoded."""
    try:
        with without_pillow_size_limit(), Image.open(io.BytesIO(value), formats=FORMATS) as image:
            if shape and image.size != (shape[1], shape[0]):
                return f'is {image.size[0]} x {image.size[1]}, meta_info.txt says {_text(shape)}'
            if math.prod(image.size) > MOST_PIXELS:
                return f'is {image.size[0]} x {image.size[1]}, more pixels than OpenCV takes; scale it down'
            image.load()
    except UnidentifiedImageError:  # OpenCV may know other formats
        return None if decode_image(value) is not None else 'cannot be decoded (it is not an image of a known format)'
    except (OSError, SyntaxError, ValueError) as error:
        return f'cannot be decoded ({error})'
    if decode_image(value) is None:  # a TIFF of floats, say, or a PNG without its end: Pillow reads both
        return 'cannot be decoded by OpenCV, which training uses; convert it to PNG'
    return None
