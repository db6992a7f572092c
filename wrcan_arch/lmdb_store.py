"""The one place that knows the stores' format: BasicSR's LMDB folders, written whole or not at all.

`NAME.lmdb/` holds `data.mdb` and `meta_info.txt`, one line an image: `key.ext (height,width,channels) 0`, as BasicSR's
data sets read it. A value is the image file's own bytes: a JPEG stays the JPEG it was.
"""

import os
import re
import shutil
from pathlib import Path
from types import TracebackType
from typing import Any

import lmdb
from basicsr.utils.file_client import BaseStorageBackend

from .errors import InputError

FIRST_MAP_SIZE = 64 << 20  # bytes; doubled whenever it is full


def key_for(name: str) -> str:
    """A key that BasicSR can read (ASCII, no dots), from a file's name without its ending."""
    key = re.sub(r'[^A-Za-z0-9_-]+', '_', name)
    if not key.strip('_'):
        raise InputError(f"'{name}' has no letter or digit to make a key from; rename the file")
    return key


class StoreWriter:
    """Writes a store under a temporary name and gives it its own when all went well.

    ::

        with StoreWriter('train_blur.lmdb') as store:
            store.put('000_00000000', '.jpg', jpeg_bytes, (720, 1280, 3))
    """

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)
        if self.path.suffix != '.lmdb':
            raise InputError(f'{self.path}: BasicSR reads only stores whose name ends in .lmdb')
        if self.path.exists():
            raise InputError(f'{self.path}: exists already; remove it or choose another name')
        self._partial = self.path.with_name(self.path.name + '.partial')

    def __enter__(self) -> 'StoreWriter':
        shutil.rmtree(self._partial, ignore_errors=True)
        self._partial.mkdir(parents=True)
        self._environment = lmdb.open(str(self._partial), map_size=FIRST_MAP_SIZE, sync=False)
        self._meta_info: dict[str, str] = {}
        return self

    def put(self, key: str, ending: str, value: bytes, shape: tuple[int, int, int]) -> None:
        """Store `value` under `key`; `ending` ('.jpg') and `shape` (H, W, C) go into meta_info."""
        if key in self._meta_info:
            raise InputError(f"{self.path}: two images have the key '{key}'; rename one of them")
        while True:
            try:
                with self._environment.begin(write=True) as transaction:
                    transaction.put(key.encode('ascii'), value)
                break
            except lmdb.MapFullError:
                self._environment.set_mapsize(2 * self._environment.info()['map_size'])
        self._meta_info[key] = f'{key}{ending} ({",".join(map(str, shape))}) 0\n'

    def __exit__(self, kind: type | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        if kind is None:
            lines = [self._meta_info[key] for key in sorted(self._meta_info)]
            (self._partial / 'meta_info.txt').write_text(''.join(lines), encoding='ascii')
            self._environment.sync(True)
        self._environment.close()
        if kind is None:
            self._partial.rename(self.path)
        else:
            shutil.rmtree(self._partial)


class Store:
    """A store, read only: no lock, no read-ahead. Use `open_store`, which opens each store once in a process."""

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)
        for part in ('data.mdb', 'meta_info.txt'):
            if not (self.path / part).is_file():
                raise InputError(f'{self.path}: not an LMDB data set, there is no {part}; prepare it again')
        try:
            self._environment = lmdb.open(
                str(self.path), readonly=True, lock=False, readahead=False, meminit=False, max_spare_txns=16
            )
        except lmdb.Error as error:
            raise InputError(f'{self.path}: not a readable LMDB ({error}); prepare it again') from error
        self._refuse_cut_file()

    def _refuse_cut_file(self) -> None:
        """LMDB maps its file into memory: reading past the end of one that was cut would kill the process (SIGBUS)."""
        needed = (self._environment.info()['last_pgno'] + 1) * self._environment.stat()['psize']
        found = (self.path / 'data.mdb').stat().st_size
        if found < needed:
            self._environment.close()
            raise InputError(
                f'{self.path}: data.mdb has {found} of {needed} bytes, it was cut; copy or prepare it again'
            )

    def keys(self) -> list[str]:
        """The keys that meta_info lists, sorted."""
        text = (self.path / 'meta_info.txt').read_text(encoding='utf-8')
        return sorted(line.split('.')[0] for line in text.splitlines() if line.strip())

    def get(self, key: str) -> bytes:
        """The bytes stored under `key`."""
        with self._environment.begin() as transaction:
            value = transaction.get(key.encode())
        if value is None:
            raise InputError(
                f"{self.path}: there is no value under the key '{key}' that meta_info.txt lists; prepare it again"
            )
        return value

    def close(self) -> None:
        self._environment.close()


_open_stores: dict[str, tuple[tuple[int, int], Store]] = {}


def open_store(path: Path | str) -> Store:
    """The store at `path`, opened once in each process: LMDB refuses a second time, and one must not cross a fork."""
    data = Path(path).resolve() / 'data.mdb'
    identity = (os.getpid(), data.stat().st_ino if data.exists() else 0)
    opened = _open_stores.get(str(data))
    if opened and opened[0] == identity:
        return opened[1]
    if opened:  # inherited over a fork, or the store was made anew
        del _open_stores[str(data)]
        opened[1].close()
    store = Store(path)
    _open_stores[str(data)] = identity, store
    return store


class StoreBackend(BaseStorageBackend):
    """The toolbox's LMDB backend on stores that are opened once in a process and say what is wrong with them."""

    def __init__(self, db_paths: str | list[str], client_keys: str | list[str] = 'default', **_: Any) -> None:
        db_paths = [db_paths] if isinstance(db_paths, str) else db_paths
        client_keys = [client_keys] if isinstance(client_keys, str) else client_keys
        self.paths = dict(zip(client_keys, db_paths, strict=True))

    def get(self, filepath: str, client_key: str = 'default') -> bytes:
        return open_store(self.paths[client_key]).get(str(filepath))

    def get_text(self, filepath: str) -> str:
        return self.get(filepath).decode()
