"""Restore many photographs: one is computed while the next is decoded and the previous one is encoded."""

import os
import time
import warnings
from collections import Counter
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing, suppress
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TypeVar

from torch import nn
from tqdm import tqdm

from ..errors import GPU_IS_FULL, InputError, is_full_gpu, is_out_of_memory
from ..inference import Request, restore, window_of
from ..jpeg_quality import is_far
from ..system.files import check_writable, name_is_too_long
from ..system.processes import Team
from ..system.progress_bar import progress_bar
from ..system.terminal import printable
from .comparison import pictures_of, write_page, write_side_by_side
from .drift import blend, colours_drift
from .photo import Photo
from .plan import Job
from .read_photo import MAX_PIXELS, read_photo
from .summary import LARGE, Summary
from .write_photo import DEFAULT_QUALITY, check_fits, loss_warnings, write_photo

T = TypeVar('T')
R = TypeVar('R')

TELL_AFTER = 0.2  # seconds between updates of the bar in a terminal
COMPUTING = 0.98  # approximate share of a photograph's work; the rest is writing it


@dataclass(frozen=True, kw_only=True)
class Options:
    """How photographs are restored.

    Args:
        request: the keyword arguments of `inference.restore`.
        strength: how much of the change to apply, from 0 (the photograph as it was) to 1.
        quality: of lossy formats, 1 to 100.
        max_pixels: larger photographs fail.
        largest: pixels of the longer side that larger photographs are scaled down to; None: they keep their size.
        skip_existing: do not restore photographs that have a result.
        out: the folder of the results; None if each lies beside its photograph.
        compare: the folder of the pictures of before and after; None for none. Both folders are checked before the
            first photograph.
    """

    request: Request = field(default_factory=Request)
    strength: float = 1
    quality: int = DEFAULT_QUALITY
    max_pixels: int = MAX_PIXELS
    largest: int | None = None
    skip_existing: bool = False
    out: Path | None = None
    compare: Path | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.strength <= 1:
            raise InputError(f'strength must be from 0 to 1, not {self.strength}')
        if not 1 <= self.quality <= 100:
            raise InputError(f'quality must be from 1 to 100, not {self.quality}')
        if self.max_pixels < 1:
            raise InputError(f'max_pixels must be from 1 up, not {self.max_pixels}')
        if self.largest is not None and self.largest < 1:
            raise InputError(f'largest must be from 1 up, not {self.largest}')


@dataclass
class Work:
    """One photograph on its way through the steps, each of which adds to it."""

    job: Job
    photo: Photo = field(init=False)
    restored: Photo = field(init=False)
    restored_before: bool = False  # by an earlier run: it is only compared
    is_large: bool = False  # it may stay blurred because it is computed at its full size
    has_result: bool = False  # the comparison may still fail
    warnings: list[str] = field(default_factory=list)
    failure: str | None = None

    def summary(self) -> Summary:
        failures = [] if self.failure is None else [self.failure]
        if not self.has_result:
            return Summary(failures=failures, failed=[self.job.source])
        not_shown = [self.job.source] if failures else []
        if self.restored_before:
            return Summary(skipped=1, failures=failures, not_shown=not_shown)
        quality = self.photo.jpeg_quality
        return Summary(
            restored=1,
            failures=failures,
            not_shown=not_shown,
            warnings=Counter(self.warnings),
            examples={warning: [self.job.source] for warning in self.warnings},
            qualities=Counter() if quality is None else Counter([quality]),
            large=int(self.is_large),
        )


# Steps


def _read(options: Options, trained_quality: int | list[int] | None, work: Work) -> None:
    work.photo = photo = read_photo(work.job.source, max_pixels=options.max_pixels, largest=options.largest)
    if _has_result(work.job, options):
        work.restored_before, work.restored = True, read_photo(work.job.target, max_pixels=options.max_pixels)
        if work.restored.pixels.shape != photo.pixels.shape:
            was, now = (f'{each.pixels.shape[1]} x {each.pixels.shape[0]}' for each in (work.restored, photo))
            raise InputError(
                f'{work.job.target}: is {was}, but a result of {work.job.source} would be {now}; move it away'
            )
        return
    at_full_size = options.largest is None and options.request.mode != 'input'
    work.is_large = at_full_size and max(photo.pixels.shape) > LARGE
    target = Path(work.job.target)
    _check_target(work.job, options)
    try:
        work.warnings += loss_warnings(check_fits(target, photo), photo)
    except InputError as error:
        raise InputError(f'{work.job.source}: {error}') from error
    if photo.jpeg_quality is not None and trained_quality is not None and is_far(photo.jpeg_quality, trained_quality):
        trained = trained_quality if isinstance(trained_quality, int) else '{} to {}'.format(*trained_quality)
        work.warnings.append(
            f'its JPEG quality is {photo.jpeg_quality}, the weights were trained for {trained}; expect a weaker result'
        )


def _check_target(job: Job, options: Options) -> None:
    """Raise InputError if it is clear before the computing that the result cannot be written."""
    target = Path(job.target)
    if name_is_too_long(target):
        hint = 'give it a shorter name' if options.out else 'name a folder with -o'
        raise InputError(f'{job.source}: the name of its result is too long; {hint}')
    if options.out is None:
        try:
            check_writable(target.parent)
        except InputError as error:
            raise InputError(f'{job.source}: {error}') from error


def _compute(network: nn.Module, options: Options, progress: Callable[[float], None], work: Work) -> None:
    if work.restored_before:
        return
    before = work.photo.pixels
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter('always')
        try:
            after = restore(network, before, progress=progress, **vars(options.request))
        except InputError as error:
            raise InputError(f'{work.job.source}: {error}') from error
    work.warnings += [str(warning.message) for warning in caught if warning.category is RuntimeWarning]
    if options.strength < 1:
        after = blend(before, after, options.strength)
    if colours_drift(before, after):
        work.warnings.append(
            'the result differs in brightness or colour over large areas; it may be unlike the training data'
        )
    work.restored = replace(work.photo, pixels=after)


def _write(options: Options, work: Work) -> None:
    if not work.restored_before:
        write_photo(work.job.target, work.restored, quality=options.quality)
    work.has_result = True
    if options.compare is not None:
        write_side_by_side(options.compare, work.job.source, work.photo, work.restored.pixels)


def _attempt(step: Callable[[Work], None], work: Work) -> Work:
    """Take a step unless an earlier one failed; record a failure of this photograph instead of raising it."""
    if work.failure is None:
        try:
            step(work)
        except InputError as error:
            work.failure = str(error)
        except (MemoryError, RuntimeError) as error:
            if not is_out_of_memory(error):
                raise
            reason = GPU_IS_FULL if is_full_gpu(error) else 'too large for the memory of this machine; scale it down'
            work.failure = f'{work.job.source}: {reason}'
    return work


def in_thread(function: Callable[[T], R], items: Iterable[T]) -> Generator[R, None, None]:
    """Like `map`, one item ahead: a thread runs `function` while the last result is used and the next item is made."""
    with ThreadPoolExecutor(1) as pool:
        running: Future[R] | None = None
        for item in items:
            last, running = running, pool.submit(function, item)
            if last is not None:
                yield last.result()
        if running is not None:
            yield running.result()


# All photographs


def restore_photos(
    network: nn.Module, jobs: Sequence[Job], *, options: Options, team: Team | None = None
) -> Summary | None:
    """Restore this process's share of the photographs; one that fails does not stop the others.

    Returns the summary of all processes in the first process, None in the others.
    """
    _check_request(network, options.request)
    to_do = [job for job in jobs if not _is_done(job, options)]
    if to_do:
        for folder in filter(None, (options.compare, options.out)):
            check_writable(folder)
    team = team or Team()
    # The largest first: else one process might begin it when the others are done.
    in_turn = sorted(jobs, key=_size, reverse=True) if team.size > 1 else jobs
    bar = _progress_bar(team, to_do)  # before another process has counted any work
    team.agree_on(in_turn)
    summary = Summary()
    trained_quality = getattr(network, 'metadata', {}).get('jpeg_quality')

    def works() -> Iterator[Work]:
        for job in team.share_of(in_turn):
            if _is_done(job, options):
                summary.skipped += 1
            else:
                yield Work(job)

    def compute(work: Work) -> tuple[Work, _Tally]:
        bar.set_postfix_str(printable(Path(work.job.source).name), refresh=False)
        tally = _Tally(team, work.job, bar)
        return _attempt(partial(_compute, network, options, tally), work), tally

    def write(computed: tuple[Work, _Tally]) -> tuple[Summary, _Tally]:
        work, tally = computed
        return _attempt(partial(_write, options), work).summary(), tally  # not `work`, so that its pixels are freed

    read = partial(_attempt, partial(_read, options, trained_quality))
    decoded = in_thread(read, works())
    outcomes = in_thread(write, map(compute, decoded))
    try:
        with bar, closing(outcomes):
            for outcome, tally in outcomes:
                summary.add(outcome)
                tally.finish()
            messages = team.gather(summary.to_json(), waiting=lambda: bar.update(team.done() - bar.n))
    except BaseException:  # stopped: the page shows what was made, and the next run takes no picture for a photograph
        if options.compare is not None and team.rank == 0:
            with suppress(InputError):
                write_page(options.compare, (job.source for job in jobs))
        raise
    if not messages:
        return None

    total = _total(messages)
    if options.compare is not None:
        outdated = {*total.failed, *total.not_shown}  # an earlier run's pictures of these may exist
        try:
            write_page(options.compare, (job.source for job in jobs if job.source not in outdated))
        except InputError as error:
            total.failures.append(str(error))
    return total


def _check_request(network: nn.Module, request: Request) -> None:
    """Raise InputError if the request does not suit the network, or the network is none for photographs."""
    window_of(network, request.mode, request.patch_size)
    config = getattr(network, 'config', {})
    channels_in, channels_out = (config.get(name, 3) for name in ('num_in_ch', 'num_out_ch'))
    if not channels_in == channels_out == 3:
        raise InputError(f'the network turns {channels_in} channels into {channels_out}; a photograph has 3')


def _total(messages: Iterable[str]) -> Summary:
    total = Summary()
    for message in messages:
        total.add(Summary.from_json(message))
    return total


def _has_result(job: Job, options: Options) -> bool:
    return options.skip_existing and os.path.lexists(job.target)


def _is_done(job: Job, options: Options) -> bool:
    """Whether everything that this run would write for the photograph exists already."""
    if not _has_result(job, options):
        return False
    return options.compare is None or any(map(os.path.lexists, pictures_of(options.compare, job.source)))


class _Tally:
    """Count a photograph's work as it is done, and show on the bar what all processes have done."""

    def __init__(self, team: Team, job: Job, bar: tqdm) -> None:
        self.team, self.size, self.bar = team, _size(job), bar
        self.counted, self.last_update = 0, time.monotonic()

    def __call__(self, share: float) -> None:
        """Report that `share` of the computing, from 0 to 1, is done."""
        now = time.monotonic()
        if share == 1 or now - self.last_update >= TELL_AFTER:
            self.last_update = now
            self._count(int(share * COMPUTING * self.size))

    def finish(self) -> None:
        """Report that the photograph is finished: its result is written, or it failed."""
        self._count(self.size)

    def _count(self, amount: int) -> None:
        if amount > self.counted:  # the share falls back if the computing starts over in fp32
            done = self.team.add_done(amount - self.counted)
            self.counted = amount
            self.bar.update(done - self.bar.n)


def _progress_bar(team: Team, jobs: Sequence[Job]) -> tqdm:
    """The bar for all processes, shown by the first; its length is the total of the photographs' `_size`."""
    total = sum(map(_size, jobs)) if team.rank == 0 else 0
    return progress_bar(
        total=total,
        disable=not total,
        miniters=1,
        mininterval=TELL_AFTER,
        bar_format='restore: {percentage:3.0f}%|{bar}| {elapsed}, {remaining} left{postfix}',
    )


def _size(job: Job) -> int:
    """A photograph's approximate work: the bytes of its file, known without opening it; 0 if there is none."""
    try:
        return Path(job.source).stat().st_size
    except OSError:
        return 0
