"""A JSON object read as a model writes it: with its slips mended, each one named.

Rule: what is mended is only what has one reasonable meaning: missing or trailing commas, missing
brackets, raw line breaks and unknown escapes in strings. A value the text ends within is
dropped, never guessed. An unescaped quote inside a string is not mended: it is an error. The work
is bounded by a multiple of the text's length.
"""

import re
from collections.abc import Iterator
from typing import Any, Final

import msgspec

MAX_DEPTH = 40
_WORK_FACTOR = 8
_WORK_BASE = 100_000

_START = re.compile(r"\{\s*[\"}]")
_SPACE = re.compile(r"[ \t\r\n\ufeff\xa0]*")
_CHUNK = re.compile(r"[^\"\\\x00-\x1f]*")
_KEY = re.compile(r"\"(?:[^\"\\]|\\.)*+\"\s*:", re.DOTALL)
_NUMBER = re.compile(r"[-+]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][-+]?[0-9]+)?")
_INTEGER = re.compile(r"[-+]?[0-9]{1,18}")
_WORD = re.compile(r"[A-Za-z]+")
_HEX = re.compile(r"[0-9a-fA-F]{4}")
_LITERALS = {"true": True, "false": False, "null": None}
_SLOPPY = {"none": None, "nan": None, "inf": None, "infinity": None}
_ESCAPES = {
    '"': '"', "\\": "\\", "/": "/", "b": "\b", "f": "\f", "n": "\n", "r": "\r", "t": "\t",
    "'": "'",
}  # fmt: skip
_CUT: Final = object()  # the text ended within this value


class Reading(msgspec.Struct, frozen=True):
    """One object found in a text, or why it could not be read."""

    start: int
    end: int
    value: dict[str, Any] | None
    repairs: tuple[str, ...] = ()
    cut: bool = False
    """The text ended before the object did; what was unfinished is left out of `value`."""
    error: str | None = None


def readings(text: str) -> Iterator[Reading]:
    """Every place where an object seems to begin, in order, nested ones included."""
    work = _WORK_FACTOR * len(text) + _WORK_BASE
    for match in _START.finditer(text):
        reading = _read(text, match.start())
        yield reading
        work -= reading.end - reading.start
        if work < 0:
            return


def _read(text: str, start: int) -> Reading:
    reader = _Reader(text, start)
    try:
        value = reader.object(0, in_array=False)
    except _UnreadableError as e:
        return Reading(start, reader.pos, None, error=str(e))
    return Reading(start, reader.pos, value, tuple(reader.repairs), reader.cut)


class _UnreadableError(Exception):
    pass


class _Reader:
    def __init__(self, text: str, pos: int) -> None:
        self.text = text
        self.pos = pos
        self.repairs: dict[str, None] = {}
        self.cut = False

    def object(self, depth: int, *, in_array: bool) -> dict[str, Any]:
        self.pos += 1
        members: dict[str, Any] = {}
        comma = False
        while (c := self._peek()) is not None:
            if c == "}":
                self._note(comma, "a trailing comma")
                self.pos += 1
                return members
            if c == ",":
                self._note(comma or not members, "a stray comma")
                comma = True
                self.pos += 1
            elif in_array and (c == "]" or (c == "{" and members)):
                self._note(True, "a missing }")
                return members
            elif c == "]":
                self._note(True, "a stray ]")
                self.pos += 1
            else:
                self._note(bool(members) and not comma, "a missing comma")
                comma = False
                if not self._member(members, depth):
                    break
        self._unclosed("}")
        return members

    def _member(self, members: dict[str, Any], depth: int) -> bool:
        """Read `"key": value` into `members`; False when the text ends within it."""
        if self.text[self.pos] != '"':
            raise self._unreadable('expected a key in double quotes or "}"')
        key = self._string()
        if self._peek() is None:
            return False
        if self.text[self.pos] != ":":
            raise self._unreadable('expected ":" after a key')
        self.pos += 1
        value = self._value(depth, in_object=True)
        if value is _CUT:
            return False
        members[key] = value
        return True

    def _array(self, depth: int, *, in_object: bool) -> list[Any]:
        self.pos += 1
        items: list[Any] = []
        comma = False
        after_item = self.pos
        while (c := self._peek()) is not None:
            if c == "]":
                self._note(comma, "a trailing comma")
                self.pos += 1
                return items
            if c == ",":
                self._note(comma or not items, "a stray comma")
                comma = True
                self.pos += 1
            elif c == "}" or (in_object and c == '"' and _KEY.match(self.text, self.pos)):
                self._note(True, "a missing ]")
                self.pos = after_item  # a comma read here belongs to the object around
                return items
            else:
                self._note(bool(items) and not comma, "a missing comma")
                comma = False
                value = self._value(depth, in_object=False)
                if value is _CUT:
                    break
                items.append(value)
                after_item = self.pos
        self._unclosed("]")
        return items

    def _value(self, depth: int, *, in_object: bool) -> Any:
        if depth > MAX_DEPTH:
            raise self._unreadable(f"nested deeper than {MAX_DEPTH}")
        c = self._peek()
        if c is None:
            self.cut = True
            return _CUT
        if c == '"':
            return self._string()
        if c == "{":
            return self.object(depth + 1, in_array=not in_object)
        if c == "[":
            return self._array(depth + 1, in_object=in_object)
        if number := _NUMBER.match(self.text, self.pos):
            return self._number(number)
        if word := _WORD.match(self.text, self.pos):
            return self._word(word)
        raise self._unreadable("expected a value")

    def _number(self, match: "re.Match[str]") -> Any:
        if match.end() == len(self.text):  # more digits may have followed
            self.pos, self.cut = match.end(), True
            return _CUT
        self.pos = match.end()
        text = match.group()
        return int(text) if _INTEGER.fullmatch(text) else float(text)

    def _word(self, match: "re.Match[str]") -> Any:
        word = match.group()
        lower = word.lower()
        if lower in _LITERALS or lower in _SLOPPY:
            self._note(word not in _LITERALS, f"{lower} that is no JSON word")
            self.pos = match.end()
            return _LITERALS.get(lower)
        if match.end() == len(self.text):
            self.pos, self.cut = match.end(), True
            return _CUT
        raise self._unreadable("expected a value")

    def _string(self) -> Any:
        self.pos += 1
        parts: list[str] = []
        while True:
            chunk = _CHUNK.match(self.text, self.pos)
            assert chunk is not None  # it matches the empty text
            parts.append(chunk.group())
            self.pos = chunk.end()
            if self.pos >= len(self.text):
                self.cut = True
                return _CUT
            c = self.text[self.pos]
            if c == '"':
                self.pos += 1
                return "".join(parts)
            if c == "\\":
                parts.append(self._escape())
            else:
                self._note(True, "a raw line break or control character in a string")
                parts.append(c)
                self.pos += 1

    def _escape(self) -> str:
        c = self.text[self.pos + 1 : self.pos + 2]
        if c == "u" and _HEX.match(self.text, self.pos + 2):
            return self._unicode()
        self.pos = min(self.pos + 2, len(self.text))
        if c in _ESCAPES:
            self._note(c == "'", "an unknown escape in a string")
            return _ESCAPES[c]
        self._note(c != "", "an unknown escape in a string")
        return "\\" + c  # `\d` and `\$` mean themselves to the shell

    def _unicode(self) -> str:
        code = int(self.text[self.pos + 2 : self.pos + 6], 16)
        self.pos += 6
        if 0xD800 <= code < 0xDC00 and self.text.startswith("\\u", self.pos):
            low = self.text[self.pos + 2 : self.pos + 6]
            if _HEX.fullmatch(low) and 0xDC00 <= int(low, 16) < 0xE000:
                self.pos += 6
                return chr(0x10000 + ((code - 0xD800) << 10) + int(low, 16) - 0xDC00)
        if 0xD800 <= code < 0xE000:
            self._note(True, "half of a surrogate pair in a string")
            return "\ufffd"
        return chr(code)

    def _peek(self) -> str | None:
        space = _SPACE.match(self.text, self.pos)
        assert space is not None  # it matches the empty text
        self.pos = space.end()
        return self.text[self.pos] if self.pos < len(self.text) else None

    def _note(self, happened: bool, repair: str) -> None:
        if happened:
            self.repairs[repair] = None

    def _unclosed(self, bracket: str) -> None:
        self.cut = True
        self._note(True, f"a missing {bracket} at the end")

    def _unreadable(self, message: str) -> _UnreadableError:
        found = self.text[self.pos : self.pos + 1]
        hint = '; a double quote inside a string is written \\"' if found.isalnum() else ""
        return _UnreadableError(f"{message} at character {self.pos}, found {found!r}{hint}")
