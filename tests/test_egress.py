"""What a policy lets through, and the proxy that enforces it in real sandboxes."""

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import msgspec
import pytest

from headrace.errors import SandboxError
from headrace.sandbox.base import Egress, Limits, Provider, Sandbox, SandboxSpec
from headrace.sandbox.docker import DockerProvider
from headrace.sandbox.egress import Rule
from headrace.sandbox.egress_proxy import lacks, listen_in, serving
from headrace.sandbox.egress_request import Asked, Refused, parse
from headrace.sandbox.namespace import NamespaceProvider
from headrace.types import (
    AgentRecipe,
    ComposeFile,
    EnvironmentRecipe,
    NetworkPolicy,
    Task,
    VerifierRecipe,
)

BASE = EnvironmentRecipe(image="headrace/base:bookworm")
LOOPBACK = NetworkPolicy(mode="allowlist", allowed_hosts=("127.0.0.1",))
NOTHING = NetworkPolicy(mode="none")
PUBLIC = NetworkPolicy()


def listed(*hosts: str) -> Rule:
    return Rule(NetworkPolicy(mode="allowlist", allowed_hosts=hosts))


# --- the rule ---


@pytest.mark.parametrize(
    ("hosts", "host", "address", "allowed"),
    [
        (("example.com",), "example.com", "93.184.215.14", True),
        (("example.com",), "EXAMPLE.com.", "93.184.215.14", True),
        (("example.com",), "www.example.com", "93.184.215.14", False),
        (("*.example.com",), "a.b.example.com", "93.184.215.14", True),
        (("*.example.com",), "example.com", "93.184.215.14", False),
        (("*.example.com",), "badexample.com", "93.184.215.14", False),
        (("8.8.8.8",), "8.8.8.8", "8.8.8.8", True),
        (("8.8.0.0/16",), "dns.google", "8.8.4.4", True),
        (("8.8.0.0/16",), "dns.google", "9.9.9.9", False),
        (("2606:4700::/32",), "[2606:4700::1111]", "2606:4700::1111", True),
        # A name that points into the host's own network opens nothing.
        (("example.com",), "example.com", "127.0.0.1", False),
        (("example.com",), "example.com", "169.254.169.254", False),
        (("example.com",), "example.com", "10.1.2.3", False),
        (("example.com",), "example.com", "::ffff:10.1.2.3", False),
        (("example.com",), "example.com", "64:ff9b::a01:203", False),
        (("example.com", "10.0.0.0/8"), "example.com", "10.1.2.3", True),
        (("127.0.0.1",), "127.0.0.1", "127.0.0.1", True),
        (("127.0.0.1",), "::ffff:127.0.0.1", "::ffff:127.0.0.1", True),
        (("fe80::/10",), "fe80::1%eth0", "fe80::1%eth0", True),
        # A name that begins as an address does is a name: it may lead anywhere.
        (("8.8.8.8",), "8.8.8.8%.example.com", "8.8.8.8%.example.com", False),
    ],
)
def test_a_host_is_let_through_by_name_and_address(
    hosts: tuple[str, ...], host: str, address: str, allowed: bool
) -> None:
    assert listed(*hosts).allowed(host, [address]) == ([address] if allowed else [])


def test_public_is_the_internet_and_not_the_machine() -> None:
    rule = Rule(PUBLIC)
    assert rule.allowed("example.com", ["93.184.215.14", "127.0.0.1"]) == ["93.184.215.14"]
    assert rule.allowed("127.1", ["127.0.0.1"]) == []


def test_none_lets_nothing_through() -> None:
    rule = Rule(NetworkPolicy(mode="none", allowed_hosts=("8.8.8.8",)))
    assert not rule.worth_resolving("8.8.8.8")
    assert rule.allowed("8.8.8.8", ["8.8.8.8"]) == []


def test_a_name_that_cannot_be_allowed_is_not_resolved() -> None:
    assert not listed("example.com").worth_resolving("secret.elsewhere.org")


# --- the request ---


def test_a_tunnel_and_a_plain_request_are_understood() -> None:
    assert parse(b"CONNECT [::1]:443 HTTP/1.1\r\n\r\n") == Asked(host="::1", port=443)
    head = b"GET http://a.org:81/x?y=1 HTTP/1.1\r\nHost: a.org\r\nProxy-Connection: x\r\n\r\n"
    asked = parse(head)
    assert (asked.host, asked.port) == ("a.org", 81)
    assert asked.forward == b"GET /x?y=1 HTTP/1.1\r\nHost: a.org:81\r\nConnection: close\r\n\r\n"


def test_the_host_that_was_judged_is_the_one_that_is_asked() -> None:
    for header in (b"Host: b.org", b"HOST:b.org", b"x: y\nHost: b.org", b" Host: b.org"):
        head = b"GET http://me@a.org:81/ HTTP/1.1\r\n" + header + b"\r\nA: b\r\n\r\n"
        forward = parse(head).forward
        assert forward is not None
        assert b"b.org" not in forward
        assert forward.startswith(b"GET / HTTP/1.1\r\nHost: a.org:81\r\n")
        assert b"A: b\r\n" in forward


@pytest.mark.parametrize(
    "head",
    [
        b"\x16\x03\x01\r\n\r\n",
        b"GET / HTTP/1.1\r\n\r\n",
        b"CONNECT a.org HTTP/1.1\r\n\r\n",
        b"CONNECT a.org:99999 HTTP/1.1\r\n\r\n",
        b"GET ftp://a.org/ HTTP/1.1\r\n\r\n",
        b"GET http://[::1/ HTTP/1.1\r\n\r\n",
    ],
)
def test_anything_else_is_a_bad_request(head: bytes) -> None:
    with pytest.raises(Refused) as refused:
        parse(head)
    assert refused.value.status == 400


# --- the proxy in a sandbox ---


class Server:
    """An HTTP server on this machine's loopback; `/hold` answers by and by, `next` at a time."""

    def __init__(self) -> None:
        self.port = 0
        self.held = asyncio.Event()
        self.ended = asyncio.Event()

    @asynccontextmanager
    async def up(self) -> AsyncIterator["Server"]:
        server = await asyncio.start_server(self._answer, "127.0.0.1", 0)
        self.port = server.sockets[0].getsockname()[1]
        try:
            yield self
        finally:
            server.close()

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\nhello\n")
        if b" /hold " in head:
            await writer.drain()
            self.held.set()
            await reader.read()  # until the other end is gone
            self.ended.set()
        writer.close()


@asynccontextmanager
async def sandboxed(name: str, egress: Egress) -> AsyncIterator[Sandbox]:
    provider: Provider = DockerProvider() if name == "docker" else NamespaceProvider()
    async with provider:
        image = await provider.prepare(BASE)
        spec = SandboxSpec(image=image, episode="egress", egress=egress)
        async with provider.open(spec) as sandbox:
            yield sandbox


@pytest.fixture
def root() -> None:
    if reason := lacks():
        pytest.skip(reason)


async def out(sandbox: Sandbox, command: str) -> str:
    result = await sandbox.run(command, timeout_s=60)
    return (result.stdout + result.stderr).decode()


@pytest.mark.timeout(120)
async def test_only_what_the_policy_names_is_reached(provider: str, root: None) -> None:
    egress = Egress(LOOPBACK)
    async with Server().up() as server, sandboxed(provider, egress) as sandbox:
        at = f"127.0.0.1:{server.port}"
        asks = f"curl -s --noproxy '' http://{at}/"
        through = f"curl -s --noproxy '' --proxytunnel http://{at}/"
        status = "-o /dev/null -w '%{http_code} %{http_connect}\\n'"
        python = (
            f"env -u NO_PROXY -u no_proxy python3 -c 'import urllib.request as u;"
            f'print(u.urlopen("http://{at}/").read())\''
        )
        assert await out(sandbox, asks) == "hello\n"
        assert await out(sandbox, through) == "hello\n"
        assert await out(sandbox, python) == "b'hello\\n'\n"
        direct = f"timeout 5 bash -c 'echo >/dev/tcp/127.0.0.1/{server.port}' 2>&1; echo $?"
        assert (await out(sandbox, direct)).endswith("\n1\n")  # the sandbox's own loopback
        # By name: what it resolves to is not public.
        assert (
            await out(sandbox, f"{asks.replace('127.0.0.1', '127.0.0.2')} {status}") == "403 000\n"
        )
        egress.policy = PUBLIC
        assert await out(sandbox, f"{asks} {status}") == "403 000\n"
        egress.policy = NetworkPolicy(mode="allowlist", allowed_hosts=("localhost",))
        named = asks.replace("127.0.0.1", "localhost")
        assert await out(sandbox, f"{named} {status}") == "403 000\n"
        egress.policy = NOTHING
        assert await out(sandbox, f"{through} {status}") == "000 403\n"
        egress.policy = LOOPBACK
        assert await out(sandbox, asks) == "hello\n"
        # No server there: an answer of the proxy's own.
        assert (
            await out(sandbox, f"curl -s --noproxy '' http://127.0.0.1:1/ {status}") == "502 000\n"
        )


@pytest.mark.timeout(120)
async def test_a_change_cuts_what_is_no_longer_allowed(provider: str, root: None) -> None:
    egress = Egress(LOOPBACK)
    async with Server().up() as server, sandboxed(provider, egress) as sandbox:
        hold = f"curl -sN --noproxy '' http://127.0.0.1:{server.port}/hold >/tmp/o; echo $? >/tmp/x"
        await out(sandbox, f"({hold}) & disown")
        async with asyncio.timeout(30):
            await server.held.wait()
        egress.policy = NetworkPolicy(mode="allowlist", allowed_hosts=("127.0.0.0/8",))
        assert not server.ended.is_set()  # still allowed
        egress.policy = NOTHING
        async with asyncio.timeout(30):
            await server.ended.wait()


@pytest.mark.timeout(120)
async def test_the_proxy_ends_with_its_sandbox(provider: str, root: None) -> None:
    egress = Egress(LOOPBACK)
    async with Server().up() as server:
        async with sandboxed(provider, egress) as sandbox:
            hold = f"curl -sN --noproxy '' http://127.0.0.1:{server.port}/hold"
            await out(sandbox, f"({hold} >/tmp/o 2>&1) & disown")
            async with asyncio.timeout(30):
                await server.held.wait()
        async with asyncio.timeout(30):
            await server.ended.wait()
    egress.policy = NOTHING  # nobody listens any more


@pytest.mark.timeout(120)
async def test_a_broken_client_does_not_end_the_proxy(provider: str, root: None) -> None:
    async with Server().up() as server, sandboxed(provider, Egress(LOOPBACK)) as sandbox:
        junk = "head -c 40000 /dev/zero | timeout 10 bash -c 'cat >/dev/tcp/127.0.0.1/3128'"
        await out(sandbox, f"{junk}; exec 5<>/dev/tcp/127.0.0.1/3128; exec 5>&-")
        asks = f"curl -s --noproxy '' http://127.0.0.1:{server.port}/"
        many = f"for i in $(seq 100); do {asks} & done; wait"
        assert await out(sandbox, f"({many}) 2>/dev/null | grep -c hello") == "100\n"


async def test_no_proxy_for_a_process_that_is_not_there() -> None:
    with pytest.raises(SandboxError, match="process 4194305"):
        listen_in(4194305)


@asynccontextmanager
async def tunnel(server: asyncio.Server, idle_s: float) -> AsyncIterator[asyncio.StreamReader]:
    """What comes through a proxy from a server on this machine's loopback."""
    port = server.sockets[0].getsockname()[1]
    with socket.create_server(("127.0.0.1", 0)) as listening:
        listening.setblocking(False)
        async with serving(Egress(LOOPBACK), [listening], idle_s=idle_s):
            reader, writer = await asyncio.open_connection(*listening.getsockname())
            writer.write(f"CONNECT 127.0.0.1:{port} HTTP/1.1\r\n\r\n".encode())
            await reader.readuntil(b"\r\n\r\n")
            yield reader
            writer.close()


@pytest.mark.timeout(60)
async def test_a_download_that_lasts_longer_than_silence_may_is_not_cut() -> None:
    async def drip(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        for _ in range(12):
            writer.write(b"x")
            await asyncio.sleep(0.25)
        writer.close()

    async with await asyncio.start_server(drip, "127.0.0.1", 0) as server:
        async with tunnel(server, idle_s=1.5) as reader:
            assert await reader.read(-1) == 12 * b"x"


@pytest.mark.timeout(60)
async def test_a_connection_over_which_nothing_goes_is_cut() -> None:
    ended = asyncio.Event()

    async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()
        ended.set()
        writer.close()

    async with await asyncio.start_server(silent, "127.0.0.1", 0) as server:
        async with tunnel(server, idle_s=0.2) as reader:
            assert await reader.read() == b""
        await ended.wait()


# --- what is refused ---


def task(**environment: Any) -> Task:
    return Task(
        name="t",
        digest="0" * 64,
        path="/t",
        format="harbor",
        instruction="do",
        environment=msgspec.structs.replace(BASE, **environment),
        agent=AgentRecipe(),
        verifier=VerifierRecipe(),
    )


async def test_plain_tasks_run_on_both(provider: str) -> None:
    its: Provider = DockerProvider() if provider == "docker" else NamespaceProvider()
    async with its:
        for network in (PUBLIC, NOTHING):
            assert await its.refuses(task(network=network), network=True) is None
        assert await its.refuses(task(network=LOOPBACK), network=False) is None
        reason = await its.refuses(task(network=LOOPBACK), network=True)
        assert (reason is None) == (lacks() is None)


ONLY_NAMESPACE = pytest.mark.parametrize(
    "provider", [pytest.param("namespace", marks=pytest.mark.namespace)], indirect=True
)
ONLY_DOCKER = pytest.mark.parametrize(
    "provider", [pytest.param("docker", marks=pytest.mark.docker)], indirect=True
)


@ONLY_NAMESPACE
async def test_namespace_refuses_compose_with_the_way_out(provider: str) -> None:
    compose = ComposeFile(
        path="/t/docker-compose.yaml", context="/t", services=("main", "database")
    )
    async with NamespaceProvider() as its:
        reason = await its.refuses(task(compose=compose), network=False)
    assert reason is not None
    assert "main, database" in reason
    assert "sandbox.provider = 'docker'" in reason


@ONLY_DOCKER
async def test_docker_refuses_what_its_compose_file_asks_for(provider: str, tmp_path: Path) -> None:
    (tmp_path / "docker-compose.yaml").write_text(
        "services: {main: {image: x, privileged: true}}\n"
    )
    compose = ComposeFile(path=str(tmp_path / "docker-compose.yaml"), context=str(tmp_path))
    async with DockerProvider() as its:
        reason = await its.refuses(task(compose=compose), network=False)
        assert reason is not None
        assert "service main of its compose file is privileged" in reason or "plugin" in reason


# --- storage ---


@ONLY_NAMESPACE
async def test_a_namespace_sandbox_writes_no_more_than_it_may(provider: str) -> None:
    async with NamespaceProvider() as its:
        spec = SandboxSpec(
            image=await its.prepare(BASE), episode="full", limits=Limits(storage_mb=16)
        )
        async with its.open(spec) as sandbox:
            assert "No space left" in await out(sandbox, "head -c 20M /dev/zero >/full")
            assert (
                await out(sandbox, "rm /full; head -c 8M /dev/zero >/some && echo fits") == "fits\n"
            )


@ONLY_DOCKER
async def test_a_storage_limit_never_keeps_a_container_from_starting(provider: str) -> None:
    async with DockerProvider() as its:
        spec = SandboxSpec(
            image=await its.prepare(BASE), episode="full", limits=Limits(storage_mb=512)
        )
        async with its.open(spec) as sandbox:
            assert await out(sandbox, "echo up") == "up\n"
