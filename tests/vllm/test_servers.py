"""Several equal servers as one, against small HTTP servers that die, stick or crawl on purpose."""

import asyncio
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any, cast

import pytest
from aiohttp import web

from headrace.configs.models import ServerConfig, VllmConfig
from headrace.errors import ConfigError, ServerLost
from headrace.policies.client import Request
from headrace.policies.replicas import PROVEN
from headrace.policies.server import VllmServer
from headrace.policies.server_command import choose_port
from headrace.policies.server_share import cores_of, gpus_of
from headrace.policies.servers import Servers

REQUEST = Request(model="m", prompt=[1, 2], max_tokens=4, temperature=1.0, top_p=1.0, top_k=0)
DEADLINE_S = 20.0


class Server:
    """As much of a server as is needed, with gates."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.open = asyncio.Event()
        """Calls are answered while it is set."""
        self.open.set()
        self.healthy = True
        self.arrived = asyncio.Event()
        self.calls: list[str] = []
        """The session of each call."""
        self.running = 0
        self.done = 0
        self.serves = "m"
        self.forgets = True
        """A call that was cancelled, as an engine that is stuck does not."""
        self.before: Callable[[], Awaitable[Any]] | None = None
        self.answers_after_s = 0.0
        """Whatever it is asked."""
        self.base_url = ""

    @web.middleware
    async def _late(self, request: web.Request, handler: Any) -> web.StreamResponse:
        await asyncio.sleep(self.answers_after_s)
        return cast(web.StreamResponse, await handler(request))

    async def _complete(self, request: web.Request) -> web.StreamResponse:
        self.calls.append(request.headers["X-Session-ID"])
        self.arrived.set()
        self.running += 1
        try:
            await self.open.wait()
            if self.before is not None:
                await self.before()
        finally:
            self.running -= self.forgets
        self.done += 1
        choice = {
            "text": self.name,
            "finish_reason": "stop",
            "token_ids": [7],
            "prompt_token_ids": [1, 2],
            "logprobs": {"token_logprobs": [-0.5]},
        }
        return web.json_response({"choices": [choice]})

    async def _health(self, request: web.Request) -> web.StreamResponse:
        return web.Response(status=200 if self.healthy else 503)

    async def _models(self, request: web.Request) -> web.StreamResponse:
        return web.json_response({"data": [{"id": self.serves, "max_model_len": 100}]})

    async def _metrics(self, request: web.Request) -> web.StreamResponse:
        lines = (
            f"vllm:num_requests_running {self.running}",
            f"vllm:generation_tokens_total {self.done}",
            f"vllm:prefix_cache_hits_total {self.done}",
        )
        return web.Response(text="\n".join(lines))

    @asynccontextmanager
    async def serve(self) -> AsyncIterator[web.AppRunner]:
        app = web.Application(middlewares=[self._late])
        app.router.add_post("/v1/completions", self._complete)
        app.router.add_get("/health", self._health)
        app.router.add_get("/v1/models", self._models)
        app.router.add_get("/metrics", self._metrics)
        runner = web.AppRunner(app, handler_cancellation=True, shutdown_timeout=0.1)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        self.base_url = "http://{}:{}".format(*runner.addresses[0][:2])
        try:
            yield runner
        finally:
            await runner.cleanup()


class World:
    """Some servers, and the policy's view of them."""

    def __init__(self, servers: list[Server], runners: list[web.AppRunner]) -> None:
        self.servers = servers
        self.runners = runners
        self.told: list[str] = []
        self.view: Servers

    async def ask(self, session: str) -> str:
        """The name of the server that answered."""
        return (await self.view.complete(REQUEST, session)).text

    def named(self, name: str) -> Server:
        return next(server for server in self.servers if server.name == name)

    async def until(self, fact: Callable[[], bool]) -> None:
        """Looks are made on a clock of their own; no event tells of one."""
        while not fact():  # noqa: ASYNC110
            await asyncio.sleep(0.01)


@asynccontextmanager
async def world(
    *names: str, stuck_s: float = 60.0, deadline_s: float = DEADLINE_S
) -> AsyncIterator[World]:
    async with AsyncExitStack() as stack:
        await stack.enter_async_context(asyncio.timeout(deadline_s))
        servers = [Server(name) for name in names]
        runners = [await stack.enter_async_context(server.serve()) for server in servers]
        found = World(servers, runners)
        config = VllmConfig(base_url=tuple(server.base_url for server in servers), retries=0)
        found.view = await stack.enter_async_context(
            Servers(
                config,
                Path("/nowhere"),
                Path("/nowhere/log"),
                on_progress=lambda what, _: found.told.append(what),
                stuck_s=stuck_s,
                look_every_s=0.02,
            )
        )
        yield found


async def test_sessions_spread_and_each_stays_with_its_server() -> None:
    async with world("a", "b") as w:
        homes = {f"s{n}": await w.ask(f"s{n}") for n in range(6)}
        for _ in range(3):
            for session, home in homes.items():
                assert await w.ask(session) == home
    assert sorted(homes.values()) == list("aaabbb")


async def test_a_call_whose_server_dies_is_answered_by_another() -> None:
    async with world("a", "b") as w, asyncio.TaskGroup() as group:
        home = w.named(await w.ask("s"))
        other = next(server for server in w.servers if server is not home)
        home.open.clear()
        home.arrived.clear()
        call = group.create_task(w.ask("s"))
        await home.arrived.wait()
        await w.runners[w.servers.index(home)].cleanup()
        assert await call == other.name
        assert await w.ask("s") == other.name
        await w.until(lambda: bool(w.told))
        assert "does not answer: its sessions move; 1 of 2 up" in w.told[0]


async def test_a_server_that_answers_again_gets_sessions_again() -> None:
    async with world("a", "b") as w:
        w.named("a").healthy = False
        await w.until(lambda: len(w.view.replicas.up) == 1)
        assert {await w.ask(f"early{n}") for n in range(4)} == {"b"}
        w.named("a").healthy = True
        await w.until(lambda: len(w.view.replicas.up) == 2)
        assert {await w.ask(f"late{n}") for n in range(4)} == {"a", "b"}
        assert "is back; 2 of 2 up" in w.told[-1]


async def test_a_call_at_a_server_that_is_stuck_is_made_elsewhere() -> None:
    async with world("a", "b", stuck_s=0.2) as w:
        home = w.named(await w.ask("s"))
        home.open.clear()
        home.forgets = False
        assert await w.ask("s") != home.name
        for n in range(4):
            await w.ask(f"other{n}")
        assert home.calls == ["s", "s"]
        home.running = 0  # it came to itself
        await w.until(lambda: len(w.view.replicas.up) == 2)


async def test_a_server_that_works_slowly_is_not_stuck() -> None:
    async with world("a", "b", stuck_s=0.2) as w, asyncio.TaskGroup() as group:
        home = w.named(await w.ask("s"))
        home.open.clear()
        call = group.create_task(w.ask("s"))
        for _ in range(40):  # longer than it may be without a sign of work
            home.done += 1
            await asyncio.sleep(0.02)
        home.open.set()
        assert await call == home.name


async def test_sessions_leave_a_server_that_takes_many_times_as_long() -> None:
    async with world("a", "b") as w:
        w.named("a").before = lambda: asyncio.sleep(1.2)  # is the slowness

        async def ask_all() -> set[str]:
            async with asyncio.TaskGroup() as group:
                calls = [group.create_task(w.ask(f"s{n}")) for n in range(2 * PROVEN)]
            return {call.result() for call in calls}

        assert await ask_all() == {"a", "b"}
        assert await ask_all() == {"b"}


@pytest.mark.timeout(60)
async def test_servers_that_answer_after_30_s_are_waited_for() -> None:
    async with world("a", "b", deadline_s=55) as w, asyncio.TaskGroup() as group:
        for server in w.servers:
            server.answers_after_s = 30.0
        served = group.create_task(w.view.models())
        calls = [group.create_task(w.ask(f"s{n}")) for n in range(4)]
        load = group.create_task(w.view.load())
    assert [model.id for model in served.result()] == ["m"]
    assert sorted(call.result() for call in calls) == list("aabb")
    assert load.result() is None


async def test_the_last_server_gone_means_the_run_stops() -> None:
    async with world("a", "b") as w:
        for runner in w.runners:
            await runner.cleanup()
        with pytest.raises(ServerLost, match="Start it again"):
            await w.ask("s")


async def test_the_load_is_that_of_all_and_a_dead_one_keeps_what_it_had_done() -> None:
    async with world("a", "b") as w:
        for n in range(6):
            await w.ask(f"s{n}")
        before = await w.view.load()
        assert before is not None
        assert before.prefix_hits == 6
        await w.runners[0].cleanup()
        after = await w.view.load()
        assert after is not None
        assert after.prefix_hits == 6
        await w.runners[1].cleanup()
        assert await w.view.load() is None


async def test_servers_of_different_models_are_refused() -> None:
    async with world("a", "b") as w:
        w.named("b").serves = "other"
        with pytest.raises(ConfigError, match=r"the same models on all, found .*: m; .*: other"):
            await w.view.models()


# --- the machine's parts ---


def test_replicas_have_cores_of_their_own_and_leave_one() -> None:
    config = ServerConfig(replicas=3)
    shares = [cores_of(config, n, list(range(9))).environment for n in range(3)]
    bound = [share["VLLM_CPU_OMP_THREADS_BIND"] for share in shares]
    assert bound == ["0,1", "2,3,4", "5,6,7"]


def test_as_many_replicas_as_cores_have_all_of_them() -> None:
    config = ServerConfig(replicas=2)
    shares = [cores_of(config, n, [0, 1]).environment for n in range(2)]
    assert [share["VLLM_CPU_OMP_THREADS_BIND"] for share in shares] == ["0", "1"]


def test_more_replicas_than_cores_are_bound_to_none() -> None:
    share = cores_of(ServerConfig(replicas=3), 1, [0, 1])
    assert share.environment["VLLM_CPU_OMP_THREADS_BIND"] == "nobind"


async def test_a_server_whose_log_cannot_be_opened_is_gone_in_words_and_leaves_no_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (scratch := tmp_path / "scratch").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(scratch))
    (tmp_path / "file").touch()
    server = VllmServer(ServerConfig(device="cpu"), tmp_path, "m", tmp_path / "file" / "log")
    with pytest.raises(ServerLost, match=r"vLLM could not be started: .*file"):
        async with server:
            raise AssertionError("it started")
    assert list(scratch.iterdir()) == []


def test_replicas_whose_ports_would_be_above_the_last_one_are_refused() -> None:
    with pytest.raises(ConfigError, match="expected none above 65535, found 65536"):
        choose_port("127.0.0.1", 65536)


def test_replicas_have_gpus_of_their_own() -> None:
    config = ServerConfig(replicas=2, args=("--tensor-parallel-size", "2", "--seed=2"))
    shares = [gpus_of(config, n, ["0", "1", "2", "3"]) for n in range(2)]
    assert [share.environment["CUDA_VISIBLE_DEVICES"] for share in shares] == ["0,1", "2,3"]
    assert not any(share.shared for share in shares)


def test_replicas_share_a_gpu_whose_memory_they_share() -> None:
    config = ServerConfig(replicas=4, gpu_memory_utilization=0.45)
    shares = [gpus_of(config, n, ["0", "1"]) for n in range(4)]
    assert [share.environment["CUDA_VISIBLE_DEVICES"] for share in shares] == ["0", "1", "0", "1"]
    assert all(share.shared for share in shares)


@pytest.mark.parametrize("args", [(), ("-tp=2",), ("--tensor-parallel-size=2",)])
def test_replicas_that_do_not_fit_the_gpus_are_refused_with_what_would(
    args: tuple[str, ...],
) -> None:
    config = ServerConfig(replicas=2, args=args)
    with pytest.raises(ConfigError, match=r"policy.server.replicas: expected .* GPUs .* found 1"):
        gpus_of(config, 0, ["0"])
