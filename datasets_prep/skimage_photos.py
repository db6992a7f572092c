"""Write photographs that ship in scikit-image's wheel as PNG files: the demo's data, without a download.

They are written to OUT/train, OUT/val and OUT/test; coffee and chelsea are in test and never trained on.
"""

import argparse
from pathlib import Path

import cv2
import skimage

import script
from wrcan_arch.data.image_files import write_png
from wrcan_arch.errors import InputError

SPLITS = {
    'train': (
        'astronaut.png',
        'brick.png',
        'camera.png',
        'color.png',
        'grass.png',
        'gravel.png',
        'hubble_deep_field.jpg',
        'ihc.png',
        'motorcycle_left.png',
        'motorcycle_right.png',
        'page.png',
        'retina.jpg',
    ),
    'val': ('rocket.jpg',),
    'test': ('chelsea.png', 'coffee.png'),
}
LARGEST = 800  # pixels: photographs with a longer side are halved, so that the demo decodes them in time


def write_photos(out: Path) -> None:
    shipped = Path(skimage.__file__).parent / 'data'
    for split, names in SPLITS.items():
        for name in names:
            image = cv2.imread(str(shipped / name), cv2.IMREAD_COLOR)
            if image is None:
                raise InputError(f'{shipped / name}: this scikit-image does not ship it; install scikit-image 0.26')
            if max(image.shape) > LARGEST:
                image = cv2.resize(image, None, fx=0.5, fy=0.5, interpolation=cv2.INTER_AREA)
            write_png(out / split / name.replace('.jpg', '.png'), image)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('out', type=Path, help='folder to make train/, val/ and test/ in')
    arguments = parser.parse_args()
    with script.errors_in_one_line():
        write_photos(arguments.out)


if __name__ == '__main__':
    main()
