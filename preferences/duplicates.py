"""Near-duplicates: is a trajectory much the same as one that was kept before it?

Rule: what is compared are the commands, in order, and the instruction. The first that is read
stays, in the order of runs and of storing within them; the same runs give the same answer, for the
hashes are fixed. A similarity is the Jaccard index of two sets of shingles, estimated from
`PERMUTATIONS` hashes: nearly always off by less than 0.06. Of pairs just at the threshold one in
ten is not found.

The shingles are three words in a row of the commands. Of the instruction's at most a quarter as
many are taken, those of least hash: attempts at one task, whose instruction is the same, are told
apart by what they did, and short equal attempts at different tasks by what they were asked.

Memory: one MinHash for each trajectory that is kept, with its places in the index about 4 KB.
"""

import zlib
from hashlib import blake2b
from heapq import nsmallest
from typing import Any, Final

from headrace.errors import UsageError
from headrace.types import Episode

PERMUTATIONS: Final = 128
SEED: Final = 1
SHINGLE_WORDS: Final = 3
INSTRUCTION_SHARE: Final = 0.25
"""Shingles of the instruction, at most, for each of the commands."""
MOST_WORDS: Final = 20_000
"""Of commands, and of the instruction: what comes after them is not compared."""
FOUND: Final = 0.9
"""The chance that a pair just at the threshold is compared at all; likelier above it."""


class Duplicates:
    """What was kept so far. Needs the extra `data`."""

    def __init__(self, min_similarity: float) -> None:
        """Raises `UsageError` where datasketch is not installed."""
        try:
            import datasketch  # type: ignore[import-untyped]
        except ImportError:
            raise UsageError(
                "near-duplicates need datasketch: pip install 'headrace[data]', or leave"
                ' "duplicate" out of the filters of the selection'
            ) from None
        self._min_similarity = min_similarity
        self._empty = datasketch.MinHash(num_perm=PERMUTATIONS, seed=SEED, hashfunc=zlib.crc32)
        self._lean = datasketch.LeanMinHash
        self._index = datasketch.MinHashLSH(
            num_perm=PERMUTATIONS, params=bands(min_similarity), hashfunc=_short
        )
        self._kept: list[Any] = []

    def __len__(self) -> int:
        return len(self._kept)

    def repeats(self, episode: Episode) -> bool:
        """Whether it is a near-duplicate of a kept one; if it is not, it is kept from now on."""
        sketch = self._empty.copy()
        sketch.update_batch(shingles(episode))
        for number in self._index.query(sketch):
            if self._kept[number].jaccard(sketch) >= self._min_similarity:
                return True
        self._index.insert(len(self._kept), sketch, check_duplication=False)
        self._kept.append(self._lean(sketch))
        return False


def bands(similarity: float) -> tuple[int, int]:
    """The fewest bands, and their size, that find a pair of this similarity nearly always.

    A pair is compared when all hashes of one band are equal; more and smaller bands find more
    pairs, and compare more that are unlike.
    """
    for count in range(2, PERMUTATIONS // 2):
        size = PERMUTATIONS // count
        if 1 - (1 - similarity**size) ** count >= FOUND:
            break
    return count, size


def shingles(episode: Episode) -> list[bytes]:
    """What an episode is compared by; never empty."""
    commands = " ".join(command.text for turn in episode.turns for command in turn.commands)
    done = _shingles(commands)
    asked = set(_shingles(episode.instruction))
    most = max(1, int(INSTRUCTION_SHARE * len(set(done))))
    return done + nsmallest(most, asked, key=zlib.crc32)


def _shingles(text: str) -> list[bytes]:
    words = text.encode().split(maxsplit=MOST_WORDS)[:MOST_WORDS]
    if len(words) <= SHINGLE_WORDS:
        return [b" ".join(words)]
    return [b" ".join(words[i : i + SHINGLE_WORDS]) for i in range(len(words) - SHINGLE_WORDS + 1)]


def _short(band: bytes) -> bytes:
    """Of a band's hashes, so that the index holds little."""
    return blake2b(band, digest_size=8).digest()
