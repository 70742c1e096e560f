"""Keystrokes to the bytes a terminal sends.

Rule: tmux's `send-keys` with one argument. A text that is, as a whole, one key name (`C-c`, `Up`,
`Enter`, `M-x`, `^C`) is that key, whatever its case; anything else is typed as it stands, a line
break as the line-feed character. Pure; knows one thing of the screen: whether a program asked for
the cursor keys of an application.
"""

import re
from typing import NamedTuple

_MODIFIERS = re.compile(r"(?:[CMS]-|\^)*", re.IGNORECASE)
_PLAIN = {
    "enter": "\r", "kpenter": "\r", "escape": "\x1b", "tab": "\t", "space": " ", "bspace": "\x7f",
}  # fmt: skip
_CURSOR = {"up": "A", "down": "B", "right": "C", "left": "D", "home": "H", "end": "F"}
_NUMBERED = {
    "ic": 2, "insert": 2, "dc": 3, "delete": 3, "ppage": 5, "pageup": 5, "pgup": 5,
    "npage": 6, "pagedown": 6, "pgdn": 6, "f5": 15, "f6": 17, "f7": 18, "f8": 19, "f9": 20,
    "f10": 21, "f11": 23, "f12": 24,
}  # fmt: skip
_FUNCTION = {"f1": "P", "f2": "Q", "f3": "R", "f4": "S"}
_CONTROL = {"2": 0, "3": 27, "4": 28, "5": 29, "6": 30, "7": 31, "8": 127, "?": 127, "/": 31}


class _Held(NamedTuple):
    """The modifiers of a key."""

    control: bool
    meta: bool
    shift: bool

    @property
    def code(self) -> int:
        """As xterm numbers them; 1 is none."""
        return 1 + self.shift + 2 * self.meta + 4 * self.control


def encode(keys: str, *, application: bool = False) -> bytes:
    """What is sent for `keys`; `application`: the program asked for application cursor keys."""
    named = _key(keys, application)
    text = keys if named is None else named
    return text.encode("utf-8", "surrogateescape")


def is_key(keys: str) -> bool:
    """Whether `keys` is one key name, not text."""
    return _key(keys, False) is not None


def _key(keys: str, application: bool) -> str | None:
    if len(keys) < 2:
        return None
    prefix = _MODIFIERS.match(keys)
    assert prefix is not None  # it matches the empty text
    marks, name = prefix.group().upper(), keys[prefix.end() :]
    if not name:  # `C--` is control and a dash
        marks, name = marks[:-2], keys[-1]
    held = _Held("C" in marks or "^" in marks, "M" in marks, "S" in marks)
    if len(name) == 1:
        return _character(name, held) if held.code > 1 else None
    return _special(name.lower(), held, application)


def _character(char: str, held: _Held) -> str | None:
    if held.control:
        if char in _CONTROL:
            char = chr(_CONTROL[char])
        elif "@" <= char.upper() <= "_":
            char = chr(ord(char.upper()) & 31)
        elif char != " ":
            return None
        else:
            char = "\0"
    elif held.shift:
        char = char.upper()
    return f"\x1b{char}" if held.meta else char


def _special(name: str, held: _Held, application: bool) -> str | None:
    if name == "space" and held.control:
        return _character(" ", held)
    if name == "btab" or (name == "tab" and held.shift):
        return "\x1b[Z"
    if name in _PLAIN:
        return f"\x1b{_PLAIN[name]}" if held.meta else _PLAIN[name]
    if name in _CURSOR:
        if held.code > 1:
            return f"\x1b[1;{held.code}{_CURSOR[name]}"
        return f"\x1b{'O' if application else '['}{_CURSOR[name]}"
    if name in _FUNCTION:
        return (
            f"\x1b[1;{held.code}{_FUNCTION[name]}" if held.code > 1 else f"\x1bO{_FUNCTION[name]}"
        )
    if name in _NUMBERED:
        number = _NUMBERED[name]
        return f"\x1b[{number};{held.code}~" if held.code > 1 else f"\x1b[{number}~"
    return None
