"""Tests the commands train, test, restore and report together, with resumes, on small LMDB stores."""

import csv
import hashlib
import json
import os
import re
import signal
from pathlib import Path
from unittest import mock

import cv2
import numpy as np
import pytest
import torch
import yaml
from basicsr.metrics import calculate_psnr, calculate_ssim
from forked import srun
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from wrcan_arch import InputError
from wrcan_arch.checkpoint import read_file
from wrcan_arch.cli import main
from wrcan_arch.data.lmdb_store import StoreBackend
from wrcan_arch.look.report import read_curves
from wrcan_arch.train import run_folder

MODELS = Path('experiments/small/models')


def train(*overrides, resume=False, option_file='train.yml'):
    flags = ['--auto_resume'] if resume else []
    return main(['train', '-opt', option_file, *flags, *(['--force_yml', *overrides] if overrides else [])])


def log_text(kind='train', folder='experiments/small'):
    return '\n'.join(path.read_text() for path in sorted(Path(folder).glob(f'{kind}_*.log')))


def test_train_test_restore_report(workplace):
    assert train() == 0
    assert sorted(path.name for path in MODELS.iterdir()) == [
        'net_g_12.pth', 'net_g_6.pth', 'net_g_best.pth', 'net_g_latest.pth'
    ]  # fmt: skip
    assert sorted(path.name for path in Path('experiments/small/training_states').iterdir()) == ['12.state', '6.state']
    assert 'Training steps compute in fp32 on cpu.' in log_text()
    assert 'Validated small_val at iteration 8: exact fp32\n' in log_text()
    curves = read_curves(Path('experiments/small'))
    assert [iteration for iteration, _ in curves.losses['l_pix']] == list(range(1, 13))
    assert [iteration for iteration, _ in curves.losses['l_ae']] == list(range(1, 13))
    assert [iteration for iteration, _ in curves.metrics['PSNR']] == [4, 8, 12]
    assert curves.losses['l_pix'][-1][1] < curves.losses['l_pix'][0][1], 'it learns'
    best = read_file(MODELS / 'net_g_best.pth')['metadata']
    numbered = read_file(MODELS / 'net_g_12.pth')['metadata']
    assert numbered['metrics']['psnr'] == pytest.approx(curves.metrics['PSNR'][-1][1], abs=1e-4)
    kept_options = yaml.safe_load(Path('experiments/small/train.yml').read_text())
    assert numbered['options_sha256'] == best['options_sha256'] == kept_options['options_sha256']
    kept = best['metrics']['psnr']
    assert kept == pytest.approx(max(value for _, value in curves.metrics['PSNR']), abs=1e-4)
    assert (best['iter'], pytest.approx(kept, abs=1e-4)) in curves.metrics['PSNR']

    assert main(['test', '-opt', 'test.yml']) == 0
    left = sorted(path.name for path in Path('results/small_test').iterdir() if path.suffix != '.log')
    assert left == [
        'options.yml', 'result_small_set.json', 'scores_small_set.csv', 'sequences_small_set.csv', 'visualization'
    ]  # fmt: skip
    images = sorted(Path('results/small_test/visualization/small_set').iterdir())
    assert [path.name for path in images] == [f'photo{number}_000_small_test.png' for number in range(6)]
    logged = {
        name: float(value) for name, value in re.findall(r'# (\w+): ([\d.]+)', log_text('test', 'results/small_test'))
    }

    assert 'Tested small_set: exact x8 fp32\n' in log_text('test', 'results/small_test')

    command = ['restore', 'data_blur', '-o', 'restored', '-w', str(MODELS / 'net_g_best.pth')]
    assert main([*command, '--format', 'png', '--ensemble', '--precision', 'fp32']) == 0
    psnr, ssim = [], []
    for number, tested in enumerate(images):
        restored = cv2.imread(f'restored/photo{number}_000.png')
        np.testing.assert_array_equal(restored, cv2.imread(str(tested)))  # both compute the same function
        sharp = cv2.imread(f'data_sharp/photo{number}_000.png')
        psnr.append(peak_signal_noise_ratio(sharp, restored))
        ssim.append(
            structural_similarity(
                sharp, restored, channel_axis=2, gaussian_weights=True, sigma=1.5, use_sample_covariance=False
            )
        )
    assert logged['psnr'] == pytest.approx(np.mean(psnr), abs=1e-4)
    assert logged['ssim'] == pytest.approx(np.mean(ssim), abs=1e-4)
    result = json.loads(Path('results/small_test/result_small_set.json').read_text())
    assert result['metrics'] == pytest.approx({'psnr': np.mean(psnr), 'ssim': np.mean(ssim)}, rel=1e-9)
    assert (result['images'], result['protocol']) == (6, 'exact x8 fp32')
    sha256 = hashlib.sha256((MODELS / 'net_g_best.pth').read_bytes()).hexdigest()
    best = read_file(MODELS / 'net_g_best.pth')['metadata']['iter']
    origin = {'training': 'small', 'iteration': best}
    assert result['weights'] == {'path': str(MODELS / 'net_g_best.pth'), 'sha256': sha256, 'key': None, **origin}
    data = yaml.safe_load(Path('results/small_test/options.yml').read_text())['datasets']['test']
    assert result['stores'] == {
        role: hashlib.sha256(Path(data[role], 'manifest.json').read_bytes()).hexdigest()
        for role in ('dataroot_lq', 'dataroot_gt')
    }
    rows = list(csv.DictReader(Path('results/small_test/scores_small_set.csv').read_text().splitlines()))
    assert [row['key'] for row in rows] == [f'photo{number}_000' for number in range(6)]
    assert [float(row['psnr']) for row in rows] == pytest.approx(psnr, rel=1e-9)
    assert main(['test', '-opt', 'results/small_test/options.yml']) == 0, 'the kept options run again'

    assert main(['report', '-opt', 'test.yml', '--experiment', 'experiments/small', '-o', 'page/report.html']) == 0
    page = Path('page/report.html').read_text()
    assert f'{np.mean(psnr):.2f}' in page and page.count('<svg') == 3 and page.count('<h3>') == 6
    assert f'; weights: {MODELS}/net_g_best.pth, iteration {best} of small.' in page
    assert '<p>Dotted line: the iteration whose weights were tested.</p>' in page
    with mock.patch('wrcan_arch.look.report.MAX_PICTURES', 2):
        assert main(['report', '-opt', 'test.yml', '-o', 'page/short.html']) == 0
    short = Path('page/short.html').read_text()
    assert '2 of 6 images' in short and re.findall('<h3>(.*?)</h3>', short) == ['photo0_000', 'photo5_000']
    assert f'{np.mean(psnr):.2f}' in short, 'the mean is of all'


def test_metrics_of_the_toolbox_are_scikit_images():
    rng = np.random.default_rng(0)
    first, second = rng.integers(0, 256, (2, 40, 50, 3), dtype=np.uint8)
    assert calculate_psnr(first, second, 0) == pytest.approx(peak_signal_noise_ratio(first, second), abs=1e-9)
    reference = structural_similarity(
        first, second, channel_axis=2, gaussian_weights=True, sigma=1.5, use_sample_covariance=False
    )
    assert calculate_ssim(first, second, 0) == pytest.approx(reference, abs=1e-9)


def test_resume_at_a_validation_keeps_the_best_network(workplace):
    """The best network is that of the iteration that the run resumes from; a huge step makes the later ones worse."""
    worse = ['logger:save_checkpoint_freq=4', 'train:scheduler:milestones=[4]', 'train:scheduler:gamma=1000']
    assert train(*worse, 'train:total_iter=8') == 0
    best = read_file(MODELS / 'net_g_best.pth')['metadata']
    assert best['iter'] == 4
    Path('experiments').rename('uninterrupted')
    assert train(*worse, 'train:total_iter=4') == 0
    assert train(*worse, 'train:total_iter=8', resume=True) == 0
    again = read_file(MODELS / 'net_g_best.pth')['metadata']
    assert (again['iter'], again['metrics']) == (best['iter'], best['metrics'])


def test_resume_with_another_batch_size_makes_all_iterations_with_the_next_patches(workplace):
    assert train('logger:save_checkpoint_freq=4', 'train:total_iter=8', 'datasets:train:batch_size_per_gpu=3') == 0
    assert train('datasets:train:batch_size_per_gpu=1', resume=True) == 0
    assert read_curves(Path('experiments/small')).losses['l_pix'][-1][0] == 12
    assert (MODELS / 'net_g_12.pth').exists()
    assert read_file('experiments/small/training_states/12.state')['draws'] == 8 * 3 + 4 * 1


def test_what_may_be_a_mistake_is_in_the_log(workplace):
    assert train('train:total_iter=1', 'datasets:train:blurred_quality=95') == 0
    assert "the blurred 'photo0_000' has JPEG quality 25, but blurred_quality says 95" in log_text()


def test_swapped_frames_of_scored_data_sets_are_told_once_for_each(workplace):
    def swapped(phase):
        roles = {'lq': 'sharp', 'gt': 'blur'}
        return [f'datasets:{phase}:dataroot_{role}=data_{kind}.lmdb' for role, kind in roles.items()]

    said = 'WARNING: data set {}: the sharp frames are JPEG, the blurred ones are not; are the two swapped?'
    assert train('train:total_iter=2', 'val:val_freq=1', *swapped('val')) == 0
    assert log_text().count('are the two swapped') == log_text().count(said.format('small_val')) == 1
    assert main(['test', '-opt', 'test.yml', '--force_yml', 'val:inference:ensemble=false', *swapped('test')]) == 0
    assert log_text('test', 'results/small_test').count(said.format('small_set')) == 1


@pytest.mark.parametrize('batch', [4, 8])
def test_run_makes_the_iterations_it_was_asked_for(workplace, batch):
    """With six images the toolbox alone would stop early, or never start."""
    assert train(f'datasets:train:batch_size_per_gpu={batch}', 'train:total_iter=7', 'val:val_freq=100') == 0
    curves = read_curves(Path('experiments/small'))
    assert [iteration for iteration, _ in curves.losses['l_pix']] == list(range(1, 8))
    assert [iteration for iteration, _ in curves.metrics['PSNR']] == [7], 'validated once, at the end, under its number'


def test_weights_that_are_trained_on_are_scored_first_and_kept_where_training_spoils_them(workplace):
    assert train() == 0
    start = read_curves(Path('experiments/small')).metrics['PSNR'][-1]
    weights = read_file(MODELS / 'net_g_latest.pth')['params']
    spoils = ('name=spoilt', f'path:pretrain_network_g={MODELS}/net_g_latest.pth', 'train:optim_g:lr=0.5')
    assert train(*spoils) == 0
    scores = read_curves(Path('experiments/spoilt')).metrics['PSNR']
    assert [iteration for iteration, _ in scores] == [0, 4, 8, 12]
    assert scores[0][1] == start[1] > max(score for _, score in scores[1:])
    best = read_file(Path('experiments/spoilt/models/net_g_best.pth'))
    assert best['metadata']['iter'] == 0 and best['metadata']['metrics']['psnr'] == pytest.approx(start[1], abs=1e-4)
    for name, tensor in best['params'].items():
        assert torch.equal(tensor, weights[name])

    assert train(*spoils, 'train:total_iter=16', resume=True) == 0
    assert log_text(folder='experiments/spoilt').count('at iteration 0: ') == 1
    assert read_file(Path('experiments/spoilt/models/net_g_best.pth'))['metadata']['iter'] == 0


def test_a_test_that_has_to_end_says_how_to_go_on(workplace, capsys):
    assert train('train:total_iter=1') == 0
    full = mock.patch('wrcan_arch.train.scoring.write_png', side_effect=InputError('a.png: the disk is full'))
    with full:
        assert main(['test', '-opt', 'test.yml', '--force_yml', 'val:save_img=true']) == 1
    said = capsys.readouterr().err.strip().splitlines()[-1]
    assert said == 'basicsr test: a.png: the disk is full; fix that and test again'


def test_a_test_that_sigterm_stops_leaves_no_temporary_file(workplace, monkeypatch):
    Path('temporary').mkdir()
    monkeypatch.setattr('tempfile.tempdir', 'temporary')

    def stop(*_):
        assert list(Path('temporary').iterdir())
        os.kill(os.getpid(), signal.SIGTERM)

    before = signal.getsignal(signal.SIGTERM)
    overrides = ('--force_yml', 'path:pretrain_network_g=~', 'val:inference:mode=input')
    scored = mock.patch('wrcan_arch.train.scoring.score_images', side_effect=stop)
    with scored, pytest.raises(SystemExit, match='^143$'):
        main(['test', '-opt', 'test.yml', *overrides])
    assert not list(Path('temporary').iterdir())
    assert signal.getsignal(signal.SIGTERM) is before


def test_images_that_would_be_called_the_same_are_not_scored_as_one(workplace, capsys):
    assert train('train:total_iter=1') == 0
    with mock.patch('wrcan_arch.train.results.key_of', return_value='same'):
        assert main(['test', '-opt', 'test.yml']) == 1
    assert 'two of its images would be called same; rename one of them' in capsys.readouterr().err


@pytest.fixture
def toolboxs_own(workplace):
    """Write own.yml, an option file in the toolbox's style with its own model, network and data set."""
    text = Path('train.yml').read_text().replace('JPEGDeblurDataset', 'PairedImageDataset')
    text = text.replace('WRCANModel', 'SRModel\nscale: 1').replace('val_freq: 4', 'val_freq: !!float 4e0')
    text = re.sub(
        r'\nnetwork_g: .*', '\nnetwork_g: {type: EDSR, num_in_ch: 3, num_out_ch: 3, num_feat: 4, upscale: 1}', text
    )
    text = re.sub(r'    jpeg_quality.*\n', '    use_hflip: true\n    use_rot: true\n    use_shuffle: true\n', text)
    text = re.sub(r'  (autoencoder_opt|amp|inference).*\n', '', text)
    Path('own.yml').write_text(text.replace('save_checkpoint_freq: 6', 'save_checkpoint_freq: !!float 6e0'))


def test_resume_may_compute_the_step_in_another_way(workplace, capsys):
    assert train('train:total_iter=6', 'train:optim_g={type: Adam, lr: 1e-3, fused: false}') == 0
    assert train(resume=True) == 0
    assert train('train:optim_g={type: Muon, lr: 1e-2}', 'train:total_iter=13', resume=True) == 2
    said = capsys.readouterr().err.splitlines()[-1]
    assert 'state is of another optimizer or network (' in said and 'leave train:optim_g:type and network_g as' in said


def test_one_process_of_our_model_takes_one_gpu(workplace, capsys, monkeypatch):
    monkeypatch.setattr('torch.cuda.device_count', lambda: 2)
    monkeypatch.setattr('torch.cuda.is_available', lambda: True)
    assert train('num_gpu=2') == 2
    said = capsys.readouterr().err.splitlines()[-1]
    assert said.endswith(
        'num_gpu: one process takes one GPU; torchrun --nproc_per_node=2 -m wrcan_arch train ... takes 2'
    )
    assert not MODELS.exists()


def test_a_batch_that_cannot_be_divided_is_said_before_an_older_run_is_put_aside(toolboxs_own, capsys):
    assert train('train:total_iter=1', option_file='own.yml') == 0
    text = Path('own.yml').read_text()
    Path('own.yml').write_text(text.replace('batch_size_per_gpu: 4', 'batch_size_total: 3'))
    with mock.patch.multiple('torch.cuda', device_count=lambda: 2, is_available=lambda: True):
        assert train('num_gpu=auto', option_file='own.yml') == 2
    assert '3 cannot be divided over 2 processes or GPUs' in capsys.readouterr().err
    assert not list(Path('experiments').glob('*archived*'))


def test_run_does_not_put_aside_the_weights_it_begins_with(workplace, capsys):
    assert train('train:total_iter=6') == 0
    own = f'path:pretrain_network_g={MODELS}/net_g_latest.pth'
    assert train(own) == 2
    assert 'give the run another name' in capsys.readouterr().err.splitlines()[-1]
    assert (MODELS / 'net_g_latest.pth').is_file() and not list(Path('experiments').glob('*archived*'))
    assert train(own, 'name=other', 'train:total_iter=6') == 0
    assert train(own, 'train:total_iter=7', resume=True) == 0 and not list(Path('experiments').glob('*archived*'))


@pytest.fixture
def paired(workplace):
    """Write paired.yml, with the toolbox's own data set under our model."""
    text = Path('train.yml').read_text().replace('JPEGDeblurDataset', 'PairedImageDataset')
    text = re.sub(r'    jpeg_quality.*\n', '    use_hflip: true\n    use_rot: true\n', text)
    text = re.sub(r'  autoencoder_opt.*\n', '', text)
    Path('paired.yml').write_text(text)


def test_toolboxs_own_data_set_trains_and_resumes(paired):
    assert train('train:total_iter=6', option_file='paired.yml') == 0
    assert train(resume=True, option_file='paired.yml') == 0
    curves = read_curves(Path('experiments/small'))
    assert [iteration for iteration, _ in curves.losses['l_pix']] == list(range(1, 13)) and 'l_ae' not in curves.losses


def test_frame_that_the_toolboxs_data_set_cannot_read_costs_no_iteration(paired, capsys):
    from basicsr.data.paired_image_dataset import imfrombytes

    frames = [imfrombytes] * 20  # reads of two batches of four pairs, and half of the third

    def read(*arguments, **options):
        return frames.pop()(*arguments, **options) if frames else None.astype

    with mock.patch('basicsr.data.paired_image_dataset.imfrombytes', read):
        assert train('datasets:train:num_worker_per_gpu=0', option_file='paired.yml') == 1
    said = capsys.readouterr().err.splitlines()[-1]
    reason = "the next batch cannot be read ('NoneType' object has no attribute 'astype')"
    assert said == f'basicsr train: {reason}; the run ends; fix that and go on with --auto_resume'
    assert run_folder.iterations(Path('experiments/small')) == [2]
    assert train(resume=True, option_file='paired.yml') == 0


def test_the_toolboxs_own_option_files_run(toolboxs_own):
    assert train(option_file='own.yml') == 0
    assert run_folder.iterations(Path('experiments/small')) == [12, 6]
    assert [iteration for iteration, _ in read_curves(Path('experiments/small')).metrics['PSNR']] == [4, 8, 12]


def test_another_model_ends_at_once_where_ours_would_save(toolboxs_own, capfd):
    """A signal or an unreadable frame ends it at once: it checks for neither before its next step."""

    def stop(*_):
        os.kill(os.getpid(), signal.SIGINT)

    def read(way, *asked):
        if isinstance(way, InputError):
            raise way
        return way(*asked)

    with mock.patch('basicsr.models.sr_model.SRModel.optimize_parameters', stop):
        assert train(option_file='own.yml') == 130
    said = capfd.readouterr().err
    assert said.endswith('basicsr: stopped\n') and 'is saved' not in said

    frames = [*[StoreBackend.get] * 8, InputError('a frame is damaged')]  # four pairs of the first batch, then the next
    with mock.patch.object(StoreBackend, 'get', lambda *asked: read(frames.pop(0), *asked)):
        assert train('datasets:train:num_worker_per_gpu=0', option_file='own.yml') == 1
    assert 'a frame is damaged; the run ends; fix that and go on with --auto_resume' in capfd.readouterr().err
    assert 'iter:       1' in log_text() and 'iter:       2' not in log_text()


def test_options_of_srmodel_still_work(workplace):
    """Options for the averaged network, warm-up, another scheduler and another of the toolbox's losses."""
    text = Path('train.yml').read_text()
    text = text.replace('amp: ', 'ema_decay: 0.5\n  warmup_iter: 4\n  amp: ').replace('L1Loss', 'CharbonnierLoss')
    text = re.sub(r'scheduler: .*', 'scheduler: {type: CosineAnnealingRestartLR, periods: [12], eta_min: 1e-6}', text)
    Path('train.yml').write_text(text)
    assert train() == 0
    saved = read_file(MODELS / 'net_g_12.pth')
    assert saved['params'].keys() == saved['params_ema'].keys()
    assert not all(torch.equal(value, saved['params_ema'][name]) for name, value in saved['params'].items())


def test_first_metric_chooses_where_none_is_psnr(workplace):
    assert train('train:total_iter=4', 'val:metrics={sharp: {type: calculate_ssim, crop_border: 0}}') == 0
    assert 'Best sharp: ' in log_text() and read_file(MODELS / 'net_g_best.pth')['metadata']['iter'] == 4


@pytest.mark.slow
def test_second_test_of_one_name_is_refused(workplace):
    """Otherwise the images of one would lie beside the scores of the other."""
    assert train('train:total_iter=4') == 0
    arguments = ['test', '-opt', 'test.yml', '--force_yml', 'val:metrics:ssim=null']
    assert main(arguments) == 0
    before = sorted(Path('results').rglob('*'))
    with run_folder.only_run_in(Path('results/small_test').resolve()):
        codes, said = srun(2, *arguments)
    (line,) = [line for line in said.splitlines() if line.startswith('basicsr ')]
    assert codes == [2, 2] and 'results/small_test: another run is at work there (process' in line
    assert sorted(Path('results').rglob('*')) == before
    assert main(arguments) == 0
