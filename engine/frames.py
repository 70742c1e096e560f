"""The bytes of a shard: header, frames, index and trailer. `docs/reference/store.md` is the format.

Rule: pure functions between bytes and values; every byte of a shard is under a checksum. No file
is opened here and nothing is repaired: what does not check out is None, and the caller decides.
"""

import struct
import zlib
from enum import IntEnum
from typing import Final

import msgspec
import zstandard

from headrace.types import EPISODE_SCHEMA, Record

FORMAT: Final = 1
"""Version of everything in this file. A reader refuses a higher one."""

MAGIC: Final = b"\x89HRSHD\r\n"
SEALED: Final = b"HRSEALED"

_SHARD = struct.Struct("<8sHHI8sI")
_FRAME = struct.Struct("<8sIIIII")
_CRC = struct.Struct("<I")
_TRAILER = struct.Struct("<8sQI8s")

SHARD_HEADER_BYTES: Final = _SHARD.size
FRAME_HEADER_BYTES: Final = _FRAME.size + _CRC.size
TRAILER_BYTES: Final = _TRAILER.size
SYNC_BYTES: Final = 8

MAX_DIRECTORY_BYTES: Final = 1 << 26
MAX_RAW_BYTES: Final = 1 << 30
"""No block is larger, so a reader never allocates more on a header's word."""


class Kind(IntEnum):
    """What a frame carries."""

    BLOCK = 1
    """Records."""
    INDEX = 2
    """Where the records of the shard are; the last frame of a sealed shard."""


class Entry(Record, frozen=True, kw_only=False, array_like=True):
    """One record of a block, as its directory lists it."""

    id: str
    length: int
    """Bytes of the record in the uncompressed block."""
    owed: bool
    """The attempt does not count and is owed again."""


class IndexedBlock(Record, frozen=True, kw_only=False, array_like=True):
    """One block of a shard, as the index lists it."""

    offset: int
    entries: tuple[Entry, ...]


class ShardHeader(Record, frozen=True, kw_only=True):
    """The first bytes of a shard."""

    number: int
    sync: bytes
    """Eight random bytes that begin every frame of the shard, so that no stored output can pass
    for a frame when a reader looks for the next one after damage."""
    format: int = FORMAT
    episode_schema: int = EPISODE_SCHEMA


class FrameHeader(Record, frozen=True, kw_only=True):
    """The fixed part of a frame; `directory_bytes` and `stored_bytes` follow it."""

    sync: bytes
    kind: int
    directory_bytes: int
    raw_bytes: int
    stored_bytes: int
    payload_crc: int

    @property
    def frame_bytes(self) -> int:
        """Length of the whole frame."""
        return FRAME_HEADER_BYTES + self.directory_bytes + self.stored_bytes


_encoder = msgspec.msgpack.Encoder()
_directory_decoder = msgspec.msgpack.Decoder(tuple[Entry, ...])
_index_decoder = msgspec.msgpack.Decoder(tuple[IndexedBlock, ...])


def pack_shard_header(header: ShardHeader) -> bytes:
    """The first bytes of a shard."""
    fields = (MAGIC, header.format, header.episode_schema, header.number, header.sync)
    head = _SHARD.pack(*fields, 0)[: -_CRC.size]
    return head + _CRC.pack(zlib.crc32(head))


def parse_shard_header(data: bytes) -> ShardHeader | None:
    """The header, or None if these bytes are not one or are damaged."""
    if len(data) < SHARD_HEADER_BYTES:
        return None
    magic, version, schema, number, sync, crc = _SHARD.unpack_from(data)
    if magic != MAGIC or crc != zlib.crc32(data[: SHARD_HEADER_BYTES - _CRC.size]):
        return None
    return ShardHeader(number=number, sync=sync, format=version, episode_schema=schema)


def pack_frame(sync: bytes, kind: Kind, directory: bytes, raw_bytes: int, payload: bytes) -> bytes:
    """A whole frame. `payload` is already compressed."""
    fixed = _FRAME.pack(sync, kind, len(directory), raw_bytes, len(payload), zlib.crc32(payload))
    head_crc = _CRC.pack(zlib.crc32(directory, zlib.crc32(fixed)))
    return b"".join((fixed, head_crc, directory, payload))


def parse_frame_header(fixed: bytes, sync: bytes) -> FrameHeader | None:
    """The fixed part of a frame, or None. Trust it only once `parse_directory` has succeeded."""
    if len(fixed) != FRAME_HEADER_BYTES or fixed[:SYNC_BYTES] != sync:
        return None
    _, kind, directory_bytes, raw_bytes, stored_bytes, payload_crc = _FRAME.unpack_from(fixed)
    if directory_bytes > MAX_DIRECTORY_BYTES or raw_bytes > MAX_RAW_BYTES:
        return None
    return FrameHeader(
        sync=sync,
        kind=kind,
        directory_bytes=directory_bytes,
        raw_bytes=raw_bytes,
        stored_bytes=stored_bytes,
        payload_crc=payload_crc,
    )


def parse_directory(fixed: bytes, directory: bytes) -> tuple[Entry, ...] | None:
    """The directory of the frame that begins with `fixed`, or None if either is damaged."""
    (head_crc,) = _CRC.unpack_from(fixed, _FRAME.size)
    if zlib.crc32(directory, zlib.crc32(fixed[: _FRAME.size])) != head_crc:
        return None
    try:
        return _directory_decoder.decode(directory)
    except msgspec.DecodeError:
        return None


def payload_is_intact(header: FrameHeader, payload: bytes) -> bool:
    """Whether the stored bytes are those that were written."""
    return len(payload) == header.stored_bytes and zlib.crc32(payload) == header.payload_crc


def pack_directory(entries: tuple[Entry, ...]) -> bytes:
    """The directory of a block."""
    return _encoder.encode(entries)


def pack_index(
    sync: bytes, blocks: list[IndexedBlock], compressor: zstandard.ZstdCompressor
) -> bytes:
    """The index frame of a shard."""
    raw = _encoder.encode(blocks)
    return pack_frame(sync, Kind.INDEX, pack_directory(()), len(raw), compressor.compress(raw))


def parse_index(
    header: FrameHeader, payload: bytes, decompressor: zstandard.ZstdDecompressor
) -> tuple[IndexedBlock, ...]:
    """The index. The payload is intact."""
    return _index_decoder.decode(unpack_payload(header, payload, decompressor))


def unpack_payload(
    header: FrameHeader, payload: bytes, decompressor: zstandard.ZstdDecompressor
) -> bytes:
    """The uncompressed payload, which is intact."""
    return decompressor.decompress(payload, max_output_size=max(1, header.raw_bytes))


def pack_trailer(sync: bytes, index_offset: int) -> bytes:
    """The last bytes of a sealed shard."""
    head = _TRAILER.pack(sync, index_offset, 0, SEALED)[: SYNC_BYTES + 8]
    return head + _CRC.pack(zlib.crc32(head)) + SEALED


def parse_trailer(data: bytes) -> tuple[bytes, int] | None:
    """Sync bytes and offset of the index frame, or None if the shard is not sealed."""
    if len(data) != TRAILER_BYTES:
        return None
    sync, index_offset, crc, sealed = _TRAILER.unpack(data)
    if sealed != SEALED or crc != zlib.crc32(data[: SYNC_BYTES + 8]):
        return None
    return sync, index_offset
