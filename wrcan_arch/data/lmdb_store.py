"""Reads stores, BasicSR's LMDB folders; store_writer.py writes them.

`NAME.lmdb/` holds
- `data.mdb`, the values;
- `meta_info.txt`, as BasicSR's data sets read it, with one line for each image: `key.ext (height,width,channels) 0`;
- `manifest.json`, with a checksum of every value.

In an encoded store a value is the bytes of the image file, unchanged. In a raw store, where `.ext` is `.raw`, it is the
image's rows, uint8 (H, W, 3) in BGR, so that a crop is read without decoding a frame; BasicSR's own data sets cannot
read raw stores.

The checksum is CRC-32, as zip files store it for each member. It finds every change within 32 bits in a row and all but
one in 4e9 of any others, in a quarter of BLAKE2's time (4.2 against 0.9 GB/s).
"""

import json
import math
import os
import re
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from functools import cache, cached_property
from pathlib import Path
from typing import Any, NamedTuple

import lmdb
import numpy as np

from ..errors import InputError
from ..system.process_pool import process_pool
from ..system.threads import lock_of_threads
from .image_files import images_under

FORMAT = 1  # of manifest.json and of the records
RAW_ENDING = '.raw'
UNLISTED = 'meta_info.txt disagrees with manifest.json'
RECORDS = b'.records'  # a database beside the values; no image's key has a dot, so BasicSR never asks for it


class Record(NamedTuple):
    """What a store records of one value; `source` tells a resumed writer what the value was made from."""

    ending: str
    shape: tuple[int, ...]  # (H, W, C)
    size: int  # bytes
    crc32: int
    source: str = ''

    def manifest_entry(self) -> dict[str, Any]:
        return {'ending': self.ending, 'shape': list(self.shape), 'bytes': self.size, 'crc32': f'{self.crc32:08x}'}

    @classmethod
    def from_entry(cls, entry: dict[str, Any]) -> 'Record':
        shape = tuple(int(side) for side in entry['shape'])
        return cls(str(entry['ending']), shape, int(entry['bytes']), int(entry['crc32'], 16), entry.get('source', ''))


def meta_info_text(records: Mapping[str, Record]) -> str:
    shapes = {key: ','.join(map(str, record.shape)) for key, record in records.items()}
    return ''.join(f'{key}{records[key].ending} ({shapes[key]}) 0\n' for key in sorted(records))


def manifest_text(kind: str, records: Mapping[str, Record]) -> str:
    """Return the manifest as JSON with one line for each value, so that manifests can be compared by line."""
    lines = [f'{json.dumps(key)}: {json.dumps(records[key].manifest_entry())}' for key in sorted(records)]
    return f'{{"format": {FORMAT}, "kind": "{kind}", "values": {{\n' + ',\n'.join(lines) + '\n}}\n'


def read_manifest(path: Path | str) -> tuple[str, dict[str, Record]]:
    """Return the store's kind and its records by key, from manifest.json. InputError if that cannot be read."""
    file = Path(path) / 'manifest.json'
    if not file.is_file():
        raise InputError(f'{path}: there is no manifest.json to verify against; prepare it again')
    try:
        manifest = json.loads(file.read_text(encoding='utf-8'))
        if manifest['format'] == FORMAT:
            return manifest['kind'], {key: Record.from_entry(entry) for key, entry in manifest['values'].items()}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f'{file}: not a readable manifest, it may be damaged; prepare the store again') from error
    raise InputError(f'{file}: has format {manifest["format"]}, this program reads {FORMAT}; prepare the store again')


def missing_bytes(environment: lmdb.Environment, path: Path) -> str | None:
    """Report a truncated data.mdb, or return None: LMDB maps it, and a read past its end kills the process (SIGBUS)."""
    needed = (environment.info()['last_pgno'] + 1) * environment.stat()['psize']
    found = (path / 'data.mdb').stat().st_size
    return f'data.mdb has {found} of {needed} bytes, it was cut' if found < needed else None


class Store:
    """A read-only store, without lock or read-ahead. Use `open_store`, which opens each store once in a process."""

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)
        if not self.path.exists():
            raise InputError(f'{self.path}: there is no such store; prepare it, or correct the path')
        for part in ('data.mdb', 'meta_info.txt'):
            if not (self.path / part).is_file():
                if images_under(self.path):
                    raise InputError(
                        f'{self.path}: a folder of images, not a store; io_backend: {{type: disk}} reads it'
                    )
                raise InputError(f'{self.path}: not an LMDB data set, there is no {part}; prepare it again')
        try:
            self._environment = lmdb.open(  # a path that is no UTF-8 is only taken as bytes
                os.fsencode(self.path), readonly=True, lock=False, readahead=False, meminit=False, max_spare_txns=16
            )
        except lmdb.Error as error:
            raise InputError(f'{self.path}: not a readable LMDB ({error}); prepare it again') from error
        if cut := missing_bytes(self._environment, self.path):
            self._environment.close()
            raise InputError(f'{self.path}: {cut}; copy or prepare it again')

    @cached_property
    def _meta_info(self) -> dict[str, str]:
        """The lines of meta_info.txt, by key."""
        try:
            text = (self.path / 'meta_info.txt').read_text(encoding='utf-8')
        except UnicodeDecodeError as error:
            raise InputError(f'{self.path}: meta_info.txt is not a text, it was damaged; prepare it again') from error
        return {line.split('.')[0]: line for line in text.splitlines() if line.strip()}

    @cached_property
    def kind(self) -> str:
        """'raw' or 'encoded'."""
        return 'raw' if self._meta_info and self.ending(next(iter(self._meta_info))) == RAW_ENDING else 'encoded'

    def keys(self) -> list[str]:
        """Return the keys that meta_info lists, sorted."""
        return sorted(self._meta_info)

    def shape(self, key: str) -> tuple[int, int, int]:
        """Return (H, W, C) of the image under `key`, from meta_info; C is 3 if it is raw."""
        found = re.search(r' \(([1-9]\d{0,8}),([1-9]\d{0,8}),([1-9])\)', self._meta_info.get(key, '').removeprefix(key))
        if not found:
            raise InputError(f"{self.path}: meta_info.txt has no (height,width,channels) of '{key}'; prepare it again")
        height, width, channels = map(int, found.groups())
        if channels != 3 and self.kind == 'raw':
            raise InputError(
                f"{self.path}: '{key}' has {channels} channels in meta_info.txt, a raw image has 3; prepare it again"
            )
        return height, width, channels

    def ending(self, key: str) -> str:
        """Return the ending of the file stored under `key`, such as '.png', or RAW_ENDING."""
        return self._meta_info[key].removeprefix(key).partition(' ')[0]  # other programs' keys may have spaces

    def get(self, key: str) -> bytes:
        """Return the bytes stored under `key`."""
        with self._value(key) as value:
            return bytes(value)

    @contextmanager
    def _value(self, key: str) -> Iterator[memoryview]:
        """Yield the bytes stored under `key`, mapped from the file and valid only inside the `with`."""
        with self._environment.begin(buffers=True) as transaction:
            try:
                value = transaction.get(key.encode())
            except lmdb.Error as error:
                raise InputError(
                    f"{self.path}: '{key}' cannot be read ({error}); data.mdb is damaged, copy or prepare it again"
                ) from error
            if value is None:
                raise InputError(
                    f"{self.path}: there is no value under the key '{key}' that meta_info.txt lists; prepare it again"
                )
            yield value

    @contextmanager
    def view(self, key: str) -> Iterator[np.ndarray]:
        """Yield a raw store's whole image, mapped from the file: rows that are not accessed are not read.

        It is uint8 (H, W, 3) in BGR, read-only, and valid only inside the `with`: copy what is needed later.
        """
        if self.kind != 'raw':
            raise InputError(f'{self.path}: an encoded store has no rows to view; decode `get`, or prepare it as raw')
        shape = self.shape(key)
        with self._value(key) as value:
            if len(value) != math.prod(shape):
                raise InputError(
                    f"{self.path}: '{key}' has {len(value)} bytes, a raw image of {shape[1]} x {shape[0]} "
                    f'has {math.prod(shape)}; prepare it again'
                )
            yield np.frombuffer(value, np.uint8).reshape(shape)

    def disagreements(self) -> Iterator[str]:
        """Report where meta_info.txt, manifest.json (if any) and the number of values disagree; read no values."""
        own = (self.path / 'manifest.json').is_file()  # our stores have one more entry, RECORDS
        found, listed = self._environment.stat()['entries'], len(self._meta_info)
        if found - listed not in ((1,) if own else (0, 1)):
            yield f'data.mdb holds {found - own} values, meta_info.txt lists {listed}'
        if own and not self._is_listed(*read_manifest(self.path)):
            yield UNLISTED

    def _is_listed(self, kind: str, records: Mapping[str, Record]) -> bool:
        return kind == self.kind and list(self._meta_info.values()) == meta_info_text(records).splitlines()

    def problems(self, progress: Callable[[list[str]], Iterable[str]] = iter) -> Iterator[str]:
        """Yield a line for each difference from manifest.json; see `verify_store`."""
        kind, records = read_manifest(self.path)
        if not self._is_listed(kind, records):
            yield UNLISTED
        with self._environment.begin() as transaction:
            keys = {key.decode('ascii', 'backslashreplace') for key in transaction.cursor().iternext(values=False)}
        stored = keys - {RECORDS.decode()}
        yield from (f"'{key}' is not in manifest.json" for key in sorted(stored - records.keys()))
        yield from (f"'{key}' is missing" for key in sorted(records.keys() - stored))
        for key in progress(sorted(records.keys() & stored)):
            with self._value(key) as value:
                found = len(value), zlib.crc32(value)
            if found != (records[key].size, records[key].crc32):
                yield f"'{key}' was changed: {found[0]} bytes with CRC-32 {found[1]:08x}, not " + (
                    f'{records[key].size} with {records[key].crc32:08x}'
                )

    def close(self) -> None:
        self._environment.close()


Identity = tuple[int, int, int]  # process, device and inode
_open_stores: dict[str, tuple[Identity, Store]] = {}  # by real path, and by the path that was asked for
_opening = lock_of_threads()


def open_store(path: Path | str) -> Store:
    """Return the store at `path`, opened once in each process: LMDB refuses a second open, and forks cannot share."""
    name = str(path)
    identity = _identity(name)
    opened = _open_stores.get(name)
    if opened and opened[0] == identity:  # called for every frame of a training: one stat, nothing slower
        return opened[1]
    real = str(Path(path).resolve())
    with _opening:
        opened = _open_stores.get(real)
        if opened and opened[0] != identity:  # inherited over a fork, or the store was replaced
            del _open_stores[real]
            opened[1].close()
            opened = None
        opened = opened or (identity, Store(path))
        _open_stores[name] = _open_stores[real] = opened
    return opened[1]


@cache
def _data_file(path: str) -> Path:
    return Path(path, 'data.mdb')  # cached: making one takes three times as long as its stat


def _identity(path: str) -> Identity:
    try:
        data = _data_file(path).stat()
    except OSError:  # Store reports it, with what is missing
        return os.getpid(), 0, 0
    return os.getpid(), data.st_dev, data.st_ino


def stores_in(folder: Path) -> list[Path]:
    """Return the stores in a folder and the folders below it, sorted; the folder itself if it is a store."""
    is_store = (folder / 'data.mdb').exists() or (folder.suffix == '.lmdb' and folder.is_dir())
    return [folder] if is_store else sorted(folder.rglob('*.lmdb'))


def verify_store(path: Path | str, progress: Callable[[list[str]], Iterable[str]] = iter) -> list[str]:
    """Return a line for each problem of the store at `path`; none if every value has its checksum in the manifest.

    Args:
        path: a store with manifest.json.
        progress: wraps the iteration over the keys, as tqdm does.
    """
    problems: list[str] = []
    try:
        for problem in open_store(path).problems(progress):
            problems.append(f'{path}: {problem}')
    except (InputError, lmdb.Error) as error:
        problems.append(str(error) if isinstance(error, InputError) else f'{path}: data.mdb is damaged ({error})')
    return problems


def in_own_process(read: Callable[[Path | str], list[str]], path: Path | str) -> list[str]:
    """Return `read(path)`, run in a process of its own: reading a damaged LMDB tree can kill the process."""
    with process_pool(1) as pool:
        try:
            return pool.submit(read, path).result()
        except BrokenProcessPool:
            return [f'{path}: data.mdb is damaged, reading it ended the process; copy or prepare it again']


class StoreBackend:
    """The toolbox's storage backend on `open_store`, which opens a store once in a process and reports damage."""

    def __init__(self, db_paths: str | list[str], client_keys: str | list[str] = 'default', **_: Any) -> None:
        db_paths = [db_paths] if isinstance(db_paths, str) else db_paths
        client_keys = [client_keys] if isinstance(client_keys, str) else client_keys
        self.paths = dict(zip(client_keys, db_paths, strict=True))

    def get(self, filepath: str, client_key: str = 'default') -> bytes:
        return open_store(self.paths[client_key]).get(str(filepath))
