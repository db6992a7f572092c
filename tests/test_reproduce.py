"""Follows the README's steps to the paper's tables, on a small tree in REDS's layout and with a small network."""

import subprocess
import sys
from pathlib import Path

import cv2
from test_prepare_reds import SCRIPT, SIZE, make_reds

from wrcan_arch.cli import main

OPTIONS = Path(__file__).parent.parent / 'options'
SMALL = ['network_g:num_feat=4', 'network_g:num_group=1', 'network_g:num_block=1']
SHORT = [
    'datasets:train:gt_size=32', 'datasets:train:batch_size_total=4', 'datasets:train:num_worker_per_gpu=1',
    'train:total_iter=4', 'train:amp=off', 'val:val_freq=2', 'logger:print_freq=1', 'logger:save_checkpoint_freq=4',
]  # fmt: skip
WEIGHTS = 'path:pretrain_network_g=experiments/train_wrcan_320/models/net_g_best.pth'


def test_from_the_download_to_the_tables_and_the_figure(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    make_reds(tmp_path / 'downloads')
    prepare = [sys.executable, SCRIPT, 'downloads', '-o', 'datasets/REDS', '--any-size']
    subprocess.run(prepare, check=True, capture_output=True)

    assert main(['train', '-opt', str(OPTIONS / 'train_wrcan_320.yml'), '--force_yml', *SMALL, *SHORT]) == 0
    tests = {'test_table2_row1': [], 'test_table2_row4': [*SMALL, WEIGHTS], 'test_table2_row7': [*SMALL, WEIGHTS],
             'test_table3': [*SMALL, WEIGHTS, 'val:submission:every=2']}  # fmt: skip
    for name, overrides in tests.items():
        flags = ['--force_yml', *overrides] if overrides else []
        assert main(['test', '-opt', str(OPTIONS / f'{name}.yml'), *flags]) == 0
    assert Path('results/test_table3/submission_REDS_test.zip').exists()

    capsys.readouterr()
    assert main(['tables', '--html', 'tables.html', '--csv', 'tables.csv']) == 0
    text = capsys.readouterr().out
    assert 'chop x8 fp32' in text and 'chop fp32' in text and 'no result: basicsr test -opt options/test_table1' in text
    assert Path('tables.html').read_text().count('chop x8 fp32') == 2 and 'chop fp32' in Path('tables.csv').read_text()

    figure = ['report', '--figure', 'results/test_table2_row4', 'results/test_table2_row7', '-o', 'figure4.html']
    assert main([*figure, '--crops', '000/00000001', '001/00000002:0,0']) == 0
    height, width = cv2.imread('figure4.png').shape[:2]
    assert height > 2 * 2 * SIZE[0] and width > 4 * 2 * SIZE[0]
    assert Path('figure4.html').read_text().count('<img') == 8
