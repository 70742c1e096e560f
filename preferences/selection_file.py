"""A selection from a TOML file with a `[selection]` table.

Rule: every mistake is told at once, with its line, what was expected and what was found. Reads one
file and writes nothing.
"""

import difflib
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from headrace.configs.places import Problem, Source, report
from headrace.errors import ConfigError
from headrace.preferences.filters import EVERYTHING, SFT, Selection

TABLE: Final = "selection"
NAMED: Final[Mapping[str, Selection]] = {"sft": SFT, "everything": EVERYTHING}


def selection_of(given: str) -> Selection:
    """The selection of that name, or the one in the file. Raises `ConfigError`."""
    return NAMED[given] if given in NAMED else load_selection(Path(given))


def load_selection(path: Path) -> Selection:
    """The selection in a file. Raises `ConfigError` naming every problem."""
    text = _read(path)
    try:
        data = tomllib.loads(text)
    except tomllib.TOMLDecodeError as e:
        raise ConfigError(f"{path}: this is not TOML: {e}") from e
    selection, problems = _validated(data)
    told = report(problems, Source(name=str(path), text=text, data=data), ())
    if len(told) > 1:
        lines = "\n".join(f"  {line}" for line in told)
        raise ConfigError(f"{len(told)} problems in the selection:\n{lines}")
    if selection is None or told:
        raise ConfigError(told[0])
    return selection


def _read(path: Path) -> str:
    try:
        return path.read_bytes().decode()
    except UnicodeDecodeError as e:
        raise ConfigError(f"{path}: expected UTF-8 text, found other bytes") from e
    except FileNotFoundError as e:
        known = ", ".join(NAMED)
        raise ConfigError(
            f"{path}: expected {known} or a TOML file with [{TABLE}], found no such file"
        ) from e
    except OSError as e:
        raise ConfigError(f"{path}: cannot be read: {e.strerror}; expected a TOML file") from e


def _validated(data: Mapping[str, Any]) -> tuple[Selection | None, list[Problem]]:
    """The selection, or None and all that is wrong with it."""
    problems = [
        Problem(keys=(key,), message=f"{key}: unknown key; the file has a [{TABLE}] table")
        for key in data.keys() - {TABLE}
    ]
    table = data.get(TABLE)
    if not isinstance(table, Mapping):
        found = "none" if table is None else "another value"
        message = f"{TABLE}: expected a [{TABLE}] table, found {found}"
        return None, [*problems, Problem(keys=(TABLE,), message=message)]
    try:
        return Selection.model_validate(_strict(table), strict=True), problems
    except ValidationError as e:
        return None, [*problems, *(_problem(error) for error in e.errors(include_url=False))]


def _strict(table: Mapping[str, Any]) -> dict[str, Any]:
    """As the strict model wants it: tuples for lists, None for `"none"`."""
    given = {key: tuple(value) if isinstance(value, list) else value
             for key, value in table.items()}  # fmt: skip
    if given.get("min_pass_ratio") == "none":
        given["min_pass_ratio"] = None
    return given


def _problem(error: ErrorDetails) -> Problem:
    key = str(error["loc"][0])
    index = "".join(f"[{part}]" for part in error["loc"][1:] if isinstance(part, int))
    return Problem(keys=(TABLE, key), message=f"{TABLE}.{key}{index}: {_said(key, error)}")


def _said(key: str, error: ErrorDetails) -> str:
    if error["type"] == "extra_forbidden":
        near = difflib.get_close_matches(key, Selection.model_fields, n=1)
        known = ", ".join(Selection.model_fields)
        return f"unknown key; {f'did you mean {near[0]}?' if near else f'it has {known}'}"
    if error["type"] == "value_error":
        return error["msg"].removeprefix("Value error, ")
    wanted = error["msg"].removeprefix("Input should be ").replace("tuple", "list")
    if wanted.startswith(("greater", "less")):
        wanted = f"a number {wanted}"
    return f"expected {wanted}, found {_found(error['input'])}"


def _found(value: Any) -> str:
    match value:
        case bool():
            return str(value).lower()
        case str():
            return f'"{value}"' if len(value) < 60 else f'"{value[:57]}..."'
        case tuple():
            return "a list"
        case Mapping():
            return "a table"
        case _:
            return str(value)
