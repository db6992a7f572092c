"""Manage an experiment's folder: one run at a time in it, training states and weights in pairs, room for them.

A pair is `training_states/N.state` and `models/net_g_N.pth`. The weights are written first and the state holds their
checksum, so if a state exists and is whole, its weights are too. Each is written whole or not at all.
"""

import glob
import logging
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from itertools import count
from pathlib import Path
from typing import Any, TypeVar

from .. import checkpoint
from ..errors import InputError, RunError
from ..system.file_lock import locked
from ..system.files import ADVICE, disk_errors_as_input_errors

logger = logging.getLogger('basicsr')  # the toolbox's
RETRY_PAUSES = (1, 5, 30)  # seconds between attempts; a network disk may come back
STATE_KEYS = {'iter', 'epoch', 'optimizers', 'schedulers'}
Written = TypeVar('Written')


@contextmanager
def only_run_in(folder: Path) -> Iterator[None]:
    """Lock a folder of experiments/ or results/ against a second run. However the first ends, the kernel unlocks it.

    The lock file lies beside the folder, because a run that starts over renames the folder.
    """
    with ExitStack() as held:
        with disk_errors_as_input_errors(folder.parent, 'run this where it can be made'):
            folder.parent.mkdir(parents=True, exist_ok=True)
            lock = folder.parent / f'.{folder.name}.lock'
            held.enter_context(locked(lock, f'{folder}: another run is at work there'))
        yield


def write_with_retries(write: Callable[[], Written]) -> Written:
    """Return what `write` returns; on an OSError retry after RETRY_PAUSES, then raise RunError, which ends the run."""
    pauses = iter(RETRY_PAUSES)
    while True:
        try:
            return write()
        except OSError as error:
            said, pause = f'{error.filename}: {error.strerror}', next(pauses, None)
            if pause is None:
                gone = isinstance(error, FileNotFoundError)
                hint = 'put its folder back' if gone else ADVICE.get(error.errno, 'check the disk')
                raise RunError(f'{said}; the run ends, {hint} and go on with --auto_resume') from error
            logger.warning(f'{said}; trying again in {pause} s')
            time.sleep(pause)


def iterations(folder: Path) -> list[int]:
    """Return the iterations of the training states in an experiment's folder, newest first."""
    states = (path.stem for path in (folder / 'training_states').glob('*.state'))
    return sorted((int(stem) for stem in states if stem.isdecimal()), reverse=True)


def newest_archive(folder: Path) -> Path | None:
    """Return the newest run of this name that was put aside and has training states; None if there is none."""
    archives = folder.parent.glob(f'{glob.escape(folder.name)}_archived_*')
    return max((each for each in archives if iterations(each)), default=None)  # the name ends in the time


def state_path(folder: Path, iteration: int | str) -> Path:
    return folder / 'training_states' / f'{iteration}.state'


def weights_path(folder: Path, label: int | str, network: str = 'g') -> Path:
    return folder / 'models' / f'net_{network}_{label}.pth'


def read_state(path: Path | str) -> dict[str, Any]:
    """Read a training state; InputError if the file is damaged or something else."""
    state = checkpoint.read_file(path)
    if not isinstance(state, dict) or not state.keys() >= STATE_KEYS:
        raise InputError(f'{path}: not a training state; give a .state file')
    return state


def read_pair(folder: Path, iteration: int, networks: list[str]) -> dict[str, Any]:
    """Read the state of `iteration`; InputError unless it and the weights of all networks are whole and match."""
    state = read_state(state_path(folder, iteration))
    for network in networks:
        check_weights(state, weights_path(folder, iteration, network), network)
    return state


def check_weights(state: Mapping[str, Any], path: Path, network: str = 'g') -> None:
    """Raise InputError unless the weights are whole and, for network_g, those that the state was saved with."""
    checksums = checkpoint.read_weights(path)[1].get('checksum')
    if network == 'g' and state.get('weights', checksums) != checksums:
        raise InputError(f'{path}: not the weights that {state["iter"]}.state was saved with')


def newest_pair(folder: Path, networks: list[str]) -> tuple[dict[str, Any] | None, list[str]]:
    """Return the newest whole pair's state (None if there are no pairs), and what is wrong with each newer pair.

    InputError if there are pairs but none is whole: whether to start over is for the user to decide.
    """
    passed_over: list[str] = []
    for iteration in iterations(folder):
        try:
            return read_pair(folder, iteration, networks), passed_over
        except InputError as error:
            passed_over.append(str(error))
    if passed_over:
        raise InputError(
            f'{folder}: none of its {len(passed_over)} checkpoints is whole ({passed_over[0]}); '
            'to start over, run it without --auto_resume'
        )
    return None, []


def rename_newer(folder: Path, iteration: int, networks: list[str]) -> list[str]:
    """Rename files of later iterations to *.after_N: they do not belong to a run that resumes at `iteration` = N.

    Returns:
        the iterations of the pairs, and 'best' if the best network is of a later one.
    """
    newer = [str(each) for each in iterations(folder) if each > iteration]
    if _iteration_of_best(folder) > iteration:
        newer.append('best')
    for each in newer:
        weights = (weights_path(folder, each, network) for network in networks)
        for path in filter(Path.is_file, (*weights, state_path(folder, each))):
            names = (path.with_name(f'{path.name}.after_{iteration}{"_" * more}') for more in count())
            path.rename(next(name for name in names if not name.exists()))
    return newer


def _iteration_of_best(folder: Path) -> int:
    """Return the iteration of the best network; -1 if there is none or it cannot be read."""
    with suppress(InputError):
        return int(checkpoint.read_weights(weights_path(folder, 'best'))[1].get('iter', -1))
    return -1


def remove_partial(folder: Path) -> None:
    """Remove what a killed save left behind."""
    for part in ('models', 'training_states'):
        for path in (folder / part).glob('*.partial'):
            path.unlink()


def remove_old(folder: Path, iteration: int, keep: int) -> None:
    """Keep `keep` pairs, the newest being that of `iteration`, just written. Remove a state before its weights.

    Later pairs are left: a resume passed over them as damaged, and this run will overwrite them.
    """
    older = [each for each in iterations(folder) if each < iteration]
    for each in older[keep - 1 :]:
        state_path(folder, each).unlink()
    kept = {str(each) for each in older[: keep - 1]}
    for path in (folder / 'models').glob(weights_path(folder, '*').name):
        label = path.stem.removeprefix('net_g_')
        if label.isdecimal() and int(label) < iteration and label not in kept:  # also what a killed removal left
            path.unlink()


def check_disk_space(
    folder: Path, parameters: int, *, averaged: bool, start: int, total: int, every: int, keep: int | None
) -> None:
    """Raise InputError unless the run's checkpoints have room on the disk.

    Args:
        folder: the experiment's folder.
        parameters: number of the network's parameters.
        averaged: whether averaged weights are saved too.
        start, total: iterations done so far, and at the end of the run.
        every: iterations between checkpoints.
        keep: how many checkpoints are kept; None for all.
    """
    weights = 4 * parameters * (2 if averaged else 1)
    state = 4 * parameters * 2  # Adam's two moments
    pairs = -(-total // every) - start // every  # rounded up: the last iteration is always saved
    if keep is not None:  # one more: an old pair is removed only after the new one is written
        pairs = min(pairs, max(1, keep + 1 - sum(each <= start for each in iterations(folder))))
    there = sum(weights_path(folder, label).is_file() for label in ('best', 'latest'))
    needed = pairs * (weights + state) + (3 - there) * weights  # best, latest, and a copy while one is rewritten
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise InputError(
            f'{folder}: the checkpoints to come need {needed:,} bytes, but only {free:,} are free; '
            'make room, save less often or keep fewer (logger:save_checkpoint_freq, logger:keep_last)'
        )
