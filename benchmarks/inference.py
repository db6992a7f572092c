"""Measures time and memory of restoring in the modes plain, exact, local and chop.

    python benchmarks/inference.py                     # 256 x 256 to 24 megapixels, full width, one block
    python benchmarks/inference.py --blocks 4x16 --sizes 256x256 1280x720    # the paper's network

Times are compared with a plain forward pass and the device's matrix product. A block's work and memory do not depend on
the number of blocks, so a shallow network shows the modes' ratios in minutes; its encoder and decoder, 4 % of the full
network's work, weigh more in it. The plain forward pass is left out if it does not fit in memory. Memory is that of a
process above weights and libraries, images included; on a GPU, what is allocated. On two cores it takes half an hour.
"""

import argparse
import functools
import math
import time
from typing import Any

import measure
import numpy as np
import torch

from wrcan_arch import WRCAN, restore
from wrcan_arch.precision import PRECISIONS, has_bf16_units
from wrcan_arch.strips.convolution import set_channels_last
from wrcan_arch.system.free_memory import free_memory

PATCH_SIZE = 256  # the window of mode local
BOUNDS = {'fp32': 240, 'bf16': 130}  # bytes per pixel, images included: the limit for exact
WHOLE = {'fp32': 2650, 'bf16': 1400}  # approximate bytes per pixel of the plain forward pass, to tell whether it fits
LARGE = 4_000_000  # pixels from which a CPU runs only the last precision, and only once
MODES = ['plain', 'exact', 'local', 'chop', *(['exact x8'] if measure.DEVICE.type == 'cuda' else [])]


torch.backends.cudnn.allow_tf32 = False  # fp32 without TF32, as in the matrix product and in `restore`


def network_of(mode: str, num_group: int, num_block: int) -> WRCAN:
    """Make a full-width network of random weights, in PyTorch's layout for plain, else in that of `basicsr restore`."""
    with torch.device('meta'):
        network = WRCAN(num_group=num_group, num_block=num_block)
        network.metadata = {'patch_size': PATCH_SIZE}
    network.to_empty(device=measure.DEVICE)
    if mode != 'plain':
        set_channels_last(network)
    torch.manual_seed(0)
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.02)
    return network.eval().requires_grad_(False)


def operations(blocks: tuple[int, int], size: tuple[int, int]) -> float:
    """Return the floating-point operations of the plain forward pass."""
    with torch.device('meta'):
        network, image = WRCAN(num_group=blocks[0], num_block=blocks[1]), torch.empty(1, 3, size[1], size[0])
    return measure.operations(lambda: network(image))


def plain(network: WRCAN, image: np.ndarray, dtype: torch.dtype) -> np.ndarray:
    """Restore the whole image at once in `dtype`, as the authors' code and the stock toolbox do."""
    pixels = torch.from_numpy(image).to(measure.DEVICE).permute(2, 0, 1)[None]
    scaled = pixels.to(torch.float32, memory_format=torch.contiguous_format).div_(255)
    with torch.no_grad(), torch.autocast(measure.DEVICE.type, dtype, enabled=dtype != torch.float32):
        restored = network(scaled).float()[0]
    return restored.clamp_(0, 1).mul_(255).round_().to(torch.uint8).permute(1, 2, 0).cpu().numpy()


def run(mode: str, precision: str, network: WRCAN, image: np.ndarray) -> np.ndarray:
    if mode == 'plain':
        return plain(network, image, PRECISIONS[precision])
    once, x8, _ = mode.partition(' x8')
    return restore(network, image, mode=once, ensemble=bool(x8), precision=precision)


def image_of(width: int, height: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)


def restore_once(mode: str, precision: str, blocks: tuple[int, int], size: tuple[int, int]) -> float:
    """Restore one image; return the seconds that it takes."""
    network, image = network_of(mode, *blocks), image_of(*size)
    started = time.perf_counter()
    run(mode, precision, network, image)
    return time.perf_counter() - started


@functools.cache
def smallest_peak(mode: str, precision: str, blocks: tuple[int, int]) -> int:
    """Return the peak memory of a process that restores a tiny image: weights and libraries."""
    return measure.peak_memory(restore_once, mode, precision, blocks, (8, 8))[0]  # sides of 4 would be fp32


def measured_alone(mode: str, precision: str, blocks: tuple[int, int], size: tuple[int, int]) -> tuple[float, float]:
    """Return bytes per pixel above weights and libraries, and on a CPU the seconds, of restoring one image."""
    if measure.DEVICE.type == 'cuda':
        network, image = network_of(mode, *blocks), image_of(*size)
        peak = measure.peak_on_gpu(functools.partial(run, mode, precision, network, image))
        return peak / (size[0] * size[1]), math.nan  # take_turns measures its times
    peak, seconds = measure.peak_memory(restore_once, mode, precision, blocks, size)
    return (peak - smallest_peak(mode, precision, blocks)) / (size[0] * size[1]), seconds


def rows_of(
    size: tuple[int, int], blocks: tuple[int, int], precisions: list[str], modes: list[str], rounds: int
) -> list[dict[str, Any]]:
    in_own_layout, in_ours = network_of('plain', *blocks), network_of('exact', *blocks)
    image = image_of(*size)
    pixels = size[0] * size[1]
    large = pixels >= LARGE and measure.DEVICE.type == 'cpu'
    if large:
        precisions = precisions[-1:]
    ceilings = {precision: measure.matrix_product(PRECISIONS[precision]) for precision in precisions}
    variants: dict[str, Any] = {f'matrix product {precision}': each for precision, (each, _) in ceilings.items()}
    fitting = [
        (precision, mode)
        for precision in precisions
        for mode in modes
        if mode != 'plain' or WHOLE[precision] * pixels < free_memory(measure.DEVICE)
    ]
    if not large:
        for precision, mode in fitting:
            network = in_own_layout if mode == 'plain' else in_ours
            variants[f'{mode} {precision}'] = functools.partial(run, mode, precision, network, image)
    times = measure.take_turns(variants, rounds=rounds)
    if not large:
        fitting = [(precision, mode) for precision, mode in fitting if f'{mode} {precision}' in times]
    memory = {}
    for precision, mode in fitting:
        memory[precision, mode], seconds = measured_alone(mode, precision, blocks, size)
        times.setdefault(f'{mode} {precision}', measure.Times((seconds,)))

    rows = []
    for precision in precisions:
        ceiling = ceilings[precision][1] / times[f'matrix product {precision}'].median
        plain_times = times.get(f'plain {precision}')
        for mode in modes:
            row: dict[str, Any] = {'precision': precision, 'mode': mode}
            if (precision, mode) not in fitting:
                rows.append({**row, 'seconds': 'does not fit'})
                continue
            each, turns = times[f'{mode} {precision}'], 8 if mode.endswith('x8') else 1
            row |= {
                'seconds': each.median,
                'spread': 'one run' if len(each.seconds) == 1 else f'{each.spread:.0%}',
                'time / plain': 1 / each.times_faster_than(plain_times) if plain_times else None,
                'of the ceiling': f'{turns * operations(blocks, size) / each.median / ceiling:.0%}',
                'bytes a pixel': round(memory[precision, mode]),
                'bound': BOUNDS[precision] if mode == 'exact' else None,
            }
            rows.append(row)
    return rows


def pair(text: str) -> tuple[int, int]:
    first, second = text.split('x')
    return int(first), int(second)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        '--sizes',
        nargs='+',
        type=pair,
        default=[(256, 256), (1280, 720), (4000, 3000), (6000, 4000)],
        metavar='WIDTHxHEIGHT',
        help='of the images (default 256x256 1280x720 4000x3000 6000x4000)',
    )
    parser.add_argument('--blocks', type=pair, default=(1, 1), metavar='GROUPSxBLOCKS', help='default 1x1')
    parser.add_argument('--modes', nargs='+', choices=MODES, default=MODES, help='default all')
    parser.add_argument('--precisions', nargs='+', choices=BOUNDS, help='default fp32, and bf16 where there are units')
    parser.add_argument('--rounds', type=measure.rounds, default=3, help='times that each mode runs (default 3)')
    arguments = parser.parse_args()
    precisions = arguments.precisions or ['fp32'] + ['bf16'] * has_bf16_units(measure.DEVICE)
    blocks = '{}x{}'.format(*arguments.blocks)
    report = measure.Report('inference' if arguments.blocks == (1, 1) else f'inference_{blocks}')
    for size in arguments.sizes:
        rows = rows_of(size, arguments.blocks, precisions, arguments.modes, arguments.rounds)
        report.add('{} x {}, 64 features, {} blocks'.format(*size, blocks), rows)


if __name__ == '__main__':
    main()
