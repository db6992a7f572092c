"""Plan which photographs are restored and where each result goes."""

import itertools
import os
from collections.abc import Callable, Hashable, Iterable, Iterator
from functools import cache
from pathlib import Path
from typing import NamedTuple

from ..errors import InputError, refuse
from ..system.files import without_root
from ..system.folders import identity, ignores_case, real
from .comparison import check_page, pictures_of, pictures_on_page
from .find_photos import RESTORED, Finder
from .photo import ENDINGS, format_of_name


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
        out: the folder of the results, OUT/NAME.EXT. It keeps the subfolders of a folder, or of the beginning of a
            pattern before any wildcard, and the whole path of a listed photograph. None: each result lies beside its
            photograph, as NAME_restored.EXT.
        compare: a folder for pictures of before and after. Files in it and in `out` are not taken for photographs.
        format: of the results, a name or an ending; None for the photograph's own if it can be written, else PNG.
        skip_existing: existing results are kept; those among `entries` (a shell's *.jpg finds them) are skipped.
        unreadable: receives one message for each folder that cannot be read, and each entry without photographs;
            None: raise InputError with them.

    Raises:
        InputError: there is nothing to restore, `out` or `compare` has a photograph's name, or a result or
            picture would overwrite a photograph or another result.
    """
    if format is not None:
        format = _format_called(format)
    for option, folder in (('-o', out), ('--compare', compare)):
        if folder is not None and format_of_name(folder) and not folder.exists():
            raise InputError(f'{option} {folder}: takes the name of a folder, such as restored')
    finder = Finder(out, compare, skip_existing)
    in_list = ((path, without_root(path).parent) for path in map(Path, listed))
    jobs = _jobs_of(itertools.chain(finder.photographs(entries), in_list), out, format)
    told = [*dict.fromkeys(finder.unreadable)]  # once, what was named twice
    if unreadable is None or not jobs:
        refuse(told)
    else:
        unreadable += told
    if not jobs:
        raise InputError('no photographs were given; name some, or folders, or a --list FILE that has some')
    place = _places()
    if skip_existing and out is None:
        jobs = _without_results(jobs, place)
    refuse(_clashes_of_results(jobs, place))
    if compare is not None:
        check_page(compare)
        refuse(_clashes_of_pictures(jobs, compare, place))
    if out is not None and not skip_existing:
        hint = 'choose another -o, or keep it with --skip-existing'
        refuse(_overwritten_photographs(jobs, out, 'its result', hint))
    if compare is not None:
        pictures = _new_pictures(jobs, compare, skip_existing)
        hint = 'choose another --compare'
        refuse(_overwritten_photographs(pictures, compare, 'its picture of before and after', hint))
    return jobs


def _jobs_of(photographs: Iterable[tuple[Path, Path]], out: Path | None, format: str | None) -> list[Job]:
    """A job for each photograph, given with the folder of its result below `out`; one for those named twice."""
    jobs: dict[str, Job] = {}
    for source, below in photographs:
        name = f'{source.stem}{"" if out else RESTORED}{_result_ending(source, format)}'
        target = (out / below if out else source.parent) / name
        jobs.setdefault(str(real(source.parent) / source.name), Job(str(source), str(target)))
    return list(jobs.values())


def _places() -> Callable[[Path | str], Hashable]:
    """Return a function that gives all paths of one file the same value: links resolved, mounts and case made one."""
    identity_of, case_is_ignored = cache(identity), cache(ignores_case)

    def name_of(path: Path) -> str:
        return path.name.lower() if case_is_ignored(path.parent) else path.name

    @cache
    def spelled(folder: Path) -> Path:  # some drivers give a folder another identity under each spelling
        return folder if folder == folder.parent else spelled(folder.parent) / name_of(folder)

    def place(path: Path | str) -> Hashable:
        real_path = real(path)
        folder = spelled(real_path.parent)
        return identity_of(folder) or folder, name_of(real_path)

    return place


def _without_results(jobs: list[Job], place: Callable[[str], Hashable]) -> list[Job]:
    """Leave out the jobs whose photograph is the result of one of them."""
    results = {place(job.target) for job in jobs}
    return [job for job in jobs if place(job.source) not in results]


def _new_pictures(jobs: list[Job], compare: Path, skip_existing: bool) -> Iterator[tuple[str, str]]:
    """Yield each photograph to restore with each of its pictures that no earlier run made."""
    earlier = pictures_on_page(compare)
    for source, target in jobs:
        if not (skip_existing and os.path.lexists(target)):
            for picture in pictures_of(compare, source):
                if picture not in earlier:
                    yield source, str(picture)


def _format_called(name: str) -> str:
    found = format_of_name(Path(f'photo.{name.lower()}'))
    if found is None:
        raise InputError(f"format '{name}' is not one of {', '.join(ENDINGS)}")
    return found


def _result_ending(source: Path, format: str | None) -> str:
    own = format_of_name(source)
    return source.suffix if own and format in (None, own) else ENDINGS[format or 'png'][0]


def _overwritten_photographs(made: Iterable[tuple[str, str]], folder: Path, what: str, hint: str) -> Iterator[str]:
    """Yield a line for each target that exists and may be a photograph, since its `folder` holds the source too."""
    own, identity_of = identity(folder), cache(identity)
    for source, target in made:
        if os.path.lexists(target):
            named = Path(os.path.normpath(Path(source).absolute()))  # a link's own place, not its target's
            if own in map(identity_of, [*real(source).parents, *named.parents]):
                yield f'{source}: {what} would overwrite {target}, which may be a photograph; {hint}'


def _clashes_of_results(jobs: list[Job], place: Callable[[str], Hashable]) -> Iterator[str]:
    """Yield a line for each result that would overwrite a photograph or another result."""
    sources = {place(job.source) for job in jobs}
    taken: dict[Hashable, str] = {}
    for source, target in jobs:
        place_of_result = place(target)
        if place_of_result in sources:
            is_beside = Path(target).stem.endswith(RESTORED)
            hint = 'leave that one out, or ' + ('add --skip-existing' if is_beside else 'choose another -o')
            yield f'{source}: its result would overwrite the photograph {target}; {hint}'
        elif (other := taken.setdefault(place_of_result, source)) != source:
            yield f'{source} and {other}: both results would be {target}; rename one, or give each another -o'


def _clashes_of_pictures(jobs: list[Job], compare: Path, place: Callable[[Path | str], Hashable]) -> Iterator[str]:
    """Yield a line for each photograph whose picture would overwrite a photograph, a result or another picture."""
    folder = real(compare)
    taken = {place(path) for job in jobs for path in job}
    for source, _ in jobs:
        pictures = {place(picture): picture for picture in pictures_of(folder, source)}
        if clash := next((pictures[each] for each in pictures if each in taken), None):
            hint = 'choose another --compare'
            yield f'{source}: its picture of before and after would overwrite {clash}; {hint}'
        taken.update(pictures)
