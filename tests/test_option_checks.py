"""What is wrong with an option file is said before the run: the schema, the classes, the data, the weights."""

import re
import shutil
from copy import deepcopy
from pathlib import Path
from typing import get_args

import pytest
import torch
import yaml
from basicsr.models.sr_model import SRModel

from wrcan_arch import InputError, checkpoint, inference, precision
from wrcan_arch.train import option_checks, option_schema, options
from wrcan_arch.weights import BUNDLED

ROOT = Path(__file__).parent.parent


def problems_of(text, command='train'):
    """Return the lines of check's error for an option file with this text."""
    Path('own.yml').write_text(text, encoding='utf-8')
    before = sorted(Path().iterdir())
    said = ''
    try:
        option_checks.check(options.read_options('own.yml'), command)
    except InputError as error:
        said = str(error)
    assert sorted(Path().iterdir()) == before
    return said.splitlines()


@pytest.mark.parametrize(
    ('section', 'key', 'taken'),
    [
        (option_schema.Inference, 'mode', inference.MODES),
        (option_schema.Inference, 'precision', ['auto', *precision.PRECISIONS]),
        (option_schema.Training, 'amp', {'auto', 'off', *precision.PRECISIONS} - {'fp32'}),
    ],
)
def test_schema_takes_what_the_code_does(section, key, taken):
    """The schema repeats the words, as it is loaded without torch."""
    assert {*get_args(section.model_fields[key].annotation)} == {*taken}


def test_demo_options_are_sound(demo):
    assert not problems_of(demo.replace('name: train_wrcan_demo', 'name: 動作\u3000確認'))
    option_checks.check(options.read_options(ROOT / 'options' / 'train_wrcan_demo.yml'), 'train')


def test_folder_whose_name_the_log_cannot_hold_is_one_problem(demo, tmp_path, monkeypatch):
    here = tmp_path / 'a\udcff'
    here.mkdir()
    (here / 'datasets').symlink_to(tmp_path / 'datasets')
    monkeypatch.chdir(here)
    hint = 'a name that is not UTF-8, which logs cannot hold; run this in another folder'
    assert problems_of(demo) == [f'{here}: {hint}']


MISTAKES = [  # text, its replacement, the message
    ('model_type: WRCANModel', 'model_type: WRCANModell', "model_type: there is no 'WRCANModell'; did you mean WRCANModel?"),
    ('type: WRCAN\n', 'type: WCRAN\n', "network_g:type: there is no 'WCRAN'; did you mean WRCAN?"),
    ('num_block: 6', 'num_blocks: 6', 'network_g:num_blocks: WRCAN does not take it; did you mean num_block?'),
    ('type: JPEGDeblurDataset', 'type: Zzz', "datasets:train:type: there is no 'Zzz'; there are "),
    ('gt_size: 64', 'gtsize: 64', 'datasets:train:gtsize: there is no such option here; did you mean gt_size?'),
    ('gt_size: 64', "gt_size: '64'", "datasets:train:gt_size: input should be a valid integer, not '64'"),
    ('gt_size: 64', 'gt_size: 0', 'gt_size: input should be greater than or equal to 1, not 0'),
    ('jpeg_quality: 25', 'jpeg_quality: 101', 'jpeg_quality: input should be less than or equal to 100, not 101'),
    ('jpeg_quality: 25', 'vflip_prob: 1.5', 'vflip_prob: input should be less than or equal to 1, not 1.5'),
    ('io_backend: {type: lmdb}', 'io_backend: {type: lmbd}', "io_backend:type: input should be 'lmdb' or 'disk'"),
    ('type: L1Loss', 'type: L3Loss', "train:pixel_opt:type: there is no 'L3Loss'; did you mean L1Loss?"),
    ('loss_weight: 0.1', 'wight: 0.1', 'train:autoencoder_opt:wight: JPEGAutoEncoderLoss does not take it'),
    ('lr: 2e-5', 'lr: -2e-5', 'train:optim_g:lr: input should be greater than 0, not -2e-05'),
    ('lr: 2e-5', 'lr: fast', "train:optim_g:lr: input should be a valid number, not 'fast'"),
    ('weight_decay: 1e-8', 'wd: 1e-8', 'train:optim_g:wd: Adam does not take it'),
    ('betas: [0.9, 0.999]', 'betas: [0.9]', 'train:optim_g:betas: list should have at least 2 items'),
    ('eta_min: 1e-6', 'period: [300]', 'train:scheduler:period: there is no such option here; did you mean periods?'),
    ('type: CosineAnnealingRestartLR', 'type: StepLR', "train:scheduler: input tag 'StepLR' found using 'type'"),
    ('amp: auto', 'amp: fp8', "train:amp: input should be 'off', 'bf16', 'fp16' or 'auto', not 'fp8'"),
    ('total_iter: 200', 'total_iter: ~', 'train:total_iter: input should be a valid integer, not None'),
    ('  total_iter: 200\n', '', 'train:total_iter: is missing'),
    ('calculate_psnr,', 'calculate_pnsr,', 'val:metrics:psnr:type: there is no \'calculate_pnsr\'; did you mean calculate_psnr?'),
    ('psnr: {type: calculate_psnr, crop_border: 0}', 'psnr: {type: calculate_psnr}', 'val:metrics:psnr: calculate_psnr needs crop_border'),
    ('psnr: {type: calculate_psnr', 'psnr: {type: calculate_lpips', 'val:metrics:psnr: lower LPIPS is better; add better: lower'),
    ('psnr: {type: calculate_psnr', 'psnr: {type: calculate_niqe', 'val:metrics:psnr: lower NIQE is better; add better: lower'),
    ('save_img: false', 'save_image: false', 'val:save_img: is missing'),
    ('val_freq: 100', 'pbar: true', 'val:val_freq: is missing'),
    ('val_freq: 100', 'val_freq: 100\n  best_metric: sim', "val:best_metric: there is no 'sim'; did you mean ssim?"),
    ('precision: fp32', 'precission: fp32', 'val:inference:precission: there is no such option here; did you mean precision?'),
    ('ensemble: false', 'ensemble: 0', 'val:inference:ensemble: input should be a valid boolean, not 0'),
    ('use_tb_logger: true', '', 'logger:use_tb_logger: is missing'),
    ('train_blur.lmdb', 'nowhere.lmdb', "datasets:train:dataroot_lq: there is no 'datasets/demo_nowhere.lmdb'; prepare it"),
    ('pretrain_network_g: small', 'pretrain_network_g: no.pth', "path:pretrain_network_g: there is no file 'no.pth'"),
    ('pretrain_network_g: small', 'pretrained: no.pth', 'path:pretrained: there is no such option'),
    ('  amp: auto', '  start_from_image: true\n  amp: auto', 'train:start_from_image: path:pretrain_network_g would overwrite it'),
    ('pretrain_network_g: small', 'pretrain_network_g: [small]', 'path:pretrain_network_g: input should be a valid string'),
    ('num_gpu: auto', 'num_gpu: 1', 'num_gpu: 1 asked for, this machine has 0'),
    ('num_gpu: auto', 'num_gpu: all', "num_gpu: input should be a valid integer, not 'all', or input should be 'auto', not 'all'"),
    ('name: demo_val', 'name: demo_val\n    persistent_workers: true', 'persistent_workers: only training uses it'),
    ('  batch_size_per_gpu: 8\n', '\n', 'datasets:train:batch_size_per_gpu: is missing'),
    ('batch_size_per_gpu: 8', 'batch_size_per_gpu: 8\n    batch_size_total: 16', 'batch_size_total: batch_size_per_gpu is given too; set one'),
    ('name: train_wrcan_demo', 'names: train_wrcan_demo', 'names: there is no such option here; did you mean name?'),
    ('manual_seed: 0', 'manual_seed: 0\nmanual_seed: 1', "the key 'manual_seed' is given twice"),
    ('  val:\n    name', '  vall:\n    name', 'datasets:vall: data sets are called train, val'),
    ('save_img: false', 'save_img: no', 'val:save_img: write true or false, or put no in quotes if it is a text'),
    ('num_block: 6', 'num_block: 6\n  learn_it: On', 'network_g:learn_it: write true or false, or put On in quotes'),
    ('num_feat: 16', 'num_feat: 6', 'network_g: WRCAN: num_feat must be a multiple of 4, not 6'),
    ('num_feat: 16', 'num_feat: wide', "network_g: WRCAN: num_feat must be a whole number, not 'wide'"),
    ('psnr: {type: calculate_psnr, ', 'psnr: {type: calculate_psnr, test_y_chanel: true, ', 'psnr:test_y_chanel: calculate_psnr does not take it'),
    ('loss_weight: 0.1', 'norm: l3', "train:autoencoder_opt: JPEGAutoEncoderLoss: norm 'l3' is not one of mse, l2"),
    ('weight_decay: 1e-8', 'eps: x', "train:optim_g: '<=' not supported"),
    ('    dataroot_gt: datasets/demo_val_sharp.lmdb\n', '\n', 'datasets:val:dataroot_gt: is missing'),
    ('save_img: false', 'save_img: false\n  submission: {every: 1, extra_data: false, description: x}', 'val:submission: needs save_img: true'),
    ('  pixel_opt:', '  perceptual_opt: {type: PerceptualLoss, layer_weights: {conv5_4: 1}, criterion: fro}\n  pixel_opt:', "train:perceptual_opt:criterion: only l1 works here, not 'fro'; leave it out"),
    ('type: L1Loss,', 'type: L1Loss, reduction: sum,', 'train:pixel_opt:reduction: losses are averaged over parts of a batch'),
]  # fmt: skip
# ruff: noqa: E501  (one mistake a line)


@pytest.mark.parametrize(('old', 'new', 'message'), MISTAKES)
def test_each_mistake_is_named_with_its_line_before_anything_is_written(demo, monkeypatch, old, new, message):
    monkeypatch.setattr('torch.cuda.device_count', lambda: 0)  # whatever this machine has
    assert old in demo
    text = demo.replace(old, new, 1)
    said = [line for line in problems_of(text) if message in line]
    assert len(said) == 1
    place = re.fullmatch(r"own\.yml:(\d+): (?:the key '(\w+)' is given twice|([\w:]+): .*)", said[0])
    standing = text.splitlines()[int(place[1]) - 1]  # the line that the message names
    *sections, key = (place[2] or place[3]).split(':')
    if said[0].endswith(': is missing'):
        assert re.search(rf'\b{sections[-1]}:', standing), 'the section that should hold it'
    else:
        assert re.search(rf'\b{key}:', standing)
        if re.search(rf'\b{key}:', new):
            assert standing not in demo.splitlines(), 'the line with the mistake, not another with the same key'


@pytest.mark.parametrize('word', ['yes', 'No', 'ON', 'off'])
def test_words_that_basicsr_takes_for_booleans_are_mistakes_without_quotes(demo, word):
    """A network or loss would get them as texts, all of them true."""
    Path('own.yml').write_text(demo)
    override = f'network_g:learn_it={word}'
    hint = f'write true or false, or put {word} in quotes if it is a text'
    file = options.read_options('own.yml', [override])
    assert file.problems == [f'--force_yml {override}: network_g:learn_it: {hint}']
    file = options.read_options('own.yml', [f"network_g:learn_it='{word}'", f'network_g:{word}=1'])
    assert not file.problems and file.values['network_g']['learn_it'] == word


def test_amp_takes_off_with_and_without_quotes(demo):
    for key in ('off', '"off"'):
        assert not problems_of(demo.replace('amp: auto', f'amp: {key}'))
    (said,) = problems_of(demo.replace('amp: auto', 'amp: no'))
    assert said.endswith("train:amp: input should be 'off', 'bf16', 'fp16' or 'auto', not 'no'")
    Path('own.yml').write_text(demo)
    option_checks.check(options.read_options('own.yml', ['train:amp=off']), 'train')
    file = options.read_options('own.yml', ['train:optim_g={type: Adam, lr: 1, lr: 2}'])
    assert file.problems == ["--force_yml train:optim_g={type: Adam, lr: 1, lr: 2}: the key 'lr' is given twice"]


@pytest.mark.parametrize('wrong', ['-1', '1e3', '~'])
def test_wrong_length_of_a_run_is_one_mistake(demo, wrong):
    """The cosine's periods, which follow from it, are not reported as well."""
    assert len(problems_of(demo.replace('total_iter: 200', f'total_iter: {wrong}', 1))) == 1


def test_all_mistakes_are_named_at_once(demo):
    for old, new, _ in (MISTAKES[1], MISTAKES[7], MISTAKES[12], MISTAKES[29]):
        demo = demo.replace(old, new, 1)
    assert len(problems_of(demo)) == 4


@pytest.mark.parametrize('key', ['model_type', 'network_g:type', 'datasets:train:type', 'val:metrics:psnr:type'])
def test_list_in_a_names_place_is_a_mistake_like_others(demo, key):
    values = yaml.safe_load(demo)
    *sections, last = key.split(':')
    options.find(values, *sections)[last] = ['a', 'b']
    assert any(f': {key}: input should be a valid string' in line for line in problems_of(yaml.safe_dump(values)))


def test_keys_of_other_sections_are_not_suggested(demo):
    (said,) = problems_of(demo.replace('val_freq: 100', 'val_freq: 100\n  print_frq: 100'))
    assert said.endswith('val:print_frq: there is no such option here')


def test_mistake_in_a_base_is_named_there(demo):
    Path('base.yml').write_text(demo.replace('gt_size: 64', 'gtsize: 64'))
    said = problems_of('base: base.yml\nname: mine\ntrian: {}\n')
    line = demo.splitlines().index('    gt_size: 64  # side of a patch, in pixels') + 1
    assert f'base.yml:{line}: datasets:train:gtsize: there is no such option here; did you mean gt_size?' in said
    assert 'own.yml:3: trian: there is no such option here; did you mean train?' in said
    Path('base.yml').write_text(demo.replace('manual_seed: 0', 'manual_seed: 0\nmanual_seed: 1'))
    (said,) = problems_of('base: base.yml\nname: mine\n')
    assert re.fullmatch(r"base\.yml:\d+: the key 'manual_seed' is given twice", said)


@pytest.mark.parametrize('model', ['SRModel', 'SwinIRModel'])
def test_the_toolboxs_own_models_do_not_pass_over_our_options(demo, model):
    values = yaml.safe_load(demo.replace('WRCANModel', model))
    values['train'] |= {'checkpointing': False, 'gradient_compression': 'none', 'max_skipped_steps': 0}
    values['train'] |= {'optim_g': {'type': 'Muon', 'lr': 0.01}, 'channels_last': True, 'accumulate': 2}
    values['train'] |= {'pixel_opt': None, 'start_from_image': True}
    submission = {'every': 1, 'extra_data': False, 'description': 'x'}
    values['val'] |= {'best_metric': 'psnr', 'submission': submission, 'save_img': True}
    values['deterministic'], values['logger']['keep_last'] = True, 2
    said = problems_of(yaml.safe_dump(values))
    refused = {line.split(': ')[1] for line in said if f': {model} does not know it; ' in line}
    assert refused == {  # what is off or none is no difference
        'train:autoencoder_opt', 'train:amp', 'train:max_skipped_steps', 'train:optim_g:type', 'train:channels_last',
        'train:accumulate', 'train:start_from_image', 'val:inference', 'val:best_metric', 'val:submission',
        'deterministic', 'logger:keep_last',
    }  # fmt: skip
    assert any(line.endswith('train: needs pixel_opt or perceptual_opt') for line in said)


def test_what_the_toolboxs_classes_would_fail_on_is_said_before_the_run(demo):
    text = demo.replace('JPEGDeblurDataset', 'PairedImageDataset')
    text = re.sub(r'.*(jpeg_quality|blurred_quality|autoencoder_opt|noise_prob|rgb_permute_prob).*\n', '', text)
    said = problems_of(text)
    assert {line.rpartition('datasets:train:')[2] for line in said} == {'use_hflip: is missing', 'use_rot: is missing'}
    network = 'network_g: {type: EDSR, num_in_ch: 3, num_out_ch: 3, num_feat: 4, upscale: 1}'
    values = {**yaml.safe_load(demo), **yaml.safe_load(network)}
    del values['train']['autoencoder_opt']
    values['path']['pretrain_network_g'] = None
    for asked in ({'mode': 'local'}, {'max_memory': 1 << 30}):
        values['val']['inference'] = asked
        (said,) = problems_of(yaml.safe_dump(values))
        assert said.endswith('val:inference: mode local and max_memory are for WRCAN, not for EDSR')


def test_a_metric_of_ones_own_is_asked_for_what_it_takes(demo, monkeypatch):
    def mean_error(img, img2, power=1): ...

    def any_error(img, img2, border, **others): ...

    def sharpness(img): ...

    for each in (mean_error, any_error, sharpness):
        monkeypatch.setitem(option_checks.registry.METRIC_REGISTRY._obj_map, each.__name__, each)
    values = yaml.safe_load(demo)
    values['val']['metrics'] = {
        'a': {'type': 'mean_error', 'power': 2, 'better': 'lower'},
        'b': {'type': 'any_error', 'border': 1, 'window': 7},
    }
    assert not problems_of(yaml.safe_dump(values))
    said = problems_of(yaml.safe_dump(values | {'model_type': 'SRModel'}))
    found = [line.partition('val:metrics:')[2] for line in said if 'val:metrics:' in line]
    assert found == ['a:better: mean_error does not take it; it takes img, img2, power']
    (said,) = problems_of(yaml.safe_dump(values | {'model_type': 'OwnModel'}))
    assert "model_type: there is no 'OwnModel'" in said
    values['val']['metrics'] = {
        'a': {'type': 'mean_error', 'pover': 2},
        'b': {'type': 'any_error'},
        'c': {'type': 'sharpness'},
    }
    assert {line.partition('val:metrics:')[2] for line in problems_of(yaml.safe_dump(values))} == {
        'a:pover: mean_error does not take it; did you mean power?',
        'b: any_error needs border',
        'c:img2: sharpness does not take it; did you mean img?',
    }
    values['datasets']['val'].pop('dataroot_gt')
    values['val']['metrics'] = {'c': {'type': 'sharpness'}}
    assert not problems_of(yaml.safe_dump(values))


def test_data_sets_that_are_scored_have_names_of_their_own(demo):
    values = yaml.safe_load(demo)
    values['datasets']['val_2'] = dict(values['datasets']['val'])
    (said,) = problems_of(yaml.safe_dump(values))
    assert said.endswith("datasets:val_2:name: 'demo_val' is also the name of val; give each its own")
    values['datasets']['val_2']['name'] = 'other'
    values['datasets']['train']['name'] = 'demo_val'
    Path('own.yml').write_text(yaml.safe_dump(values))
    option_checks.check(options.read_options('own.yml'), 'train')


def test_what_validation_would_fail_on_is_said_before_the_run(demo, monkeypatch):
    monkeypatch.setattr('torch.hub.get_dir', lambda: '/nowhere')
    values = yaml.safe_load(demo)
    values['name'] = 'debug_rate'
    values['val']['inference'] = {'mode': 'chop', 'max_memory': 1000}
    values['val']['metrics']['lpips'] = {'type': 'calculate_lpips', 'crop_border': 0, 'better': 'lower'}
    name, inference, lpips = problems_of(yaml.safe_dump(values))
    assert name.endswith('name: a name with debug makes the toolbox set val_freq, print_freq and save_checkpoint_freq; '
                         'take another')  # fmt: skip
    assert 'val:inference: max_memory is for the modes exact and local' in inference
    assert 'val:metrics:lpips: calculate_lpips: no ' in lpips


def test_a_test_scores_what_the_toolbox_knows_how_to(demo):
    values = yaml.safe_load(demo) | {'train': None, 'name': 'debug'}  # a test may be called that
    values['datasets'] = {'holiday': values['datasets']['val']}
    values['val']['metrics']['niqe'] = {'type': 'calculate_niqe', 'crop_border': 0}  # it chooses no network
    (said,) = problems_of(yaml.safe_dump(values), 'test')
    assert said.endswith('datasets:holiday: data sets to be scored are called test, test_2 ..., or val')
    for phase in ('test', 'test_2', 'val'):
        values['datasets'] = {phase: {**values['datasets'].popitem()[1]}}
        assert not problems_of(yaml.safe_dump(values), 'test')


def test_luma_alone_is_not_for_our_network(demo):
    values = yaml.safe_load(demo)
    values['datasets']['val'] |= {'type': 'PairedImageDataset', 'color': 'y'}
    Path('own.yml').write_text(yaml.safe_dump(values))
    (said,) = option_checks._unfit_network(options.read_options('own.yml'))
    assert said.endswith('datasets:val:color: WRCAN takes 3 channels, not the luma alone; leave it out')


def test_a_scale_above_1_is_refused_for_classes_that_keep_the_size(demo):
    def said(text):
        return [line.partition('scale: ')[2] for line in problems_of(f'{text}\nscale: 2\n') if ': scale: ' in line]

    ends = 'keeps the size of an image; set scale to 1, or take'
    network = f'WRCAN {ends} another network'
    data = [f'JPEGDeblurDataset {ends} a PairedImageDataset']
    assert said(demo) == [f'WRCANModel {ends} SRModel', network, *data]
    assert said(demo.replace('WRCANModel', 'SRModel')) == [network, *data]
    values = yaml.safe_load(demo) | {'model_type': 'SRModel', 'path': {}}
    values['network_g'] = {'type': 'MSRResNet', 'upscale': 2}
    assert said(yaml.safe_dump(values)) == data


def test_periods_one_short_of_the_run_and_a_store_of_jpegs_are_no_mistake(demo):
    text = demo.replace('eta_min: 1e-6', 'eta_min: 1e-6, periods: [199]')  # the last step is made with the rate of 199
    assert not problems_of(text.replace('jpeg_quality: 25', 'dataroot_gt_jpeg: datasets/demo_train_sharp.lmdb'))


@pytest.mark.parametrize('strict', [True, False])
def test_weights_of_another_network_are_for_those_who_ask_for_it(demo, strict):
    text = demo.replace('pretrain_network_g: small', f'pretrain_network_g: small\n  strict_load_g: {strict}')
    said = problems_of(text.replace('num_block: 6', 'num_block: 5'))
    assert [line.endswith('set network_g:num_block=6') for line in said] == [True] * strict


@pytest.mark.parametrize('lacking', ['gone.pth', 'damaged.pth'])
def test_a_resume_needs_no_pretrained_weights(demo, lacking):
    Path('damaged.pth').write_bytes(b'damaged')
    text = demo.replace('pretrain_network_g: small', f'pretrain_network_g: {lacking}')
    Path('own.yml').write_text(text)
    file = options.read_options('own.yml')
    for has_state in (False, True):
        for auto_resume in (False, True):
            if has_state and auto_resume:
                option_checks.check(file, 'train', auto_resume=True)
                assert file.values['path']['pretrain_network_g'] == lacking
            else:
                with pytest.raises(InputError, match=lacking):
                    option_checks.check(file, 'train', auto_resume=auto_resume)
        states = Path('experiments/train_wrcan_demo/training_states')
        states.mkdir(parents=True, exist_ok=True)
        (states / '7.state').touch()
    file.values['path']['ignore_resume_networks'] = ['network_g']
    with pytest.raises(InputError, match=lacking):
        option_checks.check(file, 'train', auto_resume=True)


def test_random_weights_are_not_scored(demo):
    values = yaml.safe_load(demo)
    values |= {'train': None, 'path': {'pretrain_network_g': None}}
    values['datasets'] = {'test': values['datasets']['val']}
    (said,) = problems_of(yaml.safe_dump(values), 'test')
    assert said.endswith('path:pretrain_network_g: is missing; a network of random weights would be scored')
    values['val']['inference'] = {'mode': 'input'}
    assert not problems_of(yaml.safe_dump(values), 'test')


def test_sharp_frames_are_asked_for_by_metrics_that_take_them(demo):
    values = yaml.safe_load(demo)
    del values['datasets']['val']['dataroot_gt']
    assert any('datasets:val:dataroot_gt: is missing' in each for each in problems_of(yaml.safe_dump(values)))
    single = {**values, 'datasets': deepcopy(values['datasets'])}
    single['datasets']['val']['type'] = 'SingleImageDataset'
    (said,) = problems_of(yaml.safe_dump(single))
    assert 'datasets:val:type: has no sharp frames for a metric to compare with; take a PairedImageDataset' in said
    values['val']['metrics'] = {'niqe': {'type': 'calculate_niqe', 'crop_border': 0, 'better': 'lower'}}
    values['val'].pop('best_metric', None)
    assert not problems_of(yaml.safe_dump(values))
    single['val'] = values['val']
    assert not problems_of(yaml.safe_dump(single))


def test_options_of_ones_own_model_are_left_to_it(demo, monkeypatch):
    class OwnModel(SRModel): ...

    monkeypatch.setitem(option_checks.registry.MODEL_REGISTRY._obj_map, 'OwnModel', OwnModel)
    text = demo.replace('WRCANModel', 'OwnModel').replace('network_g: small', 'network_g: ~')
    text += '\nnetwork_d: {type: VGGStyleDiscriminator}\n'
    text = text.replace('optim_g: {type: Adam,', 'optim_g: {type: SGD, momentum: 0.9,')
    text = text.replace('inference: {', 'inference: {tiles: 4, ')
    text = text.replace('  total_iter:', '  checkpointing: every_layer\n  total_iter:')
    values = yaml.safe_load(text) | {'network_g': {'type': 'EDSR', 'num_in_ch': 3, 'num_out_ch': 3, 'upscale': 1}}
    assert not problems_of(yaml.safe_dump(values))


def test_models_of_the_toolbox_without_pixels_or_pairs_are_left_to_it(demo):
    values = yaml.safe_load(demo) | {'model_type': 'StyleGAN2Model', 'val': None, 'path': {}}
    values['network_g'] = {'type': 'StyleGAN2Generator', 'out_size': 64}
    values['datasets']['train'] = {
        'name': 'faces', 'type': 'FFHQDataset', 'dataroot_gt': 'datasets/demo_train_sharp.lmdb', 'mean': [0.5] * 3,
        'std': [0.5] * 3, 'use_hflip': True, 'num_worker_per_gpu': 1, 'batch_size_per_gpu': 3,
    }  # fmt: skip
    del values['datasets']['val']
    for name in ('pixel_opt', 'autoencoder_opt', 'amp'):
        del values['train'][name]
    values['train']['gan_opt'] = {'type': 'GANLoss', 'gan_type': 'wgan_softplus'}
    assert not problems_of(yaml.safe_dump(values))
    (said,) = problems_of(yaml.safe_dump(values | {'model_type': 'HiFaceGANModel'}))  # which raises without one
    assert said.endswith('train: needs pixel_opt or perceptual_opt')


def test_what_wrcan_alone_can_do_is_refused_of_others(demo):
    network = '  type: WRCAN\n  num_feat: 16\n  num_group: 1\n  num_block: 6\n  block: wrca\n'
    assert network in demo
    text = demo.replace(network, '  type: MSRResNet\n').replace('network_g: small', 'network_g: ~')
    said = problems_of(text.replace('  amp: auto', '  start_from_image: true\n  checkpointing: true\n  amp: auto'))
    names = 'start_from_image', 'autoencoder_opt', 'checkpointing'
    assert len(said) == 3
    for line, name in zip(said, names, strict=True):
        assert line.endswith(f'train:{name}: is for WRCAN, not for MSRResNet; leave it out')


def test_any_network_has_to_choose_between_two_sets_of_weights(demo):
    network = '  type: WRCAN\n  num_feat: 16\n  num_group: 1\n  num_block: 6\n  block: wrca\n'
    weight = {'conv_first.weight': torch.zeros(1)}
    torch.save({'params': weight, 'params_ema': weight}, 'two.pth')
    text = demo.replace(network, '  type: MSRResNet\n').replace('network_g: small', 'network_g: two.pth')
    assert any('two.pth: holds two sets of weights; set path:param_key_g' in each for each in problems_of(text))
    chosen = text.replace('two.pth', 'two.pth\n  param_key_g: params')
    assert not any('two.pth' in each for each in problems_of(chosen))
    for unclear in ('~', 'param_ema'):
        said = problems_of(chosen.replace('param_key_g: params', f'param_key_g: {unclear}'))
        assert any('two sets' in each for each in said)


def test_a_file_without_weights_is_said_before_the_run_whatever_the_network(demo):
    network = '  type: WRCAN\n  num_feat: 16\n  num_group: 1\n  num_block: 6\n  block: wrca\n'
    torch.save({'params': {}, 'epoch': 3}, 'none.pth')
    text = demo.replace(network, '  type: MSRResNet\n').replace('network_g: small', 'network_g: none.pth')
    lacks = "path:pretrain_network_g: none.pth: holds no weights under 'params'; found params, epoch"
    assert any(line.endswith(lacks) for line in problems_of(re.sub('  autoencoder_opt.*\n', '', text)))


def test_weights_that_the_toolboxs_own_model_cannot_read_are_said_before_the_run(demo):
    text = demo.replace('WRCANModel', 'SRModel')
    tensors, _ = checkpoint.read_weights(BUNDLED['small'])
    torch.save(tensors, 'bare.pth')
    checkpoint.convert(BUNDLED['small'], 'converted.pth')
    shutil.copy(BUNDLED['small'], 'SMALL.SAFETENSORS')
    for name, path in (('small', BUNDLED['small']), ('bare.pth', 'bare.pth'), ('SMALL.SAFETENSORS',) * 2):
        said = problems_of(text.replace('network_g: small', f'network_g: {name}'))
        hint = f'basicsr convert {path} -o NAME.pth makes one'
        expected = f"path:pretrain_network_g: {path}: SRModel only reads a .pth that holds 'params'; {hint}"
        assert len([line for line in said if line.endswith(expected)]) == 1
    said = problems_of(text.replace('network_g: small', 'network_g: converted.pth'))
    assert not any('path:' in line for line in said)


@pytest.mark.parametrize('model', ['SRModel', 'WRCANModel'])
def test_weights_are_under_any_key_or_bare(demo, model):
    """As in BasicSR; `~` is for bare tensors."""
    values = yaml.safe_load(demo) | {'model_type': model, 'scale': 1}

    def said(key, **train):
        path = {'pretrain_network_g': 'own.pth', 'param_key_g': key}
        text = yaml.safe_dump(values | {'path': path, 'train': values['train'] | train})
        return [line for line in problems_of(text) if 'path:' in line]

    tensors, _ = checkpoint.read_weights(BUNDLED['small'])
    torch.save(tensors, 'own.pth')
    assert said(None) == []
    torch.save({'model': tensors, 'epoch': 3}, 'own.pth')
    assert said('model') == []
    for key in ('modle', None):
        (line,) = said(key)
        assert line.endswith(f"own.pth: holds no weights under '{key or 'params'}'; found model, epoch")
    averaged = said('model', ema_decay=0.9)
    torch.save({'params': tensors}, 'own.pth')
    assert said('model', ema_decay=0.9) == [], "the toolbox takes 'params' where the key is missing"
    if model == 'WRCANModel':
        assert averaged == said(None) == []
    else:
        assert averaged[0].endswith("own.pth: only 'params' can be averaged by SRModel; leave train:ema_decay out")
        assert said(None)[0].endswith(
            'only reads a .pth that holds bare tensors; set path:param_key_g to their key, or to ~ for bare tensors'
        )


def test_what_an_optimizer_refuses_is_one_of_the_mistakes(demo):
    said = problems_of(demo.replace('optim_g: {type: Adam,', 'optim_g: {type: Adam, foreach: true, fused: true,'))
    assert any('train:optim_g' in each and 'foreach' in each for each in said)
