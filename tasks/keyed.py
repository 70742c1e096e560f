"""Named values of a parsed document, whatever it was written in.

Rule: pure. Every message carries the path of its key. What a format asks of its values is decided
by the format.
"""

import difflib
import math
from collections.abc import Collection, Mapping
from functools import lru_cache
from typing import Any

import msgspec

from headrace.errors import TaskError

MAX_UNKNOWN = 20
"""Keys of one table that are named."""


class Keyed:
    """One mapping and its dotted path."""

    def __init__(self, values: Mapping[str, Any], path: str, warnings: list[str]) -> None:
        self.values = values
        self.path = path
        self.warnings = warnings

    def at(self, key: str) -> str:
        return f"{self.path}.{key}" if self.path else key

    def warn(self, key: str, message: str) -> None:
        self.warnings.append(f"{self.at(key)}: {message}")

    def wrong(self, key: str, expected: str) -> TaskError:
        return TaskError(f"{self.at(key)}: expected {expected}, found {show(self.values.get(key))}")

    def warn_of_unknown(self, known: tuple[str, ...], but: Collection[str] = ()) -> None:
        """A warning for each key that is neither in `known` nor in `but`."""
        names = {*known, *but}
        unknown = [key for key in self.values if key not in names]
        for key in unknown[:MAX_UNKNOWN]:
            self.warnings.append(f"unknown key {show(self.at(key))}{_hint(str(key)[:60], known)}")
        if len(unknown) > MAX_UNKNOWN:
            self.warnings.append(f"{len(unknown) - MAX_UNKNOWN} more unknown keys")

    def number(self, key: str) -> float | None:
        """A finite number, also one that is written as text; None where there is none."""
        value = self.values.get(key)
        if value is None:
            return None
        found = _number(value)
        if found is None:
            raise self.wrong(key, "a finite number")
        if isinstance(value, str):
            self.warn(key, f"the number {show(value)} is written as text")
        return found


def _number(value: Any) -> float | None:
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    try:
        number = float(value)
    except (ValueError, OverflowError):
        return None
    return number if math.isfinite(number) else None


@lru_cache(maxsize=1024)  # the same unknown keys come hundreds of times in one set
def _hint(key: str, known: tuple[str, ...]) -> str:
    near = difflib.get_close_matches(key, known, n=1)
    return f"; did you mean {near[0]!r}?" if near else ""


def plain(value: Any) -> Any:
    """`value` with dates and huge integers as text, so that it can be stored anywhere."""
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, list):
        return [plain(item) for item in value]
    if isinstance(value, int) and not isinstance(value, bool):
        return value if -(1 << 63) <= value < 1 << 63 else hex(value)
    return value if value is None or isinstance(value, str | bool | float) else str(value)


def show(value: Any) -> str:
    """`value` as a message quotes it: one line, not long."""
    if value is None:
        return "nothing"
    text = repr(value if isinstance(value, str) else msgspec.to_builtins(plain(value)))
    return text if len(text) <= 60 else text[:57] + "..."
