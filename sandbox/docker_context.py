"""A build context: what belongs to it, a digest of parts of it, and the tar an engine wants.

Rule: the same files give the same bytes and the same digest.
Owners and times are left out, as Docker's cache does; modes, symlinks and dotfiles are kept.
`.dockerignore` is honoured as Docker's own client does. Nothing here talks to an engine.
"""

import glob
import hashlib
import os
import posixpath
import re
import stat
import tarfile
from collections.abc import Iterable, Iterator, Set
from pathlib import Path
from tempfile import SpooledTemporaryFile

from headrace.errors import ImageError

IN_MEMORY_BYTES = 16 << 20
_DATE = 946684800
"""2000-01-01: a fixed time for every file. Zero would not do: zip files begin in 1980."""
_OUTSIDE_NAME = ".headrace.Dockerfile"


class Context:
    """A packed build context. Close it, or use it as a context manager."""

    def __init__(self, tar: "SpooledTemporaryFile[bytes]", dockerfile: str) -> None:
        self.tar = tar
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
    except OSError as e:
        spool.close()
        raise ImageError(f"cannot read the build context {root}: {e}") from e
    except BaseException:
        spool.close()
        raise
    spool.seek(0)
    return Context(spool, name)


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


def _files(root: Path, keep: set[str]) -> Iterator[str]:
    """Relative names of what belongs to the context, parents before children, sorted."""
    return walk(root, Ignore.read(root / ".dockerignore"), keep=keep)


def walk(
    root: Path, ignore: "Ignore", below: str = "", keep: Set[str] = frozenset()
) -> Iterator[str]:
    """Names relative to `root` of what is in its folder `below`, without what is ignored.

    Parents come before children, sorted; links are not followed; names in `keep` are never
    ignored.
    """
    for folder, folders, files in os.walk(root / below):
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


def sources(root: Path, ignore: "Ignore", pattern: str) -> list[str]:
    """Names relative to `root` that a source of `COPY` means; `.` is all, none is an error."""
    name = posixpath.normpath("/" + pattern).lstrip("/")
    if not name:
        return ["."]
    names = [name] if os.path.lexists(root / name) else []
    if not names and any(char in name for char in "*?["):
        names = sorted(glob.glob(name, root_dir=root, include_hidden=True))
    return [found for found in names if not _ignored(root, ignore, found)]


def _ignored(root: Path, ignore: "Ignore", name: str) -> bool:
    if not ignore.excludes(name):
        return False
    return not (ignore.has_exceptions and next(walk(root, ignore, name), None) is not None)


def digest_of(root: Path, ignore: "Ignore", names: Iterable[str]) -> "hashlib._Hash":
    """A digest over names, modes and contents of files and folders. Blocking."""
    digest = hashlib.sha256()
    for name in names:
        _digest_one(digest, root / name, "")
        if (root / name).is_dir() and not (root / name).is_symlink():
            for path in walk(root, ignore, "" if name == "." else name):
                _digest_one(digest, root / path, path)
    return digest


def _digest_one(digest: "hashlib._Hash", path: Path, name: str) -> None:
    status = path.lstat()
    digest.update(f"{name or path.name}\0{status.st_mode:o}\0".encode(errors="surrogateescape"))
    if stat.S_ISLNK(status.st_mode):
        digest.update(os.readlink(path).encode(errors="surrogateescape"))
    elif stat.S_ISREG(status.st_mode):
        with path.open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())


def _holds(folder: str, names: Set[str]) -> bool:
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
