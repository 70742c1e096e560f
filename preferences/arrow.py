"""Rows into Parquet files, with pyarrow, which only this file imports.

Rules: a row group is bounded in bytes, so that writer and reader hold one of some megabytes however
many rows there are; columns of tokens go into Arrow as the bytes they are stored as. What columns
there are is in `columns.py`.
"""

import os
from array import array
from collections.abc import Sequence
from itertools import accumulate
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

import pyarrow as pa  # type: ignore[import-untyped]
import pyarrow.parquet as pq  # type: ignore[import-untyped]

from headrace.preferences.columns import FLOAT32, PACKED, UINT8, UINT32, Column, Row

GROUP_BYTES: Final = 16 << 20
FILE_BYTES: Final = 512 << 20
"""A file takes no further row group once it is this large; readers take files in parallel."""
ROW_BYTES: Final = 512
"""What a row is taken to need besides its tokens and messages."""

TYPES: Final[dict[str, Any]] = {
    "string": pa.string(),
    "int64": pa.int64(),
    "float64": pa.float64(),
    "bool": pa.bool_(),
    UINT8: pa.list_(pa.uint8()),
    UINT32: pa.list_(pa.uint32()),
    FLOAT32: pa.list_(pa.float32()),
    "list<int64>": pa.list_(pa.int64()),
    "list<struct<name,status>>": pa.list_(
        pa.struct([("name", pa.string()), ("status", pa.string())])
    ),
    "list<struct<name,value>>": pa.list_(
        pa.struct([("name", pa.string()), ("value", pa.float64())])
    ),
    "list<struct<turn,start,end>>": pa.list_(
        pa.struct([("turn", pa.int64()), ("start", pa.int64()), ("end", pa.int64())])
    ),
    "list<struct<role,content>>": pa.list_(
        pa.struct([("role", pa.string()), ("content", pa.string())])
    ),
}


class ParquetFiles:
    """The Parquet files of one split: `SPLIT-00000-of-00002.parquet`, or one `SPLIT.parquet`."""

    def __init__(
        self,
        folder: Path,
        split: str,
        columns: Sequence[Column],
        *,
        one_file: bool = False,
        group_bytes: int = GROUP_BYTES,
        file_bytes: int = FILE_BYTES,
    ) -> None:
        self._folder = folder
        self._split = split
        self._columns = columns
        self._schema = pa.schema([(column.name, TYPES[column.type]) for column in columns])
        self._one_file = one_file
        self._group_bytes = group_bytes
        self._file_bytes = file_bytes
        self._rows: list[Row] = []
        self._bytes = 0
        self._paths: list[Path] = []
        self._writer: Any = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        try:
            if error is None:
                self._write_group()
        finally:
            self._close()
        if error is None:
            self._name()

    def add(self, row: Row) -> None:
        """Take a row; every column has a cell in it, others are passed over."""
        self._rows.append(row)
        self._bytes += _size(row)
        if self._bytes >= self._group_bytes:
            self._write_group()

    def _write_group(self) -> None:
        rows, self._rows, self._bytes = self._rows, [], 0
        if not rows:
            return
        table = pa.Table.from_arrays(
            [_cells(column, rows) for column in self._columns], schema=self._schema
        )
        writer = self._open()
        writer.write_table(table, row_group_size=len(rows))
        if not self._one_file and self._paths[-1].stat().st_size >= self._file_bytes:
            self._close()

    def _open(self) -> Any:
        if self._writer is None:
            name = f"{self._split}.parquet" if self._one_file else self._numbered("")
            self._paths.append(self._folder / name)
            scalar = [c.name for c in self._columns if not c.type.startswith("list")]
            self._writer = pq.ParquetWriter(
                self._paths[-1],
                self._schema,
                compression="zstd",
                # Of ids and log-probabilities a dictionary is larger than what it replaces.
                use_dictionary=scalar,
                write_statistics=scalar,
            )
        return self._writer

    def _numbered(self, of: str) -> str:
        return f"{self._split}-{len(self._paths):05d}{of}.parquet"

    def _close(self) -> None:
        writer, self._writer = self._writer, None
        if writer is not None:
            writer.close()

    def _name(self) -> None:
        """How many there are is known only now."""
        if self._one_file:
            return
        for path in self._paths:
            os.rename(path, path.with_name(f"{path.stem}-of-{len(self._paths):05d}.parquet"))


def _size(row: Row) -> int:
    size = ROW_BYTES
    for value in row.values():
        if isinstance(value, bytes | bytearray):
            size += len(value)
    return size + sum(len(message["content"]) for message in row.get("messages", ()))


def _cells(column: Column, rows: Sequence[Row]) -> Any:
    values = [row[column.name] for row in rows]
    if column.type not in PACKED:
        return pa.array(values, TYPES[column.type])
    data = b"".join(values)
    width = PACKED[column.type]
    ends = array("i", accumulate((len(value) // width for value in values), initial=0))
    kind = TYPES[column.type]
    elements = pa.Array.from_buffers(
        kind.value_type, len(data) // width, [None, pa.py_buffer(data)]
    )
    return pa.Array.from_buffers(kind, len(values), [None, pa.py_buffer(ends)], children=[elements])
