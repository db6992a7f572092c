"""What the tests share: golden numbers, small pictures, small stores."""

import importlib.util
import os
import re
import shutil
import signal
import subprocess
import sys
from contextlib import contextmanager, suppress
from multiprocessing.pool import ThreadPool
from pathlib import Path
from types import ModuleType
from unittest import mock

import cv2
import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import load_file

from wrcan_arch import InputError  # first, as its repairs make basicsr importable in every test
from wrcan_arch.checkpoint import write_weights
from wrcan_arch.cli import main
from wrcan_arch.data.store_writer import StoreWriter
from wrcan_arch.train import options

if 'PYTEST_XDIST_WORKER' in os.environ:  # one of several processes, which share the cores
    os.environ['OMP_NUM_THREADS'] = '1'
    torch.set_num_threads(1)
os.environ.setdefault('OMP_WAIT_POLICY', 'passive')  # for the processes that tests start, as in the command

# Results are compared bit for bit with a CPU's, so only on_gpu.py sees the GPUs of this machine.
GPUS, VISIBLE = 'GPUS_OF_ON_GPU', 'CUDA_VISIBLE_DEVICES'
if GPUS not in os.environ:
    os.environ[GPUS] = os.environ.get(VISIBLE, 'all')
    os.environ[VISIBLE] = ''

# A test commits in its own folder. In a hook GIT_DIR names another one, and a global configuration may sign commits.
for name in [each for each in os.environ if each.startswith('GIT_')]:
    del os.environ[name]
os.environ['GIT_CONFIG_GLOBAL'] = os.devnull

os.umask(0o022)  # permissions are compared
signal.signal(signal.SIGHUP, signal.SIG_DFL)  # nohup ignores it
signal.signal(signal.SIGINT, signal.default_int_handler)  # a background job ignores it, and its children would too

DATA = Path(__file__).parent / 'data'


def environment_with_gpus() -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if name != VISIBLE}
    return kept if kept[GPUS] == 'all' else {**kept, VISIBLE: kept[GPUS]}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Run slow tests first: else one process idles while the other ends one, and both start `forked`'s server."""
    items.sort(key=lambda item: item.get_closest_marker('slow') is None)


@pytest.fixture(scope='session')
def golden() -> dict[str, torch.Tensor]:
    """What the authors' code computed with official_small.pt, in fp32 on a CPU."""
    return load_file(DATA / 'expected_small.safetensors')


@pytest.fixture(scope='session')
def official_weights() -> Path:
    return DATA / 'official_small.pt'


def write_store(path: Path, count: int = 5, size: int = 1000) -> Path:
    """Write a store of `count` values of `size` bytes, none of them an image."""
    with StoreWriter(path) as store:
        for number in range(count):
            store.put(f'{number:03d}_00000000', '.jpg', bytes([number]) * size, (72, 128, 3))
    return path


def benchmark_script(name):
    """Return benchmarks/NAME.py as a module."""
    path = Path(__file__).parent.parent / 'benchmarks' / f'{name}.py'
    specification = importlib.util.spec_from_file_location(name, path)
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


def picture(height: int, width: int, seed: int = 0) -> np.ndarray:
    """Return a smooth colourful image with edges, uint8 (H, W, 3)."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 256, (height // 12 + 2, width // 12 + 2, 3), dtype=np.uint8)
    image = cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC)
    for _ in range(6):
        corner = rng.integers(0, (width, height))
        cv2.rectangle(
            image, corner.tolist(), (corner + rng.integers(2, 30, 2)).tolist(), rng.integers(0, 256, 3).tolist(), -1
        )
    return image


def deep_picture(height, width, channels=3):
    """Return a uint16 image (H, W, C) whose values need more than 8 bits."""
    low = np.random.default_rng(1).integers(0, 256, (height, width, channels))
    return (picture(height, width)[:, :, [0, 1, 2, 0][:channels]].astype(np.uint16) << 8) + low.astype(np.uint16)


def in_threads(*functions):
    """Run functions in parallel; return each one's result or InputError text. Raise any other error, or a timeout."""

    def run(function):
        try:
            return function()
        except InputError as error:
            return str(error)

    with ThreadPool(len(functions)) as pool:  # of daemon threads: Python would wait at its end for others that hang
        return [result.get(20) for result in [pool.apply_async(run, [each]) for each in functions]]


@contextmanager
def nobody_reads_stdout(buffering):
    read, write = os.pipe()
    os.close(read)
    with os.fdopen(write, 'w', buffering=buffering) as stdout, mock.patch('sys.stdout', stdout):
        yield


@pytest.fixture
def case_is_ignored(monkeypatch):
    """Look names up as exFAT and NTFS do: one that is not there finds one that differs only in case."""
    lstat, listdir = os.lstat, os.listdir

    def spelled(path):
        here = Path()
        for name in Path(path).parts:
            try:
                lstat(here / name)
            except FileNotFoundError:
                with suppress(OSError):
                    name = next(other for other in [*listdir(here), name] if other.lower() == name.lower())
            here /= name
        return str(here)

    def of_any_case(function):
        return lambda path='.', **options: function(path if isinstance(path, int) else spelled(path), **options)

    for name in ('stat', 'lstat', 'listdir', 'scandir'):
        monkeypatch.setattr(os, name, of_any_case(getattr(os, name)))


@pytest.fixture
def run_script(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture):
    """Run a script's main() in this process, in tmp_path; return what it prints to stdout and stderr."""

    def run(module: ModuleType, *arguments: object, exit_code: int = 0):
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr(sys, 'argv', [f'{module.__name__}.py', *map(str, arguments)])
        code = 0
        try:
            module.main()
        except SystemExit as end:
            code = end.code
        printed = capsys.readouterr()
        assert code == exit_code, printed.err
        return printed

    return run


SMALL_TRAINING = """
name: small
model_type: WRCANModel
num_gpu: 0
manual_seed: 3
datasets:
  train:
    name: small_train
    type: JPEGDeblurDataset
    dataroot_lq: data_blur.lmdb
    dataroot_gt: data_sharp.lmdb
    io_backend: {type: lmdb}
    gt_size: 32
    jpeg_quality: 25
    num_worker_per_gpu: 1
    batch_size_per_gpu: 4
  val:
    name: small_val
    type: JPEGDeblurDataset
    dataroot_lq: data_blur.lmdb
    dataroot_gt: data_sharp.lmdb
    io_backend: {type: lmdb}
network_g: {type: WRCAN, num_feat: 4, num_group: 1, num_block: 1}
path: {pretrain_network_g: ~}
train:
  amp: off
  total_iter: 12
  optim_g: {type: Adam, lr: 1e-3, betas: [0.9, 0.999]}
  scheduler: {type: MultiStepLR, milestones: [5], gamma: 0.5}
  pixel_opt: {type: L1Loss, loss_weight: 1.0, reduction: mean}
  autoencoder_opt: {type: JPEGAutoEncoderLoss, loss_weight: 0.1}
val:
  val_freq: 4
  save_img: false
  metrics:
    psnr: {type: calculate_psnr, crop_border: 0}
    ssim: {type: calculate_ssim, crop_border: 0}
  inference: {precision: fp32}
logger: {print_freq: 1, save_checkpoint_freq: 6, use_tb_logger: false}
"""

SMALL_TEST = """
name: small_test
model_type: WRCANModel
num_gpu: 0
datasets:
  test:
    name: small_set
    type: JPEGDeblurDataset
    dataroot_lq: data_blur.lmdb
    dataroot_gt: data_sharp.lmdb
    io_backend: {type: lmdb}
network_g: {type: WRCAN, num_feat: 4, num_group: 1, num_block: 1}
path: {pretrain_network_g: experiments/small/models/net_g_best.pth}
val:
  save_img: true
  suffix: ~
  metrics:
    psnr: {type: calculate_psnr, crop_border: 0}
    ssim: {type: calculate_ssim, crop_border: 0}
  inference: {ensemble: true, precision: fp32}
"""


@pytest.fixture(scope='session')
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with photos/, six sharp photographs of 80 x 96, and data_*, what make_blur.py makes of them."""
    folder = tmp_path_factory.mktemp('prepared')
    (folder / 'photos').mkdir()
    for number in range(6):
        cv2.imwrite(str(folder / 'photos' / f'photo{number}.png'), picture(80, 96, number))
    make_blur = Path(__file__).parent.parent / 'datasets_prep' / 'make_blur.py'
    command = [sys.executable, make_blur, 'photos', '-o', 'data', '--copies', '1', '--length', '2', '5', '--files']
    subprocess.run(command, check=True, capture_output=True, cwd=folder)
    return folder


@pytest.fixture
def workplace(prepared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with stores of blurred and sharp photographs and small option files."""
    shutil.copytree(prepared, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    Path('train.yml').write_text(SMALL_TRAINING)
    Path('test.yml').write_text(SMALL_TEST)
    return tmp_path


def set_options(text, **new):
    """Replace the first value of each key in an option file's text; add a key that it lacks under `train`."""
    for key, value in new.items():
        text, found = re.subn(rf'\b{key}: ({{.*}}|\[.*\]|[^,\n}}]*)', f'{key}: {value}', text, count=1)
        if not found:
            text = text.replace('  amp: ', f'  {key}: {value}\n  amp: ')
    return text


@pytest.fixture
def quick(workplace):
    """`workplace` with a training of ten iterations: six images in batches of two, so three iterations an epoch."""
    text = Path('train.yml').read_text()
    text = set_options(text, gt_size=16, batch_size_per_gpu=2, total_iter=10, num_worker_per_gpu=0)
    text = set_options(text, save_checkpoint_freq=4)
    Path('train.yml').write_text(text.replace('    ssim: {type: calculate_ssim, crop_border: 0}\n', ''))
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # with networks this small more threads only wait for each other
    yield workplace
    torch.set_num_threads(threads)


@pytest.fixture
def opt(tmp_path):
    """The options of SMALL_TRAINING for a model that is built by itself."""
    opt = yaml.load(SMALL_TRAINING, options.OptionLoader)
    paths = {'experiments_root': str(tmp_path)}
    for folder in ('models', 'training_states'):
        (tmp_path / folder).mkdir()
    return {**opt, 'path': paths, 'dist': False, 'rank': 0, 'world_size': 1, 'is_train': True}


def resolved_options(command='train', **top):
    """The options of the test workplace's run as the toolbox passes them on."""
    opt = options.read_options(f'{command}.yml').values
    return {**opt, 'dist': False, 'rank': 0, 'world_size': 1, 'auto_resume': False, 'is_train': True, **top}


def train(*overrides, resume=False):
    return main(
        ['train', '-opt', 'train.yml', *(['--auto_resume'] if resume else [])]
        + (['--force_yml', *overrides] if overrides else [])
    )


@pytest.fixture(scope='session')
def stores(tmp_path_factory):
    """The demo's stores, with values that are never decoded here."""
    folder = tmp_path_factory.mktemp('stores')
    for name in ('train', 'val', 'test'):
        for role in ('blur', 'sharp'):
            with StoreWriter(folder / f'demo_{name}_{role}.lmdb') as store:
                store.put('a', '.jpg', b'no image', (80, 96, 3))
    return folder


@pytest.fixture
def demo(stores, tmp_path, monkeypatch):
    """The text of the demo's training options, in a working folder with its data."""
    monkeypatch.chdir(tmp_path)
    Path('datasets').symlink_to(stores)
    return (DATA.parents[1] / 'options' / 'train_wrcan_demo.yml').read_text()


@pytest.fixture
def weights(tmp_path):
    """A weight file of the network that `tiny_restore.network` makes."""
    from tiny_restore import network  # it imports this file

    write_weights(tmp_path / 'net.safetensors', {'params': network().state_dict()}, {})
    return tmp_path / 'net.safetensors'
