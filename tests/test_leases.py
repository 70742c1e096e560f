"""What a dead driver leaves is removed; what a live one owns is not touched."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from headrace.aio import in_thread
from headrace.sandbox import cgroups, leases
from headrace.sandbox.base import SandboxSpec
from headrace.sandbox.namespace import NamespaceProvider
from headrace.sandbox.rootfs import BASE_IMAGE

DRIVER = """
import asyncio
from headrace.sandbox.base import SandboxSpec
from headrace.sandbox.namespace import NamespaceProvider

async def main():
    async with NamespaceProvider(run_id="killed") as provider:
        spec = SandboxSpec(image="headrace/base:bookworm", episode="of-the-dead")
        async with provider.open(spec) as sandbox:
            await sandbox.run("setsid sleep 1000 &", timeout_s=20)
            print(sandbox.leader.pid, flush=True)
            await asyncio.Event().wait()

asyncio.run(main())
"""


@pytest.fixture
def runtime(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    return leases.runtime_folder()


@pytest.fixture
def sleeper() -> Iterator[Callable[[], subprocess.Popen[bytes]]]:
    started: list[subprocess.Popen[bytes]] = []

    def start() -> subprocess.Popen[bytes]:
        started.append(subprocess.Popen(["sleep", "1000"]))
        return started[-1]

    yield start
    for process in started:
        process.kill()
        process.wait()


def gone(start: Callable[[], subprocess.Popen[bytes]]) -> leases.Owner:
    """An owner that no longer lives."""
    process = start()
    owner = leases.owner_of(process.pid)
    assert owner is not None
    process.kill()
    process.wait()
    return owner


def test_a_lease_of_this_process_is_kept(runtime: Path, tmp_path: Path) -> None:
    folder = tmp_path / "kept"
    folder.mkdir()
    lease = leases.Lease(owner=leases.this_process(), what="mine", folders=(str(folder),))
    path = leases.take("mine", lease)
    assert leases.sweep() == []
    assert folder.is_dir() and path.is_file()
    leases.drop(path)
    assert not path.exists()


def test_what_a_dead_owner_leased_is_removed(
    runtime: Path, tmp_path: Path, sleeper: Callable[[], subprocess.Popen[bytes]]
) -> None:
    folder = tmp_path / "left"
    (folder / "deep").mkdir(parents=True)
    left = sleeper()
    process = leases.owner_of(left.pid)
    assert process is not None
    lease = leases.Lease(
        owner=gone(sleeper), what="sandbox of x", folders=(str(folder),), processes=(process,)
    )
    leases.take("theirs", lease)
    lines = leases.sweep()
    assert len(lines) == 1 and lines[0].startswith("sandbox of x (its driver")
    assert not folder.exists()
    assert left.wait(timeout=10) == -signal.SIGKILL
    assert leases.sweep() == []


def test_a_reused_process_id_is_not_taken_for_the_owner(runtime: Path) -> None:
    me = leases.this_process()
    before = leases.Owner(pid=me.pid, started=me.started - 1)
    leases.take("old", leases.Lease(owner=before, what="old"))
    assert len(leases.sweep()) == 1


def test_a_process_with_another_start_is_not_killed(
    runtime: Path, sleeper: Callable[[], subprocess.Popen[bytes]]
) -> None:
    other = sleeper()
    wrong = leases.Owner(pid=other.pid, started=1)
    leases.take("wrong", leases.Lease(owner=gone(sleeper), what="wrong", processes=(wrong,)))
    assert len(leases.sweep()) == 1
    assert other.poll() is None


def test_a_torn_lease_is_removed_and_said(runtime: Path) -> None:
    (runtime / "leases" / "torn.json").write_bytes(b'{"owner"')
    assert leases.sweep() == ["unreadable lease torn.json"]
    assert not list((runtime / "leases").iterdir())


@pytest.mark.namespace
async def test_a_killed_driver_leaves_nothing_that_a_sweep_does_not_remove(
    runtime: Path, only_namespace: str
) -> None:
    async with NamespaceProvider(run_id="live") as provider:
        async with provider.open(SandboxSpec(image=BASE_IMAGE, episode="live")) as sandbox:
            await sandbox.run("kept=1", timeout_s=20)
            leader, groups = await in_thread(_killed_driver)
            lines = await provider.sweep()  # the layers of this machine are swept as well
            assert len([line for line in lines if "of-the-dead" in line]) == 1
            assert leases.owner_of(leader) is None
            assert not any(group.exists() for group in groups)
            assert (await sandbox.run("echo $kept", timeout_s=20)).stdout == b"1\n"
            assert await provider.sweep() == []
    assert not list((runtime / "leases").iterdir())


@pytest.mark.namespace
async def test_what_starts_a_dead_drivers_sandboxes_has_ended_before_its_groups_are_looked_for(
    runtime: Path, only_namespace: str
) -> None:
    """It makes groups until it hears of the driver's end; here it never does."""
    if os.geteuid() != 0:
        pytest.skip("namespace: the launcher is root's")
    launchers: list[int] = []

    def stop(leader: int) -> None:
        launchers.append(
            int(Path(f"/proc/{leader}/stat").read_text().rpartition(") ")[2].split()[1])
        )
        os.kill(launchers[0], signal.SIGSTOP)

    leader, groups = await in_thread(_killed_driver, stop)
    await in_thread(leases.sweep)
    assert leases.owner_of(launchers[0]) is None and leases.owner_of(leader) is None
    assert not any(group.exists() for group in groups)
    assert not list((runtime / "leases").iterdir())


async def test_a_group_that_cannot_be_removed_keeps_its_lease(
    runtime: Path, tmp_path: Path, sleeper: Callable[[], subprocess.Popen[bytes]]
) -> None:
    (tmp_path / "headrace-kept-1-x" / "inside").mkdir(parents=True)  # as a group below it
    prefixes = (str(tmp_path / "headrace-kept"),)
    leases.take("kept", leases.Lease(owner=gone(sleeper), what="x", group_prefixes=prefixes))
    assert len(await in_thread(leases.sweep)) == 1
    assert (runtime / "leases" / "kept.json").exists()
    (tmp_path / "headrace-kept-1-x" / "inside").rmdir()
    assert len(await in_thread(leases.sweep)) == 1
    assert not list((runtime / "leases").iterdir())


def _killed_driver(before: Callable[[int], None] = lambda leader: None) -> tuple[int, list[Path]]:
    """Leader of the sandbox of a driver that was killed, and its control groups."""
    driver = subprocess.Popen([sys.executable, "-c", DRIVER], stdout=subprocess.PIPE)
    assert driver.stdout is not None
    with driver.stdout:
        leader = int(driver.stdout.readline())
    groups = [
        group
        for parent in cgroups.detect().parents.values()
        for group in parent.glob("headrace-killed-*")
    ]
    assert bool(groups) == bool(cgroups.detect().parents)
    before(leader)
    os.kill(driver.pid, signal.SIGKILL)
    driver.wait()
    return leader, groups
