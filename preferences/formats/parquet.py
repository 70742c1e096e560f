"""Parquet for pandas, polars and DuckDB: a row is one episode, text and tokens in it.

Rule: one file for each split, in row groups of bounded size; an episode without tokens is held too,
with empty token columns.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from headrace.preferences.columns import EPISODE_COLUMNS, Row, columns_of, episode_row
from headrace.preferences.formats.base import Context, Selected
from headrace.preferences.formats.datasets import ParquetWriter
from headrace.preferences.formats.exact import record_of_selected


@dataclass(frozen=True)
class ParquetTrajectories:
    """A `TrajectoryFormat`."""

    name: str = "parquet"
    about: str = "messages, metadata and token streams, a row for each episode"
    needs_tokens: bool = False
    writes_tokens: bool = True

    def open(self, folder: Path, context: Context) -> ParquetWriter[Selected]:
        """See `TrajectoryFormat.open`."""
        columns = columns_of(EPISODE_COLUMNS, gamma=context.gamma)
        return ParquetWriter(folder, columns, partial(_rows, context), one_file=True)


def _rows(context: Context, item: Selected) -> Iterator[Row]:
    record = record_of_selected(context, item)
    yield episode_row(record, item.episode, item.scores)


EPISODES = ParquetTrajectories()
