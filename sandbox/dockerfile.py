"""Dockerfiles as data: instructions with their line numbers, and the words in them.

Rule: pure. Comments, continuation lines, the `escape` directive, JSON forms, quoting and variables
are read as the Dockerfile reference describes them; what an instruction does is decided elsewhere.
"""

import json
import re
from collections.abc import Mapping

from headrace.errors import ImageError
from headrace.types import Record

_DIRECTIVE = re.compile(r"#\s*(\w+)\s*=\s*(.+?)\s*$")
_HEREDOC = re.compile(r"<<-?\s*[\"']?[A-Za-z_]\w*[\"']?")
_FLAG = re.compile(r"--([a-z][a-z-]*)(?:=(\S*))?\s+")
_VARIABLE = re.compile(r"\\(.)|\$(?:(\w+)|\{(\w+)(?:(:?[-+?])([^}]*))?\})")


class Instruction(Record, frozen=True, kw_only=True):
    """One instruction."""

    name: str
    """In capitals."""
    value: str
    """All that follows its flags, continuation lines joined."""
    flags: dict[str, str] = {}
    """`--name=value`; empty where there is no value."""
    line: int = 1

    @property
    def words(self) -> tuple[str, ...] | None:
        """The strings of the JSON form, or None."""
        if not self.value.startswith("["):
            return None
        try:
            found = json.loads(self.value)
        except ValueError:
            return None
        strings = isinstance(found, list) and all(isinstance(word, str) for word in found)
        return tuple(found) if strings else None

    @property
    def heredoc(self) -> bool:
        """Whether it uses a here-document as only BuildKit understands them."""
        if self.name in ("COPY", "ADD"):
            return _HEREDOC.match(self.value) is not None
        return self.name == "RUN" and _HEREDOC.match(self.value) is not None


def parse(text: str) -> tuple[Instruction, ...]:
    """The instructions of a Dockerfile in order. Raises `ImageError` for what is none."""
    escape = "\\"
    lines = text.removeprefix("\ufeff").splitlines()
    for line in lines:
        directive = _DIRECTIVE.match(line)
        if directive is None:
            break
        if directive[1].lower() == "escape":
            escape = directive[2]
    found: list[Instruction] = []
    parts: list[str] = []
    start = 0
    end: str | None = None
    for number, line in enumerate(lines, 1):
        stripped = line.strip()
        if end is not None:  # the body of a here-document is no instruction
            end = None if stripped == end else end
            continue
        if stripped.startswith("#") or (not stripped and parts) or not stripped:
            continue
        start = start or number
        body = line.rstrip()
        if body.endswith(escape) and not body.endswith(escape * 2):
            parts.append(body[:-1])
            continue
        parts.append(line)
        found.append(_instruction("".join(parts).strip(), start))
        if found[-1].heredoc:
            end = _HEREDOC.findall(found[-1].value)[-1].lstrip("<-").strip("\"' ")
        parts, start = [], 0
    if parts:
        found.append(_instruction("".join(parts).strip(), start))
    return tuple(found)


def _instruction(text: str, line: int) -> Instruction:
    name, _, rest = text.partition(" ")
    name, tab, more = name.partition("\t")
    rest = (more + " " + rest if tab else rest).strip()
    if not name.isalpha():
        raise ImageError(
            f"Dockerfile line {line}: an instruction was expected, found {text[:40]!r}"
        )
    flags: dict[str, str] = {}
    while match := _FLAG.match(rest + " "):
        flags[match[1]] = match[2] or ""
        rest = rest[match.end() :].strip()
    return Instruction(name=name.upper(), value=rest, flags=flags, line=line)


def expand(text: str, env: Mapping[str, str], *, keep_quotes: bool = False) -> str:
    """`$NAME`, `${NAME}`, `${NAME:-word}` and `${NAME:+word}` replaced; single quotes protect."""
    out: list[str] = []
    for i, part in enumerate(re.split(r"('[^']*')", text)):
        if i % 2:
            out.append(part if keep_quotes else part[1:-1])
        else:
            out.append(_VARIABLE.sub(lambda match: _value(match, env), part))
    return "".join(out)


def _value(match: re.Match[str], env: Mapping[str, str]) -> str:
    if match[1] is not None:
        return "$" if match[1] == "$" else match[0]
    name, operator, word = match[2] or match[3], match[4] or "", match[5] or ""
    value = env.get(name)
    there = bool(value) if operator.startswith(":") else value is not None
    if operator.endswith("-"):
        return value if there and value is not None else expand(word, env)
    if operator.endswith("+"):
        return expand(word, env) if there else ""
    return value or ""


def split_words(text: str) -> tuple[str, ...]:
    """Words at blanks, quotes and backslashes as in a shell."""
    words: list[str] = []
    word: list[str] | None = None
    quote = ""
    i = 0
    while i < len(text):
        char = text[i]
        if quote:
            if char == quote:
                quote = ""
            elif char == "\\" and quote == '"' and text[i + 1 : i + 2] in ('"', "\\", "$"):
                i += 1
                word = [*(word or []), text[i]]
            else:
                word = [*(word or []), char]
        elif char in "\"'":
            quote, word = char, word or []
        elif char == "\\" and i + 1 < len(text):
            i += 1
            word = [*(word or []), text[i]]
        elif char in " \t":
            if word is not None:
                words.append("".join(word))
            word = None
        else:
            word = [*(word or []), char]
        i += 1
    if word is not None:
        words.append("".join(word))
    return tuple(words)


def assignments(value: str, env: Mapping[str, str]) -> dict[str, str]:
    """What `ENV` or `LABEL` sets: `k=v k2="v 2"`, or the old `k the rest`."""
    first = value.split(None, 1)
    if "=" not in first[0]:
        rest = first[1] if len(first) > 1 else ""
        return {first[0]: expand(rest, env, keep_quotes=True)}
    found = {}
    for word in split_words(expand(value, env, keep_quotes=True)):
        name, _, setting = word.partition("=")
        found[name] = setting
    return found
