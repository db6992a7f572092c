"""Decode a HEIC file in a process of its own: a damaged file can crash the library, and the run must go on.

The file comes on standard input; the only argument is the maximum number of pixels. Standard output is a line of JSON,
then the bytes that it describes: the metadata, by libvips's names, and the samples.
"""

import json
import sys
from typing import Any, BinaryIO

import numpy as np
import pi_heif

NAMES = {'exif-data': 'exif', 'xmp-data': 'xmp', 'icc-profile-data': 'icc_profile'}


def decode(file: BinaryIO, max_pixels: int) -> tuple[dict, list[bytes]]:
    """A photograph's description, and the bytes of its metadata and samples; no bytes if it exceeds `max_pixels`."""
    opened = pi_heif.open_heif(file, convert_hdr_to_8bit=False)
    width, height = opened.size
    description: dict[str, Any] = {'size': (width, height), 'pictures': len(opened)}
    if width * height > max_pixels:
        return description, []
    picture = opened[opened.primary_index]
    pi_heif.set_orientation(picture.info)  # resets the orientation tags: libheif has turned the pixels already
    description['pictures'] += len(picture.info['depth_images']) + len(picture.info['aux'])  # aux: an HDR gain map, say
    description['bits'] = picture.info['bit_depth']
    if description['bits'] > 8:  # Pillow would keep only 8
        samples = np.asarray(picture)
    else:
        mode = 'L' if picture.mode == 'L' else 'RGBA' if picture.has_alpha else 'RGB'
        samples = np.asarray(picture.to_pillow().convert(mode))
    description['shape'] = np.atleast_3d(samples).shape
    metadata = {name: picture.info[key] for name, key in NAMES.items() if picture.info.get(key)}
    description['metadata'] = {name: len(content) for name, content in metadata.items()}
    return description, [*metadata.values(), samples.tobytes()]


def main() -> None:
    try:
        description, blobs = decode(sys.stdin.buffer, int(sys.argv[1]))
    except Exception as error:  # of any kind: it concerns this photograph only
        description, blobs = {'error': ' '.join(str(error).split()) or type(error).__name__}, []
    sys.stdout.buffer.write(json.dumps(description).encode() + b'\n')
    for blob in blobs:
        sys.stdout.buffer.write(blob)


if __name__ == '__main__':
    main()
