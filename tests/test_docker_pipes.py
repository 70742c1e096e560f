"""Our channel behind named pipes, its end, and the engine that does not share them."""

import asyncio
import json
import os
import signal
import sys
import textwrap
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from headrace.sandbox.base import SandboxSpec
from headrace.sandbox.control import Control
from headrace.sandbox.docker import DockerProvider, socket_path
from headrace.sandbox.docker_pipes import PipeRooms
from headrace.sandbox.docker_sandbox import DockerSandbox
from headrace.sandbox.leases import runtime_folder
from headrace.types import EnvironmentRecipe

BASE = EnvironmentRecipe(image="headrace/base:bookworm")
pytestmark = [pytest.mark.docker, pytest.mark.timeout(120)]


@pytest.fixture
async def docker(only_docker: str) -> AsyncIterator[DockerProvider]:
    async with DockerProvider(run_id="test-pipes") as docker:
        await docker.prepare(BASE)
        yield docker


def spec(episode: str, **changes: Any) -> SandboxSpec:
    return SandboxSpec(**{"image": BASE.image, "episode": f"{episode}-{os.getpid()}", **changes})


async def text(sandbox: DockerSandbox, command: str) -> str:
    result = await sandbox.exec(command, timeout_s=30)
    return (result.stdout + result.stderr).decode()


async def events(container: str, since: float) -> list[str]:
    """What the engine did for a container, since a moment."""
    filters = json.dumps({"container": [container]})
    url = f"http://docker/events?since={since:.6f}&until={time.time():.6f}&filters={filters}"
    async with (
        aiohttp.ClientSession(connector=aiohttp.UnixConnector(socket_path())) as session,
        session.get(url) as answer,
    ):
        lines = (await answer.text()).splitlines()
    return [json.loads(line)["Action"].partition(":")[0] for line in lines]


async def test_the_pipes_are_gone_before_the_agents_first_command(docker: DockerProvider) -> None:
    async with docker.open(spec("first")) as sandbox:
        assert (await sandbox.run("ls -A /dev/headrace", timeout_s=10)).stdout == b""
        assert await text(sandbox, "echo ours") == "ours\n"


async def test_a_command_of_ours_can_be_interrupted_as_in_a_terminal(
    docker: DockerProvider,
) -> None:
    async with docker.open(spec("sigint")) as sandbox:
        assert await text(sandbox, "bash -c 'kill -INT $$; echo lives on'") == ""
        ignored = int((await text(sandbox, "grep SigIgn /proc/self/status")).split()[1], 16)
    # The C library has two more for itself, which the engine may have been started without.
    assert ignored & sum(1 << number - 1 for number in signal.valid_signals()) == 0


async def test_a_channel_that_the_agent_killed_is_replaced(docker: DockerProvider) -> None:
    begun = time.time()
    async with docker.open(spec("killed")) as sandbox:
        await sandbox.run("kill -9 -1", timeout_s=30)
        assert await text(sandbox, "echo ours") == "ours\n"
        assert (await sandbox.run("echo lives", timeout_s=10)).stdout == b"lives\n"
        assert (await events(sandbox.container, begun)).count("exec_create") == 1


async def test_a_large_file_goes_both_ways(docker: DockerProvider) -> None:
    data = os.urandom(5 << 20)
    async with docker.open(spec("large")) as sandbox:
        await sandbox.write("/tmp/large", data)
        assert await sandbox.read("/tmp/large") == data


async def test_a_container_ends_without_being_killed(docker: DockerProvider) -> None:
    begun = time.time()
    async with docker.open(spec("ends")) as sandbox:
        await sandbox.run("sleep 1000 &", timeout_s=10)
        await sandbox.exec("true", timeout_s=10)
    done = await events(sandbox.container, begun)
    assert "destroy" in done
    assert "kill" not in done


async def test_a_container_whose_shell_does_not_end_is_removed_by_force(
    docker: DockerProvider,
) -> None:
    begun = time.time()
    async with docker.open(spec("keeps")) as sandbox:
        await sandbox.run("trap 'sleep 1000' EXIT", timeout_s=10)
    done = await events(sandbox.container, begun)
    assert {"kill", "destroy"} <= set(done)


async def test_nothing_of_a_provider_is_left_when_it_closes(only_docker: str) -> None:
    async with DockerProvider(run_id="test-pipes") as docker:
        async with docker.open(spec("left")):
            assert list(runtime_folder().glob(f"docker-{os.getpid()}-*/headrace-left*"))
        assert list(runtime_folder().glob(f"docker-{os.getpid()}-*"))
    assert not list(runtime_folder().glob(f"docker-{os.getpid()}-*"))
    assert not list(runtime_folder().glob(f"leases/docker-{os.getpid()}-*"))


# --- an engine that does not share our files ---

APART = textwrap.dedent(
    """
    import asyncio, sys, time
    from headrace.sandbox.base import SandboxSpec
    from headrace.sandbox.docker import DockerProvider

    async def main(image):
        async with DockerProvider(run_id="apart") as docker:
            for n in range(2):
                begun = time.monotonic()
                async with docker.open(SandboxSpec(image=image, episode="apart")) as sandbox:
                    opened_s = time.monotonic() - begun
                    said = await sandbox.exec("echo ours; pwd", timeout_s=30)
                    assert said.stdout == b"ours\\n/\\n", said
                    print(n, opened_s, flush=True)

    asyncio.run(main(sys.argv[1]))
    """
)
"""Run in a mount namespace of its own, with a file system of its own over the runtime folder."""


async def opened_apart(folder: Path) -> list[float]:
    """How long two sandboxes of one provider took to open, one after the other."""
    assert BASE.image is not None
    mount = 'mount -t tmpfs tmpfs "$1" && mkdir -p "$XDG_RUNTIME_DIR" && shift && exec "$@"'
    process = await asyncio.create_subprocess_exec(
        *("unshare", "-m", "sh", "-c", mount, "sh", str(folder)),
        *(sys.executable, "-c", APART, BASE.image),
        env={**os.environ, "XDG_RUNTIME_DIR": str(folder / "run")},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    async with asyncio.timeout(100):
        out, err = await process.communicate()
    assert process.returncode == 0, err.decode()
    return [float(line.split()[1]) for line in out.decode().splitlines()]


@pytest.fixture
def root() -> None:
    if os.geteuid() != 0:
        pytest.skip("a mount namespace of one's own needs root")


async def test_an_engine_that_does_not_see_our_files_is_served_by_exec(
    docker: DockerProvider, root: None, tmp_path: Path
) -> None:
    assert len(await opened_apart(tmp_path)) == 2


async def test_pipes_that_nobody_opens_are_given_up_once_and_for_all(tmp_path: Path) -> None:
    rooms = PipeRooms(open_s=0.1)
    try:
        pipes = await rooms.make("first")
        assert pipes is not None
        control = Control(pipes.write, program=None)
        pipes.connect(control)
        assert not await rooms.opened(pipes, control)
        assert os.listdir(pipes.mount["Source"]) == []
        assert await rooms.make("second") is None
        pipes.drop()
    finally:
        await rooms.aclose()


async def test_pipes_that_have_worked_before_are_tried_again(docker: DockerProvider) -> None:
    """One container that does not open them in time says nothing of the engine."""
    async with docker.open(spec("works")):
        docker.rooms.refuse("slow")
    async with docker.open(spec("again")) as sandbox:
        begun = time.time()
        assert await text(sandbox, "echo ours") == "ours\n"
        assert "exec_create" not in await events(sandbox.container, begun)
