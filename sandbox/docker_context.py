"""A build context as the engine wants it: a tar, its digest, and what the Dockerfile asks for.

Rule: the same files give the same bytes, so the digest of the tar is the identity of the image.
Owners and times are left out, as Docker's cache does; modes, symlinks and dotfiles are kept.
`.dockerignore` is honoured as Docker's own client does. Nothing here talks to an engine.
"""

import hashlib
import os
import re
import tarfile
from collections.abc import Iterator
from pathlib import Path
from tempfile import SpooledTemporaryFile

from headrace.errors import ImageError
from headrace.types import Record

IN_MEMORY_BYTES = 16 << 20
_DATE = 946684800
"""2000-01-01: a fixed time for every file. Zero would not do: zip files begin in 1980."""
_OUTSIDE_NAME = ".headrace.Dockerfile"


class Dockerfile(Record, frozen=True, kw_only=True):
    """What can be known of a Dockerfile without building it."""

    bases: tuple[str, ...] = ()
    """Images named by `FROM`, without the stages of the file itself."""
    buildkit: tuple[str, ...] = ()
    """What it uses that only BuildKit understands, with line numbers."""


class Context:
    """A packed build context. Close it, or use it as a context manager."""

    def __init__(self, tar: "SpooledTemporaryFile[bytes]", digest: str, dockerfile: str) -> None:
        self.tar = tar
        self.digest = digest
        self.dockerfile = dockerfile
        """Name of the Dockerfile inside the tar."""

    def __enter__(self) -> "Context":
        return self

    def __exit__(self, *exc: object) -> None:
        self.tar.close()


def pack(context: str, dockerfile: str) -> Context:
    """Pack a folder and its Dockerfile. Blocking. Raises `ImageError` for what cannot be read."""
    root, recipe = Path(context), Path(dockerfile)
    if not recipe.is_file():
        raise ImageError(f"expected a Dockerfile at {recipe}, found none: the task cannot be built")
    if not root.is_dir():
        raise ImageError(f"expected a folder as build context, found none at {root}")
    inside = recipe.is_relative_to(root)
    name = recipe.relative_to(root).as_posix() if inside else _OUTSIDE_NAME
    spool: SpooledTemporaryFile[bytes] = SpooledTemporaryFile(max_size=IN_MEMORY_BYTES)
    try:
        # The owner, group and times of `_entry`, and sorted names, make the bytes repeatable.
        with tarfile.open(fileobj=spool, mode="w", format=tarfile.GNU_FORMAT) as tar:
            for path in _files(root, keep={name, ".dockerignore"}):
                _add(tar, root / path, path)
            if not inside:
                _add(tar, recipe, name)
        digest = _digest(spool, name)
    except OSError as e:
        spool.close()
        raise ImageError(f"cannot read the build context {root}: {e}") from e
    except BaseException:
        spool.close()
        raise
    spool.seek(0)
    return Context(spool, digest, name)


def _add(tar: tarfile.TarFile, source: Path, name: str) -> None:
    entry = tar.gettarinfo(source, arcname=name)
    if entry is None:  # a socket: no tar can hold it
        return
    entry.uid = entry.gid = 0
    entry.uname = entry.gname = ""
    entry.mtime = _DATE
    if entry.isreg():
        with source.open("rb") as data:
            tar.addfile(entry, data)
    else:
        tar.addfile(entry)


def _digest(spool: "SpooledTemporaryFile[bytes]", dockerfile: str) -> str:
    digest = hashlib.sha256(dockerfile.encode() + b"\0")
    spool.seek(0)
    while chunk := spool.read(1 << 20):
        digest.update(chunk)
    return digest.hexdigest()


def _files(root: Path, keep: set[str]) -> Iterator[str]:
    """Relative names of what belongs to the context, parents before children, sorted."""
    ignore = Ignore.read(root / ".dockerignore")
    for folder, folders, files in os.walk(root):
        at = Path(folder).relative_to(root)
        walked: list[str] = []
        for name in sorted(folders):
            path = (at / name).as_posix()
            link = (root / path).is_symlink()
            if not ignore.excludes(path):
                yield path
                walked += [] if link else [name]
            elif not link and (ignore.has_exceptions or _holds(path, keep)):
                walked.append(name)
        folders[:] = walked
        for name in sorted(files):
            path = (at / name).as_posix()
            if path in keep or not ignore.excludes(path):
                yield path


def _holds(folder: str, names: set[str]) -> bool:
    return any(name.startswith(folder + "/") for name in names)


class Ignore:
    """The rules of a `.dockerignore`: the last pattern that matches a path or a parent decides."""

    def __init__(self, lines: list[str]) -> None:
        self._rules: list[tuple[bool, re.Pattern[str]]] = []
        for raw in lines:
            line = raw.strip()
            if not line or line.startswith("#"):
                continue
            exception = line.startswith("!")
            pattern = os.path.normpath(line.removeprefix("!").strip()).lstrip("/")
            if pattern not in ("", "."):
                self._rules.append((exception, _compile(pattern)))
        self.has_exceptions = any(exception for exception, _ in self._rules)

    @classmethod
    def read(cls, path: Path) -> "Ignore":
        try:
            text = path.read_text(encoding="utf-8-sig", errors="replace")
        except FileNotFoundError:
            text = ""
        return cls(text.splitlines())

    def excludes(self, path: str) -> bool:
        parts = path.split("/")
        chain = ["/".join(parts[: i + 1]) for i in range(len(parts))]
        excluded = False
        for exception, pattern in self._rules:
            if excluded == exception and any(pattern.fullmatch(name) for name in chain):
                excluded = not exception
        return excluded


def _compile(pattern: str) -> re.Pattern[str]:
    out, i = "", 0
    while i < len(pattern):
        if pattern.startswith("**/", i):
            out, i = out + "(?:.*/)?", i + 3
        elif pattern.startswith("**", i):
            out, i = out + ".*", i + 2
        elif pattern[i] == "*":
            out, i = out + "[^/]*", i + 1
        elif pattern[i] == "?":
            out, i = out + "[^/]", i + 1
        elif pattern[i] == "[" and "]" in pattern[i + 1 :]:
            end = pattern.index("]", i + 1)
            out, i = out + f"[{pattern[i + 1 : end]}]", end + 1
        elif pattern[i] == "\\" and i + 1 < len(pattern):
            out, i = out + re.escape(pattern[i + 1]), i + 2
        else:
            out, i = out + re.escape(pattern[i]), i + 1
    return re.compile(out, re.DOTALL)


_FROM = re.compile(r"^\s*FROM\s+(?:--\S+\s+)*(\S+)(?:\s+AS\s+(\S+))?", re.IGNORECASE)
_HEREDOC = re.compile(r"^\s*(RUN|COPY|ADD)\b.*?(?<!<)<<-?['\"]?\w+", re.IGNORECASE)
_FLAG = re.compile(
    r"^\s*(?:RUN\s+(?:--\S+\s+)*(--(?:mount|network|security))\b"
    r"|(?:COPY|ADD)\s+(?:--\S+\s+)*(--(?:link|chmod|checksum|exclude|parents))\b)",
    re.IGNORECASE,
)


def inspect(text: str) -> Dockerfile:
    """The bases of a Dockerfile and its uses of BuildKit."""
    bases: list[str] = []
    stages: set[str] = set()
    buildkit: list[str] = []
    for number, line in enumerate(text.splitlines(), 1):
        if match := _FROM.match(line):
            image, stage = match.groups()
            if image.lower() not in stages and image != "scratch" and image not in bases:
                bases.append(image)
            if stage:
                stages.add(stage.lower())
        elif match := _FLAG.match(line):
            buildkit.append(f"{match[1] or match[2]} (line {number})")
        elif _HEREDOC.match(line):
            buildkit.append(f"a here-document (line {number})")
    return Dockerfile(bases=tuple(bases), buildkit=tuple(buildkit))
