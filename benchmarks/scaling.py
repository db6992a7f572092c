"""Measures validation, training and restoring with two processes, and predicts by arithmetic what more GPUs would do.

Each process has one core and one thread, also a single one. One process and two take turns: in a turn of one the second
waits. If others use the machine, two processes may not get two cores: the ceiling shows this, and the busier process's
processor time is then what the clock would show if they did.
The figures of GPUs are predicted, not measured, from a given time per patch (--patch-seconds), the bytes to reduce and
the speed of the link.
"""

import argparse
import os
import pickle
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import cv2
import measure
import numpy as np
import torch
import torch.distributed as dist
from torch import multiprocessing

from wrcan_arch import WRCAN
from wrcan_arch.inference import Request
from wrcan_arch.photos.bulk_restore import Options, restore_photos
from wrcan_arch.photos.plan import plan
from wrcan_arch.system.processes import Team

SIDE = 192  # pixels, of the images
IMAGES = 16
BATCH, PATCH = 8, 48
NETWORK: dict[str, Any] = {'num_feat': 16, 'num_group': 1, 'num_block': 2}
PORT = 29631

LINKS = {'NVLink, 450 GB/s': 450e9, '400 Gb/s': 50e9, '100 Gb/s': 12.5e9, '25 Gb/s': 3.1e9}  # bytes/s one way, per GPU
GPUS = (4, 8, 64, 256)
PAPERS_BATCH, PAPERS_RATE, PAPERS_ITERATIONS = 16, 1e-4, 562_500
BACKWARD = 2 / 3  # of a step: the exchange can overlap with it


Measured = tuple[dict[str, measure.Times], dict[int, measure.Times]]  # by the clock; busiest process's CPU time


class Frames:
    """A validation set of noise: only its time matters."""

    opt = {'name': 'frames'}

    def __len__(self) -> int:
        return IMAGES

    def __getitem__(self, index: int) -> dict[str, Any]:
        image = torch.rand(3, SIDE, SIDE, generator=torch.Generator().manual_seed(index))
        return {'lq': image, 'gt': image, 'lq_path': f'{index:03}.png', 'key': f'{index:03}'}


def model_of(rank: int, processes: int) -> Any:
    from basicsr.models import build_model

    return build_model(
        {
            'name': 'scaling',
            'model_type': 'WRCANModel',
            'is_train': True,
            'dist': processes > 1,
            'rank': rank,
            'world_size': processes,
            'num_gpu': 0,
            'network_g': {'type': 'WRCAN', **NETWORK},
            'path': {},
            'val': {
                'metrics': {name: {'type': f'calculate_{name}', 'crop_border': 0} for name in ('psnr', 'ssim')},
                'inference': {'precision': 'fp32'},
            },
            'train': {
                'amp': 'off',
                'optim_g': {'type': 'Adam', 'lr': 1e-4},
                'scheduler': {'type': 'MultiStepLR', 'milestones': [1]},
                'pixel_opt': {'type': 'L1Loss'},
                'autoencoder_opt': {'type': 'JPEGAutoEncoderLoss', 'loss_weight': 0.1},
            },
        }
    )


def tasks(rank: int, folder: Path) -> Iterator[tuple[str, Callable[[int], object]]]:
    """Yield each task's name and what this process does in it, given the number of processes."""
    from wrcan_arch.train import scoring

    matrix = torch.randn(512, 512)
    yield 'ceiling: matrix products', lambda processes: [matrix @ matrix for _ in range(100 // processes)]

    models = {1: model_of(rank, 1), 2: model_of(rank, 2)}
    yield 'validation set', lambda processes: scoring.score_images(models[processes], Frames(), 0, save_img=False)

    def step(processes: int) -> None:
        model = models[processes]
        model.feed_data({name: torch.rand(BATCH // processes, 3, PATCH, PATCH) for name in ('lq', 'gt', 'gt_jpeg')})
        model.optimize_parameters(1)

    yield 'training step', step

    network = WRCAN(**NETWORK).eval()
    jobs = plan([folder / 'photos'], out=folder / 'restored')
    both = Team(store=dist.distributed_c10d._get_default_store(), rank=rank, size=2)

    def restore(processes: int) -> None:
        team = both if processes == 2 else Team()
        restore_photos(network, jobs, options=Options(request=Request(precision='fp32')), team=team)

    yield 'restored photographs', restore


def work(rank: int, folder: Path, rounds: int) -> None:
    """Run one of two processes: both take the same turns, and meet after each."""
    os.sched_setaffinity(0, {sorted(os.sched_getaffinity(0))[rank]})
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    dist.init_process_group('gloo', init_method=f'tcp://localhost:{PORT}', rank=rank, world_size=2)
    measured = {}
    for name, task in tasks(rank, folder):
        busy: dict[int, list[float]] = {1: [], 2: []}

        def turn(processes: int, task: Callable[[int], object] = task, busy: dict[int, list[float]] = busy) -> None:
            started = time.process_time()
            if rank < processes:
                task(processes)
            longest = torch.tensor(time.process_time() - started)
            dist.all_reduce(longest, dist.ReduceOp.MAX)  # returns when both are done
            busy[processes].append(longest.item())

        times = measure.take_turns({'1': partial(turn, 1), '2': partial(turn, 2)}, rounds=rounds)
        measured[name] = (
            times,
            {processes: measure.Times(tuple(each[measure.WARMUPS :])) for processes, each in busy.items()},
        )
    if rank == 0:
        (folder / 'measured').write_bytes(pickle.dumps(measured))
    dist.barrier()
    dist.destroy_process_group()


def measured_here(rounds: int) -> dict[str, Measured]:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / 'photos').mkdir()
        for number in range(IMAGES):
            pixels = np.random.default_rng(number).integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)
            cv2.imwrite(str(folder / 'photos' / f'{number}.png'), pixels)
        multiprocessing.spawn(work, (folder, rounds), nprocs=2)
        return pickle.loads((folder / 'measured').read_bytes())


def rows_here(measured: dict[str, Measured]) -> list[dict[str, Any]]:
    return [
        {
            'task': name,
            '1 process, s': times['1'].median,
            'spread 1': f'{times["1"].spread:.0%}',
            '2 processes, s': times['2'].median,
            'spread 2': f'{times["2"].spread:.0%}',
            '2 / 1': 1 / times['2'].times_faster_than(times['1']),
            'of processor time': 1 / busy[2].times_faster_than(busy[1]),
        }
        for name, (times, busy) in measured.items()
    ]


def exchange_seconds(size: float, gpus: int, speed: float) -> float:
    """Return the time of a ring all-reduce, in which every GPU sends 2 (n - 1) / n times the gradients."""
    return 2 * (gpus - 1) / gpus * size / speed


def exchange_rows(parameters: int) -> list[dict[str, Any]]:
    return [
        {
            'gradients as': name,
            'MB a step': size / 1e6,
            **{f'ms, {link}': 1e3 * exchange_seconds(size, GPUS[-1], speed) for link, speed in LINKS.items()},
        }
        for name, size in (('fp32', 4 * parameters), ('bf16', 2 * parameters))
    ]


def efficiency(gpus: int, own_batch: float, patch_seconds: float, size: float, speed: float) -> str:
    """Return computing's share of a step: from no exchange hidden to all that the backward pass can hide."""
    computing, exchange = own_batch * patch_seconds, exchange_seconds(size, gpus, speed)
    left = max(0.0, exchange - BACKWARD * computing)
    return f'{computing / (computing + exchange):.0%} to {computing / (computing + left):.0%}'


def prediction_rows(parameters: int, patch_seconds: float, bytes_a_value: int) -> list[dict[str, Any]]:
    rows = []
    for own_batch in (None, 4, 16):
        for gpus in GPUS:
            batch = PAPERS_BATCH if own_batch is None else own_batch * gpus
            if batch % gpus or (own_batch == 4 and batch == PAPERS_BATCH):
                continue
            own, iterations = batch // gpus, PAPERS_ITERATIONS * PAPERS_BATCH // batch
            size = bytes_a_value * parameters
            rows.append(
                {
                    'GPUs': gpus,
                    'batch': batch,
                    'patches a GPU': own,
                    'learning rate, by the rule': f'{PAPERS_RATE * batch / PAPERS_BATCH:.1e}',
                    'iterations': f'{iterations:,}',
                    'days of computing': iterations * own * patch_seconds / 86400,
                    **{link: efficiency(gpus, own, patch_seconds, size, speed) for link, speed in LINKS.items()},
                }
            )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--rounds', type=measure.rounds, default=7, help='times that each variant runs (default 7)')
    parser.add_argument(
        '--patch-seconds',
        type=float,
        help="what one GPU's step takes for each of its patches of 320 x 320: predict from it what more GPUs would do",
    )
    arguments = parser.parse_args()
    if len(os.sched_getaffinity(0)) < 2:
        parser.error('two cores are needed, one a process')

    with torch.device('meta'):
        parameters = sum(each.numel() for each in WRCAN().parameters())
    measured = measured_here(arguments.rounds)
    report = measure.Report('scaling', torch.device('cpu'))
    title = f'{IMAGES} images of {SIDE} x {SIDE}, batch {BATCH} of {PATCH} x {PATCH}, {NETWORK}'
    report.add(title, rows_here(measured))
    report.add(f'Reduced a step, {parameters:,} parameters, 256 GPUs', exchange_rows(parameters))
    if arguments.patch_seconds:
        given = (
            f'{arguments.patch_seconds} s a patch given; rate in proportion to the batch after a warm-up is a rule, '
        )
        given += 'not measured; from nothing to all that can be hidden of the exchange'
        for name, bytes_a_value in (('fp32', 4), ('bf16', 2)):
            rows = prediction_rows(parameters, arguments.patch_seconds, bytes_a_value)
            report.add(f'Predicted efficiency, {name} ({given})', rows)


if __name__ == '__main__':
    main()
