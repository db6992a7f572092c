"""WRCANModel alone: the joint step, its losses, what it saves. Whole runs are in test_end_to_end.py."""

import os
from copy import deepcopy
from pathlib import Path
from unittest import mock

import pytest
import torch
from basicsr.models import build_model
from fresh import run_python

from wrcan_arch import InputError, WRCANModel
from wrcan_arch.checkpoint import read_file, read_weights
from wrcan_arch.errors import RunError

GPU_IS_FULL = torch.cuda.OutOfMemoryError('CUDA out of memory. Tried')
NO_ENGINE = RuntimeError('FIND was unable to find an engine to execute this computation')  # cuDNN, out of memory
HOST_IS_FULL = RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes.")


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


@pytest.mark.parametrize(
    ('named', 'keys'),
    [
        ({'key': ['a', 'b']}, ['a', 'b']),
        ({'key': torch.tensor([7, 8])}, ['7', '8']),
        ({'lq_path': ['c', 'd']}, ['c', 'd']),
    ],
)
def test_samples_are_named_for_the_log(opt, named, keys):
    model = build_model(opt)
    model.feed_data(batch() | named)
    assert model.keys == keys


def test_the_sharp_image_of_the_item_before_is_forgotten(opt):
    """Else a set that has none would be scored against it."""
    model = build_model(opt)
    model.feed_data(batch())
    model.feed_data({'lq': torch.rand(1, 3, 16, 16)})
    model.test()
    assert 'gt' not in model.get_current_visuals()


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


def test_a_network_that_returns_several_images_is_an_error(opt):
    del opt['train']['autoencoder_opt']
    model = build_model(opt)
    model.net_g.forward = lambda lq: [lq, lq]
    model.feed_data(batch())
    several = 'WRCAN returns a list; train it by a model that derives from WRCANModel and has its own _losses and test'
    with pytest.raises(InputError, match=f'^network_g:type: {several}$'):
        model.optimize_parameters(1)
    with pytest.raises(InputError, match='^the network returns a list, not one restored image$'):
        model.test()


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


@pytest.mark.parametrize('error', [GPU_IS_FULL, NO_ENGINE, HOST_IS_FULL])
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
            rate = model.get_current_learning_rate()[0] / opt['train']['optim_g']['lr']
            if iteration >= 5:
                rates.append(rate)
            elif warmup == 5:
                assert rate == pytest.approx(iteration / 5)
    assert rates[:6] == pytest.approx(rates[6:])
    assert rates[0] == pytest.approx(expected)
