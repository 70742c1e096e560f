"""A folder that Hugging Face's `datasets` loads by its path: Parquet below `data/`, and the card.

Rules: token columns are the stored bytes; a file and a row group are bounded; the names of the
splits are in the card (`README.md`), which is written at the end and by another (`card.py`). It is
written without `datasets`.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Generic, Self

from headrace.errors import UsageError
from headrace.preferences.columns import (
    PAIR_COLUMNS,
    STREAM_COLUMNS,
    Column,
    Row,
    columns_of,
    pair_row,
    stream_rows,
)
from headrace.preferences.formats.base import Context, Item, Selected
from headrace.preferences.formats.exact import record_of_pairing, record_of_selected
from headrace.preferences.pair import Pairing

if TYPE_CHECKING:
    from headrace.preferences.arrow import ParquetFiles

DATA = "data"


class ParquetWriter(Generic[Item]):
    """See `Writer`. An item without rows is not held."""

    def __init__(
        self,
        folder: Path,
        columns: Sequence[Column],
        rows: Callable[[Item], Iterable[Row]],
        *,
        one_file: bool = False,
    ) -> None:
        """`one_file`: one for each split, however large. Raises `UsageError` without pyarrow."""
        self._folder = folder
        self._columns = columns
        self._rows = rows
        self._one_file = one_file
        self._splits: dict[str, ParquetFiles] = {}
        self._stack = ExitStack()
        self._new = _files()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stack.__exit__(kind, error, trace)

    def add(self, split: str, item: Item) -> int:
        """See `Writer.add`."""
        written = 0
        for row in self._rows(item):
            self._split(split).add(row)
            written += 1
        return written

    def _split(self, split: str) -> "ParquetFiles":
        if split not in self._splits:
            self._folder.mkdir(exist_ok=True)
            files = self._new(self._folder, split, self._columns, one_file=self._one_file)
            self._splits[split] = self._stack.enter_context(files)
        return self._splits[split]


def _files() -> "type[ParquetFiles]":
    try:
        from headrace.preferences.arrow import ParquetFiles
    except ImportError as e:
        raise UsageError(
            f"Parquet needs pyarrow, which cannot be imported ({e}): pip install 'headrace[data]'"
        ) from e
    return ParquetFiles


@dataclass(frozen=True)
class DatasetsTrajectories:
    """A `TrajectoryFormat`: a row is one context."""

    name: str = "datasets"
    about: str = "token streams as stored, as Parquet that Hugging Face's datasets loads"
    needs_tokens: bool = True
    writes_tokens: bool = True

    def open(self, folder: Path, context: Context) -> ParquetWriter[Selected]:
        """See `TrajectoryFormat.open`."""
        columns = columns_of(STREAM_COLUMNS, gamma=context.gamma)
        return ParquetWriter(folder / DATA, columns, partial(_streams, context))


@dataclass(frozen=True)
class DatasetsPairs:
    """A `PairFormat`: a row is one pair."""

    name: str = "datasets"
    about: str = "both token streams as stored, as Parquet that Hugging Face's datasets loads"
    needs_tokens: bool = True
    needs_shared_prompt: bool = False

    def open(self, folder: Path, context: Context) -> ParquetWriter[Pairing]:
        """See `PairFormat.open`."""
        columns = columns_of(PAIR_COLUMNS, gamma=context.gamma)
        return ParquetWriter(folder / DATA, columns, partial(_pairs, context))


def _streams(context: Context, item: Selected) -> Iterable[Row]:
    return stream_rows(record_of_selected(context, item), item.scores)


def _pairs(context: Context, item: Pairing) -> Iterator[Row]:
    record = record_of_pairing(context, item)
    if record is not None:
        yield pair_row(record)


EPISODES = DatasetsTrajectories()
PAIRS = DatasetsPairs()
