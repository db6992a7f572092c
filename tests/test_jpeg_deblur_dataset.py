import os
import pickle
import shutil
from itertools import permutations
from unittest import mock

import cv2
import numpy as np
import pytest
import torch
from basicsr.data import build_dataset
from conftest import picture
from scipy.stats import norm
from torch.utils.data import DataLoader

from wrcan_arch import InputError, JPEGDeblurDataset
from wrcan_arch.data.draws import Draw, DrawSampler
from wrcan_arch.data.jpeg import jpeg_roundtrip
from wrcan_arch.data.jpeg_deblur_dataset import augment, draw_noise, planes, whole_noise
from wrcan_arch.data.store_writer import StoreWriter

NO_AUGMENTATION = dict.fromkeys(['hflip_prob', 'vflip_prob', 'transpose_prob', 'rgb_permute_prob', 'noise_prob'], 0)


def frames(count=4, height=60, width=72):
    sharp = [picture(height, width, seed) for seed in range(count)]
    blurred = [
        cv2.imencode('.jpg', cv2.blur(image, (5, 3)), [cv2.IMWRITE_JPEG_QUALITY, 25])[1].tobytes() for image in sharp
    ]
    return {f'000_{number:08d}': pair for number, pair in enumerate(zip(blurred, sharp, strict=True))}


@pytest.fixture(params=['lmdb', 'disk'])
def options(request, tmp_path):
    """Options of a data set whose frames are in stores or in folders."""
    roots = {role: tmp_path / (f'{role}.lmdb' if request.param == 'lmdb' else role) for role in ('lq', 'gt')}
    if request.param == 'lmdb':
        with StoreWriter(roots['lq']) as lq, StoreWriter(roots['gt']) as gt:
            for key, (blurred, sharp) in frames().items():
                lq.put(key, '.jpg', blurred, sharp.shape)
                gt.put(key, '.png', cv2.imencode('.png', sharp)[1].tobytes(), sharp.shape)
    else:
        for key, (blurred, sharp) in frames().items():
            for root in roots.values():
                root.mkdir(exist_ok=True)
            (roots['lq'] / f'{key}.jpg').write_bytes(blurred)
            cv2.imwrite(str(roots['gt'] / f'{key}.png'), sharp)
    return {
        'name': 'small', 'type': 'JPEGDeblurDataset', 'phase': 'train', 'io_backend': {'type': request.param},
        'dataroot_lq': str(roots['lq']), 'dataroot_gt': str(roots['gt']),
        'gt_size': 24, 'jpeg_quality': 25, 'manual_seed': 5,
    }  # fmt: skip


def as_bgr(tensor):
    return np.rint(tensor.numpy().transpose(1, 2, 0)[:, :, ::-1] * 255).astype(np.uint8)


def test_toolbox_builds_it(options):
    assert isinstance(build_dataset(options), JPEGDeblurDataset)


def test_whole_frames_are_opencvs(options):
    dataset = JPEGDeblurDataset({**options, 'phase': 'val'})
    assert len(dataset) == 4
    for item, (key, (blurred, sharp)) in zip(dataset, frames().items(), strict=True):
        np.testing.assert_array_equal(
            as_bgr(item['lq']), cv2.imdecode(np.frombuffer(blurred, np.uint8), cv2.IMREAD_COLOR)
        )
        np.testing.assert_array_equal(as_bgr(item['gt']), sharp)
        assert key in item['lq_path'] and key in item['gt_path']
        assert 'gt_jpeg' not in item


def test_what_may_be_a_mistake_is_told(options):
    def likely_mistakes(**changes):
        return list(JPEGDeblurDataset({**options, **changes}).likely_mistakes())

    quality = "data set small: the blurred '000_00000000' has JPEG quality 25, but blurred_quality says 95"
    assert likely_mistakes(blurred_quality=95) == [quality]
    assert likely_mistakes(jpeg_quality=95) == [quality.replace('blurred_quality', 'jpeg_quality')]
    swapped = {'dataroot_lq': options['dataroot_gt'], 'dataroot_gt': options['dataroot_lq']}
    (said,) = likely_mistakes(**swapped)
    assert said == 'data set small: the sharp frames are JPEG, the blurred ones are not; are the two swapped?'
    for right in ({}, {'blurred_quality': [15, 95]}, {'jpeg_quality': None}, {'dataroot_gt': options['dataroot_lq']}):
        assert not likely_mistakes(**right)


def test_patches_show_one_place_of_frame_and_of_its_whole_jpeg(options):
    dataset = JPEGDeblurDataset({**options, **NO_AUGMENTATION})
    for index, (blurred, sharp) in enumerate(frames().values()):
        item = {
            role: as_bgr(value) for role, value in dataset[Draw(index, 77)].items() if role in ('lq', 'gt', 'gt_jpeg')
        }
        found = cv2.matchTemplate(sharp, item['gt'], cv2.TM_SQDIFF)
        left, top = cv2.minMaxLoc(found)[2]
        place = slice(top, top + 24), slice(left, left + 24)
        np.testing.assert_array_equal(item['gt'], sharp[place])
        np.testing.assert_array_equal(
            item['lq'], cv2.imdecode(np.frombuffer(blurred, np.uint8), cv2.IMREAD_COLOR)[place]
        )
        np.testing.assert_array_equal(item['gt_jpeg'], jpeg_roundtrip(sharp, 25)[place])


def test_patches_lie_anywhere_in_a_frame_and_are_as_large_as_it(options):
    place = np.add.outer(np.arange(60) * 4, np.zeros(72, int)), np.add.outer(np.zeros(60, int), np.arange(72) * 3)
    decode = 'wrcan_arch.data.jpeg_deblur_dataset.FrameSource.decode'
    with mock.patch(decode, lambda *_: np.dstack([*place, place[0]]).astype(np.uint8)):
        dataset = JPEGDeblurDataset({**options, **NO_AUGMENTATION, 'jpeg_quality': None})
        corners = {tuple(as_bgr(dataset[Draw(0, number)]['gt'])[0, 0, :2] // (4, 3)) for number in range(600)}
        whole = JPEGDeblurDataset({**options, **NO_AUGMENTATION, 'gt_size': 60, 'jpeg_quality': None})[Draw(0, 0)]
    assert {top for top, _ in corners} == set(range(60 - 24 + 1))
    assert {left for _, left in corners} == set(range(72 - 24 + 1))
    assert whole['gt'].shape == (3, 60, 60)


def test_third_root_takes_the_place_of_compressing(options, tmp_path):
    marker = np.full((60, 72, 3), 7, np.uint8)
    root = tmp_path / ('j.lmdb' if options['io_backend']['type'] == 'lmdb' else 'j')
    content = cv2.imencode('.png', marker)[1].tobytes()
    if root.suffix:
        with StoreWriter(root) as store:
            for key in frames():
                store.put(key, '.png', content, marker.shape)
    else:
        root.mkdir()
        for key in frames():
            (root / f'{key}.png').write_bytes(content)
    options['dataroot_gt_jpeg'] = str(root)
    assert (as_bgr(JPEGDeblurDataset(options)[Draw(0, 0)]['gt_jpeg']) == 7).all()
    assert 'gt_jpeg' not in JPEGDeblurDataset({**options, 'phase': 'val'})[0], 'it is for training alone'
    sharp_again = JPEGDeblurDataset({**options, 'dataroot_gt_jpeg': options['dataroot_gt']})
    for number in range(4):
        item = sharp_again[Draw(0, number)]
        assert torch.equal(item['gt_jpeg'], item['gt']), 'patches of one place'


def test_without_quality_there_is_no_jpeg_of_the_sharp_patch(options):
    del options['jpeg_quality']
    assert set(JPEGDeblurDataset(options)[Draw(0, 0)]) == {'lq', 'gt', 'lq_path', 'gt_path', 'key'}


STORES = {'lq': 'encoded', 'gt': 'encoded', 'raw': 'raw'}


def test_raw_store_gives_the_same_items_as_files_in_it(tmp_path):
    """Crops, their JPEG and whole frames from a raw store equal those from an encoded store."""
    lq, gt, raw = (StoreWriter(tmp_path / f'{name}.lmdb', kind=kind) for name, kind in STORES.items())
    with lq, gt, raw:
        for key, (blurred, sharp) in frames().items():
            lq.put(key, '.jpg', blurred, sharp.shape)
            gt.put(key, '.png', cv2.imencode('.png', sharp)[1].tobytes(), sharp.shape)
            raw.put(key, '.raw', sharp.tobytes(), sharp.shape)
    options = {
        'name': 'raw', 'phase': 'train', 'io_backend': {'type': 'lmdb'}, 'dataroot_lq': str(tmp_path / 'lq.lmdb'),
        'gt_size': 24, 'jpeg_quality': 25, 'manual_seed': 5,
    }  # fmt: skip
    for phase in ('train', 'val'):
        encoded, raw = (
            JPEGDeblurDataset({**options, 'phase': phase, 'dataroot_gt': str(tmp_path / f'{name}.lmdb')})
            for name in ('gt', 'raw')
        )
        for number in range(12):
            one, other = encoded[Draw(number % 4, number)], raw[Draw(number % 4, number)]
            assert one.keys() == other.keys()
            assert all(torch.equal(one[role], other[role]) for role in one if torch.is_tensor(one[role]))


def draws_with(options, workers, draws):
    loader = DataLoader(JPEGDeblurDataset(options), batch_size=2, sampler=draws, num_workers=workers)
    return torch.cat([torch.cat([batch['lq'], batch['gt'], batch['gt_jpeg']], dim=1) for batch in loader])


def test_items_depend_on_seed_and_draw_alone_not_on_workers(options):
    sampler = DrawSampler(range(4), 1, 0, 4, batch_size=2, seed=5, start_iter=0, total_iter=8)
    alone = draws_with(options, 0, sampler)
    assert len(alone) == 16
    for workers in (1, 2):
        assert torch.equal(draws_with(options, workers, sampler), alone)
    assert len({item.numpy().tobytes() for item in alone}) == 16, 'the same item is drawn anew each time'
    assert not torch.equal(draws_with({**options, 'manual_seed': 6}, 0, sampler), alone)


@pytest.mark.slow
@pytest.mark.parametrize('options', ['lmdb'], indirect=True)
@pytest.mark.parametrize(('start', 'workers'), [('fork', 2), ('spawn', 1)])  # a spawned worker must load all libraries
def test_workers_of_either_kind_can_follow_a_read_in_the_parent(options, start, workers):
    """LMDB environments must not cross a fork and cannot be pickled; spawned workers need the toolbox's repairs."""
    dataset = JPEGDeblurDataset(options)
    alone = [dataset[Draw(index, index)]['lq'] for index in range(4)]
    draws = [Draw(index, index) for index in range(4)]
    loader = DataLoader(dataset, batch_size=None, sampler=draws, num_workers=workers, multiprocessing_context=start)
    assert all(torch.equal(item['lq'], expected) for item, expected in zip(loader, alone, strict=True))


def test_plain_indices_take_pytorchs_randomness(options):
    dataset = JPEGDeblurDataset(options)
    torch.manual_seed(0)
    first, second = dataset[0]['gt'], dataset[0]['gt']
    torch.manual_seed(0)
    assert torch.equal(dataset[0]['gt'], first) and not torch.equal(first, second)


def test_items_are_the_same_whatever_the_default_device_and_type(options):
    options['noise_prob'] = 1
    whole_noise.cache_clear()
    torch.manual_seed(3)
    expected = JPEGDeblurDataset(options)[0]
    whole_noise.cache_clear()
    torch.manual_seed(3)
    torch.set_default_dtype(torch.float16)
    try:
        with torch.device('meta'):
            item = JPEGDeblurDataset(options)[0]
    finally:
        torch.set_default_dtype(torch.float32)
    for role in ('lq', 'gt', 'gt_jpeg'):
        assert torch.equal(item[role], expected[role])


def test_patches_as_bytes_are_the_same_patches(options):
    for draw in range(8):
        floats, pixels = (JPEGDeblurDataset({**options, **more})[Draw(1, draw)] for more in ({}, {'as_bytes': True}))
        for role in ('lq', 'gt', 'gt_jpeg'):
            assert pixels[role].dtype == torch.uint8 and torch.equal(pixels[role].float() / 255, floats[role])
    frame = JPEGDeblurDataset({**options, 'phase': 'val', 'as_bytes': True})[0]
    assert frame['lq'].dtype == torch.float32, 'whole frames are floats to whoever reads them'


@pytest.mark.parametrize('shape', [(1, 1, 3), (1, 7, 3), (5, 1, 3), (33, 65, 3)])
def test_planes_are_the_channels_in_order(shape):
    frame = np.random.default_rng(0).integers(0, 256, (shape[0] + 2, shape[1] + 2, 3), np.uint8)
    for image in (frame[1:-1, 1:-1], np.ascontiguousarray(frame[1:-1, 1:-1])):
        for order in permutations(range(3)):
            np.testing.assert_array_equal(planes(image, order), image.transpose(2, 0, 1)[list(order)])
        np.testing.assert_array_equal(planes(image), image.transpose(2, 0, 1)[::-1])


def test_it_can_be_pickled_after_it_was_read(options):
    dataset = JPEGDeblurDataset(options)
    item = dataset[Draw(1, 9)]
    assert torch.equal(pickle.loads(pickle.dumps(dataset))[Draw(1, 9)]['lq'], item['lq'])


def orientations(image):
    return [np.ascontiguousarray(turned[::rows, ::columns]) for turned in (image, image.transpose(1, 0, 2))
            for rows in (1, -1) for columns in (1, -1)]  # fmt: skip


def test_all_patches_get_one_orientation_and_one_channel_order():
    image = picture(16, 16)
    seen = set()
    for seed in range(200):
        turned = augment({'lq': image, 'gt': image, 'gt_jpeg': image}, np.random.default_rng(seed), noise_prob=0)
        turned = {role: planes.transpose(1, 2, 0)[:, :, ::-1] for role, planes in turned.items()}
        np.testing.assert_array_equal(turned['lq'], turned['gt'])
        np.testing.assert_array_equal(turned['gt_jpeg'], turned['gt'])
        matches = [
            (number, order) for number, oriented in enumerate(orientations(image))
            for order in [(0, 1, 2), (0, 2, 1), (1, 0, 2), (1, 2, 0), (2, 0, 1), (2, 1, 0)]
            if np.array_equal(oriented[:, :, list(order)], turned['gt'])
        ]  # fmt: skip
        assert len(matches) == 1
        seen.add(matches[0])
    assert len({number for number, _ in seen}) == 8 and len({order for _, order in seen}) == 6


@pytest.mark.parametrize(
    ('chosen', 'turned'),
    [
        ('hflip', lambda image: image[:, ::-1]),
        ('vflip', lambda image: image[::-1]),
        ('hflip vflip', lambda image: image[::-1, ::-1]),
        ('transpose', lambda image: image.transpose(1, 0, 2)),
        ('hflip transpose', lambda image: image[:, ::-1].transpose(1, 0, 2)),
    ],
)
def test_turns_are_what_they_are_called(chosen, turned):
    image, certain = picture(16, 16), {f'{name}_prob': 1 for name in chosen.split()}
    augmented = augment({'gt': image, 'lq': image}, np.random.default_rng(0), **{**NO_AUGMENTATION, **certain})
    np.testing.assert_array_equal(augmented['gt'], turned(image)[:, :, ::-1].transpose(2, 0, 1))


@pytest.mark.parametrize('name', ['hflip_prob', 'vflip_prob', 'transpose_prob', 'rgb_permute_prob', 'noise_prob'])
def test_each_augmentation_happens_as_often_as_its_option_says(name):
    image = picture(16, 16)
    for probability, expected in ((0, 0), (0.5, 100), (1, 200)):
        changed = 0
        for seed in range(200):
            turned = augment({'lq': image}, np.random.default_rng(seed), **{**NO_AUGMENTATION, name: probability})
            changed += not np.array_equal(turned['lq'], image.transpose(2, 0, 1)[::-1])
        # a permutation of the channels is the identity in one of six
        assert abs(changed - expected * (5 / 6 if name == 'rgb_permute_prob' else 1)) <= (0 if expected == 0 else 25)


def test_noise_is_on_the_blurred_patch_alone_with_its_sigma():
    grey = np.full((200, 200, 3), 128, np.uint8)
    turned = augment({'lq': grey, 'gt': grey}, np.random.default_rng(0), **{**NO_AUGMENTATION, 'noise_prob': 1})
    assert (turned['gt'] == 128).all()
    cut = np.random.default_rng(1).normal(0, 2, 10**6).astype(int)  # as the authors' code does; rounded it has 2.02
    assert turned['lq'].std() == pytest.approx(cut.std(), abs=0.02)
    black = augment({'lq': grey * 0}, np.random.default_rng(0), **{**NO_AUGMENTATION, 'noise_prob': 1})['lq']
    assert black.max() < 20, 'clipped, not wrapped'


@pytest.mark.parametrize('sigma', [0.5, 2, 8.0])
def test_noise_is_the_normal_distributions_cut_towards_zero(sigma):
    levels, pairs = np.arange(-60, 61), whole_noise(sigma)
    above = norm.cdf(np.arange(1, 62), scale=sigma) - norm.cdf(np.arange(61), scale=sigma)
    expected = np.concatenate([above[:0:-1], [2 * above[0]], above[1:]])
    joint = np.zeros((len(levels), len(levels)))
    np.add.at(joint, tuple(pairs.T + 60), 1 / len(pairs))
    np.testing.assert_allclose(joint, np.outer(expected, expected), atol=2e-5)
    np.testing.assert_allclose(joint.sum(1), expected, atol=2e-5)
    np.testing.assert_allclose(joint.sum(0), expected, atol=1e-4)


@pytest.mark.parametrize(('sigma', 'most'), [(0.0, 0), (1e4, 255)])
def test_noise_without_and_beyond_all_measure_stays_in_range(sigma, most):
    assert abs(whole_noise(sigma)).max() == most
    for shape in ((1, 1, 3), (3, 5, 3), (0, 4, 3)):
        noise = draw_noise(shape, sigma, np.random.default_rng(0))
        assert noise.shape == shape and noise.dtype == np.int16


def test_names_of_any_bytes_get_a_key_that_can_be_written(tmp_path):
    for role, ending in (('lq', 'jpg'), ('gt', 'png')):
        (tmp_path / role).mkdir()
        (tmp_path / role / os.fsdecode(b'b\xff.' + ending.encode())).write_bytes(
            cv2.imencode('.png', picture(8, 8))[1].tobytes()
        )
    folders = {f'dataroot_{role}': str(tmp_path / role) for role in ('lq', 'gt')}
    item = JPEGDeblurDataset({'name': 'a', 'phase': 'val', 'io_backend': {'type': 'disk'}, **folders})[0]
    assert item['key'] == 'b\\udcff' and item['gt'].shape == (3, 8, 8)


def test_names_choose_a_sequence_of_stores_and_of_nested_folders(options, tmp_path):
    assert len(JPEGDeblurDataset({**options, 'names': '000_0000000[12]'})) == 2
    with pytest.raises(InputError, match="nothing in .* is named '001_\\*'"):
        JPEGDeblurDataset({**options, 'names': '001_*'})
    for role in ('lq', 'gt'):
        for sequence in ('000', '001'):
            (tmp_path / 'nested' / role / sequence).mkdir(parents=True)
            cv2.imwrite(str(tmp_path / 'nested' / role / sequence / '00000000.png'), picture(8, 8))
    nested = {'name': 'nested', 'phase': 'val', 'io_backend': {'type': 'disk'}, 'names': '001_*',
              'dataroot_lq': str(tmp_path / 'nested/lq'), 'dataroot_gt': str(tmp_path / 'nested/gt')}  # fmt: skip
    (item,) = JPEGDeblurDataset(nested)
    assert item['key'] == '001_00000000'
    assert item['lq_path'] == '001_00000000.png', 'else pictures of the toolbox would be called 00000000 of each'
    cv2.imwrite(str(tmp_path / 'nested/gt/001_00000000.png'), picture(8, 8))
    with pytest.raises(InputError, match='gt/001/00000000.png and .*gt/001_00000000.png are taken for the same frame'):
        JPEGDeblurDataset(nested)


def test_frame_smaller_than_the_patch_is_named(options):
    with pytest.raises(InputError, match="small: '.*000_00000000.*' is 72 x 60, smaller than gt_size 61"):
        JPEGDeblurDataset({**options, 'gt_size': 61})[Draw(0, 0)]


def test_pair_of_unequal_size_is_named(tmp_path):
    for role, size in (('lq', (40, 30)), ('gt', (40, 32))):
        (tmp_path / role).mkdir()
        cv2.imwrite(str(tmp_path / role / 'a.png'), picture(*size))
    opt = {'name': 'pair', 'phase': 'val', 'io_backend': {'type': 'disk'},
           'dataroot_lq': str(tmp_path / 'lq'), 'dataroot_gt': str(tmp_path / 'gt')}  # fmt: skip
    with pytest.raises(InputError, match=r"pair: '.*lq/a\.png' is 30 x 40 but the sharp '.*gt/a\.png' is 32 x 40"):
        JPEGDeblurDataset(opt)[0]


def test_unpaired_names_empty_and_missing_folders_are_errors(tmp_path):
    (tmp_path / 'lq').mkdir()
    (tmp_path / 'gt').mkdir()
    opt = {'name': 'pair', 'phase': 'val', 'io_backend': {'type': 'disk'},
           'dataroot_lq': str(tmp_path / 'lq'), 'dataroot_gt': str(tmp_path / 'gt')}  # fmt: skip
    with pytest.raises(InputError, match='pair: there are no images in .*gt'):
        JPEGDeblurDataset(opt)
    cv2.imwrite(str(tmp_path / 'gt' / 'a.png'), picture(8, 8))
    with pytest.raises(InputError, match="must hold the same names; 1 are in only one of them, the first is 'a'"):
        JPEGDeblurDataset(opt)
    for role in ('lq', 'gt'):
        cv2.imwrite(str(tmp_path / role / 'b.png'), picture(8, 8))
    assert len(JPEGDeblurDataset({**opt, 'names': 'b*'})) == 1, 'what is not chosen needs no partner'
    with pytest.raises(InputError, match='pair: training needs dataroot_gt, the sharp frames'):
        JPEGDeblurDataset({**opt, 'phase': 'train', 'dataroot_gt': None})
    for phase in ('train', 'val'):
        with pytest.raises(InputError, match='pair: it needs dataroot_lq, the blurred frames'):
            JPEGDeblurDataset({**opt, 'phase': phase, 'dataroot_lq': None})
    for ours, theirs, more in (('A', 'a', ''), ('\xe9', 'e\u0301', '; the two differ in how accents are written')):
        for role, name in (('lq', ours), ('gt', theirs)):
            shutil.rmtree(tmp_path / role)
            (tmp_path / role).mkdir()
            cv2.imwrite(str(tmp_path / role / f'{name}.png'), picture(8, 8))
        with pytest.raises(InputError, match=f"2 are .* the first is '{ours}' in .*lq, '{theirs}' in .*gt{more}$"):
            JPEGDeblurDataset(opt)
    with pytest.raises(InputError, match="nothing in .*gt is named 'c'"):
        JPEGDeblurDataset({**opt, 'names': 'c'})
    with pytest.raises(InputError, match="no folder '.*nowhere'"):
        JPEGDeblurDataset({**opt, 'dataroot_lq': str(tmp_path / 'nowhere')})
    with pytest.raises(InputError, match="data set without a name: no folder '.*nowhere'"):
        JPEGDeblurDataset({'phase': 'val', 'dataroot_lq': str(tmp_path / 'nowhere')})


@pytest.mark.parametrize('content', [b'', b'not an image'])
def test_unreadable_image_is_named(options, tmp_path, content):
    if options['io_backend']['type'] == 'disk':
        (tmp_path / 'lq' / '000_00000002.jpg').write_bytes(content)
    else:
        options['dataroot_lq'] = str(tmp_path / 'broken.lmdb')
        with StoreWriter(options['dataroot_lq']) as store:
            for number, (key, (blurred, _)) in enumerate(frames().items()):
                store.put(key, '.jpg', content if number == 2 else blurred, (60, 72, 3))
    with pytest.raises(InputError, match="small: '.*000_00000002.*' in .* is not a readable image"):
        JPEGDeblurDataset(options)[Draw(2, 0)]
