"""What is in a folder and in the folders below it."""

import os
from collections.abc import Callable, Collection, Iterator
from pathlib import Path


def real(path: Path | str) -> Path:
    """Where a path leads; a link that leads to itself stays as it is, where `Path.resolve` raises RuntimeError."""
    return Path(os.path.realpath(path))


def _refuse(error: OSError) -> None:
    raise error


def walk(
    folder: Path, *, avoid: Collection[Path] = (), on_error: Callable[[OSError], None] = _refuse
) -> Iterator[tuple[Path, list[str]]]:
    """A folder and each below it, in order, with the sorted names of the files in it; nothing that is hidden.

    A link to a folder that lies elsewhere, neither in this one nor above it, is followed, once.

    Args:
        folder: with its own name, which may be a hidden one.
        avoid: `real` folders that are left out, and links to what is below them.
        on_error: takes the OSError of a folder that cannot be read.
    """
    top = real(folder)
    left_out = {top, *top.parents, *avoid}

    def is_taken(path: Path) -> bool:
        found = real(path)
        if path.name[0] == '.' or found in left_out:
            return False
        if path.is_symlink() and not {top, *avoid}.isdisjoint(found.parents):
            return False
        left_out.add(found)
        return True

    for here, folders, files in os.walk(folder, onerror=on_error, followlinks=True):
        folders[:] = [name for name in sorted(folders) if is_taken(Path(here, name))]
        yield Path(here), sorted(name for name in files if name[0] != '.')
