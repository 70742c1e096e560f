"""The launcher of namespace sandboxes: what it starts ends with it, and with who asked for it."""

import asyncio
import os
import select
import signal
import subprocess
from collections.abc import AsyncIterator, Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from headrace.aio import in_thread
from headrace.errors import SandboxEnded, SandboxError
from headrace.sandbox.base import SandboxSpec
from headrace.sandbox.launcher import FAILED
from headrace.sandbox.leases import children_of
from headrace.sandbox.namespace import NamespaceProvider
from headrace.sandbox.namespace_launcher import PROGRAM, Launcher
from headrace.sandbox.rootfs import BASE_IMAGE
from headrace.types import EnvironmentRecipe

pytestmark = pytest.mark.namespace

SPEC = SandboxSpec(image=BASE_IMAGE, episode="launched")


@pytest.fixture
async def provider(unavailable: dict[str, str | None]) -> AsyncIterator[NamespaceProvider]:
    if unavailable["namespace"] is not None:
        pytest.skip(f"namespace: {unavailable['namespace']}")
    if os.geteuid() != 0:
        pytest.skip("namespace: the launcher is root's")
    async with NamespaceProvider(run_id="launcher") as provider:
        await provider.prepare(EnvironmentRecipe(image=BASE_IMAGE))
        yield provider


def launchers() -> set[int]:
    """Those of this process."""
    return {
        pid
        for thread in os.listdir("/proc/self/task")
        for pid in children_of_thread(int(thread))
        if str(PROGRAM).encode() in Path(f"/proc/{pid}/cmdline").read_bytes()
    }


def ended(pidfd: int) -> bool:
    """Whether that process ends within the deadline."""
    try:
        return bool(select.select([pidfd], [], [], 20)[0])
    finally:
        os.close(pidfd)


def children_of_thread(thread: int) -> list[int]:
    text = Path(f"/proc/self/task/{thread}/children").read_text()
    return [int(child) for child in text.split()]


async def test_a_launcher_that_is_killed_ends_its_sandboxes_and_the_next_start_has_another(
    provider: NamespaceProvider,
) -> None:
    before = launchers()
    async with provider.open(SPEC) as sandbox:
        (launcher,) = launchers() - before
        assert sandbox.leader is not None
        first = os.pidfd_open(sandbox.leader.pid)
        os.kill(launcher, signal.SIGKILL)
        assert await in_thread(ended, first)
        with pytest.raises(SandboxEnded, match="SIGKILL"):
            await sandbox.run("true", timeout_s=5)
    async with provider.open(SPEC) as sandbox:
        assert (await sandbox.run("echo again", timeout_s=20)).stdout == b"again\n"


async def test_a_start_that_is_cancelled_leaves_no_process_and_no_descriptor(
    provider: NamespaceProvider,
) -> None:
    before = launchers()
    async with provider.open(SPEC):
        (launcher,) = launchers() - before
    descriptors = await in_thread(os.listdir, "/proc/self/fd")

    async def opened() -> None:
        async with provider.open(SPEC):
            raise AssertionError("the start was to be cancelled before")

    for passes in range(40):
        async with asyncio.TaskGroup() as group:
            task = group.create_task(opened())
            for _ in range(passes):
                await asyncio.sleep(0)
            task.cancel()
    for pid in children_of(launcher):
        with suppress(ProcessLookupError):
            assert await in_thread(ended, os.pidfd_open(pid))
    assert len(await in_thread(os.listdir, "/proc/self/fd")) == len(descriptors)


async def test_a_start_that_cannot_be_asked_for_fails_alone(provider: NamespaceProvider) -> None:
    launcher = Launcher()
    nothing = {"groups": [], "rlimits": [], "capabilities": [], "env": {}, "workdir": ""}
    try:
        with pytest.raises(SandboxError, match=r"could not be told: .*Bad file descriptor"):
            await launcher.start({}, {0: -1})
        leader = await launcher.start({**nothing, "seccomp": b""}, {})
        await leader.ended.wait()
        assert leader.status == FAILED  # the plan says too little; it was asked for all the same
    finally:
        await launcher.close()


async def test_what_a_new_process_cannot_hold_is_told_by_its_start(
    provider: NamespaceProvider,
) -> None:
    spec = SandboxSpec(image=BASE_IMAGE, episode="long", env={"LONG": "x" * 140_000})
    with pytest.raises(SandboxError, match="Argument list too long"):
        async with provider.open(spec):
            pass


async def test_what_the_driver_was_begun_to_ignore_is_not_ignored_inside(
    provider: NamespaceProvider,
) -> None:
    """As under `nohup`; Python itself ignores two."""
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        async with NamespaceProvider(run_id="other") as other, other.open(SPEC) as sandbox:
            look = "grep SigIgn /proc/self/status"
            said = (await sandbox.run(look, timeout_s=20), await sandbox.exec(look, timeout_s=20))
    finally:
        signal.signal(signal.SIGHUP, before)
    known = sum(1 << number - 1 for number in signal.valid_signals())
    assert [int(result.stdout.split()[1], 16) & known for result in said] == [0, 0]


async def test_a_failing_start_names_the_step(provider: NamespaceProvider, tmp_path: Path) -> None:
    image = await provider._images.get(await provider.prepare(EnvironmentRecipe(image=BASE_IMAGE)))
    gone = type(image)(layers=(tmp_path / "gone",))
    with pytest.raises(SandboxError, match=r"mount .*: No such file or directory"):
        async with provider.open_over(gone, SPEC):
            pass


async def test_many_starts_at_once_all_answer(provider: NamespaceProvider) -> None:
    async def hello(number: int) -> bytes:
        async with provider.open(SPEC) as sandbox:
            return (await sandbox.run(f"echo {number}", timeout_s=60)).stdout

    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(hello(number)) for number in range(60)]
    assert [task.result() for task in tasks] == [f"{n}\n".encode() for n in range(60)]


async def test_leaving_the_provider_ends_the_launcher(provider: NamespaceProvider) -> None:
    before = launchers()
    async with NamespaceProvider(run_id="other") as other, other.open(SPEC):
        assert len(launchers() - before) == 1
    assert launchers() == before


async def test_a_launcher_that_does_not_end_is_killed(provider: NamespaceProvider) -> None:
    before = launchers()
    async with provider.open(SPEC):
        (launcher,) = launchers() - before
    os.kill(launcher, signal.SIGSTOP)
    here = provider._here
    assert here is not None and here.launcher is not None
    async with asyncio.timeout(20):
        await here.launcher.close(within_s=0.2)
    assert launchers() == before


@pytest.fixture
def containers(tmp_path: Path) -> Iterator[list[Path]]:
    """An overlay mounted as the root of a container is, and one elsewhere."""
    if os.geteuid() != 0:
        pytest.skip("namespace: the launcher is root's")
    folders = [tmp_path / "merged", tmp_path / "kept"]
    for name in ("one", "two", "merged", "kept"):
        (tmp_path / name).mkdir()
    layers = f"lowerdir={tmp_path}/one:{tmp_path}/two"
    for folder in folders:
        subprocess.run(["mount", "-t", "overlay", "-o", layers, "x", folder], check=True)
    yield folders
    for folder in folders:
        subprocess.run(["umount", folder], check=True)


def mounts_of(pid: int) -> str:
    return Path(f"/proc/{pid}/mounts").read_text()


async def test_a_container_of_an_engine_is_not_copied_into_every_sandbox(
    containers: list[Path], provider: NamespaceProvider
) -> None:
    async with provider.open(SPEC):
        (pid,) = await in_thread(launchers)
        here = await in_thread(mounts_of, os.getpid())
        seen = await in_thread(mounts_of, pid)
    assert [str(folder) in here for folder in containers] == [True, True]
    assert [str(folder) in seen for folder in containers] == [False, True]


async def test_the_launcher_leaves_no_control_group_of_what_it_started(
    provider: NamespaceProvider,
) -> None:
    async with provider.open(SPEC) as sandbox:
        leader = sandbox.leader
        assert leader is not None and not leader.cleared
    assert leader.cleared
