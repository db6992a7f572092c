"""`basicsr doctor --data`: what is wrong with stores, folders of files and the data of an option file."""

import io
import re
from pathlib import Path

import cv2
import lmdb
import numpy as np
import pytest
import tifffile
from conftest import picture
from damage import STORE, bomb, folders, png, swap, value
from PIL import ExifTags, Image

from wrcan_arch.cli import main
from wrcan_arch.data import lmdb_store
from wrcan_arch.data.audit import quick_problems
from wrcan_arch.data.lmdb_store import open_store
from wrcan_arch.data.store_writer import StoreWriter


def without_progress(printed):
    return [line for line in printed.splitlines() if '%|' not in line]


def test_doctor_examines_stores_value_by_value(workplace, capfd):
    assert main(['doctor', '--data', 'train.yml', 'data_blur.lmdb']) == 0
    assert capfd.readouterr().out.splitlines() == ['data_blur.lmdb: sound', 'data_sharp.lmdb: sound']
    open_store(STORE).close()
    value(b'rubbish')()
    lmdb_store._open_stores.clear()
    assert main(['doctor', '--data', 'train.yml']) == 1
    said = capfd.readouterr()
    assert said.out.splitlines() == ['data_blur.lmdb: 1 problem', 'data_sharp.lmdb: sound']
    assert "data_blur.lmdb: 'photo3_000' was changed: 7 bytes with CRC-32" in said.err


def test_doctor_takes_a_folder_of_stores_and_what_else_is_in_it(workplace, capfd):
    """So does prepare_reds.py --verify; prepare_reds.py makes such a folder."""
    Path('all/REDS').mkdir(parents=True)
    STORE.rename('all/REDS/a.lmdb')
    assert main(['doctor', '--data', 'all']) == 0
    assert capfd.readouterr().out == 'all/REDS/a.lmdb: sound\n'
    Path('all/b.png').write_bytes(b'rubbish')
    assert main(['doctor', '--data', 'all']) == 1
    said = capfd.readouterr()
    assert said.out == 'all/REDS/a.lmdb: sound\nall: 1 problem\n' and 'all/b.png: cannot be decoded' in said.err


def test_doctor_names_the_smallest_picture_that_no_patch_fits_into(workplace, capfd):
    folders()
    for number, height in ((1, 30), (3, 20)):
        for name in (f'data_blur/photo{number}_000.jpg', f'data_sharp/photo{number}_000.png'):
            cv2.imwrite(name, picture(height, 40, number))
    assert main(['doctor', '--data', 'train.yml']) == 1
    said = "'photo3_000' is 40 x 20, smaller than gt_size 32 (and 1 more); make gt_size smaller"
    assert said in capfd.readouterr().err


def test_doctor_decodes_every_file_of_folders(workplace, capfd):
    folders()
    assert main(['doctor', '--data', 'train.yml']) == 0
    assert 'data_blur: sound\ndata_sharp: sound' in capfd.readouterr().out
    swap('    gt_size: 32\n', '', 'train.yml')()
    assert main(['doctor', '--data', 'train.yml']) == 0, 'which train asks for'
    Path('data_blur/photo3_000.jpg').write_bytes(b'rubbish')
    Path('data_sharp/photo1_000.jpg').write_bytes(Path('data_blur/photo2_000.jpg').read_bytes())
    assert main(['doctor', '--data', 'train.yml']) == 1
    said = capfd.readouterr()
    assert 'data_blur: 1 problem' in said.out and 'data_blur/photo3_000.jpg: cannot be decoded' in said.err
    assert 'data_sharp/photo1_000.jpg and data_sharp/photo1_000.png are taken for the same frame; remove' in said.err
    Path('data_sharp/photo1_000.jpg').unlink()
    assert main(['train', '-opt', 'train.yml', '--force_yml', 'datasets:train:gt_size=32']) == 2
    said = capfd.readouterr().err
    assert 'train.yml' in said and "photo3_000.jpg' in data_blur is not a readable image" in said
    swap('io_backend', 'io_backed', 'train.yml')()
    assert main(['doctor', '--data', 'train.yml']) == 1
    assert 'there is no such option here; did you mean io_backend?' in capfd.readouterr().err


@pytest.mark.parametrize(
    ('name', 'content', 'message'),
    [
        ('bomb.png', bomb, 'is 60000 x 60000, more pixels than OpenCV takes; scale it down'),
        ('deep.tif', lambda: tiff(np.uint32), 'cannot be decoded by OpenCV, which training uses; convert it to PNG'),
        (
            'cut.png',
            lambda: png(picture(80, 96))[:-20],
            'cannot be decoded by OpenCV, which training uses; convert it to PNG',
        ),
        ('eps.png', lambda: by_pillow('EPS'), 'cannot be decoded (it is not an image of a known format)'),
        ('gif.png', lambda: by_pillow('GIF'), None),
        ('ico.png', lambda: by_pillow('ICO'), 'cannot be decoded (it is not an image of a known format)'),
        ('large.png', lambda: png(np.zeros((13400, 13400), np.uint8)), None),
    ],
)
def test_doctor_reads_what_training_reads_and_no_more(tmp_path, capfd, name, content, message):
    (tmp_path / name).write_bytes(content())
    assert main(['doctor', '--data', str(tmp_path)]) == (1 if message else 0)
    last = without_progress(capfd.readouterr().err)[-1:]  # OpenCV may warn above it
    assert last == ([f'{tmp_path / name}: {message}'] if message else [])


def tiff(kind):
    file = io.BytesIO()
    tifffile.imwrite(file, np.zeros((8, 9), kind))
    return file.getvalue()


def by_pillow(kind):
    file = io.BytesIO()
    Image.new('RGB', (16, 16)).save(file, kind)
    return file.getvalue()


def test_doctor_compares_the_sizes_of_files_as_they_are_decoded(workplace, capfd):
    folders()
    sideways = Image.Exif()
    sideways[ExifTags.Base.Orientation] = 6
    for ending in ('jpg', 'png', 'webp', 'tif'):
        name = f'photo1_000{"" if ending == "png" else "_" + ending}'
        Image.fromarray(picture(96, 80)).save(f'data_sharp/{name}.{ending}', exif=sideways)
        cv2.imwrite(f'data_blur/{name}.jpg', picture(80, 96))
    assert main(['doctor', '--data', 'train.yml']) == 0, capfd.readouterr().err
    cv2.imwrite('data_sharp/photo2_000.png', picture(78, 96))
    swap('gt_size: 32', 'gt_size: 80')()
    assert main(['doctor', '--data', 'train.yml']) == 1
    said = capfd.readouterr().err
    assert "'photo2_000' is 96 x 80 in data_blur but 96 x 78 in data_sharp; prepare both from the same frame" in said
    assert "'photo2_000' is 96 x 78, smaller than gt_size 80; make gt_size smaller or leave the image out" in said


@pytest.mark.parametrize(
    ('name', 'kind', 'expected'),
    [
        ('gone.lmdb', 'lmdb', 'gone.lmdb: there is no such store; prepare it, or correct the path'),
        ('gone', 'disk', 'gone: there is no such folder; prepare it, or correct the path'),
        ('data_blur', 'lmdb', 'data_blur: a folder of images, not a store; io_backend: {type: disk} reads it'),
        (
            'data_blur.lmdb',
            'disk',
            'data_blur.lmdb: a store, not a folder of images; io_backend: {type: lmdb} reads it',
        ),
    ],
)
def test_doctor_says_what_is_there_instead_of_the_data(workplace, capfd, name, kind, expected):
    text = Path('train.yml').read_text().replace('type: lmdb', f'type: {kind}')
    Path('train.yml').write_text(re.sub(r'data_\w+\.lmdb', name, text))
    assert main(['doctor', '--data', 'train.yml']) == 1
    assert set(without_progress(capfd.readouterr().err)) == {expected}


def test_doctor_goes_on_after_a_file_that_cannot_be_opened(workplace, capfd):
    Path('data_sharp/gone.png').symlink_to('nowhere.png')
    assert main(['doctor', '--data', 'data_sharp', 'data_blur.lmdb']) == 1
    said = capfd.readouterr()
    assert said.out.splitlines() == ['data_sharp: 1 problem', 'data_blur.lmdb: sound']
    assert 'data_sharp: 100%|' in said.err
    assert set(re.findall(r'data_blur\.lmdb: 100%\|.*[\d?](value|image)', said.err)) == {'value', 'image'}
    assert without_progress(said.err) == ['data_sharp/gone.png: cannot be read (No such file or directory)']


def no_sharp_one():
    Path('data_sharp/photo3_000.png').unlink()


def of_another_size():
    cv2.imwrite('data_sharp/photo3_000.png', picture(78, 96))


def one_folder_further_down():
    for folder in ('data_blur', 'data_sharp'):
        Path(folder).rename('moved')
        Path(folder).mkdir()
        Path('moved').rename(f'{folder}/000')


@pytest.mark.parametrize(
    ('prepare', 'expected'),
    [
        (no_sharp_one, 'cannot read it (AssertionError: lq and gt datasets have different number of images: 6, 5.); '),
        (of_another_size, "photo3_000.png' is 96 x 80 in data_blur but 96 x 78 in data_sharp; prepare both from the"),
        (
            one_folder_further_down,
            'finds no images in data_blur; it ignores the folders in a folder',
        ),
        (lambda: Path('data_sharp/photo3_000.png').write_text('x'), "photo3_000.png' in data_sharp is not a readable"),
    ],
)
def test_pairs_of_the_toolboxs_data_set_are_checked_as_ours_are(workplace, capfd, prepare, expected):
    """`test` checks them before it renames any folder; `doctor` checks them too."""
    for path in Path('data_blur').iterdir():  # the toolbox pairs whole names
        cv2.imwrite(str(path.with_suffix('.png')), cv2.imread(str(path)))
        path.unlink()
    text = Path('test.yml').read_text().replace('.lmdb', '').replace('type: lmdb', 'type: disk')
    text = text.replace('JPEGDeblurDataset', 'PairedImageDataset').replace(
        '{ensemble: true, precision: fp32}', '{mode: input}'
    )
    Path('test.yml').write_text(text.replace('experiments/small/models/net_g_best.pth', '~'))
    assert main(['doctor', '--data', 'test.yml']) == 0, capfd.readouterr().err
    assert main(['test', '-opt', 'test.yml']) == 0
    prepare()
    capfd.readouterr()
    assert main(['test', '-opt', 'test.yml']) == 2
    assert expected in capfd.readouterr().err.splitlines()[-1]
    assert not list(Path('results').glob('*archived*'))
    assert main(['doctor', '--data', 'test.yml']) == 1
    assert expected in capfd.readouterr().err


@pytest.mark.parametrize(
    ('phase', 'scale', 'blurred', 'sharp', 'expected'),
    [
        ('val', 1, (64, 64), (65, 66), []),  # PairedImageDataset crops the sharp one
        ('train', 1, (64, 64), (65, 66), ["a.png' is 64 x 64 in lq but 66 x 65 in gt"]),
        ('val', 1, (64, 64), (65, 63), ["a.png' is 64 x 64 in lq but 63 x 65 in gt"]),
        ('val', 1, (8, 8), (9, 9), []),  # and takes no patches
        ('train', 2, (32, 48), (64, 96), []),
        ('train', 2, (32, 48), (64, 98), ["a.png' is 48 x 32 in lq but 98 x 64 in gt"]),
        ('val', 2, (64, 96), (32, 48), ["a.png' is 96 x 64 in lq but 48 x 32 in gt"]),  # swapped
    ],
)
def test_sizes_of_a_pair_are_those_that_the_toolbox_takes(
    tmp_path, monkeypatch, phase, scale, blurred, sharp, expected
):
    monkeypatch.chdir(tmp_path)
    for folder, size in (('lq', blurred), ('gt', sharp)):
        Path(folder).mkdir()
        cv2.imwrite(f'{folder}/a.png', picture(*size))
    found = [*quick_problems(PAIRED, phase, scale=scale)]
    assert len(found) == len(expected) and all(part in said for part, said in zip(expected, found, strict=True))


def test_raw_store_is_not_for_the_toolboxs_data_sets(tmp_path):
    roots = {f'dataroot_{role}': str(tmp_path / f'{role}.lmdb') for role in ('lq', 'gt')}
    for root, kind in zip(roots.values(), ('encoded', 'raw'), strict=True):
        with StoreWriter(root, kind=kind) as store:
            store.put('a', {'encoded': '.png', 'raw': '.raw'}[kind], bytes(16 * 16 * 3), (16, 16, 3))
    (said,) = quick_problems({**PAIRED, **roots, 'io_backend': {'type': 'lmdb'}}, 'train')
    assert said == f'{tmp_path}/gt.lmdb: a raw store, which a PairedImageDataset cannot read; take an encoded one'


PAIRED = {
    'name': 'own', 'type': 'PairedImageDataset', 'dataroot_lq': 'lq', 'dataroot_gt': 'gt',
    'io_backend': {'type': 'disk'}, 'gt_size': 16,
}  # fmt: skip


@pytest.mark.parametrize(
    ('changes', 'expected'),
    [
        ({'filename_tmpl': '{}_{}'}, 'data set own: PairedImageDataset cannot read it (IndexError: '),
        ({'io_backend': 'disk'}, 'data set own: PairedImageDataset cannot read it ('),
        ({'dataroot_gt': None}, 'data set own: a PairedImageDataset needs dataroot_gt; name it, or take a Single'),
        ({'type': 'SingleImageDataset', 'meta_info_file': None}, 'data set own: SingleImageDataset cannot read it ('),
    ],
)
def test_what_the_toolboxs_data_sets_cannot_use_is_one_line(tmp_path, monkeypatch, changes, expected):
    monkeypatch.chdir(tmp_path)
    for folder in ('lq', 'gt'):
        Path(folder).mkdir()
        cv2.imwrite(f'{folder}/a.png', picture(64, 64))
    assert not [*quick_problems(PAIRED, 'train')]
    (said,) = quick_problems({**PAIRED, **changes}, 'train')
    assert said.startswith(expected) and '\n' not in said


def test_data_set_without_images_is_not_a_test_that_went_well(workplace, capfd):
    Path('empty').mkdir()
    text = (
        Path('test.yml')
        .read_text()
        .replace('JPEGDeblurDataset', 'SingleImageDataset')
        .replace('type: lmdb', 'type: disk')
    )
    text = text.replace('data_blur.lmdb', 'empty').replace('    dataroot_gt: data_sharp.lmdb\n', '')
    text = re.sub('  metrics:.*  inference', '  inference', text, flags=re.DOTALL)
    Path('test.yml').write_text(
        text.replace('experiments/small/models/net_g_best.pth', '~').replace('ensemble: true', 'mode: input')
    )
    assert main(['test', '-opt', 'test.yml']) == 2
    assert 'data set small_set: SingleImageDataset finds no images in empty' in capfd.readouterr().err


FAULTS = {
    'cut': (lambda: png(picture(80, 96))[:-600], 'cannot be decoded'),
    'of another size': (lambda: png(picture(80, 95)), 'is 95 x 80, meta_info.txt says 96 x 80'),
    'bomb': (bomb, 'is 60000 x 60000, meta_info.txt says 96 x 80'),
    'no image': (lambda: b'rubbish', 'cannot be decoded (it is not an image of a known format)'),
}


@pytest.mark.parametrize(('content', 'message'), FAULTS.values(), ids=FAULTS.keys())
def test_doctor_decodes_every_frame_of_stores_without_a_manifest(tmp_path, capfd, content, message):
    """BasicSR's own scripts write stores without one."""
    store = tmp_path / 'theirs.lmdb'
    sound = png(picture(80, 96))
    with lmdb.open(str(store), map_size=1 << 26) as environment, environment.begin(write=True) as transaction:
        for key in (b'a', b'b'):
            transaction.put(key, sound)
    (store / 'meta_info.txt').write_text('a.png (80,96,3) 1\nb.png (80,96,3) 1\n')
    assert main(['doctor', '--data', str(store)]) == 0
    with lmdb.open(str(store), map_size=1 << 26) as environment, environment.begin(write=True) as transaction:
        transaction.put(b'b', content())
    assert main(['doctor', '--data', str(store)]) == 1
    assert f"{store}: 'b' {message}" in capfd.readouterr().err


def test_doctor_holds_raw_images_against_their_sizes(tmp_path, capfd):
    with StoreWriter(tmp_path / 'raw.lmdb', kind='raw') as store:
        store.put('a', lmdb_store.RAW_ENDING, bytes(8), (4, 4, 3))
    assert main(['doctor', '--data', str(tmp_path / 'raw.lmdb')]) == 1
    assert "'a' has 8 bytes, a raw image of 4 x 4 has 48" in capfd.readouterr().err


def test_store_whose_tree_is_damaged_does_not_end_doctor(workplace, capfd):
    """LMDB follows damaged pointers, which can kill the process: so it reads in another process."""
    data = bytearray((STORE / 'data.mdb').read_bytes())
    data[2 * 4096 :] = np.random.default_rng(0).bytes(len(data) - 2 * 4096)
    (STORE / 'data.mdb').write_bytes(data)
    assert main(['doctor', '--data', str(STORE)]) == 1
    assert 'data_blur.lmdb: ' in capfd.readouterr().err
