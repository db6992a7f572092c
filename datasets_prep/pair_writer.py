"""Pairs into LMDB stores that are split by scene, written together, and gone on with after a stop.

A scene is what must not be on both sides of a split: a photograph with all its blurred copies, or a video between two
cuts.
"""

import argparse
import hashlib
import zlib
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from pairs import FILE_ENDINGS, counted, store_names
from wrcan_arch.data import lmdb_store
from wrcan_arch.data.lmdb_store import StoreWriter
from wrcan_arch.errors import InputError


def choose_validation(sizes: Mapping[str, int], fraction: float, seed: int) -> set[str]:
    """Scenes drawn at random, with about `fraction` of all pairs where none is large: one at least, and never all.

    A scene's place in the draw comes from its own name. So where a few are added, those that the weights were trained
    on before stay on the side of training.

    Args:
        sizes: how many pairs each scene has; two scenes or more.
        fraction: between 0 and 1, without either.
        seed: of the draw.
    """
    room = fraction * sum(sizes.values())
    chosen, rest = set(), []
    for name in sorted(sizes, key=lambda name: hashlib.sha256(f'{seed} {name}'.encode()).digest()):
        if sizes[name] <= room:
            chosen.add(name)
            room -= sizes[name]
        else:
            rest.append(name)
    smallest = min(rest, key=lambda name: sizes[name])
    if not chosen or (len(rest) > 1 and sizes[smallest] <= 2 * room):  # the nearest, not what is below
        chosen.add(smallest)
    return chosen


def split_scenes(sizes: Mapping[str, int], fraction: float | None, seed: int) -> dict[str, str]:
    """What comes after OUT in the name of each scene's stores: '_train' or '_val', or '' without a split."""
    if fraction is None:
        return dict.fromkeys(sizes, '')
    if len(sizes) == 1:
        raise InputError(f'--val {fraction}: there is only one scene, {next(iter(sizes))}; give more, or no --val')
    validation = choose_validation(sizes, fraction, seed)
    return {scene: '_val' if scene in validation else '_train' for scene in sizes}


@contextmanager
def written_together(kinds: Mapping[str, str], *, resume: bool = False) -> Iterator[dict[str, StoreWriter]]:
    """Stores that get their names together or not at all, by what they are called before .lmdb.

    Args:
        kinds: of each, as StoreWriter's.
        resume: as StoreWriter's.
    """
    with ExitStack() as stack:
        stores = {
            name: stack.enter_context(StoreWriter(f'{name}.lmdb', kind=kind, resume=resume))
            for name, kind in kinds.items()
        }
        yield stores
        for store in stores.values():
            store.complete()


class PairWriter:
    """Writes pairs into the stores of their sides, and into folders where --files asks for them.

    Both have temporary names until all went well, and those that a stopped run left are gone on with.
    """

    def __init__(self, out: Path, sides: Mapping[str, str], stores: Mapping[str, StoreWriter], files: bool) -> None:
        self.made: Counter[str] = Counter()  # of each scene; it may be less than was planned
        self.kept: Counter[str] = Counter()  # of these, what an earlier run has made
        self._out, self._sides, self._stores = out, sides, stores
        self._folders = {name: Path(f'{name}.partial') for name in stores if files}
        self._files: set[Path] = set()
        self._waiting = 0  # bytes
        for folder in self._folders.values():
            folder.mkdir(parents=True, exist_ok=True)

    def _names(self, scene: str) -> dict[str, str]:
        """The stores that the scene's pairs go into, by role."""
        return {role: f'{self._out}{self._sides[scene]}_{role}' for role in FILE_ENDINGS}

    def _file(self, name: str, key: str, role: str) -> Path:
        return self._folders[name] / f'{key}{FILE_ENDINGS[role]}'

    def keep(self, scene: str, key: str, source: str) -> bool:
        """Keeps the pair if an earlier run has made it from the same source; returns whether it has."""
        names = self._names(scene)
        for role, name in names.items():
            record = self._stores[name].resumed.get(key)
            if record is None or record.source != source:
                return False
            if self._folders:
                file = self._file(name, key, role)
                if not file.is_file() or zlib.crc32(file.read_bytes()) != record.crc32:
                    return False
        for role, name in names.items():
            self._stores[name].keep(key)
            if self._folders:
                self._files.add(self._file(name, key, role))
        self.made[scene] += 1
        self.kept[scene] += 1
        return True

    def put(self, scene: str, key: str, pair: dict[str, bytes], shape: tuple, source: str) -> None:
        for role, name in self._names(scene).items():
            self._stores[name].put(key, FILE_ENDINGS[role], pair[role], shape, source)
            if self._folders:
                file = self._file(name, key, role)
                file.write_bytes(pair[role])
                self._files.add(file)
        self.made[scene] += 1
        self._waiting += sum(map(len, pair.values()))
        if self._waiting >= lmdb_store.BATCH_SIZE:
            self.flush()

    def flush(self) -> None:
        """Write both images of each pair to the disk: one alone is of no use to the next run."""
        if self.made:
            for store in self._stores.values():
                store.flush()
        self._waiting = 0

    def remove_empty_folders(self) -> None:
        for folder in self._folders.values():
            with suppress(OSError):
                folder.rmdir()

    def name_folders(self) -> None:
        """Give the folders their names, without files of an earlier run that are not of this one."""
        for name, folder in self._folders.items():
            for file in folder.iterdir():
                if file not in self._files:
                    file.unlink()
            folder.rename(name)


@contextmanager
def pair_stores(arguments: argparse.Namespace, sizes: Mapping[str, int], noun: str) -> Iterator[PairWriter]:
    """Gives a writer for the pairs of all scenes, and says at the end what was written.

    Args:
        arguments: with the options of `run`.
        sizes: how many pairs each scene has.
        noun: what a scene is called in the report: 'photograph'.
    """
    sides = split_scenes(sizes, arguments.val, arguments.seed)
    with written_together(dict.fromkeys(store_names(arguments), 'encoded'), resume=True) as stores:
        writer = PairWriter(arguments.out, sides, stores, arguments.files)
        try:
            yield writer
            writer.flush()
        except BaseException:
            with suppress(InputError):  # of a full disk
                writer.flush()
            writer.remove_empty_folders()
            raise
    writer.name_folders()
    for side in sorted(set(sides.values())):
        here = [scene for scene in writer.made if sides[scene] == side]
        count, kept = (sum(of[scene] for scene in here) for of in (writer.made, writer.kept))
        earlier = f', {kept} of them from an earlier run' if kept else ''
        print(f'{arguments.out}{side}: {counted(count, "pair")} ({len(here)} of {counted(len(sizes), noun)}){earlier}')
