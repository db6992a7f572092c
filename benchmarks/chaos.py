"""Tests that kills at random moments, full disks and damaged files do not change the results of a run, bit for bit.

    nice python benchmarks/chaos.py                # at least 100 kills; minutes
    python benchmarks/chaos.py --kills 4 4 2 2     # in training, in saving, in preparing a store, in restoring a folder

One process imports everything and forks a child for each attempt, which saves its start-up time. A kill is SIGKILL, at
a random time, or, in saving, at a random file operation of the child. The command of a killed child is run again until
it ends, and its results are then compared, file by file, with those of an undisturbed child.
"""

import argparse
import ctypes
import hashlib
import importlib
import json
import os
import random
import re
import resource
import shutil
import signal
import struct
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).parent.parent / 'datasets_prep'))

import measure

import make_blur
import prepare_reds
from wrcan_arch import WRCAN, InputError, cli
from wrcan_arch.checkpoint import read_file, write_weights
from wrcan_arch.data import store_writer
from wrcan_arch.data.lmdb_store import verify_store
from wrcan_arch.look.report import read_curves
from wrcan_arch.source_commit import source_commit
from wrcan_arch.train import run_folder

for name in ('photos.bulk_restore', 'train.options', 'train.pipelines'):  # so that the children need not load them
    importlib.import_module(f'wrcan_arch.{name}')

KILLS = (45, 35, 12, 12)
MAX_KILLS_A_ROUND = 4  # the most; then the work may end
FILE_OPERATIONS = 40  # about half as many as in an undisturbed training
FILE_EVENTS = ('open', 'os.rename', 'os.remove')
CHECKPOINT_ENDINGS = ('.partial', '.state', '.pth')
EXPERIMENT = Path('experiments/chaos')
RESTORE = ('restore', 'photos', '-o', 'restored', '-w', 'weights.pth')
TRAIN = ('train', '-opt', 'train.yml', '--auto_resume')
OPTIONS = """
name: chaos
model_type: WRCANModel
num_gpu: 0
manual_seed: 3
datasets:
  train:
    name: chaos_train
    type: JPEGDeblurDataset
    dataroot_lq: data_blur.lmdb
    dataroot_gt: data_sharp.lmdb
    io_backend: {type: lmdb}
    gt_size: 16
    jpeg_quality: 25
    num_worker_per_gpu: 1
    batch_size_per_gpu: 2
  val:
    name: chaos_val
    type: JPEGDeblurDataset
    dataroot_lq: data_blur.lmdb
    dataroot_gt: data_sharp.lmdb
    io_backend: {type: lmdb}
network_g: {type: WRCAN, num_feat: 4, num_group: 1, num_block: 1}
path: {pretrain_network_g: ~}
train:
  amp: bf16
  ema_decay: 0.9
  total_iter: 20
  optim_g: {type: Adam, lr: 1e-3}
  scheduler: {type: MultiStepLR, milestones: [13], gamma: 0.5}
  pixel_opt: {type: L1Loss}
  autoencoder_opt: {type: JPEGAutoEncoderLoss, loss_weight: 0.1}
val:
  val_freq: 8
  save_img: false
  metrics: {psnr: {type: calculate_psnr, crop_border: 0}}
  inference: {precision: fp32}
logger: {print_freq: 1, save_checkpoint_freq: 4, keep_last: 3, use_tb_logger: false}
"""


@dataclass
class Count:
    """Counts for one kind of work."""

    kills: int = 0
    survived: int = 0
    identical: int = 0
    files_lost: int = 0


def child(run: Callable[[], int], folder: Path, before: Callable[[], None] = lambda: None) -> int:
    """Run `before` and `run` in a new process, in its own group, in `folder`; return its process id."""
    process = os.fork()
    os.setpgid(process, process)  # in parent and child, whichever is first; 0 is the caller
    if process:
        return process
    code = 70  # EX_SOFTWARE: a defect
    try:
        os.chdir(folder)
        torch.set_num_threads(1)
        said = os.open('said.txt', os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
        os.dup2(said, 1)
        os.dup2(said, 2)
        before()
        code = run()
    except SystemExit as end:
        code = int(end.code or 0)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def command(*arguments: str) -> Callable[[], int]:
    return lambda: cli.main(list(arguments))


def prepare() -> int:
    sys.argv = ['prepare_reds.py', 'reds', '-o', 'stores', '--any-size', '--workers', '1']
    prepare_reds.main()
    return 0


def ended(process: int) -> int:
    """Wait for a process; return its exit code, or minus the signal that ended it."""
    return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])


def kill_after(seconds: float, process: int) -> int:
    """Kill the process group after `seconds` unless it has ended; return its exit code or minus the signal."""
    limit = time.monotonic() + seconds
    while time.monotonic() < limit:
        found, status = os.waitpid(process, os.WNOHANG)
        if found:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.002)
    os.killpg(process, signal.SIGKILL)
    return ended(process)


def die_at_file_operation(number: int) -> Callable[[], None]:
    """Return a function that makes a child kill itself at a checkpoint file's open, fsync, rename or remove.

    The first `number` of these operations are still done.
    """

    def prepare_to_die() -> None:
        left = number
        fsync = os.fsync

        def one_more() -> None:
            nonlocal left
            left -= 1
            if left < 0:
                os.kill(os.getpid(), signal.SIGKILL)

        def watch(event: str, arguments: tuple) -> None:
            if event in FILE_EVENTS and str(arguments[0]).endswith(CHECKPOINT_ENDINGS):
                one_more()

        def watched_fsync(fd: Any) -> None:
            one_more()
            fsync(fd)

        os.fsync = watched_fsync
        sys.addaudithook(watch)

    return prepare_to_die


def digest(value: object) -> str:
    """Return a hash of everything in a checkpoint, tensors by their bytes."""
    if isinstance(value, torch.Tensor):
        value = (str(value.dtype), tuple(value.shape), value.contiguous().flatten().view(torch.uint8).numpy().tobytes())
    elif isinstance(value, dict):
        value = sorted((str(key), digest(each)) for key, each in value.items())
    elif isinstance(value, list | tuple):
        value = [digest(each) for each in value]
    return hashlib.sha256(repr(value).encode()).hexdigest()


def trained(folder: Path) -> dict[str, str]:
    """Return digests of a training's files, without unreadable ones, and its curves."""
    found = {}
    for path in (folder / EXPERIMENT).glob('*/*'):
        with suppress(InputError):
            found[path.name] = digest(read_file(path))
    curves = read_curves(folder / EXPERIMENT)
    found['losses'], found['scores'] = repr(curves.losses), repr(curves.metrics)
    return found


def stored(folder: Path) -> dict[str, str]:
    return {
        path.name: (path / 'manifest.json').read_text() + (path / 'meta_info.txt').read_text()
        for path in (folder / 'stores').glob('*.lmdb') if not verify_store(path)
    }  # fmt: skip


def restored(folder: Path) -> dict[str, str]:
    return {
        path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted((folder / 'restored').glob('*.png'))
    }


@dataclass(frozen=True)
class Work:
    """A kind of work that must finish correctly, however often it is killed.

    `what` names it, `run` does or resumes it in the current folder, `outcome` describes its results, and `leaves` is
    the folder that it writes.
    """

    what: str
    run: Callable[[], int]
    outcome: Callable[[Path], dict[str, str]]
    leaves: str
    by_file: bool = False  # killed at a file operation, not at a time


WORKS = (
    Work('training', command(*TRAIN), trained, 'experiments'),
    Work('saving', command(*TRAIN), trained, 'experiments', by_file=True),
    Work('preparing a store', prepare, stored, 'stores'),
    Work('restoring a folder', command(*RESTORE), restored, 'restored'),
)


def undisturbed(work: Work, folder: Path) -> tuple[dict[str, str], float]:
    """Do the work once without kills; return its outcome and the seconds that it took."""
    started = time.monotonic()
    expect(ended(child(work.run, folder)), 0, folder)
    seconds = time.monotonic() - started
    outcome = work.outcome(folder)
    shutil.rmtree(folder / work.leaves)
    return outcome, seconds


def expect(code: int, wanted: int, folder: Path) -> None:
    if code != wanted:
        sys.exit(f'ended with {code} and not {wanted}:\n{said(folder)[-3000:]}')


def said(folder: Path) -> str:
    return (folder / 'said.txt').read_text()


def campaign(work: Work, folder: Path, kills: int) -> Count:
    """Do the work in rounds, each killed repeatedly before it may end, until there were `kills` kills."""
    count = Count()
    if not kills:
        return count
    expected, seconds = undisturbed(work, folder)
    while count.kills < kills:
        here = 0
        code = -signal.SIGKILL
        while code == -signal.SIGKILL:
            if here == min(MAX_KILLS_A_ROUND, kills - count.kills):
                code = ended(child(work.run, folder))
            elif work.by_file:
                code = ended(child(work.run, folder, die_at_file_operation(random.randrange(FILE_OPERATIONS))))
            else:
                started = time.monotonic()
                code = kill_after(random.uniform(0, seconds), child(work.run, folder))
                if code == 0:  # sooner than expected, as other work on the machine affects its time
                    seconds = time.monotonic() - started
            here += code == -signal.SIGKILL
        found = work.outcome(folder) if code == 0 else {}
        count.kills += here
        count.survived += here * (code == 0)
        count.identical += here * (found == expected)
        count.files_lost += len(expected.keys() - found.keys())
        if found != expected:
            wrong = sorted(key for key in expected | found if found.get(key) != expected.get(key))
            print(f'{work.what}: ended with {code}; not as expected: {wrong}\n{said(folder)[-2000:]}')
        shutil.rmtree(folder / work.leaves, ignore_errors=True)
    return count


def run_and_check(folder: Path, code: int, message: str, before: Callable[[], None] = lambda: None) -> None:
    """Train; exit unless it ends with `code` and an output that matches `message`."""
    (folder / 'said.txt').unlink(missing_ok=True)
    expect(ended(child(command(*TRAIN), folder, before)), code, folder)
    if not re.search(message, said(folder)):
        sys.exit(f'did not say {message!r}:\n{said(folder)[-3000:]}')


def no_room() -> None:
    """Refuse files of more than 30,000 bytes, as a full disk would, and drop the pauses between retries."""
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (30_000, 30_000))
    run_folder.RETRY_PAUSES = (0, 0, 0)


def drop_capabilities() -> None:
    """Give up what would allow root to write anywhere; see capset(2). What root owns stays open to it."""
    version_3_of_this_process = struct.pack('Ii', 0x20080522, 0)
    if ctypes.CDLL(None).capset(version_3_of_this_process, bytes(24)):
        sys.exit('the capabilities cannot be dropped')


def full_disk(folder: Path) -> None:
    run_and_check(folder, 1, r'net_g_4\.pth.*; the run ends, allow larger files .* with --auto_resume', no_room)
    left = [path.name for path in (folder / EXPERIMENT).glob('*/*')]
    if left:
        sys.exit(f'a full disk left {left}')


def read_only_folder(folder: Path) -> None:
    folder.chmod(0o555)
    run_and_check(folder, 2, r'basicsr train: .*experiments: cannot be written .Permission denied', drop_capabilities)
    folder.chmod(0o755)


def damaged(how: str) -> Callable[[Path], None]:
    """Return a fault that damages one of the newest checkpoint's two files."""

    def damage(folder: Path) -> None:
        run_and_check(folder, 0, 'End of training')
        newest = run_folder.iterations(folder / EXPERIMENT)[0]
        paths = run_folder.state_path, run_folder.weights_path
        path = random.choice(paths)(folder / EXPERIMENT, newest)
        content = bytearray(path.read_bytes())
        if how == 'cut':
            path.write_bytes(content[: random.randrange(len(content))])
        else:
            place = random.randrange(len(content) - 200)
            path.write_bytes(
                content[:place] + bytes(byte ^ 1 for byte in content[place : place + 200]) + content[place + 200 :]
            )
        run_and_check(folder, 0, f'Passed over: .*{path.name}')

    return damage


def store_cut_in_half(folder: Path) -> None:
    path = folder / 'data_blur.lmdb' / 'data.mdb'
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    run_and_check(folder, 2, r'data_blur\.lmdb: data\.mdb has \d+ of \d+ bytes, it was cut')
    path.write_bytes(content)


def two_runs(folder: Path) -> None:
    first = child(command(*TRAIN), folder)
    while not list((folder / EXPERIMENT).glob('*/*.state')):
        time.sleep(0.005)
    os.kill(first, signal.SIGSTOP)  # it must not end before the second run asks
    run_and_check(folder, 2, 'another run is at work there')
    os.kill(first, signal.SIGCONT)
    expect(ended(first), 0, folder)


FAULTS = {
    'full disk': full_disk,
    'read-only folder': read_only_folder,
    'checkpoint cut': damaged('cut'),
    'checkpoint with flipped bits': damaged('flipped'),
    'store cut in half': store_cut_in_half,
    'two runs in one folder': two_runs,
}


def faults(folder: Path) -> dict[str, str]:
    """Return, by fault, whether a training after it ends with the same results as an undisturbed one."""
    expected, _ = undisturbed(WORKS[0], folder)
    outcomes = {}
    for name, fault in FAULTS.items():
        fault(folder)
        run_and_check(folder, 0, 'End of training')
        outcomes[name] = 'identical' if trained(folder) == expected else 'DIFFERENT'
        shutil.rmtree(folder / 'experiments')
    return outcomes


def make_data() -> int:
    """Make photographs, stores of their pairs, frames named as in REDS, options, and weights to restore with."""
    rng = np.random.default_rng(0)
    for folder in ('photos', 'reds/train_sharp/000'):
        Path(folder).mkdir(parents=True)
    for number in range(12):
        photo = cv2.resize(rng.integers(0, 256, (5, 6, 3), dtype=np.uint8), (48, 40), interpolation=cv2.INTER_CUBIC)
        cv2.imwrite(f'photos/photo{number:02d}.png', photo)
        for copy in range(4):
            cv2.imwrite(f'reds/train_sharp/000/{4 * number + copy:08d}.png', photo)
    sys.argv = ['make_blur.py', 'photos', '-o', 'data', '--copies', '1', '--length', '2', '4']
    make_blur.main()
    Path('train.yml').write_text(OPTIONS)
    network = WRCAN(num_feat=4, num_group=1, num_block=1)
    write_weights('weights.pth', {'params': network.state_dict()}, {})
    return 0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        '--kills', nargs=4, type=int, default=KILLS, metavar='N',
        help=f'in training, saving, preparing a store, restoring a folder (default {" ".join(map(str, KILLS))})',
    )  # fmt: skip
    parser.add_argument('--seed', type=int, default=0, help='of the moments (default 0); the clock has a part in them')
    parser.add_argument('-o', '--out', type=Path, help='write the figures to this JSON file')
    arguments = parser.parse_args()
    random.seed(arguments.seed)
    source_commit()  # cached here for all children
    started = time.monotonic()
    store_writer.BATCH_SIZE = 20_000  # else a store this small would be written in one batch
    with tempfile.TemporaryDirectory(prefix='chaos-') as place:
        folder = Path(place)
        tempfile.tempdir = tempfile.mkdtemp(dir=folder)  # what killed children leave there goes with the folder
        expect(ended(child(make_data, folder)), 0, folder)
        counts = {}
        for work, kills in zip(WORKS, arguments.kills, strict=True):
            counts[work.what] = count = campaign(work, folder, kills)
            print(f'{work.what:20} {count.kills:4} kills, {count.survived} survived, {count.identical} identical, '
                  f'{count.files_lost} files lost', flush=True)  # fmt: skip
        outcomes = faults(folder)
    for name, outcome in outcomes.items():
        print(f'{name:30} {outcome} afterwards')
    total = {key: sum(getattr(count, key) for count in counts.values()) for key in vars(Count())}
    figures = f'{total["survived"]}, {total["identical"]}, {total["files_lost"]}'
    print(f'kills survived, results identical, files lost: {figures}')
    minutes = (time.monotonic() - started) / 60
    print(f'({total["kills"]} kills; {minutes:.1f} minutes)')
    if arguments.out:
        content = {
            'kills': {key: asdict(count) for key, count in counts.items()},
            'faults': outcomes,
            'minutes': minutes,
            'machine': measure.machine(torch.device('cpu')),
        }
        arguments.out.write_text(json.dumps(content, indent=2) + '\n', encoding='utf-8')
    sound = total['survived'] == total['identical'] == total['kills'] and not total['files_lost']
    return 0 if sound and set(outcomes.values()) == {'identical'} else 1


if __name__ == '__main__':
    sys.exit(main())
