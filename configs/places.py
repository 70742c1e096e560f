"""Where a problem stands: the option that said it, or the file and line.

Rule: a place is told only when it is known. This module knows nothing of the models.
"""

import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

Keys = tuple[str, ...]
"""A path from the root of the file: `("policy", "sampling", "top_p")`."""


@dataclass(frozen=True, kw_only=True)
class Override:
    """A value from the command line that goes over the file's."""

    keys: Keys
    value: Any
    shown: str
    """The option as the user typed it."""


@dataclass(frozen=True, kw_only=True)
class Problem:
    """One thing that is wrong, before it is known where it stands."""

    keys: Keys
    message: str


@dataclass(frozen=True, kw_only=True)
class Source:
    """A configuration file that was read."""

    name: str
    text: str
    data: dict[str, Any]


def at(data: Any, keys: Sequence[str]) -> Any:
    """The value at a path, or None."""
    for key in keys:
        data = data.get(key) if isinstance(data, Mapping) else None
    return data


def report(problems: Sequence[Problem], file: Source, overrides: Sequence[Override]) -> list[str]:
    """The problems in the order of the file, each with its place in front."""
    lines = _lines(file.text) if problems else {}
    placed = [(*_where(p.keys, file, lines, overrides), p.message) for p in problems]
    return [f"{where}{message}" for _, where, message in sorted(placed)]


def _where(
    keys: Keys, file: Source, lines: Mapping[Keys, int], overrides: Sequence[Override]
) -> tuple[int, str]:
    """Order and place of a problem: the option that said it, else the line of the file."""
    for override in reversed(overrides):
        if override.keys == keys[: len(override.keys)]:
            return 0, f"{override.shown}: "
    if keys in lines:
        return lines[keys], f"{file.name}:{lines[keys]}: "
    for override in reversed(overrides):
        if override.keys[: len(keys)] == keys:
            return 0, f"{override.shown}: "
    for depth in range(len(keys) - 1, 0, -1):
        if keys[:depth] in lines:
            return lines[keys[:depth]], f"{file.name}:{lines[keys[:depth]]}: "
    return 0, f"{file.name}: " if file.name else ""


def _lines(text: str) -> dict[Keys, int]:
    """The line on which each key begins.

    The standard parser keeps no positions. Statement by statement (the shortest run of lines
    that is TOML by itself, under the header above it) it tells which keys each one sets.
    """
    found: dict[Keys, int] = {}
    header, chunk, start = "", "", 1
    for number, line in enumerate(text.splitlines(keepends=True), start=1):
        start = start if chunk else number
        chunk += line
        is_header = chunk.lstrip().startswith("[")
        try:
            data = tomllib.loads(chunk if is_header else header + chunk)
        except tomllib.TOMLDecodeError:
            continue
        for keys in _paths(data):
            found.setdefault(keys, start)
        header, chunk = (chunk if is_header else header), ""
    return found


def _paths(data: Mapping[str, Any], above: Keys = ()) -> Iterator[Keys]:
    for key, value in data.items():
        yield (*above, key)
        if isinstance(value, Mapping):
            yield from _paths(value, (*above, key))
