"""Walk a folder and the folders below it; tell what is one folder or one file under several names."""

import os
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from tempfile import NamedTemporaryFile


def real(path: Path | str) -> Path:
    """The path with all links resolved; a link to itself is left as it is, where `Path.resolve` raises RuntimeError."""
    return Path(os.path.realpath(path))


def identity(path: Path | str) -> tuple[int, int] | None:
    """What a folder has under each of its names, as bind mounts and other letters give it; None if it is not there."""
    try:
        status = Path(path).stat()
    except OSError:
        return None
    return status.st_dev, status.st_ino


def is_one_of(path: Path, folders: Collection[Path]) -> bool:
    """Whether a path leads to one of the folders, by any of its names; all are given as `real` returns them."""
    if path in folders:  # it need not be there
        return True
    own = identity(path)
    return own is not None and own in map(identity, folders)


def ignores_case(folder: Path) -> bool:
    """Whether names that differ only in case are one there, as on exFAT and NTFS; before it is made, where it would be.

    False if that cannot be found out. Nothing is written but into an empty folder.
    """
    try:
        folder = next(each for each in (folder, *folder.parents) if each.is_dir())
        is_empty = True
        with os.scandir(folder) as entries:
            for entry in entries:
                is_empty, other = False, entry.name.swapcase()
                if other != entry.name == other.swapcase():
                    return os.path.lexists(folder / other) and folder / other not in folder.iterdir()
        if is_empty:
            with NamedTemporaryFile(prefix='.case', dir=folder) as file:
                return os.path.lexists(folder / Path(file.name).name.swapcase())
        return not os.path.ismount(folder) and ignores_case(folder.parent)  # which is on the same disk
    except OSError:
        return False


def _refuse(error: OSError) -> None:
    raise error


def walk(
    folder: Path, *, avoid: Collection[Path] = (), on_error: Callable[[OSError], None] = _refuse
) -> Iterator[tuple[Path, list[str]]]:
    """Yield a folder and each folder below it, in order, with the sorted names of its files; skip hidden names.

    A link to a folder that is neither in this one nor above it is followed. Each folder is visited once.

    Args:
        folder: where to start; its own name may be hidden.
        avoid: folders to skip, as `real` returns them; links to what is below them are skipped too.
        on_error: called with the OSError of a folder that cannot be read; by default raises it.
    """
    top = real(folder)
    left_out = {top, *top.parents}

    def claim(path: Path) -> bool:
        found = real(path)
        if path.name[0] == '.' or found in left_out or is_one_of(found, avoid):
            return False
        is_link = os.path.islink(path)  # noqa: PTH114  (Path's raises for a path that is too long)
        if is_link and any(is_one_of(above, {top, *avoid}) for above in found.parents):
            return False
        left_out.add(found)
        return True

    for here, folders, files in os.walk(folder, onerror=on_error, followlinks=True):
        folders[:] = [name for name in sorted(folders) if claim(Path(here, name))]
        yield Path(here), sorted(name for name in files if name[0] != '.')
