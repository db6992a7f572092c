"""The one place that knows the stores' format: BasicSR's LMDB folders, written whole or not at all.

`NAME.lmdb/` holds `data.mdb`, `meta_info.txt`, one line an image: `key.ext (height,width,channels) 0`, as BasicSR's
data sets read it, and `manifest.json`, a checksum of every value. There are two kinds. In an encoded store a value is
the image file's own bytes: a JPEG stays the JPEG it was. In a raw store, whose ending is `.raw`, it is the image's
rows, uint8 (H, W, 3) in BGR, so that a crop is read without decoding a frame; BasicSR's own data sets do not know that
kind.

The checksum is CRC-32: it finds every change of up to 32 bits in a row and all but one in 4e9 of any others, costs a
quarter of BLAKE2's time (4.2 against 0.9 GB/s), and is the number that a zip file keeps for each member.
"""

import json
import math
import os
import re
import shutil
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import ExitStack, contextmanager
from functools import cache, cached_property
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple

import lmdb
import numpy as np

from ..errors import InputError
from .file_lock import locked
from .image_files import images_under

FORMAT = 1  # of manifest.json and of the records
RAW_ENDING = '.raw'
FIRST_MAP_SIZE = 64 << 20  # bytes; doubled whenever it is full
BATCH_SIZE = 32 << 20  # bytes that are written to the disk at a time; a killed writer loses no more
LONGEST_KEY = 511  # bytes, in LMDB
LOCK = 'writer.lock'  # in a store that is not done yet
UNLISTED = 'meta_info.txt does not list what manifest.json does'
RECORDS = b'.records'  # a database beside the values: BasicSR asks for keys of meta_info alone, which have no dots


class Record(NamedTuple):
    """What a store says of one value. `source` tells a resumed writer what the value was made from."""

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
    """JSON with one line a value, so that two manifests can be compared line by line."""
    lines = [f'{json.dumps(key)}: {json.dumps(records[key].manifest_entry())}' for key in sorted(records)]
    return f'{{"format": {FORMAT}, "kind": "{kind}", "values": {{\n' + ',\n'.join(lines) + '\n}}\n'


def read_manifest(path: Path | str) -> tuple[str, dict[str, Record]]:
    """The kind and the records by key that the store's manifest.json holds."""
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
    """LMDB maps its file into memory: reading past the end of one that was cut would kill the process (SIGBUS)."""
    needed = (environment.info()['last_pgno'] + 1) * environment.stat()['psize']
    found = (path / 'data.mdb').stat().st_size
    return f'data.mdb has {found} of {needed} bytes, it was cut' if found < needed else None


class StoreWriter:
    """Writes a store under a temporary name, NAME.lmdb.partial, and gives it its own when all went well.

    ::

        with StoreWriter('train_blur.lmdb') as store:
            store.put('000_00000000', '.jpg', jpeg_bytes, (720, 1280, 3))

    With `resume`, a writer that fails or is killed leaves the temporary store, and the next one finds in `resumed` the
    record of each value in it. `keep` keeps one; those that are neither kept nor put again are deleted. Values and
    their records are written together and flushed to the disk (LMDB's transactions), so the two cannot disagree.

    Of two stores that belong together, complete() both before the first is closed: all that can fail is in it.

    Errors: InputError where the store exists or another process writes it, a key is put twice or too long, or the disk
    takes no more.
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
        self._partial = self.path.with_name(self.path.name + '.partial')
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
        what = f'{self.path}: another process is writing it'
        self._lock.enter_context(locked(self._partial / LOCK, what, 'wait for it, or choose another name'))
        try:
            self._refuse_to_overwrite()  # what the other process has just finished
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
        """Open what an earlier writer left, if it is sound and of this format and kind."""
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
            ending: goes into meta_info; of the file that the value is ('.jpg'), or RAW_ENDING.
            value: an image file, or rows of uint8 in BGR.
            shape: (H, W, C) of the image.
            source: what the value is made from, for a writer that resumes.
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
        self._commit()

    def _commit(self, stale: Iterable[str] = ()) -> None:
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
        free = shutil.disk_usage(self.path.parent).free / 1e9  # LMDB meets a full disk as one of several errors
        return InputError(
            f'{self._partial}: cannot be written ({error}); its disk has {free:.1f} GB free; '
            'make room or choose another disk, and run it again'
        )

    def complete(self) -> None:
        """Write what is left of it. After that a store only has to get its name."""
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
                # Readers do not lock. If it exists, lmdb remembers its inode; when the store is deleted and another
                # store's file gets that number, lmdb takes it for one that is open already.
                (self._partial / 'lock.mdb').unlink(missing_ok=True)
                self._partial.rename(self.path)  # before the lock goes, or another writer would begin in it
                (self.path / LOCK).unlink()
            elif not (self._resume and self._committed):
                shutil.rmtree(self._partial)
            self._lock.close()


class Store:
    """A store, read only: no lock, no read-ahead. Use `open_store`, which opens each store once in a process."""

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
    def _lines(self) -> dict[str, str]:
        """The lines of meta_info, by key."""
        try:
            text = (self.path / 'meta_info.txt').read_text(encoding='utf-8')
        except UnicodeDecodeError as error:
            raise InputError(f'{self.path}: meta_info.txt is not a text, it was damaged; prepare it again') from error
        return {line.split('.')[0]: line for line in text.splitlines() if line.strip()}

    @cached_property
    def kind(self) -> str:
        """'raw' or 'encoded'."""
        return 'raw' if next(iter(self._lines.values()), '').partition(' ')[0].endswith(RAW_ENDING) else 'encoded'

    def keys(self) -> list[str]:
        """The keys that meta_info lists, sorted."""
        return sorted(self._lines)

    def shape(self, key: str) -> tuple[int, int, int]:
        """(H, W, C) of the image under `key`, from meta_info."""
        found = re.search(r' \((\d+),(\d+),(\d+)\)', self._lines.get(key, ''))
        if not found:
            raise InputError(f"{self.path}: meta_info.txt has no (height,width,channels) of '{key}'; prepare it again")
        height, width, channels = map(int, found.groups())
        return height, width, channels

    def ending(self, key: str) -> str:
        """Of the file that the value under `key` is, or RAW_ENDING."""
        return self._lines[key].partition(' ')[0].removeprefix(key)

    def get(self, key: str) -> bytes:
        """The bytes stored under `key`."""
        with self._value(key) as value:
            return bytes(value)

    @contextmanager
    def _value(self, key: str) -> Iterator[memoryview]:
        """The bytes stored under `key` where they lie in the file: valid inside the `with` alone."""
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
        """A raw store's whole image where it lies in the file: what is not touched is not read.

        uint8 (H, W, 3) in BGR, read only, valid inside the `with` alone: copy what is needed later.
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
        """Between meta_info.txt, manifest.json (where there is one) and the number of values, which are not read."""
        own = (self.path / 'manifest.json').is_file()  # a store of ours has its records beside the values
        found, listed = self._environment.stat()['entries'], len(self._lines)
        if found - listed not in ((1,) if own else (0, 1)):
            yield f'data.mdb holds {found - own} values, meta_info.txt lists {listed}'
        if own and not self._is_listed(*read_manifest(self.path)):
            yield UNLISTED

    def _is_listed(self, kind: str, records: Mapping[str, Record]) -> bool:
        return kind == self.kind and list(self._lines.values()) == meta_info_text(records).splitlines()

    def problems(self, progress: Callable[[list[str]], Iterable[str]] = iter) -> Iterator[str]:
        """What does not agree with manifest.json, a line each; see `verify_store`."""
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


Identity = tuple[int, int, int]  # of a process and a file
_open_stores: dict[str, tuple[Identity, Store]] = {}  # by their real paths, and by the names that they were asked for


def open_store(path: Path | str) -> Store:
    """The store at `path`, opened once in each process: LMDB refuses a second time, and one must not cross a fork."""
    name = str(path)
    identity = _identity(name)
    opened = _open_stores.get(name)
    if opened and opened[0] == identity:  # for every frame of a training: nothing slower than one look at the file
        return opened[1]
    real = str(Path(path).resolve())
    opened = _open_stores.get(real)
    if opened and opened[0] != identity:  # inherited over a fork, or the store was made anew
        del _open_stores[real]
        opened[1].close()
        opened = None
    opened = opened or (identity, Store(path))
    _open_stores[name] = _open_stores[real] = opened
    return opened[1]


@cache
def _data_file(path: str) -> Path:
    return Path(path, 'data.mdb')  # to make one takes three times as long as to look at its file


def _identity(path: str) -> Identity:
    try:
        data = _data_file(path).stat()
    except OSError:  # which Store tells, with what is missing
        return os.getpid(), 0, 0
    return os.getpid(), data.st_dev, data.st_ino


def verify_store(path: Path | str, progress: Callable[[list[str]], Iterable[str]] = iter) -> list[str]:
    """What is wrong with the store at `path`, a line each; nothing when every value has its manifest's checksum.

    Args:
        path: of a store with manifest.json.
        progress: goes over the keys in its own way, such as tqdm.
    """
    problems: list[str] = []
    try:
        for problem in open_store(path).problems(progress):
            problems.append(f'{path}: {problem}')
    except (InputError, lmdb.Error) as error:
        problems.append(str(error) if isinstance(error, InputError) else f'{path}: data.mdb is damaged ({error})')
    return problems


def in_own_process(read: Callable[[Path | str], list[str]], path: Path | str) -> list[str]:
    """The problems that `read(path)` finds. LMDB trusts its tree: a damaged one can end the process that reads it."""
    with ProcessPoolExecutor(1) as pool:
        try:
            return pool.submit(read, path).result()
        except BrokenProcessPool:
            return [f'{path}: data.mdb is damaged, reading it ended the process; copy or prepare it again']


class StoreBackend:
    """A storage backend for the toolbox, on stores opened once in a process that say what is wrong with them."""

    def __init__(self, db_paths: str | list[str], client_keys: str | list[str] = 'default', **_: Any) -> None:
        db_paths = [db_paths] if isinstance(db_paths, str) else db_paths
        client_keys = [client_keys] if isinstance(client_keys, str) else client_keys
        self.paths = dict(zip(client_keys, db_paths, strict=True))

    def get(self, filepath: str, client_key: str = 'default') -> bytes:
        return open_store(self.paths[client_key]).get(str(filepath))
