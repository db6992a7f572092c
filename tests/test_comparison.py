import os
import re
from dataclasses import replace
from unittest import mock
from urllib.parse import unquote_to_bytes

import numpy as np
import pytest
from conftest import picture
from PIL import Image, ImageCms

from wrcan_arch import InputError
from wrcan_arch.photos.comparison import check_page, pictures_on_page, write_page, write_side_by_side
from wrcan_arch.photos.photo import Photo

SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile('sRGB')).tobytes()


def test_halves_are_blurred_and_restored(tmp_path):
    alpha = np.full((40, 30), 255, np.uint8)
    photo = Photo(
        pixels=picture(40, 30), alpha=alpha, metadata={'icc-profile-data': SRGB, 'exif-data': b'Exif\0\0where'}
    )
    write_side_by_side(tmp_path, 'a.png', replace(photo, permissions=0o600), 255 - photo.pixels)
    assert (tmp_path / 'a.png.jpg').stat().st_mode & 0o777 == 0o600
    written = Image.open(tmp_path / 'a.png.jpg')
    expected = np.concatenate([photo.pixels, 255 - photo.pixels], axis=1).astype(int)
    assert np.abs(np.asarray(written) - expected).mean() < 4
    assert written.info['icc_profile'] == SRGB and not written.getexif()  # without EXIF, which may tell the place


def test_a_comparison_is_of_the_photographs_group(tmp_path, monkeypatch):
    """Mocked, because only root may give a file to any group."""
    given = mock.Mock()
    monkeypatch.setattr('os.fchown', given)
    photo = Photo(pixels=picture(8, 8), permissions=0o640, group=os.getgid() + 1)
    write_side_by_side(tmp_path, 'a.png', photo, photo.pixels)
    assert given.call_args.args[1:] == (-1, os.getgid() + 1)


@pytest.mark.parametrize('dtype', [np.uint8, np.uint16])
def test_what_is_transparent_is_shown_over_white(tmp_path, dtype):
    peak = np.iinfo(dtype).max
    pixels = np.full((16, 16, 3), peak // 5, dtype)
    alpha = np.repeat(np.array([0, peak // 2 + 1, peak, peak], dtype), 4) * np.ones((16, 1), dtype)
    write_side_by_side(tmp_path, 'a.png', Photo(pixels=pixels, alpha=alpha), pixels)
    written = np.asarray(Image.open(tmp_path / 'a.png.jpg'))
    for left in (0, 16):
        assert [int(written[8, left + place, 0]) for place in (1, 6, 12)] == pytest.approx([255, 153, 51], abs=4)


def test_a_result_of_another_depth_is_compared_too(tmp_path):
    """For example, --format jpeg makes an 8-bit result of a 16-bit photograph."""
    pixels = picture(40, 32)
    write_side_by_side(tmp_path, 'a.tif', Photo(pixels=pixels.astype(np.uint16) * 257), pixels)
    written = np.asarray(Image.open(tmp_path / 'a.tif.jpg')).astype(int)
    assert np.abs(written - np.concatenate([pixels, pixels], axis=1)).mean() < 4


def test_wide_photographs_are_compared_as_png(tmp_path):
    pixels = np.zeros((1, 40_000, 3), np.uint8)
    write_side_by_side(tmp_path, 'wide.jpg', Photo(pixels=pixels), pixels + 9)
    assert Image.open(tmp_path / 'wide.jpg.png').size == (80_000, 1)


def test_cmyk_and_grey_are_compared_as_browsers_show_them(tmp_path):
    for mode, expected in (('cmyk', 'RGB'), ('grey', 'L')):
        photo = Photo(pixels=picture(9, 9), mode=mode)
        write_side_by_side(tmp_path, mode, photo, photo.pixels)
        assert Image.open(tmp_path / f'{mode}.jpg').mode == expected


def test_page_links_and_escapes_any_name(tmp_path):
    names = ['a b/Zoë 海 & <b>"x".png', os.fsdecode(b'latin\xe9#.png'), 'missing.png']
    for name in names[:2]:
        write_side_by_side(tmp_path, name, Photo(pixels=picture(8, 8)), picture(8, 8, 1))
    write_page(tmp_path, names)
    page = (tmp_path / 'index.html').read_text(encoding='utf-8')
    links = re.findall(r'<img src="([^"]*)" alt="blurred"', page)
    assert len(links) == 2 and all((tmp_path / os.fsdecode(unquote_to_bytes(link))).is_file() for link in links)
    assert 'Zoë 海 &amp; &lt;b&gt;&quot;x&quot;.png</a>' in page and '<b>' not in page
    assert page.count('width: 16px; max-width: min(100%, 90vh * 8 / 8)"') == page.count('aspect-ratio: 8 / 8') == 2
    assert re.search(
        '>blurred</span>\\s*<div class="restored">[^/]*<img [^>]*><span [^>]*>restored</span>\\s*</div>', page
    ), 'each half covers the label of the other'
    assert page.count('--own: 8px;') == page.count('type="checkbox" autocomplete="off">1:1') == 2
    assert page.count('value="50" autocomplete="off"') == 2, 'else a browser goes back to where the slider was, alone'
    assert 'latin\\udce9#.png</a>' in page and 'missing' not in page
    assert not re.search('https?:', page)


def test_a_page_knows_the_pictures_of_earlier_runs_that_are_still_there(tmp_path):
    for shown, known in ((['a.png', 'b.png'], 0), (['a.png'], 1), (['b.png'], 1), (['a.png', 'b.png'], 0)):
        for name in shown:
            write_side_by_side(tmp_path, name, Photo(pixels=picture(8, 8)), picture(8, 8, 1))
        write_page(tmp_path, shown)
        page = (tmp_path / 'index.html').read_text(encoding='utf-8')
        assert (page.count('<figure>'), page.count('<a hidden ')) == (len(shown), known)
        assert len(pictures_on_page(tmp_path)) == 2
    next(tmp_path.glob('b.*')).unlink()
    write_page(tmp_path, ['a.png'])
    assert '<a hidden ' not in (tmp_path / 'index.html').read_text(encoding='utf-8')


def test_a_page_that_is_not_ours_stays(tmp_path):
    check_page(tmp_path)
    write_page(tmp_path, [])
    check_page(tmp_path)
    (tmp_path / 'index.html').write_text('<!doctype html><title>My holiday</title>')
    with pytest.raises(InputError, match=r'index\.html: is another page; choose another --compare'):
        check_page(tmp_path)
