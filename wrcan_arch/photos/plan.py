"""Plan which photographs are restored and where each result goes."""

import codecs
import fnmatch
import glob
import os
import sys
from collections.abc import Iterable, Iterator
from functools import cache, partial
from pathlib import Path
from typing import NamedTuple

from ..errors import InputError
from ..files import without_root
from ..folders import real, walk
from .comparison import PAGE, check_page, pictures_of, pictures_on_page
from .photo import ENDINGS, PHOTO_ENDINGS, format_of_name

RESTORED = '_restored'  # ends the stem of a result that lies beside its photograph


class Job(NamedTuple):
    """The paths of a photograph and of its result, as plain strings: there may be millions."""

    source: str
    target: str


def plan(
    entries: Iterable[Path | str] = (),
    *,
    listed: Iterable[str] = (),
    out: Path | None = None,
    compare: Path | None = None,
    format: str | None = None,
    skip_existing: bool = False,
    unreadable: list[str] | None = None,
) -> list[Job]:
    """List every photograph to restore, with the path of its result.

    Args:
        entries: files, folders with all that is below them, and patterns (`'holiday/**/*.jpg'`). What is named
            twice is restored once.
        listed: paths of more photographs; whether they exist is not checked here.
        out: the folder of the results, OUT/NAME.EXT. Subfolders of a folder, or of a pattern's part without wildcards,
            are kept below it, as is the whole path of a listed photograph. None: beside the photograph, as
            NAME_restored.EXT.
        compare: a folder for pictures of before and after. Files in it and in `out` are not taken for photographs.
        format: of the results, a name or an ending; None for the photograph's own if it can be written, else PNG.
        skip_existing: existing results are kept; those among `entries` (a shell's *.jpg finds them) are skipped.
        unreadable: receives one message for each folder that cannot be read; None: raise InputError with the first.

    Raises:
        InputError: there is nothing to restore, `out` or `compare` has a photograph's name, or a result or
            picture would overwrite a photograph or another result.
    """
    told: list[str] = [] if unreadable is None else unreadable
    if format is not None:
        format = _format_called(format)
    for option, folder in (('-o', out), ('--compare', compare)):
        if folder is not None and format_of_name(folder) and not folder.exists():
            raise InputError(f'{option} {folder}: takes the name of a folder, such as restored')
    avoid = {real(folder) for folder in (out, compare) if folder is not None}
    jobs: dict[str, Job] = {}
    for source, below in _sources(entries, listed, out, avoid, told, skip_existing):
        name = Path(source.stem + _result_ending(source, format))
        target = out / below / name if out else source.parent / f'{name.stem}{RESTORED}{name.suffix}'
        jobs.setdefault(str(real(source.parent) / source.name), Job(str(source), str(target)))
    if told and (unreadable is None or not jobs):
        raise InputError(told[0])
    if not jobs:
        raise InputError('no photographs were given; name some, or folders, or a --list FILE that has some')
    wanted = list(jobs.values())
    if skip_existing and out is None:
        results = {os.path.realpath(target) for _, target in wanted}
        wanted = [job for job in wanted if os.path.realpath(job.source) not in results]
    _check_nothing_is_overwritten(wanted, compare)
    if out is not None and not skip_existing:
        hint = 'choose another -o, or leave it with --skip-existing'
        _check_no_photograph_is_overwritten(wanted, out, 'its result', hint)
    if compare is not None and not (compare / PAGE).exists():  # else the pictures there are an earlier run's
        waiting = (job for job in wanted if not (skip_existing and os.path.lexists(job.target)))
        pictures = ((job.source, str(picture)) for job in waiting for picture in pictures_of(compare, job.source))
        _check_no_photograph_is_overwritten(
            pictures, compare, 'its picture of before and after', 'choose another --compare'
        )
    return wanted


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


def _format_called(name: str) -> str:
    found = format_of_name(Path(f'photo.{name.lower()}'))
    if found is None:
        raise InputError(f"format '{name}' is not one of {', '.join(ENDINGS)}")
    return found


def _sources(
    entries: Iterable[Path | str],
    listed: Iterable[str],
    out: Path | None,
    avoid: set[Path],
    unreadable: list[str],
    skip_existing: bool,
) -> Iterator[tuple[Path, Path]]:
    """Yield each photograph, and the folder of its result relative to the folder of the results."""

    real_of, shown = cache(real), cache(pictures_on_page)

    def is_result(photo: Path) -> bool:
        folder = real_of(photo.parent)
        if any(folder / photo.name in shown(above) for above in (folder, *folder.parents)):
            return True
        return out is None and photo.stem.endswith(RESTORED)

    entries = list(entries)
    for named in entries:
        if not str(named):
            raise InputError('an empty name was given, where a photograph or folder should be')
        entry = Path(named)
        try:
            is_folder, is_there = entry.is_dir(), entry.exists() or entry.is_symlink()
        except PermissionError:
            is_folder, is_there = False, True
        if is_folder and len(entries) > 1 and real(entry) in avoid:  # a shell's * found it too
            takes_results = out is not None and real(entry) == real(out)
            if not takes_results or skip_existing or not [*_photos_in(entry, avoid, [])]:
                continue
        if is_folder:
            before = len(unreadable)
            photos = [photo for photo in _photos_in(entry, avoid, unreadable) if not is_result(photo)]
            if not photos and len(unreadable) == before:
                raise InputError(f'{entry}: no photographs in it ({" ".join(PHOTO_ENDINGS)})')
            yield from ((photo, photo.parent.relative_to(entry)) for photo in photos)
        elif is_there:  # reading reports broken links and unreadable folders
            yield entry, Path()
        else:
            fixed = next(folder for folder in entry.parents if os.path.lexists(folder))
            below = {folder for folder in avoid if real(fixed) in folder.parents}  # others would exclude all
            before = len(unreadable)
            found = [photo for photo in _photos_like(entry, fixed, below, unreadable) if not is_result(photo)]
            if not found and len(unreadable) == before:
                raise InputError(f'{entry}: no such photograph or folder')
            yield from ((photo, photo.parent.relative_to(fixed)) for photo in found)
    for path in map(Path, listed):
        yield path, without_root(path).parent


def _photos_like(pattern: Path, fixed: Path, avoid: set[Path], unreadable: list[str]) -> Iterator[Path]:
    """Yield the files that match a pattern, and the photographs in matching folders, sorted; none in `avoid`.

    `fixed` is a folder that the pattern begins with.
    """
    for path in sorted(set(_expanded(fixed, pattern.relative_to(fixed).parts, unreadable)), key=str):
        found = real(path)
        if not avoid.isdisjoint([found, *found.parents]):
            continue
        if path.is_dir():
            yield from _photos_in(path, avoid, unreadable)
        else:
            yield path


def _expanded(folder: Path, parts: tuple[str, ...], unreadable: list[str]) -> Iterator[Path]:
    """Yield what matches a pattern, given in parts, below a folder; unlike `glob`, without following cyclic links.

    `*` matches nothing hidden; `**` matches the folder and all folders below, as the last part the files in them.
    """
    if not parts:
        yield folder
        return
    try:
        if not folder.is_dir():
            return
    except OSError as error:
        _note(unreadable, error)
        return
    part, *others = parts
    rest = tuple(others)
    if part == '**':
        for here, names in walk(folder, on_error=partial(_note, unreadable)):
            yield from _expanded(here, rest, unreadable) if rest else (here / name for name in names)
    elif not glob.has_magic(part):
        if os.path.lexists(folder / part):
            yield from _expanded(folder / part, rest, unreadable)
    else:
        try:
            names = [path.name for path in folder.iterdir()]
        except OSError as error:
            _note(unreadable, error)
            return
        for name in fnmatch.filter(names, part):
            if name[0] != '.' or part[0] == '.':
                yield from _expanded(folder / name, rest, unreadable)


def _photos_in(folder: Path, avoid: set[Path], unreadable: list[str]) -> Iterator[Path]:
    """Yield the photographs in a folder and below, sorted; none that is hidden or in `avoid`."""
    for here, names in walk(folder, avoid=avoid, on_error=partial(_note, unreadable)):
        yield from (here / name for name in names if name.lower().endswith(PHOTO_ENDINGS))


def _note(unreadable: list[str], error: OSError) -> None:
    told = f'{error.filename}: cannot be read ({error.strerror})'
    if told not in unreadable:
        unreadable.append(told)


def _result_ending(source: Path, format: str | None) -> str:
    written = ENDINGS[format] if format else [each for endings in ENDINGS.values() for each in endings]
    return source.suffix if source.suffix.lower() in written else ENDINGS[format or 'png'][0]


def _check_no_photograph_is_overwritten(made: Iterable[tuple[str, str]], folder: Path, what: str, hint: str) -> None:
    """Raise InputError if a target exists and may be a photograph itself, as its `folder` holds the source too."""
    own, real_of = real(folder), cache(real)
    for source, target in made:
        if os.path.lexists(target):
            named = Path(os.path.normpath(Path(source).absolute()))  # a link's own place, not its target's
            if own in real(source).parents or own in map(real_of, named.parents):
                raise InputError(f'{source}: {what} would overwrite {target}, which may be a photograph; {hint}')


def _check_nothing_is_overwritten(jobs: list[Job], compare: Path | None) -> None:
    sources = {os.path.realpath(job.source) for job in jobs}
    taken: dict[str, str] = {}
    for source, target in jobs:
        place = os.path.realpath(target)
        if place in sources:
            hint = 'leave that one out, or choose another -o'
            raise InputError(f'{source}: its result would overwrite the photograph {target}; {hint}')
        if place in taken:
            raise InputError(f'{source} and {taken[place]}: both results would be {target}; give each another -o')
        taken[place] = source
    if compare is None:
        return
    if compare.exists() and not compare.is_dir():
        raise InputError(f'{compare}: is no folder; choose another --compare')
    check_page(compare)
    folder = real(compare)
    for source, _ in jobs:
        for picture in pictures_of(folder, source):
            if str(picture) in sources or str(picture) in taken:
                hint = 'choose another --compare'
                raise InputError(f'{source}: its picture of before and after would overwrite {picture}; {hint}')
            taken[str(picture)] = source
