"""Many photographs through one network."""

from collections.abc import Iterable, Sequence
from pathlib import Path

import torch
from torch import nn
from tqdm import tqdm

from ..errors import InputError
from ..inference import check_request, restore
from .photo import PHOTO_ENDINGS, read_photo, write_photo


def plan(inputs: Iterable[Path], out: Path) -> list[tuple[Path, Path]]:
    """Each photograph and where its restored one goes: OUT/NAME.png, with a folder's own folders kept.

    InputError if there is nothing to restore, or a result would overwrite an input or another result.
    """
    pairs = []
    for entry in inputs:
        if entry.is_dir():
            photos = sorted(path for path in entry.rglob('*') if path.suffix.lower() in PHOTO_ENDINGS)
            if not photos:
                raise InputError(f'{entry}: no photographs in it ({" ".join(PHOTO_ENDINGS)})')
            pairs += [(photo, out / photo.relative_to(entry).with_suffix('.png')) for photo in photos]
        elif entry.is_file():
            pairs.append((entry, out / f'{entry.stem}.png'))
        else:
            raise InputError(f'{entry}: no such photograph or folder')

    sources = {photo.resolve() for photo, _ in pairs}
    taken: dict[Path, Path] = {}
    for photo, target in pairs:
        if target.resolve() in sources:
            raise InputError(f'{photo}: its result would overwrite the photograph {target}; choose another -o')
        if target in taken:
            raise InputError(f'{photo} and {taken[target]}: both results would be {target}; restore them separately')
        taken[target] = photo
    return pairs


def restore_photos(
    network: nn.Module, pairs: Sequence[tuple[Path, Path]], *, mode: str, ensemble: bool, precision: str
) -> list[str]:
    """Restore each photograph; one that fails does not stop the others. Returns a line for each that failed."""
    check_request(mode=mode, ensemble=ensemble, precision=precision)
    failures = []
    for photo_path, target in (progress := tqdm(pairs, unit='photo', desc='restore')):
        progress.set_postfix_str(photo_path.name)
        try:
            photo = read_photo(photo_path)
            pixels = restore(network, photo.pixels, mode=mode, ensemble=ensemble, precision=precision)
            write_photo(target, photo.with_pixels(pixels))
        except InputError as error:
            failures.append(str(error))
        except (MemoryError, RuntimeError) as error:
            if not isinstance(error, MemoryError | torch.cuda.OutOfMemoryError) and 'memory' not in str(error):
                raise
            failures.append(f'{photo_path}: too large for the memory of this machine; scale it down')
    return failures
