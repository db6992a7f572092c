import pytest
import torch

from wrcan_arch import WRCAN
from wrcan_arch.train.start_from_image import draw_evenly, start_from_image
from wrcan_arch.wrcan_arch import BLOCKS

SMALL = {'num_feat': 8, 'num_group': 2, 'num_block': 3}


def test_start_from_image_gives_the_image_and_lets_every_weight_learn():
    network = WRCAN(**SMALL)
    start_from_image(network)
    blurred, jpeg_sharp, sharp = torch.rand(3, 1, 3, 21, 14)
    for given, result in zip((blurred, jpeg_sharp), network(blurred, jpeg_sharp), strict=True):
        torch.testing.assert_close(result, given, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(network.head.weight[3:].sum((2, 3)), torch.zeros(5, 3), rtol=0, atol=1e-5)  # sees detail
    optimizer = torch.optim.Adam(network.parameters())
    for _ in range(2):
        optimizer.zero_grad()
        (network(blurred) - sharp).abs().mean().backward()
        optimizer.step()
    unmoved = [name for name, each in network.named_parameters() if not each.grad.any()]
    assert not [name for name in unmoved if 'attention' not in name]  # a ReLU may close both of its two units by chance


@pytest.mark.parametrize('block', BLOCKS)
@pytest.mark.parametrize(('num_group', 'num_block'), [(1, 1), (1, 6), (4, 16)])
def test_drawn_evenly_a_signal_keeps_its_size_through_the_network(block, num_group, num_block):
    torch.manual_seed(0)
    network = WRCAN(num_feat=16, num_group=num_group, num_block=num_block, block=block)
    sizes = {}
    for name in ('head', 'expand', 'body_conv', 'decoders.1.conv'):
        network.get_submodule(name).register_forward_hook(
            lambda _module, _given, result, name=name: sizes.update({name: result.std((2, 3)).mean().item()})
        )
    image = torch.rand(1, 3, 48, 48)
    network(image)
    assert sizes['expand'] < 0.1 * sizes['head']  # with PyTorch's default initialization
    draw_evenly(network)
    network(image)
    for name, size in sizes.items():
        assert 0.2 * sizes['head'] < size < 5 * sizes['head'], name


def test_start_from_image_needs_as_many_channels_out_as_in():
    with pytest.raises(ValueError, match='3 channels in, 1 out, 8 features'):
        start_from_image(WRCAN(num_out_ch=1, **SMALL))
