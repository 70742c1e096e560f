"""pass@k and its intervals."""

import itertools
import math
from fractions import Fraction
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.engine.evaluate import (
    Outcome,
    bootstrap,
    evaluate,
    evaluate_outcomes,
    pass_at_k,
    wilson,
)
from headrace.errors import ContractError
from headrace.types import Episode, StopReason, Verdict, VerdictFault


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


# --- pass@k ---------------------------------------------------------------------------------


@given(st.integers(1, 8), st.data())
def test_pass_at_k_is_the_share_of_k_subsets_with_a_pass(n: int, data: st.DataObject) -> None:
    c, k = data.draw(st.integers(0, n)), data.draw(st.integers(1, n))
    subsets = list(itertools.combinations([True] * c + [False] * (n - c), k))
    share = Fraction(sum(any(s) for s in subsets), len(subsets))
    assert pass_at_k(n, c, k) == pytest.approx(float(share), abs=1e-12)


@given(st.integers(1, 100_000), st.data())
def test_pass_at_k_is_a_probability_for_any_number_of_attempts(n: int, data: st.DataObject) -> None:
    c = data.draw(st.integers(0, n))
    k = data.draw(st.integers(1, min(n, 500)))
    value = pass_at_k(n, c, k)
    assert 0.0 <= value <= 1.0
    assert pass_at_k(n, c, 1) == pytest.approx(c / n)
    assert value >= pass_at_k(n, c, max(1, k - 1)) - 1e-12


def test_pass_at_k_keeps_its_digits_where_binomials_overflow() -> None:
    exact = 1 - Fraction(math.comb(9_990, 100), math.comb(10_000, 100))
    assert pass_at_k(10_000, 10, 100) == pytest.approx(float(exact), rel=1e-12)


@pytest.mark.parametrize(("n", "c", "k"), [(3, 1, 0), (3, 1, 4), (3, 4, 1), (3, -1, 1), (0, 0, 1)])
def test_pass_at_k_refuses_what_has_no_meaning(n: int, c: int, k: int) -> None:
    with pytest.raises(ValueError, match="expected 1 <= k <= n"):
        pass_at_k(n, c, k)


# --- intervals ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rate", "n", "low", "high"),
    [
        (0.5, 10, 0.236593, 0.763407),
        (0.0, 10, 0.0, 0.277533),
        (1.0, 10, 0.722467, 1.0),
        (0.1, 50, 0.043477, 0.213602),
    ],
)
def test_wilson_agrees_with_the_textbook(rate: float, n: int, low: float, high: float) -> None:
    assert wilson(rate, n) == pytest.approx((low, high), abs=1e-5)


def test_an_interval_of_no_trials_is_everything() -> None:
    assert wilson(0.0, 0) == (0.0, 1.0)


@given(st.integers(1, 10_000), st.data())
def test_wilson_holds_the_rate(n: int, data: st.DataObject) -> None:
    rate = data.draw(st.integers(0, n)) / n
    low, high = wilson(rate, n)
    assert 0.0 <= low <= rate <= high <= 1.0
    assert low < high


def test_the_bootstrap_is_the_same_for_the_same_seed() -> None:
    values = [n * n / 997 for n in range(30)]
    assert bootstrap(values, seed=1, resamples=200) == bootstrap(values, seed=1, resamples=200)
    assert bootstrap(values, seed=1, resamples=200) != bootstrap(values, seed=2, resamples=200)


def test_the_bootstrap_covers_the_spread_of_a_mean() -> None:
    values = [0.0, 1.0] * 50
    low, high = bootstrap(values, seed=0, resamples=2000)
    assert low == pytest.approx(0.5 - 1.96 * 0.05, abs=0.02)
    assert high == pytest.approx(0.5 + 1.96 * 0.05, abs=0.02)


def test_tasks_that_all_agree_leave_the_bootstrap_no_spread() -> None:
    assert bootstrap([0.5, 0.5], seed=0, resamples=10) == (0.5, 0.5)


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


outcomes = st.builds(outcome, st.sampled_from("abcd"), passed=st.booleans(), counted=st.booleans())


@given(st.lists(outcomes, max_size=30))
def test_whatever_the_outcomes_the_numbers_add_up(items: list[Outcome]) -> None:
    found = evaluate_outcomes(items, resamples=20)
    assert found.attempts + found.left_out == len(items)
    assert found.passed == sum(o.passed and o.counted for o in items)
    assert [e.k for e in found.pass_at_k] == list(range(1, len(found.pass_at_k) + 1))
    for estimate in found.pass_at_k:
        assert 0.0 <= estimate.low <= estimate.high <= 1.0
        assert -1e-9 <= estimate.value <= 1.0
    same = evaluate_outcomes(items[::-1], resamples=20)
    assert same == found
