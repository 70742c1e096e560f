"""A raw stream to a process in a container: attach and exec, stdin and both outputs.

Rule: bytes go straight from the socket to `feed`, without a queue and without a task: one
callback for each read. It speaks the engine's upgrade handshake by itself, because an HTTP client's
response object costs more per message than the command it carries. It knows nothing of shells.
"""

import asyncio
from collections.abc import Callable
from typing import cast

from headrace.errors import SandboxError

Feed = Callable[[int, bytes], None]
"""Called with 1 (stdout) or 2 (stderr) and some bytes."""
Lost = Callable[[], None]
"""Called once when the stream has ended, from either side."""

_HEADER_BYTES = 8
_MAX_HEAD_BYTES = 65536


class EngineStream(asyncio.Protocol):
    """One upgraded connection. `write` never blocks; `drained` waits until the engine keeps up."""

    def __init__(self, feed: Feed, lost: Lost, *, raw: bool = False) -> None:
        """`raw`: the process has a terminal, whose bytes come without frames, all as stdout."""
        self._raw = raw
        self._feed = feed
        self._lost = lost
        self._transport: asyncio.Transport | None = None
        self._upgraded: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._rest = b""  # of the response's head, later of a frame's header
        self._fd = 1
        self._left = 0  # bytes of the current frame still to come
        self._receive = self._read_head
        self._writable = asyncio.Event()
        self._writable.set()
        self.ended = False

    # --- ours ---

    def write(self, data: bytes) -> None:
        """Send to stdin. Ignored once the stream has ended; `Lost` has been called then."""
        if self._transport is not None and not self.ended:
            self._transport.write(data)

    async def drained(self) -> None:
        """Returns when what was written is mostly sent, or the stream has ended."""
        await self._writable.wait()

    @property
    def waiting(self) -> bool:
        """Whether something is not sent yet."""
        return self._transport is not None and self._transport.get_write_buffer_size() > 0

    def close(self) -> None:
        """Close at once, dropping what is not sent. Idempotent."""
        if self._transport is not None:
            self._transport.abort()

    async def upgraded(self) -> None:
        await self._upgraded

    # --- asyncio's ---

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's is no subclass

    def data_received(self, data: bytes) -> None:
        self._receive(data)

    def connection_lost(self, exc: Exception | None) -> None:
        self.ended = True
        self._writable.set()
        if self._upgraded.done():
            self._lost()
        else:
            self._upgraded.set_exception(exc or EOFError("the engine closed the connection"))
            self._upgraded.exception()  # retrieved: the opener may have been cancelled

    def pause_writing(self) -> None:
        self._writable.clear()

    def resume_writing(self) -> None:
        self._writable.set()

    def _read_head(self, data: bytes) -> None:
        self._rest += data
        head, end, body = self._rest.partition(b"\r\n\r\n")
        if not end and len(head) < _MAX_HEAD_BYTES:
            return
        status = head.split(b"\r\n", 1)[0].decode(errors="replace")
        if " 101 " in status or " 200 " in status:
            self._rest = b""
            self._receive = self._read_raw if self._raw else self._read_frames
            if not self._upgraded.done():
                self._upgraded.set_result(None)
            if body:
                self._receive(body)
            return
        detail = body.decode(errors="replace").strip()
        if not self._upgraded.done():
            self._upgraded.set_exception(SandboxError(f"the engine answered {status}: {detail}"))
            self._upgraded.exception()
        self.close()

    def _read_raw(self, data: bytes) -> None:
        self._feed(1, data)

    def _read_frames(self, data: bytes) -> None:
        """Frames of (fd, 3 zero bytes, length, payload), cut anywhere; payload is not gathered."""
        if self._rest:
            data = self._rest + data
            self._rest = b""
        at, end = 0, len(data)
        while at < end:
            if self._left == 0:
                if end - at < _HEADER_BYTES:
                    self._rest = data[at:]
                    return
                self._fd = data[at]
                self._left = int.from_bytes(data[at + 4 : at + 8], "big")
                at += _HEADER_BYTES
                continue
            piece = data[at : at + self._left]
            at += len(piece)
            self._left -= len(piece)
            self._feed(self._fd, piece)


async def open_stream(
    socket: str, path: str, body: bytes = b"", *, feed: Feed, lost: Lost, raw: bool = False
) -> EngineStream:
    """POST `path` on the engine's socket and upgrade the connection. Raises `OSError`,
    `EOFError`, or `SandboxError` with the engine's answer. The caller bounds it in time.
    """
    loop = asyncio.get_running_loop()
    transport, stream = await loop.create_unix_connection(
        lambda: EngineStream(feed, lost, raw=raw), socket
    )
    try:
        transport.write(
            f"POST {path} HTTP/1.1\r\nHost: docker\r\nConnection: Upgrade\r\nUpgrade: tcp\r\n"
            f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n".encode()
            + body
        )
        await stream.upgraded()
    except BaseException:
        transport.abort()
        raise
    return stream


def attach_path(container: str) -> str:
    return f"/containers/{container}/attach?stream=1&stdin=1&stdout=1&stderr=1"


def exec_path(exec_id: str) -> str:
    return f"/exec/{exec_id}/start"


EXEC_BODY = b'{"Detach":false,"Tty":false}'
TTY_BODY = b'{"Detach":false,"Tty":true}'
