"""The engine's stream format, cut wherever the network cuts it."""

import asyncio
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.errors import SandboxError
from headrace.sandbox.docker_stream import EngineStream, open_stream

HEAD = b"HTTP/1.1 101 UPGRADED\r\nConnection: Upgrade\r\nUpgrade: tcp\r\n\r\n"


def frame(fd: int, payload: bytes) -> bytes:
    return bytes([fd, 0, 0, 0]) + len(payload).to_bytes(4, "big") + payload


async def demultiplexed(pieces: list[bytes]) -> tuple[bytes, bytes]:
    out: dict[int, bytes] = {1: b"", 2: b""}

    def feed(fd: int, data: bytes) -> None:
        out[fd] += data

    stream = EngineStream(feed, lambda: None)
    for piece in pieces:
        stream.data_received(piece)
    await stream.upgraded()
    return out[1], out[2]


@given(
    frames=st.lists(st.tuples(st.sampled_from([1, 2]), st.binary(max_size=40)), max_size=12),
    cuts=st.lists(st.integers(min_value=0, max_value=600), max_size=20),
)
def test_outputs_are_told_apart_wherever_the_stream_is_cut(
    frames: list[tuple[int, bytes]], cuts: list[int]
) -> None:
    wire = HEAD + b"".join(frame(fd, payload) for fd, payload in frames)
    at = [0, *sorted(min(cut, len(wire)) for cut in cuts), len(wire)]
    pieces = [wire[a:b] for a, b in zip(at, at[1:], strict=False) if b > a]
    stdout, stderr = asyncio.run(demultiplexed(pieces))
    assert stdout == b"".join(payload for fd, payload in frames if fd == 1)
    assert stderr == b"".join(payload for fd, payload in frames if fd == 2)


async def served(
    path: Path, answer: bytes, lost: Callable[[], None] = lambda: None
) -> EngineStream:
    """A stream opened against a socket that answers any request with `answer` and hangs up."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(answer)
        writer.close()

    async with await asyncio.start_unix_server(serve, path):
        async with asyncio.timeout(5):
            return await open_stream(str(path), "/x", feed=lambda fd, data: None, lost=lost)


async def test_a_refused_upgrade_carries_the_engines_words(tmp_path: Path) -> None:
    answer = b'HTTP/1.1 404 Not Found\r\n\r\n{"message":"No such container: x"}'
    with pytest.raises(SandboxError, match="404 Not Found.*No such container: x"):
        await served(tmp_path / "s", answer)


async def test_an_engine_that_hangs_up_at_once_is_an_end_of_file(tmp_path: Path) -> None:
    with pytest.raises(EOFError, match="closed the connection"):
        await served(tmp_path / "s", b"")


async def test_a_stream_that_ended_ignores_writes_and_says_so_once(tmp_path: Path) -> None:
    ended = asyncio.Event()
    stream = await served(tmp_path / "s", HEAD, ended.set)
    async with asyncio.timeout(5):
        await ended.wait()
    stream.write(b"into the void")
    await stream.drained()
    stream.close()
    stream.close()
