"""Typed access to the tables of a parsed TOML document.

Rule: pure. A value of a wrong type is a `TaskError` with its dotted path; what is odd but can be
read is a warning. What the values mean is decided elsewhere.
"""

import re
from typing import Any

from headrace.tasks.keyed import Keyed

MAX_DEPTH = 64
"""Of a document: what reads it follows it by recursion."""
_PART = r"""(?:[\w-]++|"[^"\n]*+"|'[^'\n]*+')[ \t]*+\.[ \t]*+"""
_LONG_KEY = re.compile(rf"(?<![\w-])(?:{_PART}){{{MAX_DEPTH}}}", re.ASCII)


def has_long_key(text: str) -> bool:
    """Whether a TOML text has a key of too many parts.

    Asked before parsing: the time that `tomllib` takes grows with their square.
    """
    return _LONG_KEY.search(text) is not None


def depth(document: Any) -> int:
    """How deep tables and lists are nested. Without recursion: dotted keys nest without end."""
    deepest, stack = 0, [(document, 0)]
    while stack:
        value, level = stack.pop()
        deepest = max(deepest, level)
        inner = value.values() if isinstance(value, dict) else value
        if isinstance(value, dict | list):
            stack += [(item, level + 1) for item in inner]
    return deepest


class Table(Keyed):
    """One table and its dotted path."""

    def expect(self, known: str) -> "Table":
        """This table, after a warning for each key that is not in `known`."""
        self.warn_of_unknown(tuple(known.split()))
        return self

    def table(self, key: str) -> "Table":
        value = self.values.get(key, {})
        if not isinstance(value, dict):
            raise self.wrong(key, "a table")
        return Table(value, self.at(key), self.warnings)

    def tables(self, key: str) -> "list[Table]":
        value = self.values.get(key, [])
        if not isinstance(value, list) or not all(isinstance(item, dict) for item in value):
            raise self.wrong(key, "a list of tables")
        return [Table(item, f"{self.at(key)}[{i}]", self.warnings) for i, item in enumerate(value)]

    def string(self, key: str) -> str | None:
        """One line; None where it is absent or empty."""
        value = self.values.get(key)
        if value is None or value == "":
            return None
        if not isinstance(value, str) or not value.isprintable():
            raise self.wrong(key, "a line of text")
        return value

    def text(self, key: str) -> str:
        """Text of one line or more, not empty."""
        value = self.values.get(key)
        if not isinstance(value, str) or not value.strip() or "\0" in value:
            raise self.wrong(key, "text")
        return value

    def strings(self, key: str) -> tuple[str, ...]:
        value = self.values.get(key, [])
        if not isinstance(value, list) or not all(_is_line(item) for item in value):
            raise self.wrong(key, "a list of texts")
        return tuple(value)

    def boolean(self, key: str) -> bool | None:
        value = self.values.get(key)
        if value is not None and not isinstance(value, bool):
            raise self.wrong(key, "true or false")
        return value

    def seconds(self, key: str) -> float | None:
        """More than 0."""
        found = self.number(key)
        if found is not None and found <= 0:
            raise self.wrong(key, "more than 0 seconds")
        return found

    def pause(self, key: str, default: float) -> float:
        """Seconds, 0 or more."""
        found = self.number(key)
        if found is not None and found < 0:
            raise self.wrong(key, "no negative number of seconds")
        return default if found is None else found

    def count(self, key: str) -> int | None:
        """A whole number, 0 or more."""
        found = self.number(key)
        if found is None:
            return None
        if found < 0 or found != int(found) or found > 1 << 53:
            raise self.wrong(key, "a whole number, 0 or more")
        return int(found)

    def amount(self, key: str) -> float | None:
        """A limit: positive, or 0 for none."""
        found = self.number(key)
        if found is not None and found < 0:
            raise self.wrong(key, "no negative number")
        if found == 0:
            self.warn(key, "0 is read as no limit")
        return found or None

    def user(self) -> str | None:
        value = self.values.get("user")
        if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 1 << 32:
            return str(value)
        return self.string("user")


def _is_line(value: Any) -> bool:
    return isinstance(value, str) and value.isprintable()
