"""A policy whose model server another process keeps: it waits, and leaves the verdict to others."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path

import pytest

from headrace.configs.models import OracleConfig, ServerConfig
from headrace.errors import ServerGone, ServerLost
from headrace.policies.base import Budget, NoServer, Session
from headrace.policies.oracle import OraclePolicy
from headrace.policies.served import ServedPolicy, elsewhere, state_of
from headrace.policies.server import VllmServer
from headrace.types import (
    Action,
    AgentRecipe,
    CommandResult,
    EnvironmentRecipe,
    Task,
    VerifierRecipe,
)

TASK = Task(
    name="a/b",
    digest="d",
    path="/nowhere",
    format="harbor",
    instruction="Do it.",
    environment=EnvironmentRecipe(),
    agent=AgentRecipe(),
    verifier=VerifierRecipe(),
)


class Answers(NoServer):
    """A policy that finds no server while `lost`."""

    name = "answers"
    version = "1"
    terminal = False
    lost = False
    prompt, opening = "<user>Go on.<assistant>", "Go on."

    async def __aenter__(self) -> "Answers":
        return self

    async def __aexit__(self, *exc: object) -> None:
        pass

    def session(self, task: Task, sample: int) -> AbstractAsyncContextManager[Session]:
        return self._session()

    @asynccontextmanager
    async def _session(self) -> AsyncIterator[Session]:
        yield self

    async def act(self, results: Sequence[CommandResult], budget: Budget) -> Action:
        if self.lost:
            raise ServerLost("nobody answers. Start it again")
        return Action(text="ok", done=True)

    def observation(self) -> str:
        return "seen"


async def act(policy: ServedPolicy) -> Session:
    async with asyncio.timeout(5), policy, policy.session(TASK, 0) as session:
        assert (await session.act((), Budget())).done
        return session


async def test_a_session_is_the_policys_own() -> None:
    session = await act(ServedPolicy(Answers()))
    told = (session.prompt, session.opening, session.observation())
    assert told == ("<user>Go on.<assistant>", "Go on.", "seen")


async def test_a_server_that_is_not_there_is_tried_again_and_ends_no_run() -> None:
    answers = Answers()
    answers.lost = True
    with pytest.raises(ServerGone) as raised:
        await act(ServedPolicy(answers))
    assert not raised.value.final


async def one_that_found_nobody(*, doubted_s: float) -> ServedPolicy:
    """Its call was lost; the next would be answered."""
    answers = Answers()
    policy = ServedPolicy(answers, doubted_s=doubted_s)
    answers.lost = True
    with pytest.raises(ServerGone):
        await act(policy)
    answers.lost = False
    return policy


async def test_a_session_begins_once_the_server_is_up_again() -> None:
    policy = await one_that_found_nobody(doubted_s=0.0)
    async with asyncio.TaskGroup() as group:
        begun = group.create_task(act(policy))
        for up in (False, False, True):
            await asyncio.sleep(0)
            assert not begun.done()
            policy.served(up=up, gone=None)
    assert begun.result().observation() == "seen"


async def test_a_word_that_comes_right_after_a_call_found_nobody_does_not_count() -> None:
    policy = await one_that_found_nobody(doubted_s=0.2)
    async with asyncio.TaskGroup() as group:
        begun = group.create_task(act(policy))
        for _ in range(5):
            policy.served(up=True, gone=None)
            await asyncio.sleep(0)
        assert not begun.done(), "an engine that died makes its server answer a while longer"
        while not begun.done():
            policy.served(up=True, gone=None)
            await asyncio.sleep(0.01)
    assert begun.result().observation() == "seen"


async def test_a_server_that_is_gone_for_good_ends_the_run() -> None:
    answers = Answers()
    policy = ServedPolicy(answers)
    policy.served(up=False, gone="its restarts are spent")
    with pytest.raises(ServerLost, match="its restarts are spent"):
        await act(policy)
    policy.served(up=True, gone=None)
    answers.lost = True
    async with policy.session(TASK, 0) as session:
        policy.served(up=False, gone="its restarts are spent")
        with pytest.raises(ServerLost, match="its restarts are spent"):
            await session.act((), Budget())


def a_server(path: Path, port: int) -> VllmServer:
    """One that was never started, and says that it is up."""
    server = VllmServer(ServerConfig(), path, "m", path / "log")
    server.base_url = f"http://127.0.0.1:{port}"
    server.came_up.set()
    server.sure.set()
    return server


def test_a_server_that_came_back_at_another_port_is_gone_for_those_who_know_the_first(
    tmp_path: Path,
) -> None:
    first, second = a_server(tmp_path, 1), a_server(tmp_path, 2)
    state = state_of([first, second])
    assert state() == (True, None)
    first.base_url = "http://127.0.0.1:9"
    assert state() == (True, None), "the other one is where it was"
    second.came_up.clear()
    second.sure.clear()
    assert state() == (False, None), "it is being started again"
    second.over.set()
    up, gone = state()
    assert not up
    assert gone is not None
    assert "started again at http://127.0.0.1:9" in gone


def test_a_policy_without_a_server_is_opened_elsewhere_as_it_is() -> None:
    config = OracleConfig()
    assert elsewhere(config, OraclePolicy()) == (config, None)
