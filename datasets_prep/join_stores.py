"""Pairs of stores, joined to one: data of several kinds to train on at once.

`join_stores.py a b -o all` makes all_blur.lmdb of a_blur.lmdb and b_blur.lmdb, and all_sharp.lmdb likewise. Every pair
counts the same, so a kind has the weight of its number. `--store raw` keeps sharp images as rows, of which training
reads a patch without decoding the image.
"""

import argparse
import sys
from pathlib import Path

import cv2
import numpy as np
from tqdm import tqdm

from wrcan_arch.errors import InputError
from wrcan_arch.train.lmdb_store import RAW_ENDING, StoreWriter, key_for, open_store

ENDINGS = {'blur': '.jpg', 'sharp': '.png'}


def join(sources: list[Path], out: Path, role: str, *, raw: bool) -> int:
    """Writes OUT_role.lmdb. Returns how many images it has."""
    count = 0
    with StoreWriter(f'{out}_{role}.lmdb', kind='raw' if raw else 'encoded') as joined:
        for source in sources:
            store = open_store(f'{source}_{role}.lmdb')
            if store.kind != 'encoded':
                raise InputError(f'{source}_{role}.lmdb: is raw; join the encoded stores that it was made from')
            for key in tqdm(store.keys(), unit='image', desc=f'{source.name}_{role}', leave=False):
                value, ending = store.get(key), ENDINGS[role]
                if raw:
                    image = cv2.imdecode(np.frombuffer(value, np.uint8), cv2.IMREAD_COLOR)
                    value, ending = np.asarray(image).tobytes(), RAW_ENDING
                joined.put(f'{key_for(source.name)}_{key}', ending, value, store.shape(key))
                count += 1
    return count


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('sources', type=Path, nargs='+', help='what the stores are called before _blur.lmdb')
    parser.add_argument('-o', '--out', type=Path, required=True, help='OUT_blur.lmdb and OUT_sharp.lmdb are written')
    parser.add_argument('--store', choices=('encoded', 'raw'), default='encoded', help='how sharp images are stored')
    arguments = parser.parse_args()
    try:
        count = join(arguments.sources, arguments.out, 'blur', raw=False)
        join(arguments.sources, arguments.out, 'sharp', raw=arguments.store == 'raw')
    except (InputError, OSError) as error:
        print(f'join_stores: {error}', file=sys.stderr)
        sys.exit(2)
    print(f'{arguments.out}: {count} pairs of {len(arguments.sources)} kinds')


if __name__ == '__main__':
    main()
