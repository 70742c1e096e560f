"""What only the docker provider promises; what every provider promises is in the conformance."""

import asyncio
import json
import os
import signal
import sys
import textwrap
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from headrace.errors import ImageError, ProviderGone, SandboxEnded, SandboxError
from headrace.sandbox.base import Limits, SandboxSpec
from headrace.sandbox.docker import DockerProvider, available, socket_path
from headrace.types import EnvironmentRecipe

BASE = EnvironmentRecipe(image="headrace/base:bookworm")
pytestmark = [pytest.mark.docker, pytest.mark.timeout(120)]


# --- the engine, past everything of headrace ---


class Raw:
    """The engine's own words."""

    def __init__(self, session: aiohttp.ClientSession) -> None:
        self._session = session

    async def get(self, path: str) -> Any:
        async with self._session.get(f"http://docker/{path}") as answer:
            answer.raise_for_status()
            return await answer.json()

    async def lines(self, path: str) -> list[Any]:
        async with self._session.get(f"http://docker/{path}") as answer:
            answer.raise_for_status()
            return [json.loads(line) for line in (await answer.text()).splitlines()]

    async def post(self, path: str, body: Any = None) -> int:
        async with self._session.post(f"http://docker/{path}", json=body) as answer:
            await answer.read()
            return answer.status

    async def delete(self, path: str) -> None:
        async with self._session.delete(f"http://docker/{path}") as answer:
            assert answer.status in (200, 204, 404, 409), await answer.text()

    async def containers(self, episode: str) -> list[dict[str, Any]]:
        filters = json.dumps({"label": [f"dev.headrace.episode={episode}"]})
        found: list[dict[str, Any]] = await self.get(f"containers/json?all=1&filters={filters}")
        return found

    async def gone(self, container: str) -> bool:
        """Waits for the removal of a container."""
        status = await self.post(f"containers/{container}/wait?condition=removed")
        return status in (200, 404)


@pytest.fixture
async def engine() -> str:
    """The socket of a Docker engine, or a skip that says how to get one."""
    reason = await available()
    if reason is not None:
        pytest.skip(f"{reason}; then export the DOCKER_HOST it prints")
    return socket_path()


@pytest.fixture
async def raw(engine: str) -> AsyncIterator[Raw]:
    async with aiohttp.ClientSession(connector=aiohttp.UnixConnector(engine)) as session:
        yield Raw(session)


@pytest.fixture
async def docker(engine: str) -> AsyncIterator[DockerProvider]:
    async with DockerProvider(socket=engine, run_id="test-run") as docker:
        await docker.prepare(BASE)
        yield docker


def spec(episode: str, **changes: Any) -> SandboxSpec:
    return SandboxSpec(**{"image": BASE.image, "episode": f"{episode}-{os.getpid()}", **changes})


async def text(sandbox: Any, command: str) -> str:
    result = await sandbox.run(command, timeout_s=30)
    return str((result.stdout + result.stderr).decode())


# --- the container ---


async def test_a_container_carries_run_episode_and_owner(docker: DockerProvider, raw: Raw) -> None:
    its = spec("labels")
    async with docker.open(its):
        (found,) = await raw.containers(its.episode)
    labels = found["Labels"]
    assert labels["dev.headrace.run"] == "test-run"
    assert labels["dev.headrace.owner"].split(":")[0] == str(os.getpid())


async def test_limits_are_set_in_the_engine(docker: DockerProvider, raw: Raw) -> None:
    its = spec("limits", limits=Limits(cpus=0.5, memory_mb=64, pids=77))
    async with docker.open(its) as sandbox:
        host = (await raw.get(f"containers/{sandbox.container}/json"))["HostConfig"]
        assert host["NanoCpus"] == 500_000_000
        assert host["Memory"] == host["MemorySwap"] == 64 << 20
        assert host["PidsLimit"] == 77


async def test_no_limit_is_no_limit(docker: DockerProvider, raw: Raw) -> None:
    its = spec("unlimited", limits=Limits(cpus=None, memory_mb=None, pids=None))
    async with docker.open(its) as sandbox:
        host = (await raw.get(f"containers/{sandbox.container}/json"))["HostConfig"]
        assert (host["NanoCpus"], host["Memory"], host["PidsLimit"]) == (0, 0, None)


async def test_a_command_over_the_memory_limit_dies_and_the_shell_lives(
    docker: DockerProvider,
) -> None:
    async with docker.open(spec("memory", limits=Limits(memory_mb=64))) as sandbox:
        hog = await sandbox.run("python3 -c 'x = bytearray(300 << 20)'", timeout_s=60)
        assert hog.exit_code == 137
        assert await text(sandbox, "echo alive") == "alive\n"


async def test_of_the_host_only_an_empty_folder_is_mounted_and_nothing_is_logged(
    docker: DockerProvider, raw: Raw
) -> None:
    async with docker.open(spec("mounts")) as sandbox:
        found = await raw.get(f"containers/{sandbox.container}/json")
        (mount,) = found["Mounts"]
        assert (mount["Type"], mount["RW"]) == ("bind", False)
        assert os.listdir(mount["Source"]) == []
        refused = await sandbox.run(f"touch {mount['Destination']}/a", timeout_s=10)
        assert b"Read-only file system" in refused.stderr
    assert not await asyncio.to_thread(os.path.exists, mount["Source"])
    assert found["HostConfig"]["Binds"] is None
    assert found["HostConfig"]["LogConfig"]["Type"] == "none"


async def test_the_network_is_loopback_alone(docker: DockerProvider) -> None:
    async with docker.open(spec("no-network")) as sandbox:
        assert await text(sandbox, "ls /sys/class/net") == "lo\n"
        assert "localhost" in await text(sandbox, "getent hosts localhost")
        assert "refused" in await text(sandbox, "echo hello >/dev/tcp/localhost/9")


async def test_a_network_is_there_when_it_is_asked_for(docker: DockerProvider, raw: Raw) -> None:
    if not any(network["Name"] == "bridge" for network in await raw.get("networks")):
        pytest.skip("the engine has no bridge network")
    async with docker.open(spec("network", network=True)) as sandbox:
        assert "eth0" in await text(sandbox, "ls /sys/class/net")


async def test_a_full_process_table_does_not_keep_a_deadline_waiting(
    docker: DockerProvider, raw: Raw
) -> None:
    async with docker.open(spec("pids", limits=Limits(pids=32))) as sandbox:
        fill = "for i in $(seq 100); do sleep 1000 & done 2>/dev/null; sleep 1000"
        result = await sandbox.run(fill, timeout_s=1)
        assert result.timed_out
        assert await text(sandbox, "ls /proc | grep -c '^[0-9]'") != ""
        host = (await raw.get(f"containers/{sandbox.container}/json"))["HostConfig"]
        assert host["PidsLimit"] == 32


async def test_commands_of_ours_cost_no_engine_call_unless_the_processes_are_used_up(
    docker: DockerProvider, raw: Raw
) -> None:
    begun = time.time()
    async with docker.open(spec("calls", limits=Limits(pids=64))) as sandbox:

        async def calls() -> list[str]:
            """What the engine did for this container."""
            filters = json.dumps({"container": [sandbox.container]})
            span = f"since={begun:.6f}&until={time.time():.6f}"
            lines = await raw.lines(f"events?{span}&filters={filters}")
            return [line["Action"].partition(":")[0] for line in lines]

        for _ in range(5):
            await sandbox.exec("sleep 0; echo ours", timeout_s=20, stdin=b"x")
            await sandbox.write("/tmp/ours", b"ours")
            await sandbox.read("/tmp/ours")
        ordinary = await calls()
        await sandbox.run("for i in $(seq 50); do sleep 1000 & done", timeout_s=10)
        assert (await sandbox.exec("echo ours", timeout_s=20)).stdout == b"ours\n"
        crowded = await calls()
    assert (ordinary.count("exec_create"), ordinary.count("update")) == (0, 0)
    assert crowded.count("update") == 2, "lent and taken back"


# --- the end of a container ---


async def test_nothing_is_left_after_close(docker: DockerProvider, raw: Raw) -> None:
    its = spec("close")
    async with docker.open(its) as sandbox:
        await sandbox.run("sleep 1000 & true", timeout_s=10)
    assert await raw.containers(its.episode) == []
    with pytest.raises(SandboxError, match="closed"):
        await sandbox.run("true", timeout_s=1)


@pytest.mark.parametrize("turns", [0, 1, 3, 10, 40, 200])
async def test_nothing_is_left_when_opening_is_cancelled(
    docker: DockerProvider, raw: Raw, turns: int
) -> None:
    its = spec(f"cancel-open-{turns}")

    async def opened() -> None:
        async with docker.open(its):
            pass

    async with asyncio.TaskGroup() as group:
        task = group.create_task(opened())
        for _ in range(turns):
            await asyncio.sleep(0)
        task.cancel()
    assert await raw.containers(its.episode) == []


async def test_nothing_is_left_when_a_command_is_cancelled(
    docker: DockerProvider, raw: Raw
) -> None:
    its = spec("cancel-run")
    started = asyncio.Event()

    async def endless() -> None:
        async with docker.open(its) as sandbox:
            started.set()
            await sandbox.run("sleep 1000", timeout_s=1000)

    async with asyncio.TaskGroup() as group:
        task = group.create_task(endless())
        await started.wait()
        task.cancel()
    assert await raw.containers(its.episode) == []


async def test_an_image_without_a_shell_is_an_error_and_leaves_nothing(
    docker: DockerProvider, raw: Raw, tmp_path: Path
) -> None:
    image = await docker.prepare(dockerfile(tmp_path, "FROM scratch\nCOPY Dockerfile /\n"))
    its = spec("no-shell", image=image)
    with pytest.raises(SandboxError, match='"sh"'):
        async with docker.open(its):
            pass
    assert await raw.containers(its.episode) == []


async def test_an_image_that_is_not_there_is_an_error(docker: DockerProvider) -> None:
    with pytest.raises(ImageError, match="headrace/task:none"):
        async with docker.open(spec("no-image", image="headrace/task:none")):
            pass


async def test_a_container_removed_by_others_is_a_sandbox_error_not_the_engines_end(
    docker: DockerProvider, raw: Raw
) -> None:
    async with docker.open(spec("stolen")) as sandbox:
        await raw.delete(f"containers/{sandbox.container}?force=1")
        with pytest.raises(SandboxEnded, match="ended by itself") as caught:
            await sandbox.run("true", timeout_s=10)
        assert not isinstance(caught.value, ProviderGone)


# --- images ---


def dockerfile(folder: Path, content: str, **changes: Any) -> EnvironmentRecipe:
    (folder / "Dockerfile").write_text(content)
    paths = {"dockerfile": str(folder / "Dockerfile"), "context": str(folder)}
    return EnvironmentRecipe(**{**paths, **changes})


@pytest.fixture
async def built(raw: Raw) -> AsyncIterator[list[str]]:
    """Images to remove after the test."""
    names: list[str] = []
    yield names
    for name in names:
        await raw.delete(f"images/{name}?force=1")


async def test_a_dockerfile_is_built_once_however_many_ask(
    engine: str, docker: DockerProvider, tmp_path: Path, built: list[str]
) -> None:
    recipe = dockerfile(tmp_path, f"FROM {BASE.image}\nRUN echo {os.getpid()} >/mark\n")
    said: list[str] = []
    async with DockerProvider(socket=engine, progress=said.append) as other:
        async with asyncio.TaskGroup() as group:
            asked = [group.create_task(other.prepare(recipe)) for _ in range(5)]
        names = {task.result() for task in asked}
    built += names
    assert len(names) == 1
    assert len(said) == 1
    assert await docker.prepare(recipe) in names
    async with docker.open(spec("built", image=names.pop())) as sandbox:
        assert await text(sandbox, "cat /mark") == f"{os.getpid()}\n"


async def test_tasks_with_the_same_content_are_built_once(
    engine: str, tmp_path: Path, built: list[str]
) -> None:
    recipes = []
    for name in ("one", "two", "three"):
        (tmp_path / name).mkdir()
        content = f"FROM {BASE.image}\nRUN echo same {os.getpid()} >/mark\n"
        recipes.append(dockerfile(tmp_path / name, content))
    said: list[str] = []
    async with DockerProvider(socket=engine, progress=said.append) as provider:
        async with asyncio.TaskGroup() as group:
            asked = [group.create_task(provider.prepare(recipe)) for recipe in recipes]
    names = {task.result() for task in asked}
    built += names
    assert len(names) == 1
    assert sum(line.startswith("building ") for line in said) == 1


async def test_the_context_arrives_with_dotfiles_and_symlinks_and_without_what_is_ignored(
    docker: DockerProvider, tmp_path: Path, built: list[str]
) -> None:
    (tmp_path / ".env").write_text("A=1\n")
    (tmp_path / "link").symlink_to("/etc/hostname")
    (tmp_path / "secret.log").write_text("x")
    (tmp_path / ".dockerignore").write_text("*.log\n")
    image = await docker.prepare(dockerfile(tmp_path, f"FROM {BASE.image}\nCOPY . /srv/\n"))
    built.append(image)
    async with docker.open(spec("context", image=image)) as sandbox:
        assert await text(sandbox, "cd /srv; cat .env; readlink link; ls *.log") == (
            "A=1\n/etc/hostname\nls: cannot access '*.log': No such file or directory\n"
        )


async def test_user_and_folder_of_the_image_are_kept_and_an_entrypoint_that_fails_ends_nothing(
    docker: DockerProvider, tmp_path: Path, built: list[str]
) -> None:
    content = f'FROM {BASE.image}\nWORKDIR /srv/task\nUSER nobody\nENTRYPOINT ["false"]\n'
    image = await docker.prepare(dockerfile(tmp_path, content))
    built.append(image)
    async with docker.open(spec("user", image=image)) as sandbox:
        assert await text(sandbox, "id -un; pwd") == "nobody\n/srv/task\n"
        result = await sandbox.exec("id -un; pwd", timeout_s=30)
        assert result.stdout == b"root\n/srv/task\n"


async def test_a_failed_build_shows_the_end_of_its_log_and_is_not_tried_again(
    engine: str, tmp_path: Path
) -> None:
    recipe = dockerfile(tmp_path, f"FROM {BASE.image}\nRUN echo seen-in-the-log && exit 3\n")
    said: list[str] = []
    async with DockerProvider(socket=engine, progress=said.append) as docker:
        for _ in range(2):
            with pytest.raises(ImageError, match=r"(?s)Dockerfile.*code: 3.*seen-in-the-log"):
                await docker.prepare(recipe)
    assert len(said) == 1


async def test_a_here_document_is_said_to_need_buildkit(
    docker: DockerProvider, tmp_path: Path, raw: Raw, built: list[str]
) -> None:
    recipe = dockerfile(tmp_path, f"FROM {BASE.image}\nRUN <<EOF\necho one\nEOF\n")
    with pytest.raises(ImageError, match=r"here-document \(line 2\).*BuildKit.*docker buildx"):
        await docker.prepare(recipe)


async def test_a_base_that_cannot_be_pulled_is_named(
    docker: DockerProvider, tmp_path: Path
) -> None:
    recipe = dockerfile(tmp_path, "FROM localhost:9/headrace/nowhere:1\n")
    with pytest.raises(ImageError, match="localhost:9/headrace/nowhere:1.*could not be pulled"):
        await docker.prepare(recipe)


async def test_an_image_that_cannot_be_pulled_says_what_to_do(docker: DockerProvider) -> None:
    with pytest.raises(ImageError, match="localhost:9/nowhere:1.*docker load"):
        await docker.prepare(EnvironmentRecipe(image="localhost:9/nowhere:1"))


async def test_a_build_over_its_time_is_an_image_error(
    docker: DockerProvider, raw: Raw, tmp_path: Path
) -> None:
    wait = f"RUN sleep 1000.{os.getpid()}"
    recipe = dockerfile(tmp_path, f"FROM {BASE.image}\n{wait}\n", build_timeout_s=3.0)
    with pytest.raises(ImageError, match="not done within 3 s"):
        await docker.prepare(recipe)
    async with asyncio.timeout(30):  # the engine hears that nobody waits, and stops building
        while wait.removeprefix("RUN ") in str(await raw.get("containers/json?all=1")):
            pass


# --- the engine goes away ---


class Line:
    """A Unix socket in front of the engine that can be cut, as a dying engine cuts it."""

    def __init__(self, engine: str, path: Path) -> None:
        self.path = path
        self._engine = engine
        self._writers: list[asyncio.StreamWriter] = []
        self._server: asyncio.Server | None = None

    async def carry(self, client: asyncio.StreamReader, answer: asyncio.StreamWriter) -> None:
        reader, writer = await asyncio.open_unix_connection(self._engine)
        self._writers += [answer, writer]
        async with asyncio.TaskGroup() as group:
            group.create_task(_copy(client, writer))
            group.create_task(_copy(reader, answer))

    def cut(self) -> None:
        assert self._server is not None
        self._server.close()
        self.path.unlink(missing_ok=True)
        for writer in self._writers:
            writer.transport.abort()

    @asynccontextmanager
    async def up(self) -> AsyncIterator["Line"]:
        self._server = await asyncio.start_unix_server(self.carry, self.path)
        try:
            yield self
        finally:
            self.cut()


async def _copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    try:
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()
    except ConnectionError:
        pass
    finally:
        writer.close()


async def test_an_engine_that_goes_away_ends_every_call_as_provider_gone(
    engine: str, raw: Raw, tmp_path: Path
) -> None:
    its = spec("engine-gone")
    async with Line(engine, tmp_path / "s").up() as line:
        async with DockerProvider(socket=str(line.path)) as docker:
            async with docker.open(its) as sandbox:
                async with asyncio.TaskGroup() as group:
                    command = "touch /tmp/runs; sleep 60"
                    running = group.create_task(failure(sandbox.run(command, timeout_s=60)))
                    # Begun, so that neither the container ends with its stdin nor our own channel.
                    await sandbox.exec("until [ -e /tmp/runs ]; do sleep 0.01; done", timeout_s=30)
                    line.cut()
                assert isinstance(running.result(), ProviderGone)
                assert "there is no socket" in str(running.result())
                assert isinstance(await failure(sandbox.exec("true", timeout_s=5)), ProviderGone)
                assert isinstance(await failure(docker.prepare(dockerless())), ProviderGone)
            with pytest.raises(ProviderGone):
                async with docker.open(its):
                    pass
    for left in await raw.containers(its.episode):  # nobody could remove it through the cut line
        await raw.delete(f"containers/{left['Id']}?force=1")


async def failure(call: Any) -> BaseException | None:
    try:
        async with asyncio.timeout(30):
            await call
    except SandboxError as e:
        return e
    return None


def dockerless() -> EnvironmentRecipe:
    return EnvironmentRecipe(image="headrace/other:1")


async def test_a_provider_without_an_engine_does_not_open(tmp_path: Path) -> None:
    with pytest.raises(ProviderGone, match="there is no socket"):
        async with DockerProvider(socket=str(tmp_path / "none")):
            pass


# --- owners ---

DRIVER = textwrap.dedent(
    """
    import asyncio, sys
    from headrace.sandbox.base import SandboxSpec
    from headrace.sandbox.docker import DockerProvider

    async def main(image, episode, command):
        async with DockerProvider(run_id="dead-run") as docker:
            async with docker.open(SandboxSpec(image=image, episode=episode)) as sandbox:
                print(sandbox.container, flush=True)
                await (sandbox.run(command, timeout_s=1000) if command else asyncio.Event().wait())

    asyncio.run(main(*sys.argv[1:]))
    """
)


async def killed_driver(engine: str, raw: Raw, episode: str, command: str) -> str:
    """The container of a driver that was killed while `command` ran, or idle if it is empty."""
    assert BASE.image is not None
    driver = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", DRIVER, BASE.image, episode, command),
        env={**os.environ, "DOCKER_HOST": f"unix://{engine}"},
        stdout=asyncio.subprocess.PIPE,
    )
    assert driver.stdout is not None
    async with asyncio.timeout(60):
        container = (await driver.stdout.readline()).decode().strip()
        while command and command not in str(await raw.get(f"containers/{container}/top")):
            pass
        driver.send_signal(signal.SIGKILL)
        await driver.wait()
    return container


async def test_a_killed_driver_leaves_no_idle_container(
    engine: str, docker: DockerProvider, raw: Raw
) -> None:
    container = await killed_driver(engine, raw, "killed-idle", "")
    async with asyncio.timeout(60):
        assert await raw.gone(container)


async def test_sweep_removes_what_the_dead_left_and_nothing_of_the_living(
    engine: str, docker: DockerProvider, raw: Raw
) -> None:
    its = spec("alive")
    async with docker.open(its) as sandbox:
        container = await killed_driver(engine, raw, "killed-busy", "sleep 1000")
        lines = await docker.sweep()
        assert [line for line in lines if container in line and "dead-run" in line]
        assert not [line for line in lines if sandbox.container in line]
        assert await text(sandbox, "echo alive") == "alive\n"
    async with asyncio.timeout(60):
        assert await raw.gone(container)


async def test_sweep_leaves_what_it_cannot_judge_and_says_so(
    docker: DockerProvider, raw: Raw
) -> None:
    labels = {"dev.headrace.owner": "1:1", "dev.headrace.run": "elsewhere"}
    body = {"Image": BASE.image, "Labels": labels, "Cmd": ["true"]}
    name = f"headrace-test-{os.getpid()}"
    assert await raw.post(f"containers/create?name={name}", body) == 201
    try:
        lines = await docker.sweep()
        assert [line for line in lines if name in line and line.startswith("left ")]
        assert (await raw.get(f"containers/{name}/json"))["Name"] == f"/{name}"
    finally:
        await raw.delete(f"containers/{name}?force=1")
