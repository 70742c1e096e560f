"""Writes docs/reference/configuration.md from the models. `--check` only compares."""

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from headrace.configs.fields import Field, Table, tables
from headrace.configs.load import presets

PAGE = Path(__file__).resolve().parent.parent / "docs" / "reference" / "configuration.md"

HEAD = """\
# Configuration

<!-- Written by scripts/config_reference.py from configs/models.py: edit the docstrings there. -->

A configuration is one TOML file, or the name of a bundled preset ({presets}). Every key has a
default unless it is marked *required*. `--set dotted.key=value` goes over the file:

```
headrace run quickstart --out runs/one --set limits.max_turns=8 --set 'tasks.include=["compile-*"]'
```

* The value of `--set` is TOML; what is not TOML is a string, so words and paths need no quotes.
* `"none"` stands for None, which TOML lacks, where a key allows it: `--set sandbox.memory_mb=none`.
* An unknown key or a wrong type is refused, all of them at once, each with its place.
* `--set policy.type=...` with another type than the file's begins the `[policy]` table afresh.
* Relative paths are read from the working directory.
* A run folder holds the resolved configuration and its digest (sha256 over its canonical JSON).
"""


def page() -> str:
    """The whole page."""
    return "\n".join([HEAD.format(presets=", ".join(f"`{p}`" for p in presets())), *_tables()])


def _tables() -> Iterator[str]:
    for table in tables():
        yield f"## {_title(table)}\n"
        yield f"{_text(table.text)}\n"
        rows = [_row(f) for f in table.fields.values() if not f.is_table]
        if rows:
            yield "| key | type | default | |"
            yield "|---|---|---|---|"
            yield from rows
            yield ""
        inner = [f for f in table.fields.values() if f.is_table]
        if inner:
            yield f"Tables: {', '.join(f'`[{f.path}]`' for f in inner)}.\n"


def _title(table: Table) -> str:
    if not table.path:
        return "Top of the file"
    kind = f', `type = "{table.variant[1]}"`' if table.variant else ""
    return f"`[{table.path}]`{kind}"


def _row(field: Field) -> str:
    default = "*required*" if field.required else f"`{_toml(field.default)}`"
    return f"| `{field.name}` | {_cell(field.words)} | {default} | {_cell(_text(field.text))} |"


def _text(text: str) -> str:
    return " ".join(text.split()).replace("None:", '`"none"`:')


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


def _toml(value: Any) -> str:
    match value:
        case None:
            return '"none"'
        case bool():
            return "true" if value else "false"
        case str():
            return f'"{value}"'
        case list() | tuple():
            return "[" + ", ".join(map(_toml, value)) + "]"
        case _:
            return str(value)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="exit 1 if the page is not current")
    text = page()
    if parser.parse_args().check:
        current = PAGE.exists() and PAGE.read_text() == text
        print(f"{PAGE.name}: {'current' if current else 'not current: run this script'}")
        return 0 if current else 1
    PAGE.parent.mkdir(parents=True, exist_ok=True)
    PAGE.write_text(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
