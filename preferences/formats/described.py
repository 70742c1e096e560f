"""JSON rows, and beside them a file that tells a trainer how to read them.

Rule: the file names the splits that have rows and no others; it is written last, and not at all
when the rows were not.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

from headrace.preferences.formats.base import (
    FAILURES,
    TRAIN,
    VALIDATION,
    Context,
    Item,
    JsonWriter,
    Row,
    Selected,
)
from headrace.preferences.pair import Pairing


@dataclass(frozen=True)
class Description:
    """The file."""

    name: str
    text: Callable[[Sequence[str]], str]
    """Its content, for these splits."""


class DescribedWriter(JsonWriter[Item]):
    """A `JsonWriter` that writes the description when it ends well."""

    def __init__(
        self,
        folder: Path,
        rows: Callable[[Item, Context], Iterator[Row]],
        context: Context,
        description: Description,
    ) -> None:
        super().__init__(folder, rows, context)
        self._at = folder
        self._description = description

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        super().__exit__(kind, error, trace)
        if error is None:
            splits = (TRAIN, VALIDATION, FAILURES)
            there = [name for name in splits if (self._at / f"{name}.jsonl").exists()]
            (self._at / self._description.name).write_text(self._description.text(there))


@dataclass(frozen=True)
class DescribedTrajectories:
    """A `TrajectoryFormat` of JSON rows with a description."""

    name: str
    about: str
    rows: Callable[[Selected, Context], Iterator[Row]]
    description: Description
    needs_tokens: bool = False
    writes_tokens: bool = False

    def open(self, folder: Path, context: Context) -> DescribedWriter[Selected]:
        """See `TrajectoryFormat.open`."""
        return DescribedWriter(folder, self.rows, context, self.description)


@dataclass(frozen=True)
class DescribedPairs:
    """A `PairFormat` of JSON rows with a description."""

    name: str
    about: str
    rows: Callable[[Pairing, Context], Iterator[Row]]
    description: Description
    needs_shared_prompt: bool = False
    needs_tokens: bool = False

    def open(self, folder: Path, context: Context) -> DescribedWriter[Pairing]:
        """See `PairFormat.open`."""
        return DescribedWriter(folder, self.rows, context, self.description)
