"""What a test leaves in results/NAME/: scores of each image and sequence, what made them, and the challenge's zip."""

import csv
import hashlib
import io
import json
import math
import zipfile
from collections.abc import Iterable, Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

from ..data.frame_names import is_submitted, sequence_of
from ..files import printable, write_text, written_whole

Scores = Mapping[str, Mapping[str, float]]  # by image, by metric


def mean_scores(scores: Scores) -> dict[str, float]:
    """The mean of each metric over all images, summed exactly, so that no order or sharding changes it."""
    metrics = next(iter(scores.values()), {})
    return {name: math.fsum(each[name] for each in scores.values()) / len(scores) for name in metrics}


def key_of(item: Mapping[str, Any], dataset: Mapping[str, Any]) -> str:
    """What a test calls the image of an item of the data set with these options.

    The toolbox's own data sets give paths alone, absolute or below dataroot_lq, and in a store its keys: of
    000/00000012 it is 000_00000012, as a data set of ours calls it.
    """
    if 'key' in item:
        return item['key']
    path, root = Path(item['lq_path']).with_suffix(''), Path(dataset.get('dataroot_lq') or '')
    below = path.relative_to(root) if path.is_relative_to(root) else path
    return printable(below.name if below.is_absolute() else '_'.join(below.parts))


def restored_path(visualization: Path, dataset: str, key: str, opt: Mapping[str, Any]) -> Path:
    """Where a test with these options puts a restored image, as the toolbox does."""
    return visualization / dataset / f'{key}_{opt["val"].get("suffix") or opt["name"]}.png'


def write_scores(folder: Path, dataset: str, scores: Scores) -> None:
    """scores_DATASET.csv, a row an image, and sequences_DATASET.csv, a row a sequence."""
    metrics = list(next(iter(scores.values()), {}))
    _write_csv(
        folder / f'scores_{dataset}.csv',
        ['key', *metrics],
        ([key, *(repr(each[name]) for name in metrics)] for key, each in sorted(scores.items())),
    )
    sequences: dict[str, dict[str, Mapping[str, float]]] = {}
    for key, each in sorted(scores.items()):
        sequences.setdefault(sequence_of(key), {})[key] = each
    _write_csv(
        folder / f'sequences_{dataset}.csv',
        ['sequence', 'images', *metrics],
        ([name, len(each), *map(repr, mean_scores(each).values())] for name, each in sequences.items()),
    )


def _write_csv(path: Path, header: list[str], rows: Iterable[list]) -> None:
    text = io.StringIO(newline='')
    writer = csv.writer(text)
    writer.writerow(header)
    writer.writerows(rows)
    write_text(path, text.getvalue())


def describe_weights(path: str, key: str | None = None) -> dict[str, Any]:
    """The weights that a result is of: the file's path, the SHA-256 of its bytes, the set in it that was asked for."""
    with Path(path).open('rb') as file:
        return {'path': path, 'sha256': hashlib.file_digest(file, 'sha256').hexdigest(), 'key': key}


def result_path(folder: Path, dataset: str) -> Path:
    """Where a test's result of a data set is, `folder` being results/NAME."""
    return folder / f'result_{dataset}.json'


def write_result(folder: Path, dataset: str, scores: Scores, about: Mapping[str, Any]) -> None:
    """result_DATASET.json: the means, and what made them."""
    means = mean_scores(scores)  # an infinite one is written as text, for which JSON has no number
    result = {
        **about,
        'dataset': dataset,
        'images': len(scores),
        'metrics': {name: mean if math.isfinite(mean) else str(mean) for name, mean in means.items()},
        'date': datetime.now().isoformat(timespec='seconds'),
    }
    write_text(result_path(folder, dataset), json.dumps(result, indent=2) + '\n')


def write_submission(
    path: Path,
    images: Mapping[str, Path],
    seconds_per_image: float,
    on_cpu: bool,
    options: Mapping[str, Any],
) -> None:
    """The NTIRE challenge's submission: PNGs named SEQUENCE_FRAME.png, readme.txt, zipped without folders.

    Args:
        path: the zip file.
        images: the restored images' files, by key.
        seconds_per_image: the mean time of restoring one.
        on_cpu: whether they were restored there.
        options: val:submission: `every`, `extra_data`, `description`.
    """
    chosen = {key: file for key, file in images.items() if is_submitted(key, options['every'])}
    readme = (
        f'runtime per image [s] : {seconds_per_image:.2f}\n'
        f'CPU[1] / GPU[0] : {int(on_cpu)}\n'
        f'Extra Data [1] / No Extra Data [0] : {int(options["extra_data"])}\n'
        f'Other description : {options["description"]}\n'
    )
    with written_whole(path) as target, zipfile.ZipFile(target, 'w', zipfile.ZIP_STORED) as archive:
        for key, file in sorted(chosen.items()):
            archive.write(file, f'{key}.png')  # PNGs do not get smaller
        archive.writestr('readme.txt', readme)
