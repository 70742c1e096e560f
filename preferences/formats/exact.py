"""The exact format: records of `preferences/exact.py` in shards, in a folder for each split.

Rules: the frames are those of a run's shards (`engine/shards.py`), for they are checked byte by
byte and read with one block in memory; the records are not, and each says so itself. A folder
without `run.json` and without `shards/` is no run.

Nothing is synced: a power cut may lose what was written in its last seconds, and it can be made
again.
"""

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Final, Generic, Self

import msgspec

from headrace.engine.shards import ShardWriter
from headrace.preferences.exact import (
    Exact,
    ExactEpisode,
    ExactPair,
    exact_episode,
    exact_pair,
    streams_of,
)
from headrace.preferences.formats.base import Context, Item, Selected
from headrace.preferences.pair import Pairing

SHARD_BYTES: Final = 256 << 20
BLOCK_BYTES: Final = 4 << 20
"""A block takes no further record once it is this large: what a reader holds in memory."""
LEVEL: Final = 1
"""Of zstd. Log-probabilities hardly shrink at any level, and ids hardly more at a higher one."""

Stored = tuple[str, bool, bytes]


class ExactWriter(Generic[Item]):
    """See `Writer`. An item without a token stream is not held."""

    def __init__(
        self,
        folder: Path,
        record: Callable[[Item], tuple[str, Exact] | None],
        *,
        shard_bytes: int = SHARD_BYTES,
    ) -> None:
        """`record`: an item's id and record; None: it has no tokens."""
        self._folder = folder
        self._record = record
        self._shard_bytes = shard_bytes
        self._encoder = msgspec.msgpack.Encoder()
        self._splits: dict[str, _Shards] = {}
        self._thread = ThreadPoolExecutor(1, "headrace-exact")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        with ExitStack() as stack:
            stack.callback(self._thread.shutdown)
            for split in self._splits.values():
                stack.callback(split.close, seal=error is None)

    def add(self, split: str, item: Item) -> int:
        """See `Writer.add`. Raises `StoreError`, of an earlier item too."""
        made = self._record(item)
        if made is None:
            return 0
        id, record = made
        self._shards(split).add((id, False, self._encoder.encode(record)))
        return 1

    def _shards(self, split: str) -> "_Shards":
        if split not in self._splits:
            folder = self._folder / split
            folder.mkdir()
            self._splits[split] = _Shards(folder, self._thread, self._shard_bytes)
        return self._splits[split]


class _Shards:
    """The shards of one split: a block is compressed and written while the next one is gathered."""

    def __init__(self, folder: Path, thread: ThreadPoolExecutor, shard_bytes: int) -> None:
        self._folder = folder
        self._shard_bytes = shard_bytes
        self._thread = thread
        self._block: list[Stored] = []
        self._bytes = 0
        self._under_way: Future[None] | None = None
        self._number = 0
        self._writer: ShardWriter | None = None

    def add(self, record: Stored) -> None:
        self._block.append(record)
        self._bytes += len(record[2])
        if self._bytes >= BLOCK_BYTES:
            self._flush()

    def close(self, *, seal: bool) -> None:
        """Write what is gathered and seal, or only let go."""
        try:
            if seal:
                self._flush()
            self._wait()
        finally:
            self._thread.submit(self._end, seal).result()

    def _flush(self) -> None:
        """Hand the block over; waits until the one before is written."""
        self._wait()
        block, self._block, self._bytes = self._block, [], 0
        if block:
            self._under_way = self._thread.submit(self._write, block)

    def _wait(self) -> None:
        under_way, self._under_way = self._under_way, None
        if under_way is not None:
            under_way.result()

    # --- below: on the thread ---------------------------------------------------------------

    def _write(self, block: list[Stored]) -> None:
        if self._writer is None:
            self._writer = ShardWriter(self._folder, self._number, level=LEVEL, fsync=False)
        self._writer.append(block)
        if self._writer.offset >= self._shard_bytes:
            self._end(seal=True)

    def _end(self, seal: bool) -> None:
        writer, self._writer = self._writer, None
        if writer is not None:
            self._number += 1
            writer.seal() if seal else writer.close()


@dataclass(frozen=True)
class ExactTrajectories:
    """A `TrajectoryFormat`."""

    name: str = "exact"
    about: str = "token ids, loss mask and log-probabilities as stored, in msgspec shards"
    needs_tokens: bool = True
    writes_tokens: bool = True

    def open(self, folder: Path, context: Context) -> ExactWriter[Selected]:
        """See `TrajectoryFormat.open`."""
        return ExactWriter(folder, partial(_episode, context))


@dataclass(frozen=True)
class ExactPairs:
    """A `PairFormat`."""

    name: str = "exact"
    about: str = "both token streams as stored, turn spans and DMPO weights, in msgspec shards"
    needs_tokens: bool = True
    needs_shared_prompt: bool = False

    def open(self, folder: Path, context: Context) -> ExactWriter[Pairing]:
        """See `PairFormat.open`."""
        return ExactWriter(folder, partial(_pair, context))


def record_of_selected(context: Context, item: Selected) -> ExactEpisode:
    """The record of a selected trajectory; without streams where it has no tokens."""
    at = item.attempt.run
    return exact_episode(
        item.episode, run=context.runs[at], model=context.models[at], gamma=context.gamma
    )


def record_of_pairing(context: Context, item: Pairing) -> ExactPair | None:
    """The record of a pair; None if a side has no tokens."""
    if not (streams_of(item.chosen) and streams_of(item.rejected)):
        return None
    models = dict(zip(context.runs, context.models, strict=True))
    return exact_pair(item, models=models, gamma=context.gamma)


def _episode(context: Context, item: Selected) -> tuple[str, Exact] | None:
    record = record_of_selected(context, item)
    return (record.id, record) if record.segments else None


def _pair(context: Context, item: Pairing) -> tuple[str, Exact] | None:
    record = record_of_pairing(context, item)
    return None if record is None else (record.pair.id, record)


EPISODES = ExactTrajectories()
PAIRS = ExactPairs()
