"""The driver and the episode loop over the shipped fake provider: what ends how."""

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from headrace.configs.models import ScriptedConfig
from headrace.engine.breaker import Breaker
from headrace.engine.driver import Driver
from headrace.engine.episode import Attempt
from headrace.engine.events import (
    EpisodeRetried,
    Event,
    Note,
    StageEntered,
    Stopping,
)
from headrace.engine.groups import Groups
from headrace.engine.limits import EpisodeLimits
from headrace.engine.meters import Meters
from headrace.engine.parts import Parts, Planned
from headrace.engine.scheduler import Bounds, Snapshot, Stage
from headrace.engine.shutdown import Shutdown, Stop
from headrace.errors import (
    ImageError,
    PolicyError,
    SandboxEnded,
    SandboxError,
    ServerGone,
    StoreError,
)
from headrace.policies.base import Budget, Policy, Session
from headrace.policies.base import Stop as PolicyStop
from headrace.policies.listed import ListedSession
from headrace.policies.scripted import ScriptedPolicy
from headrace.sandbox.base import Limits
from headrace.sandbox.fake import FakeProvider
from headrace.types import (
    Action,
    AgentRecipe,
    Command,
    CommandResult,
    EnvironmentRecipe,
    Episode,
    Sample,
    StopReason,
    Task,
    Turn,
    VerdictFault,
    VerifierRecipe,
)
from headrace.verifiers.harbor import HarborVerifier

PASSING = {"/logs/verifier/reward.txt": b"1\n"}
LIMITS = EpisodeLimits(
    max_turns=5, max_tokens=None, agent_timeout_s=30.0, command_timeout_s=5.0, verifier_timeout_s=5
)


def passing_tests(command: str) -> bytes:
    """What a sandbox answers to the verifier when the tests wrote a reward."""
    if "headrace-brought" in command:
        return b"headrace-brought\n"
    return b"file /logs/verifier/reward.txt\n--\n" if "set --" in command else b""


class Kept:
    """A sink in memory."""

    def __init__(self, fails_at: int | None = None) -> None:
        self.episodes: list[Episode] = []
        self._fails_at = fails_at

    async def append(self, episode: Episode) -> None:
        await asyncio.sleep(0)
        if self._fails_at == len(self.episodes):
            raise StoreError("no space left on device")
        self.episodes.append(episode)


Act = Callable[[int, Sequence[CommandResult]], Action]


class ActsLike:
    """A policy whose session calls a function with the turn's number."""

    name = "test"
    version = "1"
    terminal = False

    def __init__(self, act: Act) -> None:
        self._act = act

    @asynccontextmanager
    async def session(self, task: Task, sample: int) -> AsyncIterator[Session]:
        session = ListedSession(())
        turns = iter(range(1000))

        async def act(results: Sequence[CommandResult], budget: Budget) -> Action:
            return self._act(next(turns), results)

        session.act = act  # type: ignore[method-assign]
        yield session

    async def __aenter__(self) -> Policy:
        return self

    async def __aexit__(self, *exc: object) -> None:
        return None


class NoStages:
    """An episode that waits for nobody."""

    def prepared(self) -> None: ...

    def turn(self, turn: Turn, sampled_tokens: int) -> None: ...

    async def acted(self) -> None: ...

    def again(self) -> None: ...

    def verified(self) -> None: ...


class Rig:
    """One driver over fakes, with what it needs to be looked at."""

    def __init__(
        self,
        tmp_path: Path,
        *,
        n: int = 1,
        provider: FakeProvider | None = None,
        policy: Policy | None = None,
        bounds: Bounds | None = None,
        sink: Kept | None = None,
        limits: EpisodeLimits = LIMITS,
        grace_s: float = 10.0,
        groups: Groups | None = None,
        breaker: Breaker | None = None,
    ) -> None:
        (tmp_path / "tests").mkdir(exist_ok=True)
        (tmp_path / "tests" / "test.sh").write_text("#!/bin/sh\n")
        self.provider = provider or FakeProvider(exec_script=passing_tests, files=PASSING)
        self.sink = sink or Kept()
        self.events: list[Event] = []
        self.shutdown = Shutdown()
        task = Task(
            name="t",
            digest="d",
            path=str(tmp_path),
            format="harbor",
            instruction="do it",
            environment=EnvironmentRecipe(image="x"),
            agent=AgentRecipe(),
            verifier=VerifierRecipe(tests=(str(tmp_path / "tests"),)),
        )
        self.planned = [
            Planned(id=f"e{i}", task=task, sample=i, limits=limits, sandbox=Limits(), network=False)
            for i in range(n)
        ]
        self.parts = Parts(
            provider=self.provider,
            policy=policy or ScriptedPolicy(ScriptedConfig(commands=("one", "two"))),
            verifier=HarborVerifier(),
        )
        self.driver = Driver(
            self.planned,
            self.parts,
            bounds or Bounds(live=8, preparing=8, verifying=8, tries=2),
            sink=self.sink,
            meters=Meters(),
            shutdown=self.shutdown,
            grace_s=grace_s,
            on_event=self.events.append,
            groups=groups,
            breaker=breaker,
        )

    async def drive(self) -> Snapshot:
        async with asyncio.timeout(20):
            snapshot = await self.driver.drive()
        assert self.provider.live == 0, "a sandbox was left open"
        return snapshot

    @property
    def only(self) -> Episode:
        (episode,) = self.sink.episodes
        return episode


async def test_an_episode_is_run_verified_and_stored(tmp_path: Path) -> None:
    rig = Rig(tmp_path)
    await rig.drive()
    assert rig.only.stop_reason is StopReason.DONE
    assert rig.only.verdict.passed
    assert [t.commands[0].text for t in rig.only.turns if t.commands] == ["one", "two"]
    stages = [e.stage for e in rig.events if isinstance(e, StageEntered)]
    assert stages == ["prepare", "act", "verify", "store"]


async def test_every_planned_episode_is_stored_exactly_once_within_the_bounds(
    tmp_path: Path,
) -> None:
    bounds = Bounds(live=7, preparing=3, verifying=2, tries=1)
    rig = Rig(tmp_path, n=100, bounds=bounds)
    snapshot = await rig.drive()
    assert snapshot[Stage.FINISHED] == 100
    assert sorted(e.id for e in rig.sink.episodes) == sorted(f"e{i}" for i in range(100))
    assert rig.provider.most_live <= 7


async def test_a_sandbox_that_does_not_start_is_tried_again(tmp_path: Path) -> None:
    rig = Rig(tmp_path)
    rig.provider.open_errors.append(SandboxError("no room"))
    await rig.drive()
    assert (rig.only.tries, rig.only.verdict.passed) == (2, True)
    assert [e.error for e in rig.events if isinstance(e, EpisodeRetried)] == [
        "SandboxError: no room"
    ]


async def test_a_sandbox_that_ends_by_itself_on_every_try_is_not_left_out_of_the_rates(
    tmp_path: Path,
) -> None:
    ended = SandboxEnded("out of memory: more than 512 MB")
    rig = Rig(tmp_path, provider=FakeProvider({"one": ended, "two": ended}))
    await rig.drive()
    verdict = rig.only.verdict
    assert (rig.only.tries, verdict.reward, verdict.fault) == (2, None, VerdictFault.VERIFIER)
    assert verdict.reason == "sandbox_lost: on every try: out of memory: more than 512 MB"
    assert rig.only.stop_reason is StopReason.SANDBOX_ERROR


@pytest.mark.parametrize("first", [SandboxError("the engine lost it"), SandboxEnded("one kill")])
async def test_a_sandbox_that_is_lost_once_is_an_accident(
    tmp_path: Path, first: SandboxError
) -> None:
    answers = iter([first, b"", b""])
    provider = FakeProvider(lambda command: next(answers), exec_script=passing_tests, files=PASSING)
    rig = Rig(tmp_path, provider=provider)
    await rig.drive()
    assert (rig.only.tries, rig.only.verdict.passed) == (2, True)


async def test_with_one_try_only_a_lost_sandbox_stays_an_accident(tmp_path: Path) -> None:
    bounds = Bounds(live=8, preparing=8, verifying=8, tries=1)
    rig = Rig(tmp_path, provider=FakeProvider({"one": SandboxEnded("killed")}), bounds=bounds)
    await rig.drive()
    assert rig.only.verdict.fault is VerdictFault.INFRASTRUCTURE


async def test_when_tries_are_spent_the_failure_is_stored_without_a_reward(tmp_path: Path) -> None:
    rig = Rig(tmp_path)
    rig.provider.open_errors += [SandboxError("no room")] * 2
    await rig.drive()
    assert rig.only.verdict.reward is None
    assert rig.only.verdict.fault is VerdictFault.INFRASTRUCTURE
    assert rig.only.failure is not None
    assert (rig.only.failure.stage, rig.only.failure.message) == ("prepare", "no room")
    assert rig.only.stop_reason is StopReason.SANDBOX_ERROR


async def test_all_episodes_share_one_budget_of_further_tries(tmp_path: Path) -> None:
    bounds = Bounds(live=1, preparing=1, verifying=1, tries=5, retries=3)
    rig = Rig(tmp_path, n=6, bounds=bounds)
    rig.provider.open_errors += [SandboxError("no room")] * 5
    await rig.drive()
    assert sum(isinstance(e, EpisodeRetried) for e in rig.events) == 3
    assert [(e.tries, e.verdict.passed) for e in rig.sink.episodes] == [
        (4, False), (1, False), (1, True), (1, True), (1, True), (1, True),
    ]  # fmt: skip


async def test_a_build_that_fails_is_not_tried_again(tmp_path: Path) -> None:
    rig = Rig(tmp_path)
    rig.provider.open_errors.append(ImageError("no such instruction"))
    await rig.drive()
    assert (rig.only.tries, rig.only.verdict.fault) == (1, VerdictFault.INFRASTRUCTURE)


async def test_an_engine_that_is_gone_stops_the_run_and_leaves_its_episodes_owed(
    tmp_path: Path,
) -> None:
    rig = Rig(tmp_path, n=20, bounds=Bounds(live=4, preparing=4, verifying=4, tries=3))

    def act(turn: int, results: Sequence[CommandResult]) -> Action:
        if len(rig.sink.episodes) >= 5:
            rig.provider.go()
        return Action(text="", commands=(Command(text="x"),), done=turn == 1)

    rig.driver._parts = Parts(
        provider=rig.provider, policy=ActsLike(act), verifier=HarborVerifier()
    )
    await rig.drive()
    assert type(rig.driver.error).__name__ == "ProviderGone"
    assert 5 <= len(rig.sink.episodes) < 20
    assert all(e.verdict.passed for e in rig.sink.episodes)


async def test_an_engine_that_comes_back_costs_no_try_and_no_episode(tmp_path: Path) -> None:
    breaker = Breaker(pause_s=0.01, outage_s=60.0)
    bounds = Bounds(live=4, preparing=4, verifying=4, tries=1)
    rig = Rig(tmp_path, n=12, bounds=bounds, breaker=breaker)
    went: list[bool] = []

    def act(turn: int, results: Sequence[CommandResult]) -> Action:
        if len(rig.sink.episodes) >= 5 and not went:
            went.append(True)
            rig.provider.go()
        return Action(text="", commands=(Command(text="x"),), done=turn == 1)

    def on_event(event: Event) -> None:
        rig.events.append(event)
        if isinstance(event, Note) and event.text.startswith("waiting"):
            asyncio.get_running_loop().call_later(0.05, rig.provider.come_back)

    rig.driver._parts = Parts(
        provider=rig.provider, policy=ActsLike(act), verifier=HarborVerifier()
    )
    rig.driver._on_event = on_event
    snapshot = await rig.drive()
    assert snapshot[Stage.FINISHED] == 12
    assert [(e.tries, e.verdict.passed) for e in rig.sink.episodes] == [(1, True)] * 12
    assert rig.driver.retries == 0
    assert [e.text for e in rig.events if isinstance(e, Note)] == [
        "waiting for the sandbox engine: the engine is gone",
        "the sandbox engine answers again",
    ]


async def test_an_engine_that_does_not_come_back_in_time_stops_the_run(tmp_path: Path) -> None:
    breaker = Breaker(pause_s=0.01, outage_s=0.05)
    rig = Rig(tmp_path, n=12, breaker=breaker)
    rig.provider.go()
    snapshot = await rig.drive()
    assert type(rig.driver.error).__name__ == "ProviderGone"
    assert rig.sink.episodes == []
    assert snapshot[Stage.CANCELLED] == 12


async def test_a_server_that_is_gone_for_a_moment_costs_a_try_not_a_verdict(
    tmp_path: Path,
) -> None:
    gone = iter([True, False])

    def act(turn: int, results: Sequence[CommandResult]) -> Action:
        if next(gone, False):
            raise ServerGone("connection reset")
        return Action(text="", done=True)

    rig = Rig(tmp_path, policy=ActsLike(act))
    await rig.drive()
    assert (rig.only.tries, rig.only.verdict.passed) == (2, True)


async def test_a_policy_that_fails_for_good_is_still_verified(tmp_path: Path) -> None:
    def act(turn: int, results: Sequence[CommandResult]) -> Action:
        raise PolicyError("the prompt was refused")

    rig = Rig(tmp_path, policy=ActsLike(act))
    await rig.drive()
    assert rig.only.stop_reason is StopReason.POLICY_ERROR
    assert rig.only.stop_detail == "the prompt was refused"
    assert rig.only.verdict.passed


async def test_a_full_context_ends_the_agent_and_is_still_verified(tmp_path: Path) -> None:
    def act(turn: int, results: Sequence[CommandResult]) -> Action:
        if turn == 1:
            raise PolicyStop(StopReason.CONTEXT_FULL, "8192 tokens")
        return Action(text="", commands=(Command(text="x"),))

    rig = Rig(tmp_path, policy=ActsLike(act))
    await rig.drive()
    assert (rig.only.stop_reason, len(rig.only.turns)) == (StopReason.CONTEXT_FULL, 1)
    assert rig.only.verdict.passed


async def test_turns_and_sampled_tokens_are_counted_against_their_limits(tmp_path: Path) -> None:
    def act(turn: int, results: Sequence[CommandResult]) -> Action:
        sample = Sample(
            prompt_ids=(1, 2),
            token_ids=(7, 8, 9),
            logprobs=(-1.0, -2.0, -3.0),
            finish_reason="stop",
        )
        return Action(text="", commands=(Command(text="x"),), sample=sample)

    limits = EpisodeLimits(
        max_turns=50,
        max_tokens=7,
        agent_timeout_s=None,
        command_timeout_s=5.0,
        verifier_timeout_s=5,
    )
    rig = Rig(tmp_path, policy=ActsLike(act), limits=limits)
    await rig.drive()
    assert rig.only.stop_reason is StopReason.MAX_TOKENS
    assert (len(rig.only.turns), rig.only.sampled_tokens) == (3, 9)
    (segment,) = rig.only.segments
    assert list(segment.tokens()) == [1, 2, 7, 8, 9] * 3
    assert list(segment.loss_mask()) == [0, 0, 1, 1, 1] * 3


async def test_commands_that_are_done_when_a_sandbox_is_lost_are_written_down(
    tmp_path: Path,
) -> None:
    def script(command: str) -> CommandResult:
        if command == "two":
            raise SandboxError("gone")
        return CommandResult(exit_code=0, stdout=b"fine")

    bounds = Bounds(live=1, preparing=1, verifying=1, tries=1)
    rig = Rig(tmp_path, provider=FakeProvider(script, files=PASSING), bounds=bounds)
    await rig.drive()
    assert rig.only.verdict.fault is VerdictFault.INFRASTRUCTURE
    assert [len(t.results) for t in rig.only.turns] == [1, 0]


async def test_a_full_disk_stops_the_run_with_what_is_durable(tmp_path: Path) -> None:
    bounds = Bounds(live=2, preparing=2, verifying=2, tries=3)
    rig = Rig(tmp_path, n=30, sink=Kept(fails_at=4), bounds=bounds)
    snapshot = await rig.drive()
    assert isinstance(rig.driver.error, StoreError)
    assert len(rig.sink.episodes) == snapshot[Stage.FINISHED] == 4


async def test_the_first_request_lets_live_episodes_finish_and_admits_no_more(
    tmp_path: Path,
) -> None:
    rig = Rig(tmp_path, n=10, bounds=Bounds(live=3, preparing=3, verifying=3, tries=1))
    gate = rig.provider.run_gate = asyncio.Event()

    def stop_then_open(event: Event) -> None:
        rig.events.append(event)
        if isinstance(event, StageEntered) and event.stage == "act":
            acting = sum(isinstance(e, StageEntered) and e.stage == "act" for e in rig.events)
            if acting == 3:
                rig.shutdown.request(Stop.FINISH, "Ctrl-C")
                asyncio.get_running_loop().call_soon(gate.set)

    rig.driver._on_event = stop_then_open
    snapshot = await rig.drive()
    assert len(rig.sink.episodes) == snapshot[Stage.FINISHED] == 3
    assert snapshot[Stage.CANCELLED] == 7
    assert [e.mode for e in rig.events if isinstance(e, Stopping)] == ["finishing"]


async def test_a_second_request_cancels_what_is_live_and_closes_every_sandbox(
    tmp_path: Path,
) -> None:
    rig = Rig(tmp_path, n=10, bounds=Bounds(live=3, preparing=3, verifying=3, tries=1))
    rig.provider.run_gate = asyncio.Event()

    def stop_twice(event: Event) -> None:
        rig.events.append(event)
        if isinstance(event, StageEntered) and event.stage == "act":
            rig.shutdown.request(Stop.FINISH, "Ctrl-C")
        if isinstance(event, Stopping):
            rig.shutdown.request(Stop.CANCEL, "Ctrl-C")

    rig.driver._on_event = stop_twice
    snapshot = await rig.drive()
    assert rig.sink.episodes == []
    assert snapshot[Stage.CANCELLED] == 10


async def test_when_the_grace_period_is_over_the_rest_is_cancelled(tmp_path: Path) -> None:
    rig = Rig(tmp_path, n=2, grace_s=0.05)
    rig.provider.run_gate = asyncio.Event()

    def stop_once(event: Event) -> None:
        rig.events.append(event)
        if isinstance(event, StageEntered) and event.stage == "act":
            rig.shutdown.request(Stop.FINISH, "Ctrl-C")

    rig.driver._on_event = stop_once
    snapshot = await rig.drive()
    assert snapshot[Stage.CANCELLED] == 2
    assert [e.mode for e in rig.events if isinstance(e, Stopping)] == ["finishing", "cancelling"]


async def test_cancelling_the_driver_closes_every_sandbox(tmp_path: Path) -> None:
    rig = Rig(tmp_path, n=3)
    rig.provider.run_gate = asyncio.Event()
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.2):
            await rig.driver.drive()
    assert (rig.provider.opened, rig.provider.live) == (3, 0)


async def test_a_bug_in_a_policy_ends_the_run_loudly(tmp_path: Path) -> None:
    def act(turn: int, results: Sequence[CommandResult]) -> Action:
        raise ZeroDivisionError("a bug")

    rig = Rig(tmp_path, n=3, policy=ActsLike(act))
    with pytest.raises(ExceptionGroup) as caught:
        await rig.drive()
    assert caught.group_contains(ZeroDivisionError)
    assert rig.provider.live == 0


async def test_waiting_for_a_server_before_the_first_turn_is_not_the_agents_time(
    tmp_path: Path,
) -> None:
    now_s = 0.0

    class SlowToOpen(ActsLike):
        @asynccontextmanager
        async def session(self, task: Task, sample: int) -> AsyncIterator[Session]:
            nonlocal now_s
            now_s += 1000.0  # the model server is started again meanwhile
            async with super().session(task, sample) as session:
                yield session

    rig = Rig(tmp_path, policy=SlowToOpen(lambda turn, results: Action(text="", done=True)))
    attempt = Attempt(rig.planned[0], rig.parts, clock=lambda: now_s)
    await attempt.run(NoStages())
    assert attempt.episode(tries=1, queue_s=0.0).stop_reason is StopReason.DONE


async def test_an_agent_that_breaks_tar_has_not_solved_its_task(tmp_path: Path) -> None:
    def broken(command: str) -> CommandResult:
        return CommandResult(exit_code=1, stderr=b"tar: not today")

    rig = Rig(tmp_path, provider=FakeProvider(exec_script=broken, files=PASSING))
    await rig.drive()
    assert (rig.only.tries, rig.only.verdict.fault) == (1, VerdictFault.VERIFIER)
    assert "tar: not today" in (rig.only.verdict.reason or "")


# --- groups, bounds that change, and an engine that fails ---


async def test_more_may_be_live_when_the_bounds_are_raised(tmp_path: Path) -> None:
    rig = Rig(tmp_path, n=20, bounds=Bounds(live=1, preparing=8, verifying=8, tries=1))
    rig.provider.run_gate = asyncio.Event()

    async def raise_them() -> None:
        while rig.provider.live < 1:  # noqa: ASYNC110
            await asyncio.sleep(0)
        assert rig.driver.wants
        rig.driver.bounds = Bounds(live=6, preparing=8, verifying=8, tries=1)
        while rig.provider.live < 6:  # noqa: ASYNC110
            await asyncio.sleep(0)
        assert rig.provider.run_gate is not None
        rig.provider.run_gate.set()

    async with asyncio.timeout(20), asyncio.TaskGroup() as group:
        group.create_task(raise_them())
        group.create_task(rig.drive())
    assert rig.provider.most_live == 6


async def test_an_engine_that_keeps_failing_gets_a_pause_and_no_more_tries(
    tmp_path: Path,
) -> None:
    """Without the breaker all ten would fail both of their tries within milliseconds."""
    breaker = Breaker(failures=3, pause_s=0.05, longest_s=0.1)
    bounds = Bounds(live=1, preparing=1, verifying=1, tries=2)
    rig = Rig(tmp_path, n=10, bounds=bounds, breaker=breaker)
    rig.provider.open_errors.extend(SandboxError("busy") for _ in range(4))
    await rig.drive()
    assert breaker.opened == 1
    assert not breaker.is_open
    graded = [e for e in rig.sink.episodes if e.verdict.passed]
    assert len(graded) >= 8


async def test_images_that_do_not_build_say_nothing_about_the_engine(tmp_path: Path) -> None:
    breaker = Breaker(failures=1, pause_s=60.0, longest_s=60.0)
    rig = Rig(tmp_path, n=3, breaker=breaker)
    rig.provider.open_errors.append(ImageError("no such file"))
    await rig.drive()
    assert not breaker.is_open
