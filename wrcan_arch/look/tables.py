"""The paper's tables beside what was measured here: as text, as a page, as CSV."""

import csv
import html
import io
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ..errors import InputError
from .report import page, rounded


@dataclass(frozen=True)
class Row:
    """One row of a table: the result that measures it, what it is (a cell a heading), the paper's scores by metric."""

    result: str
    cells: tuple[str, ...]
    paper: dict[str, float]


@dataclass(frozen=True)
class Table:
    """One of the paper's tables. `dataset` is the name of the data set that its results are measured on."""

    title: str
    about: str
    dataset: str
    headings: tuple[str, ...]
    rows: tuple[Row, ...]


def _scores(psnr: float, ssim: float, lpips: float | None = None) -> dict[str, float]:
    return {'psnr': psnr, 'ssim': ssim} | ({} if lpips is None else {'lpips': lpips})


PAPER = (
    Table(
        title='Table 1',
        about='What wide receptive field and channel attention bring (one residual group; REDS, validation).',
        dataset='REDS_val',
        headings=('case', 'WR', 'CA'),
        rows=(
            Row('test_table1_case1', ('1', '-', '-'), _scores(28.45, 0.8030)),
            Row('test_table1_case2', ('2', 'x', '-'), _scores(28.60, 0.8061)),
            Row('test_table1_case3', ('3', '-', 'x'), _scores(28.56, 0.8057)),
            Row('test_table1_case4', ('4', 'x', 'x'), _scores(28.71, 0.8089)),
        ),
    ),
    Table(
        title='Table 2',
        about='What the auto-encoder loss, self-ensemble and larger patches bring (REDS, validation).',
        dataset='REDS_val',
        headings=('method',),
        rows=(
            Row('test_table2_row1', ('the blurred JPEG input itself',), _scores(24.91, 0.7963)),
            Row('test_table2_row2', ('WRN, L1',), _scores(28.90, 0.8131)),
            Row('test_table2_row3', ('WRCAN, L1',), _scores(28.93, 0.8138)),
            Row('test_table2_row4', ('WRCAN, L1 + L_AE-JPEG',), _scores(28.99, 0.8154)),
            Row('test_table2_row5', ('WRCAN, L1, x8',), _scores(29.06, 0.8160)),
            Row('test_table2_row6', ('WRCAN, L1 + L_AE-JPEG, x8',), _scores(29.12, 0.8175)),
            Row('test_table2_row7', ('WRCAN, L1 + L_AE-JPEG, x8, patch 320',), _scores(29.20, 0.8192)),
        ),
    ),
    Table(
        title='Table 3',
        about="As the challenge's server judged it (REDS, test). It alone has the sharp frames: tests give no scores.",
        dataset='REDS_test',
        headings=('method',),
        rows=(Row('test_table3', ('WRCAN, patch 320, x8',), _scores(29.60, 0.8398, 0.2302)),),
    ),
)


@dataclass(frozen=True)
class Found:
    """What one test left. `weights` is the SHA-256 of the weight file, None for a test without one."""

    metrics: dict[str, float]
    protocol: str
    images: int
    weights: str | None


@dataclass(frozen=True)
class Line:
    """A row beside its result; without one, `note` says why and what to do."""

    row: Row
    found: Found | None
    note: str = ''


def read_found(path: Path) -> Found:
    """The content of a result_DATASET.json."""
    try:
        result = json.loads(path.read_text(encoding='utf-8'))
        weights = result['weights']
        return Found(
            metrics={name: float(value) for name, value in result['metrics'].items()},
            protocol=str(result['protocol']),
            images=int(result['images']),
            weights=None if weights is None else str(weights['sha256']),
        )
    except (ValueError, KeyError, TypeError, AttributeError) as error:  # not JSON, or JSON of something else
        reason = f'{type(error).__name__}: {error}'
        raise InputError(f'{path}: not a result of basicsr test ({reason}); remove it and test again') from error


def compare(results: Path, tables: Sequence[Table] = PAPER) -> list[tuple[Table, list[Line]]]:
    """The tables' rows beside what is found in the folder `results`; one that is not there holds no result."""
    return [(table, [_line(row, table.dataset, results / row.result) for row in table.rows]) for table in tables]


def _line(row: Row, dataset: str, folder: Path) -> Line:
    path = folder / f'result_{dataset}.json'
    if path.is_file():
        return Line(row, read_found(path))
    others = sorted(other.stem.removeprefix('result_') for other in folder.glob('result_*.json'))
    where = f' on {dataset}, only on {", ".join(others)}' if others else ''
    return Line(row, None, f'no result{where}: basicsr test -opt options/{row.result}.yml')


ABOUT_RESULT = ('protocol', 'images', 'weights')


def _metrics(table: Table) -> list[str]:
    return list(table.rows[0].paper)


def _score_columns(table: Table) -> list[str]:
    return [f'{name.upper()} {column}' for name in _metrics(table) for column in ('paper', 'measured', 'difference')]


def _columns(table: Table) -> list[str]:
    """A table's columns in their order, by their names in CSV."""
    return [*table.headings, *_score_columns(table), *ABOUT_RESULT]


def _cells(line: Line) -> list[str]:
    """A row's cells, in the order of `_columns`; '' where there is nothing to say."""
    cells = list(line.row.cells)
    for name, paper in line.row.paper.items():
        measured = line.found.metrics.get(name) if line.found else None
        cells.append(rounded(name, paper))
        if measured is None:
            cells += ['', '']
        else:
            cells += [rounded(name, measured), rounded(name, measured - paper, sign='+')]
    if line.found is None:
        return [*cells, '', '', '']
    return [*cells, line.found.protocol, str(line.found.images), (line.found.weights or 'none')[:12]]


def as_text(compared: Sequence[tuple[Table, list[Line]]]) -> str:
    """The tables for a terminal."""
    return '\n\n'.join(_text_table(table, lines) for table, lines in compared)


def _text_table(table: Table, lines: list[Line]) -> str:
    """The metrics' names stand in a row of their own, above the paper's scores."""
    columns = _columns(table)
    numbers = {*_score_columns(table), 'images'}
    above = [column.removesuffix(' paper') if column.endswith(' paper') else '' for column in columns]
    below = [column.rpartition(' ')[2] for column in columns]
    rows = [above, below, *map(_cells, lines)]
    widths = [max(map(len, cells)) for cells in zip(*rows, strict=True)]
    text = [f'{table.title}. {table.about}']
    for cells, note in zip(rows, ['', '', *(line.note for line in lines)], strict=True):
        padded = [
            f'{cell:{">" if column in numbers else "<"}{width}}'
            for cell, column, width in zip(cells, columns, widths, strict=True)
        ]
        text.append('  '.join([*padded[: -len(ABOUT_RESULT)], note] if note else padded).rstrip())
    return '\n'.join(text)


STYLE = """
body { max-width: 1340px } .numbers { font-variant-numeric: tabular-nums; white-space: nowrap; margin-bottom: 2.5em }
.numbers { display: block; overflow-x: auto }
.numbers td, .numbers th { padding: 4px 7px } .numbers .first { padding-left: 22px } .numbers .text { text-align: left }
.numbers thead { border-bottom: 2px solid #222 } .numbers thead tr { border: 0 } .numbers .metric { text-align: center }
.numbers .missing { color: #767676; font-size: 13px; white-space: normal; max-width: 360px }
"""


def as_html(compared: Sequence[tuple[Table, list[Line]]]) -> str:
    """The tables as one page."""
    body = ["<p>Difference: measured less paper. Weights: the first digits of the weight file's SHA-256.</p>"]
    for table, lines in compared:
        body.append(f'<h2>{table.title}</h2><p>{html.escape(table.about)}</p>')
        body.append(f'<table class="numbers"><thead>{_html_headings(table)}</thead>')
        body += [_html_row(line) for line in lines]
        body.append('</table>')
    return page('Paper against measured', '\n'.join(body), STYLE)


def _html_headings(table: Table) -> str:
    """Two rows: the metrics over the three columns that each has."""
    metrics = ''.join(f'<th colspan="3" class="metric">{name.upper()}</th>' for name in _metrics(table))
    scores = '<th class="first">paper</th><th>measured</th><th>difference</th>' * len(_metrics(table))
    headings = ''.join(f'<th class="text">{name}</th>' for name in table.headings)
    about = '<th class="text first">protocol</th><th>images</th><th class="text">weights</th>'
    above = f'<th colspan="{len(table.headings)}"></th>{metrics}<th colspan="{len(ABOUT_RESULT)}"></th>'
    return f'<tr>{above}</tr><tr>{headings}{scores}{about}</tr>'


def _html_row(line: Line) -> str:
    cells = _cells(line)
    first_score, after_scores = len(line.row.cells), len(cells) - len(ABOUT_RESULT)
    html_cells = [f'<td class="text">{html.escape(cell)}</td>' for cell in cells[:first_score]]
    html_cells += [
        f'<td class="first">{cell}</td>' if place % 3 == 0 else f'<td>{cell}</td>'
        for place, cell in enumerate(cells[first_score:after_scores])
    ]
    if line.found is None:
        html_cells.append(f'<td class="text first missing" colspan="{len(ABOUT_RESULT)}">{html.escape(line.note)}</td>')
    else:
        protocol, images, weights = map(html.escape, cells[after_scores:])
        html_cells += [f'<td class="text first">{protocol}</td><td>{images}</td><td class="text">{weights}</td>']
    return f'<tr>{"".join(html_cells)}</tr>'


def as_csv(compared: Sequence[tuple[Table, list[Line]]]) -> str:
    """All tables as one, a line a row; a column that a table has not is empty in it."""
    headings = dict.fromkeys(heading for table, _ in compared for heading in table.headings)
    scores = dict.fromkeys(column for table, _ in compared for column in _score_columns(table))
    columns = ['table', 'dataset', *headings, *scores, *ABOUT_RESULT, 'result', 'note']
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, restval='', lineterminator='\n')
    writer.writeheader()
    for table, lines in compared:
        about = {'table': table.title, 'dataset': table.dataset}
        for line in lines:
            cells = dict(zip(_columns(table), _cells(line), strict=True))
            writer.writerow({**about, **cells, 'result': line.row.result, 'note': line.note})
    return text.getvalue()
