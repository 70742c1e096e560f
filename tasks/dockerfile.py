"""Dockerfiles as data: instructions with their line numbers, and the words in them.

Rule: pure, and the only reader of Dockerfiles. Comments, continuation lines, the `escape`
directive, here-documents, JSON forms, quoting and variables are read as the Dockerfile reference
describes them; what an instruction does is decided elsewhere.
"""

import json
import re
from collections.abc import Mapping

import msgspec

from headrace.errors import ImageError
from headrace.types import Record

_DIRECTIVE = re.compile(r"#\s*(\w+)\s*=\s*(.+?)\s*$")
_FLAG = re.compile(r"--([a-z][a-z-]*)(?:=(\S*))?\s+")
_VARIABLE = re.compile(r"\\(.)|\$(?:(\w+)|\{(\w+)(?:(:?[-+?])([^}]*))?\})")
_HEREDOC = re.compile(
    r"(?:(?<=\s)|^)\d*<<(?P<tabs>-?)(?P<quote>[\"']?)(?P<end>[A-Za-z_][\w.-]*)(?P=quote)(?![\w<])"
    r"|'[^']*'|\"(?:\\.|[^\"\\])*\"|\\."
)
"""A here-document is a word of its own; in quotes, `<<` is text."""
_BUILDKIT = {
    "RUN": ("mount", "network", "security"),
    "COPY": ("link", "chmod", "exclude", "parents"),
    "ADD": ("link", "chmod", "checksum", "exclude", "keep-git-dir"),
}
"""Flags that the engine's classic builder does not know."""


class Instruction(Record, frozen=True, kw_only=True):
    """One instruction."""

    name: str
    """In capitals."""
    value: str
    """All that follows its flags, continuation lines joined."""
    flags: dict[str, str] = {}
    """`--name=value`; empty where there is no value."""
    line: int = 1
    bodies: tuple[str, ...] = ()
    """Of its here-documents, each as written, with its last line."""

    @property
    def words(self) -> tuple[str, ...] | None:
        """The strings of the JSON form, or None."""
        if not self.value.startswith("["):
            return None
        try:
            found = json.loads(self.value)
        except (ValueError, RecursionError):
            return None
        strings = isinstance(found, list) and all(isinstance(word, str) for word in found)
        return tuple(found) if strings else None

    @property
    def heredoc(self) -> bool:
        """Whether it uses a here-document as only BuildKit understands them."""
        return bool(self.bodies)


class Stage(Record, frozen=True, kw_only=True):
    """What `FROM` begins."""

    base: str
    """An image, the name of an earlier stage, or `scratch`; variables replaced."""
    name: str
    """In lower case; empty: it has none."""


class Inspected(Record, frozen=True, kw_only=True):
    """What can be known of a Dockerfile without building it."""

    bases: tuple[str, ...] = ()
    """Images named by `FROM`, without the stages of the file itself."""
    buildkit: tuple[str, ...] = ()
    """What it uses that only BuildKit understands, with line numbers."""


def inspect(instructions: tuple[Instruction, ...]) -> Inspected:
    """The bases of a Dockerfile and its uses of BuildKit."""
    bases: list[str] = []
    stages: set[str] = set()
    buildkit: list[str] = []
    args: dict[str, str] = {}
    for instruction in instructions:
        if instruction.name == "ARG" and not stages and not bases:
            args.update(arguments(instruction.value, args))
        elif instruction.name == "FROM":
            stage = stage_of(instruction, args)
            if stage.base.lower() not in stages | {"scratch"} and stage.base not in bases:
                bases.append(stage.base)
            stages.add(stage.name)
        buildkit += [f"{what} (line {instruction.line})" for what in _buildkit(instruction)]
    return Inspected(bases=tuple(bases), buildkit=tuple(buildkit))


def _buildkit(instruction: Instruction) -> list[str]:
    known = _BUILDKIT.get(instruction.name, ())
    found = [f"--{flag}" for flag in instruction.flags if flag in known]
    return [*found, "a here-document"] if instruction.heredoc else found


def lone_heredoc(instruction: Instruction) -> str | None:
    """`<<` or `<<-` when all there is of it is one here-document, else None."""
    mark = _HEREDOC.fullmatch(instruction.value)
    if mark is None or mark["end"] is None or len(instruction.bodies) != 1:
        return None
    return "<<-" if mark["tabs"] else "<<"


def stage_of(instruction: Instruction, args: Mapping[str, str]) -> Stage:
    """What a `FROM` says. Raises `ImageError` when it is not `image` or `image AS name`."""
    words = expand(instruction.value, args).split()
    if len(words) == 3 and words[1].lower() == "as":
        return Stage(base=words[0], name=words[2].lower())
    if len(words) != 1:
        raise ImageError(
            f"Dockerfile line {instruction.line}: FROM: one image was expected, "
            f"found {instruction.value[:80]!r}"
        )
    return Stage(base=words[0], name="")


def arguments(value: str, env: Mapping[str, str]) -> dict[str, str]:
    """What `ARG` sets; empty where it names no default."""
    found = {}
    for word in split_words(expand(value, env, keep_quotes=True)):
        name, _, default = word.partition("=")
        found[name] = default
    return found


def parse(text: str) -> tuple[Instruction, ...]:
    """The instructions of a Dockerfile in order. Raises `ImageError` for what is none."""
    lines = text.removeprefix("\ufeff").replace("\r\n", "\n").split("\n")
    escape = _escape(lines)
    found: list[Instruction] = []
    parts: list[str] = []
    start = number = 0
    while number < len(lines):
        line = lines[number]
        number += 1
        stripped = line.strip()
        if not stripped or stripped.startswith("#"):
            continue
        start = start or number
        body = line.rstrip()
        if body.endswith(escape) and not body.endswith(escape * 2) and number < len(lines):
            parts.append(body[:-1])
            continue
        parts.append(body.removesuffix(escape) if number == len(lines) else line)
        instruction = _instruction("".join(parts).strip(), start)
        instruction, number = _with_bodies(instruction, lines, number)
        found.append(instruction)
        parts, start = [], 0
    if parts:
        found.append(_instruction("".join(parts).strip(), start))
    return tuple(found)


def _escape(lines: list[str]) -> str:
    for line in lines:
        directive = _DIRECTIVE.match(line)
        if directive is None:
            break
        if directive[1].lower() == "escape" and directive[2] in ("\\", "`"):
            return directive[2]
    return "\\"


def _with_bodies(
    instruction: Instruction, lines: list[str], number: int
) -> tuple[Instruction, int]:
    """The instruction with its here-documents, and the number of lines read by then.

    One without an end is none: the classic builder hands it to the shell as it is.
    """
    if instruction.name not in ("RUN", "COPY", "ADD") or instruction.words is not None:
        return instruction, number
    bodies: list[str] = []
    after = number
    for mark in _HEREDOC.finditer(instruction.value):
        if mark["end"] is None:
            continue
        begin = after
        while after < len(lines):
            line = lines[after].lstrip("\t") if mark["tabs"] else lines[after]
            after += 1
            if line == mark["end"]:
                bodies.append("".join(f"{line}\n" for line in lines[begin:after]))
                break
        else:
            return instruction, number
    if not bodies:
        return instruction, number
    return msgspec.structs.replace(instruction, bodies=tuple(bodies)), after


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
