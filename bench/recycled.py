"""Is a recycled container cheaper than a fresh one, and do its walls hold?

Rule: one run measures both, in turn, three rounds; an episode is seven commands through one shell.
Fresh: a container for each episode, as headrace makes it, created, started, attached and removed.
Recycled: a container for each place, and in it, for each episode, new namespaces (mounts,
processes, network, ipc, host name), an overlay over the container's root, a new `/proc` with the
engine's own masks, and the engine's own capabilities for what then runs. A shell puts that
together, with some 25 programs; a program of its own would do it for less. The same probes run in
both.

The namespace floor of `bench.floors` runs beside them: the same walls without an engine.

What it does not do: it is no provider. Files, users, deadlines, disk limits, networks and terminals
are not in it.

    python -m bench.recycled [--n 40] [--concurrency 4] [--json FILE]
"""

import argparse
import asyncio
import errno
import json
import os
import secrets
import statistics
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import aiodocker
import aiohttp
import uvloop
from bench.floors import LEAN_CONFIG, namespace_floor
from bench.report import report

from headrace.sandbox.docker_stream import attach_path, open_stream
from headrace.sandbox.docker_sweep import labels

IMAGE = "headrace/base:bookworm"
COMMANDS = tuple(f"echo command {number}" for number in range(7))
ROUNDS = 3
ANSWER_S = 60.0
WHOLE_S = 600.0

REFUSED = (
    "acct add_key bpf clock_adjtime clock_settime delete_module finit_module fsconfig fsmount "
    "fsopen fspick init_module io_uring_enter io_uring_register io_uring_setup ioperm iopl "
    "kexec_file_load kexec_load keyctl lookup_dcookie mount_setattr move_mount name_to_handle_at "
    "open_by_handle_at open_tree perf_event_open quotactl reboot request_key setns settimeofday "
    "swapoff swapon syslog userfaultfd"
)
"""What the namespace provider's filter refuses, but for `mount`, `umount2` and `pivot_root`."""
NEW_USER = {"index": 0, "value": 0x10000000, "valueTwo": 0x10000000, "op": "SCMP_CMP_MASKED_EQ"}
FILTER = {
    "defaultAction": "SCMP_ACT_ALLOW",
    "syscalls": [
        {"names": REFUSED.split(), "action": "SCMP_ACT_ERRNO"},
        {"names": ["clone", "unshare"], "action": "SCMP_ACT_ERRNO", "args": [NEW_USER]},
        {"names": ["clone3"], "action": "SCMP_ACT_ERRNO", "errnoRet": errno.ENOSYS},
    ],
}
PRIVILEGES = {
    "CapAdd": ["SYS_ADMIN"],
    "SecurityOpt": ["apparmor=unconfined", f"seccomp={json.dumps(FILTER)}"],
}
"""Mounts and namespaces need SYS_ADMIN; the engine's AppArmor profile refuses every mount, and its
seccomp profile refuses `pivot_root` also to who has SYS_ADMIN, so both give way to our filter."""

MASKED = "acpi asound kcore keys latency_stats timer_list timer_stats sched_debug scsi"
READ_ONLY = "bus fs irq sys sysrq-trigger"
DROPPED = "-sys_admin,-mknod,-audit_write,-setpcap"

INNER = f"""
mount --make-rprivate / && mount -t tmpfs tmpfs /mnt && mkdir /mnt/u /mnt/w /mnt/r &&
mount -t overlay overlay -o lowerdir=/,upperdir=/mnt/u,workdir=/mnt/w /mnt/r &&
mount --rbind /dev /mnt/r/dev && mount -t tmpfs -o size=64m tmpfs /mnt/r/dev/shm &&
mount -t proc proc /mnt/r/proc && mount --rbind /sys /mnt/r/sys && cd /mnt/r || exit 1
for name in {MASKED}; do
  [ -d proc/$name ] && mount -t tmpfs -o ro tmpfs proc/$name
  [ -f proc/$name ] && mount --bind /dev/null proc/$name
done
for name in {READ_ONLY}; do
  [ -e proc/$name ] && mount --bind proc/$name proc/$name && mount -o remount,ro,bind proc/$name
done
mkdir -p mnt && pivot_root . mnt && umount -l mnt && cd / &&
exec setpriv --bounding-set {DROPPED} --inh-caps -all sh
"""
SUPERVISOR = """
while read -r word; do
  unshare -m -p -n -i -u --fork --kill-child sh -c "$INNER"
  echo ended $?
done
"""
PEAKS = "/sys/fs/cgroup/memory/memory.max_usage_in_bytes /sys/fs/cgroup/memory.peak"
PROBES = {
    "no_mount": "! mount -t tmpfs none /mnt",
    "no_bind_mount": "! mount --bind / /mnt",
    "no_mount_namespace": "! unshare -m true",
    "no_user_namespace": "! unshare -U true",
    "no_mount_in_a_user_namespace": "! unshare -Urm mount -t tmpfs none /tmp",
    "no_setting_of_the_host": "! sh -c 'cat /proc/sys/kernel/sysrq >/proc/sys/kernel/sysrq'",
    "no_kernel_memory": "! [ -s /proc/kcore ]",
    "no_block_device": "! { mknod /tmp/disk b 8 0 && head -c 1 /tmp/disk; }",
    "no_network": '[ "$(tail -n +3 /proc/net/dev | cut -d: -f1 | tr -d " ")" = lo ]',
    "few_processes_in_sight": '[ "$(ls -d /proc/[0-9]* | wc -l)" -lt 8 ]',
    "no_file_of_the_last": "[ ! -e /etc/left ] && [ ! -e /dev/shm/left ] && [ -e /bin/ls ]",
    "no_process_of_the_last": "! grep -qs 98765 /proc/[0-9]*/cmdline",
    "no_memory_of_the_last_counted": f"[ $(cat {PEAKS} 2>/dev/null) -lt 200000000 ]",
}
"""Each succeeds where the wall holds. They run after an episode that left all it could."""
LEFT = (
    "echo x >/etc/left; echo x >/dev/shm/left; rm /bin/ls; "
    "(setsid sleep 98765 >/dev/null 2>&1 &); x=$(head -c 400000000 /dev/zero | tr '\\0' x)"
)


class Shell:
    """A container's first process behind its attached stream."""

    def __init__(self) -> None:
        self._lines: asyncio.Queue[bytes] = asyncio.Queue(1000)
        self._rest = b""
        self.write: Callable[[bytes], None]

    def feed(self, fd: int, data: bytes) -> None:
        *lines, self._rest = (self._rest + data).split(b"\n") if fd == 1 else [self._rest]
        for line in lines:
            self._lines.put_nowait(line)

    def lost(self) -> None:
        self._lines.put_nowait(b"the stream has ended")

    async def ask(self, command: str) -> int:
        """The exit code."""
        word = secrets.token_hex(8)
        self.write(f"{{ {command}\n}} </dev/null >/dev/null 2>&1; echo {word} $?\n".encode())
        return await self._answer(word)

    async def begin(self) -> None:
        """A new sandbox in a warm container."""
        self.write(b"go\n")
        await self.ask("true")

    async def end(self) -> None:
        """It and everything in it. Only then may anything be written: its shell reads ahead."""
        self.write(b"exit\n")
        await self._answer("ended")

    async def _answer(self, word: str) -> int:
        async with asyncio.timeout(ANSWER_S):
            while True:
                line = await self._lines.get()
                if line.startswith(word.encode()):
                    return int(line.split()[1])
                if line.startswith((b"ended", b"the stream")):
                    raise RuntimeError(f"expected {word!r}, found {line!r}")


class Bench:
    """Over one connection to the engine."""

    def __init__(self, docker: aiodocker.Docker, socket: str) -> None:
        self._docker = docker
        self._socket = socket
        self._labels = labels("bench", "recycled")  # so that a sweep finds what is left

    @asynccontextmanager
    async def container(self, **host: Any) -> AsyncIterator[Shell]:
        """Created, attached, started; removed at the end."""
        config = {**LEAN_CONFIG, "Image": IMAGE, "HostConfig": LEAN_CONFIG["HostConfig"] | host}
        config |= {"AttachStdout": True, "AttachStderr": True, "Env": [f"INNER={INNER}"]}
        config["Labels"] = self._labels
        if host:
            config |= {"Entrypoint": ["sh", "-c", SUPERVISOR]}
        container = await self._docker.containers.create(config)
        shell = Shell()
        try:
            path = attach_path(container.id)
            stream = await open_stream(self._socket, path, feed=shell.feed, lost=shell.lost)
            shell.write = stream.write
            await container.start()
            yield shell
            stream.close()
        finally:
            await container.delete(force=True, v=True)

    async def fresh(self, n: int, concurrency: int) -> float:
        left = iter(range(n))

        async def place() -> None:
            for _ in left:
                async with self.container() as shell:
                    await episode(shell)

        return await rate(n, [place] * concurrency)

    async def recycled(self, n: int, concurrency: int) -> float:
        """Without the start of the warm containers."""
        left = iter(range(n))

        async def place(shell: Shell) -> None:
            for _ in left:
                await shell.begin()
                await episode(shell)
                await shell.end()

        async with self.several(concurrency) as shells:
            return await rate(n, [partial(place, shell) for shell in shells])

    @asynccontextmanager
    async def several(self, n: int) -> AsyncIterator[list[Shell]]:
        async with AsyncExitStack() as stack:
            yield [await stack.enter_async_context(self.container(**PRIVILEGES)) for _ in range(n)]

    async def walls(self) -> tuple[dict[str, bool], dict[str, bool]]:
        """Which probes hold after another episode: in a fresh container, in a recycled one."""
        async with self.container() as shell:
            await shell.ask(LEFT)
        async with self.container() as shell:
            fresh = await probed(shell)
        async with self.container(**PRIVILEGES) as shell:
            await shell.begin()
            await shell.ask(LEFT)
            await shell.end()
            await shell.begin()
            recycled = await probed(shell)
        return fresh, recycled


async def episode(shell: Shell) -> None:
    for command in COMMANDS:
        if await shell.ask(command) != 0:
            raise RuntimeError(f"{command} failed")


async def probed(shell: Shell) -> dict[str, bool]:
    return {name: await shell.ask(probe) == 0 for name, probe in PROBES.items()}


async def rate(n: int, places: list[Callable[[], Coroutine[None, None, None]]]) -> float:
    begun = time.perf_counter()
    async with asyncio.TaskGroup() as group:
        for place in places:
            group.create_task(place())
    return n / (time.perf_counter() - begun)


async def measure(n: int, concurrency: int) -> dict[str, float | None]:
    address = os.environ.get("DOCKER_HOST", "unix:///var/run/docker.sock")
    socket = address.removeprefix("unix://")
    connector = aiohttp.UnixConnector(socket, limit=0)
    docker = aiodocker.Docker(url="unix://localhost", connector=connector)
    try:
        async with asyncio.timeout(WHOLE_S):
            bench = Bench(docker, socket)
            fresh_walls, recycled_walls = await bench.walls()
            fresh, recycled, namespace = [], [], []
            for _ in range(ROUNDS):
                fresh.append(await bench.fresh(n, concurrency))
                recycled.append(await bench.recycled(4 * n, concurrency))
                namespace.append(await namespace_floor(4 * n, concurrency))
    finally:
        await docker.close()
        await connector.close()
    for name in PROBES:
        told = ["holds" if walls[name] else "FAILS" for walls in (fresh_walls, recycled_walls)]
        print(f"  {name:<30} fresh {told[0]}   recycled {told[1]}")
    return {
        "fresh_eps_s": statistics.median(fresh),
        "recycled_eps_s": statistics.median(recycled),
        "recycled_over_fresh": statistics.median(recycled) / statistics.median(fresh),
        "namespace_floor_eps_s": statistics.median(namespace),
        "fresh_walls": sum(fresh_walls.values()),
        "recycled_walls": sum(recycled_walls.values()),
        "walls": len(PROBES),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--n", type=int, default=40, help="fresh containers in a round")
    parser.add_argument("--concurrency", type=int, default=4)
    parser.add_argument("--json", type=Path, help="write {bench, commit, machine, metrics} here")
    arguments = parser.parse_args()
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        metrics = runner.run(measure(arguments.n, arguments.concurrency))
    report("recycled", metrics, arguments.json)


if __name__ == "__main__":
    main()
