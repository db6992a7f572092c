"""The bundled weights are intact, match their card, and improve a blurred photograph."""

import hashlib
from pathlib import Path

import cv2
import numpy as np
import pytest
import skimage
from basicsr.metrics import calculate_psnr

from wrcan_arch import load_network, restore
from wrcan_arch.cli import main
from wrcan_arch.data.jpeg import jpeg_roundtrip
from wrcan_arch.weights import BUNDLED

SMALL = BUNDLED['small']


def photograph(blur, quality):
    """Return a crop of coffee, which was never trained on, and its blurred and compressed copy."""
    sharp = cv2.imread(str(Path(skimage.__file__).parent / 'data' / 'coffee.png'))[60:316, 150:406]
    moved = cv2.filter2D(sharp, -1, np.full((1, blur), 1 / blur), borderType=cv2.BORDER_REFLECT)
    return sharp, jpeg_roundtrip(moved, quality)


def test_file_is_small_whole_and_says_what_it_is():
    assert SMALL.stat().st_size <= 8_000_000
    network = load_network()
    assert network.metadata['patch_size'] == 192 and network.metadata['jpeg_quality'] == [15, 95]
    assert network.metadata['name'] == 'train_small_last' and len(network.metadata['commit']) == 40
    assert hashlib.sha256(SMALL.read_bytes()).hexdigest() in SMALL.with_suffix('.md').read_text()


# Measured with the bundled file, in dB. The card has the first gain, held_out.py the scores that matter.
GAINS = [(5, 25, 0.682), (1, 90, 0.011)]


@pytest.mark.parametrize(('blur', 'quality', 'gain'), GAINS)
def test_the_gain_is_the_measured_one(blur, quality, gain):
    sharp, given = photograph(blur, quality)
    restored = restore(load_network(), np.ascontiguousarray(given[:, :, ::-1]), precision='fp32')[:, :, ::-1]
    assert calculate_psnr(restored, sharp, 0) - calculate_psnr(given, sharp, 0) == pytest.approx(gain, abs=0.02)


def test_restoring_takes_them_by_default(tmp_path, monkeypatch):
    _, blurred = photograph(blur=5, quality=25)
    cv2.imwrite(str(tmp_path / 'photo.png'), blurred)
    monkeypatch.chdir(tmp_path)
    assert main(['restore', 'photo.png']) == 0
    expected = restore(load_network(), np.ascontiguousarray(blurred[:, :, ::-1]))
    np.testing.assert_array_equal(cv2.imread('photo_restored.png')[:, :, ::-1], expected)
