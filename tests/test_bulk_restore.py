from unittest import mock

import cv2
import numpy as np
import pytest
import torch
from conftest import picture

from wrcan_arch import WRCAN, InputError, restore
from wrcan_arch.photos.bulk_restore import plan, restore_photos
from wrcan_arch.photos.photo import read_photo

OPTIONS = {'mode': 'exact', 'ensemble': False, 'precision': 'fp32'}


def network():
    torch.manual_seed(0)
    return WRCAN(num_feat=4, num_group=1, num_block=1).eval()


def save(path, seed=0):
    path.parent.mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(path), picture(12, 16, seed))
    return path


def test_files_and_folders_are_restored_as_restore_does(tmp_path):
    single, deep = save(tmp_path / 'single.png'), save(tmp_path / 'folder' / 'a' / 'Zoë 海.jpg', 1)
    pairs = plan([single, tmp_path / 'folder'], tmp_path / 'out')
    assert restore_photos(network(), pairs, **OPTIONS) == []
    for source, target in ((single, 'single.png'), (deep, 'a/Zoë 海.png')):
        expected = restore(network(), read_photo(source).pixels, precision='fp32')
        np.testing.assert_array_equal(read_photo(tmp_path / 'out' / target).pixels, expected)


def test_one_that_fails_does_not_stop_the_others(tmp_path):
    for number in range(3):
        save(tmp_path / 'in' / f'{number}.png')
    (tmp_path / 'in' / '1.png').write_text('broken')
    failures = restore_photos(network(), plan([tmp_path / 'in'], tmp_path / 'out'), **OPTIONS)
    assert len(failures) == 1 and '1.png: not an image' in failures[0]
    assert sorted(path.name for path in (tmp_path / 'out').iterdir()) == ['0.png', '2.png']


def test_photo_too_large_for_the_memory_is_named(tmp_path, monkeypatch):
    pairs = plan([save(tmp_path / 'a.png')], tmp_path / 'out')
    errors = (
        torch.cuda.OutOfMemoryError('CUDA out of memory'),
        MemoryError(),
        RuntimeError("can't allocate memory: 9 bytes"),
    )
    for error in errors:
        monkeypatch.setattr('wrcan_arch.photos.bulk_restore.restore', mock.Mock(side_effect=error))
        assert 'a.png: too large for the memory' in restore_photos(network(), pairs, **OPTIONS)[0]
    monkeypatch.setattr('wrcan_arch.photos.bulk_restore.restore', mock.Mock(side_effect=RuntimeError('a defect')))
    with pytest.raises(RuntimeError, match='a defect'):
        restore_photos(network(), pairs, **OPTIONS)


def test_inputs_and_results_are_never_overwritten(tmp_path):
    photo, twin = save(tmp_path / 'a.png'), save(tmp_path / 'other' / 'a.jpg')
    with pytest.raises(InputError, match='would overwrite the photograph'):
        plan([photo], tmp_path)
    with pytest.raises(InputError, match='both results would be'):
        plan([photo, twin], tmp_path / 'out')


def test_nothing_to_restore_is_an_error(tmp_path):
    (tmp_path / 'empty').mkdir()
    with pytest.raises(InputError, match='no such photograph or folder'):
        plan([tmp_path / 'nowhere'], tmp_path / 'out')
    with pytest.raises(InputError, match='no photographs in it'):
        plan([tmp_path / 'empty'], tmp_path / 'out')
