"""The network in strips against the network itself; local pooling against its definition."""

import pytest
import torch
import torch.nn.functional as F

from wrcan_arch import WRCAN, restore
from wrcan_arch.strips import network as strips
from wrcan_arch.strips import sizes as strip_sizes
from wrcan_arch.strips.convolution import Convolution
from wrcan_arch.strips.network import Flow, restore_in_strips
from wrcan_arch.wrcan_arch import BLOCKS, ChannelAttention

SIZES = [(1, 1), (2, 7), (5, 4), (37, 41), (64, 64), (33, 8), (8, 200), (130, 70)]


def network_of(block='wrca', num_group=2, num_block=2):
    torch.manual_seed(0)
    network = WRCAN(num_feat=8, num_group=num_group, num_block=num_block, block=block).eval()
    for module in network.modules():
        if isinstance(module, ChannelAttention):  # make it depend on the means: by chance few channels are open
            torch.nn.init.uniform_(module.squeeze.weight, -50, 50)
            torch.nn.init.uniform_(module.squeeze.bias, 0.5, 1)
    return network


@torch.no_grad()
def in_strips(network, image, **options):
    restored = torch.full_like(image, torch.nan)

    def read(span):
        return image[:, :, slice(*span)]

    def write(span, rows):
        assert restored[:, :, slice(*span)].isnan().all(), 'written twice'
        restored[:, :, slice(*span)] = rows

    restore_in_strips(network, read, write, image.shape[2:], **options)
    return restored


def relative_error(found, expected):
    return ((found - expected).norm() / expected.norm()).item()


@pytest.mark.parametrize('end_strip', [strip_sizes.CPU_END_STRIP, (0, 0)], ids=['by the rule', '8 rows'])
@pytest.mark.parametrize('block', BLOCKS)
@pytest.mark.parametrize('size', SIZES, ids=str)
def test_every_strip_height_gives_the_whole_image(block, size, end_strip, monkeypatch):
    monkeypatch.setattr(strip_sizes, 'CPU_END_STRIP', end_strip)
    network, image = network_of(block), torch.rand(1, 3, *size)
    with torch.no_grad():
        expected = network(image)
    for rows in (1, 2, 3, 5, 8, 1000):
        assert relative_error(in_strips(network, image, strip_rows=rows), expected) < 1e-5, rows


@pytest.mark.parametrize('window', [None, 4])
@pytest.mark.parametrize('block', ['wrca', 'res'])
@pytest.mark.parametrize('size', [(1, 1), (37, 41), (8, 200)], ids=str)
def test_margins_change_nothing(block, size, window, monkeypatch):
    """Feature maps have such margins for AMX."""
    network, image = network_of(block), torch.rand(1, 3, *size)
    expected = [in_strips(network, image, strip_rows=rows, window=window) for rows in (3, 1000)]
    monkeypatch.setattr(strips, 'margin_of', lambda *_: 4)
    for rows, each in zip((3, 1000), expected, strict=True):
        assert relative_error(in_strips(network, image, strip_rows=rows, window=window), each) < 1e-6


@pytest.mark.parametrize('rows', [1, 4, 1000])
@pytest.mark.parametrize('how', ['packed', 'in pairs', 'with margins', 'plain'])
@pytest.mark.parametrize(('dtype', 'tolerance'), [(torch.float32, 1e-5), (torch.bfloat16, 1e-2)])
def test_the_full_width_too_however_it_convolves(rows, how, dtype, tolerance, monkeypatch):
    if how == 'plain':
        monkeypatch.setattr('wrcan_arch.strips.convolution.packs_weights', lambda *_: False)
    if how == 'in pairs':
        monkeypatch.setattr('wrcan_arch.strips.convolution.PAIRED_POSITIONS', 0)
    if how == 'with margins':
        monkeypatch.setattr(strips, 'margin_of', lambda *_: 4)
    torch.manual_seed(0)
    network, image = WRCAN(num_group=1, num_block=1).eval(), torch.rand(1, 3, 45, 62)
    with torch.no_grad():
        expected = network(image)
    for layout in (torch.contiguous_format, torch.channels_last):
        network.to(memory_format=layout)
        assert relative_error(in_strips(network, image, strip_rows=rows, dtype=dtype), expected) < tolerance


@pytest.mark.parametrize('block', ['wrca', 'res'])
@pytest.mark.parametrize('size', [(1, 1), (130, 33)], ids=str)
def test_progress_ends_with_all_done(block, size):
    for rows in (3, 1000):
        shares = []
        in_strips(network_of(block), torch.rand(1, 3, *size), strip_rows=rows, progress=shares.append)
        assert shares == sorted(set(shares)) and shares[0] > 0 and shares[-1] == 1
    assert len(shares) > 4, 'where a strip holds the whole image too'


class LocalAttention(torch.nn.Module):
    """ChannelAttention with the mean of a window around each position, computed directly on the whole map."""

    def __init__(self, attention, window):
        super().__init__()
        self.attention, self.window = attention, window

    def forward(self, features):
        height, width = features.shape[2:]
        rows, columns = min(self.window, height), min(self.window, width)
        means = F.avg_pool2d(features, (rows, columns), stride=1)
        above, left = (rows - 1) // 2, (columns - 1) // 2
        pad = (left, columns - 1 - left, above, rows - 1 - above)
        return features * self.attention.weights(F.pad(means, pad, mode='replicate'))


@pytest.mark.parametrize('window', [1, 4, 7, 20])
@pytest.mark.parametrize('size', [(1, 1), (37, 41), (130, 70), (8, 200)], ids=str)
def test_local_is_the_attention_of_windows(window, size):
    network, image = network_of(), torch.rand(1, 3, *size)
    found = [in_strips(network, image, strip_rows=rows, window=window) for rows in (1, 3, 8, 1000)]
    for group in network.groups:
        for block in group.blocks:
            assert isinstance(block.attention, ChannelAttention)
            block.attention = LocalAttention(block.attention, window)
    with torch.no_grad():
        expected = network(image)
    for each in found:
        assert relative_error(each, expected) < 1e-5


@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float16])
def test_means_of_windows_are_computed_in_fp32(dtype):
    values = torch.rand(1, 4, 64, 40).to(dtype)
    with torch.device('meta'):  # set as the default
        means = strips.WindowMeans(values, 32)
    found = torch.cat([means(span) for span in strips.spans(64, 8)], dim=2)
    expected = F.avg_pool2d(values.float(), 32, stride=1)
    torch.testing.assert_close(found[:, :, 15 : 15 + 33], expected, rtol=1e-5, atol=0)


def test_local_differs_from_exact_until_the_window_holds_the_image():
    network, image = network_of(), torch.rand(1, 3, 40, 64)
    exact = in_strips(network, image, strip_rows=4)
    assert relative_error(in_strips(network, image, strip_rows=4, window=2), exact) > 1e-4
    assert torch.equal(in_strips(network, image, strip_rows=4, window=16), exact)


def test_each_row_of_the_image_is_read_twice_and_few_at_a_time():
    network, spans = WRCAN(num_feat=4, num_group=1, num_block=1), []

    def read(span):
        spans.append(span)
        return torch.zeros(1, 3, span[1] - span[0], 24_576)

    with torch.no_grad():
        restore_in_strips(network, read, lambda *_: None, (62, 24_576), strip_rows=8)
    assert max(stop - start for start, stop in spans) <= 8
    rows = [row for span in spans for row in range(*span)]
    assert rows == [*range(62), *range(62)]


def test_sums_of_rows_may_be_beyond_the_range_of_fp16():
    network, image = network_of(num_group=1, num_block=1), torch.rand(1, 3, 8, 4096)
    branch = network.groups[0].blocks[0].branch
    torch.nn.init.zeros_(branch.fuse.weight)
    torch.nn.init.constant_(branch.fuse.bias, 100)  # 1,024 of them in a row
    expected = in_strips(network, image, strip_rows=1)
    assert relative_error(in_strips(network, image, strip_rows=1, dtype=torch.float16), expected) < 0.01


@torch.no_grad()
def test_a_flow_takes_memory_for_its_rows_once():
    conv = Convolution(torch.nn.Conv2d(4, 4, 3, padding=1), torch.float32, positions=24 * 6)
    flow = Flow(conv, height=24, width=6)
    places = set()
    for _ in range(3):
        flow(torch.rand(1, 4, 8, 6))
        places.add(flow.input.memory.data_ptr())
    assert len(places) == 1


def test_restoring_leaves_the_network_as_it_was():
    network = network_of()
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    restore(network, torch.rand(1, 3, 20, 20), precision='bf16')
    for name, tensor in network.state_dict().items():
        assert tensor.dtype == torch.float32 and torch.equal(tensor, before[name])
        assert tensor.is_contiguous() == before[name].is_contiguous()
