"""Grading in a sandbox of the verifier's own.

Rule: the verifier's sandbox is made from the verifier's environment and gets the artifacts at the
paths they had, from the copies on the host: cleaned of links that leave, devices and setuid bits
(see `unpacking`). Nothing else of the agent's sandbox reaches it. A sandbox that cannot be made is
an infrastructure failure.
"""

import asyncio
import io
import posixpath
import shlex
import stat
import tarfile
from collections.abc import Sequence
from contextlib import AsyncExitStack
from pathlib import Path

import msgspec

from headrace.aio import in_thread
from headrace.engine.parts import Parts, Planned
from headrace.engine.world import World, open_verifiers
from headrace.errors import SandboxError, boundary
from headrace.sandbox.archive import TRANSFER_TIMEOUT_S, pack
from headrace.sandbox.base import Sandbox
from headrace.tasks.phases import verifier_policy
from headrace.types import Collected, Task, Verdict


async def verify_apart(
    planned: Planned, parts: Parts, view: Task, kept: Sequence[Collected], folder: Path
) -> Verdict:
    """The verdict on `view` from its artifacts in `folder`. Raises `InfrastructureError`."""
    assert view.verifier.environment is not None
    async with AsyncExitStack() as stack:
        world = await _open(stack, planned, parts, view)
        brought: list[Collected] = []
        for entry in kept:
            if entry.status in ("ok", "empty") and not _comes_with(entry, brought):
                brought.append(entry)
                async with parts.large:  # an archive is held whole
                    await _bring(entry, folder / entry.destination, world.sandbox, view)
        world.enter(verifier_policy(view))
        return await parts.verifier.verify(in_its_own_world(view), world.sandbox)


def in_its_own_world(view: Task) -> Task:
    """`view` as its verifier's sandbox sees it: the environment is the verifier's."""
    assert view.verifier.environment is not None
    return msgspec.structs.replace(view, environment=view.verifier.environment)


async def _open(stack: AsyncExitStack, planned: Planned, parts: Parts, view: Task) -> World:
    assert view.verifier.environment is not None
    limit_s = view.verifier.environment.build_timeout_s
    try:
        async with asyncio.timeout(limit_s):
            return await open_verifiers(stack, planned, parts, view)
    except TimeoutError:
        raise SandboxError(f"the verifier's sandbox was not ready within {limit_s:g} s") from None


def _comes_with(entry: Collected, brought: Sequence[Collected]) -> bool:
    """Whether an earlier one holds it: by itself its links might seem to lead out."""
    return any(
        entry.service == whole.service
        and entry.source.startswith(f"{whole.source.rstrip('/')}/")
        and entry.destination.startswith(f"{whole.destination}/")
        for whole in brought
    )


async def _bring(entry: Collected, path: Path, sandbox: Sandbox, view: Task) -> None:
    """Put one artifact where it was; what the image has there is replaced."""
    assert view.verifier.environment is not None
    is_folder = await in_thread(path.is_dir)
    with boundary(SandboxError, f"artifact {entry.source}"):
        data = await in_thread(_pack_folder if is_folder else _pack_file, path, entry)
    target = entry.source if is_folder else posixpath.dirname(entry.source) or "."
    where = shlex.quote(target)
    empty = (
        f"find {where} -mindepth 1 -delete 2> /dev/null; " if is_folder and target != "/" else ""
    )
    there = shlex.quote(entry.source)
    # The agent may have made a file of what is a folder here, or a folder of a file.
    away = (
        f"[ -d {there} ] || rm -f -- {there}; "
        if is_folder
        else (f"[ ! -d {there} ] || rm -rf -- {there}; ")
    )
    result = await sandbox.exec(
        f"umask 0; {away}mkdir -p -- {where} && {{ {empty}tar -x -o -f - -C {where}; }}",
        timeout_s=TRANSFER_TIMEOUT_S,
        stdin=data,
        workdir=view.verifier.environment.workdir,
    )
    if result.exit_code != 0:
        said = result.stderr[-500:].decode("utf-8", "replace").strip()
        raise SandboxError(f"artifact {entry.source} could not be brought: {said or 'timed out'}")


def _pack_folder(path: Path, entry: Collected) -> bytes:
    return pack(path, ignoring=False)  # an agent's own `.harborignore` hides nothing


def _pack_file(path: Path, entry: Collected) -> bytes:
    """An archive of one file under the name it had. Blocking."""
    out = io.BytesIO()
    name = posixpath.basename(entry.source.rstrip("/"))
    with tarfile.open(fileobj=out, mode="w", format=tarfile.GNU_FORMAT) as tar:
        info = tarfile.TarInfo(name)
        info.mode, info.size = stat.S_IMODE(path.stat().st_mode), path.stat().st_size
        with path.open("rb") as content:
            tar.addfile(info, content)
    return out.getvalue()
