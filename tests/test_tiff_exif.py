"""Metadata of a photograph is kept: EXIF and captions, no thumbnail; Pillow and tifffile are the references."""

import io
import struct
import tracemalloc

import numpy as np
import pytest
import pyvips
import tifffile
from conftest import deep_picture, picture
from PIL import ExifTags, Image
from PIL.TiffImagePlugin import IFDRational

from wrcan_arch import InputError
from wrcan_arch.photos.photo import ENDINGS
from wrcan_arch.photos.read_photo import read_photo
from wrcan_arch.photos.tiff_exif import as_jpeg_has_it, begins_with_preview, read_exif, resources_without_thumbnail
from wrcan_arch.photos.write_photo import write_photo

ORIENTATION, MAKE, EXPOSURE, EXIF_IFD = 0x0112, 0x010F, 0x829A, 0x8769
RATING, RATING_PERCENT, XP_TITLE, INTEROPERABILITY = 0x4746, 0x4749, 0x9C9B, 0xA005
TEXTS = (0x010D, 0x010E, MAKE, 0x0110, 0x0131, 0x013B, 0x013C, 0x8298)  # title, description, camera, author and so on
BIAS, LATITUDE = 0x9204, 2
IPTC, PHOTOSHOP = 33723, 34377


@pytest.mark.parametrize('order', ['<', '>'])
def test_exif_of_tiff_is_kept_in_either_byte_order(tmp_path, order):
    with tifffile.TiffWriter(tmp_path / 'a.tif', byteorder=order) as file:
        extra = [(tag, 's', 0, f'text {tag}', True) for tag in TEXTS] + [(XP_TITLE, 'B', 4, b'a\0b\0', True)]
        about = {'datetime': '2026:11:23 12:00:00', 'software': False, 'metadata': None, 'extratags': extra}
        file.write(deep_picture(8, 9), photometric='rgb', **about)
    photo = read_photo(tmp_path / 'a.tif')
    np.testing.assert_array_equal(photo.pixels, deep_picture(8, 9))
    write_photo(tmp_path / 'b.tif', photo)
    tags = tifffile.TiffFile(tmp_path / 'b.tif').pages[0].tags
    assert tags[0x0132].value == '2026:11:23 12:00:00' and bytes(tags[XP_TITLE].value) == b'a\0b\0'
    assert [tags[tag].value for tag in TEXTS] == [f'text {tag}' for tag in TEXTS]
    assert [*tags.keys()] == sorted(tags.keys()) and not any(tag.valueoffset % 2 for tag in tags), 'as TIFF asks'
    np.testing.assert_array_equal(tifffile.imread(tmp_path / 'b.tif'), deep_picture(8, 9))


@pytest.mark.parametrize('order', '<>')
def test_the_place_on_a_map_is_kept(tmp_path, order):
    tags = {
        33550: ('d', 3, (0.5, 0.5, 0.0)),
        33922: ('d', 6, (0.0, 0.0, 0.0, 450000.0, 5000000.0, 0.0)),
        34735: ('H', 8, (1, 1, 0, 1, 1024, 0, 1, 1)),
        34737: ('s', 0, 'WGS 84|'),
    }
    extra = [(tag, kind, count, value, True) for tag, (kind, count, value) in tags.items()]
    tifffile.imwrite(tmp_path / 'a.tif', picture(16, 24), photometric='rgb', byteorder=order, extratags=extra)
    write_photo(tmp_path / 'b.tif', read_photo(tmp_path / 'a.tif'))
    written = tifffile.TiffFile(tmp_path / 'b.tif').pages[0].tags
    assert {tag: written[tag].value for tag in tags} == {tag: value for tag, (_, _, value) in tags.items()}


def test_colours_that_numbers_define_are_kept(tmp_path):
    """TIFF's own way to say primaries, white point and tone curve, without a profile."""
    curve = tuple(int(65535 * (value / 255) ** 1.8) for value in range(256)) * 3
    tags = {0x012D: ('H', 768, curve), 0x013E: ('2I', 2, (3127, 10000, 329, 1000)), 0x013F: ('2I', 6, (64, 100) * 6)}
    extra = [(tag, *entry, True) for tag, entry in tags.items()]
    tifffile.imwrite(tmp_path / 'a.tif', picture(8, 9), photometric='rgb', extratags=extra)
    write_photo(tmp_path / 'b.tif', read_photo(tmp_path / 'a.tif'))
    written = tifffile.TiffFile(tmp_path / 'b.tif').pages[0].tags
    for tag, (_, _, value) in tags.items():
        np.testing.assert_array_equal(np.ravel(written[tag].value), value)


def test_many_tags_of_the_same_bytes_do_not_fill_the_memory():
    entries = 2000
    rows = b''.join(struct.pack('<HHII', MAKE + number, 7, 100_000, 8) for number in range(entries))
    at = 100_008
    bomb = b'II*\0' + struct.pack('<I', at) + bytes(100_000) + struct.pack('<H', entries) + rows + bytes(4)
    tracemalloc.start()
    assert read_exif(io.BytesIO(bomb)) is not None
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert most < 10 * len(bomb), '200 MB of values in 124 kB'


@pytest.mark.timeout(20)
def test_time_for_many_tags_grows_with_their_length_only():
    """Else these would take minutes."""
    count, length, at = 65_000, 150, 8 + 18
    head = b'II*\0' + struct.pack('<IHHHIII', 8, 1, EXIF_IFD, 4, 1, at, 0)
    rows = b''.join(struct.pack('<HHII', tag, 7, length, at + 2 + 12 * count + 4) for tag in range(count))
    file = io.BytesIO(head + struct.pack('<H', count) + rows + bytes(4 + count * length))
    assert len(read_exif(file)) > count * length


@pytest.mark.timeout(20)
def test_time_for_many_resources_grows_with_their_length_only():
    """Else these would take minutes."""
    resources = b'Photoshop 3.0\0' + (b'8BIM\x04\x0a' + bytes(6)) * 400_000
    assert resources_without_thumbnail(resources) == resources


def test_value_that_is_cut_is_left_out():
    directory = struct.pack('<HHHII', 1, MAKE, 2, 20, 26) + bytes(4)
    assert read_exif(io.BytesIO(b'II*\0' + struct.pack('<I', 8) + directory + b'a camera of a name\0\0'))
    assert not read_exif(io.BytesIO(b'II*\0' + struct.pack('<I', 8) + directory + b'a camera of a name'))


def test_captions_are_a_resource_of_even_length():
    for captions, padded in ((b'abc', b'abc\0'), (b'abcd', b'abcd')):
        head = b'Photoshop 3.0\0' + b'8BIM\x04\x04\0\0\0\0\0' + bytes([len(captions)])
        assert as_jpeg_has_it(captions) == head + padded


@pytest.mark.parametrize('ending', ['.jpg', '.tif'])
def test_captions_are_kept(tmp_path, ending):
    xmp = b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#"/></x:xmpmeta>'
    iptc = b'Photoshop 3.0\0' + b'8BIM\x04\x04\0\0\0\0\0\x0c' + b'\x1c\x02\x78\x00\x07a title'
    image = pyvips.Image.new_from_array(picture(16, 24)).copy(interpretation='srgb')
    image.set_type(pyvips.GValue.blob_type, 'xmp-data', xmp)
    image.set_type(pyvips.GValue.blob_type, 'iptc-data', iptc)
    image.write_to_file(str(tmp_path / f'a{ending}'))
    write_photo(tmp_path / f'b{ending}', read_photo(tmp_path / f'a{ending}'))
    written = pyvips.Image.new_from_file(str(tmp_path / f'b{ending}'))
    assert xmp in written.get('xmp-data')
    if ending == '.jpg':
        assert written.get('iptc-data') == iptc
        write_photo(tmp_path / 'c.tif', read_photo(tmp_path / 'a.jpg'))
        tags = tifffile.TiffFile(tmp_path / 'c.tif').pages[0].tags
        assert tags[PHOTOSHOP].value == iptc.removeprefix(b'Photoshop 3.0\0') and IPTC not in tags


@pytest.mark.parametrize('kind', ['B', 'I'])
def test_captions_of_tiff_are_kept_whole(tmp_path, kind):
    iptc = b'\x1c\x02\x78\x00\x07a title\x1c\x02\x05\x00\x05hello\0\0'
    value = iptc if kind == 'B' else np.frombuffer(iptc, '<u4').tolist()
    tifffile.imwrite(tmp_path / 'a.tif', picture(8, 9), extratags=[(IPTC, kind, len(value), value, True)])
    write_photo(tmp_path / 'b.tif', read_photo(tmp_path / 'a.tif'))
    assert tifffile.TiffFile(tmp_path / 'b.tif').pages[0].tags[IPTC].value == iptc
    np.testing.assert_array_equal(tifffile.imread(tmp_path / 'b.tif'), picture(8, 9))


@pytest.mark.parametrize('kind', ['B', 'I'])
@pytest.mark.parametrize('order', '<>')
@pytest.mark.parametrize('alone', [True, False])
def test_captions_that_stand_twice_are_those_of_photoshops_resources(tmp_path, kind, order, alone):
    """As Photoshop writes them; as 32-bit numbers libtiff swaps their bytes in a big-endian file."""
    iptc = b'\x1c\x02\x78\x00\x07a title\x1c\x02\x05\x00\x05hello\0\0'
    url = b'8BIM\x04\x0b\0\0\0\0\0\x04url!'
    resources = b'8BIM\x04\x04\0\0\0\0\0\x18' + iptc + url
    value = iptc if kind == 'B' else np.frombuffer(iptc, '<u4').tolist()
    if order == '>' and kind == 'I':
        value = np.frombuffer(iptc, '>u4').tolist()
    tags = [(IPTC, kind, len(value), value, True)]
    if not alone:
        tags.append((PHOTOSHOP, 'B', len(resources), resources, True))
    tifffile.imwrite(tmp_path / 'a.tif', picture(8, 9), byteorder=order, extratags=tags)
    found = read_photo(tmp_path / 'a.tif').metadata['iptc-data']
    assert found == (iptc if alone else b'Photoshop 3.0\0' + resources)


def test_resources_without_captions_do_not_replace_those_that_stand_alone(tmp_path):
    iptc, url = b'\x1c\x02\x78\x00\x01a', b'8BIM\x04\x0b\0\0\0\0\0\x04url!'
    tags = [(IPTC, 'B', len(iptc), iptc, True), (PHOTOSHOP, 'B', len(url), url, True)]
    tifffile.imwrite(tmp_path / 'a.tif', picture(8, 9), extratags=tags)
    assert read_photo(tmp_path / 'a.tif').metadata['iptc-data'] == iptc


@pytest.mark.parametrize(('compression', 'refused'), [(None, True), ('tiff_lzw', True), ('jpeg', False)])
def test_colours_that_libvips_would_take_for_rgb_are_refused(tmp_path, compression, refused):
    ycbcr = Image.fromarray(picture(16, 16)).convert('YCbCr')
    ycbcr.save(tmp_path / 'a.tif', compression=compression)
    if refused:
        with pytest.raises(InputError, match='a.tif: images of kind YCbCr without subsampling are not read; convert'):
            read_photo(tmp_path / 'a.tif')
    else:
        assert read_photo(tmp_path / 'a.tif').mode == 'rgb'


@pytest.mark.parametrize('order', '<>')
@pytest.mark.parametrize('target', [endings[0] for endings in ENDINGS.values()])
def test_thumbnail_of_the_photograph_as_it_was_goes_and_xmp_is_upright_too(tmp_path, target, order):
    image = Image.fromarray(picture(16, 24))
    image.resize((6, 4)).save(tmp_path / 'small.jpg')
    small = (tmp_path / 'small.jpg').read_bytes()
    six = 6 if order == '<' else 6 << 16  # a short stands in the first two of four bytes
    first = [(MAKE, 2, 9, 98), (ORIENTATION, 3, 1, six)]
    second = [(0x0103, 3, 1, six), (ORIENTATION, 3, 1, six), (0x0201, 4, 1, 108), (0x0202, 4, 1, len(small))]
    exif = b'Exif\0\0' + (b'II*\0' if order == '<' else b'MM\0*') + struct.pack(order + 'I', 8)
    for rows, following in ((first, 38), (second, 0)):
        exif += struct.pack(order + 'H', len(rows)) + b''.join(struct.pack(order + 'HHII', *row) for row in rows)
        exif += struct.pack(order + 'I', following)
    exif = exif.ljust(6 + 98) + b'a camera\0\0' + small
    xmp = b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF tiff:Orientation="6"/><tiff:Orientation>6</x:xmpmeta>'
    image.save(tmp_path / 'a.jpg', exif=exif, xmp=xmp)
    assert Image.open(tmp_path / 'a.jpg').getexif().get_ifd(ExifTags.IFD.IFD1)[ORIENTATION] == 6
    photo = read_photo(tmp_path / 'a.jpg')
    assert photo.metadata['xmp-data'] == xmp.replace(b'6', b'1')
    write_photo(tmp_path / f'b{target}', photo)
    written = Image.open(tmp_path / f'b{target}').getexif()
    assert written[MAKE] == 'a camera' and not written.get_ifd(ExifTags.IFD.IFD1)
    assert small not in (tmp_path / f'b{target}').read_bytes()


def test_exif_of_cameras_is_followed_and_of_the_old_size_left_out(tmp_path):
    image = Image.fromarray(picture(16, 24))
    exif = image.getexif()
    exif[ORIENTATION], exif[RATING], exif[XP_TITLE] = 6, 4, 'title'.encode('utf-16-le')
    exif[RATING_PERCENT], exif[ExifTags.IFD.GPSInfo] = 75, {1: 'N', LATITUDE: (59.0, 20.0, 1.5)}
    exif[EXIF_IFD] = {EXPOSURE: IFDRational(1, 100), BIAS: IFDRational(-3, 2), 0xA002: 24, 0xA003: 16}
    exif[EXIF_IFD][INTEROPERABILITY] = {1: 'R03'}
    image.save(tmp_path / 'a.jpg', exif=exif)
    write_photo(tmp_path / 'b.tif', read_photo(tmp_path / 'a.jpg'))
    written = Image.open(tmp_path / 'b.tif').getexif()
    assert (written[RATING], written[RATING_PERCENT]) == (4, 75)
    assert bytes(written[XP_TITLE]).decode('utf-16-le') == 'title'
    below = written.get_ifd(EXIF_IFD)
    assert (below[EXPOSURE], below[BIAS]) == pytest.approx((0.01, -1.5)) and 0xA002 not in below and 0xA003 not in below
    assert written.get_ifd(INTEROPERABILITY) == {1: 'R03'}
    assert written.get_ifd(ExifTags.IFD.GPSInfo) == {1: 'N', LATITUDE: (59.0, 20.0, 1.5)}


@pytest.mark.parametrize(('order', 'count', 'value', 'preview'), [
    ('<', 1, 1, True), ('>', 1, 1, True), ('<', 1, 2, False), ('<', 1, 3, True), ('<', 0, 1, False),
])  # fmt: skip
def test_a_preview_says_that_it_is_one(order, count, value, preview):
    """Includes a damaged entry without a value."""
    head = (b'II*\0' if order == '<' else b'MM\0*') + struct.pack(f'{order}I', 8)
    directory = struct.pack(f'{order}HHHIII', 1, 0x00FE, 4, count, value, 0)
    assert begins_with_preview(io.BytesIO(head + directory)) is preview
