"""Checks whether the weights that a run begins with or goes on from can be read, and are those of its network."""

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from basicsr.models.base_model import BaseModel
from basicsr.utils import registry

from .. import checkpoint
from ..errors import InputError
from ..wrcan_arch import WRCAN
from .options import OptionFile, as_overrides, find
from .recorded_model import RecordedModel
from .wrcan_model import is_wrcan_model


def _is_readable(weights: str, content: Any, model: str, key: str | None) -> bool:
    """Whether `model` finds weights in the file: the toolbox's own need a .pth, with `key` or 'params'; None: bare."""
    if registry.MODEL_REGISTRY.get(model).load_network is not BaseModel.load_network:
        return True
    held = {key, 'params'} & content.keys() if isinstance(content, Mapping) else ()
    return not checkpoint.is_safetensors(weights) and (checkpoint.is_state_dict(content) if key is None else bool(held))


def _check_network(network: Mapping[str, Any], tensors: checkpoint.Tensors, weights: str) -> None:
    """Raise InputError unless the tensors of the file `weights` fit the options of a WRCAN."""
    found = checkpoint.network_of(tensors, weights).config
    with torch.device('meta'):
        asked = WRCAN(**{name: value for name, value in network.items() if name != 'type'}).config
    if found != asked:
        hint = f'set {as_overrides(found, asked)}'
        raise InputError(f'{weights}: not the weights of the network in the option file; {hint}')


def _check_weights(file: OptionFile, weights: str) -> None:
    """Raise InputError if the file cannot be read, fits another network, or holds two sets and none is chosen."""
    paths, model, network = file.values['path'], file.values['model_type'], file.values.get('network_g') or {}
    key, kind = paths.get('param_key_g', 'params'), network.get('type')
    content = checkpoint.read_file(weights)
    if checkpoint.holds_two_sets(content) and paths.get('param_key_g') not in content:
        hint = 'set path:param_key_g to params_ema, the averaged weights that restore takes, or to params'
        raise InputError(f'{weights}: holds two sets of weights; {hint}')
    if not _is_readable(weights, content, model, key):
        checkpoint.weights_in(content, weights, key or 'params')  # InputError if they are under another key
        is_pth = not checkpoint.is_safetensors(weights)
        needed, hint = f"'{key}'" if key else 'bare tensors', 'save them with torch.save'
        if kind == 'WRCAN' and (key or not is_pth):
            hint = f'basicsr convert {weights} -o NAME.pth makes one'
        elif is_pth:
            hint = 'set path:param_key_g to their key, or to ~ for bare tensors'
        raise InputError(f'{weights}: {model} only reads a .pth that holds {needed}; {hint}')
    if find(file.values, 'train', 'ema_decay') and not _is_readable(weights, content, model, 'params_ema'):
        raise InputError(f"{weights}: only 'params' can be averaged by {model}; leave train:ema_decay out")
    is_compared = kind == 'WRCAN' and paths.get('strict_load_g', True)
    if not (is_compared or is_wrcan_model(model)):
        return
    tensors, _ = checkpoint.weights_in(content, weights, key or 'params')
    if is_compared:
        _check_network(network, tensors, weights)


def unfit_weights(file: OptionFile) -> Iterator[str]:
    """Yield what is wrong with the weights that the network begins with, if there are any."""
    if weights := find(file.values, 'path', 'pretrain_network_g'):
        try:
            _check_weights(file, weights)
        except InputError as error:
            yield f'{file.at("path", "pretrain_network_g")}: {error}'


def check_resumed_weights(opt: dict[str, Any]) -> None:
    """Raise InputError if a checkpoint's weights fit another network, which our model would find once it is built.

    Models with a way of their own to load weights may take them.
    """
    paths, model = opt['path'], registry.MODEL_REGISTRY.get(opt['model_type'])
    loads_as_ours = model.load_network is RecordedModel.load_network and paths.get('strict_load_g', True)
    if loads_as_ours and opt['network_g']['type'] == 'WRCAN':
        weights = paths['pretrain_network_g']
        tensors, _ = checkpoint.read_weights(weights, paths.get('param_key_g', 'params'))
        _check_network(opt['network_g'], tensors, weights)
