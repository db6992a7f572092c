"""A page for people who would rather look: blurred, restored and sharp, with scores, and the training's curves.

One file, pictures and plots inside it. It reads what a training and a test left on disk and computes only the scores.
"""

import base64
import html
import io
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import yaml
from basicsr.data import build_dataset
from basicsr.metrics import calculate_metric
from basicsr.utils import tensor2img
from matplotlib.figure import Figure

from ..errors import InputError
from ..train.results import key_of

CROP = 160  # pixels, the side of a crop
ZOOM = 2  # of crops, where they are shown
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
class Found:
    """What one test left. `weights` is the SHA-256 of the weight file, None for a test without one."""

    metrics: dict[str, float]
    protocol: str
    images: int
    network: Mapping[str, Any]
    weights: str | None


@dataclass(frozen=True)
class Curves:
    """What a training log holds: iteration and value, by loss and by validation metric."""

    losses: dict[str, list[tuple[int, float]]]
    metrics: dict[str, list[tuple[int, float]]]


def read_results(opt: Mapping[str, Any]) -> Iterator[Result]:
    """The finished test's restored images beside their inputs and sharp images."""
    for phase, dataset_opt in opt['datasets'].items():
        ending = opt['val'].get('suffix') or opt['name']
        folder = Path('results', opt['name'], 'visualization', dataset_opt['name'])
        for item in open_test_set(opt, phase):
            if 'gt' not in item:
                raise InputError(f'{opt["name"]}: {dataset_opt["name"]} has no sharp images to compare with')
            key = key_of(item)
            restored = read_restored(folder / f'{key}_{ending}.png')
            pictures = {'blurred': tensor2img(item['lq']), 'restored': restored, 'sharp': tensor2img(item['gt'])}
            check_sizes(key, pictures)
            yield Result(key, pictures, _scores(pictures, opt['val'].get('metrics') or {}))


def read_options(result: Path) -> Mapping[str, Any]:
    """The options that a finished test ran with, from its folder, results/NAME."""
    path = result / 'options.yml'
    if not path.is_file():
        raise InputError(f'{result}: no options.yml in it; give the folder that basicsr test wrote, results/NAME')
    try:
        options = yaml.safe_load(path.read_text(encoding='utf-8'))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise InputError(f'{path}: damaged, not YAML; test again') from error
    if not isinstance(options, dict):
        raise InputError(f'{path}: damaged, no options in it; test again')
    return options


def check_sizes(name: str, images: Mapping[str, np.ndarray]) -> None:
    """InputError unless all are of one size, as those of one frame are while a result is its data's."""
    sizes = {column: f'{image.shape[1]} x {image.shape[0]}' for column, image in images.items()}
    if len(set(sizes.values())) > 1:
        found = ', '.join(f'{size} in {column}' for column, size in sizes.items())
        raise InputError(f'{name} is {found}; give results of the same data set, or test again')


def open_test_set(opt: Mapping[str, Any], phase: str) -> Sequence[Mapping[str, Any]]:
    """The data set that a test's options name under datasets: `phase`."""
    return build_dataset({**opt['datasets'][phase], 'phase': phase.split('_')[0], 'scale': opt['scale']})


def read_restored(path: Path) -> np.ndarray:
    """An image that a test restored, uint8 (H, W, 3), BGR."""
    image = cv2.imread(str(path)) if path.is_file() else None  # or OpenCV says it too
    if image is None:
        raise InputError(f'{path.parent}: no restored image {path.name}; run basicsr test with save_img: true')
    return image


def read_found(path: Path) -> Found:
    """The content of a result_DATASET.json."""
    try:
        result = json.loads(path.read_text(encoding='utf-8'))
        weights = result['weights']
        return Found(
            metrics={name: float(value) for name, value in result['metrics'].items()},
            protocol=str(result['protocol']),
            images=int(result['images']),
            network=dict(result['network_g']),
            weights=None if weights is None else str(weights['sha256']),
        )
    except (ValueError, KeyError, TypeError, AttributeError) as error:  # not JSON, or JSON of something else
        reason = f'{type(error).__name__}: {error}'
        raise InputError(f'{path}: not a result of basicsr test ({reason}); remove it and test again') from error


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
    for line in '\n'.join(log.read_text(encoding='utf-8') for log in logs).splitlines():
        if match := re.search(r'iter:\s*([\d,]+), lr:', line):
            iteration = int(match[1].replace(',', ''))
            for name, value in re.findall(r'\b(l_\w+): (\S+)', line):
                losses.setdefault(name, {})[iteration] = float(value)
        elif match := re.search(r'Validated (\S+) at iteration (\d+)', line):
            sets.add(match[1])
            place, iteration = match[1], int(match[2])
        elif match := re.match(r'\s+# (\w+): (\S+)\s+Best: ', line):
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


def busiest_crops(images: Sequence[np.ndarray], count: int = CROPS_PER_PICTURE) -> list[tuple[int, int]]:
    """Top left corners of `count` crops that do not overlap, where the images are furthest from one another."""
    difference = np.ptp(np.stack(images), axis=0).astype(np.float32).sum(axis=2)  # (H, W)
    height, width = difference.shape
    high, wide = min(CROP, height), min(CROP, width)
    sums = cv2.boxFilter(difference, -1, (wide, high), anchor=(0, 0), normalize=False, borderType=cv2.BORDER_CONSTANT)
    sums = sums[: height - high + 1, : width - wide + 1].copy()
    corners: list[tuple[int, int]] = []
    while len(corners) < count and (sums >= 0).any():
        top, left = divmod(int(sums.argmax()), sums.shape[1])
        corners.append((top, left))
        sums[max(0, top - high + 1) : top + high, max(0, left - wide + 1) : left + wide] = -1
    return corners


def picture(image: np.ndarray, ending: str, *, alt: str, zoom: int = 1) -> str:
    """An <img> that holds the image itself, as a 'jpg' or a 'png'."""
    parameters = [cv2.IMWRITE_JPEG_QUALITY, 92] if ending == 'jpg' else []
    encoded = base64.b64encode(cv2.imencode(f'.{ending}', image, parameters)[1].tobytes()).decode()
    kind = {'jpg': 'jpeg', 'png': 'png'}[ending]
    width = image.shape[1] * zoom
    return f'<img src="data:image/{kind};base64,{encoded}" alt="{html.escape(alt)}" width="{width}">'


def _score(metric: str, value: float) -> str:
    return f'{metric.upper()} {rounded(metric, value)}'


def rounded(metric: str, value: float, sign: str = '') -> str:
    """With the digits that the paper's tables have; `sign` '+' writes the sign of a difference."""
    digits = 2 if metric == 'psnr' else 4
    return f'{round(value, digits) + 0:{sign}.{digits}f}'  # + 0 makes 0.0 of -0.0


def _row(result: Result) -> str:
    """One test image: the whole and the crops, in three columns."""
    corners = busiest_crops([result.pictures['blurred'], result.pictures['sharp']])
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


STYLE = """
body { font: 15px/1.45 system-ui, sans-serif; max-width: 1180px; margin: 2em auto; padding: 0 1em; color: #222 }
table { border-collapse: collapse } td { vertical-align: top } img, svg { max-width: 100%; height: auto }
.numbers td, .numbers th { padding: 4px 14px; text-align: right } .numbers tr { border-bottom: 1px solid #ddd }
.columns { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(320px, 100%), 1fr)); gap: 8px }
.columns p { display: flex; flex-wrap: wrap; gap: 4px; margin: 4px 0 } .columns p img { image-rendering: pixelated }
.plots { display: flex; flex-wrap: wrap; gap: 1em }
"""


def page(title: str, body: str, style: str = '') -> str:
    """A whole page around `body`; `style` is what it needs beyond STYLE."""
    return (
        '<!doctype html><html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width">'
        f'<title>{html.escape(title)}</title><style>{STYLE}{style}</style><h1>{html.escape(title)}</h1>{body}</html>\n'
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
    scores, rows = [], []
    for number, result in enumerate(read_results(opt)):
        scores.append(result.scores)
        if number in shown:
            rows.append(_row(result))
    if not scores:
        raise InputError(f'{opt["name"]}: its data sets hold no images to report on')
    sections = [_summary(scores)]
    if experiment is not None:
        curves = read_curves(experiment)
        plots = [plot_losses(curves.losses)] if curves.losses else []
        plots += [plot(f'validation {name.upper()}', {name: points}) for name, points in curves.metrics.items()]
        sections.append(f'<h2>Training</h2><div class="plots">{"".join(plots)}</div>')
    of_all = f' {len(rows)} of {count} images, from all over the test.' if len(rows) < count else ''
    what = f'The whole image, then crops at {ZOOM}:1 where the blur cost most.'
    sections.append(f'<h2>Pictures</h2><p>{what}{of_all}</p>')
    sections += rows
    datasets = [dataset['name'] for dataset in opt['datasets'].values()]
    found = read_found(Path('results', opt['name'], f'result_{datasets[0]}.json'))
    about = f'<p>{count} images; protocol: {html.escape(found.protocol)}.</p>'
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(page(opt['name'], about + '\n'.join(sections)), encoding='utf-8')
    return scores
