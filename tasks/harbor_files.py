"""The files of a Harbor task, walked safely and digested.

Rule: nothing outside the task folder is read, no link is followed, and only regular files are
opened, so that a pipe or a device cannot stop the reader.
"""

import hashlib
import os
import stat
from collections.abc import Container, Iterable, Iterator, Sequence
from pathlib import Path

import msgspec

from headrace.errors import TaskError
from headrace.tasks.harbor_ignore import NAME as HARBORIGNORE
from headrace.tasks.harbor_ignore import HarborIgnore

PARTS = (".harborignore", "environment", "instruction.md", "solution", "steps", "task.toml",
         "tests", "trajectory.json")  # fmt: skip
"""What makes up a task. Other entries (README, notes) do not change its digest."""
LEFTOVERS = frozenset({"__pycache__", ".pytest_cache", ".DS_Store", ".git"})
MAX_FILES = 200_000
MAX_TOTAL_BYTES = 8 << 30


class Entry(msgspec.Struct, frozen=True):
    """One file or link of a task."""

    name: str
    """Relative, with forward slashes."""
    path: str
    mode: int
    link: str | None
    size: int = 0


def read_text(root: Path, name: str, max_bytes: int) -> str:
    """A text file of the task as UTF-8. `TaskError` if it is absent, odd or too large."""
    path = root / name
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):
            raise TaskError(f"{path}: expected a regular file")
        if status.st_size > max_bytes:
            raise TaskError(f"{path}: expected at most {max_bytes} bytes, found {status.st_size}")
        return path.read_bytes()[:max_bytes].decode("utf-8-sig")
    except UnicodeDecodeError as e:
        raise TaskError(f"{path}: expected UTF-8, found byte 0x{e.object[e.start]:02x} "
                        f"at {e.start}") from None  # fmt: skip
    except FileNotFoundError:
        raise TaskError(f"{root}: no {name}") from None
    except OSError as e:
        raise TaskError(f"{path}: {e.strerror}") from None


def entries(
    root: Path, parts: Sequence[str] = PARTS, alone: Container[str] = PARTS
) -> Iterator[Entry]:
    """Files and links of the task's parts, by name.

    A part in `alone` travels alone, so a link that leaves it is refused; no link leaves the parts.
    Pipes and devices are refused. What a `.harborignore` keeps here is not judged.
    """
    stack = [(name, os.path.join(root, name)) for name in reversed(parts)]
    real_root = os.path.realpath(root)
    while stack:
        name, path = stack.pop()
        try:
            status = os.lstat(path)
        except FileNotFoundError:
            continue
        mode = status.st_mode
        if stat.S_ISLNK(mode):
            yield Entry(name, path, mode, _link(root, real_root, name, path, parts, alone))
        elif stat.S_ISDIR(mode):
            children = sorted(set(os.listdir(path)) - LEFTOVERS, reverse=True)
            stack += [(f"{name}/{child}", os.path.join(path, child)) for child in children]
        elif stat.S_ISREG(mode):
            if name.endswith(HARBORIGNORE):
                _ignored(root, name)  # refuses rules that cannot be read
            yield Entry(name, path, mode, None, status.st_size)
        elif not _ignored(root, name):
            raise TaskError(f"{path}: expected a file, a folder or a link, found a special file")


def _link(
    root: Path,
    real_root: str,
    name: str,
    path: str,
    parts: Sequence[str],
    alone: Container[str],
) -> str:
    """Where a link leads, as written. `TaskError` when it leads out."""
    link = os.readlink(path)
    part = part_of(name)
    part = part if part.split("/")[0] in alone else ""
    if os.path.isabs(link) or not _within(path, os.path.join(real_root, part)):
        if _ignored(root, name):
            return link
        where = f"the folder {part}/ of the task" if part else "the task folder"
        raise TaskError(f"{path}: the link to {link} leaves {where}")
    if not part:
        first = os.path.relpath(os.path.realpath(path), real_root).split(os.sep)[0]
        if first not in parts:
            raise TaskError(
                f"{path}: the link to {link} leaves what makes up the task: {', '.join(parts)}"
            )
    return link


def _within(path: str, folder: str) -> bool:
    return f"{os.path.realpath(path)}{os.sep}".startswith(folder.rstrip(os.sep) + os.sep)


def part_of(name: str) -> str:
    """The folder that travels as one and holds `name`; empty for what is read here only."""
    parts = name.split("/")
    depth = 3 if parts[0] == "steps" else 1
    return "/".join(parts[:depth]) if len(parts) > depth else ""


def _ignored(root: Path, name: str) -> bool:
    """Whether a `.harborignore` of `tests/` or `solution/` keeps `name` here."""
    part = part_of(name)
    if part.rpartition("/")[2] not in ("tests", "solution"):
        return False
    return HarborIgnore(root / part).excludes(name.removeprefix(f"{part}/"))


def digest(root: Path, parts: Sequence[str] = PARTS) -> str:
    """sha256 over relative names, executable bits and contents of the task's parts, in order."""
    return digest_of(entries(root, parts))


def digest_of(found: Iterable[Entry]) -> str:
    """sha256 over names, executable bits and contents of `found`, in that order."""
    total = hashlib.sha256()
    files = size = 0
    for entry in found:
        files += 1
        size += entry.size
        if files > MAX_FILES or size > MAX_TOTAL_BYTES:
            raise TaskError(
                f"{entry.path}: expected at most {MAX_FILES} files and {MAX_TOTAL_BYTES >> 30} GiB "
                "in one task; this one is over it"
            )
        name = os.fsencode(entry.name)
        if entry.link is not None:
            kind, content = b"l", hashlib.sha256(os.fsencode(entry.link)).digest()
        else:
            kind = b"x" if entry.mode & 0o111 else b"f"
            with open(entry.path, "rb") as file:
                content = hashlib.file_digest(file, "sha256").digest()
        total.update(b"%d:%s%s%s" % (len(name), name, kind, content))
    return total.hexdigest()
