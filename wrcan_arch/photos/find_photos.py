"""Find the photographs that files, folders, patterns and lists name."""

import codecs
import fnmatch
import glob
import os
import sys
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

from ..errors import InputError
from ..system.folders import is_one_of, real, walk
from .comparison import pictures_on_page
from .photo import PHOTO_ENDINGS

RESTORED = '_restored'  # ends the stem of a result that lies beside its photograph


@dataclass
class Finder:
    """Finds photographs, without the results and pictures of earlier runs.

    Args:
        out: the folder of the results; None: they lie beside the photographs, as NAME_restored.EXT.
        compare: the folder of the pictures of before and after, if any.
        skip_existing: whether earlier results are kept.
        unreadable: receives one message for each folder that cannot be read, and each entry without photographs.
    """

    out: Path | None = None
    compare: Path | None = None
    skip_existing: bool = False
    unreadable: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._avoid = {real(folder) for folder in (self.out, self.compare) if folder is not None}
        self._real, self._shown_in = cache(real), cache(pictures_on_page)

    def photographs(self, entries: Iterable[Path | str]) -> Iterator[tuple[Path, Path]]:
        """Yield each photograph, and the folder of its result relative to the folder of the results."""
        entries = list(entries)
        for name in entries:
            if not str(name):
                raise InputError('an empty name was given, where a photograph or folder should be')
            entry = Path(name)
            try:
                is_folder, is_there = entry.is_dir(), entry.exists() or entry.is_symlink()
            except PermissionError:
                is_folder, is_there = False, True
            if is_folder and len(entries) > 1 and self._is_of_results(entry):  # a shell's * found it too
                continue
            before = len(self.unreadable)
            if is_folder:
                top, found = entry, self._photos_in(entry, self._avoid)
                none_found = f'{entry}: no photographs in it ({" ".join(PHOTO_ENDINGS)})'
            elif is_there:  # reading reports broken links and unreadable folders
                yield entry, Path()
                continue
            else:
                top = next(folder for folder in entry.parents if os.path.lexists(folder))
                found = self._photos_like(entry, top)
                none_found = f'{entry}: no such photograph or folder'
            photos = [photo for photo in found if not self._is_result(photo)]
            if not photos and len(self.unreadable) == before:
                self.unreadable.append(none_found)
            yield from ((photo, photo.parent.relative_to(top)) for photo in photos)

    def _is_of_results(self, folder: Path) -> bool:
        """Whether a folder takes results or pictures, and holds no photographs of its own to restore."""
        if not is_one_of(real(folder), self._avoid):
            return False
        takes_results = self.out is not None and is_one_of(real(folder), [real(self.out)])
        return not takes_results or self.skip_existing or not any(Finder()._photos_in(folder, self._avoid))

    def _is_result(self, photo: Path) -> bool:
        folder = self._real(photo.parent)
        if any(folder / photo.name in self._shown_in(above) for above in (folder, *folder.parents)):
            return True
        return self.out is None and photo.stem.endswith(RESTORED)

    def _photos_in(self, folder: Path, avoid: Collection[Path]) -> Iterator[Path]:
        """Yield the photographs in a folder and below, sorted; none that is hidden or in `avoid`."""
        for here, names in walk(folder, avoid=avoid, on_error=self._note):
            yield from (here / name for name in names if name.lower().endswith(PHOTO_ENDINGS))

    def _photos_like(self, pattern: Path, top: Path) -> Iterator[Path]:
        """Yield the photographs, known by their endings, that match a pattern or lie in a matching folder, sorted.

        `top` is the folder that the pattern begins with. A folder to avoid that holds it excludes nothing.
        """
        avoid = {folder for folder in self._avoid if is_one_of(real(top), folder.parents)}

        @cache
        def is_avoided(folder: Path) -> bool:
            return any(is_one_of(each, avoid) for each in (folder, *folder.parents))

        for path in sorted(set(self._expanded(top, pattern.relative_to(top).parts)), key=str):
            found = real(path)
            if is_one_of(found, avoid) or is_avoided(found.parent):
                continue
            if path.is_dir():
                yield from self._photos_in(path, avoid)
            elif path.name.lower().endswith(PHOTO_ENDINGS):
                yield path

    def _expanded(self, folder: Path, parts: tuple[str, ...]) -> Iterator[Path]:
        """Yield what matches a pattern, given in parts, below a folder. Unlike `glob`, do not follow cyclic links.

        `*` matches nothing hidden. `**` matches the folder and all folders below, or, as the last part, their files.
        """
        if not parts:
            yield folder
            return
        try:
            if not folder.is_dir():
                return
        except OSError as error:
            self._note(error)
            return
        part, rest = parts[0], parts[1:]
        if part == '**':
            for here, names in walk(folder, on_error=self._note):
                yield from self._expanded(here, rest) if rest else (here / name for name in names)
        elif not glob.has_magic(part):
            if os.path.lexists(folder / part):
                yield from self._expanded(folder / part, rest)
        else:
            try:
                names = [path.name for path in folder.iterdir()]
            except OSError as error:
                self._note(error)
                return
            for name in fnmatch.filter(names, part):
                if name[0] != '.' or part[0] == '.':
                    yield from self._expanded(folder / name, rest)

    def _note(self, error: OSError) -> None:
        self.unreadable.append(f'{error.filename}: cannot be read ({error.strerror})')


def read_list(path: str, *, alone: bool = True) -> Iterator[str]:
    """Yield the lines of a file, or of standard input for '-': one path a line, in any encoding.

    InputError if it cannot be read, or for '-' unless `alone`: several processes would each read a part.
    """
    if path == '-' and not alone:
        raise InputError('several processes cannot share one standard input; give --list a file')
    if path == '-' and sys.stdin is None:
        raise InputError('standard input is closed; give --list a file')
    try:
        with sys.stdin.buffer if path == '-' else Path(path).open('rb') as file:
            for line in file:
                line = line.removeprefix(codecs.BOM_UTF8)  # some editors begin a file with it
                if b'\0' in line:
                    raise InputError(f'{path}: the list has a zero byte in it; write one photograph on each line')
                if line.strip():
                    yield os.fsdecode(line.rstrip(b'\r\n'))
    except OSError as error:
        raise InputError(f'{path}: the list cannot be read ({error.strerror or error})') from error
