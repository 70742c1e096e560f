"""Reading a run's episodes, in any process, while the run goes on.

Rules: memory holds one block, however long the run; what is read is a prefix of what was
acknowledged when the reading began or later; damage is an error with shard and offset unless the
caller takes it through `on_damage` and reads on. Nothing here writes.
"""

import os
from collections import OrderedDict
from collections.abc import Callable, Collection, Iterator, Sequence
from pathlib import Path
from typing import Final, NamedTuple

import msgspec
import zstandard

from headrace.engine import frames, shards
from headrace.engine.frames import Entry, IndexedBlock
from headrace.engine.shards import Block, Damage, End
from headrace.errors import RunFolderError
from headrace.types import Episode

SHARDS: Final = "shards"
"""The folder of a run that holds its shards."""

LOOKS: Final = 3
"""A listing may miss a shard that was made while it was read, and have the next one."""

OnDamage = Callable[[Damage], None]


def read_episodes(run: Path, *, on_damage: OnDamage | None = None) -> Iterator[Episode]:
    """Every stored episode in the order of storing, superseded ones included.

    Raises `RunFolderError` at the first damage, or calls `on_damage` and reads what follows it.
    """
    decoder = msgspec.msgpack.Decoder(Episode)
    for path, block in _blocks(run, on_damage, payloads=True):
        for entry, data in _records(block):
            yield _decode(decoder, path, block.offset, entry, data)


def episodes_of(shard: Path) -> Iterator[Episode]:
    """Every episode of one shard. Raises `RunFolderError` at the first damage."""
    decoder = msgspec.msgpack.Decoder(Episode)
    for path, block in _intact([shard], [shard], None, payloads=True):
        for entry, data in _records(block):
            yield _decode(decoder, path, block.offset, entry, data)


def latest_episodes(run: Path, *, on_damage: OnDamage | None = None) -> Iterator[Episode]:
    """The newest record of every id, in the order of storing.

    An episode owed after an infrastructure failure is stored again under its id; the newer record
    is the one that counts. Keeps the ids in memory, not the episodes.
    """
    for _, episode in latest_placed(run, on_damage=on_damage):
        yield episode


class Place(NamedTuple):
    """Where a record lies. Stays true: shards only grow."""

    shard: int
    """Number of the shard."""
    offset: int
    """Of its block in the shard."""
    position: int
    """In the block."""


def latest_placed(
    run: Path, *, on_damage: OnDamage | None = None
) -> Iterator[tuple[Place, Episode]]:
    """`latest_episodes`, each with where it lies."""
    newest: dict[str, Place] = {}
    for path, block in _blocks(run, _pass_over, payloads=False):
        number = shards.shard_number(path)
        for position, entry in enumerate(block.entries):
            newest[entry.id] = Place(number, block.offset, position)
    decoder = msgspec.msgpack.Decoder(Episode)
    for path, block in _blocks(run, on_damage, payloads=True):
        number = shards.shard_number(path)
        for position, (entry, data) in enumerate(_records(block)):
            place = Place(number, block.offset, position)
            if newest.get(entry.id) == place:
                yield place, _decode(decoder, path, block.offset, entry, data)


def placed(path: Path, block: Block) -> Iterator[tuple[Place, Episode]]:
    """Every record of a block of the shard at `path`, which is intact, with where it lies."""
    decoder = msgspec.msgpack.Decoder(Episode)
    number = shards.shard_number(path)
    for position, (entry, data) in enumerate(_records(block)):
        place = Place(number, block.offset, position)
        yield place, _decode(decoder, path, block.offset, entry, data)


class Fetcher:
    """Single records of one run by their place; keeps the last blocks, for siblings lie close.

    Holds at most `blocks` unpacked blocks, each of some megabytes.
    """

    def __init__(self, run: Path, *, blocks: int = 16) -> None:
        self._paths = {shards.shard_number(path): path for path in list_shards(run / SHARDS)}
        self._run = run
        self._most = blocks
        self._kept: OrderedDict[tuple[int, int], list[tuple[Entry, memoryview]]] = OrderedDict()
        self._decoder = msgspec.msgpack.Decoder(Episode)

    def get(self, place: Place) -> Episode:
        """The episode there. Raises `RunFolderError` if its block is damaged."""
        key = place.shard, place.offset
        records = self._kept.get(key)
        if records is None:
            records = self._kept[key] = self._read(place)
            if len(self._kept) > self._most:
                self._kept.popitem(last=False)
        else:
            self._kept.move_to_end(key)
        entry, data = records[place.position]
        return _decode(self._decoder, self._path(place.shard), place.offset, entry, data)

    def _path(self, number: int) -> Path:
        if number not in self._paths:  # begun since
            self._paths = {shards.shard_number(p): p for p in list_shards(self._run / SHARDS)}
        return self._paths[number]

    def _read(self, place: Place) -> list[tuple[Entry, memoryview]]:
        path = self._path(place.shard)
        found = shards.read_block(path, place.offset)
        if found is None:
            raise RunFolderError(
                f"{path}: damaged block at byte {place.offset}; restore it from a copy"
            )
        return list(_records(found))


def iter_ids(run: Path, *, on_damage: OnDamage | None = None) -> Iterator[str]:
    """The id of every stored record, from the directories alone."""
    for _, block in _blocks(run, on_damage, payloads=False):
        for entry in block.entries:
            yield entry.id


def finished_ids(run: Path, *, on_damage: OnDamage | None = None) -> set[str]:
    """The ids whose newest readable record counts; the others are owed.

    Every stored byte is checked on the way (about a second per gigabyte), so that an episode that
    can no longer be read is owed again.
    """
    finished: set[str] = set()
    for _, block in _blocks(run, on_damage, payloads=True):
        for entry in block.entries:
            if entry.owed:
                finished.discard(entry.id)
            else:
                finished.add(entry.id)
    return finished


def find(run: Path, episode: str) -> Episode | None:
    """The newest record of an id, through the index of each sealed shard; None if there is none.

    Raises `RunFolderError` if its block is damaged.
    """
    paths = list_shards(run / SHARDS)
    torn = shards.may_be_torn(paths)
    for path in reversed(paths):
        for block in reversed(_entries(path, last=path in torn)):
            for position in reversed(range(len(block.entries))):
                if block.entries[position].id == episode:
                    return _read_one(path, block, position)
    return None


def find_one(run: Path, start: str, *, on_damage: OnDamage) -> Episode:
    """The newest record of the one id that is `start`, or that begins with it.

    Raises `RunFolderError` when no id or more than one does.
    """
    ids = {key for key in iter_ids(run, on_damage=on_damage) if key.startswith(start)}
    if len(ids) > 1 and start not in ids:
        shown = ", ".join(sorted(ids)[:5]) + (", ..." if len(ids) > 5 else "")
        raise RunFolderError(f"{run}: {len(ids)} episodes begin with {start}: {shown}; give more")
    episode = find(run, start if start in ids else ids.pop()) if ids else None
    if episode is None:
        raise RunFolderError(
            f"{run} has no episode {start}; `headrace show {run}` lists those it has"
        )
    return episode


def list_shards(folder: Path) -> list[Path]:
    """The shards of a folder in order. Raises `RunFolderError` for a gap or a foreign name, and
    for a folder that may not be listed: it is not an empty one.
    """
    if folder.is_dir() and not os.access(folder, os.R_OK | os.X_OK):
        raise RunFolderError(f"{folder}: expected a folder that may be read, found no access")
    for _ in range(LOOKS):
        paths = sorted(folder.glob(f"*{shards.SUFFIX}"), key=shards.shard_number)
        gaps = [n for n, path in enumerate(paths) if shards.shard_number(path) != n]
        if not gaps:
            return paths
    raise RunFolderError(
        f"{folder / shards.shard_name(gaps[0])} is missing, but {paths[gaps[0]].name} is there;"
        " restore it from a copy"
    )


def _blocks(
    run: Path, on_damage: OnDamage | None, *, payloads: bool
) -> Iterator[tuple[Path, Block]]:
    paths = list_shards(run / SHARDS)
    yield from _intact(paths, shards.may_be_torn(paths), on_damage, payloads=payloads)


def _intact(
    paths: Sequence[Path], torn: Collection[Path], on_damage: OnDamage | None, *, payloads: bool
) -> Iterator[tuple[Path, Block]]:
    for path in paths:
        for item in shards.scan(path, last=path in torn, payloads=payloads):
            match item:
                case Block():
                    yield path, item
                case Damage():
                    report(item, on_damage)
                case End():
                    pass


def report(damage: Damage, on_damage: OnDamage | None) -> None:
    """Tell of a damage, or raise it as `RunFolderError` where nobody is to be told."""
    if on_damage is None:
        raise RunFolderError(
            f"{damage}. Restore the file from a copy, or go on without those bytes:"
            " what is before and after them is readable"
        )
    on_damage(damage)


def _pass_over(damage: Damage) -> None:
    """For a first pass whose second pass reports."""


def _entries(path: Path, *, last: bool) -> tuple[IndexedBlock, ...]:
    """The directories of a shard: from its index, or by a scan where there is none."""
    index = shards.read_index(path)
    if index is not None:
        return index
    items = shards.scan(path, last=last, payloads=False)
    return tuple(item.indexed() for item in items if isinstance(item, Block))


def _records(block: Block) -> Iterator[tuple[Entry, memoryview]]:
    raw = memoryview(
        frames.unpack_payload(block.header, block.payload, zstandard.ZstdDecompressor())
    )
    start = 0
    for entry in block.entries:
        yield entry, raw[start : start + entry.length]
        start += entry.length


def _read_one(path: Path, block: IndexedBlock, position: int) -> Episode:
    found = shards.read_block(path, block.offset)
    if found is None:
        raise RunFolderError(
            f"{path}: damaged block at byte {block.offset}; restore it from a copy"
        )
    entry, data = list(_records(found))[position]
    return _decode(msgspec.msgpack.Decoder(Episode), path, block.offset, entry, data)


def _decode(
    decoder: "msgspec.msgpack.Decoder[Episode]",
    path: Path,
    offset: int,
    entry: Entry,
    data: memoryview,
) -> Episode:
    try:
        return decoder.decode(data)
    except msgspec.DecodeError as e:
        raise RunFolderError(
            f"{path}: the record of episode {entry.id} at byte {offset} is not an episode: {e}"
        ) from e
