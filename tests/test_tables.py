import csv
import io
import json

import pytest

from wrcan_arch import InputError
from wrcan_arch.look.tables import PAPER, as_csv, as_html, as_text, compare
from wrcan_arch.train import results

# The paper's tables, typed a second time.
TYPED = """
test_table1_case1 28.45 0.8030
test_table1_case2 28.60 0.8061
test_table1_case3 28.56 0.8057
test_table1_case4 28.71 0.8089
test_table2_row1 24.91 0.7963
test_table2_row2 28.90 0.8131
test_table2_row3 28.93 0.8138
test_table2_row4 28.99 0.8154
test_table2_row5 29.06 0.8160
test_table2_row6 29.12 0.8175
test_table2_row7 29.20 0.8192
test_table3 29.60 0.8398 0.2302
"""
HASH = '0123456789abcdef' * 4


def write(folder, name, metrics, dataset='REDS_val', weights=HASH):
    """A result as a test writes it."""
    (folder / name).mkdir(exist_ok=True)
    scores = {'000_00000000': metrics, '000_00000001': metrics}
    about = {'name': name, 'protocol': 'chop x8 fp32', 'weights': weights and {'path': 'w.pth', 'sha256': weights}}
    results.write_result(folder / name, dataset, scores, about)


def cells(compared):
    """The rows of the CSV, by result."""
    return {row['result']: row for row in csv.DictReader(io.StringIO(as_csv(compared)))}


def test_papers_numbers_are_the_papers(tmp_path):
    rows = [line.split() for line in TYPED.split('\n') if line]
    assert [row.result for table in PAPER for row in table.rows] == [name for name, *_ in rows]
    found = cells(compare(tmp_path))
    for name, *scores in rows:
        shown = [found[name][f'{metric} paper'] for metric in ('PSNR', 'SSIM', 'LPIPS')]
        assert shown == [*scores, *[''] * (3 - len(scores))]
    assert [(row['WR'], row['CA']) for row in list(found.values())[:4]] == [
        ('-', '-'), ('x', '-'), ('-', 'x'), ('x', 'x')
    ]  # fmt: skip


def test_result_stands_beside_the_paper(tmp_path):
    write(tmp_path, 'test_table2_row3', {'psnr': 28.9549, 'ssim': 0.81342})
    write(tmp_path, 'test_table2_row1', {'psnr': 24.9098, 'ssim': 0.7963}, weights=None)
    write(tmp_path, 'test_table3', {'psnr': 29.6, 'ssim': 0.84, 'lpips': 0.23}, dataset='REDS_test')
    found = cells(compare(tmp_path))
    row = found['test_table2_row3']
    assert (row['PSNR paper'], row['PSNR measured'], row['PSNR difference']) == ('28.93', '28.95', '+0.02')
    assert (row['SSIM paper'], row['SSIM measured'], row['SSIM difference']) == ('0.8138', '0.8134', '-0.0004')
    assert (row['protocol'], row['images'], row['weights'], row['note']) == ('chop x8 fp32', '2', '0123456789ab', '')
    assert (found['test_table2_row1']['PSNR difference'], found['test_table2_row1']['weights']) == ('+0.00', 'none')
    assert found['test_table3']['LPIPS difference'] == '-0.0002'


def test_row_without_a_result_says_what_to_do(tmp_path):
    write(tmp_path, 'test_table1_case2', {'psnr': 28.0, 'ssim': 0.8}, dataset='demo_test')
    write(tmp_path, 'test_table1_case3', {'psnr': 28.0, 'ssim': 0.8}, dataset='demo_test')
    write(tmp_path, 'test_table1_case3', {'psnr': 28.5, 'ssim': 0.8})
    found = cells(compare(tmp_path))
    assert found['test_table1_case1']['note'] == 'no result: basicsr test -opt options/test_table1_case1.yml'
    assert found['test_table1_case2']['note'].startswith('no result on REDS_val, only on demo_test: basicsr test')
    assert found['test_table1_case2']['PSNR measured'] == ''
    assert found['test_table1_case3']['PSNR measured'] == '28.50'


def test_result_without_a_score_leaves_its_cells_empty(tmp_path):
    write(tmp_path, 'test_table3', {}, dataset='REDS_test')
    row = cells(compare(tmp_path))['test_table3']
    assert (row['PSNR measured'], row['PSNR difference'], row['protocol']) == ('', '', 'chop x8 fp32')


def test_text_is_in_columns_and_html_escaped(tmp_path):
    write(tmp_path, 'test_table1_case4', {'psnr': 28.66, 'ssim': 0.8081}, weights='<b>')
    compared = compare(tmp_path)
    headings, case_4 = (line for line in as_text(compared).splitlines() if line.startswith(('case', '4 ')))
    for heading, cell in (('measured', '28.66'), ('difference', '-0.05')):
        assert headings.index(heading) + len(heading) == case_4.index(cell) + len(cell)
    html = as_html(compared)
    assert html.count('<table') == 3 and html.count('no result: basicsr test') == 11
    assert '&lt;b&gt;' in html and '<b>' not in html and 'http' not in html


@pytest.mark.parametrize('damage', ['{"metrics": ', '[]', '{"images": 3}', '{"metrics": 3}', '"text"'])
def test_damaged_result_is_named(tmp_path, damage):
    write(tmp_path, 'test_table1_case1', {'psnr': 28.0, 'ssim': 0.8})
    path = tmp_path / 'test_table1_case1' / 'result_REDS_val.json'
    if damage == '{"metrics": 3}':
        damage = json.dumps(json.loads(path.read_text()) | {'metrics': 3})
    path.write_text(damage)
    with pytest.raises(InputError, match=r'result_REDS_val\.json: not a result of basicsr test .* test again'):
        compare(tmp_path)
