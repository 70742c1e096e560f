"""What the machine itself can do: containers and namespaces started and ended, nothing else.

Rule: no line of headrace is in the measured path, so that what headrace adds can be told apart.
The docker floor is create, start and remove through aiodocker; the namespace floor is a mount
namespace with an overlay, a shell in bubblewrap, one answer from it, and a kill. The lean docker
floor is a container as headrace makes it, without the engine's networks.
"""

import asyncio
import os
import shutil
import signal
import tempfile
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import aiodocker
import aiohttp

from headrace.sandbox.docker_sweep import labels
from headrace.sandbox.rootfs import ensure_base

DOCKER_CONFIG: dict[str, Any] = {
    "Entrypoint": ["sh"],
    "OpenStdin": True,
    "StdinOnce": True,
    "AttachStdin": True,
    "HostConfig": {
        "NetworkMode": "none",
        "LogConfig": {"Type": "none"},
        "NanoCpus": 10**9,
        "Memory": 2 << 30,
        "MemorySwap": 2 << 30,
        "PidsLimit": 512,
    },
}
"""The limits a sandbox has by default; the engine's cost depends on them."""
LEAN_CONFIG: dict[str, Any] = {**DOCKER_CONFIG, "NetworkDisabled": True}

NAMESPACE = """
mount -t tmpfs tmpfs "$1" && mkdir "$1/upper" "$1/work" "$1/root" &&
mount -t overlay overlay -o "lowerdir=$2,upperdir=$1/upper,workdir=$1/work" "$1/root" &&
exec bwrap --unshare-all --die-with-parent --new-session --cap-drop ALL \
    --bind "$1/root" / --proc /proc --dev /dev --tmpfs /tmp sh
"""


async def docker_floor(n: int, concurrency: int, image: str, *, lean: bool = False) -> float:
    """Containers created, started and removed per second, `concurrency` at a time."""
    config = {"Image": image, **(LEAN_CONFIG if lean else DOCKER_CONFIG)}
    config["Labels"] = labels("bench", "floor")  # so that a sweep finds what a killed bench left
    address = os.environ.get("DOCKER_HOST", "unix:///var/run/docker.sock")
    connector = aiohttp.UnixConnector(address.removeprefix("unix://"), limit=0)
    docker = aiodocker.Docker(url="unix://localhost", connector=connector)

    async def one() -> None:
        container = await docker.containers.create(config)
        try:
            await container.start()
        finally:
            await container.delete(force=True, v=True)

    try:
        return await _per_second(n, concurrency, one)
    finally:
        await docker.close()
        await connector.close()


async def namespace_floor(n: int, concurrency: int, rootfs: str | None = None) -> float:
    """Namespace shells started, answered and killed per second over the folder `rootfs`.

    None: the base root filesystem that headrace uses, found before the clock starts.
    """
    lower = rootfs or str(await ensure_base())
    folder = tempfile.mkdtemp(prefix="headrace-floor-")

    async def one() -> None:
        process = await asyncio.create_subprocess_exec(
            *("unshare", "-m", "sh", "-c", NAMESPACE, "sh", folder, lower),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            start_new_session=True,
        )
        assert process.stdin is not None and process.stdout is not None
        try:
            process.stdin.write(b"echo up\n")
            answer = await process.stdout.readline()
            if answer != b"up\n":
                raise RuntimeError("the shell in the namespace did not start: see its error above")
        finally:
            _end(process.pid)
            await process.wait()

    try:
        return await _per_second(n, concurrency, one)
    finally:
        shutil.rmtree(folder)


def _end(pid: int) -> None:
    """Kill the first process of the namespace, whose end is the end of all in it.

    Killing bubblewrap itself is not enough: its child asks to die with it only after the shell has
    been started, and a kill before that leaves the namespace alive.
    """
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    for child in children or [str(pid)]:
        os.kill(int(child), signal.SIGKILL)


async def _per_second(n: int, concurrency: int, one: Callable[[], Awaitable[None]]) -> float:
    left = iter(range(n))

    async def worker() -> None:
        for _ in left:
            await one()

    begun = time.perf_counter()
    async with asyncio.timeout(180), asyncio.TaskGroup() as group:
        for _ in range(concurrency):
            group.create_task(worker())
    return n / (time.perf_counter() - begun)
