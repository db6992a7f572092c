"""Read what a finished test left: its options, restored images and result; and open its data set."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from ..data.image_files import decode_image
from ..errors import InputError
from ..train.options import kind_of_phase


@dataclass(frozen=True)
class TestResult:
    """The result of one test on one data set.

    Attributes:
        weights: SHA-256 of the weight file; None for a test without one.
        key: the set of weights in the file that was asked for.
        weights_path: where the file lay.
        training, iteration: what the weights are from; None if the file does not say.
        stores: what `describe_stores` said of the data; None in results of older tests.
    """

    metrics: dict[str, float]
    protocol: str
    images: int
    network: Mapping[str, Any]
    metric_options: Mapping[str, Mapping[str, Any]]
    weights: str | None
    key: str | None
    weights_path: str | None
    training: str | None
    iteration: int | None
    stores: Mapping[str, str] | None


def options_of_test(
    result: Path, if_missing: str = 'no options.yml in it; give the folder that basicsr test wrote, results/NAME'
) -> Mapping[str, Any]:
    """Read the options that a finished test ran with from its folder, results/NAME; InputError says `if_missing`."""
    path = result / 'options.yml'
    if not path.is_file():
        raise InputError(f'{result}: {if_missing}')
    try:
        options = yaml.safe_load(path.read_text(encoding='utf-8'))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise InputError(f'{path}: damaged, not YAML; test again') from error
    if not isinstance(options, dict):
        raise InputError(f'{path}: damaged, no options in it; test again')
    return options


def check_sizes(name: str, images: Mapping[str, np.ndarray]) -> None:
    """Raise InputError unless the images of a frame are of one size: else data set and result do not match."""
    sizes = {column: f'{image.shape[1]} x {image.shape[0]}' for column, image in images.items()}
    if len(set(sizes.values())) > 1:
        found = ', '.join(f'{size} in {column}' for column, size in sizes.items())
        raise InputError(f'{name} is {found}; give results of the same data set, or test again')


def open_test_set(opt: Mapping[str, Any], phase: str) -> Sequence[Mapping[str, Any]]:
    """Open the data set that a test's options describe under datasets: `phase`."""
    from basicsr.data import build_dataset  # here, so that `basicsr tables` does not import the toolbox

    return build_dataset({**opt['datasets'][phase], 'phase': kind_of_phase(phase), 'scale': opt['scale']})


def read_restored(path: Path) -> np.ndarray:
    """Read an image that a test restored: uint8 (H, W, 3), BGR."""
    image = decode_image(path.read_bytes()) if path.is_file() else None
    if image is None:
        raise InputError(f'{path.parent}: no restored image {path.name}; test again, with save_img: true')
    return image


def read_result(path: Path) -> TestResult:
    """Read a result_DATASET.json; InputError if it is damaged."""
    try:
        result = json.loads(path.read_text(encoding='utf-8'))
        weights = result['weights']
        origin = weights or {}
        return TestResult(
            metrics={name: float(value) for name, value in result['metrics'].items()},
            protocol=str(result['protocol']),
            images=int(result['images']),
            network=dict(result['network_g']),
            metric_options=dict(result['metric_options']),
            weights=None if weights is None else str(weights['sha256']),
            key=origin.get('key'),
            weights_path=origin.get('path'),
            training=origin.get('training'),
            iteration=origin.get('iteration'),
            stores=result.get('stores'),
        )
    except (ValueError, KeyError, TypeError, AttributeError) as error:  # not JSON, or JSON of something else
        reason = f'{type(error).__name__}: {error}'
        raise InputError(f'{path}: not a result of basicsr test ({reason}); remove it and test again') from error
