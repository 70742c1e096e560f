"""Commands that the launcher runs in a sandbox: what they may, and what the agent may with them."""

import asyncio
import os
import signal
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from headrace.aio import in_thread
from headrace.errors import SandboxEnded
from headrace.sandbox.base import SandboxSpec
from headrace.sandbox.leases import children_of
from headrace.sandbox.namespace import NamespaceProvider
from headrace.sandbox.namespace_sandbox import NamespaceSandbox
from headrace.sandbox.rootfs import BASE_IMAGE
from headrace.types import EnvironmentRecipe

pytestmark = pytest.mark.namespace

SPEC = SandboxSpec(image=BASE_IMAGE, episode="joined", workdir="/app")
WALLS = (
    "grep -E '^(Cap|NoNewPrivs|Seccomp|SigIgn|SigBlk|Groups|Uid|Gid)' /proc/self/status;"
    "umask; pwd;"
    "for n in mnt net ipc uts cgroup pid; do readlink /proc/self/ns/$n; done;"
    "cat /proc/self/cgroup; ulimit -a; echo $HOME $PATH"
)
HUNTER = """
import os, signal
spared, pid = (1, os.getpid(), os.getppid()), None
open("/tmp/hunts", "w")
while pid is None:
    for name in os.listdir("/proc"):
        if not name.isdigit() or int(name) in spared:
            continue
        try:
            os.kill(int(name), signal.SIGSTOP)
            comm = open(f"/proc/{name}/comm").read()
        except OSError:
            continue
        if comm.startswith("python"):
            pid = name
for look in (
    lambda: os.readlink(f"/proc/{pid}/exe"),
    lambda: os.open(f"/proc/{pid}/exe", os.O_RDONLY),
    lambda: os.listdir(f"/proc/{pid}/root/"),
    lambda: os.listdir(f"/proc/{pid}/cwd/"),
    lambda: os.readlink(f"/proc/{pid}/fd/1"),
    lambda: os.open(f"/proc/{pid}/mem", os.O_RDONLY),
    lambda: open(f"/proc/{pid}/environ").read(),
    lambda: open(f"/proc/{pid}/maps").read(),
):
    try:
        print("seen", look(), file=open("/tmp/seen", "a"))
    except PermissionError:
        print("refused", file=open("/tmp/seen", "a"))
"""
"""Stops all but its shell again and again, until it has one that is no program of its own yet."""


@pytest.fixture
async def provider(only_namespace: str) -> AsyncIterator[NamespaceProvider]:
    if os.geteuid() != 0:
        pytest.skip("namespace: the launcher is root's")
    async with NamespaceProvider(run_id="joined") as provider:
        await provider.prepare(EnvironmentRecipe(image=BASE_IMAGE))
        yield provider


@pytest.fixture
async def sandbox(provider: NamespaceProvider) -> AsyncIterator[NamespaceSandbox]:
    async with provider.open(SPEC) as sandbox:
        yield sandbox


async def test_nothing_of_ours_waits_in_a_sandbox(sandbox: NamespaceSandbox) -> None:
    await sandbox.exec("true", timeout_s=20)
    found = await sandbox.run("cat /proc/[0-9]*/comm", timeout_s=20)
    assert found.stdout.split() == [b"sh", b"bash"]


async def test_a_command_of_ours_has_the_walls_of_the_agents_shell(
    sandbox: NamespaceSandbox,
) -> None:
    theirs = await sandbox.run(WALLS, timeout_s=20)
    ours = await sandbox.exec(WALLS, timeout_s=20)
    assert ours.stdout == theirs.stdout
    assert b"NoNewPrivs:\t1" in ours.stdout and b"Seccomp:\t2" in ours.stdout


async def test_before_it_is_a_program_of_the_sandbox_nobody_inside_sees_into_it(
    sandbox: NamespaceSandbox,
) -> None:
    """And one that is stopped ends at its deadline."""
    await sandbox.write("/tmp/hunter.py", HUNTER.encode())
    for _ in range(10):
        await sandbox.run(
            "python3 /tmp/hunter.py & until [ -e /tmp/hunts ]; do :; done", timeout_s=20
        )
        await sandbox.exec("true", timeout_s=1)
        try:
            seen = await sandbox.read("/tmp/seen")
        except FileNotFoundError:  # it was a program already
            await sandbox.exec("pkill -9 python3", timeout_s=1)
            continue
        assert seen == b"refused\n" * 8
        assert (await sandbox.exec("echo ours", timeout_s=20)).stdout == b"ours\n"
        return
    pytest.fail("it was never found in time")


async def test_the_launchers_own_program_cannot_be_written_through_exe(
    provider: NamespaceProvider,
) -> None:
    """A script of the agent's that begins `#!/proc/self/exe` has it as its `exe`."""
    async with provider.open(SPEC) as sandbox:
        assert sandbox.leader is not None
        launcher = await in_thread(_parent_of, sandbox.leader.pid)
        fd = os.open(f"/proc/{launcher}/exe", os.O_PATH)
        try:
            assert os.fstatvfs(fd).f_flag & os.ST_RDONLY
        finally:
            os.close(fd)


async def test_no_link_leads_our_files_out_of_the_sandbox(
    sandbox: NamespaceSandbox, tmp_path: Path
) -> None:
    (tmp_path / "secret").write_text("of the host")
    await sandbox.run(
        f"ln -s {tmp_path}/secret /tmp/file; ln -s {tmp_path} /tmp/folder", timeout_s=20
    )
    for path in (
        "/tmp/file",
        f"/proc/1/root{tmp_path}/secret",
        f"/proc/1/cwd/../..{tmp_path}/secret",
    ):
        with pytest.raises(FileNotFoundError):
            await sandbox.read(path)
    await sandbox.run(f"mkdir -p {tmp_path}", timeout_s=20)
    await sandbox.write("/tmp/folder/secret", b"inside")
    assert await sandbox.read("/tmp/file") == b"inside"
    assert (tmp_path / "secret").read_text() == "of the host"


async def test_a_look_from_the_host_sees_what_is_inside_and_nothing_else(
    sandbox: NamespaceSandbox, tmp_path: Path
) -> None:
    (tmp_path / "secret").write_text("of the host")
    made = (
        f"cd /tmp; mkdir folder; : >file; mkfifo pipe; ln -s file link; ln -s {tmp_path} out;"
        "ln -s /proc/1/root root; ln -s folder/../file up"
    )
    await sandbox.run(made, timeout_s=20)
    names = ("folder", "file", "pipe", "link", "up", "none", "out/secret")
    up = f"/../../../..{tmp_path}/secret"
    assert await sandbox.kinds([*(f"/tmp/{name}" for name in names), up]) == "dfoff---"
    assert await sandbox.kinds([f"/tmp/root{tmp_path}"]) is None


async def test_a_command_that_the_agent_kills_ends_so(sandbox: NamespaceSandbox) -> None:
    await sandbox.run(
        "(until p=$(pgrep -f ours-to-kill); do :; done; kill -9 $p) >/dev/null 2>&1 &", timeout_s=20
    )
    killed = await sandbox.exec("while :; do :; done # ours-to-kill", timeout_s=20)
    assert (killed.exit_code, killed.timed_out) == (137, False)


async def test_what_a_command_left_running_may_go_on_printing(sandbox: NamespaceSandbox) -> None:
    writer = "(while echo spam; do echo >>/tmp/count; done) &"
    assert (await sandbox.exec(writer, timeout_s=20)).exit_code == 0
    counted = "wc -l </tmp/count"
    first = int((await sandbox.exec(counted, timeout_s=20)).stdout)
    grown = f"until [ $({counted}) -gt {first + 20000} ]; do :; done; echo grown"
    assert (await sandbox.exec(grown, timeout_s=30)).stdout == b"grown\n"


async def test_a_command_keeps_no_descriptor_of_the_driver(provider: NamespaceProvider) -> None:
    async with provider.open(SPEC):
        pass
    before = await in_thread(os.listdir, "/proc/self/fd")
    async with provider.open(SPEC) as sandbox:
        await sandbox.exec("cat; sleep 1000 & (sleep 1000 &)", timeout_s=20, stdin=b"x" * 300_000)
        await sandbox.exec("sleep 1000", timeout_s=0.2)
        await sandbox.write("/tmp/x", b"x" * 300_000)
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.3):
                await sandbox.exec("sleep 1000 & sleep 1000", timeout_s=20)
    assert len(await in_thread(os.listdir, "/proc/self/fd")) == len(before)


async def test_a_command_that_ends_with_its_sandbox_is_not_taken_for_one_that_was_killed(
    sandbox: NamespaceSandbox,
) -> None:
    assert sandbox.leader is not None
    leader = sandbox.leader.pid

    async def end() -> None:
        until = "until pgrep -f ours-to-end; do :; done"
        assert (await sandbox.run(until, timeout_s=20)).exit_code == 0
        os.kill(leader, signal.SIGKILL)

    async with asyncio.TaskGroup() as group:
        group.create_task(end())
        with pytest.raises(SandboxEnded, match="SIGKILL"):
            await sandbox.exec("while :; do :; done # ours-to-end", timeout_s=30)


async def test_without_a_shell_a_command_says_so_and_files_are_read_all_the_same(
    sandbox: NamespaceSandbox,
) -> None:
    await sandbox.write("/tmp/x", b"kept")
    await sandbox.exec("rm -f /bin/bash /bin/sh /bin/dash", timeout_s=20)
    result = await sandbox.exec("true", timeout_s=20)
    assert (result.exit_code, b"neither bash nor sh" in result.stderr) == (127, True)
    assert await sandbox.read("/tmp/x") == b"kept"


def _parent_of(pid: int) -> int:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2].split()
    assert pid in children_of(int(fields[1]))
    return int(fields[1])
