"""Tests the benchmark held_out.py itself: its means, table, comparison and samples."""

import re
from pathlib import Path

import numpy as np
import pytest
from conftest import benchmark_script, picture

from wrcan_arch.data.image_files import write_png


@pytest.fixture(scope='module')
def held_out():
    return benchmark_script('held_out')


BLURRED = {'psnr input': 25.0, 'psnr restored': 26.0, 'psnr x8': 26.25, 'ssim input': 0.5, 'ssim restored': 0.75}


def test_means_by_group_and_the_largest_drift(held_out):
    drifts = [{'drift R': 0.5, 'psnr restored': 40.0}, {'drift R': -0.75, 'psnr restored': 42.0}]
    means = held_out.mean_scores({'photos blurred': [BLURRED, BLURRED], 'photos clean': drifts})
    assert means['photos blurred'] == {**BLURRED, 'pictures': 2}
    assert means['photos clean'] == {'drift R': -0.75, 'psnr restored': 41.0, 'pictures': 2}


def test_table_has_the_gain_and_the_drifts(held_out):
    clean = {'drift R': -0.75, 'drift G': 0.0, 'drift B': 0.25, 'psnr restored': 41.0}
    text = held_out.table(held_out.mean_scores({'photos blurred': [{**BLURRED, 'ssim x8': 0.8}], 'a clean': [clean]}))
    assert '| photos blurred | 1 | 25.00 | 26.00 | 1.00 | 26.25 | 0.5000 | 0.7500 | 0.8000 |' in text
    assert 'a clean: PSNR 41.00; largest mean drift, in grey levels: R -0.75, G +0.00, B +0.25' in text


def test_what_differs_by_more_than_the_tolerance_is_named(held_out):
    stored = {'photos blurred': BLURRED}
    assert held_out.differences({'photos blurred': {**BLURRED, 'psnr x8': 26.265, 'ssim input': 0.1}}, stored) == []
    found = {'photos blurred': {**BLURRED, 'psnr x8': 26.28}}
    assert held_out.differences(found, stored) == ['photos blurred, psnr x8: 26.280 dB, stored are 26.250']


def test_strength_blends_the_restored_picture_and_x8(held_out, monkeypatch):
    monkeypatch.setattr(held_out, 'restore', lambda network, image, **_: np.full_like(image, 100))
    given = np.full((8, 8, 3), 60, np.uint8)
    scores, restored = held_out.score(None, held_out.Sample('photos blurred', 'a', given, given + 20), 0.75)
    assert (restored == 90).all()
    assert scores['psnr restored'] == scores['psnr x8'] == pytest.approx(20 * np.log10(255 / 10), abs=1e-4)


def test_samples_are_the_same_each_time_and_never_of_training_seeds(held_out, monkeypatch):
    monkeypatch.setattr(held_out, 'EXPOSURES', 1)
    monkeypatch.setattr(held_out, 'LEAVES_SIZE', 64)
    monkeypatch.setattr(held_out, 'LEAVES_COUNT', 1)
    first, second = list(held_out.draw_samples()), list(held_out.draw_samples())
    assert [sample.group for sample in first] == [
        f'{name} {task}' for name in ('photos', 'photos', 'leaves') for task in ('blurred', 'still', 'clean')
    ]
    for one, other in zip(first, second, strict=True):
        np.testing.assert_array_equal(one.given, other.given)
        assert one.given.shape == one.sharp.shape
    script = (Path(__file__).parent.parent / 'datasets_prep' / 'small_data.sh').read_text()
    leaves_seeds = re.findall(r'dead_leaves\.py.* --seed (\d+)', script)
    assert leaves_seeds == ['1', '2'] and str(held_out.LEAVES_SEED) not in leaves_seeds
    assert f'--seed {held_out.SEED}' not in script  # of exposures; theirs may be 7, as LEAVES_SEED is of leaves


def test_pictures_of_a_folder_are_a_set_of_their_own(held_out, monkeypatch, tmp_path):
    monkeypatch.setattr(held_out, 'EXPOSURES', 1)
    monkeypatch.setattr(held_out, 'LEAVES_COUNT', 0)
    for name in ('a', 'b'):
        (tmp_path / name).mkdir()
        write_png(tmp_path / name / '1.png', picture(40, 50))
    samples = [sample for sample in held_out.draw_samples(tmp_path) if sample.group.startswith('further')]
    of_each = ['blurred {}_000', 'blurred {}_001', 'still {}', 'clean {}']
    named = [f'further {each}'.format(name) for name in ('a/1.png', 'b/1.png') for each in of_each]
    assert [f'{sample.group} {sample.name}' for sample in samples] == named
    assert all((sample.sharp == picture(40, 50)).all() for sample in samples)
    for sample in samples:
        held_out.write_side_by_side(tmp_path / 'out', sample, sample.given)
    assert len([*tmp_path.glob('out/*/*.png')]) == len(named)
