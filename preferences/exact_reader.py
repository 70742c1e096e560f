"""Reading what the exact format wrote, and its streams as numpy arrays.

Rules: one block in memory, however long the folder; damage is an error with shard and offset, for
a training set that lost rows in silence is not the one its card describes. An array is a view of
the record's bytes and cannot be written to; copy it to change it.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import msgspec
import zstandard

from headrace.engine import frames, shards
from headrace.engine.reader import SHARDS, list_shards
from headrace.engine.shards import Block, Damage
from headrace.errors import RunFolderError, UsageError
from headrace.preferences.exact import EXACT_SCHEMA, Exact, ExactEpisode
from headrace.preferences.formats.base import TRAIN
from headrace.types import Segment

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

_LITTLE_UINT32: Final = "<u4"
_LITTLE_FLOAT32: Final = "<f4"


def read_exact(folder: Path | str, split: str = TRAIN) -> Iterator[Exact]:
    """Every record of a split in the order of writing: of `headrace export` an `ExactEpisode`, of
    `headrace pairs` an `ExactPair`. Blocking.

    Raises `RunFolderError` for a folder that is no exact one, a split it does not have, damage,
    and what a newer headrace wrote.
    """
    decoder = msgspec.msgpack.Decoder(Exact)
    decompressor = zstandard.ZstdDecompressor()
    for path in _paths(Path(folder), split):
        for item in shards.scan(path, last=False):
            match item:
                case Block():
                    raw = frames.unpack_payload(item.header, item.payload, decompressor)
                    yield from _records(decoder, path, item, raw)
                case Damage():
                    raise RunFolderError(f"{item}. Restore the file from a copy, or export again")


def splits(folder: Path) -> tuple[str, ...]:
    """The splits that a folder has."""
    found = {path.parent.name for path in folder.glob(f"*/*{shards.SUFFIX}")}
    return tuple(sorted(found - {SHARDS}))


def _paths(folder: Path, split: str) -> list[Path]:
    paths = list_shards(folder / split)
    if not paths or split == SHARDS:
        known = splits(folder)
        found = f"the splits {', '.join(known)}" if known else "no shards"
        raise RunFolderError(
            f"{folder}: expected {split}/{shards.shard_name(0)}, found {found}. Give a folder that"
            " `headrace export` or `headrace pairs` wrote with --format exact"
        )
    return paths


def _records(
    decoder: "msgspec.msgpack.Decoder[Any]", path: Path, block: Block, raw: bytes
) -> Iterator[Exact]:
    view, start = memoryview(raw), 0
    for entry in block.entries:
        data = view[start : start + entry.length]
        start += entry.length
        try:
            yield decoder.decode(data)
        except msgspec.DecodeError as e:
            raise RunFolderError(
                f"{path}: the record of {entry.id} at byte {block.offset} {_why(data, e)}"
            ) from e


def _why(data: memoryview, error: msgspec.DecodeError) -> str:
    class Version(msgspec.Struct):
        kind: str
        schema: int

    try:
        schema = msgspec.msgpack.decode(data, type=Version).schema
    except msgspec.DecodeError:
        schema = 0
    if schema > EXACT_SCHEMA:
        return (
            f"was written by a newer headrace (schema {schema}; this one reads up to"
            f" {EXACT_SCHEMA}). Upgrade headrace to read it"
        )
    return f"is no record of the exact format: {error}"


# --- arrays ---------------------------------------------------------------------------------


def tokens(segment: Segment) -> "NDArray[np.uint32]":
    """Token ids; shape (n,)."""
    import numpy as np

    return np.frombuffer(segment.token_ids, _LITTLE_UINT32)


def logprobs(segment: Segment) -> "NDArray[np.float32]":
    """What the server said of each token as it was sampled; shape (n,), 0.0 where it was not."""
    import numpy as np

    return np.frombuffer(segment.logprobs, _LITTLE_FLOAT32)


def loss_mask(segment: Segment) -> "NDArray[np.uint8]":
    """1 where the policy sampled the token, else 0; shape (n,)."""
    import numpy as np

    return np.frombuffer(segment.loss_mask(), np.uint8)


def token_weights(episode: ExactEpisode, segment: Segment) -> "NDArray[np.float64]":
    """The DMPO weight of each token of one of the episode's streams; shape (n,).

    0 where the policy did not sample the token. Raises `UsageError` for an episode that was
    written without weights.
    """
    import numpy as np

    if episode.weights is None:
        raise UsageError(
            f"episode {episode.id}: expected DMPO weights, found none; write it with --gamma, or"
            " compute them with headrace.preferences.dmpo.token_weights"
        )
    out = np.zeros(len(segment.token_ids) // 4)
    for span in segment.spans:
        out[span.start : span.end] = episode.weights[span.turn]
    return out
