"""HTTP/1.1 calls to one server, over connections that are kept: what a call costs is one write.

Rule: a connection carries one call at a time, and another only after an answer was read whole. A
call that ends in any other way, cancelled too, closes its connection. It bounds, repeats and times
nothing but the connecting. No redirects, cookies, compression or proxies: a model server needs
none, and a general client costs more for each turn than all the rest of it. `httptools` parses,
`aiohappyeyeballs` chooses among a name's addresses.
"""

import asyncio
import socket
import ssl
from base64 import b64encode
from collections import deque
from collections.abc import Mapping
from contextlib import suppress
from typing import NamedTuple, Self, cast
from urllib.parse import quote, unquote, urlsplit

import httptools
from aiohappyeyeballs import start_connection
from aiohappyeyeballs.types import AddrInfoType

from headrace.aio import in_thread
from headrace.errors import PolicyError

PORTS = {"http": 80, "https": 443}
LOOKED_UP_S = 10.0
"""For which the addresses of a name hold."""
NEXT_ADDRESS_S = 0.25
"""After which another of them is tried beside."""


class Reply(NamedTuple):
    """An answer, read whole."""

    status: int
    body: bytes


class NoAnswer(OSError):
    """None came, or not all of it."""

    def __init__(self, why: str, status: int | None = None) -> None:
        super().__init__(why)
        self.status = status
        """Of the answer that broke off; None: it had not begun."""
        self.kept = False
        """The connection had been used before: its server may just have closed it."""


class Address(NamedTuple):
    """Where a server is."""

    host: str
    port: int
    tls: bool
    path: str
    """Before the path of a call; empty or with a slash in front."""
    lines: str
    """Of the head of each request: whom it is for, and who calls."""


def address_of(url: str) -> Address:
    """Raises `PolicyError` for what is no address of a server."""
    try:
        parts = urlsplit(url)
        port = PORTS[parts.scheme] if parts.port is None else parts.port
        host = parts.hostname or ""
        name = host.encode("ascii" if ":" in host else "idna").decode()
    except (KeyError, ValueError):
        name = ""
    if not name:
        raise PolicyError(f"expected the address of a server, http://HOST:PORT, found {url!r}")
    written = f"[{name}]" if ":" in name else name
    lines = f"Host: {written}{'' if port == PORTS[parts.scheme] else f':{port}'}\r\n"
    if parts.username is not None:
        who = f"{unquote(parts.username)}:{unquote(parts.password or '')}".encode()
        lines += f"Authorization: Basic {b64encode(who).decode()}\r\n"
    path = quote(parts.path.rstrip("/"), safe="/%:@!$&'()*+,;=~")
    return Address(name, port, parts.scheme == "https", path, lines)


class Connections:
    """To one server. An async context manager; after it no connection is begun or kept."""

    def __init__(self, base_url: str, *, keep_s: float, connect_timeout_s: float) -> None:
        """`keep_s`: an idle connection is used again within this time; a later call closes it."""
        self._keep_s = keep_s
        self._connect_timeout_s = connect_timeout_s
        self._idle: deque[_Connection] = deque()
        """The one used last at the right end."""
        self._base_url = base_url
        self._address: Address | None = None
        self._tls: ssl.SSLContext | None = None
        self._closed = False
        self._looking = asyncio.Lock()
        self._places: tuple[Address, float, list[AddrInfoType]] | None = None
        """What a name means, and when that was asked."""

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc: object) -> None:
        self._closed = True
        self._close_idle()
        await asyncio.sleep(0)  # the loop closes them at its next turn

    @property
    def base_url(self) -> str:
        return self._base_url

    @base_url.setter
    def base_url(self, base_url: str) -> None:
        if base_url != self._base_url:
            self._base_url, self._address = base_url, None
            self._close_idle()

    @property
    def idle(self) -> int:
        """Connections that wait for a call."""
        return len(self._idle)

    async def request(
        self,
        method: str,
        path: str,
        body: bytes = b"",
        headers: Mapping[str, str] | None = None,
        *,
        fresh: bool = False,
    ) -> Reply:
        """One call, without a deadline. `NoAnswer` or another `OSError` when no whole answer comes.

        `headers` are written as they are. `fresh`: over a connection that was never used.
        """
        assert not self._closed, "no call after the block"
        address = self._address
        if address is None:
            address = self._address = address_of(self._base_url)
        lines = [f"{method} {address.path}{path} HTTP/1.1\r\n", address.lines]
        lines += [f"{name}: {value}\r\n" for name, value in (headers or {}).items()]
        lines.append(f"Content-Length: {len(body)}\r\n\r\n" if body else "\r\n")
        kept = None if fresh else self._take()
        connection = kept or await self._connect(address)
        try:
            reply = await connection.call("".join(lines).encode() + body)
        except BaseException as e:
            connection.close()
            if isinstance(e, NoAnswer):
                e.kept = kept is not None
            raise
        if connection.reusable and address is self._address and not self._closed:
            self._put_back(connection)
        else:
            connection.close()
        return reply

    def _take(self) -> "_Connection | None":
        self._close_old()
        while self._idle:
            connection = self._idle.pop()
            if connection.reusable and not connection.is_over:
                return connection
        return None

    def _put_back(self, connection: "_Connection") -> None:
        self._close_old()
        connection.idle_since_s = asyncio.get_running_loop().time()
        self._idle.append(connection)

    def _close_old(self) -> None:
        oldest_s = asyncio.get_running_loop().time() - self._keep_s
        while self._idle and self._idle[0].idle_since_s <= oldest_s:
            self._idle.popleft().close()

    def _close_idle(self) -> None:
        while self._idle:
            self._idle.pop().close()

    async def _connect(self, address: Address) -> "_Connection":
        if address.tls and self._tls is None:
            self._tls = await in_thread(ssl.create_default_context)  # reads certificates
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(self._connect_timeout_s):
                places = await self._places_of(address)
                connected = await start_connection(
                    places, happy_eyeballs_delay=NEXT_ADDRESS_S, interleave=1
                )
                try:
                    _, connection = await loop.create_connection(
                        _Connection,
                        sock=connected,
                        ssl=self._tls if address.tls else None,
                        server_hostname=address.host if address.tls else None,
                    )
                except BaseException:
                    with suppress(OSError, RuntimeError):  # the loop may have it already
                        connected.close()
                    raise
        except TimeoutError:
            raise NoAnswer(f"no connection within {self._connect_timeout_s:.0f} s") from None
        except RuntimeError as e:  # in place of an `OSError`, by some loops
            raise NoAnswer(str(e)) from e
        return connection

    async def _places_of(self, address: Address) -> list[AddrInfoType]:
        """Asked once for all who connect about together."""
        loop = asyncio.get_running_loop()
        async with self._looking:
            known = self._places
            if known and known[0] is address and loop.time() - known[1] < LOOKED_UP_S:
                return known[2]
            found = await loop.getaddrinfo(address.host, address.port, type=socket.SOCK_STREAM)
            self._places = (address, loop.time(), list(found))
            return self._places[2]


class _Connection(asyncio.Protocol):
    """One connection, with at most one call."""

    def __init__(self) -> None:
        self._transport: asyncio.Transport | None = None
        self._answer: _Answer | None = None
        self.idle_since_s = 0.0
        self.reusable = True

    async def call(self, data: bytes) -> Reply:
        """Send `data` and read the answer."""
        assert self._transport is not None and self._answer is None
        answer = self._answer = _Answer(asyncio.get_running_loop().create_future())
        try:
            self._transport.write(data)
            reply = await answer.reply
            sent = self._transport is not None and not self._transport.get_write_buffer_size()
            self.reusable = self.reusable and answer.keeps and sent
            return reply
        finally:
            answer.parser = self._answer = None  # they hold each other

    @property
    def is_over(self) -> bool:
        """Its end is known, but for a turn of the loop."""
        return self._transport is None or self._transport.is_closing()

    def close(self) -> None:
        """At once; what was not sent yet is not sent."""
        self.reusable = False
        if self._transport is not None:
            self._transport.abort()

    # --- called by the loop ---

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's are not derived from it

    def data_received(self, data: bytes) -> None:
        if self._answer is None or self._answer.reply.done():
            self.close()  # nobody asked
            return
        try:
            self._answer.feed(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade) as e:
            self._answer.fail(f"expected HTTP, found {data[:100]!r}: {e}")
            self.close()

    def eof_received(self) -> None:
        self.reusable = False

    def connection_lost(self, exc: Exception | None) -> None:
        self.reusable = False
        self._transport = None
        if self._answer is not None:
            self._answer.ended(exc)


class _Answer:
    """What has come of an answer. The parser calls the methods that begin with `on_`."""

    def __init__(self, reply: "asyncio.Future[Reply]") -> None:
        self.reply = reply
        self.parser: httptools.HttpResponseParser | None = httptools.HttpResponseParser(self)
        self.keeps = False
        """The server keeps the connection."""
        self._status: int | None = None
        self._has_length = False
        self._parts: list[bytes] = []

    def feed(self, data: bytes) -> None:
        assert self.parser is not None
        self.parser.feed_data(data)

    def fail(self, why: str) -> None:
        if not self.reply.done():
            self.reply.set_exception(NoAnswer(why, self._status))

    def ended(self, exc: Exception | None) -> None:
        """The connection is over: the end of an answer that does not say its length."""
        if exc is None and self._status is not None and not self._has_length:
            self._complete()
        else:
            self.fail(str(exc or "") or "the connection was closed")

    def _complete(self) -> None:
        if not self.reply.done():
            self.reply.set_result(Reply(self._status or 0, b"".join(self._parts)))

    def on_message_begin(self) -> None:
        if self.reply.done():
            self.keeps = False  # more than was asked for: what follows is another's

    def on_header(self, name: bytes, value: bytes) -> None:
        self._has_length |= name.lower() in (b"content-length", b"transfer-encoding")

    def on_headers_complete(self) -> None:
        assert self.parser is not None
        status = self.parser.get_status_code()
        if status >= 200 and not self.reply.done():  # else a note before it, or one too many
            self._status = status
            self.keeps = self.parser.should_keep_alive()

    def on_body(self, body: bytes) -> None:
        self._parts.append(body)

    def on_message_complete(self) -> None:
        if self._status is not None:
            self._complete()
