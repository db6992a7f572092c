"""What RecordedModel keeps of a run: weights, states, scores, results. Whole runs are in test_end_to_end.py."""

import json
import math
import shutil
from hashlib import sha256
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

import numpy as np
import pytest
import torch
from basicsr.models import build_model
from basicsr.utils.registry import METRIC_REGISTRY
from test_wrcan_model import HOST_IS_FULL, batch

from wrcan_arch import InputError, WRCANModel, __version__, restore
from wrcan_arch.checkpoint import read_file, read_weights
from wrcan_arch.errors import RunError
from wrcan_arch.source_commit import source_commit
from wrcan_arch.train import scoring
from wrcan_arch.wrcan_arch import ChannelAttention


def test_saved_file_says_what_it_is(opt, tmp_path):
    opt['datasets']['train']['blurred_quality'] = [15, 95]  # of the blurred input; jpeg_quality, the loss's, is 25
    model = build_model(opt)
    model.save(0, 5)
    tensors, about = read_weights(tmp_path / 'models' / 'net_g_5.pth')
    assert (about['network_g'], about['name'], about['iter']) == (opt['network_g'], 'small', 5)
    assert (about['patch_size'], about['jpeg_quality']) == (32, [15, 95])
    assert about['options_sha256'] is None and (about['version'], about['commit']) == (__version__, source_commit())
    assert all(torch.equal(tensors[name], value) for name, value in model.net_g.state_dict().items())


def test_untouched_weights_say_what_they_were_trained_on(opt, tmp_path):
    earlier = {'patch_size': 192, 'jpeg_quality': [15, 95]}
    model = build_model(opt)
    model.net_g.metadata = earlier
    for iteration, expected in ((0, (192, [15, 95])), (1, (32, 25))):
        model._save_networks('best', {'iter': iteration})
        _, about = read_weights(tmp_path / 'models' / 'net_g_best.pth')
        assert (about['patch_size'], about['jpeg_quality']) == expected


def test_best_network_is_of_the_metric_and_set_asked_for(opt):
    opt['val']['best_metric'] = 'ssim'
    opt['datasets'] |= {'val': {'name': 'first'}, 'val_2': {'name': 'second'}}
    model = build_model(opt)
    with mock.patch.object(model, '_save_networks') as save:
        for data_set, iteration, psnr, ssim in [
            ('second', 1, 40.0, 0.9), ('first', 1, 30.0, 0.5), ('second', 2, 41.0, 0.95),
            ('first', 2, 35.0, 0.4), ('first', 3, 20.0, 0.6),
            ('first', 4, 50.0, float('nan')),
        ]:  # fmt: skip
            loader = SimpleNamespace(dataset=SimpleNamespace(opt={'name': data_set}))
            scores = {'a': {'psnr': psnr, 'ssim': ssim}}
            with mock.patch('wrcan_arch.train.scoring.score_images', return_value=(scores, 0.0)):
                model.validation(loader, iteration, None)
    assert [(call.args[0], call.args[1]['iter'], call.args[1]['metrics']['ssim']) for call in save.call_args_list] == [
        ('best', 1, 0.5),
        ('best', 3, 0.6),
    ]


@pytest.mark.filterwarnings('ignore:Mean of empty slice', 'ignore:invalid value')
def test_a_border_that_leaves_no_pixels_is_an_error():
    images = dict.fromkeys(('img', 'img2'), np.zeros((8, 9, 3), np.uint8))
    assert scoring._score('psnr', {'type': 'calculate_psnr', 'crop_border': 3}, 'a', images) == math.inf
    with pytest.raises(InputError, match="val:metrics:psnr of 'a': ValueError: the result is not a number"):
        scoring._score('psnr', {'type': 'calculate_psnr', 'crop_border': 4}, 'a', images)


def test_a_metric_is_not_asked_for_what_the_toolbox_alone_reads(monkeypatch):
    def mean(img):
        return img.mean()

    monkeypatch.setitem(METRIC_REGISTRY._obj_map, 'mean', mean)
    assert scoring._score('mean', {'type': 'mean', 'better': 'lower'}, 'a', {'img': np.ones((8, 9, 3))}) == 1


def test_full_disk_ends_the_run_and_keeps_the_old_file(opt, tmp_path):
    model = build_model(opt)
    model.save(0, 5)
    before = (tmp_path / 'models' / 'net_g_5.pth').read_bytes()
    with (
        mock.patch('os.fsync', side_effect=OSError(28, 'No space left on device')),
        mock.patch('time.sleep') as sleep,
        pytest.raises(RunError, match='No space left on device; the run ends, make room and go on with --auto_resume'),
    ):
        model.save(0, 5)
    assert [call.args[0] for call in sleep.call_args_list] == [1, 5, 30], 'as docs/messages.md says'
    assert (tmp_path / 'models' / 'net_g_5.pth').read_bytes() == before
    assert not list(tmp_path.rglob('*.partial'))


def test_state_is_saved_with_the_validation_of_its_iteration(opt):
    """Otherwise a run resumed from it would take an older network for the best."""
    opt['datasets'] = {'train': {'name': 't'}, 'val': {'name': 'first'}, 'val_2': {'name': 'second'}}
    opt['val']['val_freq'] = 4
    model = build_model(opt)
    saved = Path(opt['path']['experiments_root'], 'training_states')
    model.save(0, 3)
    assert (saved / '3.state').exists(), 'nothing is validated at 3'
    model.save(0, 4)
    for name, value in (('first', 30.0), ('second', 20.0)):
        assert not (saved / '4.state').exists()
        loader = SimpleNamespace(dataset=SimpleNamespace(opt={'name': name}))
        with mock.patch(
            'wrcan_arch.train.scoring.score_images', return_value=({'a': {'psnr': value, 'ssim': 1.0}}, 0.0)
        ):
            model.validation(loader, 4, None)
    state = read_file(saved / '4.state')
    assert state['best_metric_results']['first']['psnr'] == {'better': 'higher', 'val': 30.0, 'iter': 4}

    model.save(0, 8)
    loader = SimpleNamespace(dataset=SimpleNamespace(opt={'name': 'first'}))
    with mock.patch('wrcan_arch.train.scoring.score_images', side_effect=InputError('broken')), pytest.raises(RunError):
        model.validation(loader, 8, None)
    assert (saved / '8.state').exists(), 'a validation that fails ends the run, and with it the waiting'

    model.save(0, 12)
    with mock.patch('wrcan_arch.train.scoring.score_images', side_effect=MemoryError), pytest.raises(MemoryError):
        model.validation(loader, 12, None)
    assert (saved / '12.state').exists(), 'so does any other error'
    model.save(0, 16)
    with mock.patch('wrcan_arch.train.scoring.score_images', side_effect=RunError('full')), pytest.raises(RunError):
        model.validation(loader, 16, None)
    assert (saved / '16.state').exists(), 'what is due is saved, though the best network could not be'
    model.saved_iter = 12
    with mock.patch('wrcan_arch.train.scoring.score_images', side_effect=MemoryError), pytest.raises(MemoryError):
        model.validation(loader, 13, None)
    assert (saved / '13.state').exists(), 'and what was learnt since is saved, though nothing was due'
    model.saved_iter = 0
    with mock.patch('wrcan_arch.train.scoring.score_images', side_effect=MemoryError), pytest.raises(MemoryError):
        model.validation(loader, 14, None)
    assert (saved / '14.state').exists(), 'also where it is the first'


def test_of_two_validation_sets_neither_has_the_others_scores_or_pictures(opt):
    opt['datasets'] = {'train': {'name': 't'}, 'val': {'name': 'first'}, 'val_2': {'name': 'second'}}
    opt['path']['visualization'] = 'seen'
    model = build_model(opt)
    for name, value in (('first', 30.0), ('second', 20.0)):
        loader = SimpleNamespace(dataset=SimpleNamespace(opt={'name': name}))
        with mock.patch(
            'wrcan_arch.train.scoring.score_images', return_value=({'a': {'psnr': value, 'ssim': 1.0}}, 0.0)
        ):
            model.validation(loader, 4, None)
    model.save_pair(0, 4)
    metadata = read_weights(Path(opt['path']['experiments_root'], 'models/net_g_4.pth'))[1]
    assert metadata['metrics'] == {'psnr': 30.0, 'ssim': 1.0}
    assert model.image_path('first', 'a', 4) != model.image_path('second', 'a', 4)


def test_result_is_of_the_weights_that_were_tested(opt, tmp_path, official_weights):
    """The file may be the best network of a training that replaces it during the test."""
    weights = tmp_path / 'best.pt'
    shutil.copy(official_weights, weights)
    opt['network_g'] = {'type': 'WRCAN', 'num_feat': 8, 'num_group': 2, 'num_block': 3}
    opt['path'] |= {'pretrain_network_g': str(weights), 'results_root': str(tmp_path)}
    model = build_model({**opt, 'is_train': False})
    weights.write_bytes(b'another')
    model._write_results('set', {'a': {'psnr': 30.0, 'ssim': 1.0}}, 0.1, {}, save_img=False)
    result = json.loads((tmp_path / 'result_set.json').read_text())
    assert result['weights']['sha256'] == sha256(official_weights.read_bytes()).hexdigest()
    assert (result['version'], result['commit']) == (__version__, source_commit())


def test_result_is_of_the_stores_that_were_scored(opt, tmp_path):
    """They may be made anew during the test."""
    manifest = tmp_path / 'manifest.json'
    manifest.write_text('before')
    opt['path']['results_root'] = str(tmp_path)
    model = build_model({**opt, 'is_train': False})
    loader = SimpleNamespace(dataset=SimpleNamespace(opt={'name': 'set', 'dataroot_lq': str(tmp_path)}))

    def score_images(*_):
        manifest.write_text('after')
        return {'a': {'psnr': 30.0, 'ssim': 1.0}}, 0.0

    with mock.patch('wrcan_arch.train.scoring.score_images', score_images):
        model.validation(loader, 0, None)
    result = json.loads((tmp_path / 'result_set.json').read_text())
    assert result['stores'] == {'dataroot_lq': sha256(b'before').hexdigest()}


def test_validation_image_that_cannot_be_read_is_named(opt):
    class Frames:
        opt = {'name': 'paired'}

        def __len__(self):
            return 1

        def __getitem__(self, index):
            return None.astype

    with pytest.raises(InputError, match="image 0 of paired cannot be read .*no attribute 'astype'"):
        scoring.score_images(build_model(opt), Frames(), 4, save_img=False)


@pytest.mark.parametrize('error', [MemoryError(), HOST_IS_FULL, torch.cuda.OutOfMemoryError('CUDA out of memory.')])
def test_validation_image_that_the_memory_does_not_hold_is_named(opt, error):
    class Frames(list):
        opt = {'name': 'paired'}

    model, frames = build_model(opt), Frames([{'lq': torch.rand(3, 8, 8), 'lq_path': 'REDS/a.png'}])
    for raised, expected, said in (
        (error, InputError, "'REDS_a' is too large for the memory; scale it down"),
        (RuntimeError('a defect'), RuntimeError, '^a defect$'),
    ):
        with mock.patch.object(model, 'test', side_effect=raised), pytest.raises(expected, match=said):
            scoring.score_images(model, frames, 4, save_img=False)


def test_validation_of_no_images_is_an_error(opt):
    class Frames(list):
        opt = {'name': 'paired', 'dataroot_lq': 'REDS'}

    with pytest.raises(InputError, match='data set paired: there are no images in REDS'):
        scoring.score_images(build_model(opt), Frames(), 4, save_img=False)


def test_images_of_a_test_do_not_replace_each_other_where_the_disk_ignores_case(opt, tmp_path, case_is_ignored):
    class Frames(list):
        opt = {'name': 'paired', 'dataroot_lq': 'REDS'}

    opt['path']['visualization'], opt['val']['metrics'] = str(tmp_path), {}
    frames = Frames({'lq': torch.rand(3, 8, 8), 'key': key} for key in ('a', 'A'))
    for _ in range(2):  # a validation replaces the images of an earlier one
        scoring.score_images(build_model(opt), frames, 4, save_img=True)
    with pytest.raises(InputError, match='two of its images would be called A; rename one'):
        scoring.score_images(build_model({**opt, 'is_train': False}), frames, 4, save_img=True)


def test_processes_put_their_scores_together(monkeypatch):
    class Frames(list):
        opt = {'name': 'paired'}

    def scores_with(theirs):
        shares = ({'a': {'psnr': 1.0}}, 4.0), ({theirs: {'psnr': 2.0}}, 2.0)
        monkeypatch.setattr(scoring, 'score_share', lambda *_: shares[0])
        monkeypatch.setattr(scoring.distributed, 'all_gather_object', lambda out, _: out.__setitem__(slice(2), shares))
        return scoring.score_images(model, Frames([0, 1]), 4, save_img=False)

    model = SimpleNamespace(opt={'dist': True, 'rank': 0, 'world_size': 2})
    assert scores_with('b') == ({'a': {'psnr': 1.0}, 'b': {'psnr': 2.0}}, 3.0)
    with pytest.raises(InputError, match='two of its images would be called a; rename one'):
        scores_with('a')


def test_averaged_weights_are_validated(opt):
    opt['train']['ema_decay'] = 0.9
    model = build_model(opt)
    model.feed_data(batch())
    model.optimize_parameters(1)
    model.test()
    averaged, last = (restore(network, model.lq, precision='fp32') for network in (model.net_g_ema, model.net_g))
    assert torch.equal(model.output, averaged) and not torch.equal(averaged, last)


@pytest.mark.parametrize('key', ['net', None])
def test_weights_are_read_under_any_key_and_averaged_from_there(opt, tmp_path, key):
    tensors = {name: value + 1 for name, value in build_model(opt).net_g.state_dict().items()}
    torch.save({key: tensors, 'epoch': 3} if key else tensors, tmp_path / 'a.pth')
    opt['path'] |= {'pretrain_network_g': str(tmp_path / 'a.pth'), 'param_key_g': key}
    opt['train']['ema_decay'] = 0.9
    model = build_model(opt)
    for network in (model.net_g, model.net_g_ema):
        assert all(torch.equal(network.state_dict()[name], value) for name, value in tensors.items())
    zeros = {name: torch.zeros_like(value) for name, value in tensors.items()}
    torch.save({'params': zeros, 'params_ema': tensors}, tmp_path / 'own.pth')
    model.load_network(model.net_g, str(tmp_path / 'own.pth'), param_key=key)
    assert not model.net_g.state_dict()['head.weight'].any(), 'a run goes on from the trained weights, not their mean'


def test_local_validation_takes_the_patch_of_this_training(opt):
    """Not the patch size that the loaded weights were trained with."""
    opt['val']['inference'] = {'mode': 'local', 'precision': 'fp32'}
    opt['datasets']['train']['gt_size'] = 8
    torch.manual_seed(0)  # of some networks the attention is 0 or 1 whatever the means
    model = WRCANModel(opt)
    network = model.get_bare_model(model.net_g)
    for module in network.modules():
        if isinstance(module, ChannelAttention):  # so that the means matter: ReLU may zero the one hidden unit
            torch.nn.init.uniform_(module.squeeze.weight, -50, 50)
            torch.nn.init.constant_(module.squeeze.bias, 1)
    model.feed_data({'lq': torch.rand(1, 3, 24, 24)})
    model.test()
    torch.testing.assert_close(model.output, restore(network, model.lq, mode='local', patch_size=8, precision='fp32'))
    assert not torch.equal(model.output, restore(network, model.lq, precision='fp32'))
