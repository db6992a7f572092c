"""Stores are written whole or not at all, by one process at a time, and resumed."""

import errno
import multiprocessing
import os
import shutil
import time
from pathlib import Path
from unittest import mock

import lmdb
import pytest
from conftest import write_store

from wrcan_arch import InputError
from wrcan_arch.data import store_writer
from wrcan_arch.data.lmdb_store import RECORDS, open_store, read_manifest, verify_store
from wrcan_arch.data.store_writer import FIRST_MAP_SIZE, StoreWriter


def test_store_larger_than_its_first_map(tmp_path):
    path = write_store(tmp_path / 'large.lmdb', count=3, size=FIRST_MAP_SIZE // 2)
    assert all(len(open_store(path).get(key)) == FIRST_MAP_SIZE // 2 for key in open_store(path).keys())


def test_failed_writing_leaves_nothing(tmp_path):
    with pytest.raises(KeyboardInterrupt), StoreWriter(tmp_path / 'a.lmdb') as store:
        store.put('a', '.png', b'1', (1, 1, 3))
        raise KeyboardInterrupt
    assert list(tmp_path.iterdir()) == []


def test_rest_of_a_killed_writer_is_no_obstacle(tmp_path):
    (tmp_path / 'a.lmdb.partial').mkdir()
    (tmp_path / 'a.lmdb.partial' / 'data.mdb').write_bytes(b'rubbish')
    assert len(open_store(write_store(tmp_path / 'a.lmdb')).keys()) == 5
    assert [path.name for path in tmp_path.iterdir()] == ['a.lmdb']


@pytest.mark.parametrize('resume', [False, True])
@pytest.mark.parametrize('inside', ['', 'writer.lock', 'data.mdb', 'lock.mdb', 'meta_info.txt', 'manifest.json'])
def test_links_under_the_names_of_a_partial_store_are_refused(tmp_path, inside, resume):
    """A folder that was downloaded may hold them."""
    (tmp_path / 'docs').mkdir()
    (tmp_path / 'docs/thesis.tex').write_text('mine')
    partial = tmp_path / 'a.lmdb.partial'
    if inside:
        with pytest.raises(KeyboardInterrupt), StoreWriter(tmp_path / 'a.lmdb', resume=True) as store:
            store.put('a', '.png', b'1', (1, 1, 3))
            store.complete()
            raise KeyboardInterrupt
        (partial / inside).replace(tmp_path / 'docs' / inside)
        (partial / inside).symlink_to(f'../docs/{inside}')
    else:
        partial.symlink_to('docs')
    before = contents_of(tmp_path)
    with pytest.raises(InputError, match=rf'{partial / inside}: a symbolic link.*; remove it'):
        StoreWriter(tmp_path / 'a.lmdb', resume=resume).__enter__()
    assert contents_of(tmp_path) == before


def contents_of(folder):
    return {path: path.read_bytes() for path in folder.rglob('*') if path.is_file() and path.name != 'writer.lock'}


def test_a_store_has_its_name_before_the_lock_goes(tmp_path, monkeypatch):
    """Otherwise another writer would start over in a finished store."""
    locked = []

    def rename(self, target, rename=Path.rename):
        locked.append((self / 'writer.lock').exists())
        return rename(self, target)

    monkeypatch.setattr(Path, 'rename', rename)
    path = write_store(tmp_path / 'a.lmdb')
    assert locked == [True] and not (path / 'writer.lock').exists()


def test_existing_store_is_not_overwritten(tmp_path):
    write_store(tmp_path / 'a.lmdb')
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
    """Otherwise the first to end would rename what the other still writes."""
    context = multiprocessing.get_context('fork')
    done = context.Event()
    other = context.Process(target=hold, args=(tmp_path / 'a.lmdb', done, resume), daemon=True)
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


@pytest.mark.parametrize(('holder', 'number', 'stays'), [('', errno.ENOLCK, False), ('process 1', errno.EAGAIN, True)])
def test_a_store_that_cannot_be_locked_leaves_nothing_of_its_own(tmp_path, holder, number, stays):
    """On a file system without locks; if another process holds the lock, the folder is that one's."""

    def lockf(*_):
        (tmp_path / 'a.lmdb.partial/writer.lock').write_text(holder)
        raise OSError(number, os.strerror(number))

    with mock.patch('fcntl.lockf', lockf), pytest.raises(InputError):
        StoreWriter(tmp_path / 'a.lmdb').__enter__()
    assert (tmp_path / 'a.lmdb.partial/writer.lock').exists() == stays and any(tmp_path.iterdir()) == stays


def test_store_is_complete_until_another_writer_changes_it(tmp_path):
    path = tmp_path / 'a.lmdb'
    for value, complete in ((b'1', True), (b'2', False)):
        with pytest.raises(KeyboardInterrupt), StoreWriter(path, resume=True) as store:
            assert store_writer.is_complete(path) == (value == b'2')
            store.put('a', '.png', value, (1, 1, 3))
            store.complete() if complete else store.flush()
            raise KeyboardInterrupt
        assert store_writer.is_complete(path) == complete
    with pytest.raises(KeyboardInterrupt), StoreWriter(path, resume=True) as store:
        store.put('b', '.png', b'3', (1, 1, 3))
        store.complete()
        raise KeyboardInterrupt
    with StoreWriter(path, resume=True) as store:
        assert store.resumed.keys() == {'b'}, 'what was deleted left no record'


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
        pytest.raises(InputError, match=r"the key 'a{20}…' has 512 letters, at most 511 fit"),
        StoreWriter(tmp_path / 'a.lmdb') as store,
    ):
        store.put('a' * 512, '.png', b'1', (1, 1, 3))
    with StoreWriter(tmp_path / 'a.lmdb') as store:
        store.put('a' * 511, '.png', b'1', (1, 1, 3))
    assert verify_store(tmp_path / 'a.lmdb') == []


def test_kind_is_encoded_or_raw(tmp_path):
    with pytest.raises(InputError, match="'encoded' or 'raw', not 'rows'"):
        StoreWriter(tmp_path / 'a.lmdb', kind='rows')


def test_what_an_earlier_writer_left_outlives_an_error_before_the_first_value(tmp_path):
    path = tmp_path / 'a.lmdb'
    with pytest.raises(KeyboardInterrupt), StoreWriter(path, resume=True) as writer:
        writer.put('a', '.png', b'value', (1, 1, 3))
        writer.flush()
        raise KeyboardInterrupt
    with (
        mock.patch('lmdb.open', side_effect=lmdb.Error('Cannot allocate memory')),
        pytest.raises((InputError, OSError)),
        StoreWriter(path, resume=True),
    ):
        pass
    with pytest.raises(KeyboardInterrupt), StoreWriter(path, resume=True):
        raise KeyboardInterrupt
    with StoreWriter(path, resume=True) as writer:
        assert writer.resumed.keys() == {'a'}
        writer.keep('a')


def test_resumed_writer_keeps_replaces_and_deletes(tmp_path, monkeypatch):
    monkeypatch.setattr(store_writer, 'BATCH_SIZE', 1)
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


def make_newer(partial):
    """Let the records say that they are of another format."""
    with lmdb.open(str(partial), map_size=FIRST_MAP_SIZE, max_dbs=1) as environment:
        records = environment.open_db(RECORDS)
        with environment.begin(write=True, db=records) as transaction:
            for key, entry in [*transaction.cursor()]:
                transaction.put(key, entry.replace(b'"format": 1', b'"format": 2'))


def test_rest_of_another_kind_is_not_thrown_away(tmp_path, monkeypatch):
    """A partial store of the other kind may be hours of work."""
    monkeypatch.setattr(store_writer, 'BATCH_SIZE', 1)
    with pytest.raises(KeyboardInterrupt), StoreWriter(tmp_path / 'a.lmdb', kind='raw', resume=True) as writer:
        writer.put('a', '.raw', bytes(30_000), (100, 100, 3))
        raise KeyboardInterrupt
    with pytest.raises(InputError, match='was writing it in another way; give --store raw again, or remove it'):
        StoreWriter(tmp_path / 'a.lmdb', kind='encoded', resume=True).__enter__()
    with StoreWriter(tmp_path / 'a.lmdb', kind='raw', resume=True) as writer:
        assert [*writer.resumed] == ['a']
        writer.keep('a')


@pytest.mark.parametrize('spoil', [cut, make_rubbish, make_old, make_newer])
def test_rest_that_is_not_sound_is_not_resumed(tmp_path, monkeypatch, spoil):
    monkeypatch.setattr(store_writer, 'BATCH_SIZE', 1)
    with pytest.raises(KeyboardInterrupt), StoreWriter(tmp_path / 'a.lmdb', kind='raw', resume=True) as writer:
        writer.put('a', '.raw', bytes(30_000), (100, 100, 3))
        raise KeyboardInterrupt
    spoil(tmp_path / 'a.lmdb.partial')
    with StoreWriter(tmp_path / 'a.lmdb', kind='raw', resume=True) as writer:
        assert writer.resumed == {}
        writer.put('b', '.raw', b'123', (1, 1, 3))
    assert open_store(tmp_path / 'a.lmdb').keys() == ['b']
    assert verify_store(tmp_path / 'a.lmdb') == []
