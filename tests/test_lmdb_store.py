import json
import multiprocessing
import os
import shutil
import signal
import time
import zlib
from pathlib import Path
from unittest import mock

import lmdb
import numpy as np
import pytest

from wrcan_arch import InputError
from wrcan_arch.data import lmdb_store
from wrcan_arch.data.lmdb_store import FIRST_MAP_SIZE, StoreWriter, open_store, read_manifest, verify_store


def write(path, count=5, size=1000):
    with StoreWriter(path) as store:
        for number in range(count):
            store.put(f'{number:03d}_00000000', '.jpg', bytes([number]) * size, (72, 128, 3))
    return path


def read_in_child(path, key, queue):
    _, inherited = lmdb_store._open_stores.get(str(path), (None, None))
    store = open_store(path)
    queue.put((store.get(key), store is not inherited))


def test_values_come_back_and_meta_info_is_basicsrs(tmp_path):
    path = write(tmp_path / 'a.lmdb')
    assert {file.name for file in path.iterdir()} == {'data.mdb', 'meta_info.txt', 'manifest.json'}
    assert (path / 'meta_info.txt').read_text().splitlines()[0] == '000_00000000.jpg (72,128,3) 0'
    store = open_store(path)
    assert store.keys() == [f'{number:03d}_00000000' for number in range(5)]
    assert all(store.get(key) == bytes([number]) * 1000 for number, key in enumerate(store.keys()))


def test_toolbox_pairs_and_reads_our_stores(tmp_path):
    from basicsr.data.data_util import paired_paths_from_lmdb  # here, so that a spawned child imports ours first
    from basicsr.utils import FileClient

    blurred, sharp = str(write(tmp_path / 'blur.lmdb')), str(write(tmp_path / 'sharp.lmdb'))
    paths = paired_paths_from_lmdb([blurred, sharp], ['lq', 'gt'])
    client = FileClient('lmdb', db_paths=[blurred, sharp], client_keys=['lq', 'gt'])
    assert client.get(paths[3]['gt_path'], 'gt') == bytes([3]) * 1000


def test_store_larger_than_its_first_map(tmp_path):
    path = write(tmp_path / 'large.lmdb', count=3, size=FIRST_MAP_SIZE // 2)
    assert all(len(open_store(path).get(key)) == FIRST_MAP_SIZE // 2 for key in open_store(path).keys())


def test_failed_writing_leaves_nothing(tmp_path):
    with pytest.raises(KeyboardInterrupt), StoreWriter(tmp_path / 'a.lmdb') as store:
        store.put('a', '.png', b'1', (1, 1, 3))
        raise KeyboardInterrupt
    assert list(tmp_path.iterdir()) == []


def test_rest_of_a_killed_writer_is_no_obstacle(tmp_path):
    (tmp_path / 'a.lmdb.partial').mkdir()
    (tmp_path / 'a.lmdb.partial' / 'data.mdb').write_bytes(b'rubbish')
    assert len(open_store(write(tmp_path / 'a.lmdb')).keys()) == 5
    assert [path.name for path in tmp_path.iterdir()] == ['a.lmdb']


def test_one_store_is_opened_once_and_anew_when_it_changed(tmp_path):
    path = write(tmp_path / 'a.lmdb')
    assert open_store(path) is open_store(str(path))
    first = open_store(path)
    shutil.rmtree(path)
    write(path, count=2)
    assert open_store(path) is not first
    assert len(open_store(path).keys()) == 2


@pytest.mark.parametrize('method', ['fork', 'spawn'])
def test_child_process_reads_what_the_parent_has_open(tmp_path, method):
    path = write(tmp_path / 'a.lmdb')
    assert open_store(path).get('001_00000000')
    context = multiprocessing.get_context(method)
    queue = context.Queue()
    child = context.Process(target=read_in_child, args=(path, '002_00000000', queue))
    child.start()
    assert queue.get(timeout=60) == (bytes([2]) * 1000, True), 'its own environment: LMDB knows no forks'
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
    (path / 'meta_info.txt').write_text(''.join(f'{number}.png (8,8,3) 1\n' for number in range(listed)))
    expected = [] if listed == 5 else [f'data.mdb holds 5 values, meta_info.txt lists {listed}']
    assert [*open_store(path).disagreements()] == expected


def die(path):
    os.kill(os.getpid(), signal.SIGKILL)


def test_reader_that_the_store_kills_is_a_problem_of_the_store():
    said = 'a.lmdb: data.mdb is damaged, reading it ended the process; copy or prepare it again'
    assert lmdb_store.in_own_process(die, 'a.lmdb') == [said]


def test_missing_key_names_store_and_key(tmp_path):
    path = write(tmp_path / 'a.lmdb')
    with lmdb.open(str(path), map_size=FIRST_MAP_SIZE) as environment, environment.begin(write=True) as transaction:
        transaction.delete(b'002_00000000')
    with pytest.raises(InputError, match=r"a\.lmdb: there is no value under the key '002_00000000'"):
        open_store(path).get('002_00000000')


def test_value_that_lmdb_cannot_read_is_named(tmp_path):
    store = lmdb_store.Store(write(tmp_path / 'a.lmdb'))
    store._environment = mock.MagicMock()
    transaction = store._environment.begin.return_value.__enter__.return_value
    transaction.get.side_effect = lmdb.CorruptedError('mdb_get: MDB_CORRUPTED')
    message = r"a\.lmdb: '002_00000000' cannot be read \(mdb_get.*\); data\.mdb is damaged, copy or prepare it again"
    with pytest.raises(InputError, match=message):
        store.get('002_00000000')


@pytest.mark.parametrize('keep', [0.1, 0.5, 0.9])
def test_cut_file_is_an_error_and_not_a_dead_process(tmp_path, keep):
    path = write(tmp_path / 'a.lmdb', count=40, size=8000)
    os.truncate(path / 'data.mdb', int((path / 'data.mdb').stat().st_size * keep))
    with pytest.raises(InputError, match=r'a\.lmdb: data\.mdb has \d+ of \d+ bytes, it was cut'):
        open_store(path)


@pytest.mark.parametrize('content', [b'', b'rubbish' * 2000])
def test_file_that_is_no_lmdb_is_an_error(tmp_path, content):
    path = write(tmp_path / 'a.lmdb')
    (path / 'data.mdb').write_bytes(content)
    with pytest.raises(InputError, match='not a readable LMDB'):
        open_store(path)


def test_folder_without_meta_info_is_an_error(tmp_path):
    path = write(tmp_path / 'a.lmdb')
    (path / 'meta_info.txt').unlink()
    with pytest.raises(InputError, match='there is no meta_info.txt'):
        open_store(path)


def test_a_store_has_its_name_before_the_lock_goes(tmp_path, monkeypatch):
    """Else another writer would start over in a finished store."""
    locked = []

    def rename(self, target, rename=Path.rename):
        locked.append((self / 'writer.lock').exists())
        return rename(self, target)

    monkeypatch.setattr(Path, 'rename', rename)
    path = write(tmp_path / 'a.lmdb')
    assert locked == [True] and not (path / 'writer.lock').exists()


def test_existing_store_is_not_overwritten(tmp_path):
    write(tmp_path / 'a.lmdb')
    with pytest.raises(InputError, match='exists already'):
        StoreWriter(tmp_path / 'a.lmdb')


def test_wrong_name_and_doubled_key_are_errors(tmp_path):
    with pytest.raises(InputError, match=r'ends in \.lmdb'):
        StoreWriter(tmp_path / 'a')
    with pytest.raises(InputError, match="two images have the key 'a'"), StoreWriter(tmp_path / 'a.lmdb') as store:
        store.put('a', '.png', b'1', (1, 1, 3))
        store.put('a', '.png', b'2', (1, 1, 3))


def hold(path, others_turn, resume):
    """Begin a store and complete it once `others_turn` is set; runs in another process."""
    with StoreWriter(path, resume=resume) as store:
        store.put('theirs', '.png', b'1', (1, 1, 3))
        others_turn.wait()


@pytest.mark.parametrize('resume', [False, True])
def test_two_processes_cannot_write_one_store(tmp_path, resume):
    """Else the first to end would rename what the other still writes."""
    context = multiprocessing.get_context('fork')
    done = context.Event()
    other = context.Process(target=hold, args=(tmp_path / 'a.lmdb', done, resume))
    other.start()
    partial = tmp_path / 'a.lmdb.partial'
    while not (partial / 'data.mdb').is_file():
        time.sleep(0.01)
    with pytest.raises(InputError, match=rf'a\.lmdb: another process is writing it \(process {other.pid} on '):
        StoreWriter(tmp_path / 'a.lmdb', resume=resume).__enter__()
    late = StoreWriter(tmp_path / 'a.lmdb', resume=resume)
    done.set()
    other.join()
    assert other.exitcode == 0 and verify_store(tmp_path / 'a.lmdb') == [] and not partial.exists()
    with pytest.raises(InputError, match='exists already'):
        late.__enter__()
    assert not partial.exists() and open_store(tmp_path / 'a.lmdb').keys() == ['theirs']


def test_store_is_complete_until_another_writer_changes_it(tmp_path):
    path = tmp_path / 'a.lmdb'
    for value, complete in ((b'1', True), (b'2', False)):
        with pytest.raises(KeyboardInterrupt), StoreWriter(path, resume=True) as store:
            assert lmdb_store.is_complete(path) == (value == b'2')
            store.put('a', '.png', value, (1, 1, 3))
            store.complete() if complete else store.flush()
            raise KeyboardInterrupt
        assert lmdb_store.is_complete(path) == complete


def test_stores_that_belong_together_get_their_names_together(tmp_path):
    with (
        pytest.raises(InputError, match=r'first.*cannot be written \(\[Errno 5\] x\); its disk'),
        StoreWriter(tmp_path / 'first.lmdb') as first,
        StoreWriter(tmp_path / 'second.lmdb') as second,
    ):
        first.put('a', '.png', b'1', (1, 1, 3))
        second.complete()
        with mock.patch('os.fsync', side_effect=OSError(5, 'x')):
            first.complete()
    assert list(tmp_path.iterdir()) == []


def test_key_that_lmdb_does_not_take_is_said(tmp_path):
    with (
        pytest.raises(InputError, match=r"the key 'a{20}…' has 512 letters, 511 fit"),
        StoreWriter(tmp_path / 'a.lmdb') as store,
    ):
        store.put('a' * 512, '.png', b'1', (1, 1, 3))
    with StoreWriter(tmp_path / 'a.lmdb') as store:
        store.put('a' * 511, '.png', b'1', (1, 1, 3))
    assert verify_store(tmp_path / 'a.lmdb') == []


def test_flipped_bit_in_a_key_is_a_problem_and_no_defect(tmp_path):
    with StoreWriter(tmp_path / 'a.lmdb') as store:
        store.put('frame', '.png', b'1', (1, 1, 3))
    data = (tmp_path / 'a.lmdb/data.mdb').read_bytes()
    (tmp_path / 'a.lmdb/data.mdb').write_bytes(data.replace(b'frame', b'fr\xe1me'))
    said = verify_store(tmp_path / 'a.lmdb')
    assert [line.partition(': ')[2] for line in said] == [r"'fr\xe1me' is not in manifest.json", "'frame' is missing"]


def test_manifest_has_a_checksum_of_every_value(tmp_path):
    path = write(tmp_path / 'a.lmdb')
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
        (lambda path: change_text(path, 'meta_info.txt', '002_00000000.jpg', '002_00000000.png'), 'meta_info.txt does'),
        (lambda path: change_text(path, 'manifest.json', '"encoded"', '"raw"'), 'meta_info.txt does'),
        (lambda path: change_text(path, 'manifest.json', '"format": 1', '"format": 2'), 'has format 2, this program'),
        (lambda path: change_text(path, 'manifest.json', '"bytes"', '"size"'), 'not a readable manifest'),
        (lambda path: os.truncate(path / 'manifest.json', 300), 'not a readable manifest'),
        (lambda path: (path / 'manifest.json').unlink(), 'there is no manifest.json to verify against'),
        (lambda path: os.truncate(path / 'data.mdb', 9000), 'it was cut'),
    ],
)
def test_verify_names_what_was_changed(tmp_path, spoil, expected):
    path = write(tmp_path / 'a.lmdb')
    spoil(path)
    (problem,) = verify_store(path)
    assert expected in problem and str(path) in problem


def test_verify_goes_over_the_keys_with_its_progress(tmp_path):
    seen = []
    assert verify_store(write(tmp_path / 'a.lmdb'), lambda keys: (seen.append(key) or key for key in keys)) == []
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
    encoded = open_store(write(tmp_path / 'a.lmdb'))
    assert encoded.kind == 'encoded' and encoded.shape('001_00000000') == (72, 128, 3)
    with pytest.raises(InputError, match='an encoded store has no rows to view'):
        encoded.view('001_00000000').__enter__()
    change_text(raw[0].path, 'meta_info.txt', '(30,41,3)', '(30,42,3)')
    with pytest.raises(InputError, match="'a' has 3690 bytes, a raw image of 42 x 30 has 3780"):
        lmdb_store.Store(shutil.copytree(raw[0].path, tmp_path / 'copy.lmdb')).view('a').__enter__()
    with pytest.raises(InputError, match=r"meta_info\.txt has no \(height,width,channels\) of 'c'"):
        raw[0].shape('c')


def test_kind_is_encoded_or_raw(tmp_path):
    with pytest.raises(InputError, match="'encoded' or 'raw', not 'rows'"):
        StoreWriter(tmp_path / 'a.lmdb', kind='rows')


def test_what_an_earlier_writer_left_outlives_an_error_at_opening(tmp_path):
    path = tmp_path / 'a.lmdb'
    with pytest.raises(KeyboardInterrupt), StoreWriter(path, resume=True) as writer:
        writer.put('a', '.png', b'value', (1, 1, 3))
        writer._commit()
        raise KeyboardInterrupt
    with (
        mock.patch('lmdb.open', side_effect=lmdb.Error('Cannot allocate memory')),
        pytest.raises((InputError, OSError)),
        StoreWriter(path, resume=True),
    ):
        pass
    with StoreWriter(path, resume=True) as writer:
        assert writer.resumed.keys() == {'a'}
        writer.keep('a')


def test_resumed_writer_keeps_replaces_and_deletes(tmp_path, monkeypatch):
    monkeypatch.setattr(lmdb_store, 'BATCH_SIZE', 1)
    path = tmp_path / 'a.lmdb'
    with pytest.raises(KeyboardInterrupt), StoreWriter(path, resume=True) as writer:
        assert writer.resumed == {}
        for key in 'abc':
            writer.put(key, '.png', key.encode() * 5000, (1, 2, 3), f'source of {key}')
        raise KeyboardInterrupt
    assert [entry.name for entry in tmp_path.iterdir()] == ['a.lmdb.partial']
    with StoreWriter(path, resume=True) as writer:
        assert {key: record.source for key, record in writer.resumed.items()} == {
            key: f'source of {key}' for key in 'abc'
        }
        writer.keep('a')
        writer.put('b', '.png', b'new', (4, 5, 6))
        writer.put('d', '.png', b'd', (1, 2, 3))
    assert [entry.name for entry in tmp_path.iterdir()] == ['a.lmdb']
    store = open_store(path)
    assert {key: store.get(key) for key in store.keys()} == {'a': b'a' * 5000, 'b': b'new', 'd': b'd'}
    assert store.shape('b') == (4, 5, 6) and verify_store(path) == []
    assert read_manifest(path)[1]['a'].source == ''


@pytest.mark.parametrize('resume', [True, False])
def test_failed_writer_leaves_only_what_can_be_resumed(tmp_path, resume):
    with pytest.raises(KeyboardInterrupt), StoreWriter(tmp_path / 'a.lmdb', resume=resume) as writer:
        writer.put('a', '.png', b'1', (1, 1, 3))  # not yet on the disk
        raise KeyboardInterrupt
    assert list(tmp_path.iterdir()) == []


def cut(partial):
    os.truncate(partial / 'data.mdb', 9000)


def make_rubbish(partial):
    (partial / 'data.mdb').write_bytes(b'rubbish')


def make_old(partial):
    """Replace the partial store by one without records, as an older writer left it."""
    shutil.rmtree(partial)
    partial.mkdir()
    with lmdb.open(str(partial)) as environment, environment.begin(write=True) as transaction:
        transaction.put(b'a', b'a')


def test_rest_of_another_kind_is_not_thrown_away(tmp_path, monkeypatch):
    """A partial store of the other kind may be hours of work."""
    monkeypatch.setattr(lmdb_store, 'BATCH_SIZE', 1)
    with pytest.raises(KeyboardInterrupt), StoreWriter(tmp_path / 'a.lmdb', kind='raw', resume=True) as writer:
        writer.put('a', '.raw', bytes(30_000), (100, 100, 3))
        raise KeyboardInterrupt
    with pytest.raises(InputError, match='was writing it in another way; give --store raw again, or remove it'):
        StoreWriter(tmp_path / 'a.lmdb', kind='encoded', resume=True).__enter__()
    with StoreWriter(tmp_path / 'a.lmdb', kind='raw', resume=True) as writer:
        assert [*writer.resumed] == ['a']
        writer.keep('a')


@pytest.mark.parametrize('spoil', [cut, make_rubbish, make_old])
def test_rest_that_is_not_sound_is_not_resumed(tmp_path, monkeypatch, spoil):
    monkeypatch.setattr(lmdb_store, 'BATCH_SIZE', 1)
    with pytest.raises(KeyboardInterrupt), StoreWriter(tmp_path / 'a.lmdb', kind='raw', resume=True) as writer:
        writer.put('a', '.raw', bytes(30_000), (100, 100, 3))
        raise KeyboardInterrupt
    spoil(tmp_path / 'a.lmdb.partial')
    with StoreWriter(tmp_path / 'a.lmdb', kind='raw', resume=True) as writer:
        assert writer.resumed == {}
        writer.put('b', '.raw', b'123', (1, 1, 3))
    assert open_store(tmp_path / 'a.lmdb').keys() == ['b']
    assert verify_store(tmp_path / 'a.lmdb') == []
