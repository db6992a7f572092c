"""Join pairs of stores into one pair, to train on several kinds of data at once.

`join_stores.py a b -o all` makes all_blur.lmdb of a_blur.lmdb and b_blur.lmdb, and all_sharp.lmdb likewise. Every pair
counts the same, so a kind's weight is its number of pairs. `--store raw` stores sharp images as rows of pixels, from
which training reads a patch without decoding the image.
"""

import argparse
import zlib
from pathlib import Path

import numpy as np

import pairs
import script
from pair_writer import written_together
from wrcan_arch.data.image_files import decode_image, key_for
from wrcan_arch.data.lmdb_store import RAW_ENDING, Record, Store, open_store, read_manifest
from wrcan_arch.errors import InputError
from wrcan_arch.system.progress_bar import progress_bar
from wrcan_arch.system.terminal import counted, say


def open_pair(source: Path) -> dict[str, Store]:
    """Open both stores of a source, by role; InputError unless they are encoded and hold the same names."""
    stores = {role: open_store(f'{source}_{role}.lmdb') for role in pairs.FILE_ENDINGS}
    for role, store in stores.items():
        if store.kind != 'encoded':
            raise InputError(f'{source}_{role}.lmdb: is raw; join the encoded stores that it was made from')
    if stores['blur'].keys() != stores['sharp'].keys():
        raise InputError(f'{source}_blur.lmdb and {source}_sharp.lmdb: hold different names; prepare them again')
    return stores


def records_of(store: Store) -> dict[str, Record] | None:
    """Return the manifest's records by key; None if there is no manifest, as in a store of another program."""
    return read_manifest(store.path)[1] if (store.path / 'manifest.json').is_file() else None


def checked_value(store: Store, key: str, records: dict[str, Record] | None) -> bytes:
    """Return the value; InputError if it differs from its record, as the joined store's manifest vouches for it."""
    value = store.get(key)
    if records is not None:
        record = records.get(key)
        if record is None or (len(value), zlib.crc32(value)) != (record.size, record.crc32):
            raise InputError(f"{store.path}: '{key}' was changed since it was written; prepare it again")
    return value


def decoded(store: Store, key: str, value: bytes) -> np.ndarray:
    """Decode `value` to (H, W, 3), also where its store lists it as grey; InputError if it is damaged."""
    image = decode_image(value)
    if image is None or image.shape[:2] != store.shape(key)[:2]:
        raise InputError(f"{store.path}: '{key}' is damaged; prepare it again")
    return image


def join(sources: list[Path], out: Path, *, raw: bool) -> int:
    """Write OUT_blur.lmdb and OUT_sharp.lmdb, both or neither; return the number of pairs."""
    named: dict[str, Path] = {}
    for source in sources:
        other = named.setdefault(key_for(source.name), source)
        if other is not source:
            raise InputError(
                f'{other} and {source}: both are called {source.name}; leave one out, or rename its stores'
            )
    found = {name: open_pair(source) for name, source in named.items()}
    kinds = {f'{out}_blur': 'encoded', f'{out}_sharp': 'raw' if raw else 'encoded'}
    with written_together(kinds) as joined:
        for name, stores in found.items():
            records = {role: records_of(store) for role, store in stores.items()}
            for key in progress_bar(stores['blur'].keys(), unit='pair', desc=name, leave=False):
                for role, store in stores.items():
                    value, ending, shape = checked_value(store, key, records[role]), store.ending(key), store.shape(key)
                    if kinds[f'{out}_{role}'] == 'raw':
                        image = decoded(store, key, value)
                        value, ending, shape = image.tobytes(), RAW_ENDING, image.shape
                    joined[f'{out}_{role}'].put(f'{name}_{key}', ending, value, shape)
    return sum(len(stores['blur'].keys()) for stores in found.values())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('sources', type=Path, nargs='+', help='names of the stores, without _blur.lmdb')
    parser.add_argument('-o', '--out', required=True, help='OUT_blur.lmdb and OUT_sharp.lmdb are written')
    parser.add_argument('--store', choices=('encoded', 'raw'), default='encoded', help='how sharp images are stored')
    arguments = parser.parse_args()
    with script.errors_in_one_line():
        count = join(arguments.sources, pairs.out_name(arguments.out), raw=arguments.store == 'raw')
        say(f'{arguments.out}: {counted(count, "pair")} from {counted(len(arguments.sources), "source")}')


if __name__ == '__main__':
    main()
