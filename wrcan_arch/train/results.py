"""Write a test's results to results/NAME/: scores by image and sequence, what made them, the challenge's zip."""

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
from ..system.files import write_text, written_whole
from ..system.terminal import printable

Scores = Mapping[str, Mapping[str, float]]  # by image key, then by metric


def mean_scores(scores: Scores) -> dict[str, float]:
    """Return each metric's mean over all images, summed exactly, so that neither order nor sharding changes it."""
    metrics = next(iter(scores.values()), {})
    return {name: math.fsum(each[name] for each in scores.values()) / len(scores) for name in metrics}


def key_of(item: Mapping[str, Any], dataset: Mapping[str, Any]) -> str:
    """Return the key of a data set's item, by which results name its image; `dataset` holds the data set's options.

    The toolbox's own data sets give only `lq_path`: a path, absolute or below dataroot_lq, or a key in a store. For
    000/00000012 the key is 000_00000012, as in our data sets.
    """
    if 'key' in item:
        return str(item['key'])
    path, root = Path(item['lq_path']).with_suffix(''), Path(dataset.get('dataroot_lq') or '')
    below = path.relative_to(root) if path.is_relative_to(root) else path
    return printable(below.name if below.is_absolute() else '_'.join(below.parts))


def restored_path(visualization: Path, dataset: str, key: str, opt: Mapping[str, Any]) -> Path:
    """Return the path of a restored image of a test with the options `opt`, the same as the toolbox's."""
    return visualization / dataset / f'{key}_{opt["val"].get("suffix") or opt["name"]}.png'


def write_scores(folder: Path, dataset: str, scores: Scores) -> None:
    """Write scores_DATASET.csv, a row for each image, and sequences_DATASET.csv, a row for each sequence."""
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
    writer = csv.writer(text, lineterminator='\n')
    writer.writerow(header)
    writer.writerows(rows)
    write_text(path, text.getvalue())


def describe_weights(path: str, key: str | None = None) -> dict[str, Any]:
    """Describe a weight file for a result: its path, the SHA-256 of its bytes, and which set in it was asked for."""
    with Path(path).open('rb') as file:
        return {'path': path, 'sha256': hashlib.file_digest(file, 'sha256').hexdigest(), 'key': key}


def describe_stores(dataset: Mapping[str, Any]) -> dict[str, str]:
    """Map the options that name a data set's stores to the SHA-256 of their manifests, which hold all checksums."""
    roots = {key: Path(root) for key, root in dataset.items() if key.startswith('dataroot') and isinstance(root, str)}
    return {
        key: hashlib.sha256((root / 'manifest.json').read_bytes()).hexdigest()
        for key, root in roots.items()
        if (root / 'manifest.json').is_file()
    }


def result_path(folder: Path, dataset: str) -> Path:
    """Return the path of a test's result for a data set; `folder` is results/NAME."""
    return folder / f'result_{dataset}.json'


def write_result(folder: Path, dataset: str, scores: Scores, about: Mapping[str, Any]) -> None:
    """Write result_DATASET.json: the mean scores and `about`, what made them."""
    means = mean_scores(scores)  # JSON has no infinity: one is written as text
    result = {
        **about,
        'dataset': dataset,
        'images': len(scores),
        'metrics': {name: mean if math.isfinite(mean) else str(mean) for name, mean in means.items()},
        'date': datetime.now().isoformat(timespec='seconds'),
    }
    write_text(result_path(folder, dataset), json.dumps(result, indent=2) + '\n')


def write_submission(
    path: Path, images: Mapping[str, Path], seconds_per_image: float, on_cpu: bool, options: Mapping[str, Any]
) -> None:
    """Write the NTIRE challenge's submission: SEQUENCE_FRAME.png files and readme.txt, zipped without folders.

    Args:
        path: the zip file.
        images: paths of the restored images, by key.
        seconds_per_image: mean time to restore one.
        on_cpu: whether they were restored on a CPU.
        options: those of val:submission: `every`, `extra_data`, `description`.
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
            archive.write(file, f'{key}.png')  # stored: compressing a PNG again gains nothing
        archive.writestr('readme.txt', readme)
