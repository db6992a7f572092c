"""Restore and score each image of a data set once, shared out over the processes, for validation and tests."""

import math
import time
from collections.abc import Mapping
from typing import Any

import numpy as np
from basicsr.metrics import calculate_metric
from basicsr.utils import tensor2img
from torch import distributed
from torch.utils.data import default_collate

from ..data.image_files import write_png
from ..errors import InputError, is_out_of_memory
from ..system.progress_bar import progress_bar
from . import results
from .stopping import as_input_error


class SharedError(RuntimeError):
    """An error of one process, raised in all of them at the same place."""


def _duplicate_key_error(dataset: Any, key: str) -> InputError:
    place = f'data set {dataset.opt["name"]} ({dataset.opt.get("dataroot_lq")})'
    return InputError(f'{place}: two of its images would be called {key}; rename one of them')


def measure(opt: Mapping[str, Any], images: Mapping[str, np.ndarray]) -> float:
    """Compute the metric of a section of val:metrics; leave out `better`, which is not for the metric's function."""
    return float(calculate_metric(images, {key: each for key, each in opt.items() if key != 'better'}))


def _score(name: str, opt: Mapping[str, Any], key: str, images: Mapping[str, np.ndarray]) -> float:
    try:
        value = measure(opt, images)
        if math.isnan(value):
            raise ValueError('the result is not a number, as when crop_border leaves no pixels')
        return value
    except Exception as error:  # such as NIQE's for a picture without detail; after an InputError the run is saved
        reason = ' '.join(f'{type(error).__name__}: {error}'.split())
        raise InputError(f"val:metrics:{name} of '{key}': {reason}; leave that metric or image out") from error


def score_share(model: Any, dataset: Any, current_iter: int, save_img: bool) -> tuple[results.Scores, float]:
    """Restore and score this process's share; return the scores and the seconds spent on restoring."""
    rank, world_size = model.opt['rank'], model.opt['world_size']
    mine: dict[str, dict[str, float]] = {}
    seconds = 0.0
    share = range(rank, len(dataset), world_size)
    hidden = rank > 0 or not model.opt['val'].get('pbar')
    for index in progress_bar(share, desc=dataset.opt['name'], unit='image', disable=hidden):
        try:
            item = dataset[index]
        except Exception as error:
            raise as_input_error(error, f'image {index} of {dataset.opt["name"]}') from error
        key = results.key_of(item, dataset.opt)
        if key in mine:
            raise _duplicate_key_error(dataset, key)
        model.feed_data(default_collate([item]))
        started = time.perf_counter()
        try:
            model.test()
        except (MemoryError, RuntimeError) as error:
            if not is_out_of_memory(error):
                raise
            hint = 'scale it down, or validate on other images'
            raise InputError(f"'{key}' is too large for the memory; {hint}") from error
        visuals = model.get_current_visuals()
        seconds += time.perf_counter() - started
        images = {'img': tensor2img(visuals['result'])}
        if 'gt' in visuals:
            images['img2'] = tensor2img(visuals['gt'])
        if save_img:
            path = model.image_path(dataset.opt['name'], key, current_iter)
            if not model.is_train and path.exists():  # a test's folder is new; the disk ignores case
                raise _duplicate_key_error(dataset, key)
            write_png(path, images['img'])
        metrics = model.opt['val'].get('metrics') or {}
        mine[key] = {name: _score(name, opt, key, images) for name, opt in metrics.items()}
    return mine, seconds


def score_images(model: Any, dataset: Any, current_iter: int, save_img: bool) -> tuple[results.Scores, float]:
    """Restore and score all images once; return all scores and the mean seconds of restoring one, in every process.

    An error of one process is raised in all: the others would wait for its scores.
    """
    if not len(dataset):
        raise InputError(f'data set {dataset.opt["name"]}: there are no images in {dataset.opt.get("dataroot_lq")}')
    if not model.opt['dist']:
        mine, seconds = score_share(model, dataset, current_iter, save_img)
        return mine, seconds / len(mine)
    share: tuple[results.Scores, float] | InputError | SharedError
    try:
        share = score_share(model, dataset, current_iter, save_img)
    except InputError as error:
        share = error
    except Exception as error:
        share = SharedError(f'{type(error).__name__}: {error}')  # as text: an exception may not be picklable
        share.__cause__ = error
    gathered: list[Any] = [None] * model.opt['world_size']
    distributed.all_gather_object(gathered, share)
    gathered[model.opt['rank']] = share  # with its traceback
    for kind in (InputError, SharedError):  # in this order, so that all raise the same error
        for each in gathered:
            if isinstance(each, kind):
                raise each
    scores: dict[str, dict[str, float]] = {}
    total = 0.0
    for part, seconds in gathered:
        total += seconds
        for key in part:
            if key in scores:
                raise _duplicate_key_error(dataset, key)
        scores |= part
    return scores, total / len(scores)
