"""The files around a compose file: read with bounds, and copied for one episode. Blocking.

Rule: a task's own folder is never mounted where it could be written to; each episode has a copy of
what its file mounts, under a lease, gone with the episode or at the next sweep.
"""

import os
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path

from headrace.aio import in_thread, run_shielded
from headrace.errors import SandboxError, TaskError, boundary
from headrace.sandbox import leases
from headrace.sandbox.compose import files_named, includes, inside, roots
from headrace.tasks.yaml_file import MAX_BYTES, parse_yaml
from headrace.types import ComposeFile

MAX_FILES = 20
MAX_COPY_BYTES = 256 << 20
MAX_COPY_FILES = 20_000


def scan(compose: ComposeFile) -> str:
    """The text of the file and all it includes or extends.

    Raises `TaskError` for what is no YAML, too large, or names a file outside the task's folder.
    """
    allowed = roots(compose)
    todo = [(compose.path, compose.context)]
    seen: dict[str, str] = {}
    done: set[tuple[str, str]] = set()
    while todo:
        path, folder = todo.pop()
        if (path, folder) in done:
            continue
        done.add((path, folder))
        if len(done) > MAX_FILES:
            raise TaskError(f"{compose.path}: more than {MAX_FILES} files are included")
        seen[path] = _read(path)
        document = parse_yaml(seen[path], path, compose=True).value
        implied = ((".env of the folder", ".env"),)  # read without being named
        for key, name in (*implied, *files_named(document)):
            found = os.path.join(folder, name)
            if _is_elsewhere(name) or "://" in name or not inside(found, allowed):
                raise TaskError(
                    f"{path}: {key} names {name}, expected a plain path in the task's folder"
                )
            if key == "extends":
                todo.append((found, os.path.dirname(found)))
        for paths, name in includes(document):
            where = os.path.join(folder, name)
            if _is_elsewhere(name) or not inside(where, allowed):
                raise TaskError(
                    f"{path}: include has the folder {name}, expected one in the task's folder"
                )
            todo += [(os.path.join(folder, each), where) for each in paths]
    return "\n".join(seen.values())


def _is_elsewhere(name: str) -> bool:
    """Whether `docker compose` makes another path of it: a variable's value, a home folder."""
    return "$" in name or name.startswith("~")


def _read(path: str) -> str:
    if not os.path.isfile(path):
        raise TaskError(f"{path}: expected a compose file, found none")
    if os.path.getsize(path) > MAX_BYTES:
        raise TaskError(f"{path}: expected at most {MAX_BYTES} bytes")
    return Path(path).read_text(errors="replace")


class Scratch:
    """Copies of folders for the length of a block: `async with` gives {source: copy}.

    Raises `SandboxError` for what cannot be copied, such as onto a full disk; nothing is left then.
    """

    def __init__(self, name: str, episode: str, sources: Sequence[str]) -> None:
        self._name = name
        self._episode = episode
        self._sources = sources
        self._folder: Path | None = None
        self._lease: Path | None = None

    async def __aenter__(self) -> dict[str, str]:
        if not self._sources:
            return {}
        try:
            with boundary(SandboxError, f"copy what the compose file of {self._episode} mounts"):
                return await run_shielded(in_thread(self._make))
        except BaseException:
            await run_shielded(in_thread(self._drop))
            raise

    async def __aexit__(self, *exc: object) -> None:
        if self._sources:
            await run_shielded(in_thread(self._drop))

    def _make(self) -> dict[str, str]:
        self._folder = Path(tempfile.gettempdir()) / self._name
        self._lease = leases.take(
            self._name,
            leases.Lease(
                owner=leases.this_process(),
                what=f"folders of {self._episode}",
                folders=(str(self._folder),),
            ),
        )
        self._folder.mkdir(mode=0o711)
        return {
            source: _copy(source, self._folder / str(number))
            for number, source in enumerate(self._sources)
        }

    def _drop(self) -> None:
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)
        if self._lease is not None and self._folder is not None and not self._folder.exists():
            leases.drop(self._lease)


def _copy(source: str, target: Path) -> str:
    """A file or folder, links as links; what is not there becomes an empty folder."""
    if os.path.isfile(source):
        shutil.copy2(source, target)
    elif os.path.isdir(source):
        _measure(source)
        shutil.copytree(source, target, symlinks=True)
    else:
        target.mkdir()
    return str(target)


def _measure(source: str) -> None:
    files = size = 0
    for folder, _, names in os.walk(source):
        files += len(names)
        size += sum(os.lstat(os.path.join(folder, name)).st_size for name in names)
        if files > MAX_COPY_FILES or size > MAX_COPY_BYTES:
            raise SandboxError(
                f"the compose file mounts {source}, which is larger than {MAX_COPY_FILES} files "
                f"or {MAX_COPY_BYTES >> 20} MB: each episode would copy it"
            )
