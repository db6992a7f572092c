"""Photographs keep size, mode, depth and metadata, and become upright; references: Pillow, OpenCV, tifffile."""

import io
from dataclasses import replace
from pathlib import Path
from unittest import mock

import cv2
import numpy as np
import pi_heif
import pytest
import pyvips
import tifffile
from conftest import DATA, deep_picture, picture
from photo_files import EXIF_IFD, MAKE, ORIENTATION, SRGB, turned
from PIL import Image, ImageCms

from wrcan_arch import InputError
from wrcan_arch.photos.first_bytes import format_of_content
from wrcan_arch.photos.heic_decoder import decode
from wrcan_arch.photos.photo import Photo
from wrcan_arch.photos.read_photo import read_photo
from wrcan_arch.photos.write_photo import check_fits, loss_warnings, write_photo

LOSSLESS = ('.png', '.tif')

RELATIVE = ImageCms.Intent.RELATIVE_COLORIMETRIC


@pytest.mark.parametrize('ending', LOSSLESS)
@pytest.mark.parametrize('shape', [(20, 30), (1, 1), (7, 1), (1, 9)])
def test_rgb_pixels_come_back(tmp_path, ending, shape):
    Image.fromarray(picture(*shape)).save(tmp_path / f'a{ending}')
    photo = read_photo(tmp_path / f'a{ending}')
    assert photo.mode == 'rgb' and photo.alpha is None and photo.pixels.flags.c_contiguous
    np.testing.assert_array_equal(photo.pixels, picture(*shape))
    write_photo(tmp_path / 'out' / f'b{ending}', replace(photo, pixels=255 - photo.pixels))
    np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / 'out' / f'b{ending}')), 255 - picture(*shape))


@pytest.mark.parametrize('ending', ['.jpg', '.webp', '.avif', '.bmp'])
def test_pixels_are_those_that_pillow_decodes(tmp_path, ending):
    options = {'.bmp': {}, '.avif': {'quality': 80, 'subsampling': '4:4:4'}}.get(ending, {'quality': 80})
    Image.fromarray(picture(41, 35)).save(tmp_path / f'a{ending}', **options)
    expected = np.asarray(Image.open(tmp_path / f'a{ending}').convert('RGB')).astype(int)
    assert np.abs(read_photo(tmp_path / f'a{ending}').pixels - expected).max() <= (0 if ending == '.bmp' else 2)


@pytest.mark.parametrize(('ending', 'least_psnr'), [('.jpg', 38), ('.webp', 30.4), ('.avif', 38)])
def test_quality_is_95_unless_another_is_asked_for(tmp_path, ending, least_psnr):
    photo, path = Photo(pixels=picture(64, 96)), tmp_path / f'a{ending}'
    write_photo(path, photo)
    fine, size = np.asarray(Image.open(path).convert('RGB')), path.stat().st_size
    assert cv2.PSNR(fine, photo.pixels) > least_psnr and read_photo(path).jpeg_quality in (95, None)
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
    assert pyvips.Image.new_from_file(str(tmp_path / 'a.avif')).get('bits-per-sample') == 12


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


@pytest.mark.parametrize(
    ('ending', 'mode'),
    [(each, 'RGB') for each in ('.png', '.tif', '.webp', '.avif')] + [(each, 'L') for each in LOSSLESS],
)
def test_transparency_is_kept(tmp_path, ending, mode):
    alpha = picture(16, 24)[:, :, 0]
    image = Image.fromarray(picture(16, 24)).convert(mode)
    image.putalpha(Image.fromarray(alpha))
    image.save(tmp_path / f'a{ending}', **({'quality': 100} if ending == '.avif' else {}))
    photo = read_photo(tmp_path / f'a{ending}')
    np.testing.assert_array_equal(photo.alpha, np.asarray(Image.open(tmp_path / f'a{ending}'))[:, :, -1])
    write_photo(tmp_path / f'b{ending}', replace(photo, pixels=255 - photo.pixels))
    assert Image.open(tmp_path / f'b{ending}').mode == f'{mode}A'
    written = read_photo(tmp_path / f'b{ending}').alpha
    assert np.abs(written.astype(int) - photo.alpha).max() <= (12 if ending == '.avif' else 0)


def test_transparency_does_not_fit_into_jpeg(tmp_path):
    alpha = np.full((8, 8), 255, np.uint8)
    write_photo(tmp_path / 'a.jpg', Photo(pixels=picture(8, 8), alpha=alpha))
    assert Image.open(tmp_path / 'a.jpg').mode == 'RGB'
    for kind in (np.uint8, np.uint16):
        alpha = np.full((8, 8), np.iinfo(kind).max, kind)
        alpha[3, 4] -= 1
        with pytest.raises(InputError, match=r'b\.jpg: jpeg holds no transparency; choose --format png'):
            write_photo(tmp_path / 'b.jpg', Photo(pixels=picture(8, 8).astype(kind), alpha=alpha))


@pytest.mark.parametrize(('ending', 'most'), [('jpg', 65_500), ('webp', 16_383), ('avif', 16_384)])
def test_sides_that_a_format_does_not_hold_are_said(ending, most):
    for shape in ((1, most), (most, 1)):
        assert check_fits(Path(f'a.{ending}'), Photo(pixels=np.zeros((*shape, 3), np.uint8)))
        with pytest.raises(InputError, match=f'holds at most {most:,} pixels a side; choose --format png'):
            check_fits(Path(f'a.{ending}'), Photo(pixels=np.zeros((shape[0] + 1, shape[1] + 1, 3), np.uint8)))


@pytest.mark.parametrize('ending', [*LOSSLESS, '.jpg', '.bmp'])
def test_grey_stays_grey(tmp_path, ending):
    Image.fromarray(picture(9, 11)[:, :, 0]).save(tmp_path / f'a{ending}')
    photo = read_photo(tmp_path / f'a{ending}')
    grey = np.asarray(Image.open(tmp_path / f'a{ending}'))
    np.testing.assert_array_equal(photo.pixels, np.dstack([grey] * 3))
    write_photo(tmp_path / 'b.png', photo)
    assert Image.open(tmp_path / 'b.png').mode == 'L'
    np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / 'b.png')), grey)
    write_photo(tmp_path / 'c.png', replace(photo, pixels=picture(9, 11)))
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
    """However much of a grey is black ink. A new separation made pure black, from four inks, 5 levels darker."""
    smooth = cv2.GaussianBlur(picture(48, 64), (0, 0), 3)
    Image.fromarray(INKS[kind](smooth), 'CMYK').save(tmp_path / 'a.tif', icc_profile=cmyk_profile)
    photo = read_photo(tmp_path / 'a.tif')
    before = photo.pixels.astype(float)
    sharper = np.clip(np.rint(1.8 * before - 0.8 * cv2.GaussianBlur(before, (0, 0), 1.5)), 0, 255).astype(np.uint8)
    sharper[:, :16] = photo.pixels[:, :16]
    write_photo(tmp_path / 'b.tif', replace(photo, pixels=sharper))
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


@pytest.mark.parametrize('kind', [np.uint8, np.uint16])
@pytest.mark.parametrize(
    ('photometric', 'bands'), [('minisblack', 2), ('rgb', 3), ('rgb', 4), ('separated', 4), ('separated', 5)]
)
def test_large_photographs_are_scaled_down_with_all_they_have(tmp_path, photometric, bands, kind):
    """Upright as by OpenCV's mean over areas, to a few levels at edges."""
    peak = np.iinfo(kind).max
    samples = np.dstack([picture(61, 90, seed) for seed in (0, 1)])[:, :, :bands].astype(kind) * (peak // 255)
    has_alpha = bands in (2, 5) or (photometric, bands) == ('rgb', 4)
    if has_alpha:
        samples[:, :, -1] = peak
        samples[:30, :45, -1] = 0
    about = {'extrasamples': ['unassalpha']} if has_alpha else {}
    tifffile.imwrite(
        tmp_path / 'a.tif', np.rot90(samples), photometric=photometric, planarconfig='contig', metadata=None,
        extratags=[(ORIENTATION, 3, 1, 6, True)], **about
    )  # fmt: skip
    photo = read_photo(tmp_path / 'a.tif', largest=40)
    assert photo.pixels.shape == (27, 40, 3) and photo.pixels.dtype == kind
    write_photo(tmp_path / 'b.tif', photo)
    written = tifffile.imread(tmp_path / 'b.tif').astype(float) / peak
    light = samples.astype(float) / peak * (samples[:, :, -1:] > 0 if has_alpha else 1)
    expected = np.dstack([cv2.resize(band, (40, 27), interpolation=cv2.INTER_AREA) for band in np.rollaxis(light, 2)])
    if has_alpha:
        written[:, :, :-1] *= written[:, :, -1:]
    assert np.abs(written - expected).mean() < 0.015


@pytest.mark.parametrize(
    ('shape', 'scaled'),
    [((61, 90), (27, 40)), ((90, 61), (40, 27)), ((1, 90), (1, 40)), ((90, 2), (40, 1)), ((41, 41), (40, 40))],
)
@pytest.mark.parametrize('ending', ['.jpg', '.png', '.bmp', '.avif'])
def test_longer_side_is_scaled_to_the_pixel(tmp_path, shape, scaled, ending):
    exif = Image.Exif()
    exif[EXIF_IFD] = {0xA002: shape[1], 0xA003: shape[0]}
    Image.fromarray(picture(*shape)).save(tmp_path / f'a{ending}', **({} if ending == '.bmp' else {'exif': exif}))
    whole = read_photo(tmp_path / f'a{ending}')
    photo = read_photo(tmp_path / f'a{ending}', largest=40)
    assert photo.pixels.shape == (*scaled, 3) and photo.metadata == whole.metadata
    expected = cv2.resize(whole.pixels, scaled[::-1], interpolation=cv2.INTER_AREA).astype(int)
    assert np.abs(photo.pixels - expected).mean() < 5
    write_photo(tmp_path / 'b.jpg', photo)
    sizes = Image.open(tmp_path / 'b.jpg').getexif().get_ifd(EXIF_IFD)
    assert ending == '.bmp' or (sizes[0xA003], sizes[0xA002]) == scaled
    for largest in (max(shape), max(shape) + 1):
        np.testing.assert_array_equal(read_photo(tmp_path / f'a{ending}', largest=largest).pixels, whole.pixels)


@pytest.mark.parametrize('order', '<>')
@pytest.mark.parametrize(('photometric', 'bands'), [('minisblack', 2), ('rgb', 4), ('separated', 5)])
def test_a_channel_of_unknown_meaning_is_no_transparency(tmp_path, photometric, bands, order):
    """Such as a saved selection, infrared or a spot ink, which may well be 0 all over."""
    samples = np.dstack([picture(40, 60, seed) for seed in (0, 1)])[:, :, :bands]
    samples[:, :30, -1] = 0
    about = {'photometric': photometric, 'planarconfig': 'contig', 'byteorder': order}
    tifffile.imwrite(tmp_path / 'a.tif', samples, extrasamples=['unspecified'], **about)
    photo = read_photo(tmp_path / 'a.tif')
    write_photo(tmp_path / 'b.tif', photo)
    np.testing.assert_array_equal(tifffile.imread(tmp_path / 'b.tif'), samples)
    assert tifffile.TiffFile(tmp_path / 'b.tif').pages[0].extrasamples == (0,)
    assert loss_warnings('tiff', photo) == []
    for ending in ('jpg', 'png'):
        write_photo(tmp_path / f'b.{ending}', photo)
        assert read_photo(tmp_path / f'b.{ending}').alpha is None
        assert loss_warnings({'jpg': 'jpeg'}.get(ending, ending), photo) == [
            'its extra channel, which is no transparency, is not kept; --format tiff keeps it'
        ]
    write_photo(tmp_path / 'small.tif', read_photo(tmp_path / 'a.tif', largest=30))
    expected = cv2.resize(samples, (30, 20), interpolation=cv2.INTER_AREA).astype(int)
    assert np.abs(tifffile.imread(tmp_path / 'small.tif') - expected).mean() < 5


def test_colours_of_transparent_pixels_do_not_shine_through_when_scaled(tmp_path):
    samples = np.full((60, 90, 4), 100, np.uint8)
    samples[:31, :, :3], samples[:31, :, 3], samples[31:, :, 3] = 255, 0, 255
    Image.fromarray(samples).save(tmp_path / 'a.png')
    photo = read_photo(tmp_path / 'a.png', largest=40)
    assert 0 < (photo.alpha > 0).mean() < 1 and (photo.pixels[photo.alpha > 0] == 100).all()


def test_white_stays_white_in_all_bits_when_scaled(tmp_path):
    white = pyvips.Image.new_from_memory(np.full((24, 32, 3), 65_535, np.uint16), 32, 24, 3, 'ushort')
    white.copy(interpretation='rgb16').heifsave(tmp_path / 'a.avif', bitdepth=10, lossless=True)
    assert (read_photo(tmp_path / 'a.avif', largest=20).pixels == 65_535).all()
    whole, scaled = (read_photo(DATA / 'deep.heic', largest=largest).pixels for largest in (None, 32))
    expected = cv2.resize(whole, (32, 24), interpolation=cv2.INTER_AREA).astype(int)
    assert np.abs(scaled - expected).mean() < 40


def test_heic_is_read(tmp_path):
    photo = read_photo(DATA / 'small.heic')  # by pillow-heif, from picture(48, 64), quality 90
    assert np.abs(photo.pixels.astype(int) - picture(48, 64)).mean() < 8 and 'icc-profile-data' in photo.metadata
    write_photo(tmp_path / 'a.png', photo)
    assert Image.open(tmp_path / 'a.png').getexif()[MAKE] == 'a camera'
    with pytest.raises(InputError, match='cannot be written in this format; choose one of jpeg, png'):
        write_photo(tmp_path / 'a.heic', photo)


def test_further_pictures_beside_that_of_a_heic_are_counted():
    opened = pi_heif.open_heif(DATA / 'small.heic')
    opened[0].info |= {'depth_images': ['a map'], 'aux': {'urn:com:apple:photo:2020:aux:hdrgainmap': [7]}}
    with mock.patch('pi_heif.open_heif', return_value=opened):
        assert decode(io.BytesIO(), 10_000)[0]['pictures'] == 3
    for name in ('small', 'deep_alpha'):
        assert read_photo(DATA / f'{name}.heic').not_read == ()


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
        InputError, match=r'c\.avif: cannot be decoded \(.+\); it may be damaged; if not, convert it to JPEG'
    ):
        read_photo(tmp_path / 'c.avif')


def isobmff(*brands, behind=b''):
    content = b'ftyp' + brands[0] + bytes(4) + b''.join(brands[1:])
    return (4 + len(content)).to_bytes(4, 'big') + content + behind


@pytest.mark.parametrize(
    ('head', 'format'),
    [
        (isobmff(b'avis'), 'avif'),
        (isobmff(b'msf1', b'iso8', b'avis'), 'avif'),
        (isobmff(b'mif1', b'miaf', b'heic'), 'heic'),
        (isobmff(b'mif1', b'heic', behind=b'\0\0\0\x08avif'), 'heic'),
        *(
            (isobmff(brand), 'heic')
            for brand in (b'heic', b'heix', b'heim', b'heis', b'hevc', b'hevx', b'hevm', b'hevs')
        ),
        (isobmff(b'isom', b'avc1'), None),  # a film
        (isobmff(b'crx ', b'mif1'), None),  # a camera's raw file
        *((start + bytes(9), 'tiff') for start in (b'II*\0', b'MM\0*', b'II+\0', b'MM\0+')),
        (b'RIFF\0\0\0\0WEBPVP8 ', 'webp'),
        (b'RIFF\0\0\0\0WAVEfmt ', None),
    ],
)
def test_formats_are_known_by_their_first_bytes(head, format):
    assert format_of_content(head) == format


def test_colours_that_a_result_cannot_say_are_noticed(tmp_path):
    Image.fromarray(picture(24, 32)).save(tmp_path / 'srgb.avif')
    content = (tmp_path / 'srgb.avif').read_bytes()
    at = content.index(b'colrnclx') + 8
    for name, primaries, transfer, is_other in (
        ('p3', 12, 13, True),
        ('pq', 9, 16, True),
        ('hlg', 1, 18, True),
        ('unsaid', 2, 2, False),
        ('bt709', 1, 1, False),
        ('pal', 5, 6, False),
        ('ntsc', 6, 6, False),
    ):
        numbers = bytes([0, primaries, 0, transfer])
        (tmp_path / f'{name}.avif').write_bytes(content[:at] + numbers + content[at + 4 :])
        assert read_photo(tmp_path / f'{name}.avif').declares_non_srgb == is_other, name
    assert not read_photo(tmp_path / 'srgb.avif').declares_non_srgb
    assert not read_photo(DATA / 'small.heic').declares_non_srgb, 'which has a profile'
    with mock.patch('wrcan_arch.photos.read_photo.DESCRIPTION', at + 3):
        assert not read_photo(tmp_path / 'p3.avif').declares_non_srgb, 'a mark that is cut'


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
    assert read_photo(first).not_read == ('the file holds several pictures; the first was restored',)
    np.testing.assert_array_equal(read_photo(first).pixels, picture(8, 8))
    second.save(first)
    assert read_photo(first).not_read == ()


@pytest.mark.parametrize('ending', ['.webp', '.avif'])
def test_further_pictures_of_a_film_are_counted(tmp_path, ending):
    film = [Image.fromarray(picture(16, 16, seed)) for seed in range(2)]
    film[0].save(tmp_path / f'a{ending}', save_all=True, append_images=film[1:])
    assert read_photo(tmp_path / f'a{ending}').not_read == ('the file holds several pictures; the first was restored',)


@pytest.mark.parametrize('profile', [b'no profile', SRGB])
def test_cmyk_with_an_unfit_profile_is_written_by_the_usual_one(tmp_path, profile):
    Image.fromarray(picture(8, 8)).convert('CMYK').save(tmp_path / 'a.tif', icc_profile=profile)
    write_photo(tmp_path / 'b.tif', read_photo(tmp_path / 'a.tif'))
    assert Image.open(tmp_path / 'b.tif').mode == 'CMYK' and 'icc_profile' not in Image.open(tmp_path / 'b.tif').info


def test_a_photograph_may_have_any_name(tmp_path):
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
