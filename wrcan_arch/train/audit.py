"""What is wrong with the frames of a run: quickly, before it starts, or value by value (`basicsr doctor --data`)."""

import io
import math
import re
from collections.abc import Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import Any

from PIL import Image

from ..errors import InputError
from ..files import opened_at_any_size
from .image_files import decode_image, images_under, size_of_image
from .jpeg_deblur_dataset import JPEGDeblurDataset, roots_of
from .lmdb_store import in_own_process, open_store, verify_store
from .results import is_submitted

MOST_PIXELS = 1 << 30  # OpenCV's limit


def quick_problems(dataset: Mapping[str, Any], phase: str, *, every: int | None = None) -> Iterator[str]:
    """Of one data set of an option file: its stores or folders, their pairing, the frames' sizes, from their headers.

    Args:
        dataset: the section of the option file.
        phase: 'train' or another.
        every: val:submission's, where one is made: names have to end in the frame's number, as in 000_00000012.
    """
    stored = (dataset.get('io_backend') or {}).get('type') == 'lmdb'
    try:
        for root in roots_of(dataset).values():
            if stored:
                store = open_store(root)
                yield from (f'{root}: {each}; prepare it again' for each in store.disagreements())
                if store.kind == 'raw' and dataset['type'] != 'JPEGDeblurDataset':
                    yield f'{root}: a raw store, which a {dataset["type"]} cannot read; take an encoded one'
            else:
                _check_folder(Path(root))
        if dataset['type'] == 'JPEGDeblurDataset':
            frames = JPEGDeblurDataset({**dataset, 'phase': phase})
            keys = [frame['key'] for frame in frames.frames]
            if every:
                yield from _unfit_for_submission(dataset['name'], keys, every)
            yield from _wrong_sizes(frames, keys, stored)
    except InputError as error:
        yield str(error)


def _unfit_for_submission(name: str, keys: list[str], every: int) -> Iterator[str]:
    unnumbered = next((key for key in keys if not re.search(r'(^|_)\d+$', key)), None)
    if unnumbered is not None:
        yield f"data set {name}: '{unnumbered}' does not end in a frame's number, as val:submission needs"
    elif not any(is_submitted(key, every) for key in keys):
        taken = f'{every - 1}, {2 * every - 1}, ...'
        yield f'data set {name}: val:submission:every={every} takes the frames {taken}, none is there; make it smaller'


def _check_folder(folder: Path) -> None:
    if not folder.exists():
        raise InputError(f'{folder}: there is no such folder; prepare it, or correct the path')
    if (folder / 'data.mdb').is_file():
        raise InputError(f'{folder}: a store, no folder of images; io_backend: {{type: lmdb}} reads it')


def _wrong_sizes(dataset: JPEGDeblurDataset, keys: list[str], stored: bool) -> Iterator[str]:
    """The first frame whose size is not its partner's, and the smallest that a patch does not fit into.

    InputError for a file that is no image.
    """
    size_of = {role: open_store(root).shape if stored else size_of_image for role, root in dataset.roots.items()}
    sizes = {role: [size_of[role](frame[role])[:2] for frame in dataset.frames] for role in dataset.roots}
    for role, known in sizes.items():
        for frame, size in zip(dataset.frames, known, strict=True):
            if not size:  # of a header that Pillow does not know, but OpenCV may
                dataset.decode(role, frame[role])
    name, guide = dataset.opt['name'], dataset.guide
    for role, root in dataset.roots.items():
        pairs = zip(keys, sizes[role], sizes[guide], strict=True)
        unequal = ((key, size, other) for key, size, other in pairs if size and other and size != other)
        for key, size, other in islice(unequal, 1):
            yield (
                f"data set {name}: '{key}' is {_text(size)} in {root} but {_text(other)} in {dataset.roots[guide]}; "
                'prepare both from the same frame'
            )
    patch = dataset.training and dataset.opt.get('gt_size') or 0
    small = [(min(size), key, size) for key, size in zip(keys, sizes[guide], strict=True) if size and min(size) < patch]
    if small:
        _, key, size = min(small)
        others = f' (and {len(small) - 1} more, none as small)' if small[1:] else ''
        yield (
            f"data set {name}: '{key}' is {_text(size)}, smaller than gt_size {patch}{others}; "
            'make gt_size smaller or leave the image out'
        )


def _text(size: tuple[int, ...]) -> str:
    return f'{size[1]} x {size[0]}'


def all_problems(root: Path | str) -> list[str]:
    """Of one store or folder, every image decoded."""
    if Path(root).suffix != '.lmdb':
        try:
            return list(_faults_of_files(Path(root)))
        except InputError as error:
            return [str(error)]
    return in_own_process(_read_all, root)


def _faults_of_files(folder: Path) -> Iterator[str]:
    _check_folder(folder)
    images = images_under(folder)
    if not images:
        yield f'{folder}: there are no images in it'
    for path in images:
        try:
            fault = _image_fault(path.read_bytes())
        except OSError as error:
            fault = f'cannot be read ({error.strerror})'
        if fault:
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
        with opened_at_any_size(), Image.open(io.BytesIO(value)) as image:
            if shape and image.size != (shape[1], shape[0]):
                return f'is {image.size[0]} x {image.size[1]}, meta_info.txt says {_text(shape)}'
            if math.prod(image.size) > MOST_PIXELS:
                return f'is {image.size[0]} x {image.size[1]}, more pixels than OpenCV takes; scale it down'
            image.load()
    except (OSError, SyntaxError, ValueError) as error:
        return f'cannot be decoded ({error})'
    if decode_image(value) is None:  # a TIFF of floats, say, or a PNG without its end, which Pillow takes
        return 'cannot be decoded by OpenCV, which training uses; convert it to PNG'
    return None
