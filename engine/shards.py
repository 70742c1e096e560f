"""One shard: written by one writer, scanned by anyone.

Rules: a shard only grows; what does not check out at its end is a torn tail and is cut, anywhere
else it is `Damage` with shard and offset, and what is before and after stays readable. The shards
of a folder have one row of numbers, in the order in which they were begun, whoever writes them.
Nothing here knows what a record means (`store.py`) or how bytes are laid out (`frames.py`).
"""

import fcntl
import os
import re
import secrets
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Final

import zstandard

from headrace.engine import frames
from headrace.engine.frames import Entry, FrameHeader, IndexedBlock, Kind, ShardHeader
from headrace.errors import RunFolderError, StoreError
from headrace.types import EPISODE_SCHEMA, Record

SUFFIX: Final = ".hrs"
NAMING: Final = "numbers"
"""Locked by a writer while it takes the next number."""
_NAME: Final = re.compile(r"(\d+)(?:-(\d+))?")
_SEARCH_BYTES: Final = 1 << 20


class Damage(Record, frozen=True, kw_only=True):
    """Bytes of a shard that are not what was written."""

    shard: str
    """Path of the shard."""
    offset: int
    end: int
    """The next byte that checks out again."""
    what: str
    ids: tuple[str, ...] = ()
    """Episodes that cannot be read, where their ids still can."""

    def __str__(self) -> str:
        lost = f"; lost: {', '.join(self.ids)}" if self.ids else ""
        return f"{self.shard}: {self.what}, bytes {self.offset} to {self.end}{lost}"


@dataclass(frozen=True, slots=True)
class Block:
    """A block as a scan found it."""

    offset: int
    entries: tuple[Entry, ...]
    header: FrameHeader
    payload: bytes
    """Still compressed; empty when the scan skips payloads."""

    def indexed(self) -> IndexedBlock:
        return IndexedBlock(self.offset, self.entries)


@dataclass(frozen=True, slots=True)
class End:
    """The last item of every scan."""

    offset: int
    """Where what checks out ends; the rest of an unsealed shard is a torn tail."""
    sealed: bool


class ShardWriter:
    """Appends blocks to one new shard. Blocking; used by one thread at a time."""

    def __init__(
        self, folder: Path, number: int, *, level: int, fsync: bool, writer: int = 0
    ) -> None:
        self.path = folder / shard_name(number, writer)
        self.blocks: list[IndexedBlock] = []
        self.offset = 0
        self._sync = secrets.token_bytes(frames.SYNC_BYTES)
        self._compressor = zstandard.ZstdCompressor(level=level)
        self._fsync = fsync
        try:
            self._fd = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND, 0o644)
        except OSError as e:
            raise _not_durable(self.path, e) from e
        try:
            self._write(frames.pack_shard_header(ShardHeader(number=number, sync=self._sync)))
            if fsync:
                sync_folder(folder)
        except BaseException:
            os.close(self._fd)
            raise

    def append(self, records: Sequence[tuple[str, bool, bytes]]) -> int:
        """Make `(id, owed, bytes)` records durable as one block; returns the bytes stored.

        Raises `StoreError`; the shard then ends where it ended before, unless even cutting it
        back failed, in which case readers find a torn tail.
        """
        raw = b"".join(data for _, _, data in records)
        entries = tuple(Entry(key, len(data), owed) for key, owed, data in records)
        directory = frames.pack_directory(entries)
        payload = self._compressor.compress(raw)
        frame = frames.pack_frame(self._sync, Kind.BLOCK, directory, len(raw), payload)
        offset = self.offset
        self._write(frame)
        self.blocks.append(IndexedBlock(offset, entries))
        return len(frame)

    def seal(self) -> None:
        """Write index and trailer and close. Raises `StoreError`; the shard is then unsealed."""
        try:
            self._write(_seal(self._sync, self.blocks, self.offset, self._compressor))
        finally:
            self.close()

    def close(self) -> None:
        """Close without sealing. Idempotent."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def _write(self, data: bytes) -> None:
        try:
            _write_all(self._fd, data)
            if self._fsync:
                os.fsync(self._fd)
        except OSError as e:
            _cut_back(self._fd, self.offset)
            raise _not_durable(self.path, e) from e
        self.offset += len(data)


def scan(
    path: Path, *, last: bool, payloads: bool = True, start: int = 0
) -> Iterator[Block | Damage | End]:
    """Everything in a shard in order, with one block in memory at a time; `End` comes last.

    `last`: the shard may still be written, so its end may be torn. Without `payloads` their bytes
    are neither read nor checked. `start`: where an earlier scan left off; what is before it is not
    told again. Raises `RunFolderError` for a foreign file or a newer schema.
    """
    with _reading(path) as file:
        yield from _Scan(path, file, last, payloads).items(start)


def read_index(path: Path) -> tuple[IndexedBlock, ...] | None:
    """The index of a sealed shard; None if it is not sealed or the index is damaged."""
    with _reading(path) as file:
        size = os.fstat(file.fileno()).st_size
        if size < frames.SHARD_HEADER_BYTES + frames.TRAILER_BYTES:
            return None
        _refuse_newer(path, frames.parse_shard_header(file.read(frames.SHARD_HEADER_BYTES)))
        file.seek(size - frames.TRAILER_BYTES)
        trailer = frames.parse_trailer(file.read(frames.TRAILER_BYTES))
        if trailer is None:
            return None
        sync, offset = trailer
        frame = _read_frame(file, offset, sync)
        if frame is None or frame.header.kind != Kind.INDEX:
            return None
        return frames.parse_index(frame.header, frame.payload, zstandard.ZstdDecompressor())


def read_block(path: Path, offset: int) -> Block | None:
    """The block at `offset`, or None if it does not check out."""
    with _reading(path) as file:
        file.seek(offset)
        block = _read_frame(file, offset, file.read(frames.SYNC_BYTES))
        return block if block is not None and block.header.kind == Kind.BLOCK else None


def recover(path: Path, *, level: int, fsync: bool, keep: bool = False) -> int:
    """Cut the torn tail of the shard a dead writer left, seal it, and return the bytes cut.

    A shard without a block is removed, or with `keep` sealed as it is, for others have numbers
    after it. The caller holds the folder's lock.
    """
    blocks: list[IndexedBlock] = []
    damaged = False
    end = End(0, sealed=False)
    for item in scan(path, last=True):
        match item:
            case Block():
                blocks.append(item.indexed())
            case Damage():
                damaged = True
            case End():
                end = item
    if end.sealed:
        return 0
    torn = path.stat().st_size - end.offset
    try:
        if blocks:
            _reseal(path, blocks, end.offset, level)
        elif not damaged and keep:
            _seal_empty(path, level)
        elif not damaged:
            path.unlink()
        if fsync:
            sync_folder(path.parent)
    except OSError as e:
        raise _not_durable(path, e) from e
    return torn


def shard_name(number: int, writer: int = 0) -> str:
    """File name of a shard; `writer` is the engine process that writes it, 0 the only one."""
    return f"{number:06d}-{writer}{SUFFIX}" if writer else f"{number:06d}{SUFFIX}"


def shard_number(path: Path) -> int:
    """The number in a shard's file name. Raises `RunFolderError`."""
    return _parts(path)[0]


def shard_writer(path: Path) -> int:
    """The writer in a shard's file name; 0 where it names none. Raises `RunFolderError`."""
    return _parts(path)[1]


def _parts(path: Path) -> tuple[int, int]:
    found = _NAME.fullmatch(path.stem)
    if found is None:
        raise RunFolderError(
            f"{path} is not a shard: expected a name such as {shard_name(0)}; move it elsewhere"
        )
    return int(found[1]), int(found[2] or 0)


def may_be_torn(paths: Sequence[Path]) -> set[Path]:
    """Of the shards of a folder, in order: those that a writer may be at, or has died at.

    The last one; where engine processes wrote it and those before it, the last of each of them.
    """
    found: dict[int, Path] = {}
    for path in reversed(paths):
        writer = shard_writer(path)
        if found and (writer == 0 or 0 in found):
            break
        found.setdefault(writer, path)
    return set(found.values())


@contextmanager
def next_number(folder: Path) -> Iterator[int]:
    """The number of a shard to be made inside the block, which no other writer takes meanwhile."""
    fd = os.open(folder / NAMING, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        yield max(map(shard_number, folder.glob(f"*{SUFFIX}")), default=-1) + 1
    finally:
        os.close(fd)


def sync_folder(folder: Path) -> None:
    """Make the names in a folder durable."""
    fd = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


class _Scan:
    """The state of one pass over one shard."""

    def __init__(self, path: Path, file: BinaryIO, last: bool, payloads: bool) -> None:
        self._path = path
        self._file = file
        self._last = last
        self._payloads = payloads
        self._size = os.fstat(file.fileno()).st_size
        self._sync = b""

    def items(self, start: int) -> Iterator[Block | Damage | End]:
        fixed = self._file.read(frames.SHARD_HEADER_BYTES)
        header = frames.parse_shard_header(fixed)
        _refuse_newer(self._path, header)
        if header is None and self._last and _is_torn_header(fixed):
            yield End(0, sealed=False)
            return
        if header is not None:
            self._sync = header.sync
            if not start and header.number != shard_number(self._path):
                yield self._damage(0, len(fixed), f"shard {header.number} under another name")
        else:
            self._sync = self._borrow_sync()
            if not start:
                yield self._damage(0, len(fixed), "damaged shard header")
        yield from self._frames(max(start, frames.SHARD_HEADER_BYTES))

    def _frames(self, offset: int) -> Iterator[Block | Damage | End]:
        while offset < self._size:
            head = _read_head(self._file, offset, self._sync)
            following = None if head is None else offset + head.header.frame_bytes
            if head is None or following is None or following > self._size:
                valid = None if head is not None else self._next_frame(offset + 1)
                if valid is None:
                    yield from self._broken_end(offset)
                    return
                yield self._damage(offset, valid, "damaged frame")
                offset = valid
            elif head.header.kind == Kind.INDEX:
                yield from self._index(head, following)
                return
            else:
                block = self._block(head)
                if block is not None:
                    yield block
                elif self._last and following == self._size:
                    break
                else:
                    ids = tuple(entry.id for entry in head.entries)
                    yield self._damage(offset, following, "damaged block", ids)
                offset = following
        yield from self._broken_end(offset) if not self._last else (End(offset, sealed=False),)

    def _block(self, head: Block) -> Block | None:
        if head.header.kind != Kind.BLOCK:
            return None
        if not self._payloads:
            return head
        return _with_payload(self._file, head)

    def _index(self, head: Block, following: int) -> Iterator[Damage | End]:
        intact = _with_payload(self._file, head) is not None
        self._file.seek(following)
        trailer = frames.parse_trailer(self._file.read(frames.TRAILER_BYTES + 1))
        if intact and trailer == (self._sync, head.offset):
            yield End(self._size, sealed=True)
            return
        if not self._last or following + frames.TRAILER_BYTES <= self._size:
            yield self._damage(head.offset, self._size, "damaged index")
        yield End(head.offset, sealed=False)

    def _broken_end(self, offset: int) -> Iterator[Damage | End]:
        """Nothing from `offset` on checks out."""
        self._file.seek(max(0, self._size - frames.TRAILER_BYTES))
        was_sealed = frames.parse_trailer(self._file.read(frames.TRAILER_BYTES)) is not None
        if was_sealed or not self._last:
            what = "damaged frame" if offset < self._size else "the end is missing"
            yield self._damage(offset, self._size, what)
        yield End(offset, sealed=False)

    def _borrow_sync(self) -> bytes:
        """The sync bytes as the first frame has them, when the header is unreadable."""
        self._file.seek(frames.SHARD_HEADER_BYTES)
        sync = self._file.read(frames.SYNC_BYTES)
        if _read_head(self._file, frames.SHARD_HEADER_BYTES, sync) is None:
            raise RunFolderError(
                f"{self._path} is not a shard of headrace (expected {frames.MAGIC!r} at its start);"
                " move it elsewhere, or restore it from a copy"
            )
        return sync

    def _next_frame(self, start: int) -> int | None:
        """Offset of the next frame that checks out."""
        keep = frames.SYNC_BYTES - 1
        while start < self._size:
            self._file.seek(start)
            chunk = self._file.read(_SEARCH_BYTES + keep)
            found = chunk.find(self._sync)
            while found >= 0:
                if _read_head(self._file, start + found, self._sync) is not None:
                    return start + found
                found = chunk.find(self._sync, found + 1)
            start += _SEARCH_BYTES
        return None

    def _damage(self, offset: int, end: int, what: str, ids: tuple[str, ...] = ()) -> Damage:
        return Damage(shard=str(self._path), offset=offset, end=end, what=what, ids=ids)


@contextmanager
def _reading(path: Path) -> Iterator[BinaryIO]:
    try:
        with path.open("rb") as file:
            yield file
    except OSError as e:
        raise RunFolderError(f"{path} cannot be read: {e.strerror or e}") from e


def _read_head(file: BinaryIO, offset: int, sync: bytes) -> Block | None:
    """Header and directory of the frame at `offset`; leaves the file before its payload."""
    file.seek(offset)
    fixed = file.read(frames.FRAME_HEADER_BYTES)
    header = frames.parse_frame_header(fixed, sync)
    if header is None:
        return None
    entries = frames.parse_directory(fixed, file.read(header.directory_bytes))
    return None if entries is None else Block(offset, entries, header, b"")


def _with_payload(file: BinaryIO, head: Block) -> Block | None:
    file.seek(head.offset + frames.FRAME_HEADER_BYTES + head.header.directory_bytes)
    payload = file.read(head.header.stored_bytes)
    if not frames.payload_is_intact(head.header, payload):
        return None
    return Block(head.offset, head.entries, head.header, payload)


def _read_frame(file: BinaryIO, offset: int, sync: bytes) -> Block | None:
    head = _read_head(file, offset, sync)
    return None if head is None else _with_payload(file, head)


def _refuse_newer(path: Path, header: ShardHeader | None) -> None:
    if header is None:
        return
    if header.format > frames.FORMAT or header.episode_schema > EPISODE_SCHEMA:
        raise RunFolderError(
            f"{path} was written by a newer headrace: shard format {header.format}, episode schema"
            f" {header.episode_schema}; this one reads up to {frames.FORMAT} and {EPISODE_SCHEMA}."
            " Upgrade headrace to read it"
        )


def _is_torn_header(fixed: bytes) -> bool:
    """A crash left less than a header, or (a file system's doing) zeros in its place."""
    return len(fixed) < frames.SHARD_HEADER_BYTES or not any(fixed)


def _seal(
    sync: bytes, blocks: list[IndexedBlock], offset: int, compressor: zstandard.ZstdCompressor
) -> bytes:
    return frames.pack_index(sync, blocks, compressor) + frames.pack_trailer(sync, offset)


def _reseal(path: Path, blocks: list[IndexedBlock], end: int, level: int) -> None:
    fd = os.open(path, os.O_RDWR)
    try:
        sync = os.pread(fd, frames.SYNC_BYTES, blocks[0].offset)
        os.ftruncate(fd, end)
        os.lseek(fd, end, os.SEEK_SET)
        try:
            _write_all(fd, _seal(sync, blocks, end, zstandard.ZstdCompressor(level=level)))
        except OSError:
            _cut_back(fd, end)
            raise
        os.fsync(fd)
    finally:
        os.close(fd)


def _seal_empty(path: Path, level: int) -> None:
    sync = secrets.token_bytes(frames.SYNC_BYTES)
    header = frames.pack_shard_header(ShardHeader(number=shard_number(path), sync=sync))
    fd = os.open(path, os.O_RDWR | os.O_TRUNC)
    try:
        compressor = zstandard.ZstdCompressor(level=level)
        _write_all(fd, header + _seal(sync, [], len(header), compressor))
        os.fsync(fd)
    finally:
        os.close(fd)


def _write_all(fd: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]


def _cut_back(fd: int, offset: int) -> None:
    try:
        os.ftruncate(fd, offset)
    except OSError:
        return  # readers cut what is torn; the error that matters is already on its way


def _not_durable(path: Path, error: OSError) -> StoreError:
    return StoreError(
        f"{path}: cannot be written: {error.strerror or error}. What was acknowledged"
        " is intact; mend the disk (free space?) and run the same command again"
    )
