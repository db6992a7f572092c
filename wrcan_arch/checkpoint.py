"""Weights in and out: safe to open, written whole or not at all.

Three forms are read: the toolbox's `.pth` (`{'params': ...}`, perhaps `params_ema`, ours with `metadata`),
`.safetensors`, and the authors' bare state dict with their names. None of them can run code when it is opened.
"""

import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from .errors import InputError
from .wrcan_arch import WRCAN

# (pattern in the authors' name, ours); PAPER.md's table of the official checkpoint is where these come from.
OFFICIAL_NAMES = (
    (r'^head\.0\.', r'head.'),
    (r'^encoder\.(\d+)\.layers\.0\.', r'encoders.\1.conv.'),
    (r'^encoder\.(\d+)\.pool\.0\.', r'encoders.\1.down.'),
    (r'^body_exp\.0\.', r'expand.'),
    (r'^body\.(\d+)\.body\.(\d+)\.dilated_parallel\.(\d+)\.0\.', r'groups.\1.blocks.\2.branch.atrous.\3.'),
    (r'^body\.(\d+)\.body\.(\d+)\.shrink\.0\.', r'groups.\1.blocks.\2.branch.fuse.'),
    (r'^body\.(\d+)\.body\.(\d+)\.channel_attention\.0\.conv_du\.0\.', r'groups.\1.blocks.\2.attention.squeeze.'),
    (r'^body\.(\d+)\.body\.(\d+)\.channel_attention\.0\.conv_du\.2\.', r'groups.\1.blocks.\2.attention.excite.'),
    (r'^body\.(\d+)\.body\.(\d+)\.(weight|bias)$', r'groups.\1.conv.\3'),
    (r'^body\.(\d+)\.(weight|bias)$', r'body_conv.\2'),
    (r'^decoder\.0\.upsampler\.0\.0\.', r'decoders.1.up.'),
    (r'^decoder\.0\.layers\.0\.', r'decoders.1.conv.'),
    (r'^decoder\.1\.upsampler\.0\.0\.', r'decoders.0.up.'),
    (r'^decoder\.1\.layers\.0\.', r'decoders.0.conv.'),
    (r'^tail\.0\.', r'tail.'),
)


def name_from_official(name: str) -> str:
    """Our name of the tensor that the authors' checkpoint calls `name`."""
    for pattern, ours in OFFICIAL_NAMES:
        renamed, count = re.subn(pattern, ours, name)
        if count:
            return renamed
    return name  # not one of theirs: load_network says so


def write_atomically(path: Path | str, content: Any) -> None:
    """`torch.save` that leaves the whole file or nothing: a temporary file, flushed to disk, then renamed."""
    path = Path(path)
    partial = path.with_name(path.name + '.partial')
    try:
        with partial.open('wb') as file:
            torch.save(content, file)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


def read_file(path: Path | str) -> dict[str, Any]:
    """What a `.pth`, `.pt`, `.state` or `.safetensors` file holds, on the CPU, without running code from it.

    A `.safetensors` file comes as ``{'params': tensors, 'metadata': ...}``.
    """
    path = Path(path)
    try:
        if path.suffix == '.safetensors':
            with safe_open(path, 'pt') as file:
                metadata = {key: json.loads(text) for key, text in (file.metadata() or {}).items()}
                return {'params': {name: file.get_tensor(name) for name in file.keys()}, 'metadata': metadata}
        return torch.load(path, map_location='cpu', weights_only=True)
    except OSError as error:
        raise InputError(f'{path}: cannot be opened ({error.strerror or error})') from error
    except Exception as error:  # a damaged pickle can raise anything
        if 'Unsupported global' in str(error):
            raise InputError(f'{path}: holds objects that could run code when opened; only weights are read') from error
        raise InputError(
            f'{path}: not a readable weight file, it may be cut or damaged; fetch or save it again'
        ) from error


def read_weights(path: Path | str, key: str | None = None) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors by our names, and the metadata (empty where the file has none).

    Args:
        path: a weight file of one of the three forms.
        key: 'params' or 'params_ema'; by default the averaged weights where the file has them.
    """
    content = read_file(path)
    if not isinstance(content, Mapping):
        raise InputError(f'{path}: holds a {type(content).__name__}, not weights')
    metadata = content.get('metadata', {})
    if key is None:
        key = 'params_ema' if 'params_ema' in content else 'params'
    if key == 'params_ema' and key not in content:
        key = 'params'  # as the toolbox does
    tensors = content.get(key, content)
    if not tensors or not all(isinstance(value, Tensor) for value in tensors.values()):
        raise InputError(f'{path}: holds no weights under {key!r}; found {", ".join(map(str, content)) or "nothing"}')
    tensors = {name.removeprefix('module.'): value for name, value in tensors.items()}
    if 'body_exp.0.weight' in tensors:
        tensors = {name_from_official(name): value for name, value in tensors.items()}
    return tensors, metadata


def infer_config(tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    """WRCAN's constructor arguments, read off names and shapes of its tensors. KeyError when they are not WRCAN's."""
    blocks = [
        tuple(map(int, m.groups())) for name in tensors if (m := re.match(r'groups\.(\d+)\.blocks\.(\d+)\.', name))
    ]
    if not blocks:
        raise KeyError('groups.0.blocks.0')
    wide = 'groups.0.blocks.0.branch.fuse.weight' in tensors
    attention = 'groups.0.blocks.0.attention.squeeze.weight' in tensors
    num_feat, num_in_ch = tensors['head.weight'].shape[:2]
    return {
        'num_in_ch': num_in_ch,
        'num_out_ch': tensors['tail.weight'].shape[0],
        'num_feat': num_feat,
        'num_group': 1 + max(group for group, _ in blocks),
        'num_block': 1 + max(block for _, block in blocks),
        'block': {(True, True): 'wrca', (True, False): 'wr', (False, True): 'rca', (False, False): 'res'}[
            wide, attention
        ],
    }


def load_network(path: Path | str) -> WRCAN:
    """The network in a weight file, rebuilt from the file alone, in evaluation mode on the CPU."""
    tensors, _ = read_weights(path)
    try:
        with torch.device('meta'):
            network = WRCAN(**infer_config(tensors))
    except KeyError as error:
        raise InputError(f'{path}: not the weights of a WRCAN, there is no {error}') from error
    expected = network.state_dict()
    wrong = sorted(expected.keys() ^ tensors.keys()) + sorted(
        name for name in expected.keys() & tensors.keys() if expected[name].shape != tensors[name].shape
    )
    if wrong:
        raise InputError(
            f'{path}: not a whole WRCAN, {len(wrong)} tensors are missing, left over or of a wrong shape: '
            f'{", ".join(wrong[:3])}{" ..." if len(wrong) > 3 else ""}'
        )
    network.load_state_dict(tensors, assign=True)
    return network.eval()
