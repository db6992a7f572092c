"""Measures the loader: samples per second and core, patches of 256 from 1280 x 720 frames, the stock way and ours.

The stock way does what BasicSR's PairedImageDataset does, with its functions, for a third frame too: all frames are
decoded whole and converted to float, then cropped. Ours makes I_JPEG(HR) from the sharp crop, maps raw frames, works
only on the crop, and leaves the conversion to float to the model's device (`as_bytes`; one row converts here). Ours
also permutes channels and adds noise, which the stock way does not.
"""

import argparse
import tempfile
from contextlib import ExitStack
from pathlib import Path

import cv2
import measure
import numpy as np
import torch
from skimage import data

from wrcan_arch import JPEGDeblurDataset
from wrcan_arch.data.draws import Draw
from wrcan_arch.data.lmdb_store import RAW_ENDING
from wrcan_arch.data.store_writer import StoreWriter

PATCH = 256
QUALITY = 25
FRAMES = 12
SAMPLES = 12  # timed together, one of each frame
SAMPLE_VALUES = 3 * 3 * PATCH**2  # of lq, gt and gt_jpeg
STOCK, FLOATS = 'stock: three frames decoded whole', 'ours: both raw, floats'


def sharp_frame(number: int) -> np.ndarray:
    """Make a 1280 x 720 frame of scikit-image's photographs, with sensor noise: else its PNG decodes too fast."""
    rng = np.random.default_rng(number)
    photos = [photo[:, :, ::-1] for photo in (data.astronaut(), data.coffee(), data.chelsea(), data.rocket())]
    halves = [cv2.resize(photos[(number + half) % len(photos)], (640, 720)) for half in range(2)]
    return np.rint(np.concatenate(halves, axis=1) + rng.normal(0, 1.5, (720, 1280, 3))).clip(0, 255).astype(np.uint8)


def jpeg(image: np.ndarray) -> bytes:
    return cv2.imencode('.jpg', image, [cv2.IMWRITE_JPEG_QUALITY, QUALITY])[1].tobytes()


def write_stores(folder: Path) -> None:
    """Write encoded stores blurred, sharp and jpeg_sharp, and raw stores blurred_raw and sharp_raw."""
    kinds = dict.fromkeys(('blurred', 'sharp', 'jpeg_sharp'), 'encoded') | dict.fromkeys(
        ('blurred_raw', 'sharp_raw'), 'raw'
    )
    with ExitStack() as stack:
        stores = {
            name: stack.enter_context(StoreWriter(folder / f'{name}.lmdb', kind=kind)) for name, kind in kinds.items()
        }
        for number in range(FRAMES):
            sharp = sharp_frame(number)
            blurred = jpeg(cv2.blur(sharp, (9, 3)))
            decoded = cv2.imdecode(np.frombuffer(blurred, np.uint8), cv2.IMREAD_COLOR)
            assert decoded is not None
            for name, ending, value in (
                ('blurred', '.jpg', blurred),
                ('sharp', '.png', cv2.imencode('.png', sharp)[1].tobytes()),
                ('jpeg_sharp', '.jpg', jpeg(sharp)),
                ('blurred_raw', RAW_ENDING, decoded.tobytes()),
                ('sharp_raw', RAW_ENDING, sharp.tobytes()),
            ):
                stores[name].put(f'000_{number:08d}', ending, value, sharp.shape)


def stock(folder: Path):
    """Return a function that makes SAMPLES samples as PairedImageDataset does in training, from three frames."""
    from basicsr.data.transforms import augment, paired_random_crop  # imported here, after wrcan_arch has repaired it
    from basicsr.utils import FileClient, imfrombytes, img2tensor

    roles = {'lq': 'blurred', 'gt': 'sharp', 'gt_jpeg': 'jpeg_sharp'}
    client = FileClient(
        'lmdb', db_paths=[str(folder / f'{name}.lmdb') for name in roles.values()], client_keys=[*roles]
    )

    def samples() -> None:
        for number in range(SAMPLES):
            key = f'000_{number % FRAMES:08d}'
            lq, gt, gt_jpeg = (imfrombytes(client.get(key, role), float32=True) for role in roles)
            gt, (lq, gt_jpeg) = paired_random_crop(gt, [lq, gt_jpeg], PATCH, 1)
            img2tensor(augment([gt, lq, gt_jpeg], hflip=True, rotation=True), bgr2rgb=True, float32=True)

    return samples


def ours(folder: Path, blurred: str, sharp: str, *, as_bytes: bool = True):
    dataset = JPEGDeblurDataset(
        {
            'name': 'benchmark',
            'phase': 'train',
            'io_backend': {'type': 'lmdb'},
            'dataroot_lq': str(folder / f'{blurred}.lmdb'),
            'dataroot_gt': str(folder / f'{sharp}.lmdb'),
            'gt_size': PATCH,
            'jpeg_quality': QUALITY,
            'as_bytes': as_bytes,
        }
    )

    def samples() -> None:
        for number in range(SAMPLES):
            dataset[Draw(number % FRAMES, number)]

    return samples


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.parse_args()
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_stores(folder)
        ways = {
            STOCK: stock(folder),
            'ours: JPEG blurred, PNG sharp': ours(folder, 'blurred', 'sharp'),
            'ours: JPEG blurred, raw sharp': ours(folder, 'blurred', 'sharp_raw'),
            'ours: both raw': ours(folder, 'blurred_raw', 'sharp_raw'),
            FLOATS: ours(folder, 'blurred_raw', 'sharp_raw', as_bytes=False),
        }
        copy, copied = measure.copy()
        times = measure.take_turns({**ways, 'copy': copy}, rounds=9)
    plain = times[STOCK]
    seconds_a_byte = times['copy'].median / copied * 2

    def copying(way: str) -> float:
        """Return the seconds of copying the bytes of all samples; a float has four."""
        return SAMPLES * SAMPLE_VALUES * (4 if way in (STOCK, FLOATS) else 1) * seconds_a_byte

    rows = [
        {
            'way': way,
            'ms a sample': 1e3 * times[way].median / SAMPLES,
            'spread': f'{times[way].spread:.0%}',
            'samples/s and core': SAMPLES / times[way].median,
            'x stock': times[way].times_faster_than(plain),
            'of the copy rate': f'{copying(way) / times[way].median:.1%}',
        }
        for way in ways
    ]
    report = measure.Report('loader', torch.device('cpu'))
    report.add('(lq, gt, gt_jpeg) of patch 256 from 1280 x 720, one core', rows)


if __name__ == '__main__':
    main()
