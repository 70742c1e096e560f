"""Rates, intervals, and the test of a paired difference."""

import itertools
import math
import random
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.engine.estimates import (
    bootstrap,
    bootstrap_many,
    mean,
    pass_at_k,
    sign_flip,
    wilson,
)

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


@given(st.lists(st.floats(0, 1), min_size=1, max_size=20), st.integers(0, 5))
def test_the_bootstrap_holds_the_mean_and_knows_no_order(values: list[float], seed: int) -> None:
    low, high = bootstrap(values, seed=seed, resamples=40)
    assert 0.0 <= low <= mean(values) <= high <= 1.0 + 1e-12
    assert bootstrap(values[::-1], seed=seed, resamples=40) == (low, high)


def test_means_over_the_same_draws_are_those_drawn_alone() -> None:
    drawn = [(4, 1), (4, 4), (4, 0), (4, 1), (4, 2)]
    worth = {nc: [pass_at_k(*nc, k) for k in (1, 2, 4)] for nc in drawn}
    together = bootstrap_many(drawn, worth, seed=3, resamples=100)
    for i, interval in enumerate(together):
        alone = bootstrap_many(
            drawn, {nc: [w[i]] for nc, w in worth.items()}, seed=3, resamples=100
        )
        assert alone == [interval]


# --- a paired difference --------------------------------------------------------------------


def brute_force(differences: list[float]) -> float:
    seen = abs(math.fsum(differences))
    signs = list(itertools.product((1, -1), repeat=len(differences)))
    sums = [
        abs(math.fsum(s * d for s, d in zip(flips, differences, strict=True))) for flips in signs
    ]
    return sum(total >= seen - 1e-9 for total in sums) / len(signs)


rates = st.integers(1, 8).flatmap(lambda n: st.integers(0, n).map(lambda c: c / n))


@given(st.lists(st.tuples(rates, rates), min_size=1, max_size=9))
def test_the_exact_test_counts_every_sign(pairs: list[tuple[float, float]]) -> None:
    differences = [b - a for a, b in pairs]
    p, method = sign_flip(differences, seed=0)
    assert method == "exact"
    assert p == pytest.approx(brute_force(differences))
    assert sign_flip([-d for d in differences[::-1]], seed=1) == (pytest.approx(p), "exact")


def test_with_one_attempt_a_task_it_is_the_test_of_mcnemar() -> None:
    gained, lost, same = 9, 2, 40
    differences = [1.0] * gained + [-1.0] * lost + [0.0] * same
    tail = sum(math.comb(gained + lost, i) for i in range(lost + 1))
    assert sign_flip(differences, seed=0) == (
        pytest.approx(2 * tail / 2 ** (gained + lost)),
        "exact",
    )


def test_runs_that_agree_on_every_task_do_not_differ() -> None:
    assert sign_flip([0.0, 0.0], seed=0) == (1.0, "exact")
    assert sign_flip([], seed=0) == (1.0, "exact")


def test_differences_without_a_common_step_are_tested_over_drawn_signs() -> None:
    differences = [math.sqrt(n) / 10 - 0.2 for n in range(1, 12)]
    p, method = sign_flip(differences, seed=0)
    assert method == "drawn"
    assert p == pytest.approx(brute_force(differences), abs=0.02)
    assert sign_flip(differences, seed=0) == (p, method)


def test_an_exact_test_that_costs_too_much_is_drawn() -> None:
    chance = random.Random(0)
    differences = [chance.randint(-13, 13) / 13 + chance.randint(-7, 7) / 11 for _ in range(200)]
    p, method = sign_flip(differences, seed=0)
    assert method == "drawn"
    assert 0.0 < p <= 1.0
