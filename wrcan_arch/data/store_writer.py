"""Writes stores (see lmdb_store.py) whole or not at all, and goes on where an earlier writer was stopped."""

import json
import os
import shutil
import zlib
from collections.abc import Collection
from contextlib import ExitStack, suppress
from pathlib import Path
from types import TracebackType

import lmdb

from ..errors import InputError
from ..system.file_lock import locked
from ..system.files import refuse_link
from .lmdb_store import FORMAT, RECORDS, Record, manifest_text, meta_info_text, missing_bytes

FIRST_MAP_SIZE = 64 << 20  # bytes; doubled whenever it is full
BATCH_SIZE = 32 << 20  # bytes written to the disk at a time, the most that a killed writer loses
LONGEST_KEY = 511  # bytes, in LMDB
LOCK = 'writer.lock'  # in a store that is not complete


def partial_of(path: Path) -> Path:
    """Return the temporary name that `path` has until it is complete."""
    return path.with_name(f'{path.name}.partial')


def is_complete(path: Path) -> bool:
    """Whether the store for `path` only has to be named: its writer was stopped after everything was written."""
    return (partial_of(path) / 'manifest.json').is_file()


class StoreWriter:
    """Write a store under a temporary name, NAME.lmdb.partial, and rename it once it is complete.

    ::

        with StoreWriter('train_blur.lmdb') as store:
            store.put('000_00000000', '.jpg', jpeg_bytes, (720, 1280, 3))

    With `resume`, a writer that fails or is killed leaves the temporary store, and the next writer finds the records of
    its values in `resumed`. Values that are neither kept, by `keep`, nor put again are deleted. A value and its record
    are flushed to the disk in one LMDB transaction, so they cannot disagree.

    For two stores that belong together, call complete() on both before the first is closed: whatever can fail fails
    there.

    Raises InputError if the store exists or another process writes it, the temporary store or a file in it is a link, a
    key is put twice or is too long, or the disk cannot be written.
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
        self._is_complete = False
        self._lock = ExitStack()

    def _refuse_to_overwrite(self) -> None:
        if self.path.exists():
            raise InputError(f'{self.path}: exists already; remove it or choose another name')

    def __enter__(self) -> 'StoreWriter':
        refuse_link(self._partial)
        is_new = not self._partial.exists()
        self._partial.mkdir(parents=True, exist_ok=True)
        try:
            self._lock.enter_context(locked(self._partial / LOCK, f'{self.path}: another process is writing it'))
        except (InputError, OSError):
            with suppress(OSError):  # fails if there is anything in it, such as another process's lock
                self._partial.rmdir()
            raise
        try:
            self._refuse_to_overwrite()  # another process may just have finished it
            for left in self._partial.iterdir():
                refuse_link(left)
            earlier = self._open_earlier() if self._resume else None
            if earlier:
                self._environment, self.resumed = earlier
            else:
                for left in self._partial.iterdir():
                    if left.name != LOCK:
                        left.unlink()
                self._environment = lmdb.open(os.fsencode(self._partial), map_size=FIRST_MAP_SIZE, max_dbs=1)
            self._record_db = self._environment.open_db(RECORDS)
        except (InputError, OSError, lmdb.Error) as error:
            if is_new or {left.name for left in self._partial.iterdir()} <= {LOCK}:
                shutil.rmtree(self._partial)
            self._lock.close()
            if isinstance(error, lmdb.Error):
                raise self._disk_error(error) from error
            raise
        return self

    def _open_earlier(self) -> tuple[lmdb.Environment, dict[str, Record]] | None:
        """Open what an earlier writer left; None if damaged or of another format, InputError if of another kind."""
        if not (self._partial / 'data.mdb').is_file():
            return None
        try:
            environment = lmdb.open(os.fsencode(self._partial), map_size=FIRST_MAP_SIZE, max_dbs=1)
        except (lmdb.InvalidError, lmdb.CorruptedError, lmdb.VersionMismatchError):
            return None
        kinds: set[str] = set()
        with suppress(lmdb.Error, ValueError, KeyError):
            if not missing_bytes(environment, self._partial):
                with environment.begin(db=environment.open_db(RECORDS, create=False)) as transaction:
                    entries = {key.decode(): json.loads(entry) for key, entry in transaction.cursor()}
                kinds = {entry['kind'] for entry in entries.values()}
                if all(entry['format'] == FORMAT for entry in entries.values()) and kinds <= {self.kind}:
                    return environment, {key: Record.from_entry(entry) for key, entry in entries.items()}
        environment.close()
        if kinds - {self.kind}:
            hint = f'give --store {kinds.pop()} again, or remove it'
            raise InputError(f'{self._partial}: an interrupted run was writing it in another way; {hint}')
        return None

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
                f"{self.path}: the key '{key[:20]}…' has {len(key)} letters, at most {LONGEST_KEY} fit; rename the file"
            )
        self._records[key] = Record(ending, tuple(shape), len(value), zlib.crc32(value), source)
        self._waiting[key] = value
        self._waiting_size += len(value)
        if self._waiting_size >= BATCH_SIZE:
            self.flush()

    def flush(self, stale: Collection[str] = ()) -> None:
        """Write to the disk what was put, where the next writer that resumes finds it; delete the values `stale`."""
        if not self._waiting and not stale:
            return
        (self._partial / 'manifest.json').unlink(missing_ok=True)  # it is no longer what an earlier writer completed
        while True:
            try:
                with self._environment.begin(write=True) as transaction:
                    for key, value in self._waiting.items():
                        record = self._records[key]
                        entry = record.manifest_entry() | {'format': FORMAT, 'kind': self.kind, 'source': record.source}
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
        if not self._is_complete:
            self.flush(stale=self.resumed.keys() - self._records.keys())
            self._write_text('meta_info.txt', meta_info_text(self._records))
            self._write_text('manifest.json', manifest_text(self.kind, self._records))
            self._is_complete = True

    def __exit__(self, kind: type | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        try:
            if kind is None:
                self.complete()
        finally:
            self._environment.close()
            is_resumable = self._resume and (self._committed or self.resumed)
            if kind is None and self._is_complete:
                self._give_name()
            elif not is_resumable:
                shutil.rmtree(self._partial)
            self._lock.close()

    def _give_name(self) -> None:
        """Give the complete store its name; call it while the lock is held, or another writer would begin in it."""
        # Readers do not need LMDB's lock file, and lmdb remembers its inode: once this store is deleted and a new
        # store's file gets that inode, lmdb would take the new store for one that is already open.
        (self._partial / 'lock.mdb').unlink(missing_ok=True)
        self._partial.rename(self.path)
        (self.path / LOCK).unlink()
