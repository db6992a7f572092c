"""Photographs keep size, mode, depth and metadata, and become upright; references: Pillow, OpenCV, tifffile."""

import io
import os
import struct
import subprocess
import sys
import warnings
import zlib
from contextlib import contextmanager
from pathlib import Path
from unittest import mock

import cv2
import numpy as np
import pi_heif
import pytest
import pyvips
import tifffile
from conftest import DATA, deep_picture, picture
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image, ImageCms, PngImagePlugin, TiffImagePlugin

from wrcan_arch import InputError
from wrcan_arch.photos import read_photo as reading
from wrcan_arch.photos.heic_decoder import decode
from wrcan_arch.photos.photo import ENDINGS, Photo
from wrcan_arch.photos.read_photo import read_photo
from wrcan_arch.photos.write_photo import HELD_BY_JPEG, loss_warnings, write_photo

ORIENTATION, MAKE, EXPOSURE, EXIF_IFD = 0x0112, 0x010F, 0x829A, 0x8769
X_RESOLUTION, Y_RESOLUTION, RESOLUTION_UNIT = 0x011A, 0x011B, 0x0128
SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile('sRGB')).tobytes()
LOSSLESS = ('.png', '.tif')
RELATIVE = ImageCms.Intent.RELATIVE_COLORIMETRIC


@pytest.mark.parametrize('ending', LOSSLESS)
@pytest.mark.parametrize('shape', [(20, 30), (1, 1), (7, 1), (1, 9)])
def test_rgb_pixels_come_back(tmp_path, ending, shape):
    Image.fromarray(picture(*shape)).save(tmp_path / f'a{ending}')
    photo = read_photo(tmp_path / f'a{ending}')
    assert photo.mode == 'rgb' and photo.alpha is None and photo.pixels.flags.c_contiguous
    np.testing.assert_array_equal(photo.pixels, picture(*shape))
    write_photo(tmp_path / 'out' / f'b{ending}', photo.with_pixels(255 - photo.pixels))
    np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / 'out' / f'b{ending}')), 255 - picture(*shape))


@pytest.mark.parametrize('ending', ['.jpg', '.webp', '.avif', '.bmp'])
def test_pixels_are_those_that_pillow_decodes(tmp_path, ending):
    options = {'.bmp': {}, '.avif': {'quality': 80, 'subsampling': '4:4:4'}}.get(ending, {'quality': 80})
    Image.fromarray(picture(41, 35)).save(tmp_path / f'a{ending}', **options)
    expected = np.asarray(Image.open(tmp_path / f'a{ending}').convert('RGB')).astype(int)
    assert np.abs(read_photo(tmp_path / f'a{ending}').pixels - expected).max() <= (0 if ending == '.bmp' else 2)


@pytest.mark.parametrize(('ending', 'least_psnr'), [('.jpg', 38), ('.webp', 30), ('.avif', 38)])
def test_quality_is_the_users(tmp_path, ending, least_psnr):
    photo, path = Photo(pixels=picture(64, 96)), tmp_path / f'a{ending}'
    write_photo(path, photo)
    fine, size = np.asarray(Image.open(path).convert('RGB')), path.stat().st_size
    assert cv2.PSNR(fine, photo.pixels) > least_psnr
    write_photo(path, photo, quality=20)
    assert path.stat().st_size < size / 2 and cv2.PSNR(np.asarray(Image.open(path).convert('RGB')), fine) < 40


def test_webp_stays_lossless_or_lossy(tmp_path):
    pixels = np.dstack([picture(24, 32), picture(24, 32, 1)[:, :, 0]])
    pixels[:4, :, 3] = 0  # transparent pixels keep their colours
    for mode in ('RGB', 'RGBA'):
        first, second = (Image.fromarray(each).convert(mode) for each in (pixels, 255 - pixels))
        for about in ({}, {'icc_profile': SRGB + bytes(100_000)}, {'save_all': True, 'append_images': [second]}):
            for lossless in (True, False):
                first.save(tmp_path / 'a.webp', lossless=lossless, exact=True, **about)
                photo = read_photo(tmp_path / 'a.webp')
                write_photo(tmp_path / 'b.webp', photo, quality=20)
                before, after = (np.asarray(Image.open(tmp_path / name)) for name in ('a.webp', 'b.webp'))
                same = np.array_equal(before, after)
                assert photo.lossless_webp == read_photo(tmp_path / 'b.webp').lossless_webp == same == lossless


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


def test_jpeg_quality_of_a_file_is_estimated(tmp_path):
    write_photo(tmp_path / 'a.jpg', Photo(pixels=picture(16, 16)), quality=37)
    assert read_photo(tmp_path / 'a.jpg').jpeg_quality == 37
    write_photo(tmp_path / 'a.png', Photo(pixels=picture(16, 16)))
    assert read_photo(tmp_path / 'a.png').jpeg_quality is None


@pytest.mark.parametrize('ending', LOSSLESS)
@pytest.mark.parametrize('channels', [1, 3, 4])
def test_sixteen_bits_come_back(tmp_path, ending, channels):
    deep = deep_picture(12, 17, channels)
    cv2.imwrite(str(tmp_path / f'a{ending}'), deep)  # OpenCV writes BGR
    photo = read_photo(tmp_path / f'a{ending}')
    rgb = np.repeat(deep, 3, axis=2) if channels == 1 else deep[:, :, 2::-1]
    np.testing.assert_array_equal(photo.pixels, rgb)
    assert photo.pixels.dtype == np.uint16 and photo.mode == ('grey' if channels == 1 else 'rgb')
    write_photo(tmp_path / f'b{ending}', photo)
    written = cv2.imread(str(tmp_path / f'b{ending}'), cv2.IMREAD_UNCHANGED)
    np.testing.assert_array_equal(np.atleast_3d(written), deep)


def test_sixteen_bits_are_told_by_type_and_not_by_values(tmp_path):
    dark = np.full((5, 6, 3), 3, np.uint16)
    cv2.imwrite(str(tmp_path / 'a.png'), dark)
    photo = read_photo(tmp_path / 'a.png')
    assert photo.pixels.dtype == np.uint16 and (photo.pixels == 3).all()


def test_sixteen_bits_become_what_the_format_holds(tmp_path):
    photo = Photo(pixels=deep_picture(16, 16))
    eight = photo.pixels / 257
    for ending, tolerance in (('.jpg', 14), ('.avif', 14)):
        write_photo(tmp_path / f'a{ending}', photo)
        assert np.abs(np.asarray(Image.open(tmp_path / f'a{ending}').convert('RGB')) - eight).mean() < tolerance / 7
    assert read_photo(tmp_path / 'a.avif').pixels.dtype == np.uint16


def turned(upright, orientation):
    """The pixels that a camera stores for an upright picture with this EXIF orientation."""
    turns = {1: lambda a: a, 2: np.fliplr, 3: lambda a: np.rot90(a, 2), 4: np.flipud,
             5: lambda a: a.transpose(1, 0, 2), 6: np.rot90, 7: lambda a: np.rot90(a, 2).transpose(1, 0, 2),
             8: lambda a: np.rot90(a, -1)}  # fmt: skip
    return Image.fromarray(np.ascontiguousarray(turns[orientation](upright)))


@pytest.mark.parametrize('ending', LOSSLESS)
@pytest.mark.parametrize('orientation', range(1, 9))
def test_photo_is_turned_upright_and_stays_so(tmp_path, orientation, ending):
    stored = turned(picture(20, 30), orientation)
    exif = stored.getexif()
    exif[ORIENTATION] = orientation
    stored.save(tmp_path / f'a{ending}', exif=exif)
    photo = read_photo(tmp_path / f'a{ending}')
    np.testing.assert_array_equal(photo.pixels, picture(20, 30))
    write_photo(tmp_path / f'b{ending}', photo)
    written = Image.open(tmp_path / f'b{ending}')
    np.testing.assert_array_equal(np.asarray(written), picture(20, 30))
    assert written.getexif().get(ORIENTATION, 1) == 1


def test_orientation_of_photographs_with_transparency(tmp_path):
    stored = turned(picture(20, 30), 6)
    stored.putalpha(Image.fromarray(np.rot90(picture(20, 30, 1)[:, :, 0])))
    stored.getexif()[ORIENTATION] = 6
    stored.save(tmp_path / 'a.png', exif=stored.getexif())
    np.testing.assert_array_equal(read_photo(tmp_path / 'a.png').alpha, picture(20, 30, 1)[:, :, 0])


@pytest.mark.parametrize('source', ['.jpg', '.png', '.webp', '.avif', '.tif'])
@pytest.mark.parametrize('target', [endings[0] for endings in ENDINGS.values()])
def test_profile_resolution_and_exif_are_kept(tmp_path, source, target):
    image = Image.fromarray(picture(16, 24))
    exif = image.getexif()
    exif[MAKE], exif[ORIENTATION] = 'a camera', 6
    exif[EXIF_IFD] = {EXPOSURE: 0.01}
    resolution = {'dpi': (300, 300)} if source not in ('.webp', '.avif') else {}
    if source == '.tif':  # Pillow copies no EXIF into TIFF
        tags = TiffImagePlugin.ImageFileDirectory_v2()
        tags[MAKE], tags[ORIENTATION], tags[EXIF_IFD] = 'a camera', 6, {EXPOSURE: TiffImagePlugin.IFDRational(1, 100)}
        exif = tags
    image.save(
        tmp_path / f'a{source}', **{'tiffinfo' if source == '.tif' else 'exif': exif}, icc_profile=SRGB, **resolution
    )
    write_photo(tmp_path / f'b{target}', read_photo(tmp_path / f'a{source}'))
    written = Image.open(tmp_path / f'b{target}')
    assert written.info['icc_profile'] == SRGB and written.size == (16, 24)
    assert written.getexif()[MAKE] == 'a camera' and written.getexif().get(ORIENTATION, 1) == 1
    assert written.getexif().get_ifd(EXIF_IFD)[EXPOSURE] == pytest.approx(0.01)
    if resolution and target in ('.jpg', '.png', '.tif'):
        assert written.info['dpi'] == pytest.approx((300, 300), abs=1)


@pytest.mark.parametrize('source', ['.jpg', '.png', '.tif', '.bmp'])
@pytest.mark.parametrize('target', ['.jpg', '.png', '.tif', '.webp', '.avif'])
def test_resolution_is_kept_without_exif_too(tmp_path, source, target):
    Image.fromarray(picture(16, 24)).save(tmp_path / f'a{source}', dpi=(300, 300))
    write_photo(tmp_path / f'b{target}', read_photo(tmp_path / f'a{source}'))
    written = Image.open(tmp_path / f'b{target}')
    said = written.info.get('dpi') or tuple(written.getexif()[tag] for tag in (X_RESOLUTION, Y_RESOLUTION))
    assert said == pytest.approx((300, 300), abs=1)


def test_what_a_result_will_lack_is_said(tmp_path):
    image = Image.fromarray(picture(16, 24))
    image.save(tmp_path / 'phone.jpg', format='MPO', save_all=True, append_images=[image.resize((8, 8))])
    assert any('several pictures' in each for each in loss_warnings('jpeg', read_photo(tmp_path / 'phone.jpg')))
    image.convert('L').save(tmp_path / 'grey.jpg', icc_profile=grey_profile())
    grey = read_photo(tmp_path / 'grey.jpg')
    for name, (ending, *_) in ENDINGS.items():
        write_photo(tmp_path / f'b{ending}', grey)
        kept = read_photo(tmp_path / f'b{ending}').metadata.get('icc-profile-data') == grey_profile()
        assert [each.partition(',')[0] for each in loss_warnings(name, grey)] == [
            'its colours are other than sRGB' for _ in range(not kept)
        ]


@pytest.mark.parametrize('name', list(ENDINGS))
def test_what_is_lost_of_captions_and_depth_is_said(name):
    deep = Photo(pixels=deep_picture(8, 8), metadata={'iptc-data': b'\x1c\x02\x78\0\x01a'})
    said = {each.partition(';')[0] for each in loss_warnings(name, deep)}
    assert (f'it has more than the 8 bits of {name}' in said) == (name in ('jpeg', 'webp'))
    assert (f'{name} has no place for its captions (IPTC)' in said) == (name not in ('jpeg', 'tiff'))


@pytest.mark.parametrize('captions', [b'\x1c\x02\x78\0\x03abc', b'\x1c\x02\x78\0\x02ab'])
def test_captions_of_a_tiff_are_those_of_its_jpeg_and_the_other_way(tmp_path, captions):
    write_photo(tmp_path / 'a.tif', Photo(pixels=picture(8, 8), metadata={'iptc-data': captions}))
    assert read_photo(tmp_path / 'a.tif').metadata['iptc-data'].startswith(captions)
    write_photo(tmp_path / 'b.jpg', read_photo(tmp_path / 'a.tif'))
    assert captions in captions_of(tmp_path / 'b.jpg')
    write_photo(tmp_path / 'c.tif', read_photo(tmp_path / 'b.jpg'))
    write_photo(tmp_path / 'd.jpg', read_photo(tmp_path / 'c.tif'))
    assert captions_of(tmp_path / 'd.jpg') == captions_of(tmp_path / 'b.jpg')


def test_thumbnail_among_photoshops_resources_is_left_out(tmp_path):
    def resource(number, content, name=b'\0\0'):
        size = struct.pack('>I', len(content))
        return b'8BIM' + number.to_bytes(2, 'big') + name + size + content + bytes(len(content) % 2)

    copyright, thumbnail = resource(0x040A, b'\1', name=b'\x03abc'), resource(0x040C, bytes(28) + b'old picture')
    captions = resource(0x0404, b'\x1c\x02\x78\0\x01a')
    head = b'Photoshop 3.0\0'
    for block, kept in (
        (copyright + thumbnail + captions, copyright + captions),
        (captions + resource(0x0409, b''), captions),
        (thumbnail + copyright, copyright),
        (captions + thumbnail[:9], captions),
        (resource(0x0409, b'12345')[:-1] + captions, resource(0x0409, b'12345')[:-1] + captions),  # without padding
    ):
        photo = Photo(pixels=picture(8, 8), metadata={'iptc-data': head + block})
        write_photo(tmp_path / 'a.jpg', photo)
        read = read_photo(tmp_path / 'a.jpg')
        assert read.metadata['iptc-data'] == head + kept
        assert bool(loss_warnings('png', read)) == (captions in kept)


def captions_of(path):
    """The captions that Pillow finds in Photoshop's resources."""
    return Image.open(path).info['photoshop'][0x0404]


def test_film_behind_a_photograph_is_said_and_no_longer_promised(tmp_path):
    xmp = b'<x:xmpmeta GCamera:MotionPhoto="1" GCamera:MotionPhotoVersion="1"'
    write_photo(tmp_path / 'a.jpg', Photo(pixels=picture(8, 8), metadata={'xmp-data': xmp}))
    photo = read_photo(tmp_path / 'a.jpg')
    assert loss_warnings('jpeg', photo) == ['the file holds a film too; the picture was restored']
    assert photo.metadata['xmp-data'] == xmp.replace(b'MotionPhoto="1"', b'MotionPhoto="0"')


def test_what_a_bigtiff_says_of_itself_is_lost_and_said(tmp_path):
    tifffile.imwrite(tmp_path / 'a.tif', picture(8, 8), bigtiff=True, photometric='rgb')
    assert loss_warnings('tiff', read_photo(tmp_path / 'a.tif')) == [
        'EXIF is not read from a BigTIFF; the result has none'
    ]
    tifffile.imwrite(tmp_path / 'a.tif', picture(8, 8), photometric='rgb')
    assert loss_warnings('tiff', read_photo(tmp_path / 'a.tif')) == []


def test_resolution_turns_with_the_picture_and_is_none_of_a_pixels_shape(tmp_path):
    for orientation, dpi in ((1, (300, 150)), (3, (300, 150)), (6, (150, 300))):
        exif = Image.Exif()
        exif[ORIENTATION] = orientation
        Image.fromarray(picture(16, 24)).save(tmp_path / 'a.jpg', dpi=(300, 150), exif=exif)
        write_photo(tmp_path / 'b.jpg', read_photo(tmp_path / 'a.jpg'))
        written = Image.open(tmp_path / 'b.jpg').getexif()
        assert (written[X_RESOLUTION], written[Y_RESOLUTION]) == dpi
    Image.fromarray(picture(8, 8)).save(tmp_path / 'a.png', dpi=(300, 150))
    content = (tmp_path / 'a.png').read_bytes()
    at = content.index(b'pHYs')
    without_unit = content[at : at + 12] + b'\0'
    check = zlib.crc32(without_unit).to_bytes(4, 'big')
    (tmp_path / 'a.png').write_bytes(content[:at] + without_unit + check + content[at + 17 :])
    assert read_photo(tmp_path / 'a.png').pixels_per_mm == (72 / 25.4, 72 / 25.4)


def test_full_memory_is_no_damage(tmp_path):
    write_photo(tmp_path / 'a.png', Photo(pixels=picture(8, 8)))
    said = pyvips.Error('unable to call', 'out of memory -- size == 45MB')
    with mock.patch('wrcan_arch.photos.read_photo._open_with_vips', side_effect=said), pytest.raises(MemoryError):
        read_photo(tmp_path / 'a.png')
    with mock.patch('pyvips.Image.pngsave_target', side_effect=said, create=True), pytest.raises(MemoryError):
        write_photo(tmp_path / 'b.png', Photo(pixels=picture(8, 8)))


@pytest.mark.parametrize('field', ['exif-data', 'xmp-data'])
def test_metadata_that_jpeg_does_not_hold_is_said(tmp_path, field):
    most = HELD_BY_JPEG[field]
    for length in (most, most + 1, most + 1_000):
        head = b'Exif\0\0II*\0' + struct.pack('<IHHHIII', 8, 1, 0x010E, 2, length - 32, 26, 0)
        block = (head if field == 'exif-data' else b'<x:xmpmeta>').ljust(length, b'd')
        photo = Photo(pixels=picture(8, 8), metadata={field: block})
        write_photo(tmp_path / 'a.jpg', photo)
        kept = b'd' * (length - 100) in (tmp_path / 'a.jpg').read_bytes()
        assert kept or loss_warnings('jpeg', photo) == ['some of its metadata (EXIF, XMP, IPTC) is too long to be kept']
        assert kept or length > most
        assert not loss_warnings('tiff', photo)
    extended = Photo(pixels=picture(8, 8), metadata={'xmp-data': b'xmpNote:HasExtendedXMP="0"'})
    assert loss_warnings('png', extended) == loss_warnings('jpeg', photo)


def grey_profile():
    """A grey profile of gamma 1.8 by ICC.1:2001-04: a header, three tags, their contents."""
    contents = {
        b'wtpt': b'XYZ \0\0\0\0' + struct.pack('>3i', 63190, 65536, 54061),
        b'kTRC': b'curv\0\0\0\0' + struct.pack('>IHxx', 1, round(1.8 * 256)),
        b'cprt': b'text\0\0\0\0none',
    }
    tags, data = struct.pack('>I', len(contents)), b''
    for name, content in contents.items():
        tags += name + struct.pack('>II', 128 + 4 + 12 * len(contents) + len(data), len(content))
        data += content + bytes(-len(content) % 4)
    head = struct.pack('>II', 128 + len(tags + data), 0) + b'\x02\x10\0\0mntrGRAYXYZ ' + bytes(12) + b'acsp'
    return head.ljust(68, b'\0') + struct.pack('>3i', 63190, 65536, 54061) + bytes(48) + tags + data


@pytest.mark.parametrize('orientation', [b'tiff:Orientation="6"', b"tiff:Orientation = '6'", b'<tiff:Orientation>6<'])
def test_orientation_in_xmp_is_reset(tmp_path, orientation):
    xmp = b'<x:xmpmeta ' + orientation
    write_photo(tmp_path / 'a.png', Photo(pixels=picture(8, 8), metadata={'xmp-data': xmp}))
    assert read_photo(tmp_path / 'a.png').metadata['xmp-data'] == xmp.replace(b'6', b'1')


@pytest.mark.parametrize(
    'source', ['.jpg', '.png', '.tif', '.webp', '.avif', '.bmp', '.heic', 'unit.tif', 'damaged.bmp']
)
def test_no_resolution_is_made_up(tmp_path, source, capfd):
    """A file without one has EXIF's default of 72 dpi; libvips reports 25.4."""
    about = {
        '.bmp': {'dpi': (0, 0)},
        'damaged.bmp': {'dpi': (100_000_000, 100_000_000)},
        'unit.tif': {'tiffinfo': {X_RESOLUTION: 300.0, Y_RESOLUTION: 300.0, RESOLUTION_UNIT: 1}},  # no unit
    }
    path = DATA / 'deep.heic' if source == '.heic' else tmp_path / f'a{source}'
    if source != '.heic':
        Image.fromarray(picture(16, 24)).save(path, **about.get(source, {}))
    photo = read_photo(path)
    for target in ('.jpg', '.png', '.tif', '.webp'):
        write_photo(tmp_path / f'b{target}', photo)
        written = Image.open(tmp_path / f'b{target}')
        if target in ('.png', '.tif'):
            assert written.info['dpi'] == pytest.approx((72, 72), abs=0.1)
        else:
            assert 'dpi' not in written.info and not written.getexif()
    assert capfd.readouterr().err == ''


@pytest.mark.parametrize('source', ['.webp', '.avif', '.png', '.jpg', '.heic'])
@pytest.mark.parametrize('target', ['.png', '.jpg', '.tif', '.webp'])
def test_resolution_is_what_exif_says_or_would_have_it(tmp_path, source, target):
    for dpi in (None, 300.0):
        exif = Image.Exif()
        exif[MAKE] = 'a camera'
        if dpi:
            exif[X_RESOLUTION], exif[Y_RESOLUTION], exif[RESOLUTION_UNIT] = dpi, dpi, 2
        if source == '.heic':
            photo = read_photo(DATA / 'small.heic')
            photo.metadata['exif-data'] = exif.tobytes()
        else:
            Image.fromarray(picture(16, 24)).save(tmp_path / f'a{source}', exif=exif)
            photo = read_photo(tmp_path / f'a{source}')
        write_photo(tmp_path / f'b{target}', photo)
        written = Image.open(tmp_path / f'b{target}').getexif()
        assert written[X_RESOLUTION] == written[Y_RESOLUTION] == (dpi or 72) and written[RESOLUTION_UNIT] == 2


def test_file_without_metadata_gets_none(tmp_path):
    write_photo(tmp_path / 'a.png', Photo(pixels=picture(8, 8)))
    written = Image.open(tmp_path / 'a.png')
    assert not written.getexif() and 'icc_profile' not in written.info and 'xmp' not in written.info


@pytest.mark.parametrize('ending', ['.png', '.tif', '.webp', '.avif'])
def test_transparency_is_kept(tmp_path, ending):
    alpha = picture(16, 24)[:, :, 0]
    image = Image.fromarray(picture(16, 24))
    image.putalpha(Image.fromarray(alpha))
    image.save(tmp_path / f'a{ending}', **({'quality': 100} if ending == '.avif' else {}))
    photo = read_photo(tmp_path / f'a{ending}')
    np.testing.assert_array_equal(photo.alpha, np.asarray(Image.open(tmp_path / f'a{ending}'))[:, :, 3])
    write_photo(tmp_path / f'b{ending}', photo.with_pixels(255 - photo.pixels))
    written = read_photo(tmp_path / f'b{ending}').alpha
    assert np.abs(written.astype(int) - photo.alpha).max() <= (12 if ending == '.avif' else 0)


def test_transparency_does_not_fit_into_jpeg(tmp_path):
    alpha = np.full((8, 8), 255, np.uint8)
    write_photo(tmp_path / 'a.jpg', Photo(pixels=picture(8, 8), alpha=alpha))
    assert Image.open(tmp_path / 'a.jpg').mode == 'RGB'
    alpha[3, 4] = 254
    with pytest.raises(InputError, match=r'b\.jpg: jpeg holds no transparency; choose --format png'):
        write_photo(tmp_path / 'b.jpg', Photo(pixels=picture(8, 8), alpha=alpha))


@pytest.mark.parametrize('ending', [*LOSSLESS, '.jpg', '.bmp'])
def test_grey_stays_grey(tmp_path, ending):
    Image.fromarray(picture(9, 11)[:, :, 0]).save(tmp_path / f'a{ending}')
    photo = read_photo(tmp_path / f'a{ending}')
    grey = np.asarray(Image.open(tmp_path / f'a{ending}'))
    np.testing.assert_array_equal(photo.pixels, np.dstack([grey] * 3))
    write_photo(tmp_path / 'b.png', photo)
    assert Image.open(tmp_path / 'b.png').mode == 'L'
    np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / 'b.png')), grey)
    write_photo(tmp_path / 'c.png', photo.with_pixels(picture(9, 11)))
    expected = np.asarray(Image.fromarray(picture(9, 11)).convert('L')).astype(int)
    assert np.abs(np.asarray(Image.open(tmp_path / 'c.png')) - expected).max() <= 1


def test_palette_and_one_bit_are_read_as_colours(tmp_path):
    for name, image in (
        ('palette.png', Image.fromarray(picture(9, 11)).quantize(16)),
        ('palette.bmp', Image.fromarray(picture(9, 11)).quantize(16)),
        ('bits.png', Image.fromarray(picture(9, 11)).convert('1')),
        ('bits.tif', Image.fromarray(picture(9, 11)).convert('1')),
    ):
        image.save(tmp_path / name)
        np.testing.assert_array_equal(read_photo(tmp_path / name).pixels, np.asarray(image.convert('RGB')))


@pytest.fixture
def cmyk_profile():
    return pyvips.Image.black(1, 1, bands=3).copy(interpretation='srgb').icc_transform('cmyk').get('icc-profile-data')


@pytest.mark.parametrize('ending', ['.jpg', '.tif'])
@pytest.mark.parametrize('has_profile', [True, False])
def test_cmyk_is_restored_in_srgb_and_written_as_cmyk(tmp_path, ending, has_profile, cmyk_profile):
    transform = ImageCms.buildTransform(
        ImageCms.createProfile('sRGB'), ImageCms.ImageCmsProfile(io.BytesIO(cmyk_profile)), 'RGB', 'CMYK'
    )
    smooth = cv2.GaussianBlur(picture(48, 64), (0, 0), 6)
    separated = ImageCms.applyTransform(Image.fromarray(smooth), transform)
    separated.info.clear()
    about = {'icc_profile': cmyk_profile} if has_profile else {}
    separated.save(tmp_path / f'a{ending}', **about, **({'quality': 98} if ending == '.jpg' else {}))
    photo = read_photo(tmp_path / f'a{ending}')
    back = ImageCms.buildTransform(
        ImageCms.ImageCmsProfile(io.BytesIO(cmyk_profile)), ImageCms.createProfile('sRGB'), 'CMYK', 'RGB', RELATIVE
    )
    expected = np.asarray(ImageCms.applyTransform(Image.open(tmp_path / f'a{ending}'), back)).astype(int)
    assert np.abs(photo.pixels - expected).mean() < 2 and photo.mode == 'cmyk'

    write_photo(tmp_path / f'b{ending}', photo)
    written = Image.open(tmp_path / f'b{ending}')
    assert written.mode == 'CMYK' and written.info.get('icc_profile') == (cmyk_profile if has_profile else None)
    error = np.abs(np.asarray(written).astype(int) - np.asarray(Image.open(tmp_path / f'a{ending}')))
    assert error.max() == 0 if ending == '.tif' else error.mean() < 1, 'nothing changed its inks'
    write_photo(tmp_path / 'c.png', photo)
    assert Image.open(tmp_path / 'c.png').mode == 'RGB' and 'icc_profile' not in Image.open(tmp_path / 'c.png').info
    np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / 'c.png')), photo.pixels)


INKS = {
    'black alone': lambda rgb: np.dstack([0 * rgb, 255 - rgb[:, :, 1]]),
    'no black': lambda rgb: np.dstack([255 - rgb, 0 * rgb[:, :, 0]]),
    'much black': lambda rgb: np.dstack([rgb.max(axis=2, keepdims=True) - rgb, 255 - rgb.max(axis=2)]),
}


@pytest.mark.parametrize('kind', INKS)
def test_cmyk_changes_as_much_as_its_pixels(tmp_path, kind, cmyk_profile):
    """However much of a grey is black ink. A new separation made pure black 5 levels darker, out of four inks."""
    smooth = cv2.GaussianBlur(picture(48, 64), (0, 0), 3)
    Image.fromarray(INKS[kind](smooth), 'CMYK').save(tmp_path / 'a.tif', icc_profile=cmyk_profile)
    photo = read_photo(tmp_path / 'a.tif')
    before = photo.pixels.astype(float)
    sharper = np.clip(np.rint(1.8 * before - 0.8 * cv2.GaussianBlur(before, (0, 0), 1.5)), 0, 255).astype(np.uint8)
    sharper[:, :16] = photo.pixels[:, :16]
    write_photo(tmp_path / 'b.tif', photo.with_pixels(sharper))
    error = read_photo(tmp_path / 'b.tif').pixels[:, 16:].astype(int) - sharper[:, 16:]
    assert np.abs(error.mean(axis=(0, 1))).max() < 0.9 and np.abs(error).mean() < 1
    written = np.asarray(Image.open(tmp_path / 'b.tif'))
    np.testing.assert_array_equal(written[:, :16], photo.inks[:, :16])


def test_black_ink_stays_black_ink(tmp_path):
    Image.new('CMYK', (8, 8), (0, 0, 0, 228)).save(tmp_path / 'a.tif')
    write_photo(tmp_path / 'b.tif', read_photo(tmp_path / 'a.tif'))
    assert Image.open(tmp_path / 'b.tif').getcolors() == [(64, (0, 0, 0, 228))]


@pytest.mark.parametrize(('bands', 'kind'), [(4, np.uint16), (5, np.uint8), (5, np.uint16)])
def test_inks_of_16_bits_and_with_transparency_come_back_upright(tmp_path, bands, kind):
    samples = np.random.default_rng(0).integers(0, np.iinfo(kind).max, (9, 7, bands), kind, endpoint=True)
    about = {'extratags': [(ORIENTATION, 3, 1, 6, True)], **({'extrasamples': ['unassalpha']} if bands == 5 else {})}
    tifffile.imwrite(tmp_path / 'a.tif', np.rot90(samples), photometric='separated', metadata=None, **about)
    write_photo(tmp_path / 'b.tif', read_photo(tmp_path / 'a.tif'))
    written = tifffile.imread(tmp_path / 'b.tif')
    assert written.dtype == kind
    np.testing.assert_array_equal(written, samples)


def test_heic_is_read(tmp_path):
    photo = read_photo(DATA / 'small.heic')  # by pillow-heif, from picture(48, 64), quality 90
    assert np.abs(photo.pixels.astype(int) - picture(48, 64)).mean() < 8 and 'icc-profile-data' in photo.metadata
    write_photo(tmp_path / 'a.png', photo)
    assert Image.open(tmp_path / 'a.png').getexif()[MAKE] == 'a camera'
    with pytest.raises(InputError, match='not a format that is written; choose one of jpeg, png'):
        write_photo(tmp_path / 'a.heic', photo)


def test_a_crash_of_the_heic_decoder_is_of_one_file(tmp_path, monkeypatch):
    (tmp_path / 'decoder.py').write_text('import os; print("{", flush=True); os.abort()')
    monkeypatch.setattr(reading, 'HEIC_DECODER', tmp_path / 'decoder.py')
    with pytest.raises(InputError, match=r'small\.heic: cannot be decoded \(its decoder crashed\); it may be damaged'):
        read_photo(DATA / 'small.heic')


def test_further_pictures_beside_that_of_a_heic_are_counted():
    opened = pi_heif.open_heif(DATA / 'small.heic')
    opened[0].info |= {'depth_images': ['a map'], 'aux': {'urn:com:apple:photo:2020:aux:hdrgainmap': [7]}}
    with mock.patch('pi_heif.open_heif', return_value=opened):
        assert decode(io.BytesIO(), 10_000)[0]['pictures'] == 3
    for name in ('small', 'deep_alpha'):
        assert read_photo(DATA / f'{name}.heic').pictures == 1


def test_heic_with_too_many_pixels_is_refused():
    with pytest.raises(InputError, match=r'64 x 48 is more than 3,071 pixels; raise --max-pixels'):
        read_photo(DATA / 'small.heic', max_pixels=64 * 48 - 1)
    assert read_photo(DATA / 'small.heic', max_pixels=64 * 48).pixels.shape == (48, 64, 3)


def test_all_bits_of_heic_are_read(tmp_path):
    y, x = np.mgrid[:48, :64]
    ramp = np.stack([200 + 64 * x + 16 * y, 20_000 + 32 * x + 8 * y, 65_535 - 100 * x - 50 * y], axis=2)
    photo = read_photo(DATA / 'deep.heic')  # by pillow-heif, from `ramp` in 10 bits, quality 95
    assert photo.pixels.dtype == np.uint16
    assert np.abs(photo.pixels - ramp).mean() < 64, 'a step of 10 bits; of 8 it is 257'
    assert photo.metadata['xmp-data'].startswith(b'<x:xmpmeta')
    write_photo(tmp_path / 'a.png', photo)
    np.testing.assert_array_equal(read_photo(tmp_path / 'a.png').pixels, photo.pixels)


def test_all_bits_of_grey_and_transparent_heic_are_read():
    y, x = np.mgrid[:48, :64]
    ramp = 1000 + 700 * x + 300 * y
    grey = read_photo(DATA / 'deep_grey.heic')  # by pillow-heif, from `ramp`
    assert grey.mode == 'grey' and np.abs(grey.pixels - ramp[:, :, None]).mean() < 64
    clear = read_photo(DATA / 'deep_alpha.heic')  # its alpha is 65,535 - ramp // 3
    assert clear.mode == 'rgb' and np.abs(clear.alpha - (65_535 - ramp // 3)).mean() < 64
    assert np.abs(clear.pixels[:, :, 0] - ramp).mean() < 64


def test_white_is_white_in_ten_and_twelve_bits(tmp_path):
    for bits in (10, 12):
        white = pyvips.Image.new_from_memory(np.full((24, 32, 3), 65_535, np.uint16), 32, 24, 3, 'ushort')
        white.copy(interpretation='rgb16').heifsave(tmp_path / 'a.avif', bitdepth=bits, lossless=True)
        assert (read_photo(tmp_path / 'a.avif').pixels == 65_535).all()


def test_what_holds_avif_is_known_by_its_other_brands(tmp_path):
    Image.fromarray(picture(24, 32)).save(tmp_path / 'a.avif')
    content = (tmp_path / 'a.avif').read_bytes()
    (tmp_path / 'b.avif').write_bytes(content[:8] + b'mif1' + content[12:])
    np.testing.assert_array_equal(read_photo(tmp_path / 'b.avif').pixels, read_photo(tmp_path / 'a.avif').pixels)
    (tmp_path / 'c.avif').write_bytes(content[:8] + b'heic' + content[12:])  # pi_heif cannot decode its AV1 content
    with pytest.raises(
        InputError, match=r'c\.avif: cannot be decoded \(.+\); it may be damaged, if not convert it to JPEG'
    ):
        read_photo(tmp_path / 'c.avif')


def test_colours_that_a_result_cannot_say_are_noticed(tmp_path):
    Image.fromarray(picture(24, 32)).save(tmp_path / 'srgb.avif')
    content = (tmp_path / 'srgb.avif').read_bytes()
    at = content.index(b'colrnclx') + 8
    for name, numbers in (
        ('p3', bytes([0, 12, 0, 13])),
        ('pq', bytes([0, 9, 0, 16])),
        ('hlg', bytes([0, 1, 0, 18])),
        ('unsaid', bytes([0, 2, 0, 2])),
    ):
        (tmp_path / f'{name}.avif').write_bytes(content[:at] + numbers + content[at + 4 :])
    found = {
        name: read_photo(tmp_path / f'{name}.avif').declares_non_srgb for name in ('srgb', 'p3', 'pq', 'hlg', 'unsaid')
    }
    assert found == {'srgb': False, 'p3': True, 'pq': True, 'hlg': True, 'unsaid': False}
    assert not read_photo(DATA / 'small.heic').declares_non_srgb, 'which has a profile'
    with mock.patch('wrcan_arch.photos.read_photo.DESCRIPTION', at + 3):
        assert not read_photo(tmp_path / 'p3.avif').declares_non_srgb, 'a mark that is cut'


def with_chunks(png, *chunks, at=33):
    """Insert chunks into a PNG file, by default after its header."""
    parts = [
        len(body).to_bytes(4, 'big') + name + body + zlib.crc32(name + body).to_bytes(4, 'big') for name, body in chunks
    ]
    return png[:at] + b''.join(parts) + png[at:]


BEHIND = -12  # the pixels: before the IEND chunk


@pytest.mark.parametrize('compressed', [False, True])
def test_metadata_behind_the_pixels_of_png_is_read(tmp_path, compressed):
    exif, content = Image.Exif(), io.BytesIO()
    exif[MAKE], exif[ORIENTATION] = 'a camera', 6
    turned(picture(20, 30), 6).save(content, 'PNG')
    xmp = b'<x:xmpmeta tiff:Orientation="6"'
    text = b'XML:com.adobe.xmp\0' + bytes([compressed, 0]) + b'\0\0' + (zlib.compress(xmp) if compressed else xmp)
    chunks = (b'iTXt', text), (b'eXIf', exif.tobytes().removeprefix(b'Exif\0\0'))
    (tmp_path / 'a.png').write_bytes(with_chunks(content.getvalue(), *chunks, at=BEHIND))
    photo = read_photo(tmp_path / 'a.png')
    np.testing.assert_array_equal(photo.pixels, picture(20, 30))
    write_photo(tmp_path / 'b.jpg', photo)
    written = Image.open(tmp_path / 'b.jpg')
    assert written.getexif()[MAKE] == 'a camera' and written.getexif()[ORIENTATION] == 1
    assert written.info['xmp'] == xmp.replace(b'6', b'1')


def test_what_stands_before_the_pixels_of_png_goes_first_and_damage_is_left_out(tmp_path):
    first, second, content = Image.Exif(), Image.Exif(), io.BytesIO()
    first[ORIENTATION], second[ORIENTATION] = 1, 6
    Image.fromarray(picture(20, 30)).save(content, 'PNG', exif=first)
    behind = with_chunks(content.getvalue(), (b'eXIf', second.tobytes().removeprefix(b'Exif\0\0')), at=BEHIND)
    (tmp_path / 'a.png').write_bytes(behind)
    assert read_photo(tmp_path / 'a.png').pixels.shape == (20, 30, 3)
    content = io.BytesIO()
    Image.fromarray(picture(20, 30)).save(content, 'PNG')
    behind = with_chunks(content.getvalue(), (b'eXIf', second.tobytes().removeprefix(b'Exif\0\0')), at=BEHIND)
    (tmp_path / 'b.png').write_bytes(behind[:-13] + b'!' + behind[-12:])  # a wrong checksum
    assert not read_photo(tmp_path / 'b.png').metadata


@pytest.mark.parametrize(
    'chunk',
    [
        (b'iTXt', b'XML:com.adobe.xmp\0\0\0\0\0'),
        (b'iTXt', b'XML:com.adobe.xmp\0\0\0'),
        (b'iTXt', b'XML:com.adobe.xmp\0\1\0\0\0notzlib'),
        (b'iTXt', b'XML:com.adobe.xmp\0\1\0\0\0' + zlib.compress(b'<x:xmpmeta>')[:-5]),
        (b'iTXt', b'XML:com.adobe.xmp\0\1\0\0\0' + zlib.compress(b'<x:xmpmeta>' + b' ' * 900)),
        (b'eXIf', b''),
    ],
    ids=['empty', 'cut', 'damaged', 'cut inside', 'too long', 'empty EXIF'],
)
def test_empty_and_damaged_metadata_of_png_is_left_out(tmp_path, monkeypatch, chunk):
    monkeypatch.setattr('wrcan_arch.photos.png_metadata.LONGEST', 800)
    content = io.BytesIO()
    Image.fromarray(picture(8, 8)).save(content, 'PNG')
    (tmp_path / 'a.png').write_bytes(with_chunks(content.getvalue(), chunk, at=BEHIND))
    assert not read_photo(tmp_path / 'a.png').metadata


def test_empty_metadata_does_not_crash_the_writer(tmp_path):
    """In a process of its own, which libvips would end."""
    code = (
        'import sys, numpy\nfrom wrcan_arch.photos.write_photo import Photo, write_photo\n'
        "write_photo(sys.argv[1], Photo(pixels=numpy.zeros((8, 8, 3), 'uint8'), metadata={'xmp-data': b''}))"
    )
    assert subprocess.run([sys.executable, '-c', code, tmp_path / 'a.png']).returncode == 0


def test_exif_of_png_that_begins_as_in_jpeg_is_read(tmp_path):
    exif, content = Image.Exif(), io.BytesIO()
    exif[MAKE] = 'a camera'
    Image.fromarray(picture(8, 8)).save(content, 'PNG')
    (tmp_path / 'a.png').write_bytes(with_chunks(content.getvalue(), (b'eXIf', exif.tobytes()), at=BEHIND))
    write_photo(tmp_path / 'b.jpg', read_photo(tmp_path / 'a.png'))
    assert Image.open(tmp_path / 'b.jpg').getexif()[MAKE] == 'a camera'


def test_texts_of_png_are_kept_in_png_and_said_elsewhere(tmp_path):
    texts, content = PngImagePlugin.PngInfo(), io.BytesIO()
    texts.add_text('Author', 'Zo\xeb')
    texts.add_text('Copyright', 'mine ' * 50, zip=True)
    texts.add_itxt('Description', '海', lang='en')
    texts.add_text('Raw profile type exif', 'with the orientation before')
    Image.fromarray(picture(8, 8)).save(content, 'PNG', pnginfo=texts)
    (tmp_path / 'a.png').write_bytes(with_chunks(content.getvalue(), (b'tEXt', b'Title\0behind'), at=BEHIND))
    photo = read_photo(tmp_path / 'a.png')
    for name in ('b.png', 'c.png'):
        write_photo(tmp_path / name, photo)
        written = Image.open(tmp_path / name)
        np.testing.assert_array_equal(np.asarray(written), picture(8, 8))
        assert written.text == {
            'Author': 'Zo\xeb', 'Copyright': 'mine ' * 50, 'Description': '海', 'Title': 'behind'
        }  # fmt: skip
        photo = read_photo(tmp_path / name)
    assert loss_warnings('png', photo) == []
    assert loss_warnings('jpeg', photo) == [
        'jpeg has no place for its texts (as Author, Description); --format png keeps them'
    ]


def test_comments_and_layers_that_are_lost_are_said(tmp_path):
    image = Image.fromarray(picture(8, 8))
    image.save(tmp_path / 'a.jpg', comment=b'mine', icc_profile=SRGB)
    assert loss_warnings('jpeg', read_photo(tmp_path / 'a.jpg')) == ['its JPEG comment is not kept']
    for tags, said in (({37724: b'layers'}, ["Photoshop's layers are not kept; the picture was restored"]), ({}, [])):
        tifffile.imwrite(
            tmp_path / 'a.tif', picture(8, 8), photometric='rgb', extratags=[(tag, 7, 6, tags[tag]) for tag in tags]
        )
        assert loss_warnings('tiff', read_photo(tmp_path / 'a.tif')) == said


def test_what_libvips_said_of_one_file_is_not_told_of_another(tmp_path):
    Image.fromarray(picture(24, 32)).save(tmp_path / 'a.avif')
    Image.fromarray(picture(40, 40)).save(tmp_path / 'b.png')
    (tmp_path / 'b.png').write_bytes((tmp_path / 'b.png').read_bytes()[:-200])
    read_photo(tmp_path / 'a.avif')
    with pytest.raises(InputError, match='vipspng: libpng read error') as caught:
        read_photo(tmp_path / 'b.png')
    assert 'seek' not in str(caught.value)


def test_a_result_is_for_nobody_else_than_the_photograph_is(tmp_path):
    Image.fromarray(picture(8, 8)).save(tmp_path / 'a.png')
    write_photo(tmp_path / 'b.png', Photo(pixels=picture(8, 8)))
    for mode, expected in ((0o600, 0o600), (0o640, 0o640), (0o755, 0o644), (0o404, 0o604)):
        (tmp_path / 'a.png').chmod(mode)
        write_photo(tmp_path / 'b.png', read_photo(tmp_path / 'a.png'))
        assert (tmp_path / 'b.png').stat().st_mode & 0o777 == expected
    assert read_photo(tmp_path / 'a.png').group == (tmp_path / 'a.png').stat().st_gid


@pytest.mark.parametrize('refused', [False, True])
@pytest.mark.parametrize(('mode', 'without'), [(0o640, 0o600), (0o664, 0o644), (0o644, 0o644)])
def test_no_other_group_may_do_what_the_photographs_group_may(tmp_path, monkeypatch, refused, mode, without):
    """Mocked, because only root may give a file to any group."""
    given = mock.Mock(side_effect=PermissionError if refused else None)
    monkeypatch.setattr('os.fchown', given)
    old = os.umask(0o002)
    try:
        write_photo(tmp_path / 'a.png', Photo(pixels=picture(8, 8), permissions=mode, group=os.getgid() + 1))
    finally:
        os.umask(old)
    assert [call.args[1:] for call in given.call_args_list] == [(-1, os.getgid() + 1)] * (mode != without)
    assert (tmp_path / 'a.png').stat().st_mode & 0o777 == (without if refused else mode)


GAMMA_22, GAMMA_18, LINEAR = ((b'gAMA', number.to_bytes(4, 'big')) for number in (45_455, 55_556, 100_000))
SRGB_CHUNK = (b'sRGB', b'\0')
CHROMATICITIES = (31_270, 32_900, 64_000, 33_000, 30_000, 60_000, 15_000, 6_000)
P3_CHROMATICITIES = (31_270, 32_900, 68_000, 32_000, 26_500, 69_000, 15_000, 6_000)
SRGB_PRIMARIES, P3_PRIMARIES = (
    (b'cHRM', b''.join(number.to_bytes(4, 'big') for number in numbers))
    for numbers in (CHROMATICITIES, P3_CHROMATICITIES)
)


@pytest.mark.parametrize(
    ('chunks', 'profile', 'marked'),
    [
        ([], None, False),
        ([(b'cICP', bytes([12, 13, 0, 1]))], None, True),  # Display P3
        ([(b'cICP', bytes([9, 16, 0, 1]))], None, True),  # BT.2100 PQ
        ([(b'cICP', bytes([12, 13, 0, 1]))], SRGB, True),  # overrides a profile
        ([(b'cICP', bytes([1, 13, 0, 1])), LINEAR], None, False),  # and a gamma
        ([(b'cICP', b'')], None, False),
        ([LINEAR], None, True),
        ([GAMMA_18], None, True),
        ([GAMMA_18], SRGB, False),
        ([SRGB_CHUNK, GAMMA_18], None, False),
        ([GAMMA_22], None, False),
        ([GAMMA_22, SRGB_PRIMARIES], None, False),
        ([GAMMA_22, P3_PRIMARIES], None, True),
        ([P3_PRIMARIES], None, False),
        ([(b'tEXt', b'Comment\0gAMA\0\0\0\0')], None, False),
        ([(b'tEXt', b'Comment\0' + b'x' * 40_000), LINEAR], None, True),
    ],
)  # fmt: skip
def test_colours_of_png_that_a_result_cannot_say_are_noticed(tmp_path, chunks, profile, marked):
    content = io.BytesIO()
    Image.fromarray(picture(24, 32)).save(content, 'PNG', icc_profile=profile)
    (tmp_path / 'a.png').write_bytes(with_chunks(content.getvalue(), *chunks))
    assert read_photo(tmp_path / 'a.png').declares_non_srgb == marked


def test_colours_are_noticed_behind_long_metadata(tmp_path):
    content, exif = io.BytesIO(), Image.Exif()
    exif[MAKE] = 'a camera' * 20_000
    Image.fromarray(picture(24, 32)).save(content, 'PNG', exif=exif)
    at = content.getvalue().index(b'IDAT') - 4
    header = content.getvalue()[:33]
    file = content.getvalue()[:at] + with_chunks(header, LINEAR)[33:] + content.getvalue()[at:]
    (tmp_path / 'a.png').write_bytes(file)
    assert read_photo(tmp_path / 'a.png').declares_non_srgb


def test_preview_is_not_taken_for_the_photograph(tmp_path):
    """Raw files are TIFF files that begin with a preview."""
    small, large = Image.fromarray(picture(8, 8)), Image.fromarray(picture(80, 80))
    for kind, name in ((1, 'raw.tif'), (2, 'page.tif'), (0, 'first.tif')):
        small.save(tmp_path / name, tiffinfo={0x00FE: kind}, save_all=True, append_images=[large])
    with pytest.raises(InputError, match='raw.tif: begins with a small preview, as raw files do; develop it to TIFF'):
        read_photo(tmp_path / 'raw.tif')
    assert [read_photo(tmp_path / name).pixels.shape[0] for name in ('page.tif', 'first.tif')] == [8, 8]


@pytest.mark.parametrize('ending', LOSSLESS)
def test_further_pictures_of_a_file_are_counted(tmp_path, ending):
    first, second = tmp_path / f'a{ending}', Image.fromarray(picture(8, 8, 1))
    Image.fromarray(picture(8, 8)).save(first, save_all=True, append_images=[second])
    assert read_photo(first).pictures == 2
    np.testing.assert_array_equal(read_photo(first).pixels, picture(8, 8))
    second.save(first)
    assert read_photo(first).pictures == 1


def test_the_mark_of_an_animated_png_is_not_looked_for_among_its_pixels(tmp_path):
    Image.fromarray(picture(8, 8)).save(tmp_path / 'a.png')
    with (tmp_path / 'a.png').open('ab') as file:
        file.write(b'acTL')
    assert read_photo(tmp_path / 'a.png').pictures == 1


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
    """Whatever the thread that reads has cleared of libvips's messages."""

    @contextmanager
    def full(*_):
        with Path('/dev/full').open('r+b', buffering=0) as file:
            yield file

    if cleared:
        monkeypatch.setattr('pyvips.error._to_string', lambda text: '')
    said = rf'a\{ending}: cannot be written \(No space left on device\); make room'
    with mock.patch('wrcan_arch.files._opened_alone', full), pytest.raises(InputError, match=said):
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


@pytest.mark.parametrize('profile', [b'no profile', SRGB])
def test_cmyk_with_an_unfit_profile_is_written_by_the_usual_one(tmp_path, profile):
    Image.fromarray(picture(8, 8)).convert('CMYK').save(tmp_path / 'a.tif', icc_profile=profile)
    write_photo(tmp_path / 'b.tif', read_photo(tmp_path / 'a.tif'))
    assert Image.open(tmp_path / 'b.tif').mode == 'CMYK' and 'icc_profile' not in Image.open(tmp_path / 'b.tif').info


def test_any_name(tmp_path):
    Image.fromarray(picture(8, 8)).save(tmp_path / 'a.png')
    longest = '海'.encode() * 83 + b'12.png'
    names = b'Zo\xc3\xab \xe6\xb5\xb7.png', b'latin\xe9.png', b'a[page=1].png', b'-o.png', b'new\nline.png', longest
    for name in names:
        path = tmp_path / Path(name.decode('utf-8', 'surrogateescape'))
        (tmp_path / 'a.png').rename(path)
        write_photo(path, read_photo(path))
        np.testing.assert_array_equal(read_photo(path).pixels, picture(8, 8))
        path.rename(tmp_path / 'a.png')
        assert len(list(tmp_path.iterdir())) == 1


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
