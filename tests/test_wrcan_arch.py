"""The network against the paper's counts and against what the authors' code computed."""

import pytest
import torch
from basicsr.utils.registry import ARCH_REGISTRY

from wrcan_arch import WRCAN, InputError, load_network
from wrcan_arch.checkpoint import name_from_official
from wrcan_arch.train.jpeg_autoencoder_loss import jpeg_autoencoder_loss
from wrcan_arch.wrcan_arch import ChannelAttention

PAPER_PARAMETERS = [
    ({'block': 'wrca'}, 156_974_339),  # WRCAN
    ({'block': 'wr'}, 156_432_643),  # WRN
    ({'block': 'res', 'num_group': 1}, 22_500_867),  # Table 1, case 1
    ({'block': 'wr', 'num_group': 1}, 41_379_331),  # case 2
    ({'block': 'rca', 'num_group': 1}, 22_636_291),  # case 3
    ({'block': 'wrca', 'num_group': 1}, 41_514_755),  # case 4
]
SMALL = {'num_feat': 8, 'num_group': 2, 'num_block': 3}


@pytest.mark.parametrize(('options', 'expected'), PAPER_PARAMETERS)
def test_parameter_count_is_the_papers(options, expected):
    with torch.device('meta'):
        network = WRCAN(**options)
    assert sum(parameter.numel() for parameter in network.parameters()) == expected


def test_a_checkpointed_block_on_another_device_computes_with_its_own_weights():
    """DataParallel's replicas share all that a module holds except its weights."""
    block = WRCAN(num_feat=4, num_group=1, num_block=1).groups[0].blocks[0]
    block.checkpointing = True
    replica = block._replicate_for_data_parallel()
    replica._modules = {'branch': torch.nn.Identity(), 'attention': torch.nn.Identity()}
    features = torch.rand(1, 16, 3, 5, requires_grad=True)
    assert torch.equal(replica(features), 2 * features)


def test_attention_of_fp16_does_not_overflow():
    """The sum over the positions would overflow: fp16 ends at 65,504."""
    attention = ChannelAttention(16).half()
    features = torch.full((1, 16, 200, 200), 2.0, dtype=torch.float16)
    expected = attention.float()(features.float())
    torch.testing.assert_close(attention.half()(features).float(), expected, rtol=2e-3, atol=1e-3)


def test_is_registered():
    assert ARCH_REGISTRY.get('WRCAN') is WRCAN


def test_outputs_are_the_official_codes(golden, official_weights):
    network = load_network(official_weights)
    with torch.no_grad():
        whole = network(golden['in.blurred'])
        restored, autoencoded = network(golden['in.blurred'], golden['in.jpeg_sharp'])
    for ours, name in ((whole, 'out.whole'), (restored, 'out.whole'), (autoencoded, 'out.autoencoder')):
        torch.testing.assert_close(ours, golden[name], rtol=1e-5, atol=1e-5)


def test_three_training_steps_are_the_official_codes(golden, official_weights):
    network = load_network(official_weights).train()
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-4, weight_decay=1e-8)
    official = [name.removeprefix('gradnorm.') for name in golden if name.startswith('gradnorm.')]
    ours = dict(network.named_parameters())
    assert sorted(map(name_from_official, official)) == sorted(ours)

    for step in range(3):
        restored, autoencoded = network(golden['in.blurred'], golden['in.jpeg_sharp'])
        l1 = torch.nn.functional.l1_loss(restored, golden['in.sharp'])
        l_ae = jpeg_autoencoder_loss(autoencoded, golden['in.sharp'])
        losses = torch.stack([l1, l_ae]).detach().double()
        torch.testing.assert_close(losses, golden['train.losses'][step], rtol=1e-5, atol=1e-7)
        optimizer.zero_grad()
        (l1 + 0.1 * l_ae).backward()
        if step == 0:
            for name in official:
                expected = golden[f'gradnorm.{name}'].double().squeeze()
                norm = ours[name_from_official(name)].grad.double().norm()
                # A bias gradient sums 12,288 values that nearly cancel: the order of the sum alone moves the norm of
                # decoder.1.layers.0.bias by 2.1e-6 (threads, joint or two passes), and the golden value is itself
                # 1.0e-6 from the one computed in float64.
                atol = 3e-6 if name.endswith('bias') else 0
                torch.testing.assert_close(norm, expected, rtol=1e-5, atol=atol)
        optimizer.step()
    for name in official:
        expected = golden[f'after3.norm.{name}'].double().squeeze()
        norm = ours[name_from_official(name)].detach().double().norm()
        torch.testing.assert_close(norm, expected, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize('block', ['wrca', 'wr', 'rca', 'res'])
@pytest.mark.parametrize(('height', 'width'), [(1, 1), (1, 9), (2, 3), (5, 4), (17, 30)])
def test_any_size_restores_like_the_padded_image(block, height, width):
    torch.manual_seed(0)
    network = WRCAN(block=block, **SMALL)
    image = torch.rand(2, 3, height, width)
    padded = torch.nn.functional.pad(image, (0, -width % 4, 0, -height % 4), mode='replicate')
    with torch.no_grad():
        torch.testing.assert_close(network(image), network(padded)[:, :, :height, :width])


@pytest.mark.parametrize('traced_at', [(8, 8), (9, 11)])
def test_a_trace_takes_images_of_any_size(traced_at):
    network = WRCAN(**SMALL)
    traced = torch.jit.trace(network, torch.rand(1, 3, *traced_at))
    for size in ((8, 8), (9, 11), (12, 7), (1, 1), (16, 20)):
        image = torch.rand(2, 3, *size)
        torch.testing.assert_close(traced(image), network(image))


def test_a_trace_takes_batches_of_any_length():
    network = WRCAN(**SMALL)
    traced, exported = torch.jit.trace(network, torch.rand(1, 3, 8, 8)), torch.rand(3, 3, 8, 8)
    torch.testing.assert_close(traced(exported), network(exported))
    free = {'blurred': {0: torch.export.Dim('batch')}}
    program = torch.export.export(network, (torch.rand(2, 3, 8, 8),), dynamic_shapes=free)
    torch.testing.assert_close(program.module()(exported), network(exported))
    pair = (torch.rand(2, 3, 8, 8), torch.rand(2, 3, 8, 8))
    both, of_any_length = torch.jit.trace(network, pair), {**free, 'jpeg_sharp': free['blurred']}
    program = torch.export.export(network, pair, dynamic_shapes=of_any_length)
    for joint in (both, program.module()):
        torch.testing.assert_close(joint(exported, exported.flip(0)), network(exported, exported.flip(0)))


def test_an_export_for_any_size_holds_the_padding():
    """PyTorch's exporter to ONNX works on this graph; what it left out would be missing for other sizes."""
    free = {'blurred': {2: torch.export.Dim.AUTO, 3: torch.export.Dim.AUTO}}
    program = torch.export.export(WRCAN(**SMALL), (torch.rand(1, 3, 8, 8),), dynamic_shapes=free)
    assert torch.ops.aten.pad.default in [node.target for node in program.graph.nodes]


@pytest.mark.parametrize('block', ['wrca', 'wr', 'rca', 'res'])
def test_joint_pass_equals_two_passes_and_runs_each_convolution_once(block):
    torch.manual_seed(0)
    network = WRCAN(block=block, **SMALL)
    blurred, jpeg_sharp = torch.rand(2, 2, 3, 12, 16)
    calls: dict[str, list[int]] = {}
    for name, module in network.named_modules():
        if isinstance(module, torch.nn.Conv2d):
            module.register_forward_hook(
                lambda _, inputs, __, name=name: calls.setdefault(name, []).append(len(inputs[0]))
            )
    with torch.no_grad():
        restored, autoencoded = network(blurred, jpeg_sharp)
    assert 'body_conv' in calls and 'groups.1.conv' in calls
    for name, batches in calls.items():
        assert batches == [2 if name.startswith(('groups', 'body_conv')) else 4], name

    with torch.no_grad():
        torch.testing.assert_close(restored, network(blurred))
        groups, body_conv = network.groups, network.body_conv
        network.groups, network.body_conv = torch.nn.Identity(), torch.nn.Conv2d(32, 32, 1)
        torch.nn.init.zeros_(network.body_conv.weight)
        torch.nn.init.zeros_(network.body_conv.bias)  # f_NLT := f_EXP, which defines the auto-encoder path
        torch.testing.assert_close(autoencoded, network(jpeg_sharp))
        network.groups, network.body_conv = groups, body_conv


@pytest.mark.parametrize(
    ('image', 'error', 'message'),
    [
        (torch.rand(1, 1, 8, 8), ValueError, r'must be \(B, 3, H, W\).*\(1, 1, 8, 8\)'),
        (torch.rand(3, 8, 8), ValueError, r'must be \(B, 3, H, W\)'),
        (torch.rand(1, 3, 0, 8), ValueError, 'H and W from 1 up'),
        (
            torch.zeros(1, 3, 8, 8, dtype=torch.uint8),
            TypeError,
            'must be torch.float32, as the weights are, not torch.uint8',
        ),
        (torch.zeros(1, 3, 8, 8, dtype=torch.float64), TypeError, 'not torch.float64'),
    ],
)
def test_wrong_image_is_a_clear_error(image, error, message):
    with pytest.raises(error, match=message):
        WRCAN(**SMALL)(image)


def test_joint_images_must_have_one_shape():
    with pytest.raises(ValueError, match=r'blurred is \(1, 3, 8, 8\) but jpeg_sharp is \(1, 3, 8, 12\)'):
        WRCAN(**SMALL)(torch.rand(1, 3, 8, 8), torch.rand(1, 3, 8, 12))


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        ({'block': 'wcra'}, "block 'wcra' is not one of wrca, wr, rca, res"),
        ({'num_feat': 6}, 'num_feat must be a multiple of 4, not 6'),
        ({'num_group': 0}, 'num_group must be at least 1, not 0'),
        ({'num_block': 0}, 'num_block must be at least 1, not 0'),
    ],
)
def test_wrong_option_is_a_clear_error(options, message):
    with pytest.raises(InputError, match=message):
        WRCAN(**options)


def test_misspelt_option_is_an_error():
    with pytest.raises(TypeError, match='num_blocks'):
        WRCAN(num_blocks=3)
