"""Ablation of the paper's parts: the four blocks of Table 1, and L1 against L1 + L_AE-JPEG, at minutes for each run.

Every run has the same data, patches, iterations and optimizer. The paper gives each case the same number of blocks, so
its wide blocks have twice the parameters and work; here each narrow case also runs with twice as many blocks, which
makes these equal. Weights are scored on a third of the exposures of each of held_out.py's blurred pictures. Run the
script where datasets_prep/small_data.sh wrote its data: an interrupted run resumes, a finished one is not repeated.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import numpy as np
from held_out import Sample, compare, draw_samples, restored_by
from matplotlib.figure import Figure
from tqdm import tqdm

from wrcan_arch import load_network

OPTIONS = Path(__file__).resolve().parent.parent / 'options' / 'train_small_ablation.yml'


class Case(NamedTuple):
    """A case to compare: its title, block and number of blocks, loss, and PSNR in the paper."""

    title: str
    block: str
    num_block: int
    autoencoder: bool
    paper: float | None


CASES = (
    Case('case 1: EDSR block', 'res', 2, False, 28.45),
    Case('case 2: WR', 'wr', 2, False, 28.60),
    Case('case 3: CA', 'rca', 2, False, 28.56),
    Case('case 4: WR + CA', 'wrca', 2, False, 28.71),
    Case('case 1, twice the blocks', 'res', 4, False, None),
    Case('case 3, twice the blocks', 'rca', 4, False, None),
    Case('case 4 with L_AE-JPEG', 'wrca', 2, True, None),
)
PAPER_AUTOENCODER_GAIN = 28.99 - 28.93  # Table 2: WRCAN, L1 + L_AE-JPEG over L1, 4 groups, REDS


def run_name(case: Case, seed: int) -> str:
    return f'ablation_{case.block}{case.num_block}{"_ae" if case.autoencoder else ""}_seed{seed}'


def train(case: Case, seed: int) -> Path:
    """Train one case with one seed, or resume it; return its weight file."""
    name = run_name(case, seed)
    settings = {
        'name': name,
        'manual_seed': seed,
        'network_g:block': case.block,
        'network_g:num_block': case.num_block,
    }
    if not case.autoencoder:
        settings |= {'train:autoencoder_opt': '~', 'datasets:train:jpeg_quality': '~'}
    weights = Path('experiments', name, 'models', 'net_g_latest.pth')
    if not weights.exists():
        command = [sys.executable, '-m', 'wrcan_arch', 'train', '-opt', str(OPTIONS), '--auto_resume', '--force_yml']
        command += [f'{key}={value}' for key, value in settings.items()]
        result = subprocess.run(command, capture_output=True, text=True)
        if result.returncode:
            raise SystemExit(f'ablation: {name}: {(result.stderr.splitlines() or ["stopped"])[-1]}')
    return weights


def score(weights: Path, samples: list[Sample]) -> dict[str, float]:
    """Return the mean PSNR and SSIM of each set, and the number of parameters."""
    network = load_network(weights)
    found: dict[str, list[float]] = {}
    for sample in samples:
        set_name = sample.group.partition(' ')[0]
        psnr, ssim = compare(restored_by(network, sample.given), sample.sharp)
        given, _ = compare(sample.given, sample.sharp)
        for name, value in (('psnr', psnr), ('ssim', ssim), ('input', given)):
            found.setdefault(f'{set_name} {name}', []).append(value)
    means = {name: float(np.mean(values)) for name, values in found.items()}
    return means | {'parameters': sum(weight.numel() for weight in network.parameters())}


def spread(results: dict[str, dict[str, float]], case: Case, seeds: list[int], score_name: str) -> tuple[float, float]:
    """Return the mean and the sample standard deviation over the seeds."""
    values = [results[run_name(case, seed)][score_name] for seed in seeds]
    return float(np.mean(values)), float(np.std(values, ddof=1)) if len(values) > 1 else float('nan')


def table(results: dict[str, dict[str, float]], seeds: list[int]) -> str:
    lines = ['| case | blocks | parameters | photos PSNR | leaves PSNR | photos SSIM | paper PSNR |', '|---' * 7 + '|']
    for case in CASES:
        parameters = results[run_name(case, seeds[0])]['parameters']
        cells = [case.title, str(case.num_block), f'{parameters:,}']
        for name, digits in (('photos psnr', 3), ('leaves psnr', 3), ('photos ssim', 4)):
            mean, deviation = spread(results, case, seeds, name)
            cells.append(f'{mean:.{digits}f} ± {deviation:.{digits}f}')
        lines.append('| ' + ' | '.join([*cells, f'{case.paper:.2f}' if case.paper else '']) + ' |')
    first = results[run_name(CASES[0], seeds[0])]
    lines.append(f'\nThe input: photos {first["photos input"]:.3f} dB, leaves {first["leaves input"]:.3f} dB.')
    return '\n'.join(lines)


def plot(results: dict[str, dict[str, float]], seeds: list[int], path: Path) -> None:
    """Plot the cases' gain over case 1, here with a dot for each seed, beside the paper's."""
    figure = Figure(figsize=(9, 4.5), layout='constrained')
    axes = figure.subplots()
    rows = np.arange(len(CASES))[::-1]
    for offset, (set_name, colour) in enumerate((('photos', 'tab:blue'), ('leaves', 'tab:orange'))):
        base, _ = spread(results, CASES[0], seeds, f'{set_name} psnr')
        for row, case in zip(rows, CASES, strict=True):
            gains = [results[run_name(case, seed)][f'{set_name} psnr'] - base for seed in seeds]
            label = f'{set_name}, here: each seed, and their mean' if row == rows[0] else None
            height = row + 0.15 - 0.3 * offset
            axes.plot(gains, [height] * len(gains), 'o', color=colour, alpha=0.4)
            axes.plot([np.mean(gains)], [height], '|', color=colour, markersize=16, markeredgewidth=3, label=label)
    case4 = float(np.mean([results[run_name(CASES[3], seed)]['photos psnr'] for seed in seeds]))
    base, _ = spread(results, CASES[0], seeds, 'photos psnr')
    for row, case in zip(rows, CASES, strict=True):
        if case.paper and CASES[0].paper:
            label = 'the paper, REDS (Table 1)' if row == rows[0] else None
            axes.plot([case.paper - CASES[0].paper], [row], 'D', color='black', label=label)
    axes.plot(
        [case4 - base + PAPER_AUTOENCODER_GAIN], [rows[-1]], 'D', color='grey',
        label="the paper's gain by L_AE-JPEG (Table 2), on top of case 4 here",
    )  # fmt: skip
    axes.axvline(0, color='lightgrey', zorder=0)
    axes.set_yticks(rows, [case.title for case in CASES])
    axes.set_xlabel('PSNR over case 1, dB')
    figure.legend(loc='outside lower center', ncols=2, fontsize='small')
    figure.savefig(path, dpi=120)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('-o', '--out', type=Path, default=Path('ablation'), help='OUT.json and OUT.png are written')
    parser.add_argument('--seeds', type=int, default=3, help='runs of each case (default 3)')
    arguments = parser.parse_args()
    seeds = list(range(1, arguments.seeds + 1))
    kept = arguments.out.with_suffix('.json')
    results: dict[str, dict[str, float]] = json.loads(kept.read_text()) if kept.exists() else {}
    samples = [sample for sample in draw_samples() if sample.group.endswith('blurred')][::3]
    for seed, case in tqdm([(seed, case) for seed in seeds for case in CASES], unit='run', disable=None):
        name = run_name(case, seed)
        if name not in results:  # seed by seed, so that an interrupted run still compares the cases
            results[name] = score(train(case, seed), samples)
            kept.write_text(json.dumps(results, indent=1) + '\n')
    print(table(results, seeds))
    plot(results, seeds, arguments.out.with_suffix('.png'))


if __name__ == '__main__':
    main()
