"""Tasks of several steps: what their results sum to, what each begins with, and where it ends."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import msgspec
import pytest

from headrace.engine.driver import Driver
from headrace.engine.events import Event, StageEntered
from headrace.engine.health import Unhealthy
from headrace.engine.limits import EpisodeLimits, StepLimits, combine, of_step
from headrace.engine.meters import Meters
from headrace.engine.parts import Parts, Planned
from headrace.engine.scheduler import Bounds
from headrace.engine.shutdown import Shutdown, Stop
from headrace.engine.steps import CLEAR, goes_on, not_begun, sum_up
from headrace.errors import SandboxError
from headrace.policies.base import Budget, Policy, Session
from headrace.policies.replay import ReplayPolicy
from headrace.sandbox.base import Limits
from headrace.sandbox.fake import FakeProvider
from headrace.tasks.steps import step_view
from headrace.types import (
    Action,
    AgentRecipe,
    Command,
    CommandResult,
    EnvironmentRecipe,
    Episode,
    HealthCheck,
    Sample,
    StepRecipe,
    StepResult,
    StopReason,
    Task,
    TestOutcome,
    Turn,
    Verdict,
    VerdictFault,
    VerifierRecipe,
)
from headrace.verifiers.base import Verifier


def step(name: str, **changes: object) -> StepRecipe:
    usual = StepRecipe(
        name=name,
        instruction=f"do {name}",
        agent=AgentRecipe(timeout_s=30.0),
        verifier=VerifierRecipe(tests=("/tests-of-" + name,), timeout_s=60.0),
    )
    return msgspec.structs.replace(usual, **changes)


def task(*steps: StepRecipe, **changes: object) -> Task:
    usual = Task(
        name="t",
        digest="d",
        path="/t",
        format="harbor",
        instruction="",
        environment=EnvironmentRecipe(image="x"),
        agent=AgentRecipe(),
        verifier=VerifierRecipe(),
        steps=steps,
    )
    return msgspec.structs.replace(usual, **changes)


def result(name: str, written: dict[str, float] | None, **changes: object) -> StepResult:
    if written is None:
        verdict = Verdict(reward=None, fault=VerdictFault.VERIFIER, reason="reward_missing: none")
    else:
        verdict = Verdict(reward=written.get("reward", 0.5), rewards=written, duration_s=1.0)
    verdict = msgspec.structs.replace(verdict, **changes)
    return StepResult(name=name, stop_reason=StopReason.DONE, verdict=verdict)


# --- what the results sum to ----------------------------------------------------------------


def test_the_mean_is_taken_key_by_key_and_a_missing_key_counts_nothing() -> None:
    results = [result("a", {"reward": 1.0, "style": 0.5}), result("b", {"reward": 0.5})]
    verdict = sum_up(task(step("a"), step("b")), results)
    assert verdict.rewards == {"reward": 0.75, "style": 0.25}
    assert (verdict.reward, verdict.duration_s, verdict.reason) == (0.75, 2.0, None)


def test_a_step_without_a_reward_counts_0_and_the_official_reading_is_kept_beside() -> None:
    results = [result("a", {"reward": 1.0}), result("b", None)]
    verdict = sum_up(task(step("a"), step("b")), results)
    assert verdict.reward == 0.5
    assert verdict.reason == "counted_0: 'b' (reward_missing: none)"
    assert verdict.other is not None
    assert (verdict.other.compat, verdict.other.reward) == ("strict", 1.0)


def test_the_official_mean_leaves_out_a_step_without_a_reward() -> None:
    results = [result("a", {"reward": 1.0}), result("b", None)]
    verdict = sum_up(task(step("a"), step("b")), results, strict=True)
    assert verdict.reward == 1.0
    assert verdict.reason == "not_in_the_mean: 'b' (reward_missing: none)"
    assert verdict.other is not None
    assert (verdict.other.compat, verdict.other.reward) == ("correct", 0.5)


def test_two_readings_that_agree_are_one() -> None:
    results = [result("a", {"reward": 0.0}), result("b", None)]
    for strict in (False, True):
        assert sum_up(task(step("a"), step("b")), results, strict=strict).other is None


def test_the_final_step_decides_alone_where_the_task_says_so() -> None:
    final = task(step("a"), step("b"), reward_strategy="final")
    results = [result("a", {"reward": 1.0}), result("b", {"reward": 0.0})]
    assert sum_up(final, results).reward == 0.0
    assert sum_up(final, results[:1]).reward == 1.0, "the last that was begun"
    assert sum_up(final, [result("a", {"reward": 1.0}), result("b", None)]).reward is None


def test_without_any_reward_the_fault_is_the_last_steps() -> None:
    verdict = sum_up(task(step("a")), [result("a", None)])
    assert (verdict.reward, verdict.fault) == (None, VerdictFault.VERIFIER)
    assert verdict.reason == "step 'a': reward_missing: none"


def test_a_reward_without_its_numbers_counts_as_the_reward() -> None:
    plain = result("a", {"reward": 1.0}, rewards={})
    assert sum_up(task(step("a")), [plain]).rewards == {"reward": 1.0}


def test_tests_are_told_apart_by_their_step() -> None:
    tests = (TestOutcome(name="x", status="passed"),)
    verdict = sum_up(
        task(step("a"), step("b")),
        [result("a", {"reward": 1}, tests=tests), result("b", {"reward": 1}, tests=tests)],
    )
    assert [t.name for t in verdict.tests] == ["a: x", "b: x"]


@pytest.mark.parametrize(
    ("rewards", "least", "expected"),
    [
        ({"reward": 1.0}, {}, True),
        ({"reward": 0.0}, {}, True),
        ({"reward": 0.5}, {"reward": 0.5}, True),
        ({"reward": 0.49}, {"reward": 0.5}, False),
        ({"style": 1.0}, {"reward": 0.0}, False),
        ({"reward": 1.0, "style": 0.2}, {"reward": 1.0, "style": 0.3}, False),
        (None, {}, False),
    ],
)
def test_a_reward_below_the_least_ends_the_task(
    rewards: dict[str, float] | None, least: dict[str, float], expected: bool
) -> None:
    verdict = result("a", rewards).verdict
    assert goes_on(step("a", min_reward=least), verdict) is expected


def test_a_step_that_cannot_begin_is_the_tasks_fault_and_has_no_reward() -> None:
    found = not_begun(step("b"), Unhealthy("setup.sh of step 'b': exit code 1"))
    assert found.verdict.fault is VerdictFault.VERIFIER
    assert found.verdict.reason == "step_not_ready: setup.sh of step 'b': exit code 1"


# --- limits ---------------------------------------------------------------------------------


def limits(of: Task, **changes: object) -> EpisodeLimits:
    usual = {
        "max_turns": 10,
        "max_tokens": None,
        "agent_timeout_s": None,
        "command_timeout_s": 5.0,
        "verifier_timeout_s": None,
    }
    return combine(of, **{**usual, **changes})  # type: ignore[arg-type]


def test_each_step_has_its_own_time_unless_the_run_sets_one() -> None:
    two = task(step("a"), step("b", agent=AgentRecipe(timeout_s=7.0)))
    own = limits(two)
    assert own.steps[1] == StepLimits(agent_timeout_s=7.0, verifier_timeout_s=60.0)
    assert of_step(own, 1).agent_timeout_s == 7.0
    assert of_step(own, 1).max_turns == 10
    theirs = limits(two, agent_timeout_s=3.0, verifier_timeout_s=4.0)
    assert [s.agent_timeout_s for s in theirs.steps] == [3.0, 3.0]
    assert of_step(theirs, 0).verifier_timeout_s == 4.0


def test_a_task_without_steps_has_its_own_limits() -> None:
    plain = limits(task())
    assert of_step(plain, 0) is plain


# --- episodes over the fake provider --------------------------------------------------------


class Grades:
    """A verifier that gives each step the reward it was told."""

    def __init__(self, rewards: dict[str, float | None]) -> None:
        self._rewards = rewards
        self.seen: list[Task] = []

    async def verify(self, task: Task, sandbox: object) -> Verdict:
        await asyncio.sleep(0)
        self.seen.append(task)
        rewarded = self._rewards[task.metadata["step"]]
        if rewarded is None:
            return Verdict(reward=None, fault=VerdictFault.VERIFIER, reason="reward_missing: none")
        return Verdict(reward=rewarded, rewards={"reward": rewarded})


class Says:
    """A policy of two turns in every session, with tokens; it keeps what it was asked."""

    name = "test"
    version = "1"
    terminal = False

    def __init__(self) -> None:
        self.sessions: list[Task] = []

    @asynccontextmanager
    async def session(self, task: Task, sample: int) -> AsyncIterator[Session]:
        self.sessions.append(task)
        yield TwoTurns(task)

    async def __aenter__(self) -> Policy:
        return self

    async def __aexit__(self, *exc: object) -> None:
        return None


class TwoTurns:
    def __init__(self, task: Task) -> None:
        self.opening = task.instruction
        self.prompt = f"<user>{task.instruction}<assistant>"
        self._turn = 0

    async def act(self, results: Sequence[CommandResult], budget: Budget) -> Action:
        self._turn += 1
        sample = Sample(
            prompt_ids=(self._turn,), token_ids=(9,), logprobs=(-1.0,), finish_reason="stop"
        )
        text = f"turn {self._turn}"
        return Action(
            text=text, commands=(Command(text=text),), done=self._turn == 2, sample=sample
        )

    def observation(self) -> str:
        return f"after turn {self._turn - 1}"


class Rig:
    def __init__(
        self,
        planned: Task,
        rewards: dict[str, float | None],
        *,
        provider: FakeProvider | None = None,
        max_turns: int = 10,
        n: int = 1,
    ) -> None:
        self.provider = provider or FakeProvider()
        self.policy = Says()
        self.verifier: Verifier = Grades(rewards)
        self.episodes: list[Episode] = []
        self.stages: list[str] = []
        self.shutdown = Shutdown()
        self.stop_at_act = 1000
        plan = [
            Planned(
                id=f"e{i}",
                task=planned,
                sample=i,
                limits=limits(planned, max_turns=max_turns),
                sandbox=Limits(),
                network=False,
            )
            for i in range(n)
        ]
        self.driver = Driver(
            plan,
            Parts(provider=self.provider, policy=self.policy, verifier=self.verifier),
            Bounds(live=4, preparing=2, verifying=1, tries=2),
            sink=self,
            meters=Meters(),
            shutdown=self.shutdown,
            grace_s=5.0,
            on_event=self.on_event,
        )

    def on_event(self, event: Event) -> None:
        if isinstance(event, StageEntered):
            self.stages.append(event.stage)
            if self.stages.count("act") == self.stop_at_act:
                self.shutdown.request(Stop.FINISH, "Ctrl-C")
                self.shutdown.request(Stop.CANCEL, "Ctrl-C")

    async def append(self, episode: Episode) -> None:
        self.episodes.append(episode)

    async def drive(self) -> Episode:
        async with asyncio.timeout(20):
            await self.driver.drive()
        assert self.provider.live == 0, "a sandbox was left open"
        return self.episodes[0]


TWO = task(step("a"), step("b"))


async def test_every_step_acts_and_is_graded_in_one_sandbox() -> None:
    rig = Rig(TWO, {"a": 1.0, "b": 0.5})
    episode = await rig.drive()
    assert rig.stages == ["prepare", "act", "verify", "act", "verify", "store"]
    assert rig.provider.opened == 1
    assert episode.verdict.reward == 0.75
    assert [(s.name, s.verdict.reward) for s in episode.steps] == [("a", 1.0), ("b", 0.5)]
    assert [t.step for t in episode.turns] == ["a", "a", "b", "b"]
    assert [t.instruction for t in rig.policy.sessions] == ["do a", "do b"]
    assert episode.instruction == "do a\n\ndo b"


async def test_a_steps_tokens_begin_a_new_segment() -> None:
    episode = await Rig(TWO, {"a": 1.0, "b": 1.0}).drive()
    assert [list(s.tokens()) for s in episode.segments] == [[1, 9, 2, 9]] * 2
    assert [span.turn for s in episode.segments for span in s.spans] == [0, 1, 2, 3]


async def test_after_a_steps_last_turn_the_policy_is_shown_the_next_steps_opening() -> None:
    """Without its template: what is shown between turns is stored without one everywhere."""
    episode = await Rig(TWO, {"a": 1.0, "b": 1.0}).drive()
    assert (episode.prompt, episode.opening) == ("<user>do a<assistant>", "do a")
    assert episode.observations == ("after turn 1", "do b", "after turn 1")


async def test_a_step_below_its_least_reward_is_the_last() -> None:
    gated = task(step("a", min_reward={"reward": 0.5}), step("b"))
    episode = await Rig(gated, {"a": 0.4, "b": 1.0}).drive()
    assert [s.name for s in episode.steps] == ["a"]
    assert episode.verdict.reward == 0.4


async def test_a_step_without_a_reward_is_the_last() -> None:
    episode = await Rig(task(step("a"), step("b"), step("c")), {"a": 1.0, "b": None}).drive()
    assert [s.name for s in episode.steps] == ["a", "b"]
    assert episode.verdict.reward == 0.5


async def test_tests_are_gone_and_the_shell_is_fresh_before_the_next_agent() -> None:
    rig = Rig(TWO, {"a": 1.0, "b": 1.0})
    await rig.drive()
    calls = [(c.method, c.subject) for c in rig.provider.calls]
    second = calls.index(("run", "turn 1"), calls.index(("run", "turn 2")))
    cleared = f"{CLEAR}; [ ! -e /tests ] && [ ! -L /tests ]"
    assert ("exec", cleared) in calls[:second]
    assert calls[second - 1] == ("run", "kill -9 $$")


async def test_turns_are_counted_over_all_steps_and_a_step_without_any_is_still_graded() -> None:
    rig = Rig(TWO, {"a": 1.0, "b": 0.0}, max_turns=2)
    episode = await rig.drive()
    assert [t.step for t in episode.turns] == ["a", "a"]
    assert [(s.stop_reason, s.verdict.reward) for s in episode.steps] == [
        (StopReason.DONE, 1.0),
        (StopReason.MAX_TURNS, 0.0),
    ]
    assert episode.stop_reason is StopReason.MAX_TURNS


async def test_steps_of_many_episodes_share_the_verify_slots() -> None:
    rig = Rig(TWO, {"a": 1.0, "b": 1.0}, n=12)
    await rig.drive()
    assert [e.verdict.reward for e in rig.episodes] == [1.0] * 12


async def test_an_episode_that_is_cancelled_in_a_later_step_leaves_no_record() -> None:
    rig = Rig(TWO, {"a": 1.0, "b": 1.0})
    rig.stop_at_act = 2
    async with asyncio.timeout(20):
        snapshot = await rig.driver.drive()
    assert rig.episodes == []
    assert snapshot.stages == {"cancelled": 1}
    assert rig.provider.live == 0


def failing(command: str) -> CommandResult:
    return CommandResult(exit_code=1 if "broken" in command or "setup" in command else 0)


BROKEN = HealthCheck(command="broken", retries=1, interval_s=0.0)


async def test_a_first_step_that_cannot_begin_is_an_infrastructure_failure(tmp_path: Path) -> None:
    rig = Rig(
        task(step("a", healthcheck=BROKEN), step("b")),
        {"a": 1.0},
        provider=FakeProvider(exec_script=failing),
    )
    episode = await rig.drive()
    assert episode.verdict.fault is VerdictFault.INFRASTRUCTURE
    assert episode.failure is not None
    assert (episode.failure.stage, episode.failure.error) == ("prepare", "Unhealthy")
    assert (episode.tries, episode.turns) == (2, ())


async def test_a_later_step_that_cannot_begin_ends_the_task_with_what_was_graded(
    tmp_path: Path,
) -> None:
    (tmp_path / "setup.sh").write_text("#!/bin/sh\n")
    rig = Rig(
        task(step("a"), step("b", files=str(tmp_path)), step("c")),
        {"a": 1.0},
        provider=FakeProvider(exec_script=failing),
    )
    episode = await rig.drive()
    assert [(s.name, s.stop_reason) for s in episode.steps] == [
        ("a", StopReason.DONE),
        ("b", StopReason.SANDBOX_ERROR),
    ]
    assert episode.verdict.reward == 0.5
    assert episode.verdict.reason is not None
    assert "step_not_ready" in episode.verdict.reason


async def test_tests_that_cannot_be_removed_end_the_task_before_the_next_agent() -> None:
    def without_rm(command: str) -> CommandResult:
        return CommandResult(exit_code=127 if command.startswith(CLEAR) else 0, stderr=b"no rm")

    rig = Rig(TWO, {"a": 1.0}, provider=FakeProvider(exec_script=without_rm))
    episode = await rig.drive()
    assert [t.step for t in episode.turns] == ["a", "a"]
    assert "could not be removed: no rm" in episode.steps[1].stop_detail


async def test_a_sandbox_that_is_lost_between_steps_is_an_infrastructure_failure() -> None:
    def lost(command: str) -> CommandResult:
        if command.startswith(CLEAR):
            rig.provider.sandboxes["e0"].lose("ended by itself")
            raise SandboxError("ended by itself")
        return CommandResult(exit_code=0)

    rig = Rig(TWO, {"a": 1.0}, provider=FakeProvider(exec_script=lost))
    episode = await rig.drive()
    assert episode.verdict.fault is VerdictFault.INFRASTRUCTURE
    assert (episode.tries, [s.name for s in episode.steps]) == (2, ["a"])


async def test_an_unhealthy_sandbox_is_an_infrastructure_failure() -> None:
    sick = task(step("a"), environment=EnvironmentRecipe(image="x", healthcheck=BROKEN))
    rig = Rig(sick, {"a": 1.0}, provider=FakeProvider(exec_script=failing))
    episode = await rig.drive()
    assert episode.verdict.fault is VerdictFault.INFRASTRUCTURE
    assert rig.policy.sessions == []


def test_a_view_of_a_step_is_a_task_with_the_steps_name() -> None:
    view = step_view(TWO, TWO.steps[1])
    assert (view.instruction, view.steps, view.metadata["step"]) == ("do b", (), "b")


async def test_a_replayed_step_repeats_only_its_own_turns() -> None:
    recorded = [Turn(text=f"{name}{i}", step=name) for name in ("a", "b") for i in range(2)]
    policy = ReplayPolicy(lambda digest, sample: recorded, source="run")
    async with policy.session(step_view(TWO, TWO.steps[1]), 0) as session:
        texts = [(await session.act((), Budget())).text for _ in range(2)]
    assert texts == ["b0", "b1"]
