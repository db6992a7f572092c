import io

import cv2
import numpy as np
import pytest
from conftest import picture
from PIL import Image

from wrcan_arch.jpeg_quality import TABLES, estimate_quality, is_far, luminance_table


def jpeg(quality, **options):
    buffer = io.BytesIO()
    Image.fromarray(picture(16, 16)).save(buffer, 'JPEG', quality=quality, **options)
    return buffer


def test_every_quality_of_libjpeg_is_recognised():
    for quality in range(1, 101):
        np.testing.assert_array_equal(sorted(Image.open(jpeg(quality)).quantization[0]), sorted(TABLES[quality - 1]))
        assert estimate_quality(jpeg(quality)) == quality
        opencv = cv2.imencode('.jpg', picture(16, 16), [cv2.IMWRITE_JPEG_QUALITY, quality])[1]
        assert estimate_quality(io.BytesIO(opencv.tobytes())) == quality


def with_table(table):
    """Return the beginning of a JPEG file with this luminance table."""
    return io.BytesIO(b'\xff\xd8\xff\xdb\0\x43\0' + bytes(np.asarray(table, np.uint8)))


def test_other_tables_give_the_nearest_quality():
    table = TABLES[60 - 1].copy()
    table[[0, 20, 63]] += [1, -2, -3]
    assert estimate_quality(with_table(table)) == 60
    assert estimate_quality(with_table([255] * 64)) == 1
    assert estimate_quality(with_table([1] * 64)) == 100


def test_tables_of_sixteen_bits_and_behind_other_segments_are_read():
    content = jpeg(50, exif=b'Exif\0\0' + bytes(9000)).getvalue()
    start = content.index(b'\xff\xdb')
    length = int.from_bytes(content[start + 2 : start + 4], 'big')
    table = np.arange(200, 264).astype('>u2').tobytes()
    deep = content[:start] + b'\xff\xdb' + (131).to_bytes(2, 'big') + b'\x10' + table + content[start + 2 + length :]
    np.testing.assert_array_equal(luminance_table(io.BytesIO(deep)), np.arange(200, 264))
    assert estimate_quality(io.BytesIO(content)) == 50


def test_fill_bytes_before_a_marker_are_passed_over():
    content = cv2.imencode('.jpg', picture(16, 16), [cv2.IMWRITE_JPEG_QUALITY, 40])[1].tobytes()
    for count in (1, 3):
        assert estimate_quality(io.BytesIO(content[:2] + count * b'\xff' + content[2:])) == 40
        assert estimate_quality(io.BytesIO(content.replace(b'\xff\xdb', b'\xff' * count + b'\xff\xdb', 1))) == 40
    assert estimate_quality(io.BytesIO(content[:2] + 5 * b'\xff')) is None


def test_tables_that_share_a_segment_are_read():
    content = with_table(TABLES[40 - 1]).getvalue()
    both = content[:4] + (2 + 2 * 65).to_bytes(2, 'big') + content[6:] + b'\1' + bytes(range(1, 65))
    assert estimate_quality(io.BytesIO(both)) == 40


@pytest.mark.parametrize('content', [b'', b'\xff\xd8', b'\xff\xd8\xff\xdb\0\0', b'\xff\xd8\xff\xdb\0\x20' + bytes(30)])
def test_no_table_is_no_quality(content):
    assert estimate_quality(io.BytesIO(content)) is None


def test_far_means_steps_of_twice_or_half_the_size():
    assert [quality for quality in range(1, 101) if not is_far(quality, 25)] == list(range(13, 51))
    assert not is_far(90, [15, 95]) and not is_far(8, [15, 95]) and is_far(7, [15, 95])
    assert is_far(80, [10, 25]) and not is_far(100, 92) and is_far(89, 20)
