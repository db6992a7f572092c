"""The inference modes against the authors' code's results and against their definitions."""

import re
from contextlib import ExitStack
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

import numpy as np
import pytest
import torch

from wrcan_arch import WRCAN, InputError, chop, inference, load_network, precision, restore
from wrcan_arch.strips import sizes as strip_sizes
from wrcan_arch.strips.network import is_as_built
from wrcan_arch.strips.sizes import StripSizes

CPU = torch.device('cpu')
NUM_FEAT = 8  # of small_network


@pytest.mark.parametrize(
    ('options', 'name'),
    [
        ({'mode': 'exact'}, 'out.whole'),
        ({'mode': 'exact', 'ensemble': True}, 'out.x8'),
        ({'mode': 'chop'}, 'out.chop36'),
        ({'mode': 'chop', 'ensemble': True}, 'out.x8_chop36'),
    ],
)
def test_each_mode_is_the_official_codes(golden, official_weights, options, name):
    restored = restore(load_network(official_weights), golden['in.blurred'], precision='fp32', **options)
    torch.testing.assert_close(restored, golden[name], rtol=1e-5, atol=1e-5)


def small_network():
    torch.manual_seed(0)
    return WRCAN(num_feat=NUM_FEAT, num_group=1, num_block=1).eval()


def test_default_is_the_plain_forward():
    network, image = small_network(), torch.rand(2, 3, 13, 18)
    with torch.no_grad():
        expected = network(image)
    restored = restore(network, image, precision='fp32')
    assert restored.shape == image.shape and (restored - expected).norm() / expected.norm() < 1e-5


def test_another_network_runs_whole():
    network, image = torch.nn.Conv2d(3, 3, 5, padding=2), torch.rand(1, 3, 13, 18)
    with torch.no_grad():
        expected = network(image)
    torch.testing.assert_close(restore(network, image, precision='fp32'), expected)
    torch.testing.assert_close(restore(network, image, precision='bf16'), expected, rtol=0, atol=0.02)
    with pytest.raises(InputError, match='mode local needs a WRCAN .* not this Conv2d'):
        restore(network, image, mode='local')
    with pytest.raises(InputError, match='max_memory needs a WRCAN .*; this Conv2d takes whole images'):
        restore(network, image, max_memory=1 << 30)


def test_a_network_without_parameters_runs_where_its_buffers_are_or_on_the_cpu():
    image = torch.rand(1, 3, 13, 18)
    frozen = torch.jit.freeze(torch.jit.trace(torch.nn.Conv2d(3, 3, 3, padding=1).eval(), image))
    assert not [*frozen.parameters(), *frozen.buffers()], 'its weights are constants'
    torch.testing.assert_close(restore(frozen, image, precision='fp32'), frozen(image))
    assert inference.device_of(torch.nn.BatchNorm2d(3, affine=False).to('meta')).type == 'meta', 'it has only buffers'


class Doubled(WRCAN):
    def forward(self, *images):
        return 2 * WRCAN.forward(self, *images)


class Conv2d(torch.nn.Conv2d):
    def forward(self, features):
        return 2 * super().forward(features)


def changed_network(change):
    network = small_network()
    if change == 'class':
        network.__class__ = Doubled
    elif change == 'forward':
        network.forward = Doubled.forward.__get__(network)
    elif change == 'padding':
        network.body_conv.padding_mode = 'reflect'
    elif change == 'attention':
        block = network.groups[0].blocks[0]
        block.attention = torch.nn.Sequential(block.attention)
    elif change == 'forward of a part':
        network.tail.forward = lambda features: torch.ones(1, 3, *features.shape[2:])
    elif change == 'class of a part':
        network.tail.__class__ = Conv2d
    elif change == 'hook':
        network.expand.register_forward_hook(lambda module, given, made: 2 * made)
    elif change == 'hook before':
        network.expand.register_forward_pre_hook(lambda module, given: (2 * given[0],))
    return network


@pytest.mark.parametrize(
    'change',
    ['class', 'forward', 'forward of a part', 'class of a part', 'padding', 'attention', 'hook', 'hook before'],
)
def test_a_changed_network_runs_whole(change):
    network, image = changed_network(change), torch.rand(1, 3, 14, 18)
    with torch.no_grad():
        expected = network(image)
    restored = restore(network, image, precision='fp32')
    assert (restored - expected).norm() / expected.norm() < 1e-5


@pytest.mark.parametrize('register', ['register_module_forward_hook', 'register_module_forward_pre_hook'])
def test_a_hook_on_all_modules_makes_a_network_run_whole(register):
    hook = getattr(torch.nn.modules.module, register)(lambda *given: None)
    try:
        assert not is_as_built(small_network())
    finally:
        hook.remove()
    assert is_as_built(small_network())


def test_an_unchanged_network_runs_in_strips():
    for network in (small_network(), load_network()):
        with mock.patch.object(network, '_restore_and_autoencode', side_effect=AssertionError('not in strips')):
            restore(network, torch.rand(1, 3, 14, 18))


def test_checkpointed_network_runs_in_strips():
    network = small_network()
    network.groups[0].blocks[0].checkpointing = True
    assert is_as_built(network)


def test_arrays_of_either_order_of_bytes_are_taken():
    image = (np.random.default_rng(0).random((8, 9, 3)) * 65535).astype('>u2')
    restored = restore(small_network(), image, precision='fp32')
    np.testing.assert_array_equal(restored, restore(small_network(), image.astype(np.uint16), precision='fp32'))


@pytest.mark.parametrize('size', [(1, 1), (1, 7), (9, 2), (33, 47)])
def test_chop_and_ensemble_take_any_size(size):
    image = torch.rand(1, 3, *size)
    assert torch.equal(chop.restore_chop(lambda part: part, image), image)
    for options in ({'mode': 'chop'}, {'ensemble': True}):
        restored = restore(small_network(), image, precision='fp32', **options)
        assert restored.shape == (1, 3, *size) and restored.isfinite().all()


def test_chop_joins_the_right_parts(monkeypatch):
    monkeypatch.setattr(chop, 'CHOP_SHAVE', 3)
    image = torch.rand(1, 3, 21, 30)
    assert torch.equal(chop.restore_chop(lambda part: part, image), image)
    sizes = []
    monkeypatch.setattr(chop, 'CHOP_PIXELS', 21 * 30)
    chop.restore_chop(lambda part: sizes.append(part.shape[2:]) or part, image)
    assert len(sizes) == 16 and max(height * width for height, width in sizes) < 21 * 30 / 4


def test_chop_cuts_a_frame_of_reds_once():
    sizes = []
    chop.restore_chop(lambda part: sizes.append(tuple(part.shape[2:])) or part, torch.rand(1, 3, 720, 1280))
    assert sizes == [(360 + 36, 640 + 36)] * 4
    sizes.clear()
    chop.restore_chop(lambda part: sizes.append(part.shape) or part, torch.empty(1, 3, 1000, 1280))
    assert len(sizes) == 16, 'from 1,280,000 pixels on they cut again'


@pytest.mark.parametrize(
    ('newer', 'name', 'tf32', 'exact'), [(True, 'fp32_precision', 'tf32', 'ieee'), (False, 'allow_tf32', True, False)]
)
def test_fp32_is_not_rounded_to_tf32_on_a_gpu(monkeypatch, newer, name, tf32, exact):
    switch = SimpleNamespace(**{name: tf32})
    cudnn = SimpleNamespace(conv=switch, allow_tf32=True) if newer else switch
    cudnn.benchmark = True
    monkeypatch.setattr(torch.backends, 'cudnn', cudnn)
    with pytest.raises(RuntimeError), precision.exact_convolutions(torch.device('cuda')):
        assert getattr(switch, name) == exact and not cudnn.benchmark
        raise RuntimeError
    assert getattr(switch, name) == tf32 and cudnn.benchmark
    with precision.exact_convolutions(torch.device('cpu')):
        assert getattr(switch, name) == tf32


@pytest.mark.parametrize('image', [torch.rand(1, 3, 8, 8), np.zeros((8, 8, 3), np.uint8)], ids=['tensor', 'array'])
def test_a_network_runs_without_tf32(image):
    seen = set()

    def note(_):
        seen.add((exact.return_value.__enter__.called, exact.return_value.__exit__.called))

    with mock.patch.object(inference, 'exact_convolutions') as exact:
        restore(small_network(), image, progress=note)
    assert exact.call_args.args == (CPU,) and seen == {(True, False)}


def test_fp32_is_exact_until_the_last_thread_has_left(monkeypatch):
    switch = SimpleNamespace(fp32_precision='tf32')
    monkeypatch.setattr(torch.backends, 'cudnn', SimpleNamespace(conv=switch, allow_tf32=True, benchmark=True))
    first, second = ExitStack(), ExitStack()
    for stack in (first, second):
        stack.enter_context(precision.exact_convolutions(torch.device('cuda')))
    first.close()
    assert switch.fp32_precision == 'ieee'
    second.close()
    assert switch.fp32_precision == 'tf32'


def test_pytorchs_own_switch_of_precision_is_put_back_as_somebody_set_it():
    """Once the newer switch was set, PyTorch raises when the older one is read."""
    cudnn = torch.backends.cudnn
    newer = hasattr(cudnn, 'conv')
    switch, name = (cudnn.conv, 'fp32_precision') if newer else (cudnn, 'allow_tf32')
    exact, tf32 = ('ieee', 'tf32') if newer else (False, True)
    before = getattr(switch, name)
    try:
        for chosen in (exact, tf32):
            setattr(switch, name, chosen)
            restore(small_network(), torch.rand(1, 3, 8, 8), precision='fp32')
            with precision.exact_convolutions(torch.device('cuda')):
                assert getattr(switch, name) == exact
            assert getattr(switch, name) == chosen
    finally:
        setattr(switch, name, before)


def test_the_older_switch_can_be_read_while_tf32_is_off():
    """Reading `allow_tf32` raises if only the newer switch is off, and so does `flags`, which a network may use."""
    cudnn = torch.backends.cudnn
    assert cudnn.allow_tf32, 'as PyTorch has it by default'
    before = [getattr(cudnn, name).fp32_precision for name in ('conv', 'rnn') if hasattr(cudnn, name)]
    with precision.exact_convolutions(torch.device('cuda')):
        assert not cudnn.allow_tf32
        with cudnn.flags():
            pass
    assert cudnn.allow_tf32
    assert before == [getattr(cudnn, name).fp32_precision for name in ('conv', 'rnn') if hasattr(cudnn, name)]


def test_without_a_limit_most_of_what_is_free_is_used(monkeypatch):
    network, image = small_network(), np.zeros((800, 300, 3), np.uint8)
    needed = StripSizes(NUM_FEAT, (800, 300), torch.float32, CPU).bytes_needed(1) + 6 * 800 * 300
    monkeypatch.setattr(inference, 'free_memory', lambda device: int(needed / 0.8) + 1000)
    restore(network, image, precision='fp32')
    monkeypatch.setattr(inference, 'free_memory', lambda device: int(needed / 0.9))
    with pytest.raises(InputError, match='are available; scale the image down, or free some'):
        restore(network, image, precision='fp32')


@pytest.mark.parametrize('mode', ['exact', 'local'])
def test_ensemble_is_the_mean_over_flips_and_transposes(mode):
    network, image = small_network(), torch.rand(1, 3, 9, 14)
    network.metadata = {'patch_size': 8}
    options = {'mode': mode, 'precision': 'fp32'}
    total = torch.zeros_like(image)
    for transpose in (False, True):
        for axes in ((), (2,), (3,), (2, 3)):
            turned = (image.transpose(2, 3) if transpose else image).flip(axes)
            restored = restore(network, turned, **options).flip(axes)
            total += restored.transpose(2, 3) if transpose else restored
    torch.testing.assert_close(restore(network, image, ensemble=True, **options), total / 8, rtol=1e-5, atol=1e-6)


def test_local_takes_the_patch_size_of_the_weights():
    network, image = small_network(), torch.rand(1, 3, 40, 40)
    with pytest.raises(InputError, match='do not say their patch size'):
        restore(network, image, mode='local')
    network.metadata = {'patch_size': 16}
    local = restore(network, image, mode='local')
    assert torch.equal(local, restore(network, image, mode='local', patch_size=np.int64(16)))
    windows = []
    with mock.patch.object(inference, 'restore_in_strips', lambda *_, **options: windows.append(options['window'])):
        restore(network, image, mode='local')
        restore(network, image, mode='local', patch_size=3)
    assert windows == [16 // 4, 1], 'of the features, at a quarter of the size'
    assert not torch.equal(local, restore(network, image))
    assert torch.equal(restore(network, image, mode='local', patch_size=40), restore(network, image))


@pytest.mark.parametrize('dtype', [np.uint8, np.uint16, np.float32, np.float64])
def test_views_and_arrays_that_cannot_be_written_are_images_too(dtype):
    image = np.random.default_rng(0).integers(0, 256, (20, 15, 3)).astype(dtype)
    image = image / 255 if np.issubdtype(dtype, np.floating) else image
    expected = restore(small_network(), np.ascontiguousarray(image[::-1, ::2]))
    image.flags.writeable = False
    np.testing.assert_array_equal(restore(small_network(), image[::-1, ::2]), expected)


def test_float_arrays_are_neither_clamped_nor_rounded():
    network, image = small_network(), np.random.default_rng(0).random((12, 15, 3), np.float32)
    restored = restore(network, image, precision='fp32')
    tensor = restore(network, torch.from_numpy(image).permute(2, 0, 1)[None], precision='fp32')
    assert restored.dtype == np.float32 and restored.min() < 0
    np.testing.assert_array_equal(restored, tensor[0].permute(1, 2, 0).numpy())


def test_what_is_not_finite_is_computed_again_in_fp32():
    network = small_network()
    with torch.no_grad():
        for parameter in network.decoders[0].conv.parameters():
            parameter *= 3e6  # fp16 ends at 65,504
    image = torch.rand(1, 3, 8, 8)
    with pytest.warns(RuntimeWarning, match='torch.float16 was not finite; computed again in fp32'):
        restored = restore(network, image, precision='fp16')
    assert torch.equal(restored, restore(network, image, precision='fp32')) and restored.isfinite().all()


@pytest.mark.parametrize('ensemble', [False, True])
@pytest.mark.parametrize('mode', ['exact', 'chop'])
def test_damaged_weights_do_not_become_black_pixels(mode, ensemble):
    network = small_network()
    network.tail.bias.data[0] = torch.nan
    with pytest.raises(InputError, match='its weights are damaged'):
        restore(network, np.zeros((8, 8, 3), np.uint8), precision='fp32', mode=mode, ensemble=ensemble)
    floats = restore(network, torch.zeros(1, 3, 8, 8), precision='fp32', mode=mode, ensemble=ensemble)
    assert floats.isnan().any()


def test_max_memory_is_kept_to_or_refused(monkeypatch):
    network, image = (
        small_network(),
        np.zeros((3200, 300, 3), np.uint8),
    )  # so tall that the blocks need more memory than encoder and decoder
    rows = []
    monkeypatch.setattr(inference, 'restore_in_strips', lambda *_, **options: rows.append(options['strip_rows']))
    needed = StripSizes(NUM_FEAT, (3200, 300), torch.float32, CPU).bytes_needed(1)
    for budget in (None, 10 * needed, needed + 7 * 3200 * 300):
        restore(network, image, precision='fp32', max_memory=budget)
    assert rows[0] == rows[1] > rows[2] >= 1
    enough = StripSizes(NUM_FEAT, (3200, 300), torch.float32, CPU).bytes_needed(rows[0]) + 6 * 3200 * 300
    restore(network, image, precision='fp32', max_memory=enough - 1)  # image and result are held beside the strips
    assert rows[3] < rows[0]
    with pytest.raises(InputError, match=r'300 x 3200 pixels need .* MB .* 1 MB are available.* raise --max-memory'):
        restore(network, image, precision='fp32', max_memory=1 << 20)


@pytest.mark.parametrize(
    ('height', 'precision', 'rows'),
    [
        (256, 'fp32', 32),
        (236, 'fp32', 60),
        (4, 'fp32', 2),
        (325, 'fp32', 28),
        (1000, 'fp32', 36),
        (1000, 'bf16', 64),
    ],
)
def test_strips_are_of_about_one_height(monkeypatch, height, precision, rows):
    """Strips have an even number of feature rows, up to 40 (80 in bf16); 59 are one strip; 64 are not 40 and 24."""
    network, taken = small_network(), []
    row = 4 * network.config['num_feat'] * 8
    monkeypatch.setattr(strip_sizes, 'CPU_STRIP', 4 * 40 * row)
    monkeypatch.setattr(strip_sizes, 'CPU_WHOLE', 59 * row)
    monkeypatch.setattr(inference, 'restore_in_strips', lambda *_, **options: taken.append(options['strip_rows']))
    restore(network, np.zeros((height, 32, 3), np.uint8), precision=precision)
    assert taken == [rows]


@pytest.mark.parametrize('ensemble', [False, True])
@pytest.mark.parametrize('mode', ['exact', 'chop'])
def test_progress_is_told_over_a_batch_and_its_turns(mode, ensemble):
    shares, image = [], torch.rand(2, 3, 9, 20)
    restore(small_network(), image, mode=mode, ensemble=ensemble, precision='fp32', progress=shares.append)
    assert shares == sorted(set(shares)) and shares[-1] == 1
    parts = 16 if ensemble else 2
    assert {part / parts for part in range(1, parts)} <= set(shares) and len(shares) % parts == 0


@pytest.mark.parametrize(('dtype', 'peak'), [(np.uint8, 255), (np.uint16, 65535)])
def test_arrays_come_back_rounded_and_clipped_in_their_own_type(dtype, peak):
    network = small_network()
    image = np.random.default_rng(0).integers(0, peak + 1, (12, 15, 3)).astype(dtype)
    restored = restore(network, image, precision='fp32')
    tensor = torch.from_numpy(image.astype(np.float32) / peak).permute(2, 0, 1)[None]
    with torch.no_grad():
        expected = (network(tensor)[0].permute(1, 2, 0).clamp(0, 1) * peak).round().numpy()
    assert restored.dtype == dtype
    np.testing.assert_array_equal(restored, expected.astype(dtype))


@pytest.mark.parametrize('mode', ['exact', 'chop'])
def test_lower_precision_stays_near_fp32(golden, official_weights, mode):
    network = load_network(official_weights)
    exact = restore(network, golden['in.blurred'], mode=mode, precision='fp32')
    near = restore(network, golden['in.blurred'], mode=mode, precision='bf16')
    assert near.dtype == torch.float32 and not torch.equal(near, exact)
    assert (near - exact).norm() / exact.norm() < 0.01
    assert (near - exact).abs().max() < 0.01


@pytest.mark.parametrize('size', [(60, 4), (60, 1), (3, 60), (1, 1)])
@pytest.mark.parametrize('options', [{'mode': 'exact'}, {'mode': 'chop'}, {'ensemble': True}])
def test_an_image_that_leaves_a_map_one_position_wide_is_computed_in_fp32(size, options):
    image = torch.rand(1, 3, *size)
    restored = restore(small_network(), image, precision='bf16', **options)
    assert torch.equal(restored, restore(small_network(), image, precision='fp32', **options))


@pytest.mark.parametrize('precision', ['bf16', 'fp16'])
def test_lower_precision_leaves_a_photograph_its_depth(precision):
    """The image bypasses the network in fp32: bf16 has 8 bits, and less than 128 levels between 0.5 and 1."""
    ramp = np.broadcast_to(np.linspace(0.5, 0.95, 512)[None, :, None], (32, 512, 3))
    image = (ramp * 65535).astype(np.uint16)
    network = load_network()
    exact, near = (restore(network, image, precision=each).astype(int) for each in ('fp32', precision))
    assert len(np.unique(near[..., 1])) > 0.9 * len(np.unique(exact[..., 1])) > 3000
    assert np.abs(near - exact).mean() < 0.1 * 257, 'a tenth of a grey level'


def test_units_for_bf16_are_those_that_the_kernel_tells_of():
    cpuinfo = Path('/proc/cpuinfo')
    flags = re.search(r'^flags\b.*', cpuinfo.read_text() if cpuinfo.exists() else '', re.MULTILINE)
    if not flags:
        pytest.skip('no x86 processor, or no Linux')
    asks = {'amx_tile': '_is_amx_tile_supported', 'avx512_bf16': '_is_avx512_bf16_supported'}  # not in every release
    assert any(hasattr(torch.cpu, name) for name in asks.values()), 'else auto is fp32 everywhere'
    has_units = any(flag in flags[0].split() and hasattr(torch.cpu, name) for flag, name in asks.items())
    assert precision.has_bf16_units(CPU) == has_units


def test_auto_precision_is_bf16_where_there_are_units(monkeypatch):
    for units, dtype in ((True, torch.bfloat16), (False, torch.float32)):
        monkeypatch.setattr(precision, 'has_bf16_units', lambda device, units=units: units)
        assert precision.dtype_for('auto', torch.device('cpu')) == dtype


@pytest.mark.parametrize(
    ('image', 'options', 'message'),
    [
        (torch.rand(1, 3, 8, 8), {'mode': 'tile'}, "inference mode 'tile' is not one of exact, local, chop"),
        (torch.rand(1, 3, 8, 8), {'precision': 'fp8'}, "precision 'fp8' is not one of auto, fp32, bf16, fp16"),
        (np.zeros((8, 8), np.uint8), {}, r'must be uint8, uint16 or float \(H, W, 3\), not uint8 \(8, 8\)'),
        (np.zeros((8, 8, 3), np.int32), {}, r'must be uint8, uint16 or float \(H, W, 3\), not int32'),
        (np.zeros((0, 8, 3), np.uint8), {}, r'not uint8 \(0, 8, 3\)'),
        (torch.zeros(3, 8, 8), {}, r'must be float \(B, 3, H, W\), not torch.float32 \(3, 8, 8\)'),
        (torch.zeros(1, 3, 8, 8, dtype=torch.uint8), {}, 'must be float'),
        (torch.zeros(1, 3, 0, 8), {}, r'not torch.float32 \(1, 3, 0, 8\)'),
        (torch.rand(1, 3, 8, 8), {'patch_size': 0}, "patch_size is a whole number from 1 up, not '0'"),
        (
            torch.rand(1, 3, 8, 8),
            {'patch_size': 8},
            'patch_size is for the mode local, .* not for exact',
        ),
        (torch.rand(1, 3, 8, 8), {'max_memory': 1, 'mode': 'chop'}, 'max_memory is for the modes exact and local'),
        (torch.rand(1, 3, 8, 8), {'max_memory': '4G'}, "max_memory is a whole number from 1 up, not '4G'"),
        ([[1, 2, 3]], {}, 'an image must be a NumPy array or a tensor, not list'),
    ],
)
def test_wrong_requests_are_clear_errors(image, options, message):
    with pytest.raises(InputError, match=message):
        restore(small_network(), image, **options)


@pytest.mark.parametrize('mode', ['exact', 'chop', 'input'])
def test_another_network_may_have_any_number_of_channels(mode):
    image = torch.rand(2, 1, 9, 12)
    network = torch.nn.Conv2d(1, 1, 1)
    expected = image if mode == 'input' else network(image)
    for ensemble in (False, True):
        restored = restore(network, image, mode=mode, ensemble=ensemble, precision='fp32')
        torch.testing.assert_close(restored, expected)
    pixels = np.zeros((9, 12, 1), np.uint8)
    assert restore(network, pixels, mode=mode).shape == pixels.shape
    with pytest.raises(InputError, match=r'float \(H, W, C\), not uint8 \(9, 12\)'):
        restore(network, pixels[..., 0], mode=mode)


@pytest.mark.parametrize('mode', ['exact', 'chop'])
def test_a_network_that_enlarges_is_a_clear_error(mode):
    network = torch.nn.Sequential(torch.nn.Conv2d(3, 12, 1), torch.nn.PixelShuffle(2))
    with pytest.raises(InputError, match=r'the network turns \(1, 3, .*\) into \(1, 3, .*\), not a restored image'):
        restore(network, torch.rand(1, 3, 8, 8), mode=mode)


def test_wrong_networks_are_clear_errors():
    network = small_network()
    network.tail.half()
    with pytest.raises(InputError, match=r'weights must be torch.float32 .*: tail.weight is torch.float16 on cpu'):
        restore(network, torch.rand(1, 3, 8, 8))
    with pytest.raises(InputError, match='head.weight is torch.float32 on meta'):
        restore(network.float().to('meta'), torch.rand(1, 3, 8, 8))
    with pytest.raises(InputError, match='the network turns 3 channels into 1, not a restored image'):
        restore(WRCAN(num_feat=4, num_group=1, num_block=1, num_out_ch=1), torch.rand(1, 3, 8, 8))


@pytest.mark.parametrize('ensemble', [False, True])
@pytest.mark.parametrize('mode', ['exact', 'local', 'chop'])
def test_result_is_the_same_within_autocast_and_whatever_the_defaults(mode, ensemble):
    network, image = small_network(), torch.rand(1, 3, 21, 30)
    network.metadata = {'patch_size': 8}
    options = {'mode': mode, 'ensemble': ensemble, 'precision': 'fp32'}
    expected = restore(network, image, **options)
    with torch.autocast('cpu', torch.bfloat16):
        assert torch.equal(restore(network, image, **options), expected)
    with torch.device('meta'):
        assert torch.equal(restore(network, image, **options), expected)
    try:
        for dtype in (torch.float16, torch.float64):
            torch.set_default_dtype(dtype)
            assert torch.equal(restore(network, image, **options), expected)
    finally:
        torch.set_default_dtype(torch.float32)


@pytest.mark.parametrize('has_onednn', [True, False])
def test_where_convolutions_unfold_their_input_more_memory_is_asked(monkeypatch, has_onednn):
    network, image = small_network(), np.zeros((12, 12, 3), np.uint8)
    monkeypatch.setattr(strip_sizes, 'onednn_computes_in', lambda dtype: True)
    plain = StripSizes(NUM_FEAT, (12, 12), torch.bfloat16, CPU).bytes_needed(1)
    monkeypatch.setattr(strip_sizes, 'onednn_computes_in', lambda dtype: has_onednn)
    needed = StripSizes(NUM_FEAT, (12, 12), torch.bfloat16, CPU).bytes_needed(1)
    for ensemble, a_pixel in ((False, 3 + 3), (True, 3 + 12)):  # bytes: the image, and its result or the turns' sum
        budget = needed + a_pixel * 12 * 12
        restore(network, image, ensemble=ensemble, precision='bf16', max_memory=budget)
        with pytest.raises(InputError, match='12 x 12 pixels need .* MB of memory'):
            restore(network, image, ensemble=ensemble, precision='bf16', max_memory=budget - 1)
    assert (needed > plain) is not has_onednn


def test_without_onednn_convolutions_unfold_in_fp32_too():
    network, image = small_network(), np.zeros((8, 12, 3), np.uint8)
    enough = StripSizes(NUM_FEAT, (8, 12), torch.float32, CPU).bytes_needed(1) + 6 * 8 * 12
    restore(network, image, precision='fp32', max_memory=enough)
    with torch.backends.mkldnn.flags(enabled=False), pytest.raises(InputError, match='12 x 8 pixels need'):
        restore(network, image, precision='fp32', max_memory=enough)


@pytest.mark.parametrize('turn', inference.ALL_TURNS)
def test_rows_of_a_turned_image_are_added_where_they_were(turn):
    """The rows come in strips, as those of a large image do."""
    image = np.random.default_rng(0).random((7, 5, 3), np.float32)
    total, turned = torch.zeros(image.shape), torch.from_numpy(turn(image).copy())
    for start in range(0, len(turned), 2):
        span = start, min(start + 2, len(turned))
        turn.add_rows(total, span, turned[slice(*span)])
    assert np.array_equal(total.numpy(), image)
