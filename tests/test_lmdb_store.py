import multiprocessing
import os
import shutil

import lmdb
import pytest

from wrcan_arch import InputError
from wrcan_arch.lmdb_store import FIRST_MAP_SIZE, StoreWriter, key_for, open_store


def write(path, count=5, size=1000):
    with StoreWriter(path) as store:
        for number in range(count):
            store.put(f'{number:03d}_00000000', '.jpg', bytes([number]) * size, (72, 128, 3))
    return path


def read_in_child(path, key, queue):
    queue.put(open_store(path).get(key))


def test_values_come_back_and_meta_info_is_basicsrs(tmp_path):
    path = write(tmp_path / 'a.lmdb')
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
    assert queue.get(timeout=60) == bytes([2]) * 1000
    child.join()
    assert child.exitcode == 0
    assert open_store(path).get('001_00000000') == bytes([1]) * 1000


def test_missing_key_names_store_and_key(tmp_path):
    path = write(tmp_path / 'a.lmdb')
    with lmdb.open(str(path), map_size=FIRST_MAP_SIZE) as environment, environment.begin(write=True) as transaction:
        transaction.delete(b'002_00000000')
    with pytest.raises(InputError, match=r"a\.lmdb: there is no value under the key '002_00000000'"):
        open_store(path).get('002_00000000')


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


@pytest.mark.parametrize(('name', 'key'), [('IMG.0001', 'IMG_0001'), ('at the sea', 'at_the_sea'), ('Öl 1', '_l_1')])
def test_keys_are_what_basicsr_can_read(name, key):
    assert key_for(name) == key


def test_name_without_a_letter_is_an_error():
    with pytest.raises(InputError, match='rename the file'):
        key_for('海')
