"""Connections to a model server, against servers that say exactly what a test wants."""

import asyncio
import socket
import ssl
import subprocess
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.errors import PolicyError
from headrace.policies.client import CompletionClient
from headrace.policies.connections import Connections, NoAnswer, Reply, _Answer, address_of

WHOLE = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi"


class Server:
    """Answers the n-th request with the n-th text; then closes if `ends`."""

    def __init__(self, *answers: bytes, ends: bool = False) -> None:
        self.requests: list[bytes] = []
        self.connections = 0
        self.arrived = asyncio.Event()
        self.lost = asyncio.Event()
        """A client has closed its connection."""
        self.closes = 0
        """So many of the first connections end when the next thing is asked over them."""
        self.writers: list[asyncio.StreamWriter] = []
        self._answers = list(answers)
        self._ends = ends

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        self.writers.append(writer)
        try:
            while head := await reader.readuntil(b"\r\n\r\n"):
                self.requests.append(head)
                self.arrived.set()
                if b"content-length: " in head.lower():
                    length = head.lower().partition(b"content-length: ")[2].split(b"\r\n")[0]
                    self.requests.append(await reader.readexactly(int(length)))
                if self.writers.index(writer) < self.closes:
                    return
                if self._answers:
                    writer.write(self._answers.pop(0))
                if self._ends:
                    writer.write_eof()
                    await reader.read()
                    self.lost.set()
                    return
        except (asyncio.IncompleteReadError, ConnectionError):
            self.lost.set()
        finally:
            writer.close()


@asynccontextmanager
async def serving(
    server: Server, *, tls: ssl.SSLContext | None = None, keep_s: float = 60.0, path: str = ""
) -> AsyncIterator[Connections]:
    listening = await asyncio.start_server(server.serve, "127.0.0.1", 0, ssl=tls)
    port = listening.sockets[0].getsockname()[1]
    address = f"{'http' if tls is None else 'https'}://localhost:{port}{path}"
    async with listening, asyncio.timeout(20):
        async with Connections(address, keep_s=keep_s, connect_timeout_s=10) as connections:
            yield connections


def chunked(body: bytes, size: int) -> bytes:
    parts = [body[at : at + size] for at in range(0, len(body), size)]
    return b"".join(b"%x\r\n%b\r\n" % (len(part), part) for part in parts) + b"0\r\n\r\n"


def received(data: bytes, cuts: list[int], *, then_ends: bool = False) -> Reply:
    """What is read when `data` comes in pieces."""
    loop = asyncio.new_event_loop()
    try:
        answer = _Answer(loop.create_future())
        edges = [0, *sorted(cut % (len(data) + 1) for cut in cuts), len(data)]
        for begin, end in zip(edges, edges[1:], strict=False):
            answer.feed(data[begin:end])
        if then_ends:
            answer.ended(None)
        answer.parser = None
        return answer.reply.result()
    finally:
        loop.close()


@given(st.binary(), st.lists(st.integers(0)), st.integers(1, 9), st.sampled_from([200, 400, 503]))
def test_an_answer_is_the_same_however_it_is_cut_and_framed(
    body: bytes, cuts: list[int], size: int, status: int
) -> None:
    head = b"HTTP/1.1 %d X\r\nServer: x\r\n" % status
    wanted = Reply(status, body)
    counted = head + b"Content-Length: %d\r\n\r\n" % len(body) + body
    assert received(counted, cuts) == wanted
    in_chunks = head + b"transfer-encoding: chunked\r\n\r\n" + chunked(body, size)
    assert received(in_chunks, cuts) == wanted
    assert received(head + b"\r\n" + body, cuts, then_ends=True) == wanted
    assert received(b"HTTP/1.1 100 Continue\r\n\r\n" + counted, cuts) == wanted


async def test_a_connection_is_used_again_after_a_whole_answer() -> None:
    server = Server(WHOLE, WHOLE)
    async with serving(server, path="/base path") as connections:
        headers = {"X-Session-ID": "s"}
        found = await connections.request("POST", "/v1", b"body", headers)
        assert found == Reply(200, b"hi")
        assert connections.idle == 1
        assert await connections.request("GET", "/health") == found
    assert server.connections == 1
    first, body, second = server.requests
    assert first.startswith(b"POST /base%20path/v1 HTTP/1.1\r\nHost: localhost:")
    assert b"\r\nX-Session-ID: s\r\n" in first
    assert body == b"body"
    assert second.startswith(b"GET /base%20path/health HTTP/1.1\r\nHost: localhost:")


@pytest.mark.parametrize(
    "answer",
    [
        b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 2\r\n\r\nhi",
        b"HTTP/1.0 200 OK\r\nContent-Length: 2\r\n\r\nhi",
        WHOLE + b"what nobody asked for",
        WHOLE + WHOLE,
    ],
)
async def test_a_connection_that_is_over_is_not_used_again(answer: bytes) -> None:
    server = Server(answer, WHOLE)
    async with serving(server) as connections:
        assert (await connections.request("GET", "/")).body == b"hi"
        assert connections.idle == 0
        assert (await connections.request("GET", "/")).body == b"hi"
    assert server.connections == 2


@pytest.mark.parametrize(
    ("answer", "status", "said"),
    [
        (b"", None, "closed"),
        (b"HTTP/1.1 200 OK\r\nContent-Le", None, "closed"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nhi", 200, "closed"),
        (b"HTTP/1.1 503 No\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhi", 503, "closed"),
        (b"SSH-2.0-OpenSSH_9.2\r\n", None, "expected HTTP, found b'SSH"),
    ],
)
async def test_an_answer_that_breaks_off_says_what_had_come(
    answer: bytes, status: int | None, said: str
) -> None:
    async with serving(Server(answer, ends=True)) as connections:
        with pytest.raises(NoAnswer, match=said) as raised:
            await connections.request("GET", "/")
        assert raised.value.status == status
        assert connections.idle == 0


async def test_a_cancelled_call_closes_its_connection() -> None:
    server = Server()
    async with serving(server) as connections, asyncio.TaskGroup() as group:
        call = group.create_task(connections.request("GET", "/"))
        await server.arrived.wait()
        call.cancel()
        await server.lost.wait()
        assert connections.idle == 0


async def test_an_idle_connection_is_closed_when_it_is_old() -> None:
    server = Server(WHOLE, WHOLE)
    async with serving(server, keep_s=0.0) as connections:
        await connections.request("GET", "/")
        await connections.request("GET", "/")
        await server.lost.wait()
    assert server.connections == 2


async def test_an_idle_connection_that_the_server_closed_is_not_used() -> None:
    closing = Server(WHOLE, WHOLE, ends=True)
    async with serving(closing) as connections:
        await connections.request("GET", "/")
        await closing.lost.wait()
        await connections.request("GET", "/")
    assert closing.connections == 2


async def test_a_call_on_a_kept_connection_that_is_just_closed_says_so() -> None:
    """A server closes what is idle; a call may be on its way then."""
    server = Server(WHOLE)
    async with serving(server) as connections:
        await connections.request("GET", "/")
        server.closes = 2
        with pytest.raises(NoAnswer) as raised:
            await connections.request("GET", "/")
        assert raised.value.kept
        with pytest.raises(NoAnswer) as raised:
            await connections.request("GET", "/", fresh=True)
        assert not raised.value.kept


async def test_the_state_of_a_server_is_asked_again_where_the_kept_connection_ended() -> None:
    server = Server(WHOLE, WHOLE)
    async with serving(server) as connections, CompletionClient(connections.base_url) as client:
        assert await client.healthy()
        server.closes = 1
        assert await client.healthy()
    assert server.connections == 2


async def test_a_name_is_looked_up_once_for_those_who_connect_together(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked = []
    loop = asyncio.get_running_loop()
    looked_up = loop.getaddrinfo

    async def counted(host: str, port: int, **more: Any) -> Any:
        asked.append(host)  # numbers too: the loop makes an address of them that way
        return await looked_up(host, port, **more)

    monkeypatch.setattr(loop, "getaddrinfo", counted)
    server = Server(*[WHOLE] * 10)
    async with serving(server) as connections:
        asked.clear()
        async with asyncio.TaskGroup() as group:
            for _ in range(10):
                group.create_task(connections.request("GET", "/"))
    assert server.connections > 1
    assert asked.count("localhost") == 1


async def test_another_address_of_a_name_is_tried_where_one_leads_nowhere(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with serving(Server(WHOLE)) as connections:
        port = int(connections.base_url.rpartition(":")[2])
        kind = (socket.SOCK_STREAM, socket.IPPROTO_TCP, "")
        nowhere = (socket.AF_INET6, *kind, ("::1", 1, 0, 0))

        loop = asyncio.get_running_loop()
        looked_up = loop.getaddrinfo

        async def both(host: str, at: int, **more: Any) -> Any:
            if host != "localhost":
                return await looked_up(host, at, **more)
            return [nowhere, (socket.AF_INET, *kind, ("127.0.0.1", port))]

        monkeypatch.setattr(loop, "getaddrinfo", both)
        assert (await connections.request("GET", "/")).body == b"hi"


async def test_a_call_that_outlives_the_block_leaves_no_connection() -> None:
    server = Server()
    async with serving(server) as connections, asyncio.TaskGroup() as group:
        call = group.create_task(connections.request("GET", "/"))
        await server.arrived.wait()
        await connections.__aexit__()
        server.writers[0].write(WHOLE)
        assert (await call).body == b"hi"
        assert connections.idle == 0
        await server.lost.wait()


async def test_a_server_that_changes_the_protocol_is_told() -> None:
    answer = b"HTTP/1.1 101 Switching\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\n"
    async with serving(Server(answer)) as connections:
        with pytest.raises(NoAnswer, match="expected HTTP"):
            await connections.request("GET", "/")


async def test_at_another_address_nothing_of_the_old_one_is_used() -> None:
    old, new = Server(WHOLE), Server(WHOLE)
    async with serving(old) as connections, serving(new) as others:
        await connections.request("GET", "/")
        connections.base_url = others.base_url
        assert connections.idle == 0
        await old.lost.wait()
        await connections.request("GET", "/")
    assert (len(old.requests), len(new.requests)) == (1, 1)


async def test_calls_at_once_have_a_connection_each() -> None:
    arrived, everyone = 0, asyncio.Event()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal arrived
        await reader.readuntil(b"\r\n\r\n")
        arrived += 1
        if arrived == 20:
            everyone.set()
        await everyone.wait()
        writer.write(WHOLE)
        writer.close()

    server = Server()
    server.serve = serve  # type: ignore[method-assign]
    async with serving(server) as connections, asyncio.TaskGroup() as group:
        for _ in range(20):
            group.create_task(connections.request("GET", "/"))


async def test_tls_is_spoken_with_those_whose_certificate_is_trusted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    key, certificate = tmp_path / "key", tmp_path / "certificate"
    line = "openssl req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=localhost"
    more = ["-addext", "subjectAltName=DNS:localhost", "-keyout", key, "-out", certificate]
    made: Callable[..., Any] = subprocess.run
    await asyncio.to_thread(made, [*line.split(), *more], check=True, capture_output=True)
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    await asyncio.to_thread(tls.load_cert_chain, certificate, key)
    async with serving(Server(WHOLE), tls=tls) as connections:
        with pytest.raises(ssl.SSLError, match=r"self.signed"):
            await connections.request("GET", "/")
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    server = Server(WHOLE, WHOLE)
    async with serving(server, tls=tls) as connections:
        assert (await connections.request("GET", "/")).body == b"hi"
        assert (await connections.request("GET", "/")).body == b"hi"
    assert server.connections == 1


@pytest.mark.parametrize(
    ("url", "host", "port", "lines"),
    [
        ("http://h:8000", "h", 8000, "Host: h:8000\r\n"),
        ("http://h", "h", 80, "Host: h\r\n"),
        ("https://h/", "h", 443, "Host: h\r\n"),
        ("http://[::1]:8000", "::1", 8000, "Host: [::1]:8000\r\n"),
        ("http://bücher:1", "xn--bcher-kva", 1, "Host: xn--bcher-kva:1\r\n"),
        ("http://a:b%3Ac@h", "h", 80, "Host: h\r\nAuthorization: Basic YTpiOmM=\r\n"),
    ],
)
def test_an_address_is_read(url: str, host: str, port: int, lines: str) -> None:
    found = address_of(url)
    assert (found.host, found.port, found.lines) == (host, port, lines)


@pytest.mark.parametrize("url", ["h:8000", "ftp://h", "http://", "http://h:port", "http://[::1"])
def test_what_is_no_address_is_told(url: str) -> None:
    with pytest.raises(PolicyError, match="expected the address of a server"):
        address_of(url)
