"""The proxy of one sandbox: the only way out of it, as its policy is at the moment.

Rule: it listens inside the sandbox's network namespace, on loopback, and connects outward from
ours; the sandbox has no other route. Names are resolved here, and the address that was judged is
the one that is connected to. When the policy changes, connections that it no longer allows are
cut at once. Connections, heads, buffers and waits are bounded. Only programs that honour the proxy
variables reach anything; nothing is decrypted, logged or kept.
"""

import asyncio
import ctypes
import os
import socket
import threading
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager, suppress

from headrace.aio import background, in_thread, run_shielded
from headrace.errors import SandboxError
from headrace.sandbox.base import Egress, SandboxSpec
from headrace.sandbox.egress import Rule, as_address, normal
from headrace.sandbox.egress_request import MAX_HEAD_BYTES, Asked, Refused, answer, parse

PORT = 3128
MAX_CONNECTIONS = 64
"""Of one sandbox at a time; more wait in the socket's queue."""
BACKLOG = 128
HEAD_S = 15.0
RESOLVE_S = 10.0
CONNECT_S = 15.0
IDLE_S = 600.0
"""Of a connection over which nothing goes in either direction."""
ACCEPT_AGAIN_S = 0.2
LISTEN_S = 10.0
_CHUNK_BYTES = 1 << 16
_CLONE_NEWNET = 0x40000000
_URL = f"http://127.0.0.1:{PORT}"
_NONE = "localhost,127.0.0.1,::1"


def wants_proxy(spec: SandboxSpec) -> bool:
    return spec.egress is not None and not spec.network


def proxy_env(spec: SandboxSpec, beside: Iterable[str] = ()) -> dict[str, str]:
    """The variables that tell programs of the proxy; empty where there is none.

    `beside`: names that are reached without it.
    """
    if not wants_proxy(spec):
        return {}
    names = ("http_proxy", "https_proxy", "all_proxy")
    found = {name: _URL for lower in names for name in (lower, lower.upper())}
    without = ",".join((_NONE, *beside))
    return {**found, "no_proxy": without, "NO_PROXY": without}


def lacks() -> str | None:
    """Why a proxy cannot be put into a sandbox here, or None."""
    if os.geteuid() != 0:
        return "only root may open a socket inside a sandbox"
    return None


@asynccontextmanager
async def proxied(egress: Egress, pids: list[int]) -> AsyncIterator[None]:
    """A proxy in the network namespace of each process, for the length of the block."""
    listening: list[socket.socket] = []
    try:
        for pid in pids:
            listening += [await run_shielded(in_thread(listen_in, pid))]
        async with serving(egress, listening):
            yield
    finally:
        for each in listening:
            each.close()


@asynccontextmanager
async def serving(
    egress: Egress, listening: list[socket.socket], *, idle_s: float = IDLE_S
) -> AsyncIterator[None]:
    """A proxy behind sockets that listen; they stay the caller's."""
    proxy = _Proxy(egress, idle_s)
    try:
        async with background(proxy.serve(listening)):
            yield
    finally:
        proxy.forget()


def listen_in(pid: int) -> socket.socket:
    """A socket that listens on loopback in the network namespace of `pid`. Blocking.

    A thread of its own enters that namespace and ends: a namespace is a thread's, not a process's.
    """
    found: list[socket.socket] = []
    failed: list[OSError] = []

    def enter() -> None:
        try:
            found.append(_listen(pid))
        except OSError as e:
            failed.append(e)

    thread = threading.Thread(target=enter, daemon=True)
    thread.start()
    thread.join(LISTEN_S)
    if found:
        return found[0]
    why = failed[0] if failed else f"it took more than {LISTEN_S:g} s"
    raise SandboxError(f"the proxy of a sandbox (process {pid}) could not be opened: {why}")


def _listen(pid: int) -> socket.socket:
    libc = ctypes.CDLL(None, use_errno=True)
    fd = os.open(f"/proc/{pid}/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    try:
        if libc.setns(fd, _CLONE_NEWNET) != 0:
            code = ctypes.get_errno()
            raise OSError(code, os.strerror(code))
    finally:
        os.close(fd)
    out = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    try:
        out.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        out.bind(("127.0.0.1", PORT))
        out.listen(BACKLOG)
        out.setblocking(False)
    except BaseException:
        out.close()
        raise
    return out


class _Connection:
    """One way through, as long as the policy allows it."""

    def __init__(self, host: str, address: str, *writers: asyncio.StreamWriter) -> None:
        self.host = host
        self.address = address
        self._writers = writers

    def cut(self) -> None:
        for writer in self._writers:
            writer.transport.abort()


class _Proxy:
    """Every connection of one sandbox."""

    def __init__(self, egress: Egress, idle_s: float) -> None:
        self._egress = egress
        self._idle_s = idle_s
        self._rule = Rule(egress.policy)
        self._open: set[_Connection] = set()
        self._places = asyncio.Semaphore(MAX_CONNECTIONS)
        egress.watch(self._changed)

    def forget(self) -> None:
        """The policy is not watched any more."""
        self._egress.unwatch(self._changed)

    async def serve(self, listening: list[socket.socket]) -> None:
        """Accept on every socket until cancelled; whatever is open is cut then."""
        async with asyncio.TaskGroup() as group:
            for each in listening:
                group.create_task(self._accept(each, group))

    async def _accept(self, listening: socket.socket, group: asyncio.TaskGroup) -> None:
        loop = asyncio.get_running_loop()
        while True:
            await self._places.acquire()
            try:
                accepted, _ = await loop.sock_accept(listening)
            except OSError:  # the client is gone, or this process has no descriptor left
                self._places.release()
                await asyncio.sleep(ACCEPT_AGAIN_S)
                continue
            group.create_task(self._handle(accepted))

    async def _handle(self, accepted: socket.socket) -> None:
        try:
            accepted.setblocking(False)
            reader, writer = await asyncio.open_connection(sock=accepted, limit=MAX_HEAD_BYTES)
        except OSError:
            accepted.close()
            self._places.release()
            return
        try:
            with suppress(OSError, EOFError, TimeoutError, ExceptionGroup):
                try:
                    await self._exchange(reader, writer)
                except Refused as e:
                    writer.write(answer(e.status, str(e)))
                    async with asyncio.timeout(HEAD_S):
                        await writer.drain()
                    writer.close()  # what was written is still sent
        finally:
            if not writer.is_closing():
                writer.transport.abort()
            self._places.release()

    async def _exchange(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        asked = await _asked(reader)
        address, out_reader, out_writer = await self._connected(asked)
        way = _Connection(asked.host, address, writer, out_writer)
        self._open.add(way)
        try:
            if asked.forward is None:
                writer.write(b"HTTP/1.1 200 Connection established\r\n\r\n")
            else:
                out_writer.write(asked.forward)
            await self._pumped((reader, out_writer), (out_reader, writer))
            for each in (writer, out_writer):  # what was written is still sent
                each.close()
                async with asyncio.timeout(HEAD_S):
                    await each.wait_closed()
        finally:
            self._open.discard(way)
            out_writer.transport.abort()

    async def _pumped(self, *ways: tuple[asyncio.StreamReader, asyncio.StreamWriter]) -> None:
        """Copy each way to its end. A download says nothing back: both share one deadline."""
        loop = asyncio.get_running_loop()

        def moved() -> None:
            if not idle.expired():
                idle.reschedule(loop.time() + self._idle_s)

        async with asyncio.timeout(self._idle_s) as idle, asyncio.TaskGroup() as group:
            for reader, writer in ways:
                group.create_task(_pump(reader, writer, moved))

    async def _connected(
        self, asked: Asked
    ) -> tuple[str, asyncio.StreamReader, asyncio.StreamWriter]:
        """A connection to an address that the policy allows, at this moment too."""
        addresses = await self._addresses(asked)
        for address in addresses:
            try:
                async with asyncio.timeout(CONNECT_S):
                    reader, writer = await asyncio.open_connection(
                        address, asked.port, flags=socket.AI_NUMERICHOST
                    )
            except (OSError, TimeoutError):
                continue
            if not self._rule.allowed(asked.host, [address]):  # it changed meanwhile
                writer.transport.abort()
                raise Refused(403, f"{asked.host} is not on the list of this phase")
            return address, reader, writer
        raise Refused(502, f"no connection to {asked.host}:{asked.port}")

    async def _addresses(self, asked: Asked) -> list[str]:
        refused = Refused(403, f"{asked.host} is not on the list of this phase")
        host = normal(asked.host)
        if not self._rule.worth_resolving(host):
            raise refused
        if as_address(host) is not None:
            found = [host]
        else:
            try:
                async with asyncio.timeout(RESOLVE_S):
                    loop = asyncio.get_running_loop()
                    infos = await loop.getaddrinfo(host, asked.port, type=socket.SOCK_STREAM)
            except (OSError, UnicodeError):
                raise Refused(502, f"{asked.host} has no address") from None
            except TimeoutError:
                raise Refused(504, f"{asked.host} was not resolved in time") from None
            found = list(dict.fromkeys(str(info[4][0]) for info in infos))
        allowed = self._rule.allowed(host, found)
        if not allowed:
            raise refused
        return allowed

    def _changed(self) -> None:
        self._rule = Rule(self._egress.policy)
        for way in list(self._open):
            if not self._rule.allowed(way.host, [way.address]):
                way.cut()


async def _asked(reader: asyncio.StreamReader) -> Asked:
    try:
        async with asyncio.timeout(HEAD_S):
            return parse(await reader.readuntil(b"\r\n\r\n"))
    except asyncio.LimitOverrunError:
        raise Refused(400, f"the head is longer than {MAX_HEAD_BYTES} bytes") from None


async def _pump(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, moved: Callable[[], None]
) -> None:
    """Copy until the end, which is passed on. `moved` is called for each piece that went on."""
    while data := await reader.read(_CHUNK_BYTES):
        writer.write(data)
        await writer.drain()
        moved()
    if writer.can_write_eof() and not writer.is_closing():
        writer.write_eof()
