"""Joined stores: every pair, unchanged, under a name that says where it is from."""

import io
import shutil
from unittest import mock

import cv2
import lmdb
import numpy as np
import pytest
from conftest import picture

import join_stores
from wrcan_arch.data.lmdb_store import Store, open_store, verify_store
from wrcan_arch.data.store_writer import StoreWriter


@pytest.mark.parametrize('store', ['encoded', 'raw'])
def test_every_pair_is_there_unchanged(prepared, run_script, tmp_path, store):
    (tmp_path / 'b').symlink_to(prepared)
    for other in ('b/data', prepared / 'data'):
        printed = run_script(join_stores, prepared / 'data', other, '-o', 'all', '--store', store, exit_code=2)
        assert f'{other}: both are called data; leave one out, or rename its stores' in printed.err
        assert not (tmp_path / 'all_blur.lmdb').exists()
    for role in ('blur', 'sharp'):
        (tmp_path / f'v1.0_{role}.lmdb').symlink_to(prepared / f'data_{role}.lmdb')
    printed = run_script(join_stores, prepared / 'data', 'v1.0', '-o', 'all', '--store', store)
    assert printed.out == 'all: 12 pairs from 2 sources\n'
    for role in ('blur', 'sharp'):
        joined, source = open_store(tmp_path / f'all_{role}.lmdb'), open_store(prepared / f'data_{role}.lmdb')
        assert joined.keys() == [f'{name}_{key}' for name in ('data', 'v1_0') for key in source.keys()]
        for key in source.keys():
            value = joined.get(f'v1_0_{key}')
            if role == 'sharp' and store == 'raw':
                with joined.view(f'v1_0_{key}') as image:
                    np.testing.assert_array_equal(image, cv2.imread(str(prepared / 'data_sharp' / f'{key}.png')))
            else:
                assert value == source.get(key)


def test_name_that_a_terminal_cannot_show_is_escaped(prepared, tmp_path, monkeypatch):
    monkeypatch.setattr('sys.argv', ['join_stores.py', str(prepared / 'data'), '-o', str(tmp_path / '海\udcff')])
    terminal = io.TextIOWrapper(io.BytesIO(), 'ascii')
    with mock.patch('sys.stdout', terminal):
        join_stores.main()
    terminal.flush()
    assert b'\\u6d77\\udcff: 6 pairs' in terminal.buffer.getvalue()
    assert verify_store(tmp_path / '海\udcff_blur.lmdb') == [], 'a name that is not UTF-8 is read too'


def test_value_that_was_changed_is_not_vouched_for(prepared, run_script, tmp_path):
    for role in ('blur', 'sharp'):
        shutil.copytree(prepared / f'data_{role}.lmdb', tmp_path / f'data_{role}.lmdb')
    key = open_store(prepared / 'data_blur.lmdb').keys()[1]
    with lmdb.open(str(tmp_path / 'data_blur.lmdb')) as environment, environment.begin(write=True) as transaction:
        value = bytearray(transaction.get(key.encode()))
        value[-10] ^= 1
        transaction.put(key.encode(), bytes(value))
    printed = run_script(join_stores, 'data', '-o', 'all', exit_code=2)
    assert f"data_blur.lmdb: '{key}' was changed since it was written; prepare it again" in printed.err
    assert not list(tmp_path.glob('all*'))


def test_damaged_images_and_halves_of_pairs_leave_nothing(prepared, run_script, tmp_path):
    for name in ('data_blur', 'data_sharp'):
        shutil.copytree(prepared / f'{name}.lmdb', tmp_path / f'{name}.lmdb')
    with (
        lmdb.open(str(tmp_path / 'data_sharp.lmdb'), max_dbs=1) as environment,
        environment.begin(write=True) as transaction,
    ):
        transaction.put(b'photo1_000', b'rubbish')
    (tmp_path / 'data_sharp.lmdb' / 'manifest.json').unlink()  # as in another program's store
    printed = run_script(join_stores, 'data', '-o', 'all', '--store', 'raw', exit_code=2)
    assert "join_stores: data_sharp.lmdb: 'photo1_000' is damaged; prepare it again" in printed.err
    with StoreWriter(tmp_path / 'less_blur.lmdb') as less:
        less.put('photo0_000', '.jpg', b'', (8, 8, 3))
    (tmp_path / 'less_sharp.lmdb').symlink_to(prepared / 'data_sharp.lmdb')
    printed = run_script(join_stores, 'less', '-o', 'all', exit_code=2)
    assert printed.err == (
        'join_stores: less_blur.lmdb and less_sharp.lmdb: hold different names; prepare them again\n'
    )
    assert not list(tmp_path.glob('all*'))


def test_a_grey_store_of_another_program_is_taken_as_it_is_and_as_colour_rows(run_script, tmp_path):
    """BasicSR's own tool lists grey pictures with one channel, and all files as PNG."""
    grey = picture(20, 30)[:, :, 0]
    value = cv2.imencode('.png', grey)[1].tobytes()
    for role in ('blur', 'sharp'):
        with StoreWriter(tmp_path / f'a_{role}.lmdb') as store:
            store.put('x', '.png', value, (20, 30, 1))
        (tmp_path / f'a_{role}.lmdb' / 'manifest.json').unlink()
    run_script(join_stores, 'a', '-o', 'rows', '--store', 'raw')
    with open_store(tmp_path / 'rows_sharp.lmdb').view('a_x') as image:
        np.testing.assert_array_equal(image, cv2.cvtColor(grey, cv2.COLOR_GRAY2BGR))
    assert (tmp_path / 'rows_blur.lmdb' / 'meta_info.txt').read_text() == 'a_x.png (20,30,1) 0\n'
    run_script(join_stores, 'a', '-o', 'files')
    assert open_store(tmp_path / 'files_sharp.lmdb').get('a_x') == value
    assert (tmp_path / 'files_sharp.lmdb' / 'meta_info.txt').read_text() == 'a_x.png (20,30,1) 0\n'


def test_names_with_spaces_and_brackets_of_another_program_are_kept(run_script, tmp_path):
    value = cv2.imencode('.png', picture(20, 30))[1].tobytes()
    for role in ('blur', 'sharp'):
        with StoreWriter(tmp_path / f'a_{role}.lmdb') as store:
            store.put('IMG (1,2,3)', '.png', value, (20, 30, 3))
        (tmp_path / f'a_{role}.lmdb' / 'manifest.json').unlink()
        (tmp_path / f'a_{role}.lmdb' / 'meta_info.txt').write_text('IMG (1,2,3).png (20,30,3) 1\n')
    run_script(join_stores, 'a', '-o', 'all', '--store', 'raw')
    for role, ending in (('blur', '.png'), ('sharp', '.raw')):
        store = open_store(tmp_path / f'all_{role}.lmdb')
        assert (store.path / 'meta_info.txt').read_text() == f'a_IMG (1,2,3){ending} (20,30,3) 0\n'
        assert (store.keys(), store.ending('a_IMG (1,2,3)')) == (['a_IMG (1,2,3)'], ending)
        assert store.kind == {'blur': 'encoded', 'sharp': 'raw'}[role] and not verify_store(store.path)
    with store.view('a_IMG (1,2,3)') as image:
        np.testing.assert_array_equal(image, picture(20, 30))


def test_each_value_is_read_once(prepared, run_script, monkeypatch):
    read, get = [], Store.get
    monkeypatch.setattr(Store, 'get', lambda self, key: (read.append((self.path, key)), get(self, key))[1])
    run_script(join_stores, prepared / 'data', '-o', 'all', '--store', 'raw')
    assert len(read) == len(set(read)) == 12


def test_what_is_not_there_is_one_line(run_script, tmp_path):
    printed = run_script(join_stores, 'nowhere', '-o', 'all', exit_code=2)
    assert printed.err.startswith('join_stores: nowhere_blur.lmdb: there is no such store')
    printed = run_script(join_stores, 'nowhere', '-o', 'new/', exit_code=2)
    assert printed.err == 'join_stores: -o new/: a folder; give a name in it, such as new/mine\n'
    assert not list(tmp_path.iterdir())
