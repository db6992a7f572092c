import csv
import io
import json
import re
from pathlib import Path

import pytest
import torch

from wrcan_arch import InputError
from wrcan_arch.cli import main
from wrcan_arch.inference import Request
from wrcan_arch.look.tables import PAPER, as_csv, as_html, as_text, compare
from wrcan_arch.train import results
from wrcan_arch.train.options import read_options

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
OPTIONS = Path(__file__).parent.parent / 'options'
HASH = '0123456789abcdef' * 4


def write(
    folder, name, metrics, dataset='REDS_val', weights=HASH, images=3000, network=None, protocol=None, scored=None,
    more=None, key=None, **origin,
):  # fmt: skip
    """Write a result as a test with the row's option file does; `network` and `scored` change its options."""
    (folder / name).mkdir(exist_ok=True)
    opt = read_options(OPTIONS / f'{name}.yml').values
    scores = {f'{number // 100:03}_{number % 100:08}': metrics for number in range(images)}
    about = {
        'name': name,
        'protocol': protocol or Request(**opt['val']['inference']).describe(torch.device('cpu')),
        'weights': weights and {'path': 'w.pth', 'sha256': weights, 'key': key, **origin},
        'network_g': opt['network_g'] | (network or {}),
        'metric_options': {name: each | (scored or {}) for name, each in opt['val'].get('metrics', {}).items()}
        | (more or {}),
    }
    results.write_result(folder / name, dataset, scores, about)


def cells(compared):
    """The rows of the CSV, by the name of the result."""
    return {row['result']: row for row in csv.DictReader(io.StringIO(as_csv(compared)))}


def test_papers_numbers_are_the_papers(tmp_path):
    rows = [line.split() for line in TYPED.split('\n') if line]
    assert [row.result for table in PAPER for row in table.rows] == [name for name, *_ in rows]
    found = cells(compare(tmp_path))
    for name, *scores in rows:
        assert found[name]['dataset'] == ('REDS_test' if name == 'test_table3' else 'REDS_val')
        shown = [found[name][f'{metric} paper'] for metric in ('PSNR', 'SSIM', 'LPIPS')]
        assert shown == [*scores, *[''] * (3 - len(scores))]
    assert [(row['WR'], row['CA']) for row in list(found.values())[:4]] == [
        ('-', '-'), ('x', '-'), ('-', 'x'), ('x', 'x')
    ]  # fmt: skip


def test_result_stands_beside_the_paper(tmp_path):
    write(tmp_path, 'test_table2_row3', {'psnr': 28.9549, 'ssim': 0.81342})
    write(tmp_path, 'test_table2_row1', {'psnr': 24.9098, 'ssim': 0.7963}, weights=None)
    found = cells(compare(tmp_path))
    row = found['test_table2_row3']
    assert (row['PSNR paper'], row['PSNR measured'], row['PSNR difference']) == ('28.93', '28.95', '+0.02')
    assert (row['SSIM paper'], row['SSIM measured'], row['SSIM difference']) == ('0.8138', '0.8134', '-0.0004')
    assert (row['protocol'], row['images'], row['weights'], row['note']) == ('chop fp32', '3000', '0123456789ab', '')
    assert (found['test_table2_row1']['PSNR difference'], found['test_table2_row1']['weights']) == ('+0.00', 'none')


def test_arguments_that_options_leave_out_are_wrcans(tmp_path):
    write(tmp_path, 'test_table2_row3', {'psnr': 28.93, 'ssim': 0.81})
    path = tmp_path / 'test_table2_row3' / 'result_REDS_val.json'
    path.write_text(json.dumps(json.loads(path.read_text()) | {'network_g': {'type': 'WRCAN'}}))
    assert cells(compare(tmp_path))['test_table2_row3']['note'] == ''


def test_each_rows_options_are_what_the_paper_measured(tmp_path):
    for table in PAPER:
        for row in table.rows:
            write(tmp_path, row.result, {'psnr': 28.0, 'ssim': 0.8}, dataset=table.dataset)
    assert {name: row['note'] for name, row in cells(compare(tmp_path)).items() if row['note']} == {}


def test_result_of_other_images_another_network_or_protocol_is_not_set_against_the_paper(tmp_path):
    write(tmp_path, 'test_table1_case2', {'psnr': 28.0, 'ssim': 0.8}, network={'block': 'wrca'})
    write(tmp_path, 'test_table2_row1', {'psnr': 28.0, 'ssim': 0.8}, weights=None, images=6)
    write(tmp_path, 'test_table2_row6', {'psnr': 29.0, 'ssim': 0.8}, protocol='exact bf16')
    write(tmp_path, 'test_table2_row3', {'psnr': 29.0, 'ssim': 0.8}, protocol='chop x8 fp32')
    write(tmp_path, 'test_table2_row4', {'psnr': 29.0, 'ssim': 0.8}, protocol='local fp32')
    write(tmp_path, 'test_table2_row7', {'psnr': 4.76, 'ssim': 0.1}, images=6, network={'num_feat': 4, 'num_group': 1})
    write(tmp_path, 'test_table2_row2', {'psnr': 29.0}, scored={'crop_border': 4, 'test_y_channel': True})
    compared = compare(tmp_path)
    found = cells(compared)
    scored_otherwise = (
        f'{name}:crop_border 4, not 0; {name}:test_y_channel True, not False' for name in ('psnr', 'ssim')
    )
    notes = {
        'test_table2_row2': f'not what the paper measured: {"; ".join(scored_otherwise)}',
        'test_table1_case2': 'not what the paper measured: block wrca, not wr',
        'test_table2_row1': 'not what the paper measured: images 6, not 3000',
        'test_table2_row6': 'not what the paper measured: protocol exact bf16, not chop x8 fp32',
        'test_table2_row3': 'not what the paper measured: protocol chop x8 fp32, not chop fp32',
        'test_table2_row4': 'not what the paper measured: protocol local fp32, not chop fp32',
        'test_table2_row7': 'not what the paper measured: images 6, not 3000; num_feat 4, not 64; num_group 1, not 4',
    }
    for name, note in notes.items():
        assert (found[name]['note'], found[name]['PSNR difference'], found[name]['SSIM difference']) == (note, '', '')
        assert note in as_text(compared) and note in as_html(compared)
    assert found['test_table2_row7']['PSNR measured'] == '4.76'


def test_further_metrics_and_the_origin_of_the_weights_are_no_difference(tmp_path):
    more = {'psnr_y': {'type': 'calculate_psnr', 'crop_border': 4, 'test_y_channel': True}}
    write(
        tmp_path,
        'test_table2_row3',
        {'psnr': 28.93, 'ssim': 0.81, 'psnr_y': 30.0},
        more=more,
        key='params_ema',
        training='mine',
        iteration=0,
    )
    row = cells(compare(tmp_path))['test_table2_row3']
    assert (row['note'], row['PSNR difference']) == ('', '+0.00')
    assert row['weights'] == '0123456789ab params_ema mine iteration 0'


def test_scores_that_no_test_measures_have_no_columns(tmp_path):
    write(tmp_path, 'test_table3', {}, dataset='REDS_test')
    compared = compare(tmp_path)
    row = cells(compared)['test_table3']
    assert (row['LPIPS paper'], row['protocol'], row['images']) == ('0.2302', 'chop x8 fp32', '3000')
    html = as_html(compared)
    assert 'LPIPS measured' not in row and html.count('>measured<') == 4
    assert '<th class="text first">protocol</th><th class="">images</th><th class="text ">weights</th>' in html
    assert 'measured' not in as_text(compared).partition('Table 3')[2]


def test_named_folder_has_to_be_there(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(['tables']) == 0
    assert main(['tables', '--results', 'nowhere']) == 2
    assert capsys.readouterr().err == (
        'basicsr tables: nowhere: there is no such folder; basicsr test writes results/NAME\n'
    )


def test_pages_are_written_where_they_are_asked_for(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path('link').symlink_to('tables.csv')
    assert main(['tables', '--html', 'new/tables.html', '--csv', 'link']) == 0
    assert Path('new/tables.html').read_text().startswith('<!doctype html>')
    assert Path('link').is_symlink() and Path('tables.csv').read_text()
    assert main(['tables', '--csv', 'new']) == 2
    assert capsys.readouterr().err == (
        'basicsr tables: new: cannot be written (Is a directory); choose another folder\n'
    )
    Path('kept.csv').touch()
    assert main(['tables', '--html', 'kept.csv']) == 2 and not Path('kept.csv').read_text()
    assert capsys.readouterr() == ('', 'basicsr tables: kept.csv: a page ends in .html; name it, as in kept.html\n')


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
    write(tmp_path, 'test_table2_row3', {'ssim': 0.8138})
    row = cells(compare(tmp_path))['test_table2_row3']
    assert (row['PSNR measured'], row['PSNR difference'], row['SSIM difference']) == ('', '', '+0.0000')


def test_text_is_in_columns_and_html_escaped(tmp_path):
    write(tmp_path, 'test_table1_case4', {'psnr': 28.66, 'ssim': 0.8081}, weights='<b>')
    write(tmp_path, 'test_table1_case1', {'psnr': 28.0, 'ssim': 0.8}, dataset='<i>')
    compared = compare(tmp_path)
    lines = as_text(compared).splitlines()
    headings, case_4 = (line for line in lines if line.startswith(('case', '4 ')))
    metrics = lines[lines.index(headings) - 1]
    assert [each.span() for each in re.finditer('PSNR|SSIM', metrics)] == [
        (each.end() - 4, each.end()) for each in re.finditer('paper', headings)
    ], 'each above the right end of its own column'
    for heading, cell in (('measured', '28.66'), ('difference', '-0.05')):
        assert headings.index(heading) + len(heading) == case_4.index(cell) + len(cell)
    html = as_html(compared)
    assert html.count('<table') == 3 and html.count('no result: basicsr test') == 10
    assert '&lt;b&gt;' in html and '<b>' not in html and 'only on &lt;i&gt;' in html and 'http' not in html
    for table in html.split('<table')[1:]:
        rows = [re.findall('<t[hd][^>]*>', row) for row in table.split('<tr')[1:]]
        widths = {sum(int((re.search(r'colspan="(\d+)"', cell) or [0, 1])[1]) for cell in row) for row in rows}
        assert len(widths) == 1, 'cells and notes fill each row'


@pytest.mark.parametrize('damage', ['{"metrics": ', '[]', '{"images": 3}', '{"metrics": 3}', '"text"'])
def test_damaged_result_is_named(tmp_path, damage):
    write(tmp_path, 'test_table1_case1', {'psnr': 28.0, 'ssim': 0.8})
    path = tmp_path / 'test_table1_case1' / 'result_REDS_val.json'
    if damage == '{"metrics": 3}':
        damage = json.dumps(json.loads(path.read_text()) | {'metrics': 3})
    path.write_text(damage)
    with pytest.raises(InputError, match=r'result_REDS_val\.json: not a result of basicsr test .* test again'):
        compare(tmp_path)
