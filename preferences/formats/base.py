"""The seam of every format: what it is given, and the writer that takes it.

Rule: a format decides what a row looks like and nothing else. Which attempts are given, in which
split, and where the folder is, is decided before (`selection`, `pairs`, `output`).
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, Generic, NamedTuple, Protocol, Self, TypeVar

import msgspec

from headrace.preferences.attempt import Attempt
from headrace.preferences.pair import Pairing
from headrace.types import Episode

TRAIN, VALIDATION, FAILURES = "train", "validation", "failures"
"""The splits. Pairs have the first two."""

Row = dict[str, Any]
T = TypeVar("T", contravariant=True)
Item = TypeVar("Item")


class Selected(NamedTuple):
    """One trajectory that a selection kept."""

    attempt: Attempt
    episode: Episode
    scores: Mapping[str, float]
    """By name; see `docs/howto/sft-data.md`."""


class Context(NamedTuple):
    """What a writer may know of the whole."""

    models: tuple[str | None, ...]
    """The model of each run, by its position (`Attempt.run`)."""
    runs: tuple[str, ...]
    """The id of each run, by its position."""
    gamma: float | None = None
    """Set: DMPO weights with this discount are written too, where the format has a place."""


class Writer(Protocol[T]):
    """Takes items one by one; a context manager that finishes its files on leaving."""

    def add(self, split: str, item: T) -> int:
        """Write an item; how many rows it became. 0: this format cannot hold it."""


class _Format(Protocol):
    """What every format says of itself."""

    @property
    def name(self) -> str: ...

    @property
    def about(self) -> str:
        """What it writes, in one line, for whoever lists formats in Python."""

    @property
    def needs_tokens(self) -> bool:
        """It cannot hold an attempt without a token stream."""


class TrajectoryFormat(_Format, Protocol):
    """A format of single trajectories."""

    @property
    def writes_tokens(self) -> bool:
        """Token streams are written where there are any, so nothing can be taken out of them."""

    def open(self, folder: Path, context: Context) -> AbstractContextManager[Writer[Selected]]: ...


class PairFormat(_Format, Protocol):
    """A format of pairs."""

    @property
    def needs_shared_prompt(self) -> bool:
        """Only pairs that begin at one differing turn after a shared prompt fit."""

    def open(self, folder: Path, context: Context) -> AbstractContextManager[Writer[Pairing]]: ...


class JsonWriter(Generic[Item]):
    """Rows as JSON lines, or as one JSON array, in a file for each split that has rows."""

    def __init__(
        self, folder: Path, rows: Callable[[Item, Context], Iterator[Row]], context: Context,
        *, array: bool = False,
    ) -> None:  # fmt: skip
        self._folder = folder
        self._rows = rows
        self._context = context
        self._array = array
        self._encoder = msgspec.json.Encoder()
        self._files: dict[str, BinaryIO] = {}
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        with self._stack:
            if self._array and error is None:
                for file in self._files.values():
                    file.write(b"\n]\n")

    def add(self, split: str, item: Item) -> int:
        """See `Writer.add`."""
        written = 0
        for row in self._rows(item, self._context):
            file, first = self._file(split)
            if self._array:
                file.write(b"[\n" if first else b",\n")
                file.write(self._encoder.encode(row))
            else:
                file.write(self._encoder.encode(row) + b"\n")
            written += 1
        return written

    def _file(self, split: str) -> tuple[BinaryIO, bool]:
        if split in self._files:
            return self._files[split], False
        suffix = "json" if self._array else "jsonl"
        file = (self._folder / f"{split}.{suffix}").open("wb", buffering=1 << 20)
        self._files[split] = self._stack.enter_context(file)
        return file, True


@dataclass(frozen=True)
class JsonTrajectories:
    """A `TrajectoryFormat` of JSON rows."""

    name: str
    about: str
    rows: Callable[[Selected, Context], Iterator[Row]]
    needs_tokens: bool = field(default=False)
    writes_tokens: bool = False

    def open(self, folder: Path, context: Context) -> JsonWriter[Selected]:
        """See `TrajectoryFormat.open`."""
        return JsonWriter(folder, self.rows, context)


@dataclass(frozen=True)
class JsonPairs:
    """A `PairFormat` of JSON rows."""

    name: str
    about: str
    rows: Callable[[Pairing, Context], Iterator[Row]]
    needs_shared_prompt: bool = False
    needs_tokens: bool = field(default=False)

    def open(self, folder: Path, context: Context) -> JsonWriter[Pairing]:
        """See `PairFormat.open`."""
        return JsonWriter(folder, self.rows, context)
