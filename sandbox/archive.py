"""Folders in and out of a sandbox, as tar streams over `Sandbox.exec`.

Rule: what leaves the host is exactly the folder or the file named, and what comes back is plain
files with plain relative names; anything else (links out of the folder, absolute paths, `..`,
devices) is refused with the offending name. Packing and unpacking run in a thread.
"""

import io
import marshal
import os
import posixpath
import shlex
import stat
import tarfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path

from headrace.aio import in_thread
from headrace.errors import SandboxError, TaskError, boundary
from headrace.sandbox.base import Sandbox
from headrace.tasks.harbor_ignore import HarborIgnore

TRANSFER_TIMEOUT_S = 300.0


class ArchiveError(SandboxError):
    """A folder or archive holds what must not travel. Trying again does not help."""

    retry = False


def pack(directory: str | Path, *, prefix: str = "", ignoring: bool = True) -> bytes:
    """A tar of everything in a host folder: sorted, owner 0, times 0, dotfiles included.

    Of a single file: that file, under its own name. A symbolic link is kept as a link if it stays
    in the folder, else `ArchiveError`. So is a socket, a FIFO or a device, and what cannot be
    read. What a `.harborignore` names is left out, unless `ignoring` is False.
    """
    root = Path(directory)
    alone = root.is_file()
    if not alone and not root.is_dir():
        raise ArchiveError(f"{root}: a folder or a file was expected")
    out = io.BytesIO()
    with (
        boundary(ArchiveError, f"{root} could not be packed"),
        tarfile.open(fileobj=out, mode="w", format=tarfile.GNU_FORMAT) as tar,
    ):
        if alone:
            _add_file(tar, root, posixpath.join(prefix, root.name))
        for path in () if alone else _walk(root, ignoring=ignoring):
            _add(tar, root, path, prefix)
    return out.getvalue()


@contextmanager
def read_tar() -> Iterator[None]:
    """Whatever the standard reader stumbles over in a block is a `tarfile.TarError`.

    Of a crafted archive it lets numbers that are none and sizes beyond any memory out as they are.
    """
    try:
        yield
    except (ValueError, OverflowError, RecursionError, MemoryError) as e:
        raise tarfile.ReadError(f"bad archive: {type(e).__name__}: {e}") from e


def unpack(data: bytes) -> dict[str, bytes]:
    """The regular files of a tar by normalised relative path; `ArchiveError` for anything odd."""
    files: dict[str, bytes] = {}
    try:
        with read_tar(), tarfile.open(fileobj=io.BytesIO(data), mode="r:") as tar:
            for member in tar:
                name = _safe_name(member)
                if not member.isdir():
                    content = tar.extractfile(member)
                    assert content is not None
                    files[name] = content.read()
    except tarfile.TarError as e:
        raise ArchiveError(f"a tar archive was expected: {e}") from e
    return files


@lru_cache(maxsize=64)
def entries(data: bytes) -> bytes:
    """An archive of `pack` as `inside.unpack` reads it. `ArchiveError` for what it never holds."""
    out = []
    with read_tar(), tarfile.open(fileobj=io.BytesIO(data), mode="r:") as tar:
        for member in tar:
            name, content = os.fsencode(member.name), b""
            if member.isreg():
                file = tar.extractfile(member)
                assert file is not None
                kind, content = "file", file.read()
            elif member.issym():
                kind, content = "link", os.fsencode(member.linkname)
            elif member.isdir():
                kind = "folder"
            else:
                raise ArchiveError(f"{member.name}: only files, folders and links can be packed")
            out.append((kind, name, member.mode, int(member.mtime), content))
    return marshal.dumps(out)


async def upload(sandbox: Sandbox, source: str | Path, target: str) -> None:
    """Put the contents of host folder `source` into `target`, made if it does not exist.

    A `source` that is a file goes into `target` under its own name. Relative targets are below
    the sandbox's working directory. Files get owner root and keep their mode; files that are
    already there stay.
    """
    data = await in_thread(pack, source)
    where = shlex.quote(target)
    result = await sandbox.exec(
        f"mkdir -p -- {where} && tar -x -o -f - -C {where}",
        timeout_s=TRANSFER_TIMEOUT_S,
        stdin=data,
    )
    if result.exit_code != 0:
        said = result.stderr[-500:].decode(errors="replace").strip()
        raise SandboxError(f"{source} could not be put into {target}: {said or 'timed out'}")


async def download(sandbox: Sandbox, path: str, *, max_bytes: int = 256 << 20) -> dict[str, bytes]:
    """The files below `path` of the sandbox by relative path. Links and devices are refused."""
    result = await sandbox.exec(
        f"tar -c -f - -C {shlex.quote(path)} .",
        timeout_s=TRANSFER_TIMEOUT_S,
        max_output_bytes=max_bytes,
    )
    if result.stdout_cut:
        raise ArchiveError(f"{path}: more than {max_bytes} bytes; ask for less or raise the limit")
    if result.exit_code != 0:
        said = result.stderr[-500:].decode(errors="replace").strip()
        raise SandboxError(f"{path} could not be read: {said or 'timed out'}")
    return await in_thread(unpack, result.stdout)


def _walk(root: Path, *, ignoring: bool) -> list[Path]:
    found: list[Path] = []
    ignore = HarborIgnore(root)
    for folder, names, files in os.walk(root):
        here = Path(folder)
        if not ignoring:
            found += [here / name for name in (*names, *files)]
            continue
        names[:] = [name for name in names if not _ignored(ignore, root, here / name)]
        found += [here / name for name in names]
        found += [here / name for name in files if not _ignored(ignore, root, here / name)]
    return sorted(found)


def _ignored(ignore: HarborIgnore, root: Path, path: Path) -> bool:
    """Whether a path, or what a link in the folder leads to, is to stay here."""
    name = path.relative_to(root).as_posix()
    try:
        if ignore.excludes(name, is_folder=path.is_dir()):
            return True
        if not path.is_symlink() or _leaves(root, path, link := os.readlink(path)):
            return False
        target = posixpath.normpath(posixpath.join(posixpath.dirname(name), link))
        return target != "." and ignore.excludes(target, is_folder=path.is_dir())
    except TaskError as e:
        raise ArchiveError(str(e)) from e


def _add(tar: tarfile.TarFile, root: Path, path: Path, prefix: str) -> None:
    name = posixpath.join(prefix, path.relative_to(root).as_posix())
    status = path.lstat()
    info = tarfile.TarInfo(name)
    info.mode = stat.S_IMODE(status.st_mode)
    if stat.S_ISLNK(status.st_mode):
        info.type, info.linkname, info.mode = tarfile.SYMTYPE, os.readlink(path), 0o777
        if _leaves(root, path, info.linkname):
            raise ArchiveError(f"{path}: the link leaves its folder (to {info.linkname})")
        tar.addfile(info)
    elif stat.S_ISDIR(status.st_mode):
        info.type = tarfile.DIRTYPE
        tar.addfile(info)
    elif stat.S_ISREG(status.st_mode):
        _add_file(tar, path, name)
    else:
        raise ArchiveError(f"{path}: only files, folders and links can be packed")


def _add_file(tar: tarfile.TarFile, path: Path, name: str) -> None:
    info = tarfile.TarInfo(name)
    with path.open("rb") as content:
        status = os.fstat(content.fileno())
        info.size, info.mode = status.st_size, stat.S_IMODE(status.st_mode)
        tar.addfile(info, content)


def _leaves(root: Path, link: Path, target: str) -> bool:
    if os.path.isabs(target):
        return True
    inside = posixpath.normpath(posixpath.join(link.parent.relative_to(root).as_posix(), target))
    return inside == ".." or inside.startswith("../")


def _safe_name(member: tarfile.TarInfo) -> str:
    if not (member.isreg() or member.isdir()):
        raise ArchiveError(f"{member.name}: only files and folders are taken from an archive")
    parts = member.name.split("/")
    if member.name.startswith("/") or ".." in parts or "\0" in member.name:
        raise ArchiveError(f"{member.name}: the name leaves the folder")
    return posixpath.normpath(member.name)
