"""Stores are BasicSR's, opened once in a process, and what is wrong with one is said."""

import json
import multiprocessing
import os
import re
import shutil
import signal
import time
import zlib
from concurrent.futures import ThreadPoolExecutor
from unittest import mock

import lmdb
import numpy as np
import pytest
from conftest import write_store

from wrcan_arch import InputError
from wrcan_arch.cli import main
from wrcan_arch.data import lmdb_store
from wrcan_arch.data.audit import quick_problems
from wrcan_arch.data.jpeg_deblur_dataset import JPEGDeblurDataset
from wrcan_arch.data.lmdb_store import open_store, verify_store
from wrcan_arch.data.store_writer import FIRST_MAP_SIZE, StoreWriter


def read_in_child(path, key, queue):
    _, inherited = lmdb_store._open_stores.get(str(path), (None, None))
    store = open_store(path)
    queue.put((store.get(key), store is not inherited))


def test_values_come_back_and_meta_info_is_basicsrs(tmp_path):
    path = write_store(tmp_path / 'a.lmdb')
    assert (path / 'meta_info.txt').read_text().splitlines()[0] == '000_00000000.jpg (72,128,3) 0'
    store = open_store(path)
    assert store.keys() == [f'{number:03d}_00000000' for number in range(5)]
    assert all(store.get(key) == bytes([number]) * 1000 for number, key in enumerate(store.keys()))
    assert {file.name for file in path.iterdir()} == {'data.mdb', 'meta_info.txt', 'manifest.json'}, 'nor does reading'


def test_a_key_may_look_like_a_size(tmp_path):
    with StoreWriter(tmp_path / 'a.lmdb') as writer:
        writer.put('view (1,2,3)', '.png', b'1', (5, 6, 3))
    store = open_store(tmp_path / 'a.lmdb')
    assert (store.keys(), store.shape('view (1,2,3)'), store.ending('view (1,2,3)')) == (
        ['view (1,2,3)'], (5, 6, 3), '.png'
    )  # fmt: skip


def test_toolbox_pairs_and_reads_our_stores(tmp_path):
    from basicsr.data.data_util import paired_paths_from_lmdb  # here, so that a spawned child imports ours first
    from basicsr.utils import FileClient

    blurred, sharp = str(write_store(tmp_path / 'blur.lmdb')), str(write_store(tmp_path / 'sharp.lmdb'))
    paths = paired_paths_from_lmdb([blurred, sharp], ['lq', 'gt'])
    client = FileClient('lmdb', db_paths=[blurred, sharp], client_keys=['lq', 'gt'])
    assert client.get(paths[3]['gt_path'], 'gt') == bytes([3]) * 1000


def test_one_store_is_opened_once_and_anew_when_it_changed(tmp_path):
    path = write_store(tmp_path / 'a.lmdb')
    assert open_store(path) is open_store(str(path))
    first = open_store(path)
    shutil.rmtree(path)
    write_store(path, count=2)
    assert open_store(path) is not first
    assert len(open_store(path).keys()) == 2


def test_threads_open_one_store_once(tmp_path, monkeypatch):
    path, plain_open = write_store(tmp_path / 'a.lmdb'), lmdb.open

    def slow_open(*arguments, **options):
        time.sleep(0.05)
        return plain_open(*arguments, **options)

    monkeypatch.setattr(lmdb, 'open', slow_open)
    with ThreadPoolExecutor(4) as pool:
        stores = [*pool.map(open_store, [path] * 4)]
    assert all(store is stores[0] for store in stores)


@pytest.mark.parametrize('method', ['fork', 'spawn'])
def test_child_process_reads_what_the_parent_has_open(tmp_path, method):
    path = write_store(tmp_path / 'a.lmdb')
    assert open_store(path).get('001_00000000')
    context = multiprocessing.get_context(method)
    queue = context.Queue()
    child = context.Process(target=read_in_child, args=(path, '002_00000000', queue))
    child.start()
    assert queue.get() == (bytes([2]) * 1000, True), 'its own environment: LMDB knows no forks'
    child.join()
    assert child.exitcode == 0
    assert open_store(path).get('001_00000000') == bytes([1]) * 1000


@pytest.mark.parametrize('listed', [3, 5, 7])
def test_values_without_a_line_and_lines_without_a_value_are_counted(tmp_path, listed):
    path = tmp_path / 'a.lmdb'
    path.mkdir()
    with lmdb.open(str(path)) as environment, environment.begin(write=True) as transaction:  # as BasicSR makes them
        for number in range(5):
            transaction.put(f'{number}'.encode(), b'value')
    (path / 'meta_info.txt').write_text(''.join(f'{number}.png (8,8,3) 1\n' for number in range(listed)) + '\n')
    expected = [] if listed == 5 else [f'data.mdb holds 5 values, meta_info.txt lists {listed}']
    assert [*open_store(path).disagreements()] == expected


def test_a_value_of_our_own_that_is_gone_is_counted(tmp_path):
    """Our stores have one more entry beside the values."""
    path = write_store(tmp_path / 'a.lmdb')
    assert [*open_store(path).disagreements()] == []
    change_value(shutil.copytree(path, tmp_path / 'b.lmdb'), None)
    said = [*open_store(tmp_path / 'b.lmdb').disagreements()]
    assert said == ['data.mdb holds 4 values, meta_info.txt lists 5']


def die(path):
    os.kill(os.getpid(), signal.SIGKILL)


def test_reader_that_the_store_kills_is_a_problem_of_the_store():
    said = 'a.lmdb: data.mdb is damaged, reading it ended the process; copy or prepare it again'
    assert lmdb_store.in_own_process(die, 'a.lmdb') == [said]


def test_missing_key_names_store_and_key(tmp_path):
    path = write_store(tmp_path / 'a.lmdb')
    with lmdb.open(str(path), map_size=FIRST_MAP_SIZE) as environment, environment.begin(write=True) as transaction:
        transaction.delete(b'002_00000000')
    with pytest.raises(InputError, match=r"a\.lmdb: there is no value under the key '002_00000000'"):
        open_store(path).get('002_00000000')


def test_value_that_lmdb_cannot_read_is_named(tmp_path):
    store = lmdb_store.Store(write_store(tmp_path / 'a.lmdb'))
    store._environment = mock.MagicMock()
    transaction = store._environment.begin.return_value.__enter__.return_value
    transaction.get.side_effect = lmdb.CorruptedError('mdb_get: MDB_CORRUPTED')
    message = r"a\.lmdb: '002_00000000' cannot be read \(mdb_get.*\); data\.mdb is damaged, copy or prepare it again"
    with pytest.raises(InputError, match=message):
        store.get('002_00000000')


@pytest.mark.parametrize('keep', [0.1, 0.5, 0.9])
def test_cut_file_is_an_error_and_not_a_dead_process(tmp_path, keep):
    path = write_store(tmp_path / 'a.lmdb', count=40, size=8000)
    os.truncate(path / 'data.mdb', int((path / 'data.mdb').stat().st_size * keep))
    with pytest.raises(InputError, match=r'a\.lmdb: data\.mdb has \d+ of \d+ bytes, it was cut'):
        open_store(path)


@pytest.mark.parametrize('content', [b'', b'rubbish' * 2000])
def test_file_that_is_no_lmdb_is_an_error(tmp_path, content):
    path = write_store(tmp_path / 'a.lmdb')
    (path / 'data.mdb').write_bytes(content)
    with pytest.raises(InputError, match='not a readable LMDB'):
        open_store(path)


def test_folder_without_meta_info_is_an_error(tmp_path):
    path = write_store(tmp_path / 'a.lmdb')
    (path / 'meta_info.txt').unlink()
    with pytest.raises(InputError, match='there is no meta_info.txt'):
        open_store(path)
    assert verify_store('gone.lmdb') == ['gone.lmdb: there is no such store; prepare it, or correct the path']


def test_flipped_bit_in_a_key_is_a_problem_and_no_defect(tmp_path):
    with StoreWriter(tmp_path / 'a.lmdb') as store:
        store.put('frame', '.png', b'1', (1, 1, 3))
    data = (tmp_path / 'a.lmdb/data.mdb').read_bytes()
    (tmp_path / 'a.lmdb/data.mdb').write_bytes(data.replace(b'frame', b'fr\xe1me'))
    said = verify_store(tmp_path / 'a.lmdb')
    assert [line.partition(': ')[2] for line in said] == [r"'fr\xe1me' is not in manifest.json", "'frame' is missing"]


def test_manifest_has_a_checksum_of_every_value(tmp_path):
    path = write_store(tmp_path / 'a.lmdb')
    manifest = json.loads((path / 'manifest.json').read_text())
    assert manifest['format'] == 1 and manifest['kind'] == 'encoded' and len(manifest['values']) == 5
    checksum = f'{zlib.crc32(bytes([3]) * 1000):08x}'
    expected = {'ending': '.jpg', 'shape': [72, 128, 3], 'bytes': 1000, 'crc32': checksum}
    assert manifest['values']['003_00000000'] == expected
    assert verify_store(path) == []


def change_value(path, value=b'other', key=b'002_00000000'):
    with lmdb.open(str(path), map_size=FIRST_MAP_SIZE) as environment, environment.begin(write=True) as transaction:
        transaction.put(key, value) if value else transaction.delete(key)


def change_text(path, name, old, new):
    text = (path / name).read_text()
    assert old in text
    (path / name).write_text(text.replace(old, new, 1))


@pytest.mark.parametrize(
    ('spoil', 'expected'),
    [
        (
            lambda path: change_value(path, bytes([2]) * 999 + b'x'),
            "'002_00000000' was changed: 1000 bytes with CRC-32",
        ),
        (lambda path: change_value(path), "'002_00000000' was changed: 5 bytes"),
        (lambda path: change_value(path, None), "'002_00000000' is missing"),
        (lambda path: change_value(path, b'more', b'more'), "'more' is not in manifest.json"),
        (
            lambda path: change_text(path, 'meta_info.txt', '002_00000000.jpg', '002_00000000.png'),
            'meta_info.txt disagrees',
        ),
        (lambda path: change_text(path, 'manifest.json', '"encoded"', '"raw"'), 'meta_info.txt disagrees'),
        (lambda path: change_text(path, 'manifest.json', '"format": 1', '"format": 2'), 'has format 2, this program'),
        (lambda path: change_text(path, 'manifest.json', '"bytes"', '"size"'), 'not a readable manifest'),
        (lambda path: os.truncate(path / 'manifest.json', 300), 'not a readable manifest'),
        (lambda path: (path / 'manifest.json').unlink(), 'there is no manifest.json to verify against'),
        (lambda path: os.truncate(path / 'data.mdb', 9000), 'it was cut'),
    ],
)
def test_verify_names_what_was_changed(tmp_path, spoil, expected):
    path = write_store(tmp_path / 'a.lmdb')
    spoil(path)
    (problem,) = verify_store(path)
    assert expected in problem and str(path) in problem


def test_verify_goes_over_the_keys_with_its_progress(tmp_path):
    seen = []
    assert verify_store(write_store(tmp_path / 'a.lmdb'), lambda keys: (seen.append(key) or key for key in keys)) == []
    assert seen == [f'{number:03d}_00000000' for number in range(5)]


@pytest.fixture
def raw(tmp_path):
    """A raw store and its images, of two sizes."""
    rng = np.random.default_rng(0)
    images = {'a': rng.integers(0, 256, (30, 41, 3), np.uint8), 'b': rng.integers(0, 256, (7, 5, 3), np.uint8)}
    with StoreWriter(tmp_path / 'raw.lmdb', kind='raw') as writer:
        for key, image in images.items():
            writer.put(key, '.raw', image.tobytes(), image.shape)
    return open_store(tmp_path / 'raw.lmdb'), images


def test_raw_store_gives_views(raw):
    store, images = raw
    assert store.kind == 'raw' and verify_store(store.path) == []
    for key, image in images.items():
        assert store.shape(key) == image.shape
        with store.view(key) as view:
            np.testing.assert_array_equal(view, image)
            assert not view.flags.writeable and not view.flags.owndata


def test_view_needs_a_raw_store_with_whole_values(raw, tmp_path):
    encoded = open_store(write_store(tmp_path / 'a.lmdb'))
    assert encoded.kind == 'encoded' and encoded.shape('001_00000000') == (72, 128, 3)
    with pytest.raises(InputError, match='an encoded store has no rows to view'):
        encoded.view('001_00000000').__enter__()
    for width, count in ((42, 3780), (40, 3600)):
        copy = shutil.copytree(raw[0].path, tmp_path / f'{width}.lmdb')
        change_text(copy, 'meta_info.txt', '(30,41,3)', f'(30,{width},3)')
        with pytest.raises(InputError, match=f"'a' has 3690 bytes, a raw image of {width} x 30 has {count}"):
            open_store(copy).view('a').__enter__()
    with pytest.raises(InputError, match=r"meta_info\.txt has no \(height,width,channels\) of 'c'"):
        raw[0].shape('c')


NO_SIZE = "meta_info.txt has no (height,width,channels) of 'a'; prepare it again"
CHANNELS = "'a' has {} channels in meta_info.txt, a raw image has 3; prepare it again"


@pytest.mark.parametrize(
    ('size', 'count', 'message'),
    [
        ('48,64,1', 48 * 64, CHANNELS.format(1)),
        ('48,64,4', 48 * 64 * 4, CHANNELS.format(4)),
        ('0,64,3', 0, NO_SIZE),
        ('0,999999999999999999999,3', 0, NO_SIZE),
        (f'{"9" * 5000},1,3', 3, NO_SIZE),
    ],
    ids=['grey', 'four', 'empty', 'huge', 'long'],
)
def test_raw_images_have_three_channels_and_a_size(tmp_path, capfd, size, count, message):
    """Else a data set would take the planes that are not there from memory that nothing was written to."""
    roots = {role: tmp_path / f'{role}.lmdb' for role in ('lq', 'gt')}
    for root in roots.values():
        with StoreWriter(root, kind='raw') as writer:
            writer.put('a', '.raw', bytes(count), (1, 1, 3))
        change_text(root, 'meta_info.txt', '1,1,3', size)
        (root / 'manifest.json').unlink()
    options = {'name': 'own', **{f'dataroot_{role}': str(root) for role, root in roots.items()}}
    options |= {'type': 'JPEGDeblurDataset', 'io_backend': {'type': 'lmdb'}}
    assert list(quick_problems(options, 'val')) == [f'{roots["lq"]}: {message}']
    assert main(['doctor', '--data', str(roots['gt'])]) == 1
    assert capfd.readouterr().err == f'{roots["gt"]}: {message}\n'
    with pytest.raises(InputError, match=re.escape(message)):
        JPEGDeblurDataset({**options, 'phase': 'val'})[0]
