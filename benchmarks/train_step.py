"""Measures one training step: plain, ours, and ours with single options changed; each convolution alone; memory.

Plain is the method of the authors' code in the stock toolbox: fp32 (on a GPU autocast to fp16), the default memory
layout, two forward calls, an Adam that passes over the weights several times. Ours is WRCANModel.optimize_parameters as
a run calls it. A GPU holds the weights of all variants and one step at once: some 50 GB (computed); variants that do
not fit are left out. On two cores it takes half an hour.
"""

import argparse
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import measure
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from wrcan_arch import WRCAN
from wrcan_arch.precision import dtype_for, has_bf16_units
from wrcan_arch.wrcan_arch import ResidualBlock

ON_GPU = measure.DEVICE.type == 'cuda'
DTYPE = dtype_for('auto', measure.DEVICE)  # of our steps; bf16 without units for it would take hours
PLAIN_DTYPE = torch.float16 if ON_GPU else torch.float32
LAYOUT = torch.channels_last if ON_GPU or DTYPE.itemsize < 4 else torch.contiguous_format  # a step's default
# Full width: (groups, blocks, patch, batch)
CPU_SIZES = {'small': (1, 2, 128, 2), 'full': (4, 16, 256, 1)}
GPU_SIZES = {'full': (4, 16, 256, 16), 'full, patch 320': (4, 16, 320, 16)}
SIZES = GPU_SIZES if ON_GPU else CPU_SIZES
VARIANTS: dict[str, dict[str, Any]] = {
    'ours': {},
    'without amp': {'amp': 'off'},
    'with channels_last': {'channels_last': True},
    'without channels_last': {'channels_last': False},
    'without fused': {'optim_g': {'fused': False}},
    'with checkpointing': {'checkpointing': True},
    'without the auto-encoder loss': {'autoencoder_opt': None},
}
SHOWN = {
    'small': [*VARIANTS],
    'full': [*VARIANTS] if ON_GPU else ['ours', 'without the auto-encoder loss'],
    'full, patch 320': ['ours', 'with checkpointing'],
}

# Of the full network at 64 features: (in, out, patch side / map side, stride, atrous rate)
CONVOLUTIONS = {
    **{f'atrous, rate {rate}': (256, 128, 4, 1, rate) for rate in (1, 2, 3, 4)},
    'fuse': (512, 256, 4, 1, 1),
    'head': (3, 64, 1, 1, 1),
    'encoder 0': (64, 64, 1, 1, 1),
    'encoder 0, down': (64, 64, 1, 2, 1),
    'encoder 1': (64, 128, 2, 1, 1),
    'encoder 1, down': (128, 128, 2, 2, 1),
    'expand': (128, 256, 4, 1, 1),
    'body': (256, 256, 4, 1, 1),
    'decoder 1, up': (256, 512, 4, 1, 1),
    'decoder 1': (256, 128, 2, 1, 1),
    'decoder 0, up': (128, 256, 2, 1, 1),
    'decoder 0': (128, 64, 1, 1, 1),
    'tail': (64, 3, 1, 1, 1),
}
CARD_BYTES = 11e9
CARD_RESERVE = 1e9  # for CUDA itself and cuDNN's workspaces: an assumption
LAUNCHES = 20 if ON_GPU else 1  # calls timed together, else a GPU would wait for the host

# As in a run: the toolbox sets the first; PyTorch rounds fp32 to TF32 in convolutions, so here also in the product.
torch.backends.cudnn.benchmark = True
torch.backends.cuda.matmul.allow_tf32 = True


def batch_of(batch: int, patch: int) -> dict[str, Tensor]:
    torch.manual_seed(0)
    return {name: torch.rand(batch, 3, patch, patch).to(measure.DEVICE) for name in ('lq', 'gt', 'gt_jpeg')}


def autoencode(network: WRCAN, images: Tensor) -> Tensor:
    """Run the auto-encoder path as a separate call."""
    shallow = network.head(images)
    skip0, down0 = network.encoders[0](shallow)
    skip1, down1 = network.encoders[1](down0)
    deep = network.expand(down1)
    return network.tail(shallow + network.decoders[0](network.decoders[1](deep, skip1), skip0))


def plain_step(groups: int, blocks: int, data: dict[str, Tensor]) -> Callable[[], None]:
    network = WRCAN(num_group=groups, num_block=blocks).to(measure.DEVICE)
    scaler = torch.amp.GradScaler(measure.DEVICE.type, enabled=ON_GPU)
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-4, weight_decay=1e-8)

    def step() -> None:
        optimizer.zero_grad()
        with torch.autocast(measure.DEVICE.type, PLAIN_DTYPE, enabled=ON_GPU):
            l_pix = F.l1_loss(network(data['lq']), data['gt'])
            l_ae = 0.1 * F.mse_loss(autoencode(network, data['gt_jpeg']), data['gt'])
        scaler.scale(l_pix + l_ae).backward()
        scaler.step(optimizer)
        scaler.update()

    return step


def our_model(groups: int, blocks: int, train: Mapping[str, Any]) -> Any:
    from basicsr.models import build_model  # imported here, after wrcan_arch has repaired it

    return build_model(
        {
            'model_type': 'WRCANModel',
            'is_train': True,
            'dist': False,
            'rank': 0,
            'world_size': 1,
            'num_gpu': int(ON_GPU),
            'network_g': {'type': 'WRCAN', 'num_group': groups, 'num_block': blocks},
            'path': {},
            'train': {
                'scheduler': {'type': 'MultiStepLR', 'milestones': [1]},
                'pixel_opt': {'type': 'L1Loss'},
                'autoencoder_opt': {'type': 'JPEGAutoEncoderLoss', 'loss_weight': 0.1},
                **train,
                'optim_g': {'type': 'Adam', 'lr': 1e-4, 'weight_decay': 1e-8, **train.get('optim_g', {})},
            },
        }
    )


def our_step(groups: int, blocks: int, data: dict[str, Tensor], train: Mapping[str, Any]) -> Callable[[], None]:
    model = our_model(groups, blocks, train)

    def step() -> None:
        model.guard.verdict(made=1)  # on a GPU, reads the flags of the step before the last
        model.feed_data(data)
        model.optimize_parameters(1)

    return step


def step_rows(size: str, rounds: int) -> list[dict[str, Any]]:
    groups, blocks, patch, batch = SIZES[size]
    data = batch_of(batch, patch)
    makers = {'plain': partial(plain_step, groups, blocks, data)}
    makers |= {name: partial(our_step, groups, blocks, data, VARIANTS[name]) for name in SHOWN[size]}
    peaks: dict[str, int] = {}
    if ON_GPU:
        makers = {name: make for name, make in makers.items() if measure.fits(partial(two_steps, make))}
        peaks = {name: measure.peak_on_gpu(partial(two_steps, make)) for name, make in makers.items()}
    steps = {name: make() for name, make in makers.items()}
    products = {dtype: measure.matrix_product(dtype) for dtype in {torch.float32, PLAIN_DTYPE, DTYPE}}
    times = measure.take_turns({**steps, **{str(dtype): run for dtype, (run, _) in products.items()}}, rounds=rounds)

    rows = []
    for name, step in steps.items():
        if name not in times:
            continue
        dtype = {'plain': PLAIN_DTYPE, 'without amp': torch.float32}.get(name, DTYPE)
        ceiling = products[dtype][1] / times[str(dtype)].median
        rate = measure.operations(step) / times[name].median
        rows.append(
            {
                'step': name,
                's': times[name].median,
                'spread': f'{times[name].spread:.0%}',
                'x plain': times[name].times_faster_than(times['plain']) if 'plain' in times else None,
                'time, ours = 1': 1 / times[name].times_faster_than(times['ours']) if 'ours' in times else None,
                'GFLOP/s': rate / 1e9,
                'of the matrix product': f'{rate / ceiling:.0%}',
                **({'peak, GB': peaks[name] / 1e9} if ON_GPU else {}),
            }
        )
    return rows


def two_steps(make_step: Callable[[], Callable[[], None]]) -> None:
    """Make two steps; only the second has Adam's moments from its start."""
    step = make_step()
    step()
    step()


def convolution_passes(shape: tuple[int, ...], patch: int, batch: int) -> dict[str, Callable[[], object]]:
    """Return the forward pass and both gradients of one convolution, as separate calls."""
    in_channels, out_channels, part, stride, rate = shape
    shapes = (batch, in_channels, patch // part, patch // part), (out_channels, in_channels, 3, 3)
    image, weight = (torch.randn(each).to(measure.DEVICE, DTYPE, memory_format=LAYOUT) for each in shapes)
    bias = torch.randn(out_channels).to(measure.DEVICE, DTYPE)
    forward = partial(F.conv2d, image, weight, bias, stride, rate, rate)
    gradient = torch.randn_like(forward())
    sizes = [out_channels], [stride] * 2, [rate] * 2, [rate] * 2, False, [0, 0], 1
    backward = partial(torch.ops.aten.convolution_backward, gradient, image, weight, *sizes)
    return {
        'forward': forward,
        'gradient of the input': partial(backward, [True, False, False]),
        'gradient of the weights': partial(backward, [False, True, True]),
    }


def convolution_rows(rounds: int, patch: int, batch: int) -> list[dict[str, Any]]:
    product, product_operations = measure.matrix_product(DTYPE)
    rows = []
    for name, shape in CONVOLUTIONS.items():
        passes = convolution_passes(shape, patch, batch)
        times = measure.take_turns({**passes, 'ceiling': product}, rounds=rounds, calls=LAUNCHES)
        ceiling = product_operations / times['ceiling'].median
        work = measure.operations(passes['forward'])
        row: dict[str, Any] = {'convolution': name, 'GFLOP': work / 1e9}
        for each in passes:
            row[f'{each}, ms'] = 1e3 * times[each].median
            row[f'{each}, of the matrix product'] = f'{work / times[each].median / ceiling:.0%}'
        rows.append(row)
    return rows


def kept_bytes(patch: int, train: Mapping[str, Any]) -> int:
    """Return the bytes that one patch's forward pass keeps for the backward pass, without weights and their copies."""
    model = our_model(*SIZES['full'][:2], train)
    weights = {each.data_ptr() for each in model.net_g.parameters()}
    kept: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        is_weight = tensor.data_ptr() in weights or isinstance(tensor, nn.Parameter) or tensor.shape[2:] == (3, 3)
        if not is_weight:
            storage = tensor.untyped_storage()
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    def keep_input(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        keep(inputs[0])

    for module in model.net_g.modules():
        if isinstance(module, ResidualBlock):  # the hooks do not see the input that checkpointing keeps
            module.register_forward_pre_hook(keep_input)
    model.feed_data(batch_of(1, patch))
    autocast = torch.autocast(measure.DEVICE.type, torch.bfloat16)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor), autocast:
        losses = model._losses(model.lq, model.gt, model.gt_jpeg)
    assert losses
    return sum(kept.values())


def memory_rows() -> list[dict[str, Any]]:
    parameters = sum(each.numel() for each in WRCAN().parameters())
    fixed = parameters * (4 * 4 + 2)  # weights, gradients and Adam's two moments in fp32; weights in bf16
    rows = []
    for patch in (256, 320):
        for checkpointing in (False, True):
            kept = kept_bytes(patch, {'amp': 'bf16', 'checkpointing': checkpointing})
            rows.append(
                {
                    'patch': patch,
                    'checkpointing': checkpointing,
                    'kept for a patch, GB': kept / 1e9,
                    'weights, gradients, Adam, GB': fixed / 1e9,
                    'patches that fit 11 GB (computed)': int((CARD_BYTES - CARD_RESERVE - fixed) / kept),
                }
            )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--rounds', type=measure.rounds, default=7, help='times that each variant runs (default 7)')
    rounds = parser.parse_args().rounds
    report = measure.Report('train_step')
    for size, (groups, blocks, patch, batch) in SIZES.items():
        report.add(f'A step: {groups} x {blocks} blocks, patch {patch}, batch {batch}', step_rows(size, rounds))
    _, _, patch, batch = SIZES['full']
    title = f'Convolutions alone, {DTYPE}, patch {patch}, batch {batch}'
    report.add(title, convolution_rows(rounds, patch, batch))
    if has_bf16_units(measure.DEVICE):
        report.add('Memory of a step of the full network, bf16', memory_rows())


if __name__ == '__main__':
    main()
