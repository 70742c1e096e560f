"""The order in which limits end an episode, and what is left for each call."""

from pathlib import Path

import pytest

from headrace.engine.limits import (
    EpisodeLimits,
    Spent,
    budget,
    check,
    combine,
    command_timeout_s,
    left_s,
)
from headrace.types import (
    AgentRecipe,
    Command,
    EnvironmentRecipe,
    StopReason,
    Task,
    VerifierRecipe,
)

LIMITS = EpisodeLimits(
    max_turns=3, max_tokens=100, agent_timeout_s=60.0, command_timeout_s=30.0, verifier_timeout_s=9
)


def test_the_documented_order_decides_when_several_limits_are_reached() -> None:
    everything = Spent(turns=3, tokens=100, elapsed_s=60.0, done=True)
    assert check(LIMITS, everything) is StopReason.AGENT_TIMEOUT
    in_time = Spent(turns=3, tokens=100, elapsed_s=59.9, done=True)
    assert check(LIMITS, in_time) is StopReason.DONE
    assert check(LIMITS, Spent(turns=3, tokens=100, elapsed_s=60.0)) is StopReason.AGENT_TIMEOUT
    assert check(LIMITS, Spent(turns=3, tokens=100)) is StopReason.MAX_TURNS
    assert check(LIMITS, Spent(turns=2, tokens=100)) is StopReason.MAX_TOKENS
    assert check(LIMITS, Spent(turns=2, tokens=99, elapsed_s=59.9)) is None


def test_a_timer_that_fires_a_moment_early_is_no_time_for_another_turn() -> None:
    assert check(LIMITS, Spent(elapsed_s=59.995)) is StopReason.AGENT_TIMEOUT


def test_limits_that_are_not_set_never_end_an_episode() -> None:
    free = EpisodeLimits(
        max_turns=10,
        max_tokens=None,
        agent_timeout_s=None,
        command_timeout_s=30.0,
        verifier_timeout_s=9,
    )
    spent = Spent(turns=9, tokens=10**9, elapsed_s=10**9)
    assert check(free, spent) is None
    assert left_s(free, 10**9) is None
    assert budget(free, spent).max_tokens is None


def test_the_budget_of_a_call_is_what_is_left() -> None:
    left = budget(LIMITS, Spent(turns=1, tokens=40, elapsed_s=50.0))
    assert left.max_tokens == 60
    assert left.deadline_s == 10.0


@pytest.mark.parametrize(
    ("own_s", "elapsed_s", "expected_s"), [(None, 0, 30), (5, 0, 5), (None, 45, 15), (50, 61, 0)]
)
def test_a_command_gets_its_own_time_within_the_agents(
    own_s: float | None, elapsed_s: float, expected_s: float
) -> None:
    assert command_timeout_s(LIMITS, Command(text="x", timeout_s=own_s), elapsed_s) == expected_s


def test_the_run_overrides_the_tasks_time(tmp_path: Path) -> None:
    task = Task(
        name="t",
        digest="d",
        path=str(tmp_path),
        format="harbor",
        instruction="do",
        environment=EnvironmentRecipe(),
        agent=AgentRecipe(timeout_s=100.0),
        verifier=VerifierRecipe(tests=("/t",), timeout_s=7.0),
    )
    ours = {"max_turns": 1, "max_tokens": None, "command_timeout_s": 1.0}
    own = combine(task, agent_timeout_s=None, verifier_timeout_s=None, **ours)
    assert (own.agent_timeout_s, own.verifier_timeout_s) == (100.0, 7.0)
    set_by_run = combine(task, agent_timeout_s=5.0, verifier_timeout_s=6.0, **ours)
    assert (set_by_run.agent_timeout_s, set_by_run.verifier_timeout_s) == (5.0, 6.0)
