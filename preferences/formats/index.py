"""Which pairs there are, without their trajectories: the index that stands beside every format.

Rule: it adds no file. `pairs.make_pairs` writes the index itself.
"""

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path

from headrace.preferences.formats.base import Context, Writer
from headrace.preferences.pair import Pairing


class _Counted:
    """See `Writer`."""

    def add(self, split: str, item: Pairing) -> int:
        """One line of the index."""
        return 1


@dataclass(frozen=True)
class Index:
    """A `PairFormat` without rows of its own."""

    name: str = "index"
    about: str = "which pairs there are, without their trajectories"
    needs_tokens: bool = False
    needs_shared_prompt: bool = False

    def open(self, folder: Path, context: Context) -> AbstractContextManager[Writer[Pairing]]:
        """See `PairFormat.open`."""
        return nullcontext(_Counted())


PAIRS = Index()
