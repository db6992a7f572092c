"""Make the paper's Fig. 4 from any finished tests: a row for each crop, columns for input, each method and sharp."""

import html
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from basicsr.metrics import calculate_psnr
from basicsr.utils import tensor2img
from matplotlib import font_manager
from PIL import Image, ImageDraw, ImageFont

from ..data.frame_names import frame_of_key, key_of_frame, sequence_of
from ..data.image_files import write_png
from ..data.jpeg_deblur_dataset import JPEGDeblurDataset
from ..errors import InputError
from ..system.files import write_text
from ..system.terminal import printable
from ..train.results import key_of, restored_path
from .crops import CROP, ZOOM, busiest_crops
from .finished import check_sizes, open_test_set, options_of_test, read_restored
from .page import check_page_name, page, picture, rounded
from .tables import name_in_paper

PAPER_FRAMES = ('003/00000060', '026/00000054', '004/00000093', '010/00000098')
OTHER_COLUMNS = ('input', 'sharp')
ROWS = 4  # if no crops are given and the data set is not the paper's

GAP, TEXT_HEIGHT, FONT_SIZE = 12, 30, 20  # pixels in the PNG

TestSet = Sequence[Mapping[str, Any]]  # a data set's items


@dataclass(frozen=True)
class Method:
    """A finished test's restored images of one data set."""

    name: str
    visualization: Path
    dataset: str
    opt: Mapping[str, Any]

    def read(self, key: str) -> np.ndarray:
        return read_restored(restored_path(self.visualization, self.dataset, key, self.opt))


@dataclass(frozen=True)
class Cell:
    """A crop, uint8 (h, w, 3), BGR. `psnr` is the whole image's, None for the sharp image or if there is none."""

    title: str
    crop: np.ndarray
    psnr: float | None


@dataclass(frozen=True)
class FigureRow:
    """One crop, named as in --crops, in each column."""

    crop: str
    cells: list[Cell]


def _parse(crop: str) -> tuple[str, tuple[int, int] | None]:
    match = re.fullmatch(r'(.*?)(?::(\d+),(\d+))?', crop, re.DOTALL)
    assert match  # any text matches
    return match[1], None if match[2] is None else (int(match[2]), int(match[3]))


def _open_results(results: Sequence[Path]) -> tuple[TestSet, list[Method]]:
    """Open the first result's first data set that all results restored; return it and each result's Method for it."""
    names = [result.resolve().name for result in results]
    if len({*names, *OTHER_COLUMNS}) < len(names) + len(OTHER_COLUMNS):
        raise InputError(f'{", ".join(names)}: results in one figure need different names')
    options = [options_of_test(result) for result in results]
    for phase, dataset in options[0]['datasets'].items():
        folders = [result / 'visualization' for result in results]
        if all((folder / dataset['name']).is_dir() for folder in folders):
            methods = [
                Method(name, folder, dataset['name'], opt)
                for name, folder, opt in zip(names, folders, options, strict=True)
            ]
            return open_test_set(options[0], phase), methods
    datasets = ' or '.join(dataset['name'] for dataset in options[0]['datasets'].values())
    raise InputError(
        f'{", ".join(map(str, results))}: not all have restored images of {datasets}; test with save_img: true'
    )


def _keys(dataset: Any) -> list[str]:
    """The keys of a data set's images, in its order."""
    if isinstance(dataset, JPEGDeblurDataset):
        return [frame['key'] for frame in dataset.frames]
    return [key_of(item, dataset.opt) for item in dataset]  # other classes give keys only with the decoded images


def _most_different(dataset: TestSet, keys: Sequence[str], methods: Sequence[Method]) -> list[str]:
    """Up to ROWS frames in which one crop differs most between the methods: first one of each sequence, then any."""

    def difference(place: int) -> float:
        images = {method.name: method.read(keys[place]) for method in methods}
        if len(methods) == 1:
            images['input'] = tensor2img(dataset[place]['lq'])
        check_sizes(frame_of_key(keys[place]), images)
        corner = busiest_crops(list(images.values()), 1)[0]
        return float(np.ptp([_cut(image, corner) for image in images.values()], axis=0).sum())

    ranked = [keys[place] for place in sorted(range(len(keys)), key=difference, reverse=True)]
    best: dict[str, str] = {}
    for key in ranked:
        best.setdefault(sequence_of(key), key)
    chosen = dict.fromkeys([*best.values(), *ranked])
    return [frame_of_key(key) for key in list(chosen)[:ROWS]]


def _row(item: Mapping[str, Any], key: str, corner: tuple[int, int] | None, methods: Sequence[Method]) -> FigureRow:
    restored = {method.name: method.read(key) for method in methods}
    images = {'input': tensor2img(item['lq']), **restored}
    if 'gt' in item:
        images['sharp'] = tensor2img(item['gt'])
    check_sizes(frame_of_key(key), images)
    if corner is None:
        compared = restored if len(restored) > 1 else {**restored, 'input': images['input']}
        corner = busiest_crops(list(compared.values()), 1)[0]
    height, width = images['input'].shape[:2]
    lowest, rightmost = max(0, height - CROP), max(0, width - CROP)
    if corner[0] > lowest or corner[1] > rightmost:
        raise InputError(
            f'--crops {frame_of_key(key)}:{corner[0]},{corner[1]}: not inside {width} x {height}; '
            f'TOP is {lowest} at most, LEFT {rightmost}'
        )
    cells = []
    for name, image in images.items():
        scored = 'sharp' in images and name != 'sharp'
        psnr = float(calculate_psnr(image, images['sharp'], 0)) if scored else None
        cells.append(Cell(name_in_paper(name), _cut(image, corner), psnr))
    return FigureRow(f'{frame_of_key(key)}:{corner[0]},{corner[1]}', cells)


def _cut(image: np.ndarray, corner: tuple[int, int]) -> np.ndarray:
    top, left = corner
    return image[top : top + CROP, left : left + CROP]


def read_rows(results: Sequence[Path], crops: Sequence[str]) -> list[FigureRow]:
    """Read the rows of the figure; for the arguments see `make_figure`."""
    dataset, methods = _open_results(results)
    places = {key: place for place, key in enumerate(_keys(dataset))}
    if not crops:
        paper = [frame for frame in PAPER_FRAMES if key_of_frame(frame) in places]
        crops = paper if len(paper) == len(PAPER_FRAMES) else _most_different(dataset, list(places), methods)
    rows = []
    for crop in crops:
        frame, corner = (crop, None) if key_of_frame(crop) in places else _parse(crop)  # a name may end like :TOP,LEFT
        if key_of_frame(frame) not in places:
            known = frame_of_key(next(iter(places)))
            raise InputError(
                f"--crops {crop}: the data set has no such frame; there are '{known}' and '{known}:TOP,LEFT'"
            )
        rows.append(_row(dataset[places[key_of_frame(frame)]], key_of_frame(frame), corner, methods))
    return rows


def _caption(cell: Cell) -> str:
    return '' if cell.psnr is None else f'PSNR {rounded("psnr", cell.psnr)}'


def draw(rows: Sequence[FigureRow]) -> np.ndarray:
    """Draw the figure, uint8 (H, W, 3), RGB: titles, then for each row the crop's name, its cells at ZOOM, the PSNR."""
    font = ImageFont.truetype(font_manager.findfont('DejaVu Sans'), FONT_SIZE)
    sizes = [(cell.crop.shape[1] * ZOOM, cell.crop.shape[0] * ZOOM) for row in rows for cell in row.cells]
    titles = [cell.title for cell in rows[0].cells]
    column = max([width for width, _ in sizes] + [int(font.getlength(text)) + 1 for text in [*titles, 'PSNR 00.00']])
    heights = [row.cells[0].crop.shape[0] * ZOOM + 2 * TEXT_HEIGHT + GAP for row in rows]
    names = [printable(row.crop) for row in rows]
    width = max([len(titles) * (column + GAP)] + [int(font.getlength(name)) + 1 + GAP for name in names])
    figure = Image.new('RGB', (GAP + width, GAP + TEXT_HEIGHT + sum(heights)), 'white')
    pen = ImageDraw.Draw(figure)
    lefts = [GAP + place * (column + GAP) for place in range(len(titles))]
    top = GAP
    for left, title in zip(lefts, titles, strict=True):
        pen.text((left + column // 2, top), title, 'black', font, anchor='ma')
    top += TEXT_HEIGHT
    for row, name, height in zip(rows, names, heights, strict=True):
        pen.text((GAP, top), name, 'dimgray', font)
        for left, cell in zip(lefts, row.cells, strict=True):
            crop = Image.fromarray(cv2.cvtColor(cell.crop, cv2.COLOR_BGR2RGB))
            crop = crop.resize((crop.width * ZOOM, crop.height * ZOOM), Image.Resampling.NEAREST)
            figure.paste(crop, (left + (column - crop.width) // 2, top + TEXT_HEIGHT))
            below = top + TEXT_HEIGHT + crop.height + 4
            pen.text((left + column // 2, below), _caption(cell), 'black', font, anchor='ma')
        top += height
    return np.asarray(figure)


STYLE = """
body { max-width: none } .figure { text-align: center }
.figure td, .figure th { padding: 4px } .figure img { image-rendering: pixelated }
@media screen { .figure img { max-width: none } } @media print { .figure { table-layout: fixed; width: 100% } }
.figure .crop { text-align: left; padding-top: 14px; color: #666 } .figure tr:has(.crop) { break-after: avoid }
"""


def _html_page(rows: Sequence[FigureRow]) -> str:
    titles = ''.join(f'<th>{html.escape(cell.title)}</th>' for cell in rows[0].cells)
    table = [f'<table class="figure"><tr>{titles}</tr>']
    for row in rows:
        cells = [
            f'<td>{picture(cell.crop, "png", alt=f"{row.crop}, {cell.title}", zoom=ZOOM)}<br>{_caption(cell)}</td>'
            for cell in row.cells
        ]
        table.append(f'<tr><td class="crop" colspan="{len(cells)}">{html.escape(row.crop)}</td></tr>')
        table.append(f'<tr>{"".join(cells)}</tr>')
    about = (
        f'<p>Crops of {CROP} x {CROP} pixels at {ZOOM}:1, named as sequence/frame:top,left. '
        'PSNR is that of the whole image, in dB.</p>'
    )
    return page('Crops of restored images', about + '\n'.join(table) + '</table>', STYLE)


def make_figure(results: Sequence[Path], crops: Sequence[str], out: Path) -> Path:
    """Write the figure as a page, and as a PNG beside it.

    Args:
        results: folders of finished tests on the same data set, results/NAME. The data set is opened by the options of
            the first; relative paths in them are relative to the current folder.
        crops: the rows, 'SEQUENCE/FRAME' or 'SEQUENCE/FRAME:TOP,LEFT'. Without TOP,LEFT the crop is where the methods
            differ most. If empty: the paper's frames, or in another data set those where the methods differ most.
        out: the page's path.

    Returns:
        the PNG's path: `out` with the ending .png.
    """
    check_page_name(out)
    image = out.with_suffix('.png')
    rows = read_rows(results, crops)
    write_png(image, draw(rows)[:, :, ::-1])
    write_text(out, _html_page(rows))
    return image
