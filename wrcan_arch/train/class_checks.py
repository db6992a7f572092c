"""Checks whether the classes and metrics that an option file names exist and take the arguments of their sections."""

import difflib
import inspect
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from basicsr.utils import registry

from .muon import Muon
from .options import Keys, OptionFile, find, sections

OPTIMIZERS = {'Adam': torch.optim.Adam, 'Muon': Muon}
# Modules whose metrics take **kwargs only to ignore them; other metrics may use them.
WITHOUT_FURTHER_ARGUMENTS = ('basicsr.metrics.', 'wrcan_arch.')


def wrong_classes(file: OptionFile, *, build: bool) -> Iterator[str]:
    """Yield names that no registry knows, arguments that a class does not take, and errors raised when it is built."""
    yield from _unknown(file, file.values.get('model_type'), ('model_type',), registry.MODEL_REGISTRY)
    for phase, dataset in sections(file.values, 'datasets').items():
        yield from _unknown(file, dataset.get('type'), ('datasets', phase, 'type'), registry.DATASET_REGISTRY)
    yield from _wrong_metrics(file, registry.METRIC_REGISTRY)
    yield from _wrong_section(file, ('network_g',), registry.ARCH_REGISTRY, build=build)
    training = sections(file.values, 'train')
    for name in training:
        if name.endswith('_opt'):
            yield from _wrong_section(file, ('train', name), registry.LOSS_REGISTRY, build=build)
    arguments = dict(training.get('optim_g', {}))
    optimizer = OPTIMIZERS.get(str(arguments.pop('type', None)))
    if optimizer:  # a plugin's model may have others
        arguments['params'] = [torch.zeros(1)]
        yield from _wrong_arguments(file, optimizer, arguments, ('train', 'optim_g'), build=build)


def _is_in(known: Any, name: Any) -> bool:
    return isinstance(name, str) and name in known


def _unknown(file: OptionFile, name: Any, keys: Keys, known: Any) -> Iterator[str]:
    if name is not None and not _is_in(known, name):
        near = difflib.get_close_matches(str(name), known.keys(), n=1)
        hint = f'did you mean {near[0]}?' if near else f'there are {", ".join(sorted(known.keys()))}'
        if isinstance(known, registry.Registry):
            hint += ' (one of your own: see docs/options.md)'
        yield f"{file.at(*keys)}: there is no '{name}'; {hint}"


def _wrong_metrics(file: OptionFile, known: Any) -> Iterator[str]:
    metrics = sections(file.values, 'val', 'metrics')
    for name, section in metrics.items():
        yield from _unknown(file, section.get('type'), ('val', 'metrics', name, 'type'), known)
        if _is_in(known, section.get('type')):
            metric = known.get(section['type'])
            passed = _passed_to_metric(file, metric, section)
            yield from _unfit_arguments(file, metric, passed, ('val', 'metrics', name))
    yield from _unknown(file, find(file.values, 'val', 'best_metric'), ('val', 'best_metric'), metrics)


def is_the_toolboxs(model_type: Any) -> bool:
    models = registry.MODEL_REGISTRY
    return _is_in(models, model_type) and models.get(model_type).__module__.startswith('basicsr.')


def _takes_others(target: Callable) -> bool:
    return any(each.kind == each.VAR_KEYWORD for each in inspect.signature(target).parameters.values())


def _passed_to_metric(file: OptionFile, metric: Callable, section: Mapping[str, Any]) -> set[str]:
    """Return what validation passes to a metric, by name, except for `better` and img2 if **kwargs take them."""
    passed = set(section) - {'type', 'better'}
    passed |= {'img', 'img2'} & inspect.signature(metric).parameters.keys()
    if not _takes_others(metric):
        scored = (data for phase, data in sections(file.values, 'datasets').items() if phase != 'train')
        if any(data.get('dataroot_gt') for data in scored):
            passed.add('img2')
        if 'better' in section and is_the_toolboxs(file.values.get('model_type')):  # WRCANModel leaves it out
            passed.add('better')
    return passed


def _wrong_section(file: OptionFile, keys: Keys, known: Any, *, build: bool) -> Iterator[str]:
    """Yield what is wrong in a section from which a registry builds a network or a loss."""
    section = find(file.values, *keys)
    arguments = dict(section) if isinstance(section, dict) else {}
    name = arguments.pop('type', None)
    yield from _unknown(file, name, (*keys, 'type'), known)
    if _is_in(known, name):
        yield from _wrong_arguments(file, known.get(name), arguments, keys, build=build)


def _wrong_arguments(
    file: OptionFile, target: Callable, arguments: dict[str, Any], keys: Keys, *, build: bool
) -> Iterator[str]:
    unfit = list(_unfit_arguments(file, target, set(arguments), keys))
    yield from unfit
    if build and not unfit:
        yield from _unfit_values(file, target, arguments, keys)


def _unfit_arguments(file: OptionFile, target: Callable, passed: set[str], keys: Keys) -> Iterator[str]:
    taken = inspect.signature(target).parameters
    if not _takes_others(target) or target.__module__.startswith(WITHOUT_FURTHER_ARGUMENTS):
        for name in passed - taken.keys():
            near = difflib.get_close_matches(name, taken, n=1)
            hint = f'did you mean {near[0]}?' if near else f'it takes {", ".join(taken)}'
            place = (*keys, name)
            yield f'{file.at(*place)}: {target.__name__} does not take it; {hint}'
    for name, each in taken.items():
        given = name in passed or each.default is not each.empty
        if not given and each.kind in (each.POSITIONAL_OR_KEYWORD, each.KEYWORD_ONLY):
            yield f'{file.at(*keys)}: {target.__name__} needs {name}'


def _unfit_values(file: OptionFile, target: Callable, arguments: dict[str, Any], keys: Keys) -> Iterator[str]:
    """Build a class of ours or PyTorch's, and yield its error. Other classes may download or compile when built."""
    if target.__module__.startswith(('wrcan_arch.', 'torch.')):
        try:
            with torch.device('meta'):
                target(**arguments)
        except (TypeError, ValueError, RuntimeError) as error:
            yield f'{file.at(*keys)}: {error}'
