"""Write pairs into LMDB stores that are split by group, named together and resumed after a stop.

A group is what stays on one side of a split: a photograph with all its blurred copies, or a video; if there is only
one video, what lies between two of its cuts.
"""

import argparse
import hashlib
import zlib
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from pairs import FILE_ENDINGS
from wrcan_arch.data import store_writer
from wrcan_arch.data.store_writer import StoreWriter, partial_of
from wrcan_arch.errors import InputError
from wrcan_arch.system.files import disk_errors_as_input_errors
from wrcan_arch.system.terminal import counted, say


def choose_validation(pair_counts: Mapping[str, int], fraction: float, seed: int) -> set[str]:
    """Draw groups at random with about `fraction` of all pairs, unless groups are large; at least one, never all.

    A group's place in the draw depends on its name and the seed alone. So if a few are added, hardly any other changes
    sides, and weights from before are hardly validated on what they were trained on.

    Args:
        pair_counts: how many pairs each group has; two groups or more.
        fraction: above 0 and below 1.
        seed: of the draw.
    """
    room = fraction * sum(pair_counts.values())
    chosen, rest = set(), []
    for name in sorted(pair_counts, key=lambda name: hashlib.sha256(f'{seed} {name}'.encode()).digest()):
        if pair_counts[name] <= room:
            chosen.add(name)
            room -= pair_counts[name]
        else:
            rest.append(name)
    smallest = min(rest, key=lambda name: pair_counts[name])
    if not chosen or (len(rest) > 1 and pair_counts[smallest] <= 2 * room):  # above `fraction`, but nearer to it
        chosen.add(smallest)
    return chosen


def sides_of_groups(pair_counts: Mapping[str, int], noun: str, fraction: float | None, seed: int) -> dict[str, str]:
    """Return what follows OUT in the name of each group's stores: '_train' or '_val', or '' without a split."""
    if fraction is None:
        return dict.fromkeys(pair_counts, '')
    if len(pair_counts) == 1:
        only = next(iter(pair_counts))
        raise InputError(f'--val {fraction}: there is only one {noun}, {only}; give more, or no --val')
    validation = choose_validation(pair_counts, fraction, seed)
    return {group: '_val' if group in validation else '_train' for group in pair_counts}


@contextmanager
def written_together(kinds: Mapping[str, str], *, resume: bool = False) -> Iterator[dict[str, StoreWriter]]:
    """Yield writers of stores, by name without .lmdb; the stores get their names together or not at all.

    Args:
        kinds: each store's `kind`, as StoreWriter takes it.
        resume: as StoreWriter takes it.
    """
    with ExitStack() as stack:
        stores = {
            name: stack.enter_context(StoreWriter(f'{name}.lmdb', kind=kind, resume=resume))
            for name, kind in kinds.items()
        }
        yield stores
        for store in stores.values():
            store.complete()


def store_names(arguments: argparse.Namespace) -> list[str]:
    """Return the names of the stores without .lmdb, which are also those of the folders of --files."""
    sides = [''] if arguments.val is None else ['_train', '_val']
    return [f'{arguments.out}{side}_{role}' for side in sides for role in FILE_ENDINGS]


class PairWriter:
    """Writes pairs into the stores of their sides, and with --files into folders too.

    Both have temporary names until everything is written; the next run resumes those that a stopped one left.
    """

    def __init__(self, out: Path, sides: Mapping[str, str], stores: Mapping[str, StoreWriter], files: bool) -> None:
        self.made: Counter[str] = Counter()  # pairs of each group, perhaps fewer than planned
        self.kept: Counter[str] = Counter()  # those of them that an earlier run made
        self._out, self._sides, self._stores = out, sides, stores
        self._folders = {name: partial_of(Path(name)) for name in stores if files}
        self._files: set[Path | None] = set()  # of this run
        self._waiting = 0  # bytes
        for folder in self._folders.values():
            folder.mkdir(parents=True, exist_ok=True)

    def _places(self, group: str, key: str) -> list[tuple[str, StoreWriter, Path | None]]:
        """Return where a pair's two images go: role, store, and file with --files."""
        names = {role: f'{self._out}{self._sides[group]}_{role}' for role in FILE_ENDINGS}
        return [
            (role, self._stores[name], self._folders[name] / f'{key}{FILE_ENDINGS[role]}' if self._folders else None)
            for role, name in names.items()
        ]

    def keep(self, group: str, key: str, source: str) -> bool:
        """Keep the pair and return True if an earlier run made it from the same source and its files are intact."""
        places = self._places(group, key)
        for _, store, file in places:
            record = store.resumed.get(key)
            if record is None or record.source != source:
                return False
            if file and not (file.is_file() and zlib.crc32(file.read_bytes()) == record.crc32):
                return False
        for _, store, file in places:
            store.keep(key)
            self._files.add(file)
        self.made[group] += 1
        self.kept[group] += 1
        return True

    def put(self, group: str, key: str, pair: dict[str, bytes], shape: tuple, source: str) -> None:
        for role, store, file in self._places(group, key):
            store.put(key, FILE_ENDINGS[role], pair[role], shape, source)
            if file:
                with disk_errors_as_input_errors(file):
                    file.write_bytes(pair[role])
            self._files.add(file)
        self.made[group] += 1
        self._waiting += sum(map(len, pair.values()))
        if self._waiting >= store_writer.BATCH_SIZE:
            self.flush()

    def flush(self) -> None:
        """Write what waits to the disk, in all stores at once: half a pair is of no use to the next run."""
        for store in self._stores.values():
            store.flush()
        self._waiting = 0

    def complete(self) -> None:
        """Complete the stores, remove files that are not this run's, then name the folders.

        `written_together` names the stores last, so all that can fail comes before the first name is given.
        """
        for store in self._stores.values():
            store.complete()
        for folder in self._folders.values():
            for file in {*folder.iterdir()}.difference(self._files):
                file.unlink()
        for name, folder in self._folders.items():
            folder.rename(name)

    def stop(self) -> None:
        """Leave to the next run what is whole."""
        with suppress(InputError):  # a full disk, say
            self.flush()
        for folder in self._folders.values():
            with suppress(OSError):  # a folder with files stays
                folder.rmdir()


@contextmanager
def pair_stores(arguments: argparse.Namespace, pair_counts: Mapping[str, int], noun: str) -> Iterator[PairWriter]:
    """Yield a writer for the pairs of all groups; at the end name what was written and print how much it is.

    Args:
        arguments: with the options that `pair_script.run` adds.
        pair_counts: how many pairs each group has.
        noun: what a group is called in the report, such as 'photograph'.
    """
    sides = sides_of_groups(pair_counts, noun, arguments.val, arguments.seed)
    with written_together(dict.fromkeys(store_names(arguments), 'encoded'), resume=True) as stores:
        writer = PairWriter(arguments.out, sides, stores, arguments.files)
        try:
            yield writer
            writer.complete()
        except BaseException:
            writer.stop()
            raise
    groups = counted(len(pair_counts), noun)
    for side in sorted(set(sides.values())):
        here = [group for group in writer.made if sides[group] == side]
        count, kept = (sum(of[group] for group in here) for of in (writer.made, writer.kept))
        earlier = f', {kept} of them from an earlier run' if kept else ''
        say(f'{arguments.out}{side}: {counted(count, "pair")} ({len(here)} of {groups}){earlier}')
