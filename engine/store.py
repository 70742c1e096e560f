"""The store: episodes into shards, one writer per run, or one for each of its engine processes.

Rule: `append` returns once the episode is durable, never before; appends that wait together share
one block and one fsync. Encoding, compression and I/O run on one thread of the store's own, off
the event loop. Reading is in `reader.py` and needs no store.
"""

import asyncio
import queue
import threading
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Final, Self

import msgspec

from headrace.aio import in_thread, run_shielded
from headrace.configs.models import StoreConfig
from headrace.engine import frames, shards
from headrace.engine.locks import FolderLock
from headrace.engine.reader import SHARDS, episodes_of, list_shards
from headrace.engine.resume import is_owed
from headrace.errors import ContractError, HeadraceError, StoreError
from headrace.types import Episode, Record

BLOCK_BYTES: Final = 4 << 20
"""A block takes no further record once it is this large: what a reader holds in memory."""


class StoreSnapshot(Record, frozen=True, kw_only=True):
    """What a store is doing and has done."""

    waiting: int
    """Appends that are not durable yet."""
    records: int
    raw_bytes: int
    stored_bytes: int
    commits: int
    """Blocks written; each is one fsync."""
    shard: str | None
    torn_bytes: int
    """Cut from what a dead writer left, when this store was opened."""
    failed: str | None


@dataclass(slots=True)
class _Waiting:
    episode: Episode
    done: asyncio.Future[None]
    loop: asyncio.AbstractEventLoop
    data: bytes = b""


class Store:
    """Appends episodes to the shards of one run. An async context manager.

    After a `StoreError` every further append is refused with it: whether a failed fsync kept
    anything cannot be known, so the run stops and the next one recovers. Leaving the block raises
    it only if no append has.
    """

    def __init__(
        self,
        run: Path,
        config: StoreConfig | None = None,
        *,
        max_waiting: int = 1024,
        writer: int = 0,
    ) -> None:
        """`writer`: 0 alone; any other is one of several, whose caller holds `SharedShards`."""
        self._folder = run / SHARDS
        self._config = config or StoreConfig()
        self._queue: queue.SimpleQueue[_Waiting | None] = queue.SimpleQueue()
        self._room = asyncio.Semaphore(max_waiting)
        self._thread = threading.Thread(target=self._work, name="headrace-store", daemon=True)
        self._lock: FolderLock | None = None
        self._named = writer
        self._writer: shards.ShardWriter | None = None
        self._encoder = msgspec.msgpack.Encoder()
        self._number = 0
        self._open = False
        self._waiting = 0
        self._records = 0
        self._raw_bytes = 0
        self._stored_bytes = 0
        self._commits = 0
        self._torn_bytes = 0
        self._failed: str | None = None
        self._told = False
        """An append has raised what `_failed` says."""

    async def __aenter__(self) -> Self:
        await in_thread(self._recover)
        self._thread.start()
        self._open = True
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._open = False
        self._queue.put(None)
        try:
            await run_shielded(in_thread(self._thread.join))
        finally:
            if self._lock is not None:
                self._lock.close()
        if self._failed is not None and not self._told and error is None:
            raise StoreError(self._failed)  # sealing failed: nothing is lost, but say so

    def snapshot(self) -> StoreSnapshot:
        return StoreSnapshot(
            waiting=self._waiting,
            records=self._records,
            raw_bytes=self._raw_bytes,
            stored_bytes=self._stored_bytes,
            commits=self._commits,
            shard=None if self._writer is None else self._writer.path.name,
            torn_bytes=self._torn_bytes,
            failed=self._failed,
        )

    def __repr__(self) -> str:
        return f"Store({self.snapshot()})"

    async def append(self, episode: Episode) -> None:
        """Make `episode` durable. Raises `StoreError`.

        Cancelling stops the wait, not the write: the record may still become durable.
        """
        async with self._room:
            if not self._open:
                raise ContractError("append to a store outside its block")
            if self._failed is not None:
                self._told = True
                raise StoreError(self._failed)
            loop = asyncio.get_running_loop()
            waiting = _Waiting(episode, loop.create_future(), loop)
            self._waiting += 1
            try:
                self._queue.put(waiting)
                await waiting.done
            finally:
                self._waiting -= 1
                self._told = self._told or self._failed is not None

    # --- below: on the store's thread -------------------------------------------------------

    def _recover(self) -> None:
        if self._named:
            return
        self._lock, self._number, self._torn_bytes = _lock(self._folder, self._config)

    def _work(self) -> None:
        ending = False
        while not ending:
            batch, ending = self._next_batch()
            if batch:
                self._commit(batch)
        if self._failed is None:
            self._seal()
        elif self._writer is not None:
            self._writer.close()

    def _next_batch(self) -> tuple[list[_Waiting], bool]:
        """All that waits now, up to one block; never waits for more than the first."""
        batch: list[_Waiting] = []
        size = 0
        item = self._queue.get()
        while item is not None:
            if self._encode(item):
                batch.append(item)
                size += len(item.data)
            if size >= BLOCK_BYTES:
                return batch, False
            try:
                item = self._queue.get_nowait()
            except queue.Empty:
                return batch, False
        return batch, True

    def _encode(self, item: _Waiting) -> bool:
        """False if this episode cannot be a record; its append alone fails."""
        try:
            item.data = self._encoder.encode(item.episode)
        except (TypeError, ValueError, OverflowError, msgspec.MsgspecError) as e:
            _settle([item], StoreError(f"episode {item.episode.id} cannot be encoded: {e}"))
            return False
        if len(item.data) > frames.MAX_RAW_BYTES - BLOCK_BYTES:
            _settle([item], StoreError(f"episode {item.episode.id} is over 1 GiB"))
            return False
        return True

    def _commit(self, batch: list[_Waiting]) -> None:
        if self._failed is not None:
            _settle(batch, StoreError(self._failed))
            return
        try:
            self._write(batch)
        except Exception as e:  # the capture point of the store's thread: nobody waits for ever
            self._failed = str(e) if isinstance(e, HeadraceError) else f"{type(e).__name__}: {e}"
            _settle(batch, StoreError(self._failed))
        else:
            _settle(batch, None)
            self._seal_if_full()

    def _write(self, batch: list[_Waiting]) -> None:
        if self._writer is None:
            self._writer = self._begin()
        records = [(item.episode.id, is_owed(item.episode), item.data) for item in batch]
        self._stored_bytes += self._writer.append(records)
        self._raw_bytes += sum(len(item.data) for item in batch)
        self._records += len(batch)
        self._commits += 1

    def _begin(self) -> shards.ShardWriter:
        if self._named:
            with shards.next_number(self._folder) as number:
                return self._shard(number)
        number, self._number = self._number, self._number + 1
        return self._shard(number)

    def _shard(self, number: int) -> shards.ShardWriter:
        config = self._config
        return shards.ShardWriter(
            self._folder,
            number,
            level=config.compression_level,
            fsync=config.fsync,
            writer=self._named,
        )

    def _seal_if_full(self) -> None:
        if self._writer is not None and self._writer.offset >= self._config.shard_mb << 20:
            self._seal()

    def _seal(self) -> None:
        if self._writer is None:
            return
        writer, self._writer = self._writer, None
        try:
            writer.seal()
        except Exception as e:  # as above: an append that comes later must hear of it
            self._failed = str(e) if isinstance(e, HeadraceError) else f"{type(e).__name__}: {e}"


class SharedShards:
    """The shards of a run that several writers share: locked, and free of torn tails at the start.

    Held by the process that starts the writers. An async context manager.
    """

    def __init__(self, run: Path, config: StoreConfig) -> None:
        self._folder = run / SHARDS
        self._config = config
        self._held: FolderLock | None = None
        self._first = 0

    async def __aenter__(self) -> Self:
        self._held, self._first, _ = await in_thread(_lock, self._folder, self._config)
        return self

    async def __aexit__(self, *exc: object) -> None:
        if self._held is not None:
            self._held.close()

    @property
    def lock(self) -> int:
        """Its descriptor, for the writers to hold too: nobody cuts what one still writes."""
        assert self._held is not None, "inside the block"
        return self._held.fileno()

    async def left_by(self, writer: int, ids: Collection[str]) -> list[Episode]:
        """Those of `ids` that a writer made durable since this was opened. It is dead: its shards
        are sealed. Raises `StoreError` and `RunFolderError`.
        """
        return await in_thread(self._left_by, writer, ids)

    def _left_by(self, writer: int, ids: Collection[str]) -> list[Episode]:
        its = [
            path
            for path in list_shards(self._folder)
            if shards.shard_writer(path) == writer and shards.shard_number(path) >= self._first
        ]
        for path in its:
            config = self._config  # kept: another writer may have the next number
            shards.recover(path, level=config.compression_level, fsync=config.fsync, keep=True)
        return [episode for path in its for episode in episodes_of(path) if episode.id in ids]


def _lock(folder: Path, config: StoreConfig) -> tuple[FolderLock, int, int]:
    """Lock the shards and cut their torn ends: the lock, the next number, the bytes cut."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        shards.sync_folder(folder.parent)
        lock = FolderLock(folder / "lock")
    except OSError as e:
        raise StoreError(f"{folder} cannot be written: {e.strerror or e}") from e
    try:
        paths = list_shards(folder)
        torn = shards.may_be_torn(paths)
        following = cut = 0
        for path in reversed(paths):
            if path in torn:
                cut += shards.recover(
                    path, level=config.compression_level, fsync=config.fsync, keep=following > 0
                )
            if path.exists():
                following = max(following, shards.shard_number(path) + 1)
    except BaseException:
        lock.close()
        raise
    return lock, following, cut


def _settle(batch: Sequence[_Waiting], error: StoreError | None) -> None:
    """Wake the appends of a batch, in one call into their loop."""
    try:
        batch[0].loop.call_soon_threadsafe(_wake, batch, error)
    except RuntimeError:
        return  # the loop is closed: nobody waits any more


def _wake(batch: Sequence[_Waiting], error: StoreError | None) -> None:
    for item in batch:
        if item.done.done():
            continue
        if error is None:
            item.done.set_result(None)
        else:
            item.done.set_exception(StoreError(str(error)))
