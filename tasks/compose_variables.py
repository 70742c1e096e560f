"""Variables in the values of a compose file, replaced as `docker compose` replaces them.

Rule: pure. `$NAME`, `${NAME}`, and with `:-`, `-`, `:?`, `?`, `:+`, `+` and a word, which may hold
variables itself; `$$` is a dollar. A variable without a value is empty, and is noted.
"""

import re
from collections.abc import Mapping

from headrace.errors import TaskError

_START = re.compile(r"\$(?:(\$)|([A-Za-z_][A-Za-z0-9_]*)|\{([A-Za-z_][A-Za-z0-9_]*)(:?[-?+])?)")
_LINE = re.compile(r"\s*(?:export\s+)?([A-Za-z_][A-Za-z0-9_]*)\s*=\s*(.*?)\s*")
MAX_DEPTH = 16


class Variables:
    """The values, and which names were asked for: those found and those not."""

    def __init__(self, values: Mapping[str, str], *, idle: bool = False) -> None:
        """`idle`: for a word that is not taken, which is read for its end only."""
        self._values = values
        self._idle = idle
        self.used: dict[str, None] = {}
        self.missing: dict[str, None] = {}

    def fill(self, text: str, where: str) -> str:
        """`text` with its variables replaced; `where` goes in front of an error."""
        filled, end = self._fill(text, 0, where, 0)
        assert end == len(text)
        return filled

    def _fill(self, text: str, at: int, where: str, depth: int) -> tuple[str, int]:
        """Up to the end of the text, or, below the top, to the brace that closes the word."""
        out: list[str] = []
        if depth > MAX_DEPTH:
            raise TaskError(f"{where}: variables nested deeper than {MAX_DEPTH}")
        while at < len(text):
            if depth and text[at] == "}":
                return "".join(out), at + 1
            if text[at] != "$":
                out.append(text[at])
                at += 1
                continue
            match = _START.match(text, at)
            if match is None:
                raise TaskError(
                    f"{where}: expected $NAME, ${{NAME}} or $$, found {text[at:][:40]!r}"
                )
            at = match.end()
            if match[1]:
                out.append("$")
            elif match[2]:
                out.append(self._value(match[2], needed=True) or "")
            else:
                value, at = self._braced(text, at, match, where, depth)
                out.append(value)
        if depth:
            raise TaskError(f"{where}: expected a closing brace in {text[:60]!r}")
        return "".join(out), at

    def _braced(
        self, text: str, at: int, match: re.Match[str], where: str, depth: int
    ) -> tuple[str, int]:
        name, operator = match[3], match[4] or ""
        if not operator:
            if text[at : at + 1] != "}":
                raise TaskError(f"{where}: expected a closing brace in {text[:60]!r}")
            return self._value(name, needed=True) or "", at + 1
        value = self._value(name, needed=False)
        there = bool(value) if operator.startswith(":") else value is not None
        taken = there == (operator[-1] == "+")
        reader = self if taken else Variables(self._values, idle=True)
        word, at = reader._fill(text, at, where, depth + 1)
        if operator.endswith("+"):
            return (word if there else ""), at
        if there:
            return value or "", at
        if operator.endswith("?") and not self._idle:
            raise TaskError(f"{where}: the variable {name} is not set here: {word or 'required'}")
        return word, at

    def _value(self, name: str, *, needed: bool) -> str | None:
        value = self._values.get(name)
        if value is not None:
            self.used[name] = None
        elif needed:
            self.missing[name] = None
        return value


def env_file(text: str) -> dict[str, str]:
    """The variables of a `.env` file: plain lines, quotes taken off. Other lines are left out."""
    found = {}
    for line in text.splitlines():
        match = _LINE.fullmatch(line)
        if match is None or line.lstrip().startswith("#"):
            continue
        value = match[2]
        if len(value) > 1 and value[0] == value[-1] and value[0] in "\"'":
            value = value[1:-1]
        else:
            value = value.split(" #", 1)[0].rstrip()
        found[match[1]] = value
    return found
