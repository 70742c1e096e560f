"""The weights of DMPO and its loss: their limits, and the gradient by differences."""

import math
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from headrace.errors import ContractError, UsageError
from headrace.preferences.dmpo import (
    Batch,
    Streams,
    loss,
    phi,
    token_turns,
    token_weights,
    weights,
)
from headrace.types import Span

gammas = st.floats(0.0, 1.0)
lengths = st.integers(1, 200)


def streams(rows: Sequence[Sequence[int]], turns: Sequence[int], seed: int) -> Streams:
    """Random log-probabilities for rows that say which turn each token is of."""
    chance = np.random.default_rng(seed)
    shape = len(rows), len(rows[0])
    return Streams(
        policy=-chance.exponential(size=shape),
        reference=-chance.exponential(size=shape),
        turn=np.array(rows),
        turns=np.array(turns),
    )


def batch(seed: int = 0) -> Batch:
    """Two pairs; observations stand between the turns, and padding at the end."""
    return Batch(
        chosen=streams([[-1, 0, 0, -1, 1, 2], [-1, -1, 0, 0, 1, -1]], [3, 2], seed),
        rejected=streams([[-1, 0, -1, 1, -1], [-1, 0, 1, 2, 3]], [2, 4], seed + 1),
    )


def replaced(side: Streams, **fields: NDArray[np.float64]) -> Streams:
    return side._replace(**fields)  # type: ignore[arg-type]  # only arrays of floats are replaced


def rows_of(side: Streams, which: slice) -> Streams:
    return Streams(side.policy[which], side.reference[which], side.turn[which], side.turns[which])


# --- phi ------------------------------------------------------------------------------------


@given(lengths, gammas)
def test_the_first_turn_weighs_one_and_no_later_one_weighs_more(turns: int, gamma: float) -> None:
    found = weights(turns, gamma)
    assert found.shape == (turns,)
    assert found[0] == pytest.approx(1.0, rel=1e-12)
    assert (np.diff(found) <= 1e-15).all()
    assert ((found >= 0.0) & (found <= 1.0 + 1e-12)).all()


@given(st.integers(2, 60), st.floats(0.05, 0.95))
def test_weights_are_what_the_formula_says(turns: int, gamma: float) -> None:
    said = [gamma**t * (1 - gamma ** (turns - t)) / (1 - gamma**turns) for t in range(turns)]
    assert weights(turns, gamma) == pytest.approx(said, rel=1e-9)


@given(lengths, st.integers(1, 52))
def test_weights_near_gamma_one_are_near_the_straight_line(turns: int, bits: int) -> None:
    line = [(turns - t) / turns for t in range(turns)]
    assert weights(turns, 1.0) == pytest.approx(line)
    near = 1.0 - 2.0**-bits
    assert weights(turns, near) == pytest.approx(line, abs=turns * 2.0**-bits)


@given(lengths, st.sampled_from([0.0, 5e-324, 1e-300, 1e-20]))
def test_gamma_to_zero_leaves_the_first_turn(turns: int, gamma: float) -> None:
    found = weights(turns, gamma)
    assert found[0] == pytest.approx(1.0)
    assert found[1:] == pytest.approx(np.zeros(turns - 1), abs=1e-19)


def test_a_long_trajectory_at_a_small_gamma_has_its_weight_in_the_first_turns() -> None:
    found = weights(27, 0.7)
    assert found[:7].sum() > 0.9 * found.sum() > found[:6].sum()


@pytest.mark.parametrize("gamma", [-0.1, 1.1, math.nan, math.inf])
def test_a_gamma_that_is_no_discount_is_refused(gamma: float) -> None:
    with pytest.raises(UsageError, match="expected a gamma from 0 to 1"):
        phi(0, 3, gamma)
    with pytest.raises(UsageError, match="gamma"):
        weights(0, gamma)


@pytest.mark.parametrize("turn", [-1, 3])
def test_a_turn_that_is_not_there_is_refused(turn: int) -> None:
    with pytest.raises(ContractError, match="expected a turn"):
        phi(turn, 3, 0.5)


# --- tokens ---------------------------------------------------------------------------------


def test_every_token_of_a_turn_has_its_weight_and_observations_have_none() -> None:
    spans = [Span(turn=0, start=2, end=4), Span(turn=2, start=5, end=7)]
    given = token_weights(spans, 8, 0.5, turns=4)
    one, three = phi(0, 4, 0.5), phi(2, 4, 0.5)
    assert given.tolist() == [0, 0, one, one, 0, three, three, 0]


def test_without_their_number_the_last_span_is_of_the_last_turn() -> None:
    spans = [Span(turn=0, start=0, end=1), Span(turn=1, start=1, end=2)]
    assert (token_weights(spans, 2, 0.5) == token_weights(spans, 2, 0.5, turns=2)).all()
    assert token_weights([], 3, 0.5).tolist() == [0.0, 0.0, 0.0]


def test_a_pair_that_begins_later_counts_its_turns_from_there() -> None:
    spans = [Span(turn=t, start=2 * t + 1, end=2 * t + 2) for t in range(5)]
    given = token_weights(spans, 10, 0.9, turns=5, start=2)
    assert given[[1, 3]].tolist() == [0.0, 0.0]
    assert given[[5, 7, 9]].tolist() == list(weights(3, 0.9))
    assert token_turns(spans, 10, start=2).tolist() == [-1, -1, -1, -1, -1, 0, -1, 1, -1, 2]


@given(st.integers(0, 6), st.integers(0, 6), gammas)
def test_weights_by_turn_and_by_token_agree(turns: int, start: int, gamma: float) -> None:
    spans = [Span(turn=t, start=3 * t + 1, end=3 * t + 3) for t in range(turns)]
    length = 3 * turns + 2
    of = token_turns(spans, length, start=start)
    by_turn = weights(max(0, turns - start), gamma)
    expected = [by_turn[t] if t >= 0 else 0.0 for t in of]
    assert token_weights(spans, length, gamma, turns=turns, start=start).tolist() == expected


# --- the loss -------------------------------------------------------------------------------


@given(st.integers(0, 50), gammas, st.floats(0.01, 2.0))
def test_one_turn_equals_dpo(seed: int, gamma: float, beta: float) -> None:
    given = Batch(
        chosen=streams([[-1, 0, 0, 0]], [1], seed), rejected=streams([[0, 0, -1]], [1], seed + 1)
    )
    ratios = [((side.policy - side.reference) * (side.turn == 0)).sum(axis=1) for side in given]
    dpo = -np.log(1 / (1 + np.exp(-beta * (ratios[0] - ratios[1])))).mean()
    assert loss(given, beta, gamma)[0] == pytest.approx(dpo)


def test_at_gamma_zero_the_turns_after_the_first_do_not_matter() -> None:
    one = batch()
    later = one.chosen.turn > 0
    other = one._replace(chosen=replaced(one.chosen, policy=one.chosen.policy - 7.0 * later))
    assert loss(one, 0.3, 0.0)[0] == loss(other, 0.3, 0.0)[0]
    assert loss(one, 0.3, 0.5)[0] != loss(other, 0.3, 0.5)[0]
    assert not loss(one, 0.3, 0.0)[1].chosen[later].any()


def test_a_pair_of_equal_ratios_costs_log_two() -> None:
    one = streams([[-1, 0, -1, 1, 1]], [2], 3)
    value, gradients = loss(Batch(one, one), 0.1, 0.9)
    assert value == pytest.approx(math.log(2))
    assert (gradients.chosen == -gradients.rejected).all()


def test_what_the_policy_did_not_sample_has_no_weight_whatever_it_holds() -> None:
    one = batch()
    unsampled = one.chosen.turn < 0
    spoiled = np.where(unsampled, np.nan, one.chosen.policy)
    other = one._replace(chosen=replaced(one.chosen, policy=spoiled, reference=spoiled - 1.0))
    clean = one._replace(chosen=replaced(one.chosen, reference=one.chosen.policy - 1.0))
    assert loss(other, 0.5, 0.9)[0] == loss(clean, 0.5, 0.9)[0]
    assert not loss(other, 0.5, 0.9)[1].chosen[unsampled].any()


def test_the_loss_of_a_batch_is_the_mean_of_its_pairs() -> None:
    two = batch()
    each = [
        loss(Batch(*(rows_of(side, slice(i, i + 1)) for side in two)), 0.2, 0.8)[0]
        for i in range(2)
    ]
    assert loss(two, 0.2, 0.8)[0] == pytest.approx(sum(each) / 2)


@pytest.mark.parametrize("gamma", [0.0, 0.7, 0.99, 1.0])
@pytest.mark.parametrize("side", [0, 1])
def test_the_gradient_is_what_differences_say(gamma: float, side: int) -> None:
    given, step = batch(seed=11), 1e-6
    made = loss(given, 0.7, gamma)[1][side]
    for at in np.ndindex(made.shape):
        values = []
        for way in (step, -step):
            moved = given[side].policy.copy()
            moved[at] += way
            sides = list(given)
            sides[side] = replaced(given[side], policy=moved)
            values.append(loss(Batch(*sides), 0.7, gamma)[0])
        assert (values[0] - values[1]) / (2 * step) == pytest.approx(made[at], abs=1e-9)


@pytest.mark.parametrize(("shift", "expected"), [(1e6, 0.0), (-1e6, 1e6)])
def test_margins_that_are_huge_overflow_nothing(shift: float, expected: float) -> None:
    one = streams([[0]], [1], 0)
    far = replaced(one, policy=one.policy + shift)
    with np.errstate(all="raise", under="ignore"):
        value, gradients = loss(Batch(far, one), 1.0, 0.9)
    assert value == pytest.approx(expected)
    assert np.isfinite(gradients.chosen).all()


def test_arrays_that_do_not_belong_together_are_refused() -> None:
    one = batch()
    with pytest.raises(ContractError, match="of one shape"):
        loss(one._replace(chosen=replaced(one.chosen, policy=one.chosen.policy[:, 1:])), 0.1, 0.9)
    with pytest.raises(ContractError, match="no token of a later one"):
        loss(one._replace(chosen=one.chosen._replace(turns=np.array([2, 2]))), 0.1, 0.9)
    with pytest.raises(ContractError, match="expected pairs, found 0"):
        empty = rows_of(one.chosen, slice(0))
        loss(Batch(empty, empty), 0.1, 0.9)
