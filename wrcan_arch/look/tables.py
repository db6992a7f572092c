"""Compare the paper's tables with what was measured here, as text, HTML or CSV."""

import csv
import html
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

from ..train.results import result_path
from .finished import TestResult, read_result
from .page import page, rounded

FRAMES = 3000  # in REDS's validation set, and in its test set

Network = Mapping[str, Any]  # options under network_g

WRCAN: Network = {'type': 'WRCAN', 'num_feat': 64, 'num_group': 4, 'num_block': 16, 'block': 'wrca'}
WRN: Network = {**WRCAN, 'block': 'wr'}
SINGLE, X8 = 'chop fp32', 'chop x8 fp32'


@dataclass(frozen=True)
class Row:
    """One row of a table: the name of its result, a cell for each heading, the paper's scores by metric.

    `network` is the network that the paper measured, empty for the blurred input; `protocol` is in the words of
    `Request.describe`.
    """

    result: str
    cells: tuple[str, ...]
    paper: dict[str, float]
    network: Network
    protocol: str = SINGLE


@dataclass(frozen=True)
class Table:
    """One of the paper's tables, measured on the data set `dataset`.

    `scored` says whether tests here can measure its scores.
    """

    title: str
    about: str
    dataset: str
    headings: tuple[str, ...]
    rows: tuple[Row, ...]
    scored: bool = True


def _one_group(block: str) -> Network:
    return {**WRCAN, 'num_group': 1, 'block': block}


def _scores(psnr: float, ssim: float, lpips: float | None = None) -> dict[str, float]:
    return {'psnr': psnr, 'ssim': ssim} | ({} if lpips is None else {'lpips': lpips})


PAPER = (
    Table(
        title='Table 1',
        about='What wide receptive field and channel attention bring (one residual group; REDS, validation).',
        dataset='REDS_val',
        headings=('case', 'WR', 'CA'),
        rows=(
            Row('test_table1_case1', ('1', '-', '-'), _scores(28.45, 0.8030), _one_group('res')),
            Row('test_table1_case2', ('2', 'x', '-'), _scores(28.60, 0.8061), _one_group('wr')),
            Row('test_table1_case3', ('3', '-', 'x'), _scores(28.56, 0.8057), _one_group('rca')),
            Row('test_table1_case4', ('4', 'x', 'x'), _scores(28.71, 0.8089), _one_group('wrca')),
        ),
    ),
    Table(
        title='Table 2',
        about='What the auto-encoder loss, self-ensemble and larger patches bring (REDS, validation).',
        dataset='REDS_val',
        headings=('method',),
        rows=(
            Row('test_table2_row1', ('the blurred JPEG input itself',), _scores(24.91, 0.7963), {}, 'input'),
            Row('test_table2_row2', ('WRN, L1',), _scores(28.90, 0.8131), WRN),
            Row('test_table2_row3', ('WRCAN, L1',), _scores(28.93, 0.8138), WRCAN),
            Row('test_table2_row4', ('WRCAN, L1 + L_AE-JPEG',), _scores(28.99, 0.8154), WRCAN),
            Row('test_table2_row5', ('WRCAN, L1, x8',), _scores(29.06, 0.8160), WRCAN, X8),
            Row('test_table2_row6', ('WRCAN, L1 + L_AE-JPEG, x8',), _scores(29.12, 0.8175), WRCAN, X8),
            Row('test_table2_row7', ('WRCAN, L1 + L_AE-JPEG, x8, patch 320',), _scores(29.20, 0.8192), WRCAN, X8),
        ),
    ),
    Table(
        title='Table 3',
        about="As the challenge's server judged it (REDS, test). Only it has the sharp frames: tests give no scores.",
        dataset='REDS_test',
        headings=('method',),
        rows=(Row('test_table3', ('WRCAN, patch 320, x8',), _scores(29.60, 0.8398, 0.2302), WRCAN, X8),),
        scored=False,
    ),
)


def name_in_paper(result: str) -> str:
    """The paper's name for the row that a result measures; the result's own name if it measures none."""
    for table in PAPER:
        for row in table.rows:
            if row.result == result:
                return row.cells[0] if len(row.cells) == 1 else f'{table.title}, {table.headings[0]} {row.cells[0]}'
    return result


@dataclass(frozen=True)
class Line:
    """A row and its result. `note` says why there is none, or why it cannot be compared with the paper's."""

    row: Row
    found: TestResult | None
    note: str = ''


def compare(results: Path) -> list[tuple[Table, list[Line]]]:
    """Return the paper's rows with their results in the folder `results`, which need not exist."""
    return [(table, [_line(table, row, results / row.result) for row in table.rows]) for table in PAPER]


def _line(table: Table, row: Row, folder: Path) -> Line:
    path = result_path(folder, table.dataset)
    if path.is_file():
        found = read_result(path)
        return Line(row, found, _differences(row, found))
    others = sorted(other.stem.removeprefix('result_') for other in folder.glob('result_*.json'))
    where = f' on {table.dataset}, only on {", ".join(others)}' if others else ''
    return Line(row, None, f'no result{where}: basicsr test -opt options/{row.result}.yml')


def _differences(row: Row, found: TestResult) -> str:
    """How the result's measurement differs from the row's; '' if the two can be compared."""
    network = {**WRCAN, **found.network}  # with WRCAN's defaults
    protocol = 'input' if found.protocol.startswith('input') else found.protocol  # whatever precision follows
    here = {'protocol': protocol, 'images': found.images, **{name: network[name] for name in row.network}}
    paper = {'protocol': row.protocol, 'images': FRAMES, **row.network}
    for metric in row.paper:
        chosen = found.metric_options.get(metric, {})
        for option, papers in PAPER_METRIC_OPTIONS.items():
            here[f'{metric}:{option}'], paper[f'{metric}:{option}'] = chosen.get(option, papers), papers
    differences = [f'{name} {here[name]}, not {paper[name]}' for name in paper if here[name] != paper[name]]
    return f'not what the paper measured: {"; ".join(differences)}' if differences else ''


PAPER_METRIC_OPTIONS = {'crop_border': 0, 'test_y_channel': False}
ABOUT_RESULT = ('protocol', 'images', 'weights')


@dataclass(frozen=True)
class Column:
    """A column of a table; `metric` is the score that it shows, in capitals, '' if it shows none."""

    heading: str
    metric: str = ''

    @property
    def name(self) -> str:
        """The column's heading in CSV."""
        return f'{self.metric} {self.heading}'.lstrip()

    @property
    def is_number(self) -> bool:
        return bool(self.metric) or self.heading == 'images'

    @property
    def begins_group(self) -> bool:
        return self.heading in ('paper', 'protocol')


def _columns(table: Table) -> list[Column]:
    of_metric = ('paper', 'measured', 'difference') if table.scored else ('paper',)
    scores = [Column(heading, metric.upper()) for metric in table.rows[0].paper for heading in of_metric]
    return [*map(Column, table.headings), *scores, *map(Column, ABOUT_RESULT)]


def _cells(table: Table, line: Line) -> dict[str, str]:
    """A row's cells by the names of its columns, in their order; '' for a cell without content."""
    cells = dict(zip(table.headings, line.row.cells, strict=True))
    for metric, paper in line.row.paper.items():
        name = metric.upper()
        cells[f'{name} paper'] = rounded(metric, paper)
        measured = line.found.metrics.get(metric) if line.found else None
        if measured is not None:
            cells[f'{name} measured'] = rounded(metric, measured)
            cells[f'{name} difference'] = '' if line.note else rounded(metric, measured - paper, sign='+')
    if line.found is not None:
        found = line.found
        weights = (
            (found.weights or 'none')[:12],
            found.key,
            found.training,
            None if found.iteration is None else f'iteration {found.iteration}',
        )
        cells |= {'protocol': found.protocol, 'images': str(found.images), 'weights': ' '.join(filter(None, weights))}
    return {column.name: cells.get(column.name, '') for column in _columns(table)}


def as_text(compared: Sequence[tuple[Table, list[Line]]]) -> str:
    """Format the tables for a terminal."""
    return '\n\n'.join(_text_table(table, lines) for table, lines in compared)


def _text_table(table: Table, lines: list[Line]) -> str:
    """Format one table; the metrics' names have a row of their own, above the paper's scores."""
    columns = _columns(table)
    metrics = [column.metric if column.heading == 'paper' else '' for column in columns]
    headings = [column.heading for column in columns]
    rows = [list(_cells(table, line).values()) for line in lines]
    widths = [max(map(len, cells)) for cells in zip(metrics, headings, *rows, strict=True)]

    def padded(cells: list[str]) -> list[str]:
        return [
            f'{cell:{">" if column.is_number else "<"}{width}}'
            for cell, column, width in zip(cells, columns, widths, strict=True)
        ]

    text = [f'{table.title}. {table.about}']
    text += ['  '.join(padded(cells)).rstrip() for cells in (metrics, headings)]
    for line, cells in zip(lines, map(padded, rows), strict=True):
        text.append('  '.join([*(cells if line.found else cells[: -len(ABOUT_RESULT)]), line.note]).rstrip())
    return '\n'.join(text)


STYLE = """
.numbers { font-variant-numeric: tabular-nums; white-space: nowrap; font-size: 14px; margin-bottom: 2.5em }
.numbers th { font-size: 13px } .numbers td:last-child { white-space: normal; overflow-wrap: anywhere; min-width: 16em }
.numbers td, .numbers th { padding: 4px 5px } .numbers .first { padding-left: 12px } .numbers .text { text-align: left }
.numbers thead { border-bottom: 2px solid #222 } .numbers thead tr { border: 0 } .numbers .metric { text-align: center }
.numbers .note { color: #767676; font-size: 13px; white-space: normal } .numbers .below { border-top: hidden }
"""


def as_html(compared: Sequence[tuple[Table, list[Line]]]) -> str:
    """Format the tables as one page."""
    weights = "the first digits of the weight file's SHA-256, the set in it that was asked for, its training, if any"
    body = [f'<p>Difference: measured minus paper. Weights: {weights}.</p>']
    for table, lines in compared:
        body.append(f'<h2>{table.title}</h2><p>{html.escape(table.about)}</p>')
        body.append(f'<table class="numbers"><thead>{_html_headings(table)}</thead>')
        body += [_html_row(table, line) for line in lines]
        body.append('</table>')
    return page('Paper against measured', '\n'.join(body), STYLE)


def _html_headings(table: Table) -> str:
    """The two heading rows: the metrics, each above its columns, and the columns."""
    columns = _columns(table)
    above = ''
    for metric, group in groupby(columns, key=lambda column: column.metric):
        kind = ' class="metric"' if metric else ''
        above += f'<th colspan="{len(list(group))}"{kind}>{metric}</th>'
    return f'<tr>{above}</tr><tr>{_html_cells("th", table, [column.heading for column in columns])}</tr>'


def _html_row(table: Table, line: Line) -> str:
    """The HTML of a row; a note takes the place of a missing result, or else a row below."""
    cells, note = list(_cells(table, line).values()), html.escape(line.note)
    if line.found is None:
        scores = _html_cells('td', table, cells[: -len(ABOUT_RESULT)])
        return f'<tr>{scores}<td class="text first note" colspan="{len(ABOUT_RESULT)}">{note}</td></tr>'
    below = f'<tr class="below"><td class="text note" colspan="{len(cells)}">{note}</td></tr>' if note else ''
    return f'<tr>{_html_cells("td", table, cells)}</tr>{below}'


def _html_cells(tag: str, table: Table, texts: list[str]) -> str:
    cells = []
    for column, text in zip(_columns(table), texts, strict=False):
        kind = '' if column.is_number else 'text '
        first = 'first' if column.begins_group else ''
        cells.append(f'<{tag} class="{kind}{first}">{html.escape(text)}</{tag}>')
    return ''.join(cells)


def as_csv(compared: Sequence[tuple[Table, list[Line]]]) -> str:
    """Format all tables as one CSV, a line for each row; columns that a table does not have are empty."""
    headings = dict.fromkeys(heading for table, _ in compared for heading in table.headings)
    scores = dict.fromkeys(column.name for table, _ in compared for column in _columns(table) if column.metric)
    columns = ['table', 'dataset', *headings, *scores, *ABOUT_RESULT, 'result', 'note']
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, restval='', lineterminator='\n')
    writer.writeheader()
    for table, lines in compared:
        about = {'table': table.title, 'dataset': table.dataset}
        for line in lines:
            writer.writerow({**about, **_cells(table, line), 'result': line.row.result, 'note': line.note})
    return text.getvalue()
