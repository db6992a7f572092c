"""What a run of several processes or GPUs needs: shares of the batch, and a check that all see the same inputs."""

import hashlib
import os
from pathlib import Path
from typing import Any

import torch

from ..errors import InputError
from . import results
from .current_run import Run
from .options import data_paths, weight_paths
from .wrcan_model import is_wrcan_model


def shared_inputs(options: dict[str, Any]) -> dict[str, str]:
    """Map a description of each thing that must be the same in all processes to a short fingerprint of it."""
    seen = {'the options with SHA-256': options['options_sha256'][:16]}
    for keys, root in data_paths(options).items():
        seen[f'{":".join(keys)} {root} with'] = _describe_data(Path(root))
    for keys, path in weight_paths(options).items():
        if Path(path).is_file():
            seen[f'{":".join(keys)} {path} with SHA-256'] = results.describe_weights(path)['sha256'][:16]
    return seen


def _describe_data(root: Path) -> str:
    """Return a fingerprint of a store or folder without reading frames: a hash of its lists, else of its file names."""
    lists = [root / name for name in ('manifest.json', 'meta_info.txt') if (root / name).is_file()]
    if lists:
        return f'lists of SHA-256 {_sha256(*(path.read_bytes() for path in lists))}'
    names = sorted(os.fsencode(path.relative_to(root)) for path in root.rglob('*') if path.is_file())
    return f'{len(names)} files, names of SHA-256 {_sha256(*names)}'


def _sha256(*parts: bytes) -> str:
    return hashlib.sha256(b'\n'.join(parts)).hexdigest()[:16]


def share_of_batch(train: dict[str, Any], parts: int) -> int:
    """Return batch_size_per_gpu, or batch_size_total / `parts`: the number of processes, or of a single one's GPUs."""
    total = train.get('batch_size_total')
    if total is None:
        return train['batch_size_per_gpu']
    if total % parts:
        near = [each for each in (total - total % parts, total - total % parts + parts) if each]
        raise InputError(
            f'datasets:train:batch_size_total: {total} cannot be divided over {parts} processes or GPUs; '
            f'{" or ".join(map(str, near))} can'
        )
    return total // parts


def check_batch(run: Run, parts: int) -> None:
    """Raise InputError if a training's batch cannot be divided, before the toolbox archives an older run."""
    if run.command == 'train':
        share_of_batch(run.options['datasets']['train'], parts)


def gpus_of_one_process(command: str, options: dict[str, Any]) -> int:
    """Return the number of GPUs that a single process uses; InputError if the options ask a WRCANModel for several."""
    wanted = options['num_gpu']
    if not is_wrcan_model(options['model_type']):
        return torch.cuda.device_count() if wanted == 'auto' else wanted
    if wanted != 'auto' and wanted > 1:
        raise InputError(
            f'num_gpu: one process takes one GPU; torchrun --nproc_per_node={wanted} -m wrcan_arch {command} ... '
            f'takes {wanted}'
        )
    return 1
