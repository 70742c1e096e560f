"""The files of a Harbor task: walked safely, digested, and the Dockerfile's sources looked up.

Rule: nothing outside the task folder is read, no link is followed, and only regular files are
opened, so that a pipe or a device cannot stop the reader.
"""

import hashlib
import json
import os
import re
import stat
from collections.abc import Container, Iterable, Iterator, Sequence
from pathlib import Path

import msgspec

from headrace.errors import TaskError

PARTS = (".harborignore", "environment", "instruction.md", "solution", "task.toml", "tests",
         "trajectory.json")  # fmt: skip
"""What makes up a task. Other entries (README, notes) do not change its digest."""
_LEFTOVERS = frozenset({"__pycache__", ".pytest_cache", ".DS_Store", ".git"})
_GLOB = re.compile(r"[*?\[]")
_HEREDOC = re.compile(r"<<-?\s*([\"']?)([A-Za-z_][A-Za-z0-9_]*)\1")
_REMOTE = re.compile(r"(https?|git|ssh)://|git@|\S+\.git(#|$)")


class Entry(msgspec.Struct, frozen=True):
    """One file or link of a task."""

    name: str
    """Relative, with forward slashes."""
    path: str
    mode: int
    link: str | None


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

    A part in `alone` travels alone, so a link that leaves it is refused; no link leaves the task.
    Pipes and devices are refused.
    """
    stack = [(name, os.path.join(root, name)) for name in reversed(parts)]
    real_root = os.path.realpath(root)
    while stack:
        name, path = stack.pop()
        try:
            mode = os.lstat(path).st_mode
        except FileNotFoundError:
            continue
        if stat.S_ISLNK(mode):
            link = os.readlink(path)
            part = name.split("/")[0] if "/" in name else ""
            part = part if part in alone else ""
            if os.path.isabs(link) or not _within(path, os.path.join(real_root, part)):
                where = f"the folder {part}/ of the task" if part else "the task folder"
                raise TaskError(f"{path}: the link to {link} leaves {where}")
            yield Entry(name, path, mode, link)
        elif stat.S_ISDIR(mode):
            children = sorted(set(os.listdir(path)) - _LEFTOVERS, reverse=True)
            stack += [(f"{name}/{child}", os.path.join(path, child)) for child in children]
        elif stat.S_ISREG(mode):
            yield Entry(name, path, mode, None)
        else:
            raise TaskError(f"{path}: expected a file, a folder or a link, found a special file")


def _within(path: str, folder: str) -> bool:
    return f"{os.path.realpath(path)}{os.sep}".startswith(folder.rstrip(os.sep) + os.sep)


def digest(root: Path) -> str:
    """sha256 over relative names, executable bits and contents of the task's parts, in order."""
    return digest_of(entries(root))


def digest_of(found: Iterable[Entry]) -> str:
    """sha256 over names, executable bits and contents of `found`, in that order."""
    total = hashlib.sha256()
    for entry in found:
        name = os.fsencode(entry.name)
        if entry.link is not None:
            kind, content = b"l", hashlib.sha256(os.fsencode(entry.link)).digest()
        else:
            kind = b"x" if entry.mode & 0o111 else b"f"
            with open(entry.path, "rb") as file:
                content = hashlib.file_digest(file, "sha256").digest()
        total.update(b"%d:%s%s%s" % (len(name), name, kind, content))
    return total.hexdigest()


def missing_sources(dockerfile: str, context: Path) -> list[str]:
    """Sources of COPY and ADD that the build context does not hold.

    A light reading: sources with variables, from other stages, from the network and here-documents
    are taken as there. The builder has the last word.
    """
    return [
        source
        for source in _sources(dockerfile)
        if not (_REMOTE.match(source) or "$" in source or _exists(source, context))
    ]


def _exists(source: str, context: Path) -> bool:
    relative = os.path.normpath(source.lstrip("/") or ".")
    if relative == ".." or relative.startswith("../"):
        return False
    if not _GLOB.search(relative):
        return os.path.lexists(context / relative)
    try:
        return next(context.glob(relative), None) is not None
    except (ValueError, re.error):
        return True  # a pattern that Python reads differently: left to the builder


def _sources(dockerfile: str) -> Iterator[str]:
    for instruction, rest in _instructions(dockerfile):
        if instruction not in ("COPY", "ADD") or "<<" in rest:
            continue
        words = rest.split()
        while words and words[0].startswith("--"):
            if words.pop(0).startswith("--from="):
                words = []
        yield from _words(words)[:-1]


def _words(words: list[str]) -> list[str]:
    text = " ".join(words)
    if text.startswith("["):
        try:
            listed = json.loads(text)
        except (ValueError, RecursionError):
            return []
        return [word for word in listed if isinstance(word, str)]
    return words


def _instructions(dockerfile: str) -> Iterator[tuple[str, str]]:
    """Instruction and arguments, continuation lines joined, here-documents left out."""
    lines = iter(dockerfile.splitlines())
    for line in lines:
        text = line.strip()
        if not text or text.startswith("#"):
            continue
        while text.endswith("\\"):
            following = next(lines, "").strip()
            while following.startswith("#"):
                following = next(lines, "").strip()
            text = f"{text[:-1].rstrip()} {following}"
        word, _, rest = text.partition(" ")
        yield word.upper(), rest.strip()
        if word.upper() in ("RUN", "COPY", "ADD"):
            for mark in _HEREDOC.finditer(rest):
                for body in lines:
                    if body.strip() == mark[2]:
                        break
