"""Chunks of PNG files, before the pixels and behind them."""

import io
import subprocess
import sys
import zlib

import numpy as np
import pytest
from conftest import picture
from photo_files import MAKE, ORIENTATION, SRGB, turned
from PIL import Image, PngImagePlugin

from wrcan_arch.photos.read_photo import read_photo
from wrcan_arch.photos.write_photo import loss_warnings, write_photo


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


@pytest.mark.parametrize(('name', 'of_captions'), [(b'tEXt', 'iptc'), (b'zTXt', '8bim'), (b'iTXt', 'IPTC')])
def test_metadata_in_hexadecimal_texts_of_png_is_read(tmp_path, name, of_captions):
    """As ImageMagick writes them. Their orientation is that of the file that the PNG was made from."""
    exif, content = Image.Exif(), io.BytesIO()
    exif[MAKE], exif[ORIENTATION] = 'a camera', 6
    Image.fromarray(picture(20, 30)).save(content, 'PNG')
    captions = b'8BIM\x04\x04\0\0\0\0\0\x06' + b'\x1c\x02\x78\0\x01a'

    def chunk(kind, profile):
        digits = '\n'.join(profile.hex()[start : start + 72] for start in range(0, 2 * len(profile), 72))
        text = f'\n{kind}\n{len(profile):8}\n{digits}\n'.encode()
        before = {b'tEXt': b'', b'zTXt': b'\0', b'iTXt': b'\0\0\0\0'}[name]
        return name, f'Raw profile type {kind}\0'.encode() + before + (zlib.compress(text) if before == b'\0' else text)

    chunks = [
        chunk('exif', exif.tobytes()),
        chunk(of_captions, captions),
        chunk('xmp', b'<x:xmpmeta'),
        chunk('icm', b'?'),
    ]
    (tmp_path / 'a.png').write_bytes(with_chunks(content.getvalue(), *chunks))
    photo = read_photo(tmp_path / 'a.png')
    np.testing.assert_array_equal(photo.pixels, picture(20, 30))
    assert photo.metadata['iptc-data'] == b'Photoshop 3.0\0' + captions and photo.metadata['xmp-data'] == b'<x:xmpmeta'
    assert photo.texts == b'' and len(loss_warnings('png', photo)) == 1
    for target in ('b.jpg', 'b.png'):
        write_photo(tmp_path / target, photo)
        written = Image.open(tmp_path / target)
        assert written.getexif()[MAKE] == 'a camera' and written.getexif()[ORIENTATION] == 1


def test_damaged_hexadecimal_texts_are_left_out(tmp_path):
    content = io.BytesIO()
    Image.fromarray(picture(20, 30)).save(content, 'PNG')
    for text in (b'', b'\nexif\n 4\n', b'\nexif\n 4\n0', b'\nexif\n 4\nxy', b'\nexif\n 4\n\xff'):
        file = with_chunks(content.getvalue(), (b'tEXt', b'Raw profile type exif\0' + text))
        (tmp_path / 'a.png').write_bytes(file)
        assert read_photo(tmp_path / 'a.png').metadata == {}


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
        'jpeg has no place for its texts (such as Author, Description); --format png keeps them'
    ]


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
        ([(b'gAMA', (44_000).to_bytes(4, 'big'))], None, False),  # 3 % off, what libpng takes for equal
        ([(b'gAMA', (48_500).to_bytes(4, 'big'))], None, True),
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


def test_marks_behind_the_pixels_or_with_a_wrong_checksum_do_not_count(tmp_path):
    content = io.BytesIO()
    Image.fromarray(picture(8, 8)).save(content, 'PNG')
    plain, mark = content.getvalue(), (b'acTL', bytes(8))
    for file, counts in (
        (with_chunks(plain, mark), True),
        (with_chunks(plain, mark, at=BEHIND), False),
        (with_chunks(plain, mark)[:52] + b'!' + with_chunks(plain, mark)[53:], False),
    ):
        (tmp_path / 'a.png').write_bytes(file)
        assert bool(read_photo(tmp_path / 'a.png').not_read) == counts


def test_the_mark_of_an_animated_png_is_not_looked_for_among_its_pixels(tmp_path):
    Image.fromarray(picture(8, 8)).save(tmp_path / 'a.png')
    with (tmp_path / 'a.png').open('ab') as file:
        file.write(b'acTL')
    assert loss_warnings('png', read_photo(tmp_path / 'a.png')) == []
