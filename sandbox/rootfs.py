"""The base root filesystem: Debian with what tasks commonly need, made once per machine.

Rule: a tree in the cache is complete or not there (made beside, then renamed), and two processes
never make the same one twice (a lock). The name of a tree holds a digest of what went into it. It
is read-only from then on: sandboxes put an overlay on top.
"""

import asyncio
import copy
import fcntl
import hashlib
import json
import os
import shutil
import subprocess
import tarfile
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import IO, Any

from headrace.aio import in_thread, run_shielded
from headrace.errors import ImageError

BASE_IMAGE = "headrace/base:bookworm"
BASE_SUITE = "bookworm"
BASE_PACKAGES = (
    "bc",
    "ca-certificates",
    "curl",
    "file",
    "gcc",
    "git",
    "iproute2",
    "jq",
    "less",
    "libc6-dev",
    "make",
    "netcat-openbsd",
    "openssl",
    "patch",
    "procps",
    "python3",
    "rsync",
    "sqlite3",
    "unzip",
    "xz-utils",
    "zip",
)
SHARED_CACHE = Path("/var/cache/headrace")
"""Where root may leave a tree for other users to copy."""
_RECIPE = 1  # counts changes of how the tree is made
_BUILD_TIMEOUT_S = 1800.0
_CONFIG = ("Env", "WorkingDir", "User", "Entrypoint")

Progress = Callable[[str], None]


def cache_folder() -> Path:
    """`HEADRACE_CACHE`, else `headrace` in the user's cache folder."""
    named = os.environ.get("HEADRACE_CACHE")
    if named:
        return Path(named)
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "headrace"


def base_folder(cache: Path | None = None) -> Path:
    """Where this user's base tree is, or will be.

    In a user namespace only files of this user can be changed, so a user has a copy of their own.
    """
    name = _base_name()
    own = name if os.geteuid() == 0 else f"{name}-u{os.geteuid()}"
    return (cache or cache_folder()) / "rootfs" / own


async def ensure_base(progress: Progress | None = None, *, cache: Path | None = None) -> Path:
    """The base tree: made by `debootstrap` as root (about a minute), else copied from root's.

    Raises `ImageError` with what to do where it cannot be made.
    """
    folder = base_folder(cache)
    if folder.is_dir():
        return folder
    say = progress or (lambda line: None)
    reason = can_build(cache)
    if reason is not None:
        raise ImageError(reason)
    async with lock(folder, say):
        if not folder.is_dir():
            source = _made_by_root(cache)
            if source is not None:
                say(f"copying the base root filesystem to {folder}")
                await _copy(source, folder)
            else:
                say(f"making the base root filesystem in {folder} (about a minute)")
                await _debootstrap(folder, say)
            say("the base root filesystem is ready")
    return folder


def base_tar(folder: Path) -> Iterator[bytes]:
    """The tree as a tar stream in chunks, owners kept, for an engine's import. Blocking."""
    command = ["tar", "-C", str(folder), "--numeric-owner", "-c", "-f", "-", "."]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        while chunk := process.stdout.read(1 << 20):
            yield chunk
    if process.returncode:
        raise ImageError(f"{folder} could not be packed: tar ended with {process.returncode}")


async def unpack_image(archive: Path, *, cache: Path | None = None) -> tuple[Path, dict[str, Any]]:
    """The tree and the configuration of an image archive: `docker save` or `docker export`.

    A tar, plain or compressed; an export has no configuration. As root the owners are kept;
    otherwise everything belongs to this user.
    """
    folder = await in_thread(lambda: archive_folder(archive, cache=cache))
    async with lock(folder, lambda line: None):
        if not folder.is_dir():
            await in_thread(_unpack_into, archive, folder)
    config = await in_thread(folder.with_name(f"{folder.name}.json").read_bytes)
    return folder, json.loads(config)


def archive_folder(archive: Path, *, cache: Path | None = None) -> Path:
    """Where the tree of an image archive is, or will be. Blocking; `ImageError` if it is none."""
    return (cache or cache_folder()) / "rootfs" / f"archive-{_archive_digest(archive)}"


def can_build(cache: Path | None = None) -> str | None:
    """None if the base tree is there or can be made; else why not and what to do."""
    try:
        if base_folder(cache).is_dir() or _made_by_root(cache) is not None:
            return None
    except PermissionError as e:
        return f"the cache cannot be read: {e}: set HEADRACE_CACHE to a folder of this user"
    if os.geteuid() != 0:
        return (
            "the base root filesystem can only be made as root: run headrace once with"
            f" sudo HEADRACE_CACHE={SHARED_CACHE} (it is copied from there)"
        )
    if shutil.which("debootstrap") is None:
        return "debootstrap was not found: install it (apt-get install debootstrap)"
    return None


def _base_name() -> str:
    text = json.dumps([_RECIPE, BASE_SUITE, BASE_PACKAGES])
    return f"base-{BASE_SUITE}-{hashlib.sha256(text.encode()).hexdigest()[:12]}"


def _made_by_root(cache: Path | None) -> Path | None:
    if os.geteuid() == 0:
        return None
    for place in (cache or cache_folder(), SHARED_CACHE):
        with suppress(PermissionError):
            if (place / "rootfs" / _base_name()).is_dir():
                return place / "rootfs" / _base_name()
    return None


async def _copy(source: Path, folder: Path) -> None:
    partial = folder.with_name(f"{folder.name}.partial-{os.getpid()}")
    script = (
        'mkdir -p "$2" && tar -C "$1" --exclude=./dev --exclude=./proc --ignore-failed-read'
        ' -c -f - . | tar -C "$2" --no-same-owner --delay-directory-restore -x -f -'
        ' && mkdir -p "$2/dev" "$2/proc"'
    )
    try:
        command = ["sh", "-c", script, "sh", str(source), str(partial)]
        await run_logged(command, lambda line: None, _BUILD_TIMEOUT_S)
        partial.rename(folder)
    finally:
        await run_shielded(in_thread(shutil.rmtree, partial, True))


async def _debootstrap(folder: Path, say: Progress) -> None:
    partial = folder.with_name(f"{folder.name}.partial-{os.getpid()}")
    command = ["debootstrap", "--variant=minbase", f"--include={','.join(BASE_PACKAGES)}"]
    command += [BASE_SUITE, str(partial)]
    mirror = os.environ.get("HEADRACE_DEBIAN_MIRROR")
    try:
        await run_logged([*command, mirror] if mirror else command, say, _BUILD_TIMEOUT_S)
        await in_thread(_finish_tree, partial)
        partial.rename(folder)
    finally:
        await run_shielded(in_thread(shutil.rmtree, partial, True))


async def run_logged(command: list[str], say: Progress, timeout_s: float) -> None:
    """Run a program of the host, passing on its lines; `ImageError` with the last of them."""
    tail: deque[str] = deque(maxlen=20)
    process = await asyncio.create_subprocess_exec(
        *command,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
        start_new_session=True,
    )
    assert process.stdout is not None
    try:
        async with asyncio.timeout(timeout_s):
            async for raw in process.stdout:
                line = raw.decode(errors="replace").rstrip()
                tail.append(line)
                say(line)
            code = await process.wait()
    except TimeoutError:
        raise ImageError(f"{command[0]} took longer than {timeout_s:.0f} s") from None
    finally:
        if process.returncode is None:
            process.kill()
            await run_shielded(process.wait())
    if code != 0:
        log = "\n".join(tail)
        raise ImageError(f"{command[0]} ended with exit code {code}; its last lines:\n{log}")


def _finish_tree(tree: Path) -> None:
    for pattern in ("var/cache/apt/archives/*.deb", "var/lib/apt/lists/*", "var/cache/apt/*.bin"):
        for path in tree.glob(pattern):
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink()
    for name in ("etc/resolv.conf", "etc/hostname", "var/log/bootstrap.log"):
        (tree / name).unlink(missing_ok=True)
    (tree / "etc/hosts").write_text("127.0.0.1 localhost\n::1 localhost\n")


@asynccontextmanager
async def lock(folder: Path, say: Progress) -> AsyncIterator[None]:
    """Hold the lock of a tree to be made; other processes wait and then find it made."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    handle = os.open(folder.with_name(f"{folder.name}.lock"), os.O_CREAT | os.O_RDWR, 0o600)
    waiting = False
    try:
        while True:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if not waiting:
                    say(f"waiting for another process that makes {folder}")
                    waiting = True
                await asyncio.sleep(0.2)
        yield
    finally:
        os.close(handle)


# --- image archives -------------------------------------------------------------------------


def _archive_digest(archive: Path) -> str:
    if not archive.is_file():
        raise ImageError(f"{archive}: an image archive (docker save or docker export) was expected")
    status = archive.stat()
    text = f"{archive.resolve()} {status.st_size} {status.st_mtime_ns} {os.geteuid()}"
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def _unpack_into(archive: Path, folder: Path) -> None:
    partial = folder.with_name(f"{folder.name}.partial-{os.getpid()}")
    partial.mkdir(parents=True)
    try:
        with tarfile.open(archive, "r:*") as tar:
            config = {}
            if "manifest.json" in set(tar.getnames()):
                config = _unpack_layers(tar, partial)
            else:
                _unpack_layer(tar, partial)
        if not (partial / "bin").exists() and not (partial / "usr").exists():
            raise ImageError(f"{archive}: no root filesystem in it (no /bin, no /usr)")
        folder.with_name(f"{folder.name}.json").write_text(json.dumps(config))
        partial.rename(folder)
    except (tarfile.TarError, OSError, KeyError, ValueError) as e:
        raise ImageError(f"{archive}: not a readable image archive: {e}") from e
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _unpack_layers(tar: tarfile.TarFile, folder: Path) -> dict[str, Any]:
    image = json.loads(_member(tar, "manifest.json").read())[0]
    for layer in image["Layers"]:
        with tarfile.open(fileobj=_member(tar, layer), mode="r:*") as inner:
            _unpack_layer(inner, folder)
    found = json.loads(_member(tar, image["Config"]).read()).get("config") or {}
    return {name: found[name] for name in _CONFIG if found.get(name)}


def _member(tar: tarfile.TarFile, name: str) -> IO[bytes]:
    content = tar.extractfile(name)
    if content is None:
        raise ValueError(f"{name} is no file")
    return content


def _unpack_layer(tar: tarfile.TarFile, folder: Path) -> None:
    """Extract one layer over `folder`, following the whiteout convention of image layers."""
    tar.extraction_filter = _as_it_is  # `_contained` has done what a filter does
    for member in tar:
        parent, _, name = member.name.rstrip("/").rpartition("/")
        if name == ".wh..wh..opq":
            for path in (folder / parent).iterdir():
                _remove(path)
        elif name.startswith(".wh."):
            _remove(folder / parent / name.removeprefix(".wh."))
        elif member.isreg() or member.isdir() or member.issym() or member.islnk():
            target = folder / member.name
            if not member.isdir() and (target.is_symlink() or target.exists()):
                _remove(target)
            tar.extract(_contained(member, folder), folder, numeric_owner=True)


def _as_it_is(member: tarfile.TarInfo, folder: str) -> tarfile.TarInfo:
    return member


def _contained(member: tarfile.TarInfo, folder: Path) -> tarfile.TarInfo:
    """The member under a name that stays in `folder`. Symbolic links may point anywhere: they
    are only ever followed inside the sandbox."""
    root = os.path.realpath(folder)
    names = [member.name, member.linkname] if member.islnk() else [member.name]
    for name in names:
        inside = os.path.normpath("/" + name).lstrip("/")
        parent = os.path.realpath(os.path.join(root, os.path.dirname(inside)))
        if os.path.commonpath([parent, root]) != root:
            raise ImageError(f"{member.name}: the archive writes outside of its own tree")
    contained = copy.copy(member)
    contained.name = os.path.normpath("/" + member.name).lstrip("/") or "."
    if member.islnk():
        contained.linkname = os.path.normpath("/" + member.linkname).lstrip("/")
    return contained


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
