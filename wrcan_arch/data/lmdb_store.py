"""Reads and writes stores: BasicSR's LMDB folders, written whole or not at all.

`NAME.lmdb/` holds `data.mdb`; `meta_info.txt`, as BasicSR's data sets read it, with one line for each image:
`key.ext (height,width,channels) 0`; and `manifest.json`, with a checksum of every value. There are two kinds. In an
encoded store a value is the bytes of the image file, unchanged. In a raw store, where `.ext` is `.raw`, it is the
image's rows, uint8 (H, W, 3) in BGR, so that a crop is read without decoding a frame; BasicSR's own data sets cannot
read that kind.

The checksum is CRC-32: it finds every change of up to 32 bits in a row and all but one in 4e9 of any others, takes a
quarter of BLAKE2's time (4.2 against 0.9 GB/s), and is what a zip file stores for each member.
"""

import json
import math
import os
import re
import shutil
import zlib
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import AbstractContextManager, ExitStack, contextmanager
from functools import cache, cached_property
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple

import lmdb
import numpy as np

from ..errors import InputError
from ..file_lock import locked
from .image_files import images_under

FORMAT = 1  # of manifest.json and of the records
RAW_ENDING = '.raw'
FIRST_MAP_SIZE = 64 << 20  # bytes; doubled whenever it is full
BATCH_SIZE = 32 << 20  # bytes written to the disk at a time, the most that a killed writer loses
LONGEST_KEY = 511  # bytes, in LMDB
LOCK = 'writer.lock'  # in a store that is not complete
UNLISTED = 'meta_info.txt does not list what manifest.json does'
RECORDS = b'.records'  # a database beside the values; no key of an image has a dot, so BasicSR never asks for it


class Record(NamedTuple):
    """A store's record of one value. `source` tells a resumed writer what the value was made from."""

    ending: str
    shape: tuple[int, ...]  # (H, W, C)
    size: int  # bytes
    crc32: int
    source: str = ''

    def manifest_entry(self) -> dict[str, Any]:
        return {
            'ending': self.ending, 'shape': list(self.shape), 'bytes': self.size, 'crc32': f'{self.crc32:08x}',
        }  # fmt: skip

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


def _missing_bytes(environment: lmdb.Environment, path: Path) -> str | None:
    """Report a truncated data.mdb: LMDB maps it into memory, and reading past its end kills the process (SIGBUS)."""
    needed = (environment.info()['last_pgno'] + 1) * environment.stat()['psize']
    found = (path / 'data.mdb').stat().st_size
    return f'data.mdb has {found} of {needed} bytes, it was cut' if found < needed else None


def partial_of(path: Path) -> Path:
    """Return the temporary name that `path` has until it is complete."""
    return path.with_name(f'{path.name}.partial')


def is_complete(path: Path) -> bool:
    """Whether the store at `path` has only to be named: its writer was stopped after all was written."""
    return (partial_of(path) / 'manifest.json').is_file()


def writer_lock(path: Path) -> AbstractContextManager[None]:
    """Hold the store that is written for `path`; InputError if another process does."""
    what = f'{path}: another process is writing it'
    return locked(partial_of(path) / LOCK, what, 'wait for it, or choose another name')


def give_name(path: Path) -> None:
    """Give the complete store its name; inside `writer_lock`, or another writer would begin in it."""
    partial = partial_of(path)
    # Readers do not lock. lmdb would remember the lock file's inode, and once the store is deleted and another store's
    # file gets that number, would take it for one that is already open.
    (partial / 'lock.mdb').unlink(missing_ok=True)
    partial.rename(path)
    (path / LOCK).unlink()


class StoreWriter:
    """Write a store under a temporary name, NAME.lmdb.partial, and rename it once it is complete.

    ::

        with StoreWriter('train_blur.lmdb') as store:
            store.put('000_00000000', '.jpg', jpeg_bytes, (720, 1280, 3))

    With `resume`, a writer that fails or is killed leaves the temporary store, and the next writer finds the record of
    each value in it in `resumed`. `keep` keeps one; values that are neither kept nor put again are deleted. A value and
    its record are flushed to the disk in one LMDB transaction, so they cannot disagree.

    For two stores that belong together, call complete() on both before the first is closed: all that can fail happens
    there.

    Raises InputError if the store exists or another process writes it, a key is put twice or is too long, or the disk
    cannot be written.
    """

    def __init__(self, path: Path | str, *, kind: str = 'encoded', resume: bool = False) -> None:
        self.path = Path(path)
        if self.path.suffix != '.lmdb':
            raise InputError(f'{self.path}: BasicSR reads only stores whose name ends in .lmdb')
        self._refuse_to_overwrite()
        if kind not in ('encoded', 'raw'):
            raise InputError(f"{self.path}: a store's kind is 'encoded' or 'raw', not '{kind}'")
        self.kind = kind
        self.resumed: dict[str, Record] = {}
        self._resume = resume
        self._partial = partial_of(self.path)
        self._records: dict[str, Record] = {}
        self._waiting: dict[str, bytes] = {}
        self._waiting_size = 0
        self._committed = False
        self._whole = False
        self._lock = ExitStack()

    def _refuse_to_overwrite(self) -> None:
        if self.path.exists():
            raise InputError(f'{self.path}: exists already; remove it or choose another name')

    def __enter__(self) -> 'StoreWriter':
        is_new = not self._partial.exists()
        self._partial.mkdir(parents=True, exist_ok=True)
        self._lock.enter_context(writer_lock(self.path))
        try:
            self._refuse_to_overwrite()  # another process may just have finished it
            if not (self._resume and self._continue()):
                for left in self._partial.iterdir():
                    if left.name != LOCK:
                        left.unlink()
                self._environment = lmdb.open(str(self._partial), map_size=FIRST_MAP_SIZE, max_dbs=1)
                self._record_db = self._environment.open_db(RECORDS)
        except (InputError, OSError, lmdb.Error) as error:
            if is_new or {left.name for left in self._partial.iterdir()} <= {LOCK}:
                shutil.rmtree(self._partial)
            self._lock.close()
            if isinstance(error, lmdb.Error):
                raise self._disk_error(error) from error
            raise
        return self

    def _continue(self) -> bool:
        """Open what an earlier writer left, if it is intact and of this format; InputError if it is of another kind."""
        if not (self._partial / 'data.mdb').is_file():
            return False
        try:
            environment = lmdb.open(str(self._partial), map_size=FIRST_MAP_SIZE, max_dbs=1)
        except (lmdb.InvalidError, lmdb.CorruptedError, lmdb.VersionMismatchError):
            return False
        kinds: set[str] = set()
        try:
            if not _missing_bytes(environment, self._partial):
                self._record_db = environment.open_db(RECORDS, create=False)
                with environment.begin(db=self._record_db) as transaction:
                    entries = {key.decode(): json.loads(entry) for key, entry in transaction.cursor()}
                kinds = {entry['kind'] for entry in entries.values()}
                if all(entry['format'] == FORMAT for entry in entries.values()) and kinds <= {self.kind}:
                    self.resumed = {key: Record.from_entry(entry) for key, entry in entries.items()}
                    self._environment = environment
                    self._committed = bool(self.resumed)
                    return True
        except (lmdb.Error, ValueError, KeyError):
            self.resumed = {}
        environment.close()
        if kinds - {self.kind}:
            hint = f'give --store {kinds.pop()} again, or remove it'
            raise InputError(f'{self._partial}: an interrupted run was writing it in another way; {hint}')
        return False

    def keep(self, key: str) -> None:
        """Keep the value that an earlier writer stored under `key`."""
        self._records[key] = self.resumed[key]

    def put(self, key: str, ending: str, value: bytes, shape: tuple[int, ...], source: str = '') -> None:
        """Store `value` under `key`.

        Args:
            key: ASCII, no dots.
            ending: for meta_info: the image file's ending, such as '.jpg', or RAW_ENDING.
            value: the bytes of an image file, or rows of uint8 in BGR.
            shape: (H, W, C) of the image.
            source: what the value is made from, for a resumed writer.
        """
        if key in self._records:
            raise InputError(f"{self.path}: two images have the key '{key}'; rename one of them")
        if len(key) > LONGEST_KEY:
            raise InputError(
                f"{self.path}: the key '{key[:20]}…' has {len(key)} letters, {LONGEST_KEY} fit; rename the file"
            )
        self._records[key] = Record(ending, tuple(shape), len(value), zlib.crc32(value), source)
        self._waiting[key] = value
        self._waiting_size += len(value)
        if self._waiting_size >= BATCH_SIZE:
            self._commit()

    def flush(self) -> None:
        """Write to the disk what was put, so that it is found by the next writer that resumes."""
        if self._waiting:
            self._commit()

    def _commit(self, stale: Collection[str] = ()) -> None:
        if self._waiting or stale:  # another request than that of the writer that completed it
            (self._partial / 'manifest.json').unlink(missing_ok=True)
        while True:
            try:
                with self._environment.begin(write=True) as transaction:
                    for key, value in self._waiting.items():
                        record = self._records[key]
                        entry = {
                            'format': FORMAT, 'kind': self.kind, **record.manifest_entry(), 'source': record.source,
                        }  # fmt: skip
                        transaction.put(key.encode('ascii'), value)
                        transaction.put(key.encode('ascii'), json.dumps(entry).encode(), db=self._record_db)
                    for key in stale:
                        transaction.delete(key.encode('ascii'))
                        transaction.delete(key.encode('ascii'), db=self._record_db)
                break
            except lmdb.MapFullError:
                self._environment.set_mapsize(2 * self._environment.info()['map_size'])
            except lmdb.Error as error:
                raise self._disk_error(error) from error
        self._committed = True
        self._waiting.clear()
        self._waiting_size = 0

    def _write_text(self, name: str, text: str) -> None:
        try:
            with (self._partial / name).open('w', encoding='ascii') as file:
                file.write(text)
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise self._disk_error(error) from error

    def _disk_error(self, error: Exception) -> InputError:
        free = shutil.disk_usage(self.path.parent).free / 1e9  # LMDB raises one of several errors on a full disk
        return InputError(
            f'{self._partial}: cannot be written ({error}); its disk has {free:.1f} GB free; '
            'make room or choose another disk, and run it again'
        )

    def complete(self) -> None:
        """Write what is left, so that the store only has to be renamed."""
        if not self._whole:
            self._commit(stale=self.resumed.keys() - self._records.keys())
            self._write_text('meta_info.txt', meta_info_text(self._records))
            self._write_text('manifest.json', manifest_text(self.kind, self._records))
            self._whole = True

    def __exit__(self, kind: type | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        try:
            if kind is None:
                self.complete()
        finally:
            self._environment.close()
            if kind is None and self._whole:
                give_name(self.path)
            elif not (self._resume and self._committed):
                shutil.rmtree(self._partial)
            self._lock.close()


class Store:
    """A read-only store, without lock or read-ahead. Use `open_store`, which opens each store once in a process."""

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)
        if not self.path.exists():
            raise InputError(f'{self.path}: there is no such store; prepare it, or correct the path')
        for part in ('data.mdb', 'meta_info.txt'):
            if not (self.path / part).is_file():
                if images_under(self.path):
                    raise InputError(f'{self.path}: a folder of images, no store; io_backend: {{type: disk}} reads it')
                raise InputError(f'{self.path}: not an LMDB data set, there is no {part}; prepare it again')
        try:
            self._environment = lmdb.open(
                str(self.path), readonly=True, lock=False, readahead=False, meminit=False, max_spare_txns=16
            )
        except lmdb.Error as error:
            raise InputError(f'{self.path}: not a readable LMDB ({error}); prepare it again') from error
        if cut := _missing_bytes(self._environment, self.path):
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
        """The keys that meta_info lists, sorted."""
        return sorted(self._meta_info)

    def shape(self, key: str) -> tuple[int, int, int]:
        """(H, W, C) of the image under `key`, from meta_info."""
        found = re.search(r' \((\d+),(\d+),(\d+)\)', self._meta_info.get(key, '').removeprefix(key))
        if not found:
            raise InputError(f"{self.path}: meta_info.txt has no (height,width,channels) of '{key}'; prepare it again")
        height, width, channels = map(int, found.groups())
        return height, width, channels

    def ending(self, key: str) -> str:
        """Of the file that the value under `key` is, or RAW_ENDING."""
        return self._meta_info[key].removeprefix(key).partition(' ')[0]  # other programs' keys may have spaces

    def get(self, key: str) -> bytes:
        """The bytes stored under `key`."""
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

        uint8 (H, W, 3) in BGR, read only, valid only inside the `with`: copy what is needed later.
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
        """Yield contradictions of meta_info.txt, manifest.json (if any) and the number of values. Reads no values."""
        own = (self.path / 'manifest.json').is_file()  # our stores have one more entry, RECORDS
        found, listed = self._environment.stat()['entries'], len(self._meta_info)
        if found - listed not in ((1,) if own else (0, 1)):
            yield f'data.mdb holds {found - own} values, meta_info.txt lists {listed}'
        if own and not self._is_listed(*read_manifest(self.path)):
            yield UNLISTED

    def _is_listed(self, kind: str, records: Mapping[str, Record]) -> bool:
        return kind == self.kind and list(self._meta_info.values()) == meta_info_text(records).splitlines()

    def problems(self, progress: Callable[[list[str]], Iterable[str]] = iter) -> Iterator[str]:
        """Yield a line for each contradiction of manifest.json; see `verify_store`."""
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


def open_store(path: Path | str) -> Store:
    """Return the store at `path`, opened once in each process: LMDB refuses a second open; forks cannot share one."""
    name = str(path)
    identity = _identity(name)
    opened = _open_stores.get(name)
    if opened and opened[0] == identity:  # called for every frame of a training: one stat, nothing slower
        return opened[1]
    real = str(Path(path).resolve())
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
    return Path(path, 'data.mdb')  # making one takes three times as long as its stat


def _identity(path: str) -> Identity:
    try:
        data = _data_file(path).stat()
    except OSError:  # Store reports it, with what is missing
        return os.getpid(), 0, 0
    return os.getpid(), data.st_dev, data.st_ino


def stores_in(folder: Path) -> list[Path]:
    """Return the stores that lie in a folder, sorted; the folder itself if it is one."""
    is_store = (folder / 'data.mdb').exists() or (folder.suffix == '.lmdb' and folder.is_dir())
    return [folder] if is_store else sorted(folder.glob('*.lmdb'))


def verify_store(path: Path | str, progress: Callable[[list[str]], Iterable[str]] = iter) -> list[str]:
    """Return a line for each thing wrong with the store at `path`; none if every value has its manifest's checksum.

    Args:
        path: of a store with manifest.json.
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
    with ProcessPoolExecutor(1) as pool:
        try:
            return pool.submit(read, path).result()
        except BrokenProcessPool:
            return [f'{path}: data.mdb is damaged, reading it ended the process; copy or prepare it again']


class StoreBackend:
    """The toolbox's storage backend on `open_store`: each store is opened once in a process and reports damage."""

    def __init__(self, db_paths: str | list[str], client_keys: str | list[str] = 'default', **_: Any) -> None:
        db_paths = [db_paths] if isinstance(db_paths, str) else db_paths
        client_keys = [client_keys] if isinstance(client_keys, str) else client_keys
        self.paths = dict(zip(client_keys, db_paths, strict=True))

    def get(self, filepath: str, client_key: str = 'default') -> bytes:
        return open_store(self.paths[client_key]).get(str(filepath))
