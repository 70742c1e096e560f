"""Tasks of several containers, with a real engine and a real `docker compose`."""

import asyncio
import json
import os
import signal
import socket
import sys
import tempfile
import textwrap
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import msgspec
import pytest

from headrace.aio import fan_out
from headrace.errors import ImageError, SandboxError
from headrace.sandbox import compose_networks
from headrace.sandbox.base import Egress, Limits, SandboxSpec
from headrace.sandbox.compose_cli import ComposeCli
from headrace.sandbox.docker import DockerProvider, available, socket_path
from headrace.sandbox.docker_engine import EngineClient
from headrace.sandbox.docker_sweep import PROJECT, labels, remove_project
from headrace.sandbox.egress_proxy import lacks
from headrace.types import ComposeFile, EnvironmentRecipe, NetworkPolicy

pytestmark = [pytest.mark.docker, pytest.mark.timeout(120)]
BASE = "headrace/base:bookworm"

TWO = """
services:
  main: {depends_on: {store: {condition: service_healthy}}}
  store:
    image: headrace/base:bookworm
    command: [sh, -c, "echo river > /srv/word; exec python3 -m http.server 8000 --directory /srv"]
    healthcheck: {test: [CMD, curl, -fs, "http://127.0.0.1:8000/word"], interval: 1s, retries: 20}
"""
CLIENT_SERVER = """
version: "3.8"
services:
  client:
    build: {dockerfile: Dockerfile, args: {SAYS: hello}}
    image: ${T_BENCH_TASK_DOCKER_CLIENT_IMAGE_NAME}
    container_name: ${T_BENCH_TASK_DOCKER_CLIENT_CONTAINER_NAME}
    command: ["sh", "-c", "sleep infinity"]
    environment: [TEST_DIR=$T_BENCH_TEST_DIR, "ME=${T_BENCH_TASK_DOCKER_CLIENT_CONTAINER_NAME}"]
    volumes:
      - ${T_BENCH_TASK_LOGS_PATH}:${T_BENCH_CONTAINER_LOGS_PATH}
      - ${T_BENCH_TASK_AGENT_LOGS_PATH}:${T_BENCH_CONTAINER_AGENT_LOGS_PATH}
      - ./shared:/shared
    ports: ["8080:80"]
    networks: [inside]
  server:
    build: .
    container_name: the-server
    command: ["python3", "-m", "http.server", "9000", "--directory", "/etc"]
    networks: [inside]
    volumes: ["data:/data"]
networks: {inside: {}}
volumes: {data: {}}
"""
DOCKERFILE = "FROM headrace/base:bookworm\nARG SAYS=nothing\nRUN echo $SAYS >/says\nWORKDIR /app\n"


def recipe(folder: Path, text: str, service: str = "main", **more: Any) -> EnvironmentRecipe:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "docker-compose.yaml"
    path.write_text(text)
    compose = ComposeFile(path=str(path), context=str(folder), service=service)
    return EnvironmentRecipe(compose=compose, **{"build_timeout_s": 60.0, **more})


async def ready(docker: DockerProvider, its: EnvironmentRecipe, **more: Any) -> SandboxSpec:
    image = await docker.prepare(its)
    named = {"image": image, "episode": f"e{os.getpid()}", "compose": its.compose}
    return SandboxSpec(**{**named, **more})


async def out(sandbox: Any, command: str) -> str:
    result = await sandbox.run(command, timeout_s=30)
    return str((result.stdout + result.stderr).decode())


def _own_address() -> str:
    """An address of this machine that is not loopback; nothing is sent to find it."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.connect(("192.0.2.1", 9))
        return str(probe.getsockname()[0])


class Engine:
    """What the engine holds with a label, in its own words."""

    def __init__(self, socket: str) -> None:
        self.socket = socket

    async def holds(self, label: str) -> list[str]:
        filters = json.dumps({"label": [label]})
        connector = aiohttp.UnixConnector(self.socket)
        found: list[str] = []
        async with aiohttp.ClientSession(connector=connector) as session:
            for path, key in (("containers/json?all=1&", ""), ("networks?", ""), ("volumes?", "V")):
                async with session.get(f"http://docker/{path}filters={filters}") as answer:
                    data = await answer.json()
                    items = (data["Volumes"] or []) if key else data
                    found += [str(item.get("Names") or item["Name"]) for item in items]
        return found

    async def internal(self, episode: str) -> list[bool]:
        """Of each network of an episode, whether nothing outside is reached."""
        filters = json.dumps({"label": [f"dev.headrace.episode={episode}"]})
        connector = aiohttp.UnixConnector(self.socket)
        async with aiohttp.ClientSession(connector=connector) as session:
            async with session.get(f"http://docker/networks?filters={filters}") as answer:
                return [bool(network["Internal"]) for network in await answer.json()]


@pytest.fixture
async def engine() -> Engine:
    reason = await available() or await ComposeCli(socket_path()).lacks()
    if reason is not None:
        pytest.skip(reason)
    return Engine(socket_path())


@pytest.fixture
async def docker(engine: Engine) -> AsyncIterator[DockerProvider]:
    async with DockerProvider(socket=engine.socket, run_id="compose-test") as docker:
        await docker.prepare(EnvironmentRecipe(image=BASE))
        yield docker


async def test_two_services_talk_by_name_and_reach_nothing_else(
    docker: DockerProvider, engine: Engine, tmp_path: Path
) -> None:
    spec = await ready(docker, recipe(tmp_path, TWO, image=BASE))
    async with docker.open(spec) as sandbox:
        # Awaited: its health check passes only when the server answers.
        assert await out(sandbox, "curl -fs http://store:8000/word") == "river\n"
        assert "exit 6" in await out(sandbox, "curl -s http://example.com; echo exit $?")
        host = await asyncio.start_server(lambda reader, writer: writer.close(), "0.0.0.0", 0)
        port = host.sockets[0].getsockname()[1]
        async with host:  # listens on every address of this machine
            gateway = "ip route show default | cut -d' ' -f3"
            for address in (f"$({gateway})", _own_address()):
                ask = f"timeout 2 bash -c 'echo >/dev/tcp/'{address}/{port} 2>&1; echo $?"
                said = await out(sandbox, ask)
                assert said.splitlines()[-1] in ("1", "124"), (address, said)
        held = await engine.holds(f"dev.headrace.episode={spec.episode}")
        assert len(held) == 3
    assert await engine.holds(f"dev.headrace.episode={spec.episode}") == []


async def test_our_own_channel_reaches_a_sidecar(docker: DockerProvider, tmp_path: Path) -> None:
    spec = await ready(docker, recipe(tmp_path, TWO, image=BASE))
    async with docker.open(spec) as sandbox:
        store = sandbox.service("store")
        await store.write("/srv/made", b"by us\n")
        assert await store.read("/srv/word") == b"river\n"
        assert (await store.exec("cat /srv/made", timeout_s=20)).stdout == b"by us\n"
        assert await out(sandbox, "curl -fs http://store:8000/made") == "by us\n"
        assert sandbox.service("main") is sandbox
        with pytest.raises(SandboxError, match="no service 'nobody' beside"):
            sandbox.service("nobody")


async def test_client_and_server_of_terminal_bench_1(
    docker: DockerProvider, engine: Engine, tmp_path: Path
) -> None:
    its = recipe(tmp_path, CLIENT_SERVER, "client")
    (tmp_path / "Dockerfile").write_text(DOCKERFILE)
    (tmp_path / "shared").mkdir()
    (tmp_path / "shared" / "given").write_text("of the task\n")
    spec = await ready(docker, its)
    connected = msgspec.structs.replace(spec, network=True)
    async with docker.open(spec) as one, docker.open(connected) as other:
        assert await out(one, "cat /says; pwd; echo $TEST_DIR") == "hello\n/app\n/tests\n"
        assert (
            await out(one, "echo x >/logs/a && ls /logs /agent-logs")
            == "/agent-logs:\n\n/logs:\na\n"
        )
        ask = "until curl -fs http://the-server:9000/passwd; do sleep 0.1; done"
        for each in (one, other):
            assert "root:" in await out(each, ask)
        assert sorted(await engine.internal(spec.episode)) == [False, True]
        assert await out(one, "echo $ME") != await out(other, "echo $ME")
        assert await out(one, "echo mine >/shared/given; cat /shared/given") == "mine\n"
        assert await out(other, "cat /shared/given") == "of the task\n"
    assert (tmp_path / "shared" / "given").read_text() == "of the task\n"
    assert await engine.holds(f"dev.headrace.episode={spec.episode}") == []
    assert not [
        name
        for name in os.listdir(tempfile.gettempdir())
        if name.startswith(f"headrace-{spec.episode}")
    ]


async def test_what_the_file_runs_runs_beside_the_shell(
    docker: DockerProvider, tmp_path: Path
) -> None:
    its = recipe(
        tmp_path,
        """
        services:
          main:
            image: headrace/base:bookworm
            user: nobody
            working_dir: /srv
            command: [python3, -m, http.server, "8000"]
            mem_limit: 300m
        """,
    )
    spec = await ready(docker, its, limits=Limits(memory_mb=999))
    async with docker.open(spec) as sandbox:
        assert await out(sandbox, "id -un; pwd") == "nobody\n/srv\n"
        ask = "until curl -fs localhost:8000 >/tmp/page; do sleep 0.1; done; head -1 /tmp/page"
        assert "DOCTYPE" in await out(sandbox, ask)
        limit = "cat /sys/fs/cgroup/memory/memory.limit_in_bytes /sys/fs/cgroup/memory.max"
        assert str(300 << 20) in await out(sandbox, f"{limit} 2>/dev/null")


async def test_the_entrypoint_of_the_image_runs_beside_the_shell(
    docker: DockerProvider, tmp_path: Path
) -> None:
    entry = (
        'ENTRYPOINT ["/bin/sh", "-c", "echo \\"$0 $* $PWD $HOME\\" >/tmp/$X; \\"$0\\" \\"$@\\""]'
    )
    dockerfile = f"FROM {BASE}\nENV X=said\nWORKDIR /srv\nUSER nobody\n{entry}\n"
    (tmp_path / "Dockerfile").write_text(dockerfile)
    ask = "until [ -s /tmp/said ]; do sleep 0.05; done; cat /tmp/said; id -un; pwd"
    its = recipe(tmp_path, "services: {main: {}}")
    async with docker.open(await ready(docker, its, workdir="/opt")) as sandbox:
        found = await out(sandbox, ask)
        assert found == "sh -c sleep infinity /srv /nonexistent\nnobody\n/opt\n"
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "Dockerfile").write_text(dockerfile)
    its = recipe(
        tmp_path / "other",
        """
        services:
          main: {entrypoint: [sh, -c, 'echo "other $$0 $$*" >/tmp/said; exec "$$0" "$$@"']}
        """,
    )
    async with docker.open(await ready(docker, its)) as sandbox:
        assert await out(sandbox, ask) == "other sh -c sleep infinity\nnobody\n/srv\n"


@pytest.mark.skipif(lacks() is not None, reason=str(lacks()))
async def test_every_service_reaches_what_the_policy_names(
    docker: DockerProvider, tmp_path: Path
) -> None:
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\nhello\n")
        writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    egress = Egress(NetworkPolicy(mode="allowlist", allowed_hosts=("127.0.0.1",)))
    spec = await ready(docker, recipe(tmp_path, TWO, image=BASE), egress=egress)
    ask = f"curl -s --noproxy store http://127.0.0.1:{server.sockets[0].getsockname()[1]}/"
    async with server, docker.open(spec) as sandbox:
        store = sandbox.service("store")
        assert await out(sandbox, ask) == "hello\n"
        assert (await store.exec(ask, timeout_s=30)).stdout == b"hello\n"
        assert await out(sandbox, "curl -fs http://store:8000/word") == "river\n"
        egress.policy = NetworkPolicy(mode="none")
        assert "not on the list" in await out(sandbox, ask)
        assert b"not on the list" in (await store.exec(ask, timeout_s=30)).stdout


@pytest.mark.skipif(lacks() is not None, reason=str(lacks()))
async def test_services_in_one_network_have_one_proxy(
    docker: DockerProvider, tmp_path: Path
) -> None:
    text = TWO.replace("main: {", 'main: {network_mode: "service:store", ')
    spec = await ready(docker, recipe(tmp_path, text, image=BASE), egress=Egress(NetworkPolicy()))
    async with docker.open(spec) as sandbox:
        ask = "curl -s --noproxy '' http://127.0.0.1:1/"
        assert "not on the list" in await out(sandbox, ask)
        assert b"not on the list" in (await sandbox.service("store").exec(ask, timeout_s=30)).stdout


async def test_the_files_limits_of_processes_outlast_what_we_lend(
    docker: DockerProvider, tmp_path: Path
) -> None:
    text = TWO.replace("main: {", "main: {pids_limit: 600, ")
    text = text.replace("    healthcheck:", "    pids_limit: 100\n    healthcheck:")
    spec = await ready(docker, recipe(tmp_path, text, image=BASE), limits=Limits(pids=300))
    limit = "cat /sys/fs/cgroup/pids/pids.max /sys/fs/cgroup/pids.max 2>/dev/null"
    async with docker.open(spec) as sandbox:
        await out(sandbox, "for i in $(seq 560); do sleep 600 & done")
        await sandbox.exec("true", timeout_s=30)
        assert await out(sandbox, f"kill $(jobs -p); wait; {limit}") == "600\n"
        store = sandbox.service("store")
        await store.exec("true", timeout_s=30)
        assert (await store.exec(limit, timeout_s=30)).stdout == b"100\n"


async def test_a_sidecar_that_fails_is_named_with_its_log(
    docker: DockerProvider, engine: Engine, tmp_path: Path
) -> None:
    text = TWO.replace("exec python3 -m http.server 8000 --directory /srv", "echo no luck; exit 3")
    spec = await ready(docker, recipe(tmp_path, text, image=BASE))
    with pytest.raises(SandboxError, match=r"(?s)store.*no luck"):
        async with docker.open(spec):
            pass
    assert await engine.holds(f"dev.headrace.episode={spec.episode}") == []


async def test_a_cancelled_start_leaves_nothing(
    docker: DockerProvider, engine: Engine, tmp_path: Path
) -> None:
    text = TWO.replace("http://127.0.0.1:8000/word", "http://127.0.0.1:1/never")
    spec = await ready(docker, recipe(tmp_path, text, image=BASE))
    label = f"dev.headrace.episode={spec.episode}"

    async def up() -> None:
        async with docker.open(spec):
            pytest.fail("it never gets healthy")

    async with asyncio.TaskGroup() as group:
        task = group.create_task(up())
        while len(await engine.holds(label)) < 3:
            pass
        task.cancel()
    assert await engine.holds(label) == []


async def test_forty_networks_at_once(engine: Engine) -> None:
    async with EngineClient(engine.socket) as client:
        project = f"headrace-forty-{os.getpid()}"
        own = {**labels("compose-test", project), PROJECT: project}

        async def make(number: int) -> None:
            name = f"{project}-{number}"
            await compose_networks.create(client, name, hosts=2, network=False, labels=own)

        try:
            await fan_out(make, range(40), limit=8)
            assert len(await engine.holds(f"{PROJECT}={project}")) == 40
        finally:
            await remove_project(client, project)
        assert await engine.holds(f"{PROJECT}={project}") == []


async def test_a_sweep_removes_what_a_killed_driver_left(
    docker: DockerProvider, engine: Engine, tmp_path: Path
) -> None:
    its = recipe(tmp_path, CLIENT_SERVER, "client")
    (tmp_path / "Dockerfile").write_text(DOCKERFILE)
    assert its.compose is not None
    spec = await ready(docker, its, episode=f"killed{os.getpid()}")
    program = textwrap.dedent(
        f"""
        import asyncio, sys
        from headrace.sandbox.base import SandboxSpec
        from headrace.sandbox.docker import DockerProvider
        from headrace.types import ComposeFile

        path, context = {its.compose.path!r}, {str(tmp_path)!r}
        compose = ComposeFile(path=path, context=context, service="client")
        spec = SandboxSpec(image={spec.image!r}, episode={spec.episode!r}, compose=compose)

        async def main():
            async with DockerProvider(socket={engine.socket!r}, run_id="killed") as docker:
                async with docker.open(spec):
                    print("up", flush=True)
                    await asyncio.sleep(60)

        asyncio.run(main())
        """
    )
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", program, stdout=asyncio.subprocess.PIPE
    )
    assert process.stdout is not None
    assert await process.stdout.readline() == b"up\n"
    process.send_signal(signal.SIGKILL)
    await process.wait()
    label = f"dev.headrace.episode={spec.episode}"
    assert len(await engine.holds(label)) >= 5  # containers, network, volumes
    lines = await docker.sweep()
    assert await engine.holds(label) == []
    assert any(spec.episode in line and "network" in line for line in lines)
    assert any(f"folders of {spec.episode}" in line for line in lines)
    assert not [
        name
        for name in os.listdir(tempfile.gettempdir())
        if name.startswith(f"headrace-{spec.episode}")
    ]


@pytest.mark.parametrize(
    ("service", "why"),
    [
        ("privileged: true", "is privileged"),
        ("network_mode: host", "network_mode: host"),
        ("pid: host", "pid: host"),
        ("volumes: ['/var/run/docker.sock:/s']", "docker.sock, outside the task's folder"),
        ("volumes: ['../..:/up']", "outside the task's folder"),
        ("devices: ['/dev/fuse']", "`devices`, which is not supported"),
        ("cap_add: [SYS_ADMIN]", "the capability SYS_ADMIN"),
        ("env_file: /etc/hosts", "env_file names /etc/hosts"),
        ("use_api_socket: true", "`use_api_socket`, which is not supported"),
        ("provider: {type: evil}", "`provider`, which is not supported"),
        ("security_opt: ['seccomp=unconfined']", "takes a wall down"),
        ("extends: {file: ../x.yaml, service: y}", "extends names ../x.yaml"),
        ("depends_on: [main]", "cycle"),
        ("build: /", "is built from /, outside"),
        ("gpus: all", "`gpus`, which is not supported"),
        ("build: {context: ., ssh: [default]}", "`build.ssh`, which is not supported"),
        ("scale: 3", "more than one copy"),
        ("networks: {default: {ipv4_address: 10.0.0.5}}", "a fixed ipv4_address"),
    ],
)
async def test_what_reaches_the_host_is_refused_by_name(
    docker: DockerProvider, tmp_path: Path, service: str, why: str
) -> None:
    image = "" if service.startswith(("provider", "build")) else "image: x"
    text = f"services:\n  main:\n    {service}\n    {image}\n"
    with pytest.raises(ImageError, match=why):
        await docker.prepare(recipe(tmp_path / "task", text))


async def test_a_yaml_bomb_is_an_error(docker: DockerProvider, tmp_path: Path) -> None:
    lines = ["services: {main: {image: x}}", "x-a: &a [1, 1, 1, 1, 1, 1, 1, 1, 1, 1]"]
    for name, before in zip("bcdefghi", "abcdefgh", strict=True):
        lines.append(f"x-{name}: &{name} [{', '.join([f'*{before}'] * 10)}]")
    with pytest.raises(ImageError, match="aliases are expanded"):
        await docker.prepare(recipe(tmp_path, "\n".join(lines)))


async def test_the_hosts_environment_is_not_interpolated(
    docker: DockerProvider, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MY_SECRET_TOKEN", "hunter2")
    main = "{image: 'headrace/base:bookworm', environment: {A: 'x$MY_SECRET_TOKEN$B'}}"
    text = f"services: {{main: {main}}}"
    spec = await ready(docker, recipe(tmp_path, text, env={"B": "y$z"}))
    async with docker.open(spec) as sandbox:
        assert await out(sandbox, "echo $A") == "xy$z\n"


async def test_without_the_plugin_it_says_how_to_get_it(
    engine: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path))
    assert "docker-compose.sh up" in str(await ComposeCli(engine.socket).lacks())
