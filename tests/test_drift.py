import numpy as np
import pytest
from conftest import picture
from skimage.measure import block_reduce

from wrcan_arch.photos.drift import blend, block_means, colours_drift


def test_block_means_are_those_of_scikit_image():
    image = picture(192, 128)
    np.testing.assert_allclose(block_means(image), block_reduce(image, (64, 64, 1), np.mean))
    np.testing.assert_allclose(block_means(image.astype(np.uint16) * 257), block_means(image))


@pytest.mark.parametrize('shape', [(1, 1), (1, 200), (63, 65), (130, 64), (127, 129)])
def test_block_means_cover_images_of_any_size(shape):
    image = picture(*shape)
    means = block_means(image)
    assert means.shape == (max(1, shape[0] // 64), max(1, shape[1] // 64), 3)
    if means.shape[:2] == (1, 1):
        np.testing.assert_allclose(means[0, 0], image.mean(axis=(0, 1)))
    assert image.min() <= means.min() and means.max() <= image.max()


def test_shift_over_a_tenth_of_the_blocks_is_drift_and_edges_are_not():
    image = picture(640, 640) // 2
    assert not colours_drift(image, image)
    assert not colours_drift(image, np.roll(image, 7, axis=1))  # sharp but displaced
    noise = np.random.default_rng(0).integers(0, 100, image.shape, dtype=np.uint8)
    assert not colours_drift(image + 50, image + noise)
    for rows, drifted in ((0, False), (30, False), (192, True)):
        shifted = image.copy()
        shifted[:rows] += 20
        assert colours_drift(image, shifted) == drifted


@pytest.mark.parametrize('dtype', [np.uint8, np.uint16])
def test_blend_is_the_weighted_mean(dtype):
    one, other = (picture(130, 7, seed).astype(dtype) * dtype(np.iinfo(dtype).max // 255) for seed in (0, 1))
    for strength in (0, 0.3, 1):
        expected = np.rint(one.astype(float) * (1 - strength) + other.astype(float) * strength)
        blended = blend(one, other, strength)
        np.testing.assert_array_equal(blended, expected)
        assert blended.dtype == dtype
