"""A policy in another process than its model server.

Rule: whoever started the server says whether it is up, or gone for good. Until it is up no session
begins, and a call that finds no server is no end of the run: the episode is tried again once there
is one. All else is the policy's own, which asks the server at its address.
"""

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import TYPE_CHECKING, cast

from headrace.configs.models import PolicyConfig
from headrace.errors import ServerGone, ServerLost
from headrace.policies.base import Budget, ModelLoad, Policy, Session
from headrace.types import Action, CommandResult, Task

if TYPE_CHECKING:
    from headrace.policies.server import VllmServer
    from headrace.policies.vllm import VllmPolicy


DOUBTED_S = 2.0
"""After a call that found no server, before a word that there is one counts: whoever says so has
to find out first."""

State = Callable[[], tuple[bool, str | None]]
"""Whether a server is up, and why there will be none."""


def elsewhere(config: PolicyConfig, policy: Policy) -> tuple[PolicyConfig, State | None]:
    """How another process opens `policy`, which is open here, and how the servers are that it
    started; None: it started none.
    """
    if config.type != "vllm":
        return config, None
    servers = cast("VllmPolicy", policy).servers.started
    if not servers:
        return config, None

    addresses = tuple(server.base_url for server in servers)
    return config.model_copy(update={"base_url": addresses}), state_of(servers)


def state_of(servers: "Sequence[VllmServer]") -> State:
    """How servers of ours are for those who know the addresses that they have now.

    One that comes back at another address, because its port was taken meanwhile, is none of them.
    """
    addresses = [server.base_url for server in servers]

    def state() -> tuple[bool, str | None]:
        pairs = list(zip(servers, addresses, strict=True))
        moved = [server for server, address in pairs if server.up and server.base_url != address]
        if any(server.sure.is_set() and server not in moved for server in servers):
            return True, None
        if not all(server.over.is_set() or server in moved for server in servers):
            return False, None
        if moved:
            return False, (
                f"vLLM was started again at {moved[0].base_url}, for its port was taken: the "
                "engine processes do not know it there. The same command goes on from here"
            )
        return False, servers[0].down or "vLLM was stopped with its run"

    return state


class ServedPolicy:
    """`policy`, while its server is kept elsewhere. See `Policy`."""

    def __init__(self, policy: Policy, *, doubted_s: float = DOUBTED_S) -> None:
        self._policy = policy
        self._doubted_s = doubted_s
        self._told = asyncio.Event()
        self._up = True
        self._doubted_until_s = 0.0
        self._gone: str | None = None
        self.name = policy.name
        self.version = policy.version
        self.terminal = policy.terminal

    async def __aenter__(self) -> "ServedPolicy":
        await self._policy.__aenter__()
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self._policy.__aexit__(*exc)

    def served(self, *, up: bool, gone: str | None) -> None:
        """How the server is now."""
        doubted = asyncio.get_running_loop().time() < self._doubted_until_s
        self._up, self._gone = up and not doubted, gone
        self._told.set()

    async def load(self) -> ModelLoad | None:
        """See `Policy.load`."""
        return await self._policy.load()

    def session(self, task: Task, sample: int) -> AbstractAsyncContextManager[Session]:
        """See `Policy.session`. Waits for the server; `ServerLost` when there will be none."""
        return self._session(task, sample)

    @asynccontextmanager
    async def _session(self, task: Task, sample: int) -> AsyncIterator[Session]:
        while not self._up and self._gone is None:
            self._told.clear()
            await self._told.wait()
        if self._gone is not None:
            raise ServerLost(self._gone)
        async with self._policy.session(task, sample) as session:
            yield _Session(self, session)

    def lost(self, error: ServerLost) -> ServerGone:
        """What a call found: no server. It is down until the next word that counts."""
        if self._gone is not None:
            return ServerLost(self._gone)
        self._up = False
        self._doubted_until_s = asyncio.get_running_loop().time() + self._doubted_s
        return ServerGone(str(error))


class _Session:
    """A session that leaves it to others to say that the server is gone for good."""

    def __init__(self, policy: ServedPolicy, session: Session) -> None:
        self._policy = policy
        self._session = session
        self.prompt = self.opening = ""

    async def act(self, results: Sequence[CommandResult], budget: Budget) -> Action:
        """See `Session.act`."""
        try:
            return await self._session.act(results, budget)
        except ServerLost as error:
            raise self._policy.lost(error) from error
        finally:  # also where the first call ends the session: it was shown them
            self.prompt, self.opening = self._session.prompt, self._session.opening

    def observation(self) -> str:
        """See `Session.observation`."""
        return self._session.observation()
