"""One run of a pipeline: what the replaced functions of the toolbox share, and the checkpoint that it goes on from."""

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from basicsr.utils import check_resume, get_root_logger

from ..errors import InputError
from ..system.processes import Team
from . import run_folder
from .options import weight_paths
from .stopping import StopReasons, signals_ask
from .weight_checks import check_resumed_weights
from .wrcan_model import is_wrcan_model

TIMEOUT = 600  # seconds that processes wait for each other, unless dist_params:timeout says otherwise


@dataclass
class Run:
    """What the toolbox's replaced functions share during one run."""

    command: str = ''
    options: dict[str, Any] = field(default_factory=dict)
    held: ExitStack = field(default_factory=ExitStack)  # contexts that stay open until the run ends
    team: Team = field(default_factory=Team)
    timeout: float = TIMEOUT  # seconds that processes wait for each other
    stop: StopReasons = field(default_factory=StopReasons)
    resume_state: dict[str, Any] | None = None  # creating the loaders corrects its epoch
    warnings: list[str] = field(default_factory=list)  # collected until the log is open
    val_loaders: list[Any] = field(default_factory=list)
    draws_before: Callable[[int], int] | None = None  # the loader's DrawSampler.draws_before
    model: Any = None


def load_resume_state(run: Run, opt: dict[str, Any]) -> dict[str, Any] | None:
    """Return the training state to resume from, or None for a new run; first take over signals, a GPU and the folder.

    With auto_resume it is the state of the experiment's newest whole pair of state and weights; InputError if there are
    pairs but none is whole. Without auto_resume, or if there are no pairs, it is the state that the options name. A
    process that torchrun restarts resumes from what its predecessor saved, if that one had begun to train.
    """
    folder = Path(opt['path']['experiments_root'])
    _take_over(run, opt, folder)
    state, opt['auto_resume'] = _state_to_go_on_from(run, opt, folder)
    run.team.agree({'the checkpoint to go on from as': str(state and state['iter'])}, timeout=run.timeout)
    if state:
        _go_on_from(run, opt, state, folder)
    else:
        _check_weights_stay(opt, folder)
    run.resume_state = state
    return state


def _take_over(run: Run, opt: dict[str, Any], folder: Path) -> None:
    """Install signal handlers, settle for one GPU and, at rank 0, lock and tidy up the experiment's folder."""
    if is_wrcan_model(opt['model_type']):  # it can be asked to end; any other model's run ends at once
        run.held.enter_context(signals_ask(run.stop))
        if not opt['dist'] and opt['num_gpu'] > 1:
            hint = f'torchrun --nproc_per_node={opt["num_gpu"]} -m wrcan_arch train ... uses all'
            run.warnings.append(f'One of {opt["num_gpu"]} GPUs is used; {hint}.')
            opt['num_gpu'] = 1
    if opt['rank'] == 0:
        run.held.enter_context(run_folder.only_run_in(folder))
        run_folder.remove_partial(folder)


def _networks(opt: dict[str, Any]) -> list[str]:
    return [key.removeprefix('network_') for key in opt if key.startswith('network_')]


def _state_to_go_on_from(run: Run, opt: dict[str, Any], folder: Path) -> tuple[dict[str, Any] | None, bool]:
    """Return the state, if there is one, and whether it is the folder's newest rather than one that is named."""
    is_restart = run.team.noted_before_restart(f'began {folder}')
    named = opt['path'].get('resume_state')
    if is_restart or opt['auto_resume']:
        state, passed_over = run_folder.newest_pair(folder, _networks(opt))
        run.warnings += [f'Passed over: {damaged}' for damaged in passed_over]
        if state:
            return state, True
        if folder.is_dir() and not named:
            if not is_restart:  # a restarted run may itself have put an older one aside
                _check_not_forgotten(folder)
            run.warnings.append(f'{folder} had no training state to go on from: the run starts at iteration 0.')
    return (run_folder.read_state(named) if named else None), False


def _check_not_forgotten(folder: Path) -> None:
    """Raise InputError if the run to resume was put aside, as by a run without --auto_resume that saved no state."""
    if archive := run_folder.newest_archive(folder):
        raise InputError(
            f'{folder} has no training state, but {archive.name} beside it has: to go on from that, move {folder.name} '
            f'away, rename {archive.name} to {folder.name} and run this again; to start over, leave --auto_resume out'
        )


def _go_on_from(run: Run, opt: dict[str, Any], state: dict[str, Any], folder: Path) -> None:
    """Have the toolbox load the weights of `state`; InputError if they are not those that it was saved with."""
    if opt['auto_resume']:
        opt['path']['resume_state'] = str(run_folder.state_path(folder, state['iter']))
    check_resume(opt, state['iter'])
    total_iter = int(opt['train']['total_iter'])
    if state['iter'] >= total_iter:
        message = f'The run is at iteration {state["iter"]} already, train:total_iter is {total_iter}'
        run.warnings.append(f'{message}: nothing is trained.')
    ignored = opt['path'].get('ignore_resume_networks') or ()
    if 'network_g' not in ignored and opt['path'].get('param_key_g', 'params') is None:
        opt['path']['param_key_g'] = 'params'  # a run may begin with bare tensors, but saves none
    if not opt['auto_resume'] and 'network_g' in opt and 'network_g' not in ignored:
        weights, named = Path(opt['path']['pretrain_network_g']), opt['path']['resume_state']
        its_folder = Path(named).resolve().parent.parent
        if not weights.is_file() and its_folder != folder.resolve():
            raise InputError(
                f'path:resume_state: {named} is of another experiment; give the run the name {its_folder.name}, '
                'or begin a new one with its weights as path:pretrain_network_g'
            )
        run_folder.check_weights(state, weights)
    if 'network_g' not in ignored:
        check_resumed_weights(opt)
    keep = opt['logger'].get('keep_last')
    if keep and opt['auto_resume'] and opt['rank'] == 0:  # a save that was killed may have left old ones
        run_folder.remove_old(folder, state['iter'], keep)


def _check_weights_stay(opt: dict[str, Any], folder: Path) -> None:
    """Raise InputError if the pretrained weights lie in the folder that this new run would archive."""
    for keys, path in weight_paths(opt).items():
        if folder.resolve() in Path(path).resolve().parents:
            raise InputError(
                f"{':'.join(keys)}: {path} is in this run's own folder, which a new run puts aside; give the run "
                'another name, or go on with --auto_resume'
            )


def begin_run(run: Run, opt: dict[str, Any]) -> None:
    """Prepare the experiment's folder right before the first iteration of this run.

    From here on a process that torchrun restarts resumes from what this run saves. So must --auto_resume: therefore, if
    the run resumes from a named state, newer ones beside it are renamed.
    """
    folder, state = Path(opt['path']['experiments_root']), run.resume_state
    if state and not opt['auto_resume'] and state['iter'] < int(opt['train']['total_iter']) and opt['rank'] == 0:
        newer = run_folder.rename_newer(folder, state['iter'], _networks(opt))
        what = f'{", ".join(newer)} to *.after_{state["iter"]}'
        if newer:
            get_root_logger().warning(f'Renamed later checkpoints {what}, so that --auto_resume goes on from this run')
    if opt['rank'] == 0:
        run.team.note_for_restarts(f'began {folder}')
