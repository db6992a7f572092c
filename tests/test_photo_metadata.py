"""What a result keeps of its file besides pixels, and what it says that it does not keep."""

import os
import struct
import zlib
from dataclasses import replace
from unittest import mock

import pytest
import tifffile
from conftest import DATA, deep_picture, picture
from photo_files import EXIF_IFD, EXPOSURE, MAKE, ORIENTATION, RESOLUTION_UNIT, SRGB, X_RESOLUTION, Y_RESOLUTION
from PIL import Image, TiffImagePlugin

from wrcan_arch.photos.photo import ENDINGS, Photo
from wrcan_arch.photos.read_photo import read_photo
from wrcan_arch.photos.tiff_exif import exif_of_result
from wrcan_arch.photos.write_photo import loss_warnings, write_photo


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
    Image.fromarray(picture(16, 24)).save(tmp_path / f'a{source}', dpi=(300, 150))
    write_photo(tmp_path / f'b{target}', read_photo(tmp_path / f'a{source}'))
    written = Image.open(tmp_path / f'b{target}')
    said = tuple(written.getexif().get(tag) for tag in (X_RESOLUTION, Y_RESOLUTION))
    said = written.info['dpi'] if target in ('.png', '.tif') else said
    assert said == pytest.approx((300, 150), abs=1)


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
            'its colours are not sRGB' for _ in range(not kept)
        ]


@pytest.mark.parametrize('name', list(ENDINGS))
def test_what_is_lost_of_captions_and_depth_is_said(name):
    deep = Photo(pixels=deep_picture(8, 8), metadata={'iptc-data': b'\x1c\x02\x78\0\x01a'})
    said = {each.partition(';')[0] for each in loss_warnings(name, deep)}
    assert (f'it has more than the 8 bits of {name}' in said) == (name in ('jpeg', 'webp'))
    assert (f'{name} has no place for its captions (IPTC)' in said) == (name not in ('jpeg', 'tiff'))


@pytest.mark.parametrize('captions', [b'\x1c\x02\x78\0\x03abc', b'\x1c\x02\x78\0\x02ab'])
def test_captions_are_kept_from_tiff_to_jpeg_and_back(tmp_path, captions):
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


@pytest.mark.parametrize('name', [b'MotionPhoto', b'MicroVideo'])
def test_film_behind_a_photograph_is_said_and_no_longer_promised(tmp_path, name):
    xmp = b'<x:xmpmeta GCamera:NAME="1" GCamera:NAMEVersion="1"'.replace(b'NAME', name)
    write_photo(tmp_path / 'a.jpg', Photo(pixels=picture(8, 8), metadata={'xmp-data': xmp}))
    photo = read_photo(tmp_path / 'a.jpg')
    assert loss_warnings('jpeg', photo) == ['the file also holds a video; the picture was restored']
    assert photo.metadata['xmp-data'] == xmp.replace(name + b'="1"', name + b'="0"')


@pytest.mark.parametrize('marks', [b'<mwg-rs:Regions rdf:parseType="Resource">', b'<MP:RegionInfo>', b''])
def test_faces_marked_in_a_photograph_that_is_turned_are_said(tmp_path, marks):
    for orientation in (1, 6):
        exif = Image.Exif()
        exif[ORIENTATION] = orientation
        Image.fromarray(picture(8, 8)).save(tmp_path / 'a.jpg', exif=exif, xmp=b'<x:xmpmeta>' + marks)
        said = ['the faces marked in it were not turned upright with the picture'] if marks and orientation > 1 else []
        assert loss_warnings('jpeg', read_photo(tmp_path / 'a.jpg')) == said


@pytest.mark.parametrize('target', ['.jpg', '.png', '.tif', '.webp'])
def test_pieces_that_a_result_has_not_are_not_promised(tmp_path, target):
    head, tail = b'<x:xmpmeta xmlns:hdrgm="http://ns.adobe.com/hdr-gain-map/1.0/"', b'>text</x:xmpmeta>'
    for promise, kept in (
        (b'\n hdrgm:Version="1.0"\n xmpNote:HasExtendedXMP = \'18AC\'' + tail, b'\n \n ' + tail),
        (b'><xmpNote:HasExtendedXMP>18AC</xmpNote:HasExtendedXMP><hdrgm:Version>1.0</hdrgm:Version' + tail, tail),
        (b' xmp:Version="1.0"' + tail, b' xmp:Version="1.0"' + tail),
    ):
        write_photo(tmp_path / f'b{target}', Photo(pixels=picture(8, 8), metadata={'xmp-data': head + promise}))
        assert read_photo(tmp_path / f'b{target}').metadata['xmp-data'].rstrip(b'\0') == head + kept


@pytest.mark.parametrize(
    'repeated',
    [
        b' ',
        b'hdrgm:Version ',
        b'hdrgm:Version="',
        b'<hdrgm:Version>',
        b'tiff:Orientation ',
        b'MicroVideo> ',
        b'<xmp:Thumbnails>',
    ],
)
@pytest.mark.timeout(20)
def test_time_for_xmp_grows_with_its_length_only(tmp_path, repeated):
    """White space alone took its square: hours for this much, in which nothing else ran and nothing stopped it."""
    xmp = b'<x:xmpmeta>' + repeated * (500_000 // len(repeated)) + b'</x:xmpmeta>'
    write_photo(tmp_path / 'a.png', Photo(pixels=picture(8, 8), metadata={'xmp-data': xmp}))
    assert read_photo(tmp_path / 'a.png').metadata['xmp-data'].rstrip(b'\0').endswith(b'</x:xmpmeta>')


def test_what_a_bigtiff_says_of_itself_is_lost_and_said(tmp_path):
    for order in '<>':
        tifffile.imwrite(tmp_path / 'a.tif', picture(8, 8), bigtiff=True, byteorder=order, photometric='rgb')
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


# A segment holds 65,533 bytes; EXIF is written anew and may grow, and libvips writes XMP of 60,000 at most.
@pytest.mark.parametrize(('field', 'most'), [('exif-data', 65_000), ('xmp-data', 59_999), ('iptc-data', 65_500)])
def test_metadata_that_jpeg_does_not_hold_is_said(tmp_path, field, most):
    too_long = ['some of its metadata (EXIF, XMP, IPTC) is too long to be kept']
    for length in (most, most + 1, most + 1_000):
        head = {
            'exif-data': b'Exif\0\0II*\0' + struct.pack('<IHHHIII', 8, 1, 0x010E, 2, length - 32, 26, 0),
            'xmp-data': b'<x:xmpmeta>',
            'iptc-data': b'Photoshop 3.0\0',
        }
        photo = Photo(pixels=picture(8, 8), metadata={field: head[field].ljust(length, b'd')})
        write_photo(tmp_path / 'a.jpg', photo)
        kept = b'd' * (length - 100) in (tmp_path / 'a.jpg').read_bytes()
        assert kept == (length < most + 1_000)
        assert loss_warnings('jpeg', photo) == (too_long if length > most else [])
        assert not loss_warnings('tiff', photo)
    extended = Photo(pixels=picture(8, 8), metadata={'xmp-data': b'xmpNote:HasExtendedXMP="0"'})
    assert loss_warnings('png', extended) == too_long


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


@pytest.mark.parametrize(
    ('space', 'index', 'is_adobe'),
    [(65535, 'R03', True), (65535, 'R98', False), (1, 'R03', False), (65535, None, False), (2, None, True)],
)
def test_adobe_rgb_that_exif_alone_says_is_lost_in_other_formats_and_said(tmp_path, space, index, is_adobe):
    exif = Image.Exif()
    exif[EXIF_IFD] = {0xA001: space} | ({0xA005: {1: index}} if index else {})
    for profile in (None, SRGB):
        Image.fromarray(picture(8, 8)).save(tmp_path / 'a.jpg', exif=exif, icc_profile=profile)
        for name in ENDINGS:
            lost = is_adobe and not profile and name not in ('jpeg', 'tiff')
            said = ['its colours are not sRGB, and the result does not say so; convert it to sRGB first']
            assert loss_warnings(name, read_photo(tmp_path / 'a.jpg')) == said * lost


@pytest.mark.parametrize('source', ['.jpg', '.png', '.tif'])
@pytest.mark.parametrize('mode', ['RGB', 'L'])
def test_profile_that_does_not_fit_is_lost_and_said(tmp_path, source, mode):
    fitting, other = (SRGB, grey_profile())[:: 1 if mode == 'RGB' else -1]
    damaged = fitting[:36] + b'none' + fitting[40:]  # without its signature
    for profile, fits in ((fitting, True), (other, False), (damaged, False), (fitting[:140], False)):
        Image.fromarray(picture(8, 8)).convert(mode).save(tmp_path / f'a{source}', icc_profile=profile)
        photo = read_photo(tmp_path / f'a{source}')
        write_photo(tmp_path / f'b{source}', photo)
        assert Image.open(tmp_path / f'b{source}').info.get('icc_profile') == (profile if fits else None)
        said = [] if fits else ['its colour profile is damaged or does not fit its colours, and is not kept']
        assert loss_warnings({'.jpg': 'jpeg', '.tif': 'tiff'}.get(source, 'png'), photo) == said


@pytest.mark.parametrize('prefix', [b'xmp', b'xap'])
def test_thumbnail_in_xmp_goes_too(tmp_path, prefix):
    head, tail = b'<x:xmpmeta><xmp:Rating>4</xmp:Rating>', b'<dc:title>a</dc:title></x:xmpmeta>'
    small = b'<xmp:Thumbnails xml:lang="x"><rdf:Alt><xmpGImg:image>/9j/</xmpGImg:image></rdf:Alt></xmp:Thumbnails>'
    for thumbnail in (small.replace(b'xmp:', prefix + b':'), b''):
        xmp = head + thumbnail + tail
        write_photo(tmp_path / 'a.jpg', Photo(pixels=picture(8, 8), metadata={'xmp-data': xmp}))
        assert read_photo(tmp_path / 'a.jpg').metadata['xmp-data'] == head + tail


@pytest.mark.parametrize('orientation', [b'tiff:Orientation="6"', b"tiff:Orientation = '6'", b'<tiff:Orientation>6<'])
def test_orientation_in_xmp_is_reset_if_the_picture_was_turned(tmp_path, orientation):
    """By EXIF, or maybe by an AVIF file's own mark; programs that heed XMP alone still have to turn the others."""
    xmp = b'<x:xmpmeta ' + orientation
    for ending, turns, reset in (('jpg', 6, True), ('jpg', 1, False), ('webp', 1, False), ('avif', 1, True)):
        exif = Image.Exif()
        exif[ORIENTATION] = turns
        Image.fromarray(picture(8, 9)).save(tmp_path / f'a.{ending}', exif=exif, xmp=xmp)
        assert read_photo(tmp_path / f'a.{ending}').metadata['xmp-data'] == (xmp.replace(b'6', b'1') if reset else xmp)


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
def test_resolution_is_that_of_exif_or_its_default(tmp_path, source, target):
    for dpi, unit, expected in ((None, None, 72), (300.0, 2, 300), (72.0, 1, 72), (1.0, 1, 72)):  # 1: no unit
        exif = Image.Exif()
        exif[MAKE] = 'a camera'
        if dpi:
            exif[X_RESOLUTION], exif[Y_RESOLUTION], exif[RESOLUTION_UNIT] = dpi, dpi, unit
        if source == '.heic':
            photo = read_photo(DATA / 'small.heic')
            photo.metadata['exif-data'] = exif_of_result(exif.tobytes())
        else:
            Image.fromarray(picture(16, 24)).save(tmp_path / f'a{source}', exif=exif)
            photo = read_photo(tmp_path / f'a{source}')
        write_photo(tmp_path / f'b{target}', photo)
        written = Image.open(tmp_path / f'b{target}').getexif()
        assert written[X_RESOLUTION] == written[Y_RESOLUTION] == expected and written[RESOLUTION_UNIT] == 2


@pytest.mark.parametrize('target', ['.jpg', '.png', '.tif', '.webp', '.avif'])
@pytest.mark.parametrize('said', [None, 1, 65535])
def test_colour_space_in_exif_is_what_it_was(tmp_path, target, said):
    exif, tag = Image.Exif(), 0xA001
    exif[EXIF_IFD] = {EXPOSURE: 0.01} if said is None else {tag: said}
    Image.fromarray(picture(16, 24)).save(tmp_path / 'a.jpg', exif=exif, dpi=(300, 300))
    photo = read_photo(tmp_path / 'a.jpg')
    for each, otherwise in (
        (photo, 1),
        (replace(photo, declares_non_srgb=True), 65535),
        (replace(photo, metadata={**photo.metadata, 'icc-profile-data': SRGB}), 65535),
    ):
        write_photo(tmp_path / f'b{target}', each)
        written = Image.open(tmp_path / f'b{target}').getexif().get_ifd(EXIF_IFD)
        assert written.get(tag, otherwise) == (said or otherwise)
        assert said or written[EXPOSURE] == pytest.approx(0.01)


def test_file_without_metadata_gets_none(tmp_path):
    write_photo(tmp_path / 'a.png', Photo(pixels=picture(8, 8)))
    written = Image.open(tmp_path / 'a.png')
    assert not written.getexif() and 'icc_profile' not in written.info and 'xmp' not in written.info


def test_comments_and_layers_that_are_lost_are_said(tmp_path):
    image = Image.fromarray(picture(8, 8))
    image.save(tmp_path / 'a.jpg', comment=b'mine', icc_profile=SRGB)
    assert loss_warnings('jpeg', read_photo(tmp_path / 'a.jpg')) == ['its JPEG comment is not kept']
    content = (tmp_path / 'a.jpg').read_bytes()
    long = (b'\xff\xe4\xff\xff' + bytes(65533)) * 2 + b'\xff'  # and a byte that fills
    (tmp_path / 'b.jpg').write_bytes(content[:2] + long + content[2:])
    assert loss_warnings('jpeg', read_photo(tmp_path / 'b.jpg')) == ['its JPEG comment is not kept']
    for tags, said in (({37724: b'layers'}, ["Photoshop's layers are not kept; the picture was restored"]), ({}, [])):
        tifffile.imwrite(
            tmp_path / 'a.tif', picture(8, 8), photometric='rgb', extratags=[(tag, 7, 6, tags[tag]) for tag in tags]
        )
        assert loss_warnings('tiff', read_photo(tmp_path / 'a.tif')) == said


@pytest.mark.parametrize(
    ('marker', 'body', 'lost'),
    [
        (0xE1, b'FLIR\0\1\0\0heat', ['APP1']),
        (0xE2, b'FPXR\0sound', ['APP2']),
        (0xEB, b'JP\0\1\0\0\0\1\0\0\0\x1ejumb\0\0\0\x16jumdc2pa', ['content credentials']),
        (0xEC, b'[picture info]', ['APP12']),
        (0xED, b'Adobe_Photoshop2.5:captions', ['APP13']),
        (0xE0, b'JFXX\0\x10thumbnail', []),
        (0xE4, bytes(600), []),
        (0xEC, b'Ducky\0\1', []),
        (0xED, b'Adobe_CM\0', []),
    ],
)
def test_further_parts_of_a_jpeg_that_are_lost_are_said(tmp_path, marker, body, lost):
    xmp, iptc = b'<x:xmpmeta/>', b'Photoshop 3.0\0' + b'8BIM\x04\x04\0\0\0\0\0\x06' + b'\x1c\x02\x78\0\x01a'
    write_photo(tmp_path / 'a.jpg', Photo(pixels=picture(8, 8), metadata={'xmp-data': xmp, 'iptc-data': iptc}))
    content = (tmp_path / 'a.jpg').read_bytes()
    segment = bytes([0xFF, marker]) + struct.pack('>H', 2 + len(body)) + body
    for behind, also in ((b'', []), (bytes(9000), []), (b'\r\n', []), (b'\0\0\0\x18ftypmp42', ['behind the picture'])):
        (tmp_path / 'b.jpg').write_bytes(content[:2] + segment * 2 + content[2:] + behind)
        assert loss_warnings('jpeg', read_photo(tmp_path / 'b.jpg')) == [
            f'further data in it is not kept ({", ".join(all_lost)})' for all_lost in [lost + also] if all_lost
        ]


def test_a_result_is_for_nobody_else_than_the_photograph_is(tmp_path):
    Image.fromarray(picture(8, 8)).save(tmp_path / 'a.png')
    write_photo(tmp_path / 'b.png', Photo(pixels=picture(8, 8)))
    for mode, expected in ((0o600, 0o600), (0o640, 0o640), (0o755, 0o644), (0o404, 0o604)):
        (tmp_path / 'a.png').chmod(mode)
        write_photo(tmp_path / 'b.png', read_photo(tmp_path / 'a.png'))
        assert oct((tmp_path / 'b.png').stat().st_mode & 0o777) == oct(expected)
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
    assert oct((tmp_path / 'a.png').stat().st_mode & 0o777) == oct(without if refused else mode)
