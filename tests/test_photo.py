import cv2
import numpy as np
import pytest
from conftest import picture
from PIL import Image, ImageCms

from wrcan_arch import InputError
from wrcan_arch.photos.photo import read_photo, write_photo

ORIENTATION = 0x0112


def test_rgb_pixels_come_back(tmp_path):
    Image.fromarray(picture(20, 30)).save(tmp_path / 'a.png')
    photo = read_photo(tmp_path / 'a.png')
    np.testing.assert_array_equal(photo.pixels, picture(20, 30))
    write_photo(tmp_path / 'out' / 'b.png', photo.with_pixels(255 - photo.pixels))
    np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / 'out' / 'b.png')), 255 - picture(20, 30))


@pytest.mark.parametrize('orientation', range(1, 9))
def test_photo_is_turned_upright_and_stays_so(tmp_path, orientation):
    upright = picture(20, 30)
    turns = {1: lambda a: a, 2: np.fliplr, 3: lambda a: np.rot90(a, 2), 4: np.flipud,
             5: lambda a: a.transpose(1, 0, 2), 6: np.rot90, 7: lambda a: np.rot90(a, 2).transpose(1, 0, 2),
             8: lambda a: np.rot90(a, -1)}  # fmt: skip
    stored = Image.fromarray(np.ascontiguousarray(turns[orientation](upright)))
    exif = stored.getexif()
    exif[ORIENTATION] = orientation
    exif[0x010F] = 'a camera'
    stored.save(tmp_path / 'a.png', exif=exif)
    photo = read_photo(tmp_path / 'a.png')
    np.testing.assert_array_equal(photo.pixels, upright)
    write_photo(tmp_path / 'b.png', photo)
    written = Image.open(tmp_path / 'b.png')
    assert written.getexif().get(ORIENTATION, 1) == 1 and written.getexif()[0x010F] == 'a camera'


def test_colour_profile_is_kept(tmp_path):
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile('sRGB')).tobytes()
    Image.fromarray(picture(8, 8)).save(tmp_path / 'a.jpg', icc_profile=profile)
    write_photo(tmp_path / 'b.png', read_photo(tmp_path / 'a.jpg'))
    assert Image.open(tmp_path / 'b.png').info['icc_profile'] == profile


def test_transparency_is_kept(tmp_path):
    alpha = picture(9, 11)[:, :, 0]
    image = Image.fromarray(picture(9, 11))
    image.putalpha(Image.fromarray(alpha))
    image.save(tmp_path / 'a.png')
    write_photo(tmp_path / 'b.png', read_photo(tmp_path / 'a.png'))
    written = np.asarray(Image.open(tmp_path / 'b.png'))
    np.testing.assert_array_equal(written, np.dstack([picture(9, 11), alpha]))


def test_grey_stays_grey(tmp_path):
    grey = picture(9, 11)[:, :, 0]
    Image.fromarray(grey).save(tmp_path / 'a.png')
    photo = read_photo(tmp_path / 'a.png')
    assert photo.pixels.shape == (9, 11, 3)
    write_photo(tmp_path / 'b.png', photo)
    written = Image.open(tmp_path / 'b.png')
    assert written.mode == 'L'
    np.testing.assert_array_equal(np.asarray(written), grey)


def test_palette_is_read_as_colours(tmp_path):
    Image.fromarray(picture(9, 11)).quantize(16).save(tmp_path / 'a.png')
    expected = np.asarray(Image.open(tmp_path / 'a.png').convert('RGB'))
    np.testing.assert_array_equal(read_photo(tmp_path / 'a.png').pixels, expected)


def bad_files(folder):
    Image.fromarray(picture(40, 40)).save(folder / 'whole.jpg')
    (folder / 'cut.jpg').write_bytes((folder / 'whole.jpg').read_bytes()[:300])
    (folder / 'text.png').write_text('not a picture')
    (folder / 'empty.png').write_bytes(b'')
    Image.fromarray(picture(8, 8)[:, :, 0].astype(np.uint16) * 257).save(folder / 'deep.png')
    cv2.imwrite(str(folder / 'deep_rgb.png'), picture(8, 8).astype(np.uint16) * 257)
    cv2.imwrite(str(folder / 'deep_rgb.tif'), picture(8, 8).astype(np.uint16) * 257)
    Image.fromarray(picture(8, 8)).convert('CMYK').save(folder / 'cmyk.jpg')
    return {
        'cut.jpg': 'cannot be read, it may be cut or damaged',
        'text.png': 'not an image that can be read',
        'empty.png': 'not an image that can be read',
        'deep.png': 'images of 16 bits a channel are not read yet',
        'deep_rgb.png': 'images of 16 bits a channel are not read yet',
        'deep_rgb.tif': '',
        'cmyk.jpg': 'images of kind CMYK are not read yet',
        'nowhere.png': 'no such photograph',
    }


def test_files_that_cannot_be_read_are_named(tmp_path):
    for name, message in bad_files(tmp_path).items():
        with pytest.raises(InputError, match=f'{name}: {message}'):
            read_photo(tmp_path / name)


def test_bomb_is_refused(tmp_path, monkeypatch):
    Image.fromarray(picture(40, 40)).save(tmp_path / 'a.png')
    monkeypatch.setattr(Image, 'MAX_IMAGE_PIXELS', 700)
    with pytest.raises(InputError, match=r'a\.png: cannot be read'):
        read_photo(tmp_path / 'a.png')


def test_folder_that_cannot_be_written_is_an_error_and_leaves_nothing(tmp_path):
    (tmp_path / 'out').write_text('a file where the folder should be')
    Image.fromarray(picture(8, 8)).save(tmp_path / 'a.png')
    with pytest.raises(InputError, match=r'out: cannot be made \(File exists\)'):
        write_photo(tmp_path / 'out' / 'b.png', read_photo(tmp_path / 'a.png'))
    assert sorted(path.name for path in tmp_path.iterdir()) == ['a.png', 'out']
