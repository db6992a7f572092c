"""Stores joined to one: every pair, unchanged, under a name that says where it is from."""

import cv2
import numpy as np
import pytest

import join_stores
from wrcan_arch.train.lmdb_store import open_store


@pytest.mark.parametrize('store', ['encoded', 'raw'])
def test_every_pair_is_there_unchanged(prepared, run_script, tmp_path, store):
    (tmp_path / 'b').symlink_to(prepared)
    printed = run_script(join_stores, prepared / 'data', 'b/data', '-o', 'all', '--store', store, exit_code=2)
    assert "two images have the key 'data_photo0_000'" in printed.err and not (tmp_path / 'all_blur.lmdb').exists()
    for role in ('blur', 'sharp'):
        (tmp_path / f'other_{role}.lmdb').symlink_to(prepared / f'data_{role}.lmdb')
    printed = run_script(join_stores, prepared / 'data', 'other', '-o', 'all', '--store', store)
    assert printed.out == 'all: 12 pairs of 2 kinds\n'
    for role in ('blur', 'sharp'):
        joined, source = open_store(tmp_path / f'all_{role}.lmdb'), open_store(prepared / f'data_{role}.lmdb')
        assert joined.keys() == [f'{name}_{key}' for name in ('data', 'other') for key in source.keys()]
        for key in source.keys():
            value = joined.get(f'other_{key}')
            if role == 'sharp' and store == 'raw':
                with joined.view(f'other_{key}') as image:
                    np.testing.assert_array_equal(image, cv2.imread(str(prepared / 'data_sharp' / f'{key}.png')))
            else:
                assert value == source.get(key)


def test_what_is_not_there_is_one_line(run_script, tmp_path):
    printed = run_script(join_stores, 'nowhere', '-o', 'all', exit_code=2)
    assert printed.err.startswith('join_stores: nowhere_blur.lmdb: not an LMDB data set')
    assert not list(tmp_path.iterdir())
