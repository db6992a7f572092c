"""Write a page about a test: blurred, restored and sharp images with their scores, and the training's curves.

It is one file with embedded pictures and plots. Everything but the scores is read from what training and test left.
"""

import html
import io
import itertools
import math
import re
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from basicsr.utils import tensor2img
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from ..errors import InputError
from ..system.files import write_text
from ..system.progress_bar import progress_bar
from ..system.terminal import counted
from ..train.lpips_metric import use_gpu
from ..train.results import describe_stores, describe_weights, key_of, mean_scores, restored_path, result_path
from ..train.scoring import measure
from .crops import CROP, ZOOM, busiest_crops
from .finished import TestResult, check_sizes, open_test_set, read_restored, read_result
from .page import check_page_name, page, picture, rounded

CROPS_PER_PICTURE = 2
MAX_PICTURES = 60  # images on a page at most; of more, some at equal distances
MAX_SIDE = 1280  # of a whole image on the page, in pixels; a page of full photographs has hundreds of megabytes

# As the toolbox writes it, in full: a full disk cuts the last one off, and 6.1602e-0 would be read as 6.1602.
LOSS = r'(-?\d\.\d{4}e[+-]\d\d|nan|-?inf)'


CurveName = tuple[str, str | None]  # a loss, or a metric and its data set


@dataclass(frozen=True)
class TestImage:
    """One test image: its pictures, uint8 (H, W, 3) in BGR, and the scores of the first two, by column and metric."""

    key: str
    pictures: dict[str, np.ndarray]  # 'blurred', 'restored', 'sharp'
    scores: dict[str, dict[str, float]]


@dataclass(frozen=True)
class Means:
    """A data set's mean scores, by metric."""

    images: int
    blurred: dict[str, float]
    restored: dict[str, float]

    def rows(self) -> Iterator[tuple[str, str, str, str]]:
        """Yield each metric, its scores before and after, and the difference, as texts."""
        for metric, blurred in self.blurred.items():
            restored = self.restored[metric]
            difference = rounded(metric, restored - blurred, sign='+')
            yield metric.upper(), rounded(metric, blurred), rounded(metric, restored), difference


@dataclass(frozen=True)
class Curves:
    """The curves in a training's logs: points (iteration, value) by loss and by validation metric."""

    losses: dict[str, list[tuple[int, float]]]
    metrics: dict[str, list[tuple[int, float]]]  # PSNR, or PSNR (NAME) if there are several sets


def read_images(opt: Mapping[str, Any], phase: str, dataset: Sequence[Mapping[str, Any]]) -> Iterator[TestImage]:
    """Yield the restored images of a finished test on a data set, with inputs, sharp images and scores."""
    dataset_opt, metrics = opt['datasets'][phase], opt['val'].get('metrics') or {}
    folder = Path('results', opt['name'], 'visualization')
    for item in dataset:
        if 'gt' not in item:
            raise InputError(f'{opt["name"]}: {dataset_opt["name"]} has no sharp images to compare with')
        key = key_of(item, dataset_opt)
        restored = read_restored(restored_path(folder, dataset_opt['name'], key, opt))
        pictures = {'blurred': tensor2img(item['lq']), 'restored': restored, 'sharp': tensor2img(item['gt'])}
        check_sizes(key, pictures)
        scores = {
            name: {
                metric: measure(metric_opt, {'img': pictures[name], 'img2': pictures['sharp']})
                for metric, metric_opt in metrics.items()
            }
            for name in ('blurred', 'restored')
        }
        yield TestImage(key, pictures, scores)


def _read_log(text: str) -> tuple[float, dict[CurveName, dict[int, float]]]:
    """Return the iteration that a run resumed at (infinity if it did not), and its values by curve and iteration."""
    curves: dict[CurveName, dict[int, float]] = defaultdict(dict)
    resumed_at, iteration, dataset = math.inf, 0, ''
    for line in text.splitlines():
        if match := re.search(r'iter:\s*([\d,]+), lr:', line):
            iteration = int(match[1].replace(',', ''))
            for name, value in re.findall(rf'\b(l_\w+): {LOSS}(?!\S)', line):
                curves[name, None][iteration] = float(value)
        elif match := re.search(r' INFO: Resuming training from epoch: \d+, iter: (\d+)\.$', line):
            iteration = resumed_at = int(match[1])
        elif match := re.match(r'[^I]*INFO: Validated (.+) at iteration (\d+)', line):
            dataset, iteration = match[1], int(match[2])
        elif match := re.search(r' INFO: Validation (.+)', line):  # the toolbox's own models log no more before scores
            dataset = match[1]
        elif match := re.match(r'\s+# (.+?): (\S+)\s+Best: ', line):
            curves[match[1].upper(), dataset][iteration] = float(match[2])
    return resumed_at, curves


def read_curves(experiment: Path) -> Curves:
    """Read losses and validation scores from an experiment's logs: a run has one for each time that it was resumed.

    One that goes on from an older state replaces the curves from there on.
    """
    logs = sorted(experiment.glob('train_*.log'))
    if not logs:
        raise InputError(f'{experiment}: no train_*.log in it; give the folder of a training run')
    curves: dict[CurveName, dict[int, float]] = defaultdict(dict)
    for log in logs:
        resumed_at, own = _read_log(log.read_text(encoding='utf-8', errors='replace'))
        if any(max(points) > resumed_at for points in own.values()):  # else no step was made, and nothing replaced
            for points in curves.values():
                for later in [each for each in points if each > resumed_at]:
                    del points[later]
        for name, points in own.items():
            curves[name] |= points
    drawn = {name: sorted(points.items()) for name, points in curves.items() if points}
    sets = {dataset for _, dataset in drawn if dataset is not None}
    return Curves(
        losses={name: points for (name, dataset), points in drawn.items() if dataset is None},
        metrics={
            f'{name} ({dataset})' if len(sets) > 1 else name: points
            for (name, dataset), points in drawn.items()
            if dataset is not None
        },
    )


def plot(
    title: str, series: Mapping[str, list[tuple[int, float]]], *, scale: str = 'linear', tested: int | None = None
) -> str:
    """Draw curves over iterations as a <figure>, with a line at the iteration whose weights were tested.

    The title is HTML: matplotlib reads `$` as mathematics, draws boxes for some scripts, and cuts a long title off.
    """
    figure = Figure(figsize=(5.2, 2.8), layout='constrained')
    axes = figure.subplots()
    if tested is not None:
        axes.axvline(tested, color='0.4', linestyle=':')
    for name, points in series.items():
        axes.plot(*zip(*points, strict=True), label=name, marker='.' if len(points) < 30 else None)
    axes.set(xlabel='iteration', yscale=scale)
    axes.xaxis.set_major_locator(MaxNLocator(6, steps=[1, 2, 5, 10], integer=True))
    axes.ticklabel_format(axis='both' if scale == 'linear' else 'x', useOffset=False)
    axes.grid(alpha=0.3)
    if len(series) > 1:
        axes.legend()
    text = io.StringIO()
    figure.savefig(text, format='svg')
    svg, name = text.getvalue().partition('<svg')[2], html.escape(title)
    return f'<figure><figcaption>{name}</figcaption><svg role="img" aria-label="{name}"{svg}</figure>'


def plot_losses(losses: Mapping[str, list[tuple[int, float]]]) -> str:
    """Draw the training's losses, on a logarithmic axis if all are positive."""
    lowest = {
        name: min((value for _, value in points if math.isfinite(value)), default=math.inf)
        for name, points in losses.items()
    }
    is_psnr = lowest.get('l_pix', 0) < 0  # of all pixel losses, only PSNRLoss is negative
    title = 'training loss (l_pix: -PSNR x loss_weight)' if is_psnr else 'training loss'
    return plot(title, losses, scale='log' if min(lowest.values()) > 0 else 'linear')


def _shrunk(pixels: np.ndarray) -> np.ndarray:
    """The whole image as the page shows it, its longer side MAX_SIDE at most."""
    scale = MAX_SIDE / max(pixels.shape)
    if scale >= 1:
        return pixels
    height, width = (max(1, round(side * scale)) for side in pixels.shape[:2])
    return cv2.resize(pixels, (width, height), interpolation=cv2.INTER_AREA)


def _row(image: TestImage) -> str:
    """The HTML of one test image: the whole image and its crops, in a column for each picture."""
    corners = busiest_crops([image.pictures['blurred'], image.pictures['sharp']], CROPS_PER_PICTURE)
    columns = []
    for name, pixels in image.pictures.items():
        scores = [f'{metric.upper()} {rounded(metric, value)}' for metric, value in image.scores.get(name, {}).items()]
        whole = picture(_shrunk(pixels), 'jpg', alt=f'{image.key}, {name}')
        crops = [
            picture(pixels[top : top + CROP, left : left + CROP], 'png', alt=f'{image.key}, {name}, crop', zoom=ZOOM)
            for top, left in corners
        ]
        scores_text = html.escape(', '.join(scores))
        columns.append(f'<div><b>{name}</b> {scores_text}<br>{whole}<p>{"".join(crops)}</p></div>')
    return f'<h3>{html.escape(image.key)}</h3><div class="columns">{"".join(columns)}</div>'


def _weights_were_replaced(result: TestResult) -> bool:
    path = result.weights_path
    return path is not None and Path(path).is_file() and describe_weights(path)['sha256'] != result.weights


def _stores_were_replaced(dataset: Mapping[str, Any], result: TestResult) -> bool:
    return result.stores is not None and result.stores != describe_stores(dataset)


def _summary(dataset: Mapping[str, Any], means: Means, result: TestResult | None) -> str:
    rows = [f'<tr><td>{"</td><td>".join(map(html.escape, cells))}</td></tr>' for cells in means.rows()]
    about = f'{dataset["name"]}: {counted(means.images, "image")}'
    if result is not None:
        about += ' (the data have changed since: test again)' if _stores_were_replaced(dataset, result) else ''
        about += f'; protocol: {result.protocol}'
        about += f'; weights: {result.weights_path}' if result.weights_path else ''
        about += ' (the file has changed since: test again)' if _weights_were_replaced(result) else ''
        about += f', iteration {result.iteration} of {result.training}' if result.iteration is not None else ''
    about += '.'
    return (
        f'<p>{html.escape(about)}</p><table class="numbers">'
        '<tr><th>mean</th><th>blurred</th><th>restored</th><th>difference</th></tr>' + ''.join(rows) + '</table>'
    )


def _training(curves: Curves, tested: int | None) -> str:
    """The HTML of a training's curves; `tested`: the iteration in it whose weights were tested, None if in none."""
    plots = [plot_losses(curves.losses)] if curves.losses else []
    plots += [plot(f'validation {name}', {name: points}, tested=tested) for name, points in curves.metrics.items()]
    validated_at_first = any(points[0][0] == 0 for points in curves.metrics.values())
    note = 'At iteration 0: the weights that the training began with. ' if validated_at_first else ''
    note += '' if tested is None else 'Dotted line: the iteration whose weights were tested.'
    return f'<h2>Training</h2><p>{note}</p><div class="plots">{"".join(plots)}</div>'


def _result(opt: Mapping[str, Any], phase: str) -> TestResult | None:
    """Read what a test wrote of a data set; None if its model writes no result, like the toolbox's own models."""
    path = result_path(Path('results', opt['name']), opt['datasets'][phase]['name'])
    return read_result(path) if path.is_file() else None


def write_report(opt: Mapping[str, Any], experiment: Path | None, out: Path) -> dict[str, Means]:
    """Write the page of a finished test, and return the mean scores of each of its data sets.

    Args:
        opt: the options that it ran with. Its results are read from results/ in the current folder.
        experiment: folder of the training run whose curves are shown; None for none.
        out: the page's path.
    """
    check_page_name(out)
    use_gpu(opt.get('num_gpu') != 0)
    datasets = {phase: open_test_set(opt, phase) for phase in opt['datasets']}
    count = sum(map(len, datasets.values()))
    shown = {round(each) for each in np.linspace(0, count - 1, min(count, MAX_PICTURES))}
    curves = read_curves(experiment) if experiment is not None else None  # fails early, before the scoring
    results = {phase: _result(opt, phase) for phase in datasets}
    sections, rows = [], []
    means_of: dict[str, Means] = {}
    numbers = itertools.count()
    for phase, dataset in datasets.items():
        name = opt['datasets'][phase]['name']
        scores: dict[str, dict[str, dict[str, float]]] = {'blurred': {}, 'restored': {}}
        progress = progress_bar(read_images(opt, phase, dataset), total=len(dataset), unit='image', desc=name)
        for image in progress:
            for column, own in image.scores.items():
                scores[column][image.key] = own
            if next(numbers) in shown:
                rows.append(_row(image))
        if not scores['restored']:
            raise InputError(f'{opt["name"]}: {name} holds no images to report on')
        means = {column: mean_scores(each) for column, each in scores.items()}
        means_of[name] = Means(len(scores['restored']), **means)
        sections.append(_summary(opt['datasets'][phase], means_of[name], results[phase]))
    if curves is not None and experiment is not None:
        tested = {each.iteration for each in results.values() if each and each.training == experiment.name}
        sections.append(_training(curves, tested.pop() if len(tested) == 1 else None))
    of_all = f' {len(rows)} of {count} images, spread evenly over the test.' if len(rows) < count else ''
    what = f'The whole image, then crops at {ZOOM}:1 (smaller on a narrow page) where the blur cost most.'
    sections.append(f'<h2>Pictures</h2><p>{what}{of_all}</p>')
    sections += rows
    write_text(out, page(opt['name'], '\n'.join(sections)))
    return means_of
