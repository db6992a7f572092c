"""Reads option files safely, resolves `base:` and keeps each value's origin.

option_schema.py and option_checks.py find what is wrong with them.
"""

import copy
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from ..errors import InputError
from ..weights import BUNDLED

Keys = tuple[str, ...]
MOST_VALUES = 10_000  # of a file; aliases of aliases make any number out of a few lines


class OptionLoader(yaml.SafeLoader):
    """YAML's safe loader, which makes only plain values. 1e-4 is a number and `off` a string, as in YAML 1.2.

    BasicSR reads YAML 1.1, in which `off` is false, so _Reader refuses such words without quotes, but for train:amp.
    """

    yaml_implicit_resolvers = {
        first: [(tag, pattern) for tag, pattern in resolvers if tag != 'tag:yaml.org,2002:bool']
        for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }
    yaml_constructors = {  # no option takes the others, and _Reader would not count the values in them
        tag: constructor
        for tag, constructor in yaml.SafeLoader.yaml_constructors.items()
        if tag not in ('tag:yaml.org,2002:omap', 'tag:yaml.org,2002:pairs', 'tag:yaml.org,2002:set')
    }


OptionLoader.add_implicit_resolver(
    'tag:yaml.org,2002:bool', re.compile(r'^([Tt]rue|TRUE|[Ff]alse|FALSE)$'), list('tTfF')
)
OptionLoader.add_implicit_resolver(
    'tag:yaml.org,2002:float', re.compile(r'^[-+]?(\d+(\.\d*)?|\.\d+)[eE][-+]?\d+$'), list('-+.0123456789')
)


BOOLEANS_OF_YAML_1_1 = re.compile('yes|Yes|YES|no|No|NO|on|On|ON|off|Off|OFF')
WITH_OFF = ('train', 'amp')  # takes the text `off`; the schema says what else


@dataclass
class OptionFile:
    """Resolved options.

    Attributes:
        source: the path of the option file that was asked for.
        values: the options that the toolbox gets.
        origins: the file and line of each key, by the key's path; the origin of an override is its own text.
        problems: one line for each mistake in the text.
    """

    source: str
    values: dict[str, Any] = field(default_factory=dict)
    origins: dict[Keys, str] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)

    def at(self, *keys: str) -> str:
        """Return the beginning of a message about `keys`, FILE:LINE: a:b; the line is of the innermost known key."""
        place = keys
        while place and place not in self.origins:
            place = place[:-1]
        return f'{self.origins.get(place, self.source)}: {":".join(keys)}'


class _Reader:
    """Parses a file's text, or that of an override of `keys`, into values and origins."""

    def __init__(self, source: str, keys: Keys = ()) -> None:
        self.file = OptionFile(source)
        self.keys = keys
        self.count = 0

    def read(self, text: str) -> OptionFile:
        try:
            self.loader = OptionLoader(f'value: {text}' if self.keys else text)
            node = self.loader.get_single_node()
            if self.keys:
                _, node = node.value[0]
                self.file.origins[self.keys] = self.file.source
            self.file.values = self._value(node, self.keys) if node else {}
        except yaml.MarkedYAMLError as error:
            line = f':{error.problem_mark.line + 1}' if error.problem_mark else ''
            raise InputError(f'{self.file.source}{line}: {error.problem}') from error
        except (yaml.YAMLError, RecursionError, ValueError) as error:
            raise InputError(f'{self.file.source}: not readable as YAML, {" ".join(str(error).split())}') from error
        return self.file

    def _value(self, node: yaml.Node, keys: Keys) -> Any:
        self.count += 1
        if self.count > MOST_VALUES:
            raise ValueError(f'it has more than {MOST_VALUES:,} values, with those that aliases repeat; leave some out')
        if node.tag == yaml.resolver.BaseResolver.DEFAULT_SEQUENCE_TAG:
            return [self._value(each, keys) for each in node.value]
        if node.tag != yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG:
            return self._scalar(node, keys)
        values: dict[str, Any] = {}
        for key_node, value_node in node.value:
            key = str(self.loader.construct_object(key_node))
            place = self._place(key_node)
            if key in values:
                self.file.problems.append(f"{place}: the key '{key}' is given twice")
            inner = (*keys, key)
            self.file.origins[inner] = place
            values[key] = self._value(value_node, inner)
        return values

    def _scalar(self, node: yaml.Node, keys: Keys) -> Any:
        is_plain = isinstance(node, yaml.ScalarNode) and node.style is None
        if is_plain and keys != WITH_OFF and BOOLEANS_OF_YAML_1_1.fullmatch(node.value):
            hint = f'write true or false, or put {node.value} in quotes if it is a text'
            self.file.problems.append(f'{self._place(node)}: {":".join(keys)}: {hint}')
            return node.value.lower() in ('yes', 'on')  # so that the schema does not report it again
        return self.loader.construct_object(node, deep=True)  # refuses all tags but plain YAML's

    def _place(self, node: yaml.Node) -> str:
        return self.file.source if self.keys else f'{self.file.source}:{node.start_mark.line + 1}'


def _parse_value(text: str, keys: Keys, source: str) -> OptionFile:
    """Parse `text` as the plain YAML value of `keys`, which becomes the result's `values`."""
    try:
        return _Reader(source, keys).read(text)
    except InputError as error:
        if isinstance(error.__cause__, yaml.reader.ReaderError):  # refused in quotes too
            raise InputError(f'{error}; leave that character out') from error
        raise InputError(f'{error}; a text with such characters needs quotes of its own, "{text}"') from error


DEFAULTS = {'num_gpu': 'auto', 'manual_seed': 0, 'scale': 1, 'path': {}}  # keys that the toolbox requires


def read_options(path: Path | str, overrides: list[str] | tuple[str, ...] = ()) -> OptionFile:
    """Read an option file over the file that its `base:` names, and apply `overrides`.

    `pretrain_network_g: small` names weights that this package includes; a path may begin with `~`. A cosine schedule
    without `periods` gets one as long as the run.

    Args:
        path: the option file.
        overrides: each a key's path, in a section that exists, and its new value in YAML, as 'train:total_iter=20'.
    """
    file = _read_with_bases(Path(path), ())
    file.values |= {key: copy.copy(value) for key, value in DEFAULTS.items() if key not in file.values}
    for override in overrides:
        _apply_override(file, override)
    _complete(file.values)
    return file


def _apply_override(file: OptionFile, override: str) -> None:
    name, equals, text = override.partition('=')
    keys = tuple(name.strip().split(':'))
    section = find(file.values, *keys[:-1])
    if not equals or not isinstance(section, dict):
        raise InputError(f'--force_yml {override}: write SECTION:OPTION=VALUE, with a section that is in {file.source}')
    parsed = _parse_value(text, keys, f'--force_yml {override}')
    value = parsed.values
    if value is None and isinstance(section.get(keys[-1]), dict):
        del section[keys[-1]]  # ~ removes a section, as in `_merge`
    else:
        section[keys[-1]] = value
    kept = {place: each for place, each in file.origins.items() if place[: len(keys)] != keys}
    file.origins = kept | parsed.origins
    file.problems += parsed.problems


def _complete(values: dict[str, Any]) -> None:
    """Expand names of weights and paths, and put in what a file may leave out but the toolbox requires."""
    weights = find(values, 'path', 'pretrain_network_g')
    if isinstance(weights, str) and weights in BUNDLED:
        values['path']['pretrain_network_g'] = str(BUNDLED[weights])
    for section in (*sections(values, 'datasets').values(), *sections(values).values()):
        _expand_home(section)
    validation = values.get('val')
    if isinstance(validation, dict):
        validation.setdefault('suffix', None)
    scheduler, last = find(values, 'train', 'scheduler'), find(values, 'train', 'total_iter')
    is_cosine = isinstance(scheduler, dict) and scheduler.get('type') == 'CosineAnnealingRestartLR'
    if is_cosine and scheduler.get('periods') is None:  # a wrong total_iter is then reported once
        scheduler['periods'] = [last if isinstance(last, int) and last > 0 else 1]


DATA, WEIGHTS = 'dataroot', 'pretrain_network'
PATHS = (DATA, WEIGHTS, 'resume_state')  # keys that begin with these hold paths


def data_paths(values: dict[str, Any]) -> dict[Keys, str]:
    """Return the stores and folders of all data sets, by their keys."""
    return {
        ('datasets', phase, key): root
        for phase, dataset in sections(values, 'datasets').items()
        for key, root in dataset.items()
        if key.startswith(DATA) and root and isinstance(root, str)
    }


def weight_paths(values: dict[str, Any]) -> dict[Keys, str]:
    """Return the files of pretrained weights, by their keys."""
    named = sections(values).get('path', {})
    return {
        ('path', key): path for key, path in named.items() if key.startswith(WEIGHTS) and path and isinstance(path, str)
    }


def _expand_home(section: dict[str, Any]) -> None:
    for key, value in section.items():
        if str(key).startswith(PATHS) and str(value).startswith('~'):
            section[key] = os.path.expanduser(value)  # noqa: PTH111  (Path's raises for a user who is not there)


def _read_with_bases(path: Path, above: tuple[Path, ...]) -> OptionFile:
    if not path.is_file():
        lacks = 'a folder, not an option file' if path.is_dir() else 'there is no such option file'
        raise InputError(f'{path}: {lacks}' + (f' (the base of {above[-1]})' if above else ''))
    if path.resolve() in (other.resolve() for other in above):
        raise InputError(f'{above[-1]}: base: {path.name} leads back to itself')
    try:
        own = _Reader(str(path)).read(path.read_text(encoding='utf-8'))
    except UnicodeDecodeError as error:
        raise InputError(f'{path}: not a text file in UTF-8') from error
    if not isinstance(own.values, dict):
        raise InputError(f'{path}: an option file is a mapping of keys to values')
    if 'base' not in own.values:
        return own
    base = _read_with_bases(path.parent / str(own.values.pop('base')), (*above, path))
    del own.origins[('base',)]
    return OptionFile(
        source=own.source,
        values=_merge(base.values, own.values),
        origins=base.origins | own.origins,
        problems=base.problems + own.problems,
    )


def _merge(base: dict[str, Any], own: dict[str, Any]) -> dict[str, Any]:
    """Merge `own` over `base`, section by section.

    A section of another `type` replaces the base's, whose arguments are the old type's. A section set to ~ is removed.
    """
    merged = dict(base)
    for key, value in own.items():
        if isinstance(value, dict) and isinstance(merged.get(key), dict):
            other_type = value.get('type', merged[key].get('type')) != merged[key].get('type')
            merged[key] = value if other_type else _merge(merged[key], value)
        elif value is None and isinstance(merged.get(key), dict):
            del merged[key]
        else:
            merged[key] = value
    return merged


def kind_of_phase(phase: str) -> str:
    """Return 'val' for the data set 'val_2': the toolbox takes what stands before the underscore."""
    return phase.split('_')[0]


def find(values: Any, *keys: str) -> Any:
    """Return the value at `keys`; None if it, or a section on the way to it, is not there."""
    for key in keys:
        if not isinstance(values, dict) or key not in values:
            return None
        values = values[key]
    return values


def sections(values: Any, *keys: str) -> dict[str, dict[str, Any]]:
    """Return the mappings inside the mapping at `keys`, by name; the schema reports values of other types."""
    found = find(values, *keys)
    return (
        {str(name): each for name, each in found.items() if isinstance(each, dict)} if isinstance(found, dict) else {}
    )


def as_overrides(found: Mapping[str, Any], asked: Mapping[str, Any]) -> str:
    """Return the --force_yml overrides that turn the network `asked` for into the one that was `found`."""
    return ' '.join(f'network_g:{name}={value}' for name, value in found.items() if asked.get(name) != value)


def show(file: OptionFile) -> str:
    """Return the resolved options as YAML, each value's origin in a comment beside it."""
    rows = list(_rows(file, file.values, ()))
    width = max((len(text) for text, _ in rows), default=0)
    return '\n'.join(f'{text:{width}}  # {origin}' if origin else text for text, origin in rows)


def _rows(file: OptionFile, values: dict[str, Any], keys: Keys) -> Iterator[tuple[str, str]]:
    indent = '  ' * len(keys)
    for key, value in values.items():
        place = (*keys, key)
        if isinstance(value, dict) and value:
            yield f'{indent}{key}:', ''
            yield from _rows(file, value, place)
        else:
            text = yaml.safe_dump(value, default_flow_style=True, width=10**9, allow_unicode=True)
            text = text.removesuffix('\n...\n').strip()
            yield f'{indent}{key}: {text}', file.origins.get(place, 'default')
