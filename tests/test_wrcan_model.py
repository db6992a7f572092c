"""WRCANModel alone: the joint step, its losses, what it saves. Whole runs are in test_end_to_end.py."""

import json
import os
import re
import shutil
from copy import deepcopy
from hashlib import sha256
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

import pytest
import torch
import yaml
from basicsr.models import build_model
from conftest import SMALL_TRAINING
from fresh import run_python

from wrcan_arch import InputError, WRCANModel, restore
from wrcan_arch.checkpoint import read_file, read_weights
from wrcan_arch.errors import RunError
from wrcan_arch.train import options, scoring
from wrcan_arch.wrcan_arch import ChannelAttention

HOST_IS_FULL = RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes.")


@pytest.fixture
def opt(tmp_path):
    opt = yaml.load(SMALL_TRAINING, options.OptionLoader)
    paths = {'experiments_root': str(tmp_path)}
    for folder in ('models', 'training_states'):
        (tmp_path / folder).mkdir()
    return {**opt, 'path': paths, 'dist': False, 'rank': 0, 'world_size': 1, 'is_train': True}


def batch():
    torch.manual_seed(0)
    return {name: torch.rand(2, 3, 16, 16) for name in ('lq', 'gt', 'gt_jpeg')}


def test_toolbox_builds_it(opt):
    assert isinstance(build_model(opt), WRCANModel)


@pytest.mark.parametrize(('asked', 'fused'), [({}, True), ({'foreach': True}, False), ({'fused': False}, False)])
def test_adam_is_fused_unless_another_way_is_asked_for(opt, asked, fused):
    opt['train']['optim_g'] |= asked
    assert build_model(opt).optimizer_g.defaults['fused'] is fused


def test_a_training_can_start_from_the_image(opt):
    for starts, gives_it_back in ((True, True), (False, False)):
        opt['train']['start_from_image'] = starts
        blurred = batch()['lq']
        assert torch.allclose(build_model(opt).net_g(blurred), blurred, atol=1e-6) is gives_it_back


@pytest.mark.parametrize('channels_last', [False, True])
def test_averaged_weights_go_a_part_of_the_way(opt, channels_last):
    opt['train'] |= {'ema_decay': 0.75, 'channels_last': channels_last}
    model = build_model(opt)
    before = deepcopy(model.net_g.state_dict())
    model.feed_data(batch())
    model.optimize_parameters(1)
    averaged, after = model.net_g_ema.state_dict(), model.net_g.state_dict()
    assert not torch.equal(after['tail.weight'], before['tail.weight'])
    for name, now in after.items():
        torch.testing.assert_close(averaged[name], 0.75 * before[name] + 0.25 * now, rtol=1e-6, atol=1e-8)
        assert averaged[name].stride() == now.stride()  # else averaging would read memory in two orders


def test_step_is_equation_9(opt):
    """The reference computes L1 + 0.1 MSE in two passes through a copy of the network, with torch's Adam."""
    torch.manual_seed(0)
    model = build_model(opt)
    network = deepcopy(model.net_g)
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-3, betas=(0.9, 0.999))
    data = batch()
    for _ in range(3):
        model.feed_data(data)
        model.optimize_parameters(1)

        restored = network(data['lq'])
        with mock.patch.object(network.body_conv, 'forward', torch.zeros_like):  # f_NLT := f_EXP
            autoencoded = network(data['gt_jpeg'])
        l_pix = (restored - data['gt']).abs().mean()
        l_ae = 0.1 * ((autoencoded - data['gt']) ** 2).mean()
        optimizer.zero_grad()
        (l_pix + l_ae).backward()
        optimizer.step()
        assert model.get_current_log() == pytest.approx({'l_pix': l_pix.item(), 'l_ae': l_ae.item()}, rel=1e-5)
    for ours, plain in zip(model.net_g.parameters(), network.parameters(), strict=True):
        torch.testing.assert_close(ours, plain, rtol=1e-4, atol=1e-6)


def test_perceptual_losses_are_added_and_logged(opt):
    model = build_model(opt)
    model.cri_pix = model.cri_ae = None
    for percep, style in ((3, None), (None, 6), (3, 6)):
        weights = {name: weight for name, weight in (('l_percep', percep), ('l_style', style)) if weight}
        model.cri_perceptual = lambda output, _, each=(percep, style): [w and w * output.mean() for w in each]
        model.feed_data(batch())
        model.optimize_parameters(1)
        mean, sums = model.output.mean().item(), sum(weights.values())
        assert model.get_current_log() == pytest.approx({name: weight * mean for name, weight in weights.items()})
        assert model.net_g.tail.bias.grad.tolist() == pytest.approx(3 * [sums / 3])


def test_freed_memory_is_kept_for_the_next_step():
    result = run_python(
        'import resource, torch\n'
        'from wrcan_arch.train.wrcan_model import keep_freed_memory\n'
        'def pages_got():\n'
        '    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt\n'
        '    for _ in range(5): torch.ones(1 << 24)\n'
        '    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before\n'
        'print(pages_got()); keep_freed_memory(); pages_got(); print(pages_got())\n'
    )
    given_back, kept = map(int, result.stdout.split())
    assert kept < given_back / 10, result.stderr


@pytest.mark.parametrize('is_train', [True, False])
def test_memory_is_kept_where_a_cpu_trains(opt, is_train):
    with mock.patch('wrcan_arch.train.wrcan_model.keep_freed_memory') as keep:
        build_model({**opt, 'is_train': is_train})
    assert keep.called is is_train


def test_bytes_become_floats_on_the_device(opt):
    model = build_model(opt)
    pixels = {name: (255 * value).byte() for name, value in batch().items()}
    model.feed_data(pixels)
    for name, value in pixels.items():
        assert torch.equal(getattr(model, name), value.float() / 255)


def test_losses_are_read_only_when_the_log_asks(opt):
    """Reading a loss makes the host wait for the GPU."""
    model = build_model(opt)
    model.feed_data(batch())
    model.optimizer_g.step = lambda: None  # Adam reads its step count with item()
    with mock.patch.object(torch.Tensor, 'item', side_effect=AssertionError('a loss was read')):
        model.optimize_parameters(1)
    assert set(model.get_current_log()) == {'l_pix', 'l_ae'}


def test_one_joint_forward_a_step(opt):
    model = build_model(opt)
    calls = []
    model.net_g.head.register_forward_hook(lambda _, inputs, __: calls.append(len(inputs[0])))
    model.feed_data(batch())
    model.optimize_parameters(1)
    assert calls == [4]


def test_fp16_scales_the_loss_and_keeps_the_scale(opt, tmp_path):
    opt['train']['amp'] = 'fp16'
    with mock.patch('torch.amp.GradScaler', wraps=torch.amp.GradScaler) as made:
        model = build_model(opt)
    assert made.call_args.kwargs == {'enabled': True} and model.amp_dtype == torch.float16
    model.scaler.scale(torch.ones(()))
    model.scaler.update(1024.0)
    model.save(0, 3)
    other = build_model(opt)
    other.resume_training(read_file(tmp_path / 'training_states' / '3.state'))
    assert other.scaler.get_scale() == 1024.0


def test_parts_of_a_batch_that_memory_asked_for_are_kept(opt, tmp_path):
    opt['train']['accumulate'] = 'auto'
    model = build_model(opt)
    model.accumulate = 4
    model.save(0, 3)
    other = build_model(opt)
    other.resume_training(read_file(tmp_path / 'training_states' / '3.state'))
    assert other.accumulate == 4, 'other parts would round otherwise'


def test_saved_file_says_what_it_is(opt, tmp_path):
    opt['datasets']['train']['blurred_quality'] = [15, 95]  # of the blurred input; jpeg_quality, the loss's, is 25
    model = build_model(opt)
    model.save(0, 5)
    tensors, about = read_weights(tmp_path / 'models' / 'net_g_5.pth')
    assert (about['network_g'], about['name'], about['iter']) == (opt['network_g'], 'small', 5)
    assert (about['patch_size'], about['jpeg_quality']) == (32, [15, 95])
    assert about['options_sha256'] is None and re.fullmatch('[0-9a-f]{40}(-dirty)?|None', str(about['commit']))
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


def test_weights_of_any_form_can_be_fine_tuned(opt, official_weights):
    opt['network_g'] = {'type': 'WRCAN', 'num_feat': 8, 'num_group': 2, 'num_block': 3}
    opt['path']['pretrain_network_g'] = str(official_weights)
    model = build_model(opt)
    tensors, _ = read_weights(official_weights)
    assert all(torch.equal(value, tensors[name]) for name, value in model.net_g.state_dict().items())
    opt['network_g']['num_block'] = 2
    with pytest.raises(InputError, match=r'; set network_g:num_block=3$') as error:
        build_model(opt)
    assert 'official_small.pt: not the weights of the network' in str(error.value) and '\n' not in str(error.value)


@pytest.mark.parametrize(
    ('section', 'value', 'message'),
    [
        ('val', {'inference': {'ensembel': True}}, "val:inference: .*unexpected keyword argument 'ensembel'"),
        ('val', {'inference': {'mode': 'tile'}}, "inference mode 'tile' is not one of"),
        ('val', {'inference': {'ensemble': 'x8'}}, "ensemble is true or false, not 'x8'"),
    ],
)
def test_wrong_inference_is_found_before_training(opt, section, value, message):
    with pytest.raises(InputError, match=message):
        build_model({**opt, section: value})


def test_loss_without_its_input_is_an_error(opt):
    model = build_model(opt)
    data = batch()
    del data['gt_jpeg']
    model.feed_data(data)
    with pytest.raises(InputError, match='set jpeg_quality on a JPEGDeblurDataset, or leave the loss out'):
        model.optimize_parameters(1)


def test_deterministic_kernels_are_taken_where_asked_for(opt, monkeypatch):
    monkeypatch.setenv('CUBLAS_WORKSPACE_CONFIG', '')  # so that monkeypatch restores it
    monkeypatch.delenv('CUBLAS_WORKSPACE_CONFIG')
    monkeypatch.setattr(torch.backends.cudnn, 'benchmark', True)  # like the toolbox
    build_model(opt)
    assert torch.backends.cudnn.benchmark and not torch.are_deterministic_algorithms_enabled()
    try:
        model = build_model({**opt, 'deterministic': True})
        assert torch.are_deterministic_algorithms_enabled() and not torch.backends.cudnn.benchmark
        assert os.environ['CUBLAS_WORKSPACE_CONFIG'] == ':4096:8'
        model.feed_data(batch())
        model.optimize_parameters(1)
    finally:
        torch.use_deterministic_algorithms(False)


@pytest.mark.parametrize('parts', [2, 3, 4])
def test_accumulated_parts_are_the_whole_batch(opt, parts):
    """16 patches at once or in parts, even of unequal sizes, give the same weights."""
    torch.manual_seed(0)
    data = {name: torch.rand(16, 3, 16, 16) for name in ('lq', 'gt', 'gt_jpeg')}
    whole = build_model(opt)
    opt['train']['accumulate'] = parts
    split = build_model(opt)
    split.net_g.load_state_dict(whole.net_g.state_dict())
    calls = []
    split.net_g.head.register_forward_hook(lambda _, inputs, __: calls.append(len(inputs[0])))
    for _ in range(3):
        for model in (whole, split):
            model.feed_data(data)
            model.optimize_parameters(1)
        assert split.get_current_log() == pytest.approx(whole.get_current_log(), rel=1e-5)
    assert len(calls) == 3 * parts and sum(calls) == 3 * 32
    for ours, expected in zip(split.net_g.parameters(), whole.net_g.parameters(), strict=True):
        torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize('error', [torch.cuda.OutOfMemoryError('CUDA out of memory. Tried'), HOST_IS_FULL])
def test_auto_accumulation_halves_until_it_fits(opt, error):
    opt['train']['accumulate'] = 'auto'
    model = build_model(opt)
    forward = model.net_g.forward

    def forward_in_little_memory(lq, gt_jpeg):
        if len(lq) > 2:
            raise error
        return forward(lq, gt_jpeg)

    torch.manual_seed(0)
    model.net_g.forward = forward_in_little_memory
    model.feed_data({name: torch.rand(8, 3, 16, 16) for name in ('lq', 'gt', 'gt_jpeg')})
    model.optimize_parameters(1)
    assert model.accumulate == 4
    opt['train']['accumulate'] = 2
    model = build_model(opt)
    model.net_g.forward = forward_in_little_memory
    model.feed_data({name: torch.rand(8, 3, 16, 16) for name in ('lq', 'gt', 'gt_jpeg')})
    with pytest.raises(InputError, match=r'memory does not hold 8 patches in 2 part\(s\); set train:accumulate=auto'):
        model.optimize_parameters(1)


@pytest.mark.parametrize('size', [2, 6])
def test_a_single_patch_that_the_gpu_does_not_hold_ends_the_run(opt, size):
    opt['train']['accumulate'] = 'auto'
    model = build_model(opt)
    model.net_g.forward = mock.Mock(side_effect=torch.cuda.OutOfMemoryError('CUDA out of memory. Tried'))
    model.feed_data({name: torch.rand(size, 3, 16, 16) for name in ('lq', 'gt', 'gt_jpeg')})
    message = rf'not hold {size} patches in {size} part\(s\); set train:checkpointing=true, or a smaller gt_size'
    with pytest.raises(InputError, match=message):
        model.optimize_parameters(1)
    assert len(model.net_g.forward.call_args.args[0]) == 1


def test_memory_of_a_batch_from_a_side_stream_is_kept_until_it_is_read(opt):
    lq = mock.Mock(spec=torch.Tensor, is_cuda=True)
    lq.to.side_effect = lambda *_, **__: lq.record_stream.assert_called_once() or torch.rand(1, 3, 16, 16)
    with mock.patch('torch.cuda.current_stream') as stream:
        build_model(opt).feed_data({'lq': lq})
    lq.record_stream.assert_called_once_with(stream())


def test_a_loss_that_runs_out_of_memory_leaves_no_graph(opt):
    model = build_model(opt)
    model.cri_pix = mock.Mock(side_effect=torch.cuda.OutOfMemoryError('CUDA out of memory. Tried'))
    model.feed_data(batch())
    with pytest.raises(InputError):
        model.optimize_parameters(1)
    assert not model.output.requires_grad


def test_out_of_memory_with_several_processes_asks_for_a_number(opt):
    opt['train']['accumulate'] = 'auto'
    model = build_model(opt)
    model.opt |= {'dist': True, 'world_size': 2}
    model.feed_data(batch())
    full = torch.cuda.OutOfMemoryError('CUDA out of memory. Tried')
    out_of_memory = mock.patch.object(model, '_accumulate_gradients', side_effect=full)
    with out_of_memory, pytest.raises(InputError, match='set train:accumulate to 2 or more$'):
        model.optimize_parameters(1)
    with (
        out_of_memory,
        pytest.raises(RunError, match='set train:accumulate to 2 or more, and go on with --auto_resume'),
    ):
        model.optimize_parameters(7)


@pytest.mark.parametrize('saved_in', [True, False])
def test_moments_are_laid_out_as_their_weights_are_now(opt, saved_in):
    """A fused step assumes it; the saved layout may be that of another machine."""
    opt['train']['channels_last'] = saved_in
    model = build_model(opt)
    model.feed_data(batch())
    model.optimize_parameters(1)
    model.save(0, 1)
    weights = Path(opt['path']['experiments_root'], 'models/net_g_1.pth')
    state = read_file(Path(opt['path']['experiments_root'], 'training_states/1.state'))
    opt['train']['channels_last'] = not saved_in
    opt['path']['pretrain_network_g'] = str(weights)
    resumed = build_model(opt)
    resumed.resume_training(state)
    for each in (model, resumed):
        each.feed_data(batch())
        each.optimize_parameters(2)
    for weight, other in zip(model.net_g.parameters(), resumed.net_g.parameters(), strict=True):
        moment = resumed.optimizer_g.state[other]['exp_avg']
        assert moment.stride() == other.stride()
        torch.testing.assert_close(moment, model.optimizer_g.state[weight]['exp_avg'], rtol=1e-4, atol=1e-7)
        torch.testing.assert_close(weight, other, rtol=0, atol=1e-7)


@pytest.mark.parametrize(
    ('schedule', 'expected'),
    [
        ({'milestones': [8], 'gamma': 0.5}, 1),
        ({'milestones': [2, 8], 'gamma': 0.5}, 0.5),
        ({'milestones': [2, 4], 'gamma': 0.5, 'restarts': [0, 3], 'restart_weights': [1, 0.25]}, 0.125),
    ],
)
def test_warmup_ends_at_the_rate_that_is_there_without_it(opt, schedule, expected):
    opt['train']['scheduler'] = {'type': 'MultiStepLR', **schedule}
    opt['train']['total_iter'] = 20
    rates = []
    for warmup in (5, -1):
        model = build_model(opt)
        for iteration in range(1, 11):
            model.update_learning_rate(iteration, warmup_iter=warmup)
            model.optimizer_g.step()
            if iteration >= 5:
                rates.append(model.get_current_learning_rate()[0] / opt['train']['optim_g']['lr'])
    assert rates[:6] == pytest.approx(rates[6:])
    assert rates[0] == pytest.approx(expected)


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
    model._write_results('set', {'a': {'psnr': 30.0, 'ssim': 1.0}}, 0.1, save_img=False)
    result = json.loads((tmp_path / 'result_set.json').read_text())
    assert result['weights']['sha256'] == sha256(official_weights.read_bytes()).hexdigest()


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


def test_averaged_weights_are_validated(opt):
    opt['train']['ema_decay'] = 0.9
    model = build_model(opt)
    model.feed_data(batch())
    model.optimize_parameters(1)
    model.test()
    averaged, last = (restore(network, model.lq, precision='fp32') for network in (model.net_g_ema, model.net_g))
    assert torch.equal(model.output, averaged) and not torch.equal(averaged, last)


def test_local_validation_takes_the_patch_of_this_training(opt):
    """Not the patch size that the loaded weights were trained with."""
    opt['val']['inference'] = {'mode': 'local', 'precision': 'fp32'}
    opt['datasets']['train']['gt_size'] = 8
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
