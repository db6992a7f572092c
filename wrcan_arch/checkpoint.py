"""Read and write weight files: safe to open, checked by a checksum, written whole or not at all.

Three forms are read: the toolbox's `.pth` (`{'params': ...}`, perhaps with `params_ema`; ours also have `metadata`;
other programs write `{'state_dict': ...}`), `.safetensors`, and the authors' bare state dict with their names. None of
them can run code when opened.
"""

import errno
import hashlib
import json
import os
import re
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save as safetensors_bytes
from torch import Tensor

from .errors import InputError
from .precision import PRECISIONS
from .system.files import is_utf8, written_whole
from .weights import BUNDLED
from .wrcan_arch import BLOCKS, WRCAN

Tensors = Mapping[str, Tensor]

# The authors' name of each convolution, and ours.
OFFICIAL_NAMES = (
    ('head.0', 'head'),
    ('encoder.{l}.layers.0', 'encoders.{l}.conv'),
    ('encoder.{l}.pool.0', 'encoders.{l}.down'),
    ('body_exp.0', 'expand'),
    ('body.{n}.body.{m}.dilated_parallel.{r}.0', 'groups.{n}.blocks.{m}.branch.atrous.{r}'),
    ('body.{n}.body.{m}.shrink.0', 'groups.{n}.blocks.{m}.branch.fuse'),
    ('body.{n}.body.{m}.channel_attention.0.conv_du.0', 'groups.{n}.blocks.{m}.attention.squeeze'),
    ('body.{n}.body.{m}.channel_attention.0.conv_du.2', 'groups.{n}.blocks.{m}.attention.excite'),
    ('body.{n}.body.{num_block}', 'groups.{n}.conv'),
    ('body.{num_group}', 'body_conv'),
    ('decoder.0.upsampler.0.0', 'decoders.1.up'),
    ('decoder.0.layers.0', 'decoders.1.conv'),
    ('decoder.1.upsampler.0.0', 'decoders.0.up'),
    ('decoder.1.layers.0', 'decoders.0.conv'),
    ('tail.0', 'tail'),
)


def _renamed(name: str, pattern: str, template: str, numbers: Mapping[str, Any]) -> str | None:
    """`name` rewritten by `template` if it is a weight or bias that matches `pattern`, else None. {x} is a number."""
    expression = re.sub(r'\\{(\w+)\\}', r'(?P<\1>\\d+)', re.escape(pattern))
    match = re.fullmatch(rf'{expression}\.(?P<kind>weight|bias)', name)
    return f'{template}.{{kind}}'.format(**numbers, **match.groupdict()) if match else None


def name_from_official(name: str) -> str:
    """Our name for the tensor that the authors' checkpoint calls `name`; any other name is returned unchanged."""
    found = (_renamed(name, official, ours, {}) for official, ours in OFFICIAL_NAMES)
    return next(filter(None, found), name)


def name_to_official(name: str, config: Mapping[str, Any]) -> str:
    """The authors' name for our tensor `name` in a network of `config`; InputError if they have none."""
    numbers = {key: config[key] for key in ('num_group', 'num_block')}
    found = (_renamed(name, ours, official, numbers) for official, ours in OFFICIAL_NAMES)
    renamed = next(filter(None, found), None)
    if renamed is None:
        raise InputError(f"the authors' code has no place for {name}: it only has the blocks of WRCAN and WRN")
    return renamed


def checksum(tensors: Tensors) -> str:
    """SHA-256 of all names, types, shapes and values."""
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        digest.update(f'{name} {tensor.dtype} {tuple(tensor.shape)}\n'.encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def is_safetensors(path: Path | str) -> bool:
    """Whether a file of this name holds tensors as the library safetensors writes them."""
    return Path(path).suffix.lower() == '.safetensors'


def write_atomically(path: Path | str, content: Any) -> None:
    """Save `content` with `torch.save`, or bytes as they are: the whole file or nothing, flushed to disk."""
    path = Path(path)
    try:
        with written_whole(path) as file:
            if isinstance(content, bytes):
                file.write(content)
            else:
                torch.save(content, file)
    except RuntimeError as error:
        refused = error.__context__  # torch replaces the disk's OSError by its own error
        if isinstance(refused, OSError):
            raise OSError(refused.errno, refused.strerror, str(path)) from error
        raise
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)  # else the new name may not survive a power loss
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # file systems that cannot flush folders
            error.filename = str(path)
            raise
    finally:
        os.close(folder)


def _with_sorted_metadata(file: bytes) -> bytes:
    """Return a `.safetensors` file whose metadata are in order: the library's is random, and so the file's SHA-256."""
    start = 8 + int.from_bytes(file[:8], 'little')
    header = json.loads(file[8:start])
    header['__metadata__'] = dict(sorted(header['__metadata__'].items()))
    text = json.dumps(header, separators=(',', ':')).encode()
    text += b' ' * (-len(text) % 8)  # the tensors stay aligned
    return b''.join([len(text).to_bytes(8, 'little'), text, memoryview(file)[start:]])


def write_weights(path: Path | str, networks: Mapping[str, Tensors], metadata: Mapping[str, Any]) -> dict[str, str]:
    """Write weights with their metadata and a checksum of each set of tensors; return the checksums by set.

    Args:
        path: `.safetensors`, which holds 'params' alone, or `.pth`.
        networks: tensors by our names, under 'params' and perhaps 'params_ema'.
        metadata: values that JSON can hold.
    """
    networks = {key: {name: tensor.contiguous() for name, tensor in each.items()} for key, each in networks.items()}
    checksums = {key: checksum(tensors) for key, tensors in networks.items()}
    metadata = {**metadata, 'checksum': checksums}
    if is_safetensors(path):
        texts = {key: json.dumps(value) for key, value in metadata.items()}
        write_atomically(path, _with_sorted_metadata(safetensors_bytes(dict(networks['params']), texts)))
    else:
        write_atomically(path, {**networks, 'metadata': metadata})
    return checksums


def read_file(path: Path | str) -> dict[str, Any]:
    """The content of a `.pth`, `.pt`, `.state` or `.safetensors` file, on the CPU, without running code from it.

    A `.safetensors` file is returned as ``{'params': tensors, 'metadata': ...}``. InputError if it cannot be read.
    """
    path = Path(path)
    try:
        path.open('rb').close()
    except OSError as error:
        raise InputError(f'{path}: cannot be opened ({error.strerror})') from error
    try:
        if is_safetensors(path):
            if not is_utf8(path):
                raise InputError(f'{path}: a name that is not UTF-8; rename it')
            with safe_open(path, 'pt') as file:
                metadata = {key: _value(text) for key, text in (file.metadata() or {}).items()}
                # Copied: they are mapped from the file, so writing over it would change them, cutting it kill us.
                tensors = {name: file.get_tensor(name).clone() for name in file.keys()}
                return {'params': tensors, 'metadata': metadata}
        if damaged := _damaged_part(path):
            raise InputError(f'{path}: its checksum is wrong at {damaged}, it was damaged; fetch or save it again')
        return torch.load(path, map_location='cpu', weights_only=True)
    except InputError:
        raise
    except Exception as error:  # a damaged pickle can raise anything
        if 'Unsupported global' in str(error):
            raise InputError(f'{path}: holds objects that could run code when opened; only weights are read') from error
        raise InputError(
            f'{path}: not a readable weight file, it may be cut or damaged; fetch or save it again'
        ) from error


def _value(text: str) -> Any:
    """A value of a .safetensors file's metadata. All values are texts: ours are JSON, another program's anything."""
    try:
        return json.loads(text)
    except ValueError:
        return text


def _damaged_part(path: Path) -> str | None:
    """The first part with a wrong CRC-32 in a file of torch's zip format, or None; torch does not check them."""
    if not zipfile.is_zipfile(path):
        return None
    with zipfile.ZipFile(path) as archive:
        return archive.testzip()


def holds_two_sets(content: Any) -> bool:
    """Whether content that `read_file` has loaded holds both weights and averaged weights."""
    return isinstance(content, Mapping) and {'params', 'params_ema'} <= content.keys()


def _is_of_its_type(name: str, value: Any) -> bool:
    """Whether 'patch_size' is a whole number above 0, or 'jpeg_quality' one or a list of two; True for other names."""
    numbers = value if name == 'jpeg_quality' and isinstance(value, list) and len(value) == 2 else [value]
    return name not in ('patch_size', 'jpeg_quality') or all(type(each) is int and each > 0 for each in numbers)


def is_state_dict(content: Any) -> bool:
    """Whether content holds named tensors and nothing else, at least one."""
    is_named = isinstance(content, Mapping) and all(isinstance(name, str) for name in content)
    return is_named and bool(content) and all(isinstance(value, Tensor) for value in content.values())


def _is_dense(tensor: Tensor) -> bool:
    """Whether there is a value in memory for each element: not in an expanded tensor, which may claim any size."""
    is_in_memory = tensor.layout == torch.strided and not tensor.is_meta
    return is_in_memory and tensor.nbytes <= tensor.untyped_storage().nbytes()


def read_weights(path: Path | str, key: str | None = None) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read the tensors, by our names and floats as fp32, and the metadata (empty if the file has none).

    Args:
        path: a weight file of one of the three forms.
        key: what they are under, such as 'params' or 'params_ema' (averaged; the default). A file without it gives
            'params', as in the toolbox, else 'state_dict', else its own tensors.
    """
    return weights_in(read_file(path), path, key)


def weights_in(content: Any, path: Path | str, key: str | None = None) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Like `read_weights`, for content that `read_file` has loaded."""
    if not isinstance(content, Mapping):
        raise InputError(f'{path}: holds a {type(content).__name__}, not weights')
    metadata = content.get('metadata')
    metadata = metadata if isinstance(metadata, dict) else {}  # another program's may be anything
    metadata = {name: value for name, value in metadata.items() if _is_of_its_type(name, value)}
    held = next((each for each in (key or 'params_ema', 'params', 'state_dict') if each in content), None)
    tensors = content if held is None else content[held]
    if not is_state_dict(tensors):
        if 'optimizers' in content:
            raise InputError(f'{path}: a training state, not weights; give the models/net_g_….pth beside its folder')
        sought, found = held or key or 'params', ', '.join(map(str, content)) or 'nothing'
        raise InputError(f'{path}: holds no weights under {sought!r}; found {found}')
    if lacking := [name for name, value in tensors.items() if not _is_dense(value)]:
        raise InputError(f'{path}: {lacking[0]} is not a dense tensor with all of its values; save it as one')
    checksums = metadata.get('checksum')
    expected = checksums.get(held) if isinstance(checksums, dict) else None
    if expected and checksum(tensors) != expected:
        raise InputError(f'{path}: its checksum is wrong, the weights were damaged; fetch or save the file again')
    tensors = {
        re.sub(r'^(module\.|_orig_mod\.)+', '', name): value.float() if value.is_floating_point() else value
        for name, value in tensors.items()
    }
    if 'body_exp.0.weight' in tensors:
        tensors = {name_from_official(name): value for name, value in tensors.items()}
    return tensors, metadata


def infer_config(tensors: Tensors) -> dict[str, Any]:
    """WRCAN's constructor arguments, from its tensors' names and shapes.

    Raises KeyError, ValueError or IndexError if they are not WRCAN's.
    """
    blocks = [
        tuple(map(int, m.groups())) for name in tensors if (m := re.match(r'groups\.(\d+)\.blocks\.(\d+)\.', name))
    ]
    if not blocks:
        raise KeyError('groups.0.blocks.0')
    built = {
        'wide': 'groups.0.blocks.0.branch.fuse.weight' in tensors,
        'attention': 'groups.0.blocks.0.attention.squeeze.weight' in tensors,
    }
    num_group, num_block = (1 + max(numbers) for numbers in zip(*blocks, strict=True))
    if num_group * num_block != len(set(blocks)):  # else one tensor's name could demand a network of any size
        raise ValueError(f'it has {len(set(blocks))} blocks, not {num_group} groups of {num_block}')
    num_feat, num_in_ch = tensors['head.weight'].shape[:2]
    return {
        'num_in_ch': num_in_ch,
        'num_out_ch': tensors['tail.weight'].shape[0],
        'num_feat': num_feat,
        'num_group': num_group,
        'num_block': num_block,
        'block': next(name for name, parts in BLOCKS.items() if parts == built),
    }


def network_of(tensors: Tensors, source: Path | str) -> WRCAN:
    """Build the network of these weights, in evaluation mode; InputError, naming `source`, unless they fit exactly."""
    try:
        with torch.device('meta'):
            network = WRCAN(**infer_config(tensors))
    except KeyError as error:
        raise InputError(f'{source}: not the weights of a WRCAN, there is no {error}') from error
    except (ValueError, IndexError) as error:  # names or shapes that no WRCAN has
        raise InputError(f'{source}: not the weights of a WRCAN ({error})') from error
    expected = network.state_dict()
    problems = [f'{name} is missing' for name in sorted(expected.keys() - tensors.keys())]
    problems += [f'{name} is left over' for name in sorted(tensors.keys() - expected.keys())]
    for name in sorted(expected.keys() & tensors.keys()):
        tensor = tensors[name]
        if expected[name].shape != tensor.shape:
            problems.append(f'{name} is {tuple(tensor.shape)} and not {tuple(expected[name].shape)}')
        elif not tensor.is_floating_point():
            problems.append(f'{name} is of {tensor.dtype} and not of floats')
    if problems:
        more = f' and {len(problems) - 5} more' if len(problems) > 5 else ''
        raise InputError(f'{source}: not a whole WRCAN: {"; ".join(problems[:5])}{more}')
    network.load_state_dict(dict(tensors), assign=True)
    return network.eval()


def load_network(path: Path | str = BUNDLED['small']) -> WRCAN:
    """Load a network from its weight file alone, on the CPU and in evaluation mode.

    The default is the small network that is part of this package. `network.metadata` holds the file's metadata (such as
    the patch size and JPEG quality of its training), if any.
    """
    tensors, metadata = read_weights(path)
    network = network_of(tensors, path)
    network.metadata = metadata
    return network


def _can_be_written(name: Any, value: Any) -> bool:
    """Whether an item of metadata fits into a `.safetensors` file; another program's may be anything."""
    try:
        json.dumps(value)
    except (TypeError, ValueError):
        return False
    return isinstance(name, str)


def convert(
    path: Path | str, out: Path | str, *, official: bool = False, key: str | None = None, dtype: str | None = None
) -> WRCAN:
    """Convert a weight file to `.safetensors`, `.pth`, or the authors' `.pt`; return its network.

    Raises InputError and writes nothing unless every tensor is accounted for.

    Args:
        path: a weight file of any form.
        out: the file to write; its suffix determines the form.
        official: write a bare state dict with the authors' names.
        key: 'params' or 'params_ema'; required if the file holds both.
        dtype: 'fp16' or 'bf16', to store 16 bits per weight, rounded; by default 32.
    """
    out = Path(out)
    if out.suffix.lower() not in ({'.pt'} if official else {'.safetensors', '.pth'}):
        raise InputError(f'{out}: weights are written as .safetensors or .pth, or with --to official as .pt')
    if not is_utf8(out):
        raise InputError(f'{out}: a name that is not UTF-8, under which it could not be read; choose another')
    if out.resolve() == Path(path).resolve():
        raise InputError(f'{out}: would overwrite the file that is read; choose another name')
    content = read_file(path)
    if key is None and holds_two_sets(content):
        raise InputError(f'{path}: holds two sets of weights; choose with --key params or --key params_ema')
    if key == 'params_ema' and not (isinstance(content, Mapping) and key in content):
        raise InputError(f'{path}: holds no averaged weights (params_ema); leave --key out')
    tensors, metadata = weights_in(content, path, key)
    network = network_of(tensors, path)
    if broken := [name for name, tensor in tensors.items() if not tensor.isfinite().all()]:
        raise InputError(f'{path}: {broken[0]} has weights that are not finite; fetch or save the file again')
    if dtype is not None:
        tensors = {name: tensor.to(PRECISIONS[dtype]) for name, tensor in tensors.items()}
        if beyond := [name for name, tensor in tensors.items() if not tensor.isfinite().all()]:
            raise InputError(f'{path}: {beyond[0]} has weights beyond the range of {dtype}; store it as bf16')
    if official:
        write_atomically(out, {name_to_official(name, network.config): each for name, each in tensors.items()})
    else:
        metadata = {name: value for name, value in metadata.items() if _can_be_written(name, value)}
        metadata = {**metadata, 'network_g': {'type': 'WRCAN', **network.config}}
        write_weights(out, {'params': tensors}, metadata)
    return network
