"""A page for people who would rather look: blurred, restored and sharp, with scores, and the training's curves.

One file, pictures and plots inside it. It reads what a training and a test left on disk and computes only the scores.
"""

import html
import io
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from basicsr.metrics import calculate_metric
from basicsr.utils import tensor2img
from matplotlib.figure import Figure

from ..errors import InputError
from ..files import write_text
from ..train.results import key_of, restored_path
from .crops import CROP, ZOOM, busiest_crops
from .finished_test import check_sizes, open_test_set, read_found, read_restored
from .page import page, picture, rounded

CROPS_PER_PICTURE = 2
SHOWN = 60  # pictures on a page; of more than that, some from all over the test

Scores = Mapping[str, tuple[float, float]]  # (blurred, restored) by metric


@dataclass(frozen=True)
class Result:
    """One test image. Pictures are uint8 (H, W, 3), BGR."""

    key: str
    pictures: dict[str, np.ndarray]
    scores: Scores


@dataclass(frozen=True)
class Curves:
    """What a training log holds: iteration and value, by loss and by validation metric."""

    losses: dict[str, list[tuple[int, float]]]
    metrics: dict[str, list[tuple[int, float]]]


def read_results(opt: Mapping[str, Any]) -> Iterator[Result]:
    """The finished test's restored images beside their inputs and sharp images."""
    for phase, dataset_opt in opt['datasets'].items():
        folder = Path('results', opt['name'], 'visualization')
        for item in open_test_set(opt, phase):
            if 'gt' not in item:
                raise InputError(f'{opt["name"]}: {dataset_opt["name"]} has no sharp images to compare with')
            key = key_of(item, dataset_opt)
            restored = read_restored(restored_path(folder, dataset_opt['name'], key, opt))
            pictures = {'blurred': tensor2img(item['lq']), 'restored': restored, 'sharp': tensor2img(item['gt'])}
            check_sizes(key, pictures)
            yield Result(key, pictures, _scores(pictures, opt['val'].get('metrics') or {}))


def _scores(pictures: dict[str, np.ndarray], metrics: Mapping[str, Any]) -> Scores:
    def score(name: str, metric: dict[str, Any]) -> float:
        return float(calculate_metric({'img': pictures[name], 'img2': pictures['sharp']}, metric))

    return {name: (score('blurred', metric), score('restored', metric)) for name, metric in metrics.items()}


def read_curves(experiment: Path) -> Curves:
    """The losses and validation scores in an experiment's logs; a resumed run has several."""
    logs = sorted(experiment.glob('train_*.log'))
    if not logs:
        raise InputError(f'{experiment}: no train_*.log in it; give the folder of a training run')
    losses: dict[str, dict[int, float]] = {}
    metrics: dict[tuple[str, str], dict[int, float]] = {}
    sets: set[str] = set()
    iteration, place = 0, ''
    for line in '\n'.join(log.read_text(encoding='utf-8', errors='replace') for log in logs).splitlines():
        if match := re.search(r'iter:\s*([\d,]+), lr:', line):
            iteration = int(match[1].replace(',', ''))
            for name, value in re.findall(r'\b(l_\w+): (\S+)', line):
                losses.setdefault(name, {})[iteration] = float(value)
        elif match := re.search(r'Validated (.+) at iteration (\d+)', line):
            sets.add(match[1])
            place, iteration = match[1], int(match[2])
        elif match := re.match(r'\s+# (.+?): (\S+)\s+Best: ', line):
            metrics.setdefault((match[1], place), {})[iteration] = float(match[2])
    return Curves(
        {name: sorted(points.items()) for name, points in losses.items()},
        {
            f'{metric} ({place})' if len(sets) > 1 else metric: sorted(points.items())
            for (metric, place), points in metrics.items()
        },
    )


def plot(title: str, series: Mapping[str, list[tuple[int, float]]], *, scale: str = 'linear') -> str:
    """An SVG of curves over iterations."""
    figure = Figure(figsize=(5.2, 2.8), layout='constrained')
    axes = figure.subplots()
    for name, points in series.items():
        axes.plot(*zip(*points, strict=True), label=name, marker='.' if len(points) < 30 else None)
    axes.set(title=title, xlabel='iteration', yscale=scale)
    axes.grid(alpha=0.3)
    if len(series) > 1:
        axes.legend()
    text = io.StringIO()
    figure.savefig(text, format='svg')
    return text.getvalue()[text.getvalue().index('<svg') :]


def plot_losses(losses: Mapping[str, list[tuple[int, float]]]) -> str:
    """An SVG of the training's losses, on a logarithmic axis unless it would leave some out."""
    lowest = {name: min(value for _, value in points) for name, points in losses.items()}
    is_psnr = lowest.get('l_pix', 0) < 0  # no other pixel_opt is below zero
    title = 'training loss (l_pix: -PSNR x loss_weight)' if is_psnr else 'training loss'
    return plot(title, losses, scale='log' if min(lowest.values()) > 0 else 'linear')


def _score(metric: str, value: float) -> str:
    return f'{metric.upper()} {rounded(metric, value)}'


def _row(result: Result) -> str:
    """One test image: the whole and the crops, in three columns."""
    corners = busiest_crops([result.pictures['blurred'], result.pictures['sharp']], CROPS_PER_PICTURE)
    columns = []
    for place, (name, image) in enumerate(result.pictures.items()):
        scores = [] if name == 'sharp' else [_score(metric, values[place]) for metric, values in result.scores.items()]
        whole = picture(image, 'jpg', alt=f'{result.key}, {name}')
        crops = [
            picture(image[top : top + CROP, left : left + CROP], 'png', alt=f'{result.key}, {name}, crop', zoom=ZOOM)
            for top, left in corners
        ]
        columns.append(f'<div><b>{name}</b> {", ".join(scores)}<br>{whole}<p>{"".join(crops)}</p></div>')
    return f'<h3>{html.escape(result.key)}</h3><div class="columns">{"".join(columns)}</div>'


def mean_scores(scores: Sequence[Scores]) -> Scores:
    """Means over all images."""
    return {metric: tuple(np.mean([each[metric] for each in scores], axis=0).tolist()) for metric in scores[0]}


def _summary(scores: Sequence[Scores]) -> str:
    rows = []
    for metric, (blurred, restored) in mean_scores(scores).items():
        cells = [metric.upper(), rounded(metric, blurred), rounded(metric, restored)]
        cells.append(rounded(metric, restored - blurred, sign='+'))
        rows.append(f'<tr><td>{"</td><td>".join(cells)}</td></tr>')
    return (
        '<table class="numbers"><tr><th>mean</th><th>blurred</th><th>restored</th><th>difference</th></tr>'
        + ''.join(rows)
        + '</table>'
    )


def write_report(opt: Mapping[str, Any], experiment: Path | None, out: Path) -> list[Scores]:
    """Write the page of a finished test, and return its images' scores.

    Args:
        opt: the options that it ran with. Its results/ are looked for under the current folder.
        experiment: folder of the training run whose curves are shown; None for none.
        out: the page.
    """
    count = sum(len(open_test_set(opt, phase)) for phase in opt['datasets'])
    shown = {round(each) for each in np.linspace(0, count - 1, min(count, SHOWN))}
    curves = read_curves(experiment) if experiment is not None else None  # and what was found: before all is scored
    datasets = [dataset['name'] for dataset in opt['datasets'].values()]
    found = read_found(Path('results', opt['name'], f'result_{datasets[0]}.json'))
    scores, rows = [], []
    for number, result in enumerate(read_results(opt)):
        scores.append(result.scores)
        if number in shown:
            rows.append(_row(result))
    if not scores:
        raise InputError(f'{opt["name"]}: its data sets hold no images to report on')
    sections = [_summary(scores)]
    if curves is not None:
        plots = [plot_losses(curves.losses)] if curves.losses else []
        plots += [plot(f'validation {name.upper()}', {name: points}) for name, points in curves.metrics.items()]
        sections.append(f'<h2>Training</h2><div class="plots">{"".join(plots)}</div>')
    of_all = f' {len(rows)} of {count} images, from all over the test.' if len(rows) < count else ''
    what = f'The whole image, then crops at {ZOOM}:1 where the blur cost most.'
    sections.append(f'<h2>Pictures</h2><p>{what}{of_all}</p>')
    sections += rows
    about = f'<p>{count} images; protocol: {html.escape(found.protocol)}.</p>'
    write_text(out, page(opt['name'], about + '\n'.join(sections)))
    return scores
