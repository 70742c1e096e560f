"""The data card, `README.md` in a folder of data: what it is, what it was made from, and how.

Rules: it says what `Made` says and computes nothing; names come from task folders and models, so
each is escaped. Its head is YAML that Hugging Face's `datasets` and Hub read: the licence, and, for
the formats that `datasets` loads, where each split is.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any, Final, NamedTuple

import jinja2

from headrace.engine.evaluation_markdown import escaped
from headrace.engine.readable import visible
from headrace.errors import StoreError
from headrace.preferences.columns import (
    EPISODE_COLUMNS,
    PAIR_COLUMNS,
    STREAM_COLUMNS,
    Column,
)
from headrace.preferences.made import Made

CARD_FILE: Final = "README.md"

COLUMNS: Final[Mapping[tuple[str, str], Sequence[Column]]] = {
    ("datasets", "trajectories"): STREAM_COLUMNS,
    ("datasets", "pairs"): PAIR_COLUMNS,
    ("parquet", "trajectories"): EPISODE_COLUMNS,
}
"""By format and kind. The others are told in `docs/reference/exports.md`."""

LOADABLE: Final = ("data/{}-*.parquet", "{}.parquet", "{}.jsonl", "{}.json")
"""Where a split is, in the formats that `datasets` loads."""
WHOLE_RECORDS: Final = "jsonl"
"""The format whose rows have nulls and keys of their own: `datasets`, which infers one type from
the first megabytes, fails at the next ones."""

HUB_LICENCES: Final = frozenset(
    {
        "apache-2.0", "mit", "bsd-2-clause", "bsd-3-clause", "isc", "mpl-2.0", "unlicense",
        "cc0-1.0", "cc-by-4.0", "cc-by-sa-4.0", "cc-by-nc-4.0", "cc-by-nc-sa-4.0", "cc-by-nd-4.0",
        "cc-by-nc-nd-4.0", "gpl-2.0", "gpl-3.0", "lgpl-3.0", "agpl-3.0", "odbl", "unknown",
    }
)  # fmt: skip
"""Names of licences that the Hub knows, as it writes them; any other is `other` there."""


class Split(NamedTuple):
    """One split of the rows."""

    name: str
    rows: int
    path: str | None
    """Pattern of its files, for `datasets`; None: it does not load them."""


def write(folder: Path, made: Made) -> None:
    """Write the card of a folder whose files are complete. Blocking; raises `StoreError`."""
    try:
        (folder / CARD_FILE).write_text(card(folder, made), encoding="utf-8")
    except OSError as e:
        raise StoreError(f"{folder / CARD_FILE} cannot be written: {e.strerror or e}") from e


def card(folder: Path, made: Made) -> str:
    """The whole card of what is in `folder`."""
    licence = made.licence.lower()
    return _template().render(
        made=made,
        licence=licence if licence in HUB_LICENCES else "other",
        models=sorted({run.model for run in made.runs if run.model}),
        splits=[Split(name, rows, _path(folder, name, made)) for name, rows in made.rows.items()],
        options=list(_flat(made.options)),
        columns=COLUMNS.get((made.format, made.kind), ()),
    )


def _path(folder: Path, split: str, made: Made) -> str | None:
    if made.format == WHOLE_RECORDS:
        return None
    patterns = (pattern.format(split) for pattern in LOADABLE)
    return next((pattern for pattern in patterns if any(folder.glob(pattern))), None)


def _flat(options: Mapping[str, Any], above: str = "") -> Iterator[tuple[str, str]]:
    """Every value under its dotted name."""
    for name, value in options.items():
        if isinstance(value, Mapping) and value:
            yield from _flat(value, f"{above}{name}.")
        else:
            yield f"{above}{name}", value if isinstance(value, str) else _json(value)


def _quoted(value: str) -> str:
    """A YAML string: JSON's, whose escapes YAML has too, and YAML's own for what it cannot hold."""
    return "".join(c if c.isprintable() else f"\\U{ord(c):08X}" for c in _json(value))


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)


def _line(value: str) -> str:
    """On one line of a code block, which it cannot end."""
    return " ".join(visible(value).split()).replace("```", "'''")


@cache
def _template() -> jinja2.Template:
    folder = resources.files("headrace.preferences") / "templates"
    environment = jinja2.Environment(
        autoescape=False,  # Markdown: what is not of this file goes through `cell`
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters |= {"cell": lambda v: escaped(str(v)), "quoted": _quoted, "line": _line}
    return environment.from_string((folder / "card.md.j2").read_text(encoding="utf-8"))
