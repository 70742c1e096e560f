"""LiteCoder's schema: one JSON array of dialogues in ShareGPT's words, numbered from 0.

Rule: a row has an `id` and `conversations` and nothing more, as the published set. The number is
of the row in this data set, over all its files; which episode it was is not kept.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import Final

from headrace.preferences.formats import rows
from headrace.preferences.formats.base import Context, JsonWriter, Row, Selected


@dataclass(frozen=True)
class ShareGpt:
    """A `TrajectoryFormat`."""

    name: str = "litecoder"
    about: str = "LiteCoder's ShareGPT schema: one JSON array of `id` and `conversations`"
    needs_tokens: bool = field(default=False)
    writes_tokens: bool = False

    def open(self, folder: Path, context: Context) -> JsonWriter[Selected]:
        """See `TrajectoryFormat.open`."""
        numbers = count()

        def numbered(item: Selected, context: Context) -> Iterator[Row]:
            for _, one in rows.spoken(item):
                yield {"id": next(numbers), "conversations": rows.sharegpt(one.said)}

        return JsonWriter(folder, numbered, context, array=True)


LITECODER: Final = ShareGpt()
