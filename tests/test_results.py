import csv
import itertools
import json
import math
import os
import zipfile
from functools import partial
from hashlib import sha256
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

import basicsr.train
import pytest

from wrcan_arch import WRCAN
from wrcan_arch.checkpoint import write_weights
from wrcan_arch.cli import main
from wrcan_arch.errors import InputError
from wrcan_arch.train import replacements, several_processes
from wrcan_arch.train.results import key_of, mean_scores, write_result, write_scores, write_submission


def test_scores_of_images_whose_names_are_not_utf8_are_written(tmp_path):
    key = key_of({'lq_path': os.fsdecode(b'/a/caf\xe9.png')}, {})
    write_scores(tmp_path, 'mine', {key: {'psnr': 30.0}})
    assert (tmp_path / 'scores_mine.csv').read_bytes() == b'key,psnr\ncaf\\udce9,30.0\n'


@pytest.mark.parametrize(
    ('path', 'root', 'key'),
    [
        ('000/00000012', 'REDS/blur.lmdb', '000_00000012'),  # a key in a store
        ('/data/blur/000/00000012.png', '/data/blur', '000_00000012'),
        ('data/blur/a.jpg', 'data/blur', 'a'),
        ('/elsewhere/a.jpg', '/data/blur', 'a'),
    ],
)
def test_images_of_the_toolboxs_data_sets_are_called_as_ours_are(path, root, key):
    assert key_of({'lq_path': path}, {'dataroot_lq': root}) == key
    assert key_of({'lq_path': path, 'key': 'own'}, {'dataroot_lq': root}) == 'own'
    assert key_of({'lq_path': path, 'key': 7}, {'dataroot_lq': root}) == '7'


@pytest.mark.parametrize('order', [(1e16, 1.0, -1e16), (1.0, 1e16, -1e16), (-1e16, 1e16, 1.0)])
def test_means_do_not_depend_on_the_order(order):
    assert mean_scores({str(value): {'psnr': value} for value in order}) == {'psnr': 1 / 3}
    assert mean_scores({}) == {}


def test_sequences_have_their_own_means(tmp_path):
    scores = {'001_00000000': {'psnr': 1 / 3}, '000_00000001': {'psnr': 30.0}, '000_00000000': {'psnr': 20.0}}
    write_scores(tmp_path, 'set', scores)
    rows = list(csv.reader((tmp_path / 'sequences_set.csv').open()))
    assert rows == [['sequence', 'images', 'psnr'], ['000', '2', '25.0'], ['001', '1', repr(1 / 3)]]
    rows = list(csv.reader((tmp_path / 'scores_set.csv').open()))
    assert [key for key, _ in rows] == ['key', *sorted(scores)] and float(rows[3][1]) == 1 / 3


def test_a_result_is_json_where_a_mean_is_infinite(tmp_path):
    write_result(tmp_path, 'set', {'a_0': {'psnr': math.inf, 'ssim': 1.0}}, {})
    result = json.loads((tmp_path / 'result_set.json').read_text(), parse_constant=pytest.fail)
    assert result['metrics'] == {'psnr': 'inf', 'ssim': 1.0} and float('inf') == math.inf  # as `tables` parses it


def test_scores_and_result_are_replaced_whole_or_not_at_all(tmp_path):
    def write(psnr):
        write_scores(tmp_path, 'set', {'a_0': {'psnr': psnr}})
        write_result(tmp_path, 'set', {'a_0': {'psnr': psnr}}, {})

    write(20.0)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    for number, name in enumerate(('scores_set.csv', 'sequences_set.csv', 'result_set.json')):
        full = [None] * number + [OSError(28, 'No space left on device')]
        with (
            mock.patch('os.fsync', side_effect=full),
            pytest.raises(InputError, match=f'{name}: cannot be written .*; make room'),
        ):
            write(30.0)
        assert (tmp_path / name).read_bytes() == before[name] and len(list(tmp_path.iterdir())) == 3


def test_set_without_sharp_frames_becomes_the_challenges_submission(workplace, capsys):
    for number in range(6):  # named like REDS's frames
        Path('frames').mkdir(exist_ok=True)
        source = Path(f'data_blur/photo{number}_000.jpg')
        Path('frames', f'{number // 3:03d}_{number % 3 + 8:08d}.jpg').write_bytes(source.read_bytes())
    text = Path('test.yml').read_text().split('datasets:')[0] + (
        'datasets:\n  test: {name: frames, type: JPEGDeblurDataset, dataroot_lq: frames, io_backend: {type: disk}}\n'
        'network_g: {type: WRCAN, num_feat: 4, num_group: 1, num_block: 1}\n'
        'val:\n  save_img: true\n  inference: {precision: fp32}\n'
        '  submission: {every: 10, extra_data: true, description: a small test}\n'
    )
    network = WRCAN(num_feat=4, num_group=1, num_block=1)
    write_weights(Path('net.pth'), {'params': network.state_dict()}, {})
    Path('submit.yml').write_text(text + 'path: {pretrain_network_g: net.pth}\n')
    clock = SimpleNamespace(perf_counter=partial(next, itertools.count()))  # restoring one takes a second
    with (
        mock.patch('torch.cuda.is_available', return_value=True),  # the option num_gpu is 0
        mock.patch('wrcan_arch.train.scoring.time', clock),
    ):
        assert main(['test', '-opt', 'submit.yml']) == 0
    with zipfile.ZipFile('results/small_test/submission_frames.zip') as archive:
        assert sorted(archive.namelist()) == ['000_00000009.png', '001_00000009.png', 'readme.txt']
        saved = Path('results/small_test/visualization/frames/000_00000009_small_test.png').read_bytes()
        assert archive.read('000_00000009.png') == saved
        lines = archive.read('readme.txt').decode().splitlines()
    assert lines == [
        'runtime per image [s] : 1.00',
        'CPU[1] / GPU[0] : 1',
        'Extra Data [1] / No Extra Data [0] : 1',
        'Other description : a small test',
    ]
    result = json.loads(Path('results/small_test/result_frames.json').read_text())
    assert (result['images'], result['metrics']) == (6, {})
    assert result['weights']['sha256'] == sha256(Path('net.pth').read_bytes()).hexdigest()
    capsys.readouterr()
    assert main(['test', '-opt', 'submit.yml', '--force_yml', 'val:submission:every=12', 'name=none']) == 2
    said = 'data set frames: val:submission:every=12 takes the frames 11, 23, ..., none is there; make it smaller\n'
    assert capsys.readouterr().err.endswith(f'datasets:test: {said}') and not Path('results/none').exists()
    Path('frames/000_00000008.jpg').rename('frames/coffee12.jpg')
    assert main(['test', '-opt', 'submit.yml']) == 2
    assert "'coffee12' does not end in a frame's number, as val:submission needs" in capsys.readouterr().err


def test_submission_says_that_a_gpu_restored_it(tmp_path):
    options = {'every': 10, 'extra_data': False, 'description': ''}
    write_submission(tmp_path / 'x.zip', {}, 1.0, False, options)
    with zipfile.ZipFile(tmp_path / 'x.zip') as archive:
        assert 'CPU[1] / GPU[0] : 0\n' in archive.read('readme.txt').decode()


def test_input_itself_is_a_method(workplace):
    text = Path('test.yml').read_text().replace('{ensemble: true, precision: fp32}', '{mode: input}')
    Path('test.yml').write_text(text.replace('experiments/small/models/net_g_best.pth', '~'))
    assert main(['test', '-opt', 'test.yml']) == 0
    import cv2
    from skimage.metrics import peak_signal_noise_ratio

    expected = [
        peak_signal_noise_ratio(cv2.imread(f'data_sharp/photo{n}_000.png'), cv2.imread(f'data_blur/photo{n}_000.jpg'))
        for n in range(6)
    ]
    result = json.loads(Path('results/small_test/result_small_set.json').read_text())
    assert result['metrics']['psnr'] == pytest.approx(sum(expected) / 6, rel=1e-9)
    assert result['protocol'].startswith('input')


@pytest.mark.parametrize(('parts', 'share'), [(1, 16), (2, 8), (4, 4), (16, 1)])
def test_batch_is_divided_over_processes_or_gpus(parts, share):
    assert several_processes.share_of_batch({'batch_size_total': 16}, parts) == share
    assert several_processes.share_of_batch({'batch_size_per_gpu': 3}, parts) == 3


@pytest.mark.parametrize(('parts', 'hint'), [(3, '15 or 18 can'), (5, '15 or 20 can'), (32, '32 can')])
def test_batch_that_does_not_divide_says_which_can(parts, hint):
    with pytest.raises(InputError, match=f'16 cannot be divided over {parts} processes or GPUs; {hint}'):
        several_processes.share_of_batch({'batch_size_total': 16}, parts)


@pytest.mark.parametrize(
    ('dist', 'world_size', 'num_gpu', 'loaded'),
    [(True, 1, 4, 16), (True, 4, 4, 4), (False, 1, 4, 16), (False, 1, 0, 16)],
)
def test_loader_gets_the_share_whatever_gpus_the_machine_has(dist, world_size, num_gpu, loaded, monkeypatch):
    """One process of torchrun loads the whole batch even with four GPUs; without torchrun the GPUs share it."""
    train = {'batch_size_total': 16, 'num_worker_per_gpu': 0}
    opt = {'datasets': {'train': train}, 'dist': dist, 'world_size': world_size, 'num_gpu': num_gpu, 'manual_seed': 0}
    opt |= {'model_type': 'SRModel'}  # WRCANModel uses one GPU per process
    seen = []

    def load(opt, logger):
        seen.append(basicsr.train.EnlargedSampler(range(100), world_size, 0).batch_size)
        loader = SimpleNamespace(dataset=range(100))
        return loader, basicsr.train.EnlargedSampler(range(100), world_size, 0), [], 0, 1

    monkeypatch.setattr(replacements, '_toolbox_create_loaders', load)
    replacements.create_train_val_dataloader(replacements.Run(), {**opt, 'train': {'total_iter': 1}}, None)
    assert seen == [loaded]
    assert train['batch_size_per_gpu'] * (num_gpu if not dist and num_gpu else 1) == loaded
