"""Files that cannot be read, and disks that take no more: one line each, nothing left behind."""

import io
import os
import struct
import warnings
from contextlib import contextmanager
from pathlib import Path
from unittest import mock

import cv2
import numpy as np
import pytest
import pyvips
import tifffile
from conftest import DATA, deep_picture, picture
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from photo_files import SRGB
from PIL import Image

from wrcan_arch import InputError
from wrcan_arch.photos import read_photo as reading
from wrcan_arch.photos.photo import Photo
from wrcan_arch.photos.read_photo import read_photo
from wrcan_arch.photos.write_photo import write_photo


def test_damaged_bytes_in_a_message_of_libvips_end_with_their_file(tmp_path):
    exif = Image.Exif()
    exif[0x112] = 6
    content = io.BytesIO()
    Image.fromarray(picture(24, 32)).save(content, 'AVIF', exif=exif)
    (tmp_path / 'a.avif').write_bytes(content.getvalue().replace(b'irot', b'iro\x80'))
    with pytest.raises(InputError, match='a.avif: cannot be read, it may be cut or damaged'):
        read_photo(tmp_path / 'a.avif')
    write_photo(tmp_path / 'b.png', Photo(pixels=picture(16, 16)))
    np.testing.assert_array_equal(read_photo(tmp_path / 'b.png').pixels, picture(16, 16))


def test_damaged_bytes_in_a_warning_of_libvips_can_be_told():
    """pyvips's handler of warnings prints a traceback for each text that it cannot decode."""
    assert pyvips._to_string(pyvips.ffi.new('char[]', b'profile \xff')) == 'profile \ufffd'


def test_full_memory_is_no_damage(tmp_path):
    write_photo(tmp_path / 'a.png', Photo(pixels=picture(8, 8)))
    said = pyvips.Error('unable to call', 'out of memory -- size == 45MB')
    with mock.patch('wrcan_arch.photos.read_photo._open_with_vips', side_effect=said), pytest.raises(MemoryError):
        read_photo(tmp_path / 'a.png')
    with mock.patch('pyvips.Image.pngsave_target', side_effect=said, create=True), pytest.raises(MemoryError):
        write_photo(tmp_path / 'b.png', Photo(pixels=picture(8, 8)))


def test_a_crash_of_the_heic_decoder_is_of_one_file(tmp_path, monkeypatch):
    (tmp_path / 'decoder.py').write_text('import os; print("{", flush=True); os.abort()')
    monkeypatch.setattr(reading, 'HEIC_DECODER', tmp_path / 'decoder.py')
    with pytest.raises(InputError, match=r'small\.heic: cannot be decoded \(its decoder crashed\); it may be damaged'):
        read_photo(DATA / 'small.heic')


def test_what_libvips_said_of_one_file_is_not_told_of_another(tmp_path):
    Image.fromarray(picture(24, 32)).save(tmp_path / 'a.avif')
    Image.fromarray(picture(40, 40)).save(tmp_path / 'b.png')
    (tmp_path / 'b.png').write_bytes((tmp_path / 'b.png').read_bytes()[:-200])
    read_photo(tmp_path / 'a.avif')
    with pytest.raises(InputError, match='vipspng: libpng read error') as caught:
        read_photo(tmp_path / 'b.png')
    assert 'seek' not in str(caught.value)


def bad_files(folder):
    image = Image.fromarray(picture(40, 40))
    image.save(folder / 'whole.jpg')
    (folder / 'cut.jpg').write_bytes((folder / 'whole.jpg').read_bytes()[:-200])
    (folder / 'head.jpg').write_bytes((folder / 'whole.jpg').read_bytes()[:30])
    image.save(folder / 'cut.png')
    (folder / 'cut.png').write_bytes((folder / 'cut.png').read_bytes()[:-200])
    (folder / 'text.png').write_text('not a picture')
    (folder / 'empty.png').write_bytes(b'')
    (folder / 'folder.png').mkdir()
    os.mkfifo(folder / 'pipe.png')
    (folder / 'zero.bmp').write_bytes(b'BM' + bytes(12) + (40).to_bytes(4, 'little') + bytes(60))
    image.convert('LAB').save(folder / 'lab.tif')
    tifffile.imwrite(folder / 'float.tif', picture(8, 8).astype(np.float32))
    return {
        'cut.jpg': 'cannot be read, it may be cut or damaged',
        'head.jpg': 'cannot be read, it may be cut or damaged',
        'cut.png': 'cannot be read, it may be cut or damaged',
        'text.png': 'not an image that can be read',
        'empty.png': 'the file is empty',
        'folder.png': 'not a file',
        'pipe.png': 'not a file',
        'zero.bmp': 'cannot be read, it may be cut or damaged',
        'float.tif': 'images of kind .* 3 x float are not read; convert it to 8-bit or 16-bit RGB',
        'lab.tif': 'images of kind Lab are not read; convert it to 8-bit or 16-bit RGB',
        'nowhere.png': 'no such photograph',
    }


def test_files_that_cannot_be_read_are_named(tmp_path):
    for name, message in bad_files(tmp_path).items():
        with pytest.raises(InputError, match=f'{name}: {message}') as caught:
            read_photo(tmp_path / name)
        assert '\n' not in str(caught.value)


@pytest.mark.parametrize('brand', [b'isom', b'qt  ', b'crx '])
def test_films_and_raw_files_are_no_damaged_heic(tmp_path, brand):
    (tmp_path / 'film.heic').write_bytes(b'\0\0\0\x14ftyp' + brand + b'\0\0\0\0mp42' + bytes(64))
    with pytest.raises(InputError, match='film.heic: not an image that can be read; convert it to PNG or JPEG'):
        read_photo(tmp_path / 'film.heic')


def test_bomb_is_refused_before_it_is_decoded(tmp_path):
    pyvips.Image.black(30_000, 30_000).pngsave(str(tmp_path / 'a.png'), compression=9)
    assert (tmp_path / 'a.png').stat().st_size < 2_000_000
    with pytest.raises(InputError, match=r'a\.png: 30000 x 30000 is more than 200,000,000 pixels; raise --max-pixels'):
        read_photo(tmp_path / 'a.png')
    Image.fromarray(picture(20, 30)).save(tmp_path / 'b.png')
    with pytest.raises(InputError, match=r'b\.png: 30 x 20 is more than 599 pixels'):
        read_photo(tmp_path / 'b.png', max_pixels=599)
    assert read_photo(tmp_path / 'b.png', max_pixels=600).pixels.shape == (20, 30, 3)


def test_the_limit_is_ours_for_what_pillow_reads_too(tmp_path, monkeypatch):
    Image.fromarray(picture(20, 30)).save(tmp_path / 'a.bmp')
    monkeypatch.setattr(Image, 'MAX_IMAGE_PIXELS', 100)
    undecoded = mock.patch.object(Image.Image, 'convert', side_effect=AssertionError('decoded'))
    with undecoded, pytest.raises(InputError, match=r'a\.bmp: 30 x 20 is more than 599 pixels; raise --max-pixels'):
        read_photo(tmp_path / 'a.bmp', max_pixels=599)
    np.testing.assert_array_equal(read_photo(tmp_path / 'a.bmp', max_pixels=600).pixels, picture(20, 30))
    assert Image.MAX_IMAGE_PIXELS == 100


def test_folder_that_cannot_be_written_is_an_error_and_leaves_nothing(tmp_path):
    (tmp_path / 'out').write_text('a file where the folder should be')
    with pytest.raises(InputError, match=r'out/b\.png: cannot be written \((File exists|Not a directory)\)'):
        write_photo(tmp_path / 'out' / 'b.png', Photo(pixels=picture(8, 8)))
    assert [path.name for path in tmp_path.iterdir()] == ['out']


@pytest.mark.parametrize('cleared', [False, True])
@pytest.mark.parametrize('ending', ['.jpg', '.png', '.tif', '.webp', '.avif'])
def test_full_disk_is_said_with_what_to_do(tmp_path, monkeypatch, ending, cleared):
    """Even if the thread that reads has cleared libvips's messages."""

    @contextmanager
    def full(*_):
        with Path('/dev/full').open('r+b', buffering=0) as file:
            yield file

    if cleared:
        monkeypatch.setattr('pyvips.error._to_string', lambda text: '')
    said = rf'a\{ending}: cannot be written \(No space left on device\); make room'
    with mock.patch('wrcan_arch.system.files._opened_alone', full), pytest.raises(InputError, match=said):
        write_photo(tmp_path / f'a{ending}', Photo(pixels=picture(40, 40)))


def test_failed_writing_leaves_nothing(tmp_path, monkeypatch):
    wide = np.zeros((1, 65_501, 3), np.uint8)
    with pytest.raises(InputError, match=r'a\.jpg: jpeg holds at most 65,500 pixels a side; choose --format png'):
        write_photo(tmp_path / 'a.jpg', Photo(pixels=wide))
    for said, told in (('a reason\nof two lines', 'a reason of two lines'), (' ', 'for an unknown reason')):
        failing = mock.Mock(side_effect=pyvips.Error('', said))
        monkeypatch.setattr(pyvips.Image, 'pngsave_target', failing, raising=False)
        with pytest.raises(InputError, match=rf'a\.png: cannot be written \({told}\)'):
            write_photo(tmp_path / 'a.png', Photo(pixels=picture(8, 8)))
    assert list(tmp_path.iterdir()) == []


def small_files():
    """Return a valid file of each kind, as bytes."""
    files = {}
    for kind, mode, options in (
        ('JPEG', 'RGB', {'exif': b'Exif\0\0II*\0\x08\0\0\0\0\0\0\0\0\0'}),
        ('JPEG', 'CMYK', {'icc_profile': SRGB}),
        ('JPEG', 'L', {'progressive': True}),
        ('PNG', 'RGBA', {'icc_profile': SRGB}),
        ('PNG', 'P', {}),
        ('TIFF', 'RGB', {'compression': 'tiff_lzw'}),
        ('TIFF', 'CMYK', {'compression': 'jpeg'}),
        ('WEBP', 'RGBA', {}),
        ('AVIF', 'RGB', {}),
        ('BMP', 'RGB', {}),
        ('BMP', 'P', {}),
    ):
        buffer = io.BytesIO()
        image = Image.fromarray(picture(19, 23))
        (image.quantize(8) if mode == 'P' else image.convert(mode)).save(buffer, kind, **options)
        files[f'{kind} {mode}'] = buffer.getvalue()
    files['PNG 16'] = cv2.imencode('.png', deep_picture(9, 8))[1].tobytes()
    return files


@pytest.mark.parametrize('kind', small_files())
@settings(max_examples=60, deadline=None, database=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_damaged_files_are_read_or_refused(tmp_path, kind, data):
    check_damaged(tmp_path, FILES[kind], data)


@settings(max_examples=15, deadline=None, database=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_damaged_heic_is_read_or_refused(tmp_path, data):
    check_damaged(tmp_path, (DATA / 'small.heic').read_bytes(), data)  # few examples: each starts a process


def check_damaged(tmp_path, file, data):
    """Change, remove or insert bytes anywhere: reading gives a photograph or an InputError, never a crash."""
    content = bytearray(file)
    for _ in range(data.draw(st.integers(1, 4))):
        place = data.draw(st.integers(0, len(content)) | st.integers(0, 64))
        content[place : place + data.draw(st.integers(0, 6))] = data.draw(st.binary(max_size=6))
    (tmp_path / 'a').write_bytes(content)
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        try:
            photo = read_photo(tmp_path / 'a', max_pixels=1_000_000)
        except InputError as error:
            assert '\n' not in str(error)
            return
    assert photo.pixels.shape[2] == 3 and photo.pixels.dtype in (np.uint8, np.uint16)
    write_photo(tmp_path / 'b.png', photo)


FILES = small_files()


def test_why_a_file_cannot_be_read_is_the_decoders_reason(tmp_path):
    whole = cv2.imencode('.jpg', picture(200, 200))[1].tobytes()
    (tmp_path / 'cut.jpg').write_bytes(whole[: len(whole) // 2])
    with pytest.raises(InputError, match=r'cut\.jpg: cannot be read, it may be cut or damaged \(VipsJpeg: '):
        read_photo(tmp_path / 'cut.jpg')


def test_compression_that_is_not_read_is_no_damage(tmp_path):
    tifffile.imwrite(tmp_path / 'a.tif', picture(8, 8), photometric='rgb', byteorder='<')
    compression, zstd = (struct.pack('<HHII', 259, 3, 1, number) for number in (1, 50_000))
    (tmp_path / 'a.tif').write_bytes((tmp_path / 'a.tif').read_bytes().replace(compression, zstd))
    with pytest.raises(InputError, match=r'a\.tif: is of a kind that is not read \(.*ZSTD.*\); save it') as caught:
        read_photo(tmp_path / 'a.tif')
    assert str(caught.value).count('not configured') == 1
