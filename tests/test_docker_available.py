"""Whether an engine answers, and what the user reads when none does. Needs no engine."""

import asyncio
import os
from pathlib import Path

import pytest

from headrace.errors import UsageError
from headrace.sandbox.docker import available, socket_path


async def test_a_missing_socket_names_its_path_and_how_to_bring_an_engine_up(
    tmp_path: Path,
) -> None:
    reason = await available(str(tmp_path / "none"))
    assert reason is not None
    assert str(tmp_path / "none") in reason
    assert "scripts/docker-engine.sh up" in reason


async def test_a_socket_nobody_listens_on_is_told_apart(tmp_path: Path) -> None:
    path = tmp_path / "stale"
    server = await asyncio.start_unix_server(lambda reader, writer: None, path)
    server.close()
    await server.wait_closed()
    if not path.exists():  # from 3.13 on the server removes its socket
        pytest.skip("this Python removes the socket of a closed server")
    assert "nothing listens" in (await available(str(path)) or "")


async def test_a_socket_without_permission_names_the_group(tmp_path: Path) -> None:
    server = await asyncio.start_unix_server(lambda reader, writer: writer.close(), tmp_path / "s")
    async with server:
        reason = await as_stranger(str(tmp_path / "s"))
    assert reason is not None
    assert "no permission" in reason
    assert "group `docker`" in reason


async def as_stranger(path: str) -> str | None:
    """`available` without the rights of root, on a socket that grants nothing."""
    os.chmod(path, 0)
    if os.geteuid() != 0:
        return await available(path)
    folder = os.path.dirname(path)
    for _ in range(3):
        os.chmod(folder, 0o755)
        folder = os.path.dirname(folder)
    os.seteuid(65534)
    try:
        return await available(path)
    finally:
        os.seteuid(0)


async def test_an_engine_that_does_not_answer_is_given_up(tmp_path: Path) -> None:
    silent = asyncio.Event()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await silent.wait()
        writer.close()

    async with await asyncio.start_unix_server(serve, tmp_path / "s"):
        reason = await available(str(tmp_path / "s"), timeout_s=0.05)
        silent.set()
    assert reason is not None
    assert "did not answer within 0.05 s" in reason


async def test_something_else_on_the_socket_is_no_engine(tmp_path: Path) -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readline()
        writer.write(b"HTTP/1.1 403 Forbidden\r\n\r\n")
        writer.close()

    async with await asyncio.start_unix_server(serve, tmp_path / "s"):
        reason = await available(str(tmp_path / "s"))
    assert reason is not None
    assert "403 Forbidden" in reason


async def test_a_remote_engine_is_refused_with_a_way_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DOCKER_HOST", "tcp://127.0.0.1:2375")
    with pytest.raises(UsageError, match="must be a Unix socket.*found tcp://127.0.0.1:2375"):
        socket_path()
    assert "must be a Unix socket" in (await available() or "")


def test_the_configured_socket_goes_before_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DOCKER_HOST", "unix:///from/environment")
    assert socket_path("/configured") == "/configured"
    assert socket_path() == "/from/environment"
    monkeypatch.delenv("DOCKER_HOST")
    assert socket_path() == "/var/run/docker.sock"
