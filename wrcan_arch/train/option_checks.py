"""Checks whether the toolbox can run an option file, and reports all problems at once before anything is created."""

import importlib.util
import inspect
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from basicsr.utils import registry

from .. import inference
from ..data import audit
from ..errors import InputError
from . import run_folder
from .class_checks import is_the_toolboxs, wrong_classes
from .lpips_metric import find_backbone
from .machine_checks import wrong_machine
from .option_schema import wrong_keys
from .options import Keys, OptionFile, data_paths, find, kind_of_phase, sections, weight_paths
from .weight_checks import unfit_weights
from .wrcan_model import is_wrcan_model

REQUIRED: dict[str, tuple[Keys, ...]] = {
    'train': (('datasets', 'train'), ('train',), ('logger',)),
    'test': (('val',),),
}
TRAINING_OF_OURS = (
    'amp accumulate channels_last checkpointing start_from_image autoencoder_opt gradient_compression max_skipped_steps'
)
WRCAN_MODEL_ONLY: tuple[Keys, ...] = (
    *(('train', key) for key in TRAINING_OF_OURS.split()),
    *(('val', key) for key in ('inference', 'best_metric', 'submission')),
    ('logger', 'keep_last'),
    ('deterministic',),
)
PAIRED = ('JPEGDeblurDataset', 'PairedImageDataset')
# The toolbox's models that raise without a pixel or a perceptual loss; others can learn from a GAN's alone.
NEED_PIXELS = 'SRModel SwinIRModel RealESRNetModel HiFaceGANModel EDVRModel VideoBaseModel VideoRecurrentModel'.split()
LOWER_IS_BETTER = {'calculate_lpips': 'LPIPS', 'calculate_niqe': 'NIQE'}


def check(file: OptionFile, command: str, *, auto_resume: bool = False) -> None:
    """Raise InputError, with one line for each problem, if the toolbox cannot run `command` ('train' or 'test')."""
    wrong = list(wrong_keys(file))
    if auto_resume and not wrong and _resumes(file):
        file = _without_pretrained(file)
    problems = [
        *file.problems,
        *wrong,
        *_unfit_for_command(file, command),
        *wrong_classes(file, build=not wrong),
        *_missing_data(file),
        *wrong_machine(file),
    ]
    if not problems:  # else these would be reported again, in other words
        problems = [each for look in CHECKS_OF_VALID_OPTIONS for each in look(file)]
    if problems:
        raise InputError('\n'.join(problems))


def _resumes(file: OptionFile) -> bool:
    """Whether the experiment has a training state to resume, so that no pretrained weights are read."""
    has_state = run_folder.iterations(Path('experiments', file.values['name']))
    return bool(has_state) and not find(file.values, 'path', 'ignore_resume_networks')


def _without_pretrained(file: OptionFile) -> OptionFile:
    weights = weight_paths(file.values)
    paths = {key: path for key, path in file.values['path'].items() if ('path', key) not in weights}
    return replace(file, values={**file.values, 'path': paths})


def _absent(file: OptionFile, *keys: str) -> Iterator[str]:
    if find(file.values, *keys) is None:
        yield f'{file.at(*keys)}: is missing'


def _unfit_for_command(file: OptionFile, command: str) -> Iterator[str]:
    for keys in REQUIRED[command]:
        yield from _absent(file, *keys)
    yield from _unfit_phases(file, command)
    yield from _incomplete_training(file) if command == 'train' else _unfit_test(file)
    if find(file.values, 'val', 'submission') and not find(file.values, 'val', 'save_img'):
        yield f'{file.at("val", "submission")}: needs save_img: true'


def _unfit_phases(file: OptionFile, command: str) -> Iterator[str]:
    for phase, dataset in sections(file.values, 'datasets').items():
        place = ('datasets', phase)
        if command == 'train' and phase != 'train' and kind_of_phase(phase) != 'val':
            yield f'{file.at(*place)}: data sets are called train, val, val_2 ...'
        if command == 'test' and kind_of_phase(phase) == 'train':
            yield f'{file.at(*place)}: gives random patches, for training; to score it, rename it to test'
        elif command == 'test' and kind_of_phase(phase) not in ('val', 'test'):
            yield f'{file.at(*place)}: data sets to be scored are called test, test_2 ..., or val'
        if dataset.get('persistent_workers') and phase != 'train':  # validation data are read without workers
            yield f'{file.at(*place, "persistent_workers")}: only training uses it, and sets it anyway; leave it out'
        if dataset.get('type') in PAIRED and (phase == 'train' or _compares_with_sharp_frames(file)):
            yield from _absent(file, *place, 'dataroot_gt')
        if dataset.get('type') == 'SingleImageDataset' and phase != 'train' and _compares_with_sharp_frames(file):
            hint = 'has no sharp frames for a metric to compare with; take a PairedImageDataset, or drop the metric'
            yield f'{file.at(*place, "type")}: {hint}'
        if phase == 'train' and dataset.get('type') in PAIRED:
            yield from _absent(file, *place, 'gt_size')
        if phase == 'train' and dataset.get('type') == 'PairedImageDataset':  # without these its first item fails
            yield from _absent(file, *place, 'use_hflip')
            yield from _absent(file, *place, 'use_rot')


def _unfit_test(file: OptionFile) -> Iterator[str]:
    if file.values.get('train'):
        hint = 'it would test the weights that the training began with; take a test_….yml'
        yield f'{file.at("train")}: this is the option file of a training: {hint}'
    is_ours = find(file.values, 'network_g', 'type') == 'WRCAN'
    is_used = find(file.values, 'val', 'inference', 'mode') != 'input'
    if is_ours and is_used and not find(file.values, 'path', 'pretrain_network_g'):
        yield f'{file.at("path", "pretrain_network_g")}: is missing; a network of random weights would be scored'


def _incomplete_training(file: OptionFile) -> Iterator[str]:
    if find(file.values, 'datasets', 'train') is not None:
        yield from _absent(file, 'datasets', 'train', 'num_worker_per_gpu')
        if find(file.values, 'datasets', 'train', 'batch_size_total') is None:
            yield from _absent(file, 'datasets', 'train', 'batch_size_per_gpu')
        elif find(file.values, 'datasets', 'train', 'batch_size_per_gpu') is not None:
            where = file.at('datasets', 'train', 'batch_size_total')
            yield f'{where}: batch_size_per_gpu is given too; set one of the two to ~'
    if file.values.get('val'):
        yield from _absent(file, 'val', 'val_freq')


def _compares_with_sharp_frames(file: OptionFile) -> bool:
    """Whether any metric compares with the sharp frame; NIQE, for one, takes only the restored image."""
    names = {str(metric.get('type')) for metric in sections(file.values, 'val', 'metrics').values()}
    known = [registry.METRIC_REGISTRY.get(name) for name in names if name in registry.METRIC_REGISTRY]
    return len(known) < len(names) or any('img2' in inspect.signature(each).parameters for each in known)


def _missing_data(file: OptionFile) -> Iterator[str]:
    for keys, root in data_paths(file.values).items():
        if not Path(root).exists():
            yield f"{file.at(*keys)}: there is no '{root}'; prepare it (see datasets_prep/) or name another"
    state = ('path', 'resume_state')
    for keys, path in {**weight_paths(file.values), state: find(file.values, *state)}.items():
        if isinstance(path, str) and not Path(path).is_file():
            yield f"{file.at(*keys)}: there is no file '{path}'"


def _unfit_logger(file: OptionFile) -> Iterator[str]:
    if 'debug' in file.values['name'] and file.values.get('train'):
        hint = 'a name with debug makes the toolbox set val_freq, print_freq and save_checkpoint_freq; take another'
        yield f'{file.at("name")}: {hint}'
    logger = file.values.get('logger') or {}
    if logger.get('use_tb_logger') and not importlib.util.find_spec('tensorboard'):
        yield f'{file.at("logger", "use_tb_logger")}: needs tensorboard; pip install tensorboard, or set it to false'
    if (logger.get('wandb') or {}).get('project'):
        if not logger.get('use_tb_logger'):
            yield f'{file.at("logger", "wandb")}: needs use_tb_logger: true'
        if not importlib.util.find_spec('wandb'):
            yield f'{file.at("logger", "wandb")}: needs wandb; pip install wandb, or leave it out'


def _unfit_losses(file: OptionFile) -> Iterator[str]:
    train = file.values.get('train') or {}
    data = file.values['datasets'].get('train') or {}
    model = file.values['model_type']
    has_loss = train.get('pixel_opt') or train.get('perceptual_opt')
    if train and not has_loss and (is_wrcan_model(model) or model in NEED_PIXELS):
        yield f'{file.at("train")}: needs pixel_opt or perceptual_opt'
    if train.get('autoencoder_opt') and not (data.get('jpeg_quality') or data.get('dataroot_gt_jpeg')):
        hint = 'set jpeg_quality in datasets:train of a JPEGDeblurDataset, or leave the loss out'
        yield f'{file.at("train", "autoencoder_opt")}: needs the sharp frames compressed as JPEG: {hint}'
    if not is_wrcan_model(model):
        return
    for name, loss in sections(file.values, 'train').items():
        if name.endswith('_opt') and loss.get('reduction', 'mean') != 'mean':
            reason = 'losses are averaged over parts of a batch and over processes, so each must be a mean'
            yield f'{file.at("train", name, "reduction")}: {reason}; leave it out'
    criterion = find(file.values, 'train', 'perceptual_opt', 'criterion')
    if criterion not in (None, 'l1'):  # fro is a norm of the whole batch; l2 fails in the toolbox
        yield f"{file.at('train', 'perceptual_opt', 'criterion')}: only l1 works here, not '{criterion}'; leave it out"


def _unfit_validation(file: OptionFile) -> Iterator[str]:
    if is_wrcan_model(file.values['model_type']):
        asked = find(file.values, 'val', 'inference') or {}
        network = find(file.values, 'network_g', 'type')
        try:
            inference.Request(**asked)
        except InputError as error:
            yield f'{file.at("val", "inference")}: {error}'
        if network != 'WRCAN' and (asked.get('mode') == 'local' or asked.get('max_memory')):
            yield f'{file.at("val", "inference")}: mode local and max_memory are for WRCAN, not for {network}'
    for name, metric in sections(file.values, 'val', 'metrics').items():
        chooses = file.values.get('train') and metric.get('type') in LOWER_IS_BETTER
        if chooses and metric.get('better') != 'lower':
            called = LOWER_IS_BETTER[metric['type']]
            yield f'{file.at("val", "metrics", name)}: lower {called} is better; add better: lower'
        if metric.get('type') != 'calculate_lpips':
            continue
        try:
            find_backbone()
        except InputError as error:
            yield f'{file.at("val", "metrics", name)}: {error}'


def _unfit_model(file: OptionFile) -> Iterator[str]:
    """Yield options of WRCANModel that the toolbox's own models would silently ignore."""
    model = file.values['model_type']
    if not is_the_toolboxs(model):
        return
    for keys in WRCAN_MODEL_ONLY:
        asked = find(file.values, *keys)
        if asked is not False and asked not in (None, 'off', 'none'):  # 0 is not off
            yield f'{file.at(*keys)}: {model} does not know it; leave it out, or set model_type: WRCANModel'
    if find(file.values, 'train', 'optim_g', 'type') == 'Muon':
        at = file.at('train', 'optim_g', 'type')
        yield f'{at}: {model} does not know it; take Adam, or set model_type: WRCANModel'


def _unfit_schedule(file: OptionFile) -> Iterator[str]:
    train = file.values.get('train') or {}
    scheduler = train.get('scheduler') or {}
    periods = scheduler.get('periods')
    last = train.get('total_iter', 0)
    if periods and sum(periods) < last - 1:
        message = f'the periods end at iteration {sum(periods)}, the run at {last}; leave them out to cover the run'
        yield f'{file.at("train", "scheduler", "periods")}: {message}'
    weights, parts = scheduler.get('restart_weights', [1]), periods or scheduler.get('restarts', [0])
    if scheduler and len(weights) != len(parts):
        message = f'{len(weights)} given for {len(parts)} {"periods" if periods else "restarts"}; give one for each'
        yield f'{file.at("train", "scheduler", "restart_weights")}: {message}'


def _unfit_network(file: OptionFile) -> Iterator[str]:
    network = file.values.get('network_g') or {}
    needs_wrcan = is_wrcan_model(file.values['model_type']) and network.get('type') != 'WRCAN'
    for name in ('start_from_image', 'autoencoder_opt', 'checkpointing'):
        if needs_wrcan and find(file.values, 'train', name):
            yield f'{file.at("train", name)}: is for WRCAN, not for {network.get("type")}; leave it out'
    if find(file.values, 'train', 'start_from_image') and find(file.values, 'path', 'pretrain_network_g'):
        message = 'path:pretrain_network_g would overwrite it; leave one of the two out'
        yield f'{file.at("train", "start_from_image")}: {message}'
    for key in ('num_in_ch', 'num_out_ch'):
        if network.get('type') == 'WRCAN' and network.get(key, 3) != 3:
            yield f'{file.at("network_g", key)}: the data sets give frames of 3 channels, not {network[key]}'
    for phase, dataset in sections(file.values, 'datasets').items():
        if network.get('type') == 'WRCAN' and dataset.get('color') == 'y':
            yield f'{file.at("datasets", phase, "color")}: WRCAN takes 3 channels, not the luma alone; leave it out'


def _unfit_scale(file: OptionFile) -> Iterator[str]:
    """Yield the classes that keep an image's size, if `scale` asks to enlarge it."""
    if file.values['scale'] == 1:
        return
    model, network = file.values['model_type'], find(file.values, 'network_g', 'type')
    kept = {model: 'SRModel'} if is_wrcan_model(model) else {}
    kept |= {'WRCAN': 'another network'} if network == 'WRCAN' else {}
    kept |= {
        data['type']: 'a PairedImageDataset'
        for data in sections(file.values, 'datasets').values()
        if data['type'] == 'JPEGDeblurDataset'
    }
    for name, instead in kept.items():
        yield f'{file.at("scale")}: {name} keeps the size of an image; set scale to 1, or take {instead}'


def _unfit_data_sets(file: OptionFile) -> Iterator[str]:
    scored = {phase: data for phase, data in sections(file.values, 'datasets').items() if phase != 'train'}
    first_of: dict[str, str] = {}
    for phase, data in scored.items():
        first = first_of.setdefault(data['name'], phase)
        if first != phase:
            where = file.at('datasets', phase, 'name')
            yield f"{where}: '{data['name']}' is also the name of {first}; give each its own"
        if find(file.values, 'val', 'submission') and data['type'] != 'JPEGDeblurDataset':
            message = f'val:submission takes a JPEGDeblurDataset, not a {data["type"]}'
            yield f'{file.at("datasets", phase, "type")}: {message}'


def _unfit_frames(file: OptionFile) -> Iterator[str]:
    for phase, dataset in sections(file.values, 'datasets').items():
        if dataset['type'] in ('JPEGDeblurDataset', *audit.TOOLBOX_DATASETS):
            every = find(file.values, 'val', 'submission', 'every') if phase != 'train' else None
            scale = file.values['scale']
            for problem in audit.quick_problems(dataset, kind_of_phase(phase), scale=scale, every=every):
                yield f'{file.at("datasets", phase)}: {problem}'


CHECKS_OF_VALID_OPTIONS = (
    _unfit_logger,
    _unfit_losses,
    _unfit_validation,
    _unfit_model,
    _unfit_schedule,
    _unfit_network,
    _unfit_scale,
    _unfit_data_sets,
    unfit_weights,
    _unfit_frames,
)  # checks of options that are valid one by one, the cheapest first
