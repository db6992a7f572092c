"""Option files: read safely, `base:` resolved, checked before anything is created on disk."""

import difflib
import inspect
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
import yaml

from .errors import InputError


class OptionLoader(yaml.SafeLoader):
    """YAML's safe loader that reads 1e-4 as a number and refuses a key that stands twice."""


OptionLoader.add_implicit_resolver(
    'tag:yaml.org,2002:float', re.compile(r'^[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+$'), list('-+.0123456789')
)


def _mapping_without_duplicates(loader: OptionLoader, node: yaml.MappingNode) -> dict:
    seen = set()
    for key_node, _ in node.value:
        if key_node.value in seen:
            raise yaml.MarkedYAMLError(None, None, f"the key '{key_node.value}' stands twice", key_node.start_mark)
        seen.add(key_node.value)
    return loader.construct_mapping(node, deep=True)


OptionLoader.add_constructor(yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, _mapping_without_duplicates)


def parse_yaml(text: str, source: str) -> Any:
    """What `text` says; `source` names it in errors."""
    try:
        return yaml.load(text, OptionLoader)  # a SafeLoader: it makes plain values only
    except yaml.MarkedYAMLError as error:
        line = f':{error.problem_mark.line + 1}' if error.problem_mark else ''
        raise InputError(f'{source}{line}: {error.problem}') from error
    except yaml.YAMLError as error:
        raise InputError(f'{source}: not YAML, {" ".join(str(error).split())}') from error


DEFAULTS = {'num_gpu': 'auto', 'manual_seed': 0, 'scale': 1, 'path': {}}  # of keys that the toolbox cannot do without


def read_options(path: Path | str, overrides: list[str] | tuple[str, ...] = ()) -> dict[str, Any]:
    """The options of a file, over those of the file that its `base:` names, under `overrides`.

    Args:
        path: the option file.
        overrides: 'train:total_iter=20', each the path of a key that is there, and its new value in YAML.
    """
    options = DEFAULTS | _read_with_bases(Path(path), ())
    for override in overrides:
        keys, equals, value = override.partition('=')
        *parents, last = keys.strip().split(':')
        section: Any = options
        for parent in parents:
            section = section.get(parent) if isinstance(section, dict) else None
        if not equals or not isinstance(section, dict) or last not in section:
            raise InputError(f"--force_yml {override}: there is no option '{keys.strip()}' in {path} to set")
        section[last] = parse_yaml(value, f'--force_yml {override}')
    return options


def _read_with_bases(path: Path, above: tuple[Path, ...]) -> dict[str, Any]:
    if not path.is_file():
        raise InputError(f'{path}: there is no such option file' + (f' (the base of {above[-1]})' if above else ''))
    if path.resolve() in (other.resolve() for other in above):
        raise InputError(f'{above[-1]}: base: {path.name} leads back to itself')
    try:
        text = path.read_text(encoding='utf-8')
    except UnicodeDecodeError as error:
        raise InputError(f'{path}: not a text file in UTF-8') from error
    options = parse_yaml(text, str(path))
    if not isinstance(options, dict):
        raise InputError(f'{path}: an option file is a mapping of keys to values')
    if 'base' not in options:
        return options
    base = options.pop('base')
    return _merge(_read_with_bases(path.parent / base, (*above, path)), options)


def _merge(base: dict[str, Any], own: dict[str, Any]) -> dict[str, Any]:
    """`own` over `base`, section by section. A section that is set to ~ is left out."""
    merged = dict(base)
    for key, value in own.items():
        if isinstance(value, dict) and isinstance(merged.get(key), dict):
            merged[key] = _merge(merged[key], value)
        elif value is None and isinstance(merged.get(key), dict):
            del merged[key]
        else:
            merged[key] = value
    return merged


# What the toolbox reads without a default, and would miss only after hours.
REQUIRED = {
    'train': (
        'name model_type network_g datasets:train datasets:train:name datasets:train:type '
        'datasets:train:num_worker_per_gpu datasets:train:batch_size_per_gpu train:optim_g:type train:optim_g:lr '
        'train:scheduler:type train:total_iter logger:print_freq logger:save_checkpoint_freq logger:use_tb_logger'
    ).split(),
    'test': 'name model_type network_g datasets val:save_img'.split(),
}
REQUIRED_WITH_VALIDATION = ['val:val_freq', 'val:save_img']


def check(options: dict[str, Any], command: str, source: str) -> None:
    """Raise InputError, a line for each problem, if the toolbox could not run `command` on `options`.

    Args:
        options: as `read_options` gives them.
        command: 'train' or 'test'.
        source: the file's name, for the messages.
    """
    problems = list(_missing(options, command))
    if not problems:
        problems = [*_wrong_classes(options), *_missing_data(options), *_wrong_machine(options)]
    if problems:
        raise InputError('\n'.join(f'{source}: {problem}' for problem in problems))


def _find(options: Any, keys: str) -> Any:
    for key in keys.split(':'):
        if not isinstance(options, dict) or key not in options:
            return None
        options = options[key]
    return options


def _missing(options: dict[str, Any], command: str) -> Iterator[str]:
    required = list(REQUIRED[command])
    if command == 'train' and options.get('val'):
        required += REQUIRED_WITH_VALIDATION
    for name in _find(options, 'val:metrics') or {}:
        required += [f'val:metrics:{name}:type', f'val:metrics:{name}:crop_border']
    for keys in required:
        if _find(options, keys) is None:
            yield f'{keys} is missing'
    if command == 'test' and 'suffix' not in (options.get('val') or {}):
        yield 'val:suffix is missing; write ~ for none'


def _wrong_classes(options: dict[str, Any]) -> Iterator[str]:
    """Names that no registry knows, and arguments that a class does not take."""
    from basicsr.utils import registry

    yield from _unknown_name(options['model_type'], 'model_type', registry.MODEL_REGISTRY)
    for phase, dataset in options['datasets'].items():
        yield from _unknown_name(dataset.get('type'), f'datasets:{phase}:type', registry.DATASET_REGISTRY)
    for name, metric in (_find(options, 'val:metrics') or {}).items():
        yield from _unknown_name(metric['type'], f'val:metrics:{name}:type', registry.METRIC_REGISTRY)

    def build(arguments: dict[str, Any], keys: str, known: Any) -> Iterator[str]:
        arguments = dict(arguments)
        name = arguments.pop('type', None)
        yield from _unknown_name(name, f'{keys}:type', known)
        if name in known:
            yield from _unfit_arguments(known.get(name), arguments, f'{keys}: {name}')

    yield from build(options['network_g'], 'network_g', registry.ARCH_REGISTRY)
    for name, section in (options.get('train') or {}).items():
        if isinstance(section, dict) and name.endswith('_opt'):
            yield from build(section, f'train:{name}', registry.LOSS_REGISTRY)


def _unknown_name(name: Any, keys: str, known: Any) -> Iterator[str]:
    if name not in known:
        near = difflib.get_close_matches(str(name), known.keys(), n=1)
        hint = f'did you mean {near[0]}?' if near else f'there are {", ".join(sorted(known.keys()))}'
        yield f"{keys}: there is no '{name}'; {hint}"


def _unfit_arguments(known: Callable, arguments: dict[str, Any], what: str) -> Iterator[str]:
    try:
        inspect.signature(known).bind(**arguments)
    except TypeError as error:
        yield f'{what}: {error}; it takes {", ".join(inspect.signature(known).parameters)}'


def _missing_data(options: dict[str, Any]) -> Iterator[str]:
    for phase, dataset in options['datasets'].items():
        for key, root in dataset.items():
            if key.startswith('dataroot') and root is not None and not Path(root).expanduser().exists():
                yield f"datasets:{phase}:{key}: there is no '{root}'; prepare it (see datasets_prep/) or name another"
    for key, path in (options.get('path') or {}).items():
        if key.startswith(('pretrain_network', 'resume_state')) and path and not Path(path).expanduser().is_file():
            yield f"path:{key}: there is no file '{path}'"


def _wrong_machine(options: dict[str, Any]) -> Iterator[str]:
    found = torch.cuda.device_count()
    if options['num_gpu'] != 'auto' and options['num_gpu'] > found:
        yield f'num_gpu: {options["num_gpu"]} asked for, this machine has {found}; write auto to take what is there'
    for phase, dataset in options['datasets'].items():
        if dataset.get('persistent_workers') and not dataset.get('num_worker_per_gpu'):
            yield f'datasets:{phase}:persistent_workers needs num_worker_per_gpu of at least 1'
        if dataset.get('prefetch_mode') == 'cuda' and not found:
            yield f'datasets:{phase}:prefetch_mode: cuda needs a GPU; leave it out on this machine'
