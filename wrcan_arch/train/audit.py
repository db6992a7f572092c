"""What is wrong with the frames of a run: quickly, before it starts, or value by value (`basicsr doctor --data`)."""

import io
import re
import warnings
from collections.abc import Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

from PIL import Image

from ..errors import InputError
from .jpeg_deblur_dataset import JPEGDeblurDataset, roots_of
from .lmdb_store import IMAGE_ENDINGS, open_store, verify_store


def quick_problems(dataset: Mapping[str, Any], phase: str, *, numbered: bool = False) -> Iterator[str]:
    """Of one data set of an option file: its stores, their pairing, the frames' sizes. No value is read.

    Args:
        dataset: the section of the option file.
        phase: 'train' or another.
        numbered: whether names have to end in the frame's number, as in 000_00000012.
    """
    roots = roots_of(dataset) if (dataset.get('io_backend') or {}).get('type') == 'lmdb' else {}
    try:
        for root in roots.values():
            yield from (f'{root}: {each}; prepare it again' for each in open_store(root).disagreements())
        if dataset['type'] == 'JPEGDeblurDataset':
            keys = [frame['key'] for frame in JPEGDeblurDataset({**dataset, 'phase': phase}).frames]
            unnumbered = (key for key in keys if numbered and not re.search(r'(^|_)\d+$', key))
            if (key := next(unnumbered, None)) is not None:
                yield f"data set {dataset['name']}: '{key}' does not end in a frame's number, as val:submission needs"
            yield from _wrong_sizes(dataset, roots, keys, dataset.get('gt_size') if phase == 'train' else None)
    except InputError as error:
        yield str(error)


def _wrong_sizes(
    dataset: Mapping[str, Any], roots: Mapping[str, str], keys: list[str], patch: int | None
) -> Iterator[str]:
    """The first frame whose size is not its partner's, and the first that a patch does not fit into."""
    stores = {role: open_store(root) for role, root in roots.items()}
    guide = stores.get('gt') or stores.get('lq')
    if guide is None:
        return
    sizes = {key: guide.shape(key)[:2] for key in keys}
    for role, store in stores.items():
        unequal = (key for key in keys if store.shape(key)[:2] != sizes[key])
        if (key := next(unequal, None)) is not None:
            yield (
                f"data set {dataset['name']}: '{key}' is {_text(store.shape(key)[:2])} in {roots[role]} but "
                f'{_text(sizes[key])} in {guide.path}'
            )
    small = (key for key in keys if patch and min(sizes[key]) < patch)
    if (key := next(small, None)) is not None:
        yield (
            f"data set {dataset['name']}: '{key}' is {_text(sizes[key])}, smaller than gt_size {patch}; "
            'make gt_size smaller or leave the image out'
        )


def _text(size: tuple[int, ...]) -> str:
    return f'{size[1]} x {size[0]}'


def all_problems(root: Path | str) -> list[str]:
    """Of one store or folder, every image decoded; in a process of its own, which a damaged LMDB can end."""
    if Path(root).suffix != '.lmdb':
        return list(_faults_of_files(Path(root)))
    with ProcessPoolExecutor(1) as pool:
        try:
            return pool.submit(_read_all, root).result()
        except BrokenProcessPool:
            return [f'{root}: data.mdb is damaged, reading it ended the process; copy or prepare it again']


def _faults_of_files(folder: Path) -> Iterator[str]:
    images = sorted(path for path in folder.rglob('*') if path.suffix.lower() in IMAGE_ENDINGS)
    if not images:
        yield f'{folder}: there are no images in it'
    for path in images:
        if fault := _image_fault(path.read_bytes()):
            yield f'{path}: {fault}'


def _read_all(root: Path | str) -> list[str]:
    try:
        store = open_store(root)
        if (Path(root) / 'manifest.json').is_file():
            problems = verify_store(root)
        else:
            problems = [f'{root}: {each}' for each in store.disagreements()]
        if store.kind == 'encoded' and not problems:
            faults = ((key, _image_fault(store.get(key), store.shape(key))) for key in store.keys())
            problems = [f"{root}: '{key}' {fault}" for key, fault in faults if fault]
        elif not problems:
            for key in store.keys():
                with store.view(key):  # whose size is not its shape's is an InputError
                    pass
    except InputError as error:
        return [str(error)]
    return problems


def _image_fault(value: bytes, shape: tuple[int, int, int] | None = None) -> str | None:
    """What is wrong with an image file; one of another size than meta_info's is not decoded, whatever it says it is."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter('ignore', Image.DecompressionBombWarning)
            with Image.open(io.BytesIO(value)) as image:
                if shape and image.size != (shape[1], shape[0]):
                    return f'is {image.size[0]} x {image.size[1]}, meta_info.txt says {_text(shape)}'
                image.load()
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        return f'cannot be decoded ({error})'
    return None
