"""An archive that comes out of a sandbox, written below a folder of the host.

Rule: what is written lies below the folder, whatever the archive says. Everybody may read the
files, and run those that their owner could; no other bit of the mode is kept. A link is kept when
it stays inside and passes through no other link; all links are made last, so that nothing is
written through one. Anything else (absolute names, `..`, devices, FIFOs) is left out, with its
name in the answer.
"""

import io
import os
import posixpath
import tarfile
from pathlib import Path

from headrace.sandbox.archive import read_tar
from headrace.types import Record

MAX_ENTRIES = 50_000
SHOWN = 3


class TooMuch(Exception):
    """The archive holds more entries or bytes than it may."""


class Unpacked(Record, frozen=True, kw_only=True):
    """What was written."""

    files: int
    refused: tuple[str, ...] = ()
    """Names of what was left out."""

    @property
    def detail(self) -> str:
        if not self.refused:
            return ""
        names = ", ".join(repr(name) for name in self.refused[:SHOWN])
        more = len(self.refused) - SHOWN
        return f"left out: {names}" + (f" and {more} more" if more > 0 else "")


def unpack_below(
    data: bytes, target: Path, *, max_bytes: int, max_entries: int = MAX_ENTRIES
) -> Unpacked:
    """Write the archive `data` below `target`, a folder of its own. Blocking.

    Raises `tarfile.TarError` for what is no archive, `TooMuch`, and `OSError`.
    """
    writer = _Writer(target, max_bytes)
    target.mkdir(parents=True, exist_ok=True)
    with (
        read_tar(),
        tarfile.open(fileobj=io.BytesIO(data), mode="r:", errors="surrogateescape") as tar,
    ):
        for entries, member in enumerate(tar):
            if entries >= max_entries:
                raise TooMuch(f"more than {max_entries} files")
            writer.take(tar, member)
    writer.link()
    return Unpacked(files=writer.files, refused=tuple(writer.refused))


class _Writer:
    def __init__(self, target: Path, max_bytes: int) -> None:
        self.files = 0
        self.refused: list[str] = []
        self._target = target
        self._left = max_bytes
        self._links: dict[str, str] = {}

    def take(self, tar: tarfile.TarFile, member: tarfile.TarInfo) -> None:
        """Write a member, or keep it for later, or refuse it."""
        name = _safe_name(member.name)
        if name is None:
            self.refused.append(member.name)
        elif member.issym():
            self._links[name] = member.linkname
        elif member.isdir():
            (self._target / name).mkdir(parents=True, exist_ok=True)
        elif not self._file(tar, member, self._target / name):
            self.refused.append(member.name)

    def link(self) -> None:
        """Make the links that stay inside."""
        for name, to in self._links.items():
            path = self._target / name
            if os.path.lexists(path) or not _stays(name, to, self._links):
                self.refused.append(name)
                continue
            path.parent.mkdir(parents=True, exist_ok=True)
            path.symlink_to(to)
            self.files += 1

    def _file(self, tar: tarfile.TarFile, member: tarfile.TarInfo, path: Path) -> bool:
        """Write one file; False for a device and for a hard link to nothing."""
        if not (member.isreg() or member.islnk()):
            return False
        try:
            content = tar.extractfile(member)
        except (KeyError, RecursionError):  # a hard link to nothing, or to a link to itself
            return False
        if content is None:
            return False
        path.parent.mkdir(parents=True, exist_ok=True)
        path.unlink(missing_ok=True)
        with path.open("xb") as out:
            while chunk := content.read(1 << 20):
                self._left -= len(chunk)  # a sparse file and hard links may hold more than came
                if self._left < 0:
                    raise TooMuch("its files are larger than the archive says")
                out.write(chunk)
        path.chmod(0o755 if member.mode & 0o100 else 0o644)
        self.files += 1
        return True


def _safe_name(name: str) -> str | None:
    if name.startswith("/") or "\0" in name or ".." in name.split("/"):
        return None
    return posixpath.normpath(name)


def _stays(name: str, to: str, links: dict[str, str]) -> bool:
    """Whether a link ends below the folder and is reached and followed through no other link."""
    if not to or to.startswith("/") or "\0" in to:
        return False
    folder = posixpath.dirname(name)
    if any(_prefix(folder, n) in links for n in range(folder.count("/") + 1)):
        return False
    at = folder
    parts = to.split("/")
    for number, part in enumerate(parts):
        at = posixpath.normpath(posixpath.join(at, part))
        if at == ".." or at.startswith("../"):
            return False
        at = "" if at == "." else at
        if number < len(parts) - 1 and at in links:
            return False
    return True


def _prefix(path: str, n: int) -> str:
    return "/".join(path.split("/")[: n + 1])
