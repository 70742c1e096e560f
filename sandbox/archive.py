"""Folders in and out of a sandbox, as tar archives.

Rule: what is packed never reaches outside its folder, and what comes back is data: unpacking
refuses absolute paths, `..`, links and devices, and writes nothing to disk. Packing and unpacking
run off the loop.
"""

import io
import os
import shlex
import stat
import tarfile
from pathlib import Path

from headrace.aio import in_thread
from headrace.errors import SandboxError
from headrace.sandbox.base import Sandbox

MAX_BYTES = 256 << 20
"""Largest archive that is taken in, either way."""
TIMEOUT_S = 110.0


def pack(folder: Path) -> bytes:
    """A tar of the folder's contents: dotfiles too, names sorted, owner root, times zero.

    `SandboxError` for a symbolic link that leaves the folder, a device, or too much data.
    """
    folder = folder.resolve()
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.GNU_FORMAT) as tar:
        for path in _walk(folder):
            _add(tar, path, folder)
            if out.tell() > MAX_BYTES:
                raise SandboxError(f"{folder}: expected at most {MAX_BYTES >> 20} MiB, found more")
    return out.getvalue()


def _walk(folder: Path) -> list[Path]:
    found = []
    for root, folders, files in os.walk(folder):
        found += [Path(root, name) for name in (*folders, *files)]
    return sorted(found)


def _add(tar: tarfile.TarFile, path: Path, folder: Path) -> None:
    info = tarfile.TarInfo(str(path.relative_to(folder)))
    status = path.lstat()
    info.mode = stat.S_IMODE(status.st_mode)
    if stat.S_ISLNK(status.st_mode):
        target = os.readlink(path)  # a link that stays inside is kept as it is
        inside = (path.parent / target).resolve().is_relative_to(folder)
        if os.path.isabs(target) or not inside:
            raise SandboxError(f"{path}: expected links inside {folder}, found {target}")
        info.type, info.linkname = tarfile.SYMTYPE, target
        tar.addfile(info)
    elif stat.S_ISDIR(status.st_mode):
        info.type = tarfile.DIRTYPE
        tar.addfile(info)
    elif stat.S_ISREG(status.st_mode):
        data = path.read_bytes()
        info.size = len(data)
        tar.addfile(info, io.BytesIO(data))
    else:
        raise SandboxError(f"{path}: expected files, folders and links, found something else")


def unpack(archive: bytes) -> dict[str, bytes]:
    """The regular files of a tar by normalised relative path.

    `SandboxError` for anything but files and folders below the top, or an unreadable archive.
    """
    files: dict[str, bytes] = {}
    try:
        with tarfile.open(fileobj=io.BytesIO(archive), mode="r:") as tar:
            for member in tar:
                path = _safe(member)
                if member.isreg():
                    content = tar.extractfile(member)
                    files[path] = b"" if content is None else content.read()
    except tarfile.TarError as e:
        raise SandboxError(f"expected a tar archive, found what cannot be read as one: {e}") from e
    return files


def _safe(member: tarfile.TarInfo) -> str:
    name = member.name
    if not (member.isreg() or member.isdir()):
        raise SandboxError(
            f"archive member {name!r}: expected files and folders, found a link or a device"
        )
    if name.startswith("/") or ".." in name.split("/"):
        raise SandboxError(f"archive member {name!r}: expected a path below the top")
    return os.path.normpath(name)


async def upload(sandbox: Sandbox, source: str | Path, target: str) -> None:
    """Put the contents of a host folder into `target`, which is made if it is missing.

    A relative `target` is taken from the sandbox's working directory. Needs `tar` inside.
    """
    archive = await in_thread(pack, Path(source))
    where = shlex.quote(target)
    result = await sandbox.exec(
        f"mkdir -p -- {where} && tar -x -f - -C {where} --no-same-owner",
        timeout_s=TIMEOUT_S,
        stdin=archive,
    )
    if result.exit_code != 0:
        said = result.stderr[-500:].decode(errors="replace").strip()
        raise SandboxError(f"could not put files into {target}: {said or 'tar failed'}")


async def download(sandbox: Sandbox, path: str, *, max_bytes: int = 64 << 20) -> dict[str, bytes]:
    """The regular files below a folder of the sandbox, by relative path.

    `SandboxError` when the folder is missing, larger than `max_bytes`, or holds links or devices.
    """
    where = shlex.quote(path)
    result = await sandbox.exec(
        f"tar -c -f - -C {where} .", timeout_s=TIMEOUT_S, max_output_bytes=max_bytes
    )
    if result.exit_code != 0:
        said = result.stderr[-500:].decode(errors="replace").strip()
        raise SandboxError(f"could not take files from {path}: {said or 'tar failed'}")
    if result.stdout_cut:
        raise SandboxError(f"{path}: expected at most {max_bytes} bytes, found more")
    return await in_thread(unpack, result.stdout)
