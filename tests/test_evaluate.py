"""What attempts come to: rates by task and part, costs, faults, readings."""

from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.engine.evaluate import Evaluation, curve, evaluate, evaluate_outcomes, spread
from headrace.engine.outcomes import Outcome
from headrace.errors import ContractError
from headrace.types import (
    Episode,
    Failure,
    OtherReading,
    StepResult,
    StopReason,
    TestOutcome,
    Timing,
    Verdict,
    VerdictFault,
)


def episode(task: str, sample: int, reward: float | None, **fields: Any) -> Episode:
    plain: dict[str, Any] = {
        "id": f"{task}-{sample}",
        "task": task,
        "task_digest": f"digest of {task}",
        "policy": "scripted",
        "policy_version": "v1",
        "provider": "namespace",
        "instruction": "",
        "stop_reason": StopReason.DONE,
        "verdict": Verdict(reward=reward),
    }
    return Episode(sample=sample, **(plain | fields))


def outcome(task: str, passed: bool, **fields: Any) -> Outcome:
    plain = {"policy": "v1", "category": None, "difficulty": None, "counted": True}
    return Outcome(task=task, passed=passed, **(plain | fields))


# --- evaluating -----------------------------------------------------------------------------


def test_each_task_weighs_the_same() -> None:
    found = evaluate(
        [episode("a", i, 1.0) for i in range(2)] + [episode("b", i, 0.0) for i in range(8)]
    )
    assert (found.tasks, found.attempts, found.passed, found.left_out) == (2, 10, 2, 0)
    first = found.pass_at_k[0]
    assert (first.k, first.value, first.tasks) == (1, 0.5, 2)
    assert first.low < 0.5 < first.high


def test_a_rate_over_k_attempts_is_over_the_tasks_that_have_k() -> None:
    found = evaluate(
        [episode("a", i, float(i == 0)) for i in range(4)] + [episode("b", 0, 1.0)], resamples=50
    )
    assert [(e.k, e.tasks) for e in found.pass_at_k] == [(1, 2), (2, 1), (3, 1), (4, 1)]
    assert [e.value for e in found.pass_at_k] == [
        pytest.approx(v) for v in ((0.25 + 1.0) / 2, 0.5, 0.75, 1.0)
    ]


def test_what_the_infrastructure_failed_is_left_out_and_counted() -> None:
    gone = Verdict(reward=None, fault=VerdictFault.INFRASTRUCTURE, reason="lost: gone")
    found = evaluate(
        [
            episode("a", 0, 1.0),
            episode("a", 1, None, verdict=gone),
            episode("a", 2, 0.0, stop_reason=StopReason.CANCELLED),
            episode("b", 0, None, verdict=gone),
        ]
    )
    assert (found.tasks, found.attempts, found.passed, found.left_out) == (2, 1, 1, 3)
    assert [(e.k, e.value, e.tasks) for e in found.pass_at_k] == [(1, 1.0, 1)]


def test_a_verifier_that_failed_counts_as_not_solved() -> None:
    silent = Verdict(reward=None, fault=VerdictFault.VERIFIER, reason="reward_missing: none")
    found = evaluate([episode("a", 0, 1.0), episode("a", 1, None, verdict=silent)])
    assert (found.attempts, found.passed, found.left_out) == (2, 1, 0)
    assert found.pass_at_k[0].value == 0.5


def test_a_partial_reward_is_not_a_pass() -> None:
    assert evaluate([episode("a", 0, 0.99)]).passed == 0


def test_the_later_of_two_records_of_an_attempt_counts() -> None:
    gone = Verdict(reward=None, fault=VerdictFault.INFRASTRUCTURE)
    found = evaluate([episode("a", 0, None, verdict=gone), episode("a", 0, 1.0)])
    assert (found.attempts, found.passed, found.left_out) == (1, 1, 0)


def test_attempts_by_two_policies_are_refused() -> None:
    with pytest.raises(ContractError, match="one policy, found 2"):
        evaluate([episode("a", 0, 1.0), episode("a", 1, 1.0, policy_version="v2")])


def test_parts_by_category_and_difficulty_are_evaluated_alone() -> None:
    found = evaluate_outcomes(
        [
            outcome("a", True, category="security", difficulty="easy"),
            outcome("b", False, category="security", difficulty="hard"),
            outcome("c", True, category="games"),
        ]
    )
    assert list(found.by_category) == ["games", "security"]
    assert [e.pass_at_k[0].value for e in found.by_category.values()] == [1.0, 0.5]
    assert {k: e.passed for k, e in found.by_difficulty.items()} == {"easy": 1, "hard": 0}
    assert found.by_category["games"].by_category == {}


def test_nothing_evaluates_to_nothing() -> None:
    found = evaluate([])
    assert (found.tasks, found.attempts, found.pass_at_k, found.by_category) == (0, 0, (), {})


# --- numbers beside the rates ---------------------------------------------------------------


def test_wilson_takes_attempts_as_independent_and_the_bootstrap_takes_tasks() -> None:
    """Forty attempts at two tasks that always agree with themselves say little about others."""
    found = evaluate(
        [episode("a", i, 1.0) for i in range(20)] + [episode("b", i, 0.0) for i in range(20)]
    )
    first, over = found.pass_at_k[0], found.pass_at_1_over_tasks
    assert over is not None
    assert (first.interval, over.interval) == ("wilson", "bootstrap")
    assert first.value == over.value == 0.5
    assert (over.low, over.high) == (0.0, 1.0)
    assert 0.3 < first.low < first.high < 0.7
    assert {e.interval for e in found.pass_at_k[1:]} == {"bootstrap"}


def test_costs_are_of_counted_attempts_and_split_by_what_came_of_them() -> None:
    def attempt(sample: int, reward: float | None, act_s: float, **fields: Any) -> Episode:
        timing = Timing(act_s=act_s, verify_s=act_s / 10)
        return episode("a", sample, reward, timing=timing, **fields)

    gone = Verdict(reward=None, fault=VerdictFault.INFRASTRUCTURE)
    found = evaluate(
        [
            attempt(0, 1.0, 10),
            attempt(1, 1.0, 20),
            attempt(2, 0.0, 90),
            attempt(3, None, 999, verdict=gone),
        ]
    )
    assert found.agent_s.all is not None and found.agent_s.passed is not None
    assert (found.agent_s.all.attempts, found.agent_s.all.mean) == (3, 40.0)
    assert (found.agent_s.all.median, found.agent_s.all.largest) == (20.0, 90.0)
    assert (found.agent_s.passed.attempts, found.agent_s.passed.mean) == (2, 15.0)
    assert found.verify_s.failed is not None and found.verify_s.failed.mean == 9.0
    assert found.turns.all is not None and found.turns.all.mean == 0.0


def test_there_is_no_measure_of_no_attempts() -> None:
    assert evaluate([episode("a", 0, 1.0)]).turns.failed is None
    assert spread([]) is None


@given(st.lists(st.floats(0, 1e6), min_size=1))
def test_a_spread_is_in_order(values: list[float]) -> None:
    found = spread(values)
    assert found is not None
    assert found.low <= found.lower <= found.median <= found.upper <= found.high
    assert found.high <= found.largest == max(values)
    assert found.attempts == len(values)


def test_faults_and_stop_reasons_are_counted_apart() -> None:
    silent = Verdict(reward=None, fault=VerdictFault.VERIFIER, reason="reward_missing: none")
    torn = Verdict(reward=None, fault=VerdictFault.VERIFIER)
    gone = Verdict(reward=None, fault=VerdictFault.INFRASTRUCTURE, reason="lost: gone")
    failure = Failure(stage="act", error="SandboxError", message="gone")
    found = evaluate(
        [
            episode("a", 0, None, verdict=silent, stop_reason=StopReason.MAX_TURNS),
            episode("a", 1, None, verdict=silent, tries=3),
            episode("a", 2, None, verdict=torn),
            episode("a", 3, None, verdict=gone),
            episode("a", 4, None, verdict=gone, failure=failure, tries=2),
            episode("a", 5, 0.0, stop_reason=StopReason.CANCELLED),
        ]
    )
    assert found.faults == {"reward_missing": 2, "unknown": 1}
    assert found.infrastructure == {"SandboxError": 1, "cancelled": 1, "lost": 1}
    assert found.stop_reasons == {"done": 2, "max_turns": 1}
    assert (found.attempts, found.left_out, found.retries) == (3, 3, 3)


def test_a_partial_reward_counts_in_the_mean_reward() -> None:
    tests = (
        TestOutcome(name="one", status="passed"),
        TestOutcome(name="two", status="failed"),
        TestOutcome(name="three", status="skipped"),
    )
    partial = Verdict(reward=0.5, tests=tests)
    silent = Verdict(reward=None, fault=VerdictFault.VERIFIER, reason="reward_missing: none")
    found = evaluate([episode("a", 0, 0.5, verdict=partial), episode("b", 0, None, verdict=silent)])
    assert found.reward is not None and found.pass_ratio is not None
    assert (found.reward.value, found.reward.tasks) == (0.25, 2)
    assert (found.pass_ratio.value, found.pass_ratio.tasks) == (0.5, 1)
    assert (found.partial, found.passed) == (1, 0)


@pytest.mark.parametrize("other", ["strict", "correct"])
def test_readings_that_differ_are_told_under_both(other: str) -> None:
    reading = OtherReading(compat=other, reward=1.0, reason="an empty summary")
    found = evaluate(
        [episode("a", 0, 0.0, verdict=Verdict(reward=0.0, other=reading)), episode("b", 0, 1.0)]
    )
    assert found.readings_differ == 1
    own = "correct" if other == "strict" else "strict"
    assert {compat: e.value for compat, e in found.readings.items()} == {own: 0.5, other: 1.0}
    assert found.pass_at_k[0].value == 0.5


def test_where_all_readings_agree_there_are_not_two_rates() -> None:
    assert evaluate([episode("a", 0, 1.0)]).readings == {}


def test_steps_are_counted_in_their_order_over_those_that_began_them() -> None:
    def step(name: str, reward: float) -> StepResult:
        return StepResult(name=name, stop_reason=StopReason.DONE, verdict=Verdict(reward=reward))

    found = evaluate(
        [
            episode("a", 0, 0.25, steps=(step("build", 0.5),)),
            episode("a", 1, 1.0, steps=(step("build", 1.0), step("attack", 1.0))),
        ]
    )
    (task,) = found.by_task
    assert [(s.name, s.begun, s.passed, s.reward) for s in task.steps] == [
        ("build", 2, 1, 0.75),
        ("attack", 1, 1, 1.0),
    ]


def test_a_task_lists_its_attempts_to_look_up() -> None:
    gone = Verdict(reward=None, fault=VerdictFault.INFRASTRUCTURE, reason="lost: gone")
    found = evaluate(
        [
            episode("b", 1, 1.0),
            episode("b", 0, None, verdict=gone),
            episode("a", 0, None, verdict=gone),
        ]
    )
    a, b = found.by_task
    assert (a.name, a.attempts, a.rate, a.turns) == ("a", 0, None, None)
    assert (b.name, b.attempts, b.passed, b.left_out, b.rate) == ("b", 1, 1, 1, 1.0)
    assert [(s.id, s.counted, s.passed, s.reward) for s in b.samples] == [
        ("b-0", False, False, None),
        ("b-1", True, True, 1.0),
    ]
    assert (found.tasks, found.tasks_counted) == (2, 1)


def test_the_curve_is_the_evaluation_without_its_intervals() -> None:
    items = [outcome("a", i == 0, id=f"a{i}") for i in range(3)] + [outcome("b", True, id="b")]
    found = evaluate_outcomes(items)
    assert curve(items) == {e.k: e.value for e in found.pass_at_k}
    assert curve([]) == {}


def test_an_evaluation_survives_json() -> None:
    found = evaluate([episode("a", i, float(i % 2), category="c") for i in range(4)])
    assert msgspec.json.decode(msgspec.json.encode(found), type=Evaluation) == found


numbered = st.lists(
    st.tuples(st.sampled_from("abcd"), st.booleans(), st.booleans(), st.sampled_from(["x", None])),
    max_size=30,
).map(
    lambda rows: [
        outcome(task, passed, counted=counted, category=category, id=f"{i}", sample=i)
        for i, (task, passed, counted, category) in enumerate(rows)
    ]
)


@given(numbered)
def test_whatever_the_outcomes_the_numbers_add_up(items: list[Outcome]) -> None:
    found = evaluate_outcomes(items, resamples=20)
    assert found.attempts + found.left_out == len(items)
    assert found.passed == sum(o.passed and o.counted for o in items)
    assert [e.k for e in found.pass_at_k] == list(range(1, len(found.pass_at_k) + 1))
    for estimate in found.pass_at_k:
        assert 0.0 <= estimate.low <= estimate.value <= estimate.high <= 1.0
    assert sum(found.stop_reasons.values()) == found.attempts
    assert sum(task.attempts for task in found.by_task) == found.attempts
    assert sum(task.passed for task in found.by_task) == found.passed
    assert sum(part.attempts for part in found.by_category.values()) <= found.attempts


@given(numbered, st.randoms(use_true_random=False))
def test_the_order_of_attempts_changes_nothing(items: list[Outcome], chance: Any) -> None:
    found = evaluate_outcomes(items, resamples=20)
    shuffled = list(items)
    chance.shuffle(shuffled)
    # Names in a task's category come from its first sample, in whatever order it was read.
    assert evaluate_outcomes(shuffled, resamples=20) == found


@given(st.integers(1, 8), st.lists(st.integers(0, 8), min_size=1, max_size=6))
def test_more_attempts_never_solve_less(n: int, passes: list[int]) -> None:
    items = [outcome(f"t{t}", i < c, id=f"{t}-{i}") for t, c in enumerate(passes) for i in range(n)]
    values = [e.value for e in evaluate_outcomes(items, resamples=10).pass_at_k]
    assert len(values) == n
    assert values == sorted(values)
