"""Writes docs/reference/cli.md from the commands' own help. `--check` only compares."""

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import typer

from headrace.cli.app import EXIT_CODES, app

PAGE = Path(__file__).resolve().parent.parent / "docs" / "reference" / "cli.md"

HEAD = """\
# Command line

<!-- Written by scripts/cli_reference.py from the help texts in src/headrace/cli: edit those. -->

Progress and errors go to stderr, results to stdout. On a terminal progress is drawn in place;
elsewhere it is plain lines, and `NO_COLOR` is obeyed. `--debug` may stand anywhere.

| exit code | |
|---|---|
"""


def page() -> str:
    """The whole page."""
    codes = [f"| {code} | {text} |" for code, text in EXIT_CODES.items()]
    return HEAD + "\n".join([*codes, "", *_commands("headrace", typer.main.get_command(app))])


def _commands(path: str, command: Any) -> Iterator[str]:
    inner = getattr(command, "commands", {})
    if not inner or path == "headrace":
        yield from _command(path, command)
    for name, child in inner.items():
        yield from _commands(f"{path} {name}", child)


def _command(path: str, command: Any) -> Iterator[str]:
    shown = [p for p in command.params if p.name != "help"]
    needed = [_short(p) for p in shown if p.required]
    more = ["[OPTIONS]"] if any(not p.required for p in shown) else []
    group = ["COMMAND"] if getattr(command, "commands", {}) else []
    yield f"## `{' '.join([path, *needed, *more, *group])}`\n"
    yield f"{_text(command.help)}\n"
    if shown:
        yield "| | |"
        yield "|---|---|"
        for param in shown:
            name = _name(param).replace("|", "\\|")  # else it would end the cell
            yield f"| `{name}` | {_text(param.help)}{_default(param)} |"
        yield ""


def _short(param: Any) -> str:
    metavar = param.metavar or param.name.upper()
    return metavar if param.param_type_name == "argument" else f"{param.opts[0]} {metavar}"


def _name(param: Any) -> str:
    if param.param_type_name == "argument":
        return str(param.metavar)
    return ", ".join(param.opts) + (f" {param.metavar}" if param.metavar else "")


def _default(param: Any) -> str:
    shown = isinstance(param.default, str) and param.default
    return f" Default: `{param.default}`." if shown else ""


def _text(text: str | None) -> str:
    return " ".join((text or "").split())


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
