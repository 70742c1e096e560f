"""What building a Dockerfile makes, layer by layer, known without building it.

Rule: a layer is named by the layer below it, its instruction and the files it copies, so two
builds that begin alike name the same layers; what a builder's cache would share is shared here.
Reads the Dockerfile and the files it copies, and nothing else of the context. Blocking.

One layer per instruction after `FROM`, as the engine's classic builder commits them. Files of
remote sources are known by their address alone.
"""

import hashlib
from collections.abc import Iterable, Mapping
from functools import lru_cache
from pathlib import Path

from headrace.errors import ImageError
from headrace.sandbox.docker_context import Ignore, digest_of, sources, walk
from headrace.sandbox.rootfs import BASE_IMAGE, base_folder
from headrace.tasks.dockerfile import (
    Instruction,
    Stage,
    arguments,
    assignments,
    expand,
    inspect,
    parse,
    split_words,
    stage_of,
)
from headrace.types import Record

_CHANGES_FILES = frozenset({"RUN", "COPY", "ADD"})
_REMOTE = ("http://", "https://", "git@", "git://", "ssh://")


class Layer(Record, frozen=True, kw_only=True):
    """One instruction over the layers below it."""

    key: str
    """Digest of the instruction, of what it copies and of all below."""
    parent: str
    """Key of the layer below, or of the base."""
    line: int
    text: str
    """The instruction in short, for people."""
    changes_files: bool
    """RUN, COPY or ADD; the others only set what the image says of itself."""


class Lack(Record, frozen=True, kw_only=True):
    """A source of a `COPY` or `ADD` that is not in the context."""

    line: int
    source: str


class Chain(Record, frozen=True, kw_only=True):
    """The layers of one Dockerfile and its context."""

    key: str
    """Of the image: two builds with the same key make the same image."""
    layers: tuple[Layer, ...]
    """Of every stage, in the order of the file."""
    steps: tuple[str, ...]
    """Key of each instruction in order, `FROM` included: the state after it."""
    bases: tuple[str, ...]
    buildkit: tuple[str, ...]
    """What only BuildKit understands, with line numbers."""
    lacks: tuple[Lack, ...] = ()


def read_chain(dockerfile: str, context: str) -> Chain:
    """The layers that building `dockerfile` makes. Raises `ImageError` for what is none."""
    path, root = Path(dockerfile), Path(context)
    try:
        text = path.read_text(encoding="utf-8", errors="surrogateescape")
    except OSError as e:
        raise ImageError(
            f"expected a Dockerfile at {path}, found none that can be read ({e.strerror}): "
            "the task cannot be built"
        ) from e
    if not root.is_dir():
        raise ImageError(f"expected a folder as build context, found none at {root}")
    reader = _Reader(root)
    try:
        instructions = _parsed(text)
        for instruction in instructions:
            reader.read(instruction)
        return reader.chain(instructions)
    except ImageError as e:
        raise ImageError(f"{path}: {e}") from e
    except OSError as e:
        raise ImageError(f"cannot read the build context {root}: {e}") from e


def context_bytes(dockerfile: str, context: str) -> int:
    """Size of what a build sends: every file of the context that is not ignored. Blocking."""
    root = Path(context)
    ignore = Ignore.read(root / ".dockerignore")
    paths = [root / name for name in walk(root, ignore)]
    return sum(path.lstat().st_size for path in paths if path.is_file())


@lru_cache(maxsize=1024)
def _parsed(text: str) -> tuple[Instruction, ...]:
    return parse(text)


class _Reader:
    """The state of a build while its instructions are read."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._ignore = Ignore.read(root / ".dockerignore")
        self._key = ""
        self._before: dict[str, str] = {}
        self._scope: dict[str, str] = {}
        self._stages: dict[str, str] = {}
        self._layers: list[Layer] = []
        self._steps: list[str] = []
        self._lacks: list[Lack] = []
        self._stage = Stage(base="", name="")
        self._count = 0

    def chain(self, instructions: tuple[Instruction, ...]) -> Chain:
        if not self._count:
            raise ImageError("a FROM instruction was expected, found none")
        seen = inspect(instructions)
        return Chain(
            key=self._key,
            layers=tuple(self._layers),
            steps=tuple(self._steps),
            bases=seen.bases,
            buildkit=seen.buildkit,
            lacks=tuple(self._lacks),
        )

    def read(self, instruction: Instruction) -> None:
        if instruction.name == "FROM":
            self._begin(instruction)
        elif instruction.name == "ARG" and not self._count:
            self._before.update(arguments(instruction.value, self._before))
        elif not self._count:
            raise ImageError(f"line {instruction.line}: FROM was expected first")
        else:
            self._add(instruction)
        self._steps.append(self._key)

    def _begin(self, instruction: Instruction) -> None:
        self._end_stage()
        stage = self._stage = stage_of(instruction, self._before)
        base = self._stages.get(stage.base.lower())
        what = (stage.base, *sorted(instruction.flags.values()))
        self._key = base or _digest("FROM", *what, base_folder().name * (what[0] == BASE_IMAGE))
        self._scope = {}
        self._count += 1

    def _end_stage(self) -> None:
        if self._count:
            self._stages[str(self._count - 1)] = self._key
            if self._stage.name:
                self._stages[self._stage.name] = self._key

    def _add(self, instruction: Instruction) -> None:
        key = _digest(
            self._key,
            instruction.name,
            instruction.value,
            *(f"--{flag}={value}" for flag, value in sorted(instruction.flags.items())),
            *instruction.bodies,
            *self._taken(instruction),
        )
        self._layers.append(
            Layer(
                key=key,
                parent=self._key,
                line=instruction.line,
                text=" ".join(f"{instruction.name} {instruction.value}".split())[:100],
                changes_files=instruction.name in _CHANGES_FILES,
            )
        )
        self._key = key
        if instruction.name == "ARG":
            for name, value in arguments(instruction.value, self._scope).items():
                self._scope.setdefault(name, value or self._before.get(name, ""))
        elif instruction.name == "ENV":
            self._scope = {**self._scope, **assignments(instruction.value, self._scope)}

    def _taken(self, instruction: Instruction) -> Iterable[str]:
        """Digests of what the instruction takes from the context or from other stages."""
        if instruction.name in ("COPY", "ADD"):
            return self._copied(instruction)
        if instruction.name == "ARG":
            return [self._before.get(name, "") for name in arguments(instruction.value, {})]
        if instruction.name == "RUN" and "mount" in instruction.flags:  # it may bind anything
            stages = sorted(self._stages.values())
            return [digest_of(self._root, self._ignore, ["."]).hexdigest(), *stages]
        return ()

    def _copied(self, instruction: Instruction) -> Iterable[str]:
        other = instruction.flags.get("from")
        if other is not None:
            return [self._stages.get(expand(other, self._before).lower(), "")]
        found: list[str] = []
        for source in _sources(instruction, self._scope):
            if source.startswith("<<") or source.startswith(_REMOTE):
                continue
            names = sources(self._root, self._ignore, source)
            if not names:
                self._lacks.append(Lack(line=instruction.line, source=source))
            found += names
        return [digest_of(self._root, self._ignore, found).hexdigest()]


def _sources(instruction: Instruction, scope: Mapping[str, str]) -> list[str]:
    words = instruction.words or split_words(instruction.value)
    return [expand(word, scope) for word in words[:-1]]


def _digest(*parts: str) -> str:
    text = "\0".join(parts).encode("utf-8", "surrogateescape")
    return hashlib.sha256(text).hexdigest()[:24]
