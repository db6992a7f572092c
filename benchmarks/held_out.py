"""Scores weights on held-out pictures, in the three tasks that they must be good at.

Two sets: coffee and chelsea of scikit-image, and dead leaves of a held-out seed. Three tasks: `blurred`, the paper's
(12 random exposures of each picture, JPEG quality 25); `still`, an unblurred JPEG of quality 90, which must not get
worse; `clean`, the sharp picture itself, whose colours must not drift. Everything is drawn from fixed seeds and
restored in fp32, so that other machines agree to 0.02 dB. The bundled weights are checked against the stored scores.
`--photos FOLDER` also scores sharp pictures of your own.
"""

import argparse
import json
import sys
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
import skimage
from torch import nn
from tqdm import tqdm

from wrcan_arch import load_network, restore
from wrcan_arch.data.image_files import images_under
from wrcan_arch.data.jpeg import jpeg_roundtrip
from wrcan_arch.photos.drift import blend
from wrcan_arch.weights import BUNDLED

sys.path.insert(0, str(Path(__file__).parent.parent / 'datasets_prep'))

import exposure
from dead_leaves import dead_leaves
from pairs import read_image

WEIGHTS = BUNDLED['small'].resolve()
STORED = Path(__file__).parent / 'results' / 'held_out.json'
TOLERANCE = 0.02  # dB
EXPOSURES = 12  # of each picture
FURTHER_EXPOSURES = 2  # of each picture of --photos
SEED = 2021  # of the exposures; those of training and validation are 1 to 7
LEAVES_SEED, LEAVES_COUNT, LEAVES_SIZE = 7, 4, 320  # the seed of training is 1, of validation 2

Scores = dict[str, float]


class Sample(NamedTuple):
    """A picture as given to the network, and its sharp original, uint8 (H, W, 3), BGR."""

    group: str  # 'photos blurred'
    name: str
    given: np.ndarray
    sharp: np.ndarray


def held_out_pictures(further: Path | None = None) -> dict[str, dict[str, np.ndarray]]:
    """Return the sharp pictures, by set and name; those of the folder `further` are a set of their own."""
    shipped = Path(skimage.__file__).parent / 'data'
    photos = {name: read_image(shipped / f'{name}.png') for name in ('coffee', 'chelsea')}
    leaves = {f'leaves{index}': dead_leaves(LEAVES_SEED, index, LEAVES_SIZE) for index in range(LEAVES_COUNT)}
    sets = {'photos': photos, 'leaves': leaves}
    if further:
        sets['further'] = {str(path.relative_to(further)): read_image(path) for path in images_under(further)}
    return sets


def draw_samples(further: Path | None = None) -> Iterator[Sample]:
    """Yield all samples; their exposures have make_blur.py's default parameters."""
    for set_name, pictures in held_out_pictures(further).items():
        for number, (name, sharp) in enumerate(pictures.items()):
            for exposure_number in range(FURTHER_EXPOSURES if set_name == 'further' else EXPOSURES):
                rng = np.random.default_rng((SEED, number, exposure_number))
                blurred = exposure.expose_at_random(rng, sharp)
                given = jpeg_roundtrip(blurred, 25)
                yield Sample(f'{set_name} blurred', f'{name}_{exposure_number:03d}', given, sharp)
            yield Sample(f'{set_name} still', name, jpeg_roundtrip(sharp, 90), sharp)
            yield Sample(f'{set_name} clean', name, sharp, sharp)


def restored_by(network: nn.Module, given: np.ndarray, *, strength: float = 1, ensemble: bool = False) -> np.ndarray:
    rgb = np.ascontiguousarray(given[:, :, ::-1])
    restored = restore(network, rgb, ensemble=ensemble, precision='fp32')[:, :, ::-1]
    return restored if strength == 1 else blend(given, restored, strength)


def compare(picture: np.ndarray, sharp: np.ndarray) -> tuple[float, float]:
    """Return PSNR and SSIM on RGB, computed as in the paper."""
    from basicsr.metrics import calculate_psnr, calculate_ssim  # imported here, once wrcan_arch has made it importable

    return float(calculate_psnr(picture, sharp, crop_border=0)), float(calculate_ssim(picture, sharp, crop_border=0))


def score(network: nn.Module, sample: Sample, strength: float = 1) -> tuple[Scores, np.ndarray]:
    """Return the sample's scores and the restored picture."""
    restored = restored_by(network, sample.given, strength=strength)
    if sample.group.endswith('clean'):
        drift = restored.mean((0, 1)) - sample.sharp.mean((0, 1))
        scores = {f'drift {channel}': float(value) for channel, value in zip('BGR', drift, strict=True)}
        return scores | {'psnr restored': compare(restored, sample.sharp)[0]}, restored
    pictures = {'input': sample.given, 'restored': restored}
    if sample.group.endswith('blurred'):
        pictures['x8'] = restored_by(network, sample.given, strength=strength, ensemble=True)
    scores = {}
    for name, picture in pictures.items():
        scores[f'psnr {name}'], scores[f'ssim {name}'] = compare(picture, sample.sharp)
    return scores, restored


def write_side_by_side(folder: Path, sample: Sample, restored: np.ndarray) -> None:
    path = folder / f'{sample.group}_{sample.name}.png'.replace(' ', '_')
    path.parent.mkdir(parents=True, exist_ok=True)  # a picture of --photos may be of a folder in it
    cv2.imwrite(str(path), np.hstack([sample.given, restored, sample.sharp]))


def mean_scores(scores_by_group: dict[str, list[Scores]]) -> dict[str, Scores]:
    """Return mean scores by group; for drifts, which would cancel in a mean, the one of largest magnitude."""
    means: dict[str, Scores] = {}
    for group, all_scores in scores_by_group.items():
        means[group] = {'pictures': len(all_scores)}
        for name in all_scores[0]:
            values = np.array([scores[name] for scores in all_scores])
            chosen = values[np.abs(values).argmax()] if name.startswith('drift') else values.mean()
            means[group][name] = round(float(chosen), 4)
    return means


def table(means: dict[str, Scores]) -> str:
    """Return a Markdown table with a line for each group of JPEGs, then a line for each group's drifts."""
    lines = [
        '| set and task | pictures | input | restored | gain | x8 | SSIM input | restored | x8 |',
        '|---' * 9 + '|',
    ]
    for group, scores in means.items():
        if 'psnr input' in scores:
            gain = scores['psnr restored'] - scores['psnr input']
            cells = [scores['psnr input'], scores['psnr restored'], gain, scores.get('psnr x8')]
            ssims = [scores.get(f'ssim {name}') for name in ('input', 'restored', 'x8')]
            texts = [f'{cell:.2f}' if cell is not None else '' for cell in cells]
            texts += [f'{ssim:.4f}' if ssim is not None else '' for ssim in ssims]
            lines.append(f'| {group} | {scores["pictures"]} | ' + ' | '.join(texts) + ' |')
    for group, scores in means.items():
        if group.endswith('clean'):
            drifts = ', '.join(f'{channel} {scores[f"drift {channel}"]:+.2f}' for channel in 'RGB')
            lines.append(f'\n{group}: PSNR {scores["psnr restored"]:.2f}; largest mean drift, in grey levels: {drifts}')
    return '\n'.join(lines)


def differences(found: dict[str, Scores], stored: dict[str, Scores]) -> list[str]:
    """Return a line for each PSNR that differs from the stored one by more than TOLERANCE."""
    return [
        f'{group}, {name}: {found[group][name]:.3f} dB, stored are {value:.3f}'
        for group, scores in stored.items()
        for name, value in scores.items()
        if name.startswith('psnr') and abs(found[group][name] - value) > TOLERANCE
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('-w', '--weights', type=Path, default=WEIGHTS, help='by default, the bundled ones')
    parser.add_argument('--photos', type=Path, help='also score the pictures in this folder, as the set `further`')
    parser.add_argument('--strength', type=float, default=1, help="as `basicsr restore`'s, from 0 to 1 (default 1)")
    parser.add_argument('-o', '--out', type=Path, help="also write each picture's scores and the means as JSON")
    parser.add_argument('--pictures', type=Path, help='also write given, restored and sharp, side by side, in a folder')
    parser.add_argument('--store', action='store_true', help=f'make these scores the stored ones, in {STORED.name}')
    arguments = parser.parse_args()
    if not 0 <= arguments.strength <= 1:
        parser.error(f'--strength must be from 0 to 1, not {arguments.strength}')
    is_default = arguments.strength == 1 and arguments.weights.resolve() == WEIGHTS
    if arguments.store and (arguments.photos or not is_default):
        parser.error('--store is for the defaults and the pictures of all; leave -w, --strength and --photos out')
    network = load_network(arguments.weights)
    scores_by_group: dict[str, list[Scores]] = defaultdict(list)
    named: dict[str, Scores] = {}
    samples = list(draw_samples(arguments.photos))
    for sample in tqdm(samples, unit='picture', disable=None):
        scores, restored = score(network, sample, arguments.strength)
        scores_by_group[sample.group].append(scores)
        named[f'{sample.group} {sample.name}'] = scores
        if arguments.pictures:
            write_side_by_side(arguments.pictures, sample, restored)
    means = mean_scores(scores_by_group)
    print(table(means))
    if arguments.out:
        arguments.out.write_text(json.dumps({'means': means, 'pictures': named}, indent=1) + '\n')
    if arguments.store:
        STORED.write_text(json.dumps(means, indent=1) + '\n')
    elif is_default:
        wrong = differences(means, json.loads(STORED.read_text()))
        print('\n'.join(wrong) or f'All PSNRs are the stored ones, to {TOLERANCE} dB.')
        sys.exit(1 if wrong else 0)


if __name__ == '__main__':
    main()
