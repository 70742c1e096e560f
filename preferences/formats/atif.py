"""ATIF, Harbor's interchange format: one document for each episode, in a folder for each split.

Rule: the document is the one of `engine/atif.py`, whole, with every step and context in it.
"""

from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Final, Self

import msgspec

from headrace.engine.atif import trajectory
from headrace.engine.harbor_job import slug
from headrace.preferences.formats.base import Context, Selected

TASK_CHARS: Final = 100


class AtifWriter:
    """See `Writer`."""

    def __init__(self, folder: Path, context: Context) -> None:
        self._folder = folder
        self._context = context
        self._encoder = msgspec.json.Encoder()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Every file is finished already."""

    def add(self, split: str, item: Selected) -> int:
        """See `Writer.add`."""
        folder = self._folder / split
        folder.mkdir(exist_ok=True)
        model = self._context.models[item.attempt.run]
        document = trajectory(item.episode, model=Path(model).name if model else None)
        (folder / self._name(item)).write_bytes(self._encoder.encode(document) + b"\n")
        return 1

    def _name(self, item: Selected) -> str:
        episode = item.episode
        name = f"{slug(episode.task)[:TASK_CHARS]}__{slug(episode.id)}"
        # The same attempt has the same id in every run.
        several = len(self._context.runs) > 1
        return f"{name}__{self._context.runs[item.attempt.run]}.json" if several else f"{name}.json"


@dataclass(frozen=True)
class Atif:
    """A `TrajectoryFormat`."""

    name: str = "atif"
    about: str = "ATIF documents, Harbor's interchange format, a file for each episode"
    needs_tokens: bool = field(default=False)
    writes_tokens: bool = True

    def open(self, folder: Path, context: Context) -> AtifWriter:
        """See `TrajectoryFormat.open`."""
        return AtifWriter(folder, context)


ATIF: Final = Atif()
