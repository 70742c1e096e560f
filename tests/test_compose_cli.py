"""`docker compose` as a process: its deadline, its children, what it is told. Needs no engine."""

import asyncio
import os
import time
from pathlib import Path

import pytest

from headrace.errors import ImageError, SandboxError
from headrace.sandbox.compose_cli import ComposeCli

VERSION = '[ "$2" = version ] && { echo 2.40.3; exit; }\n'


@pytest.fixture
def docker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A program called `docker`, first on the path; the test writes what it does."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    return folder / "docker"


def does(program: Path, script: str) -> None:
    program.write_text(f"#!/bin/sh\n{script}")
    program.chmod(0o755)


async def test_a_machine_without_docker_is_told_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert "`docker` command line was not found" in str(await ComposeCli("/s").lacks())


async def test_the_first_compose_is_too_old(docker: Path) -> None:
    does(docker, "echo 1.29.2")
    assert "too old (1.29.2)" in str(await ComposeCli("/s").lacks())


async def test_at_its_deadline_it_ends_with_its_children(docker: Path, tmp_path: Path) -> None:
    pids = tmp_path / "pids"
    does(docker, f"{VERSION}sleep 300 & echo $! $$ >{pids}.new; mv {pids}.new {pids}; wait\n")
    with pytest.raises(ImageError, match=r"try it: docker compose was not done within 1 s"):
        await ComposeCli("/s").run(["up"], doing="try it", timeout_s=1.0, error=ImageError)
    assert await asyncio.to_thread(_gone, pids.read_text().split())


def _gone(pids: list[str]) -> bool:
    """Whether all end within 5 s; a process that was killed is there for a moment more."""
    until = time.monotonic() + 5
    while any(_lives(int(pid)) for pid in pids):
        if time.monotonic() > until:
            return False
    return True


def _lives(pid: int) -> bool:
    try:
        return "Z" not in Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False


async def test_a_cancelled_caller_leaves_no_process(docker: Path, tmp_path: Path) -> None:
    started, pids = tmp_path / "started", tmp_path / "pids"
    os.mkfifo(started)
    does(docker, f"{VERSION}sleep 300 & echo $! $$ >{pids}; echo up >{started}; wait\n")
    cli = ComposeCli("/s")
    async with asyncio.TaskGroup() as group:
        task = group.create_task(cli.run(["up"], doing="try it", timeout_s=60.0))
        assert await asyncio.to_thread(started.read_text) == "up\n"
        task.cancel()
    assert await asyncio.to_thread(_gone, pids.read_text().split())


async def test_it_sees_no_environment_of_ours(
    docker: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MY_SECRET_TOKEN", "hunter2")
    does(docker, f"{VERSION}env\n")
    out = await ComposeCli("/s").run(["x"], doing="look", timeout_s=10, variables={"A": "b"})
    assert b"hunter2" not in out
    assert b"\nA=b\n" in b"\n" + out
    assert b"DOCKER_HOST=unix:///s\n" in out


async def test_what_it_says_is_the_error(docker: Path) -> None:
    does(
        docker, f"{VERSION}echo 'time=x level=warning msg=y' >&2; echo 'no such thing' >&2; exit 3"
    )
    with pytest.raises(SandboxError, match=r"^look: no such thing$"):
        await ComposeCli("/s").run(["x"], doing="look", timeout_s=10)
