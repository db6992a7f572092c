"""Each row's resolved options are the paper's: the table here is typed from the paper, not from the files."""

from pathlib import Path

import pytest

from wrcan_arch.train import option_checks, options

OPTIONS = Path(__file__).parent.parent / 'options'
EPOCH = 24_000 // 16  # iterations: one patch of each frame, 16 in a batch

TRAINING = {  # block, groups, patch, epochs, auto-encoder loss
    'train_wrcan_320': ('wrca', 4, 320, 375, True),
    'train_wrcan_256': ('wrca', 4, 256, 400, True),
    'train_wrcan_256_l1': ('wrca', 4, 256, 400, False),
    'train_wrn_256_l1': ('wr', 4, 256, 400, False),
    'train_table1_case1': ('res', 1, 256, 300, False),
    'train_table1_case2': ('wr', 1, 256, 300, False),
    'train_table1_case3': ('rca', 1, 256, 300, False),
    'train_table1_case4': ('wrca', 1, 256, 300, False),
}


@pytest.mark.parametrize(('name', 'row'), TRAINING.items())
def test_training_row_is_the_papers(name, row):
    block, groups, patch, epochs, autoencoder = row
    opt = options.read_options(OPTIONS / f'{name}.yml').values
    assert opt['name'] == name and opt['model_type'] == 'WRCANModel'
    assert opt['network_g'] == {'type': 'WRCAN', 'num_feat': 64, 'num_group': groups, 'num_block': 16, 'block': block}

    data = opt['datasets']['train']
    assert data['type'] == 'JPEGDeblurDataset' and data['gt_size'] == patch and data['batch_size_total'] == 16
    for augmentation in ('hflip', 'vflip', 'transpose', 'rgb_permute', 'noise'):
        assert data[f'{augmentation}_prob'] == 0.5
    assert data['noise_sigma'] == 2 and data.get('jpeg_quality') == (25 if autoencoder else None)
    assert data['dataroot_lq'].endswith('train_blur_jpeg.lmdb') and data['dataroot_gt'].endswith('train_sharp.lmdb')

    train = opt['train']
    assert train['total_iter'] == epochs * EPOCH
    assert train['scheduler'] == {
        'type': 'MultiStepLR', 'milestones': [epoch * EPOCH for epoch in (100, 200, 250, 300, 350)], 'gamma': 0.5
    }  # fmt: skip
    assert train['optim_g'] == {
        'type': 'Adam', 'lr': 1e-4, 'betas': [0.9, 0.999], 'eps': 1e-8, 'weight_decay': 1e-8 if autoencoder else 0
    }  # fmt: skip
    assert train['pixel_opt'] == {'type': 'L1Loss', 'loss_weight': 1.0, 'reduction': 'mean'}
    expected = {'type': 'JPEGAutoEncoderLoss', 'loss_weight': 0.1} if autoencoder else None
    assert train.get('autoencoder_opt') == expected
    assert train['amp'] == 'auto' and not {'ema_decay', 'warmup_iter', 'perceptual_opt'} & train.keys()

    validation = opt['datasets']['val']
    assert validation['names'] == '000_*' and validation['dataroot_lq'].endswith('val_blur_jpeg.lmdb')
    assert opt['val']['best_metric'] == 'psnr' and opt['val']['metrics']['psnr']['crop_border'] == 0
    assert opt['val']['val_freq'] == EPOCH


TESTING = {  # block, groups, mode, ensemble, whose weights, data
    'test_table2_row1': ('wrca', 1, 'input', False, None, 'val'),
    'test_table2_row2': ('wr', 4, 'chop', False, 'train_wrn_256_l1', 'val'),
    'test_table2_row3': ('wrca', 4, 'chop', False, 'train_wrcan_256_l1', 'val'),
    'test_table2_row4': ('wrca', 4, 'chop', False, 'train_wrcan_256', 'val'),
    'test_table2_row5': ('wrca', 4, 'chop', True, 'train_wrcan_256_l1', 'val'),
    'test_table2_row6': ('wrca', 4, 'chop', True, 'train_wrcan_256', 'val'),
    'test_table2_row7': ('wrca', 4, 'chop', True, 'train_wrcan_320', 'val'),
    'test_table1_case1': ('res', 1, 'chop', False, 'train_table1_case1', 'val'),
    'test_table1_case2': ('wr', 1, 'chop', False, 'train_table1_case2', 'val'),
    'test_table1_case3': ('rca', 1, 'chop', False, 'train_table1_case3', 'val'),
    'test_table1_case4': ('wrca', 1, 'chop', False, 'train_table1_case4', 'val'),
    'test_table3': ('wrca', 4, 'chop', True, 'train_wrcan_320', 'test'),
}


@pytest.mark.parametrize(('name', 'row'), TESTING.items())
def test_testing_row_is_the_papers(name, row):
    block, groups, mode, ensemble, trained, data = row
    opt = options.read_options(OPTIONS / f'{name}.yml').values
    assert opt['name'] == name
    assert (opt['network_g']['block'], opt['network_g']['num_group']) == (block, groups)
    if trained:
        trained_network = options.read_options(OPTIONS / f'{trained}.yml').values['network_g']
        assert opt['network_g'] == trained_network
    weights = f'experiments/{trained}/models/net_g_best.pth' if trained else None
    assert opt['path']['pretrain_network_g'] == weights
    assert opt['val']['inference'] == {'mode': mode, 'ensemble': ensemble, 'precision': 'fp32'}
    assert opt['datasets']['test']['name'] == f'REDS_{data}'
    assert opt['datasets']['test']['dataroot_lq'].endswith(f'{data}_blur_jpeg.lmdb')
    if data == 'val':
        assert {metric['crop_border'] for metric in opt['val']['metrics'].values()} == {0}
        assert opt['val']['metrics'].keys() == {'psnr', 'ssim'}
    else:
        assert opt['val'].get('metrics') is None and opt['val']['submission']['every'] == 10


OF_FILES = (option_checks._unfit_frames, option_checks.unfit_weights)  # they need stores and weights that are not here


@pytest.mark.parametrize('path', sorted(OPTIONS.glob('*.yml')), ids=lambda path: path.stem)
def test_every_option_file_passes_every_check_but_of_data_and_weights(monkeypatch, path):
    monkeypatch.setattr(option_checks, '_missing_data', lambda _: ())
    others = [each for each in option_checks.CHECKS_OF_VALID_OPTIONS if each not in OF_FILES]
    assert len(others) == len(option_checks.CHECKS_OF_VALID_OPTIONS) - len(OF_FILES)
    monkeypatch.setattr(option_checks, 'CHECKS_OF_VALID_OPTIONS', others)
    option_checks.check(options.read_options(path), path.name.partition('_')[0])


@pytest.mark.parametrize('name', [*TRAINING, *TESTING])
def test_a_rows_option_file_has_at_most_ten_lines(name):
    lines = (OPTIONS / f'{name}.yml').read_text().splitlines()
    if name not in ('train_wrcan_320', 'test_table2_row7'):  # the bases of the others
        assert len([line for line in lines if not line.startswith('#')]) <= 10
