"""Equal model servers as one: those that we start, or those that run at the given addresses.

Rule: a call is answered whole by one server. One whose server is gone, or shows no sign of work
for a minute, is made again at another, at most once at each; the last error is raised. Where the
next call goes is decided in `replicas.py`; whether a server answers is looked up every two
seconds. A server of ours that dies is started again by itself (`server.py`) and gets calls again
once it is up.
"""

import asyncio
from collections.abc import Callable, Coroutine, Sequence
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any, Self, TypeVar

import msgspec

from headrace.aio import background, fan_out, first_of
from headrace.configs.models import VllmConfig
from headrace.errors import ConfigError, PolicyError, ServerGone, ServerLost
from headrace.policies.base import ModelLoad
from headrace.policies.client import Completion, CompletionClient, Model, Request
from headrace.policies.load import load_of, sum_of, tokens_of
from headrace.policies.replicas import Replicas
from headrace.policies.server import VllmServer
from headrace.policies.weights import OnProgress

R = TypeVar("R")

LOOK_EVERY_S = 2.0
STUCK_S = 60.0
"""Without a sign of work before the calls in flight are given up and made elsewhere."""
_LOAD_S = 4.0
"""For a replica's load; one that is later counts with what it said last."""


class Servers:
    """The servers of one model. An async context manager that owns those it starts."""

    def __init__(
        self,
        config: VllmConfig,
        folder: Path,
        log_path: Path,
        *,
        on_progress: OnProgress,
        stuck_s: float = STUCK_S,
        look_every_s: float = LOOK_EVERY_S,
    ) -> None:
        self._config = config
        self._folder = folder
        self._log_path = log_path
        self._on_progress = on_progress
        self._stuck_s = stuck_s
        self._look_every_s = look_every_s
        self._stack = AsyncExitStack()
        self._replicas = Replicas(1)
        self._all: list[_Replica] = []

    async def __aenter__(self) -> Self:
        try:
            await self._open()
        except BaseException:
            await self._stack.aclose()
            raise
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self._stack.aclose()

    async def _open(self) -> None:
        for base_url, server in await self._addresses():
            client = CompletionClient(
                base_url, timeout_s=self._config.request_timeout_s, retries=self._config.retries
            )
            await self._stack.enter_async_context(client)
            self._all.append(_Replica(client, server))
        self._replicas = Replicas(len(self._all))
        if len(self._all) > 1:
            await self._stack.enter_async_context(background(self._watch()))

    async def _addresses(self) -> list[tuple[str, VllmServer | None]]:
        given = self._config.base_url
        if given is not None:
            return [(url, None) for url in ([given] if isinstance(given, str) else given)]
        return [(server.base_url, server) for server in await self._start()]

    async def _start(self) -> list[VllmServer]:
        name = self._config.served_model_name or self._folder.name
        servers = [
            VllmServer(
                self._config.server,
                self._folder,
                name,
                log_of(self._log_path, replica, self._config.server.replicas),
                replica=replica,
                on_progress=self._on_progress,
            )
            for replica in range(self._config.server.replicas)
        ]
        for server in servers:
            self._stack.push_async_exit(server)
            await server.launch()
            if server.shares_gpu:
                await server.ready()  # a GPU's memory is measured by one at a time
        for server in servers:
            await server.ready()
        return servers

    @property
    def started(self) -> Sequence[VllmServer]:
        """Those we started, for who watches them."""
        return [replica.server for replica in self._all if replica.server is not None]

    @property
    def replicas(self) -> Replicas:
        """Where calls are, to be looked at."""
        return self._replicas

    async def ready(self) -> None:
        """Once one of them is sure to be up. `ServerLost` when none of ours will be up again."""
        if len(self.started) < len(self._all):
            return
        while not any(server.sure.is_set() for server in self.started):
            coming = [server for server in self.started if not server.over.is_set()]
            if not coming:
                await self.started[0].ready()  # says why not
            await first_of(*(e for server in coming for e in (server.sure, server.over)))

    async def models(self) -> tuple[Model, ...]:
        """What every one of them serves, with the shortest context. `ConfigError` if they differ"""
        served = await self._of_each(_Replica.models)
        if len({tuple(model.id for model in models) for models in served}) > 1:
            found = "; ".join(
                f"{replica.client.base_url}: {', '.join(model.id for model in models)}"
                for replica, models in zip(self._all, served, strict=True)
            )
            raise ConfigError(f"policy.base_url: expected the same models on all, found {found}")
        return tuple(
            min(same, key=lambda model: model.max_model_len or 0)
            for same in zip(*served, strict=True)
        )

    # --- calls ---

    async def complete(self, request: Request, session: str) -> Completion:
        """Sample once. `ServerGone` if no server is up or all die under it, see `client`."""
        clock = asyncio.get_running_loop().time
        failed: set[int] = set()
        while True:
            call = self._replicas.begin(session, clock(), avoid=failed)
            tokens = 0
            try:
                found = await self._all[call.replica].complete(request, session)
                tokens = len(found.token_ids)
                return found
            except ServerGone as e:
                failed.add(call.replica)
                self._replicas.down(call.replica)
                if failed.issuperset(self._replicas.up):
                    raise await self._last_error(e) from e
            finally:
                self._replicas.end(call, clock(), tokens=tokens)

    def forget(self, session: str) -> None:
        """It makes no further call."""
        self._replicas.forget(session)

    async def _last_error(self, error: ServerGone) -> ServerGone:
        """`ServerLost` where nobody but the user can bring one of them back."""
        if self.started or any(await self._of_each(_Replica.answers_in_time)):
            return error
        hint = "Start it again and give the same command: it goes on from here"
        return ServerLost(f"{error}. {hint}")

    # --- what they do ---

    async def load(self) -> ModelLoad | None:
        """Of those that are up, the others with what they had done; None: none says."""
        if not any(await self._of_each(_Replica.read_load)):
            return None
        return sum_of([replica.load for replica in self._all if replica.load is not None])

    async def _watch(self) -> None:
        async with asyncio.TaskGroup() as group:
            for number, replica in enumerate(self._all):
                group.create_task(self._watch_one(number, replica))

    async def _watch_one(self, number: int, replica: "_Replica") -> None:
        was_up = True
        while True:
            answers = await replica.look()
            stuck = replica.idle_s() > self._stuck_s
            up = answers and not stuck
            if up:
                self._replicas.back(number)
            else:
                self._replicas.down(number)
            if up != was_up:
                was_up = up
                self._tell(replica, "is back" if up else "does not answer: its sessions move")
            if stuck and self._replicas.up:
                replica.give_up()
            await asyncio.sleep(self._look_every_s)

    def _tell(self, replica: "_Replica", what: str) -> None:
        left = len(self._replicas.up)
        self._on_progress(f"{replica.client.base_url} {what}; {left} of {len(self._all)} up", None)

    async def _of_each(self, ask: "Callable[[_Replica], Coroutine[Any, Any, R]]") -> list[R]:
        return await fan_out(ask, self._all, limit=len(self._all))


class _Replica:
    """One server: its connections, and what is known of its work."""

    def __init__(self, client: CompletionClient, server: VllmServer | None) -> None:
        self.client = client
        self.server = server
        self.load: ModelLoad | None = None
        """As it said last; of one that is down, without what it works on."""
        self._clock = asyncio.get_running_loop().time
        self._worked_s = self._clock()
        self._tokens: float | None = None
        self._stuck = False
        """It has nothing to do only because its calls were given up."""
        self._calls: set[asyncio.Timeout] = set()

    async def complete(self, request: Request, session: str) -> Completion:
        """One call. `ServerGone` if it is down, dies under it, or is given up."""
        self._enter_address()
        given_up = asyncio.timeout(None)
        try:
            async with given_up:
                self._calls.add(given_up)
                found = await self.client.complete(request, session_id=session)
            self._worked_s = self._clock()
            return found
        except TimeoutError:
            raise ServerGone(
                f"{self.client.base_url}: the model server answers, but shows no sign of work"
            ) from None
        except ServerGone as e:
            if self.server is not None:
                self.server.doubt()
            if self.server is not None and self.server.down:
                raise ServerGone(self.server.down) from e
            raise
        finally:
            self._calls.discard(given_up)

    def _enter_address(self) -> None:
        """A server of ours may be another than at the last call."""
        if self.server is None:
            return
        if not self.server.up:
            raise ServerGone(self.server.down or "vLLM is being started again")
        self.client.base_url = self.server.base_url

    async def models(self) -> tuple[Model, ...]:
        return await self.client.models()

    def give_up(self) -> None:
        """End the calls in flight, for them to be made elsewhere."""
        given_up, self._calls = self._calls, set()
        self._stuck = True
        for call in given_up:
            call.reschedule(self._clock())

    async def answers_in_time(self) -> bool:
        """Whether a server is there and its engine lives, however busy it is."""
        return await self.client.healthy(patient=True)

    async def look(self) -> bool:
        """Whether it answers; notes when it was last seen to work, or had nothing to do."""
        begun = self._clock()
        there = self.server is None or self.server.up
        if not (there and await self._healthy()):
            return self._worked_s > begun  # slow to say so, but it answered a call
        idle = not self._calls and not self._stuck
        if idle or await self._works():
            self._worked_s, self._stuck = self._clock(), False
        return True

    async def _healthy(self) -> bool:
        self._enter_address()
        return await self.client.healthy()

    async def _works(self) -> bool:
        """Whether it did something since the last look; True where it does not say."""
        try:
            metrics = await self.client.metrics()
        except PolicyError:
            return True
        before, self._tokens = self._tokens, tokens_of(metrics)
        load = load_of(metrics)
        return self._tokens is None or self._tokens != before or not load.running + load.waiting

    def idle_s(self) -> float:
        """Since it was last seen to work, or to have nothing to do."""
        return self._clock() - self._worked_s

    async def read_load(self) -> bool:
        """Note its load; False when it does not say."""
        try:
            self._enter_address()
            async with asyncio.timeout(_LOAD_S):
                self.load = load_of(await self.client.metrics())
        except (PolicyError, TimeoutError):
            if self.load is not None:
                self.load = msgspec.structs.replace(self.load, kv_use=0.0, running=0, waiting=0)
            return False
        return True


def log_of(path: Path, replica: int, replicas: int) -> Path:
    """Each of several has a log of its own: `vllm-0.log`, `vllm-1.log`."""
    return path if replicas == 1 else path.with_name(f"{path.stem}-{replica}{path.suffix}")
