"""What building a Dockerfile without an engine will do, decided before anything is done.

Rule: a Dockerfile that asks for more than is understood, or for a file that is not there, is
refused here, naming the line and what to use instead. Reads the Dockerfile and the context and
changes nothing. Blocking.
"""

import hashlib
import io
import json
import os
import posixpath
import shlex
import stat
import tarfile
from pathlib import Path

from headrace.errors import ImageError
from headrace.sandbox.docker_context import Ignore, sources, walk
from headrace.tasks.dockerfile import (
    Instruction,
    arguments,
    assignments,
    expand,
    lone_heredoc,
    parse,
    split_words,
    stage_of,
)
from headrace.types import Record

_INERT = frozenset("LABEL EXPOSE CMD HEALTHCHECK VOLUME STOPSIGNAL MAINTAINER".split())
_ELSE = "use the docker provider for this task, or write it without"


class Image(Record, frozen=True, kw_only=True):
    """Layers, topmost first, and what the image says of its sandboxes."""

    layers: tuple[Path, ...]
    env: dict[str, str] = {}
    workdir: str = "/"
    user: str = ""
    entrypoint: tuple[str, ...] = ()


class Copy(Record, frozen=True, kw_only=True):
    """One file, folder or link of the context and its absolute path inside."""

    source: Path
    target: str


class Step(Record, frozen=True, kw_only=True):
    """One instruction that makes a layer."""

    line: int
    text: str
    """The instruction in short, for people."""
    command: str = ""
    copies: tuple[Copy, ...] = ()
    into_if_folder: bool = False
    """The only copy is a file, and its target may be a folder already."""
    digest: str = ""
    """Of what is copied."""
    owner: str = ""
    mode: str = ""
    folders: tuple[str, ...] = ()
    """Working directories to make first."""
    env: dict[str, str] = {}
    workdir: str = "/"
    user: str = ""


class Plan(Record, frozen=True, kw_only=True):
    """A Dockerfile that can be built here."""

    path: Path
    base: str
    steps: tuple[Step, ...]
    env: dict[str, str]
    workdir: str | None
    """None: the base image's; so are `user` and `entrypoint`."""
    user: str | None
    entrypoint: tuple[str, ...] | None

    def keys(self, base: Image) -> tuple[str, ...]:
        """Names of the layers in order: each a digest of its step and of all below."""
        keys = []
        key = "\0".join(map(str, base.layers))
        for step in self.steps:
            made = [key, step.command, step.digest, step.owner, step.mode, step.workdir, step.user]
            key = _digest([*made, *step.folders, json.dumps(step.env, sort_keys=True)])
            keys.append(key)
        return tuple(keys)

    def name(self, base: Image) -> str:
        """The name of the image: a digest of everything that goes into it."""
        last = self.keys(base)[-1:] or tuple(map(str, base.layers))
        says = [self.env, self.workdir, self.user, self.entrypoint]
        config = [json.dumps(says, sort_keys=True)]
        return f"headrace/build:{_digest([*last, *config])}"


def plan(dockerfile: Path, context: Path) -> Plan:
    """Read a Dockerfile. Raises `ImageError` for what cannot be built here."""
    try:
        text = dockerfile.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as e:
        raise ImageError(f"{dockerfile}: a Dockerfile was expected: {e}") from e
    reader = _Reader(dockerfile, context)
    try:
        instructions = parse(text)
    except ImageError as e:
        raise ImageError(f"{dockerfile}: {e}") from e
    for instruction in instructions:
        reader.read(instruction)
    return reader.plan()


class _Reader:
    """The state of a Dockerfile while it is read, instruction by instruction."""

    def __init__(self, path: Path, context: Path) -> None:
        self._path = path
        self._context = context
        self._ignore = Ignore.read(context / ".dockerignore")
        self._base: str | None = None
        self._before: dict[str, str] = {}
        self._args: dict[str, str] = {}
        self._env: dict[str, str] = {}
        self._shell: tuple[str, ...] = ("/bin/sh", "-c")
        self._workdir = "/"
        self._user = ""
        self._entrypoint: tuple[str, ...] = ()
        self._named: set[str] = set()
        self._folders: list[str] = []
        self._steps: list[Step] = []

    def plan(self) -> Plan:
        if self._base is None:
            raise ImageError(f"{self._path}: a FROM instruction was expected, found none")
        if self._folders and self._folders != [self._workdir]:  # the last is made on opening
            self._step(Instruction(name="WORKDIR", value=self._workdir), command="true")
        return Plan(
            path=self._path,
            base=self._base,
            steps=tuple(self._steps),
            env=self._env,
            workdir=self._workdir if "WORKDIR" in self._named else None,
            user=self._user if "USER" in self._named else None,
            entrypoint=self._entrypoint if "ENTRYPOINT" in self._named else None,
        )

    def read(self, instruction: Instruction) -> None:
        name = instruction.name
        if self._base is None and name not in ("FROM", "ARG"):
            raise self._refused(instruction, "FROM was expected first")
        if instruction.heredoc and name != "RUN":
            raise self._refused(
                instruction, f"here-documents are understood in RUN only here; {_ELSE}"
            )
        if name in _INERT:
            return
        reading = getattr(self, f"_read_{name.lower()}", None)
        if reading is None:
            raise self._refused(instruction, f"this instruction is not understood here; {_ELSE}")
        reading(instruction)
        self._named.add(name)

    def _read_from(self, instruction: Instruction) -> None:
        if self._base is not None:
            raise self._refused(instruction, f"only one stage is understood here; {_ELSE}")
        self._base = stage_of(instruction, self._before).base

    def _read_arg(self, instruction: Instruction) -> None:
        scope = {**self._args, **self._env}
        for name, default in arguments(instruction.value, scope).items():
            if self._base is None:
                self._before[name] = default
            else:
                self._args[name] = default or self._before.get(name, "")

    def _read_env(self, instruction: Instruction) -> None:
        self._env = {**self._env, **assignments(instruction.value, self._scope())}

    def _read_user(self, instruction: Instruction) -> None:
        self._user = expand(instruction.value, self._scope())

    def _read_workdir(self, instruction: Instruction) -> None:
        value = "".join(split_words(expand(instruction.value, self._scope(), keep_quotes=True)))
        self._workdir = posixpath.normpath(posixpath.join(self._workdir, value))
        self._folders.append(self._workdir)

    def _read_shell(self, instruction: Instruction) -> None:
        words = instruction.words
        if not words:
            raise self._refused(instruction, 'a form such as ["/bin/bash", "-c"] was expected')
        self._shell = words

    def _read_entrypoint(self, instruction: Instruction) -> None:
        words = instruction.words
        self._entrypoint = (*self._shell, instruction.value) if words is None else words

    def _read_run(self, instruction: Instruction) -> None:
        if instruction.flags:
            flag = next(iter(instruction.flags))
            raise self._refused(instruction, f"--{flag} is not understood here; {_ELSE}")
        words = instruction.words or _script(instruction, self._shell)
        self._step(instruction, command=shlex.join(words))

    def _read_add(self, instruction: Instruction) -> None:
        self._read_copy(instruction)
        for copy in self._steps[-1].copies:
            if stat.S_ISREG(copy.source.lstat().st_mode) and tarfile.is_tarfile(copy.source):
                raise self._refused(instruction, "ADD would unpack it; use COPY and RUN tar")

    def _read_copy(self, instruction: Instruction) -> None:
        for flag in instruction.flags:
            if flag not in ("chown", "chmod", "link"):
                raise self._refused(instruction, f"--{flag} is not understood here; {_ELSE}")
        scope = self._scope()
        words = instruction.words or split_words(instruction.value)
        *sources, target = [expand(word, scope) for word in words] or [""]
        if not sources:
            raise self._refused(instruction, "at least one source and a target were expected")
        mode = instruction.flags.get("chmod", "")
        if mode and not all(char in "01234567" for char in mode):
            raise self._refused(instruction, "--chmod was expected to be octal")
        into = target.endswith("/") or target in (".", "..") or len(sources) > 1
        place = posixpath.normpath(posixpath.join(self._workdir, target))
        copies: list[Copy] = []
        lone_file = False
        for source in sources:
            if source.startswith(("http://", "https://", "git@")):
                raise self._refused(instruction, f"{source} is remote; {_ELSE}")
            for found in self._found(instruction, source):
                if found.is_dir():
                    copies += self._below(found, place)
                else:
                    inside = posixpath.join(place, found.name) if into else place
                    copies.append(Copy(source=found, target=inside))
                    lone_file = not into
        self._step(
            instruction,
            copies=tuple(copies),
            folders=(place,) if not lone_file else (),
            into_if_folder=lone_file and len(copies) == 1,
            digest=_digest_of(copies),
            owner=expand(instruction.flags.get("chown", ""), scope),
            mode=mode,
        )

    def _found(self, instruction: Instruction, source: str) -> list[Path]:
        names = sources(self._context, self._ignore, source)
        if not names:
            raise self._refused(
                instruction, f"{source} was expected in the build context {self._context}"
            )
        return [self._context / name for name in names]

    def _below(self, folder: Path, place: str) -> list[Copy]:
        copies = []
        below = folder.relative_to(self._context).as_posix()
        for name in walk(self._context, self._ignore, "" if below == "." else below):
            path = self._context / name
            inside = posixpath.join(place, path.relative_to(folder).as_posix())
            copies.append(Copy(source=path, target=inside))
        return copies

    def _scope(self) -> dict[str, str]:
        return {**self._args, **self._env}

    def _step(
        self,
        instruction: Instruction,
        *,
        command: str = "",
        copies: tuple[Copy, ...] = (),
        folders: tuple[str, ...] = (),
        into_if_folder: bool = False,
        digest: str = "",
        owner: str = "",
        mode: str = "",
    ) -> None:
        self._steps.append(
            Step(
                line=instruction.line,
                text=f"{instruction.name} {instruction.value}"[:100],
                command=command,
                copies=copies,
                into_if_folder=into_if_folder,
                digest=digest,
                owner=owner,
                mode=mode,
                folders=(*self._folders, *folders),
                env=self._scope() if command else {},
                workdir=self._workdir,
                user=self._user if command else "",
            )
        )
        self._folders = []

    def _refused(self, instruction: Instruction, why: str) -> ImageError:
        text = f"{instruction.name} {instruction.value}"[:80]
        return ImageError(f"{self._path}: line {instruction.line}: {text}: {why}")


def _script(instruction: Instruction, shell: tuple[str, ...]) -> tuple[str, ...]:
    """What RUN runs. A lone here-document is the script itself, as BuildKit has it."""
    mark = lone_heredoc(instruction)
    if mark is None:
        return (*shell, "\n".join((instruction.value, *instruction.bodies)))
    lines = instruction.bodies[0].splitlines(keepends=True)[:-1]
    script = "".join(line.lstrip("\t") if mark == "<<-" else line for line in lines)
    if not script.startswith("#!"):
        return (*shell, script)
    run = 'f=$(mktemp) && printf %s "$1" >"$f" && chmod 755 "$f"; "$f"; s=$?; rm "$f"; exit $s'
    return ("/bin/sh", "-c", run, "sh", script)


def pack_copies(copies: tuple[Copy, ...], mode: str) -> bytes:
    """A tar of the copies at their places below `/`, owned by root."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.GNU_FORMAT) as tar:
        for copy in copies:
            entry = tar.gettarinfo(copy.source, arcname=copy.target.lstrip("/"))
            if entry is None or entry.islnk():  # a socket; hard links cannot occur: see below
                continue
            entry.uid = entry.gid = 0
            entry.uname = entry.gname = ""
            if mode and not entry.issym():
                entry.mode = int(mode, 8)
            if entry.isreg():
                with copy.source.open("rb") as content:
                    tar.addfile(entry, content)
            else:
                tar.addfile(entry)
            tar.inodes.clear()  # type: ignore[attr-defined]  # each name is a file of its own
    return out.getvalue()


def _digest_of(copies: list[Copy]) -> str:
    parts = []
    for copy in copies:
        status = copy.source.lstat()
        if stat.S_ISLNK(status.st_mode):
            content = os.readlink(copy.source)
        elif stat.S_ISREG(status.st_mode):
            with copy.source.open("rb") as file:
                content = hashlib.file_digest(file, "sha256").hexdigest()
        else:
            content = ""
        parts += [copy.target, oct(status.st_mode), content]
    return _digest(parts) if parts else "nothing"


def _digest(parts: list[str]) -> str:
    return hashlib.sha256("\0".join(parts).encode("utf-8", "surrogateescape")).hexdigest()[:16]
