"""Which files are images, how large they are, what their keys are."""

import os
import struct
import threading
import warnings
import zlib

import cv2
import numpy as np
import pytest
from PIL import ExifTags, Image, ImageOps

from wrcan_arch import InputError
from wrcan_arch.data.image_files import decode_image, images_under, key_for, size_of_image, write_png


@pytest.mark.parametrize(('name', 'key'), [('IMG.0001', 'IMG_0001'), ('at the sea', 'at_the_sea'), ('a-b_c', 'a-b_c')])
def test_keys_are_what_basicsr_can_read(name, key):
    assert key_for(name) == key


def test_names_of_other_letters_have_keys_that_differ():
    names = ('море1', 'лес1', 'закат', '海', '山', 'Öl 1', 'Äl 1')
    keys = [key_for(name) for name in names]
    assert len(set(keys)) == len(keys)
    assert all(key.isascii() and key.replace('_', '').isalnum() and key == key.strip('_') for key in keys)
    assert key_for(os.fsdecode(b'caf\xe9')).startswith('caf_'), 'not of UTF-8'
    assert keys[-1].startswith('l_1_') and keys == [key_for(name) for name in names], 'the same each time'


def test_name_without_a_letter_is_an_error():
    with pytest.raises(InputError, match='rename the file'):
        key_for('!?')


def test_images_are_found_by_their_names(tmp_path):
    (tmp_path / 'in.png').mkdir()
    (tmp_path / '.thumbnails').mkdir()
    for name in ('b.JPG', 'in.png/a.png', '._b.JPG', 'notes.txt', '.thumbnails/b.png'):
        (tmp_path / name).touch()
    (tmp_path / 'gone.png').symlink_to('nowhere')
    assert [str(path.relative_to(tmp_path)) for path in images_under(tmp_path)] == ['b.JPG', 'gone.png', 'in.png/a.png']


def test_what_is_no_image_decodes_to_none(tmp_path):
    for content in (b'', b'no image', cv2.imencode('.png', np.zeros((9, 9, 3), np.uint8))[1].tobytes()[:40]):
        assert decode_image(content) is None
    header = b'IHDR' + struct.pack('>IIBBBBB', 60_000, 60_000, 8, 2, 0, 0, 0)
    huge = b'\x89PNG\r\n\x1a\n' + struct.pack('>I', 13) + header + struct.pack('>I', zlib.crc32(header))
    assert decode_image(huge) is None, 'more pixels than OpenCV takes'


@pytest.mark.parametrize('orientation', range(1, 9))
def test_turned_photographs_are_upright_and_of_the_size_that_is_said(tmp_path, orientation):
    path, exif = tmp_path / 'a.png', Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (5, 7, 3), np.uint8)).save(path, exif=exif)
    decoded = decode_image(path.read_bytes())
    np.testing.assert_array_equal(decoded[:, :, ::-1], ImageOps.exif_transpose(Image.open(path)))
    assert size_of_image(path) == decoded.shape[:2]


@pytest.mark.parametrize(('kind', 'value'), [(2, b'6\0\0\0'), (7, b'6\0\0\0'), (3, b'\0\x09\0\0')])
def test_an_orientation_that_is_none_turns_nothing(tmp_path, kind, value):
    """Its value is a text, undefined bytes, or a number that is too large."""
    path = tmp_path / 'a.jpg'
    exif = b'Exif\0\0MM\0*' + struct.pack('>IHHHI4sI', 8, 1, ExifTags.Base.Orientation, kind, 1 + (kind != 3), value, 0)
    Image.fromarray(np.zeros((5, 7, 3), np.uint8)).save(path, exif=exif)
    assert size_of_image(path) == decode_image(path.read_bytes()).shape[:2] == (5, 7)


def test_size_is_read_from_the_header(tmp_path):
    cv2.imwrite(str(tmp_path / 'a.png'), np.zeros((3, 5, 3), np.uint8))
    (tmp_path / 'b.png').write_text('no image')
    assert [size_of_image(tmp_path / name) for name in ('a.png', 'b.png', 'c.png')] == [(3, 5), (), ()]
    Image.new('RGB', (16, 16)).save(tmp_path / 'd.png', 'ICO')  # Pillow decodes it to tell its size
    assert size_of_image(tmp_path / 'd.png') == ()
    small = cv2.imencode('.bmp', np.zeros((3, 5, 3), np.uint8))[1].tobytes()
    (tmp_path / 'phone.bmp').write_bytes(small[:18] + struct.pack('<ii', 16320, 12240) + small[26:])
    assert size_of_image(tmp_path / 'phone.bmp') == (12240, 16320), "200 megapixels, more than Pillow's limit"


def test_threads_leave_pillows_limit_and_the_filters_of_warnings_as_they_were(tmp_path, monkeypatch):
    cv2.imwrite(str(tmp_path / 'a.png'), np.zeros((3, 5, 3), np.uint8))
    before, plain_open = (Image.MAX_IMAGE_PIXELS, list(warnings.filters)), Image.open
    opens, second_opens = threading.Event(), threading.Event()

    def open_first(path, **options):
        opens.set()
        second_opens.wait(0.2)
        return plain_open(path, **options)

    def open_second(path, **options):
        second_opens.set()
        first.join()  # so that the first to come is the first to go
        return plain_open(path, **options)

    monkeypatch.setattr(Image, 'open', open_first)
    first = threading.Thread(target=size_of_image, args=[tmp_path / 'a.png'])
    first.start()
    assert opens.wait(10)
    monkeypatch.setattr(Image, 'open', open_second)
    assert size_of_image(tmp_path / 'a.png') == (3, 5)
    assert (Image.MAX_IMAGE_PIXELS, warnings.filters) == before


def test_png_is_written_whole_whatever_its_name(tmp_path):
    image = np.random.default_rng(0).integers(0, 256, (5, 7, 3), np.uint8)
    path = tmp_path / 'new' / os.fsdecode(b'b\xff.png')
    write_png(path, image)
    np.testing.assert_array_equal(decode_image(path.read_bytes()), image)
    with pytest.raises(InputError, match=r'cannot be written \(File name too long\); give it a shorter name'):
        write_png(tmp_path / f'{"a" * 260}.png', image)
    assert [each.name for each in path.parent.iterdir()] == [path.name]


def test_folder_that_cannot_be_read_is_no_empty_one(tmp_path, monkeypatch):
    def refuse(path):
        raise PermissionError(13, 'Permission denied', path)

    monkeypatch.setattr('os.scandir', refuse)
    with pytest.raises(InputError, match=r'cannot be read \(Permission denied\)$'):
        images_under(tmp_path)
