"""What a set of pairs is like: the numbers of its report and what it says first."""

import math
import random
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.preferences.tallies import leaning, made, nothing, run_named, side, small, tally

from headrace.engine.evaluation_report import encoded
from headrace.preferences.compared import Leaning, compared
from headrace.preferences.histogram import BINS, Histogram, histogram
from headrace.preferences.pairs_notices import leans
from headrace.preferences.pairs_report import POINTS, PairsReport, measures, pairs_report
from headrace.preferences.tally import Outcomes

Counts = st.lists(st.tuples(st.integers(0, 10**6), st.integers(0, 10**6)), max_size=60)
Rates = st.lists(st.tuples(st.floats(0, 1), st.floats(0, 1)), max_size=60)


# --- numbers --------------------------------------------------------------------------------


def test_the_numbers_are_those_of_a_hand() -> None:
    found = pairs_report(small())
    turns = found.turns
    assert (turns.less, turns.same, turns.more) == (2, 1, 1)
    assert turns.chosen is not None and turns.rejected is not None
    assert (turns.chosen.median, turns.chosen.mean, turns.rejected.median) == (4.0, 4.75, 5.5)
    # Differences: -2, -3, 0, +1.
    assert turns.difference == -1.0
    assert turns.leaning is not None
    assert (turns.leaning.pairs, round(turns.leaning.share, 4)) == (3, 0.6667)
    assert (round(turns.leaning.low, 3), round(turns.leaning.high, 3)) == (0.208, 0.939)
    assert found.sampled_tokens.difference == -50.0
    assert (found.pairs, found.measured, found.groups) == (4, 4, 4)
    assert found.margin is not None and found.margin.median == 0.75
    assert found.parting is not None and found.parting.median == 1.0


def test_quartiles_and_tenths_are_of_each_side() -> None:
    values = tuple(range(101))
    found = compared(values, tuple(2 * v for v in values), whole=True)
    assert found.chosen is not None and found.rejected is not None
    c, r = found.chosen, found.rejected
    assert (c.low, c.lower, c.median, c.upper, c.high, c.largest) == (10, 25, 50, 75, 90, 100)
    assert (r.low, r.lower, r.median, r.upper, r.high, r.largest) == (20, 50, 100, 150, 180, 200)
    assert (found.less, found.same, found.more) == (100, 1, 0)


@given(Counts)
def test_shares_sum_to_one_and_the_leaning_is_within_its_interval(
    pairs: list[tuple[int, int]],
) -> None:
    found = compared([c for c, _ in pairs], [r for _, r in pairs], whole=True)
    assert found.pairs == len(pairs)
    if pairs:
        shares = [found.share(n) for n in (found.less, found.same, found.more)]
        assert math.isclose(sum(shares), 1.0)
    if found.leaning is not None:
        assert found.leaning.low <= found.leaning.share <= found.leaning.high
        assert found.leaning.pairs == found.less + found.more
    else:
        assert found.same == len(pairs)


@given(Counts)
def test_the_sides_exchanged_exchange_less_and_more(pairs: list[tuple[int, int]]) -> None:
    one = compared([c for c, _ in pairs], [r for _, r in pairs], whole=True)
    other = compared([r for _, r in pairs], [c for c, _ in pairs], whole=True)
    assert (one.less, one.same, one.more) == (other.more, other.same, other.less)
    assert one.difference is None or one.difference == -(other.difference or 0)


def test_sides_of_unequal_length_are_told_apart_and_never_paired() -> None:
    found = compared([1.0, 1.0], [0.0])
    assert found.chosen is not None and found.rejected is not None
    assert (found.pairs, found.leaning, found.difference) == (0, None, None)


def test_without_a_pair_there_is_no_number() -> None:
    found = pairs_report(nothing())
    for _, m in measures(found):
        assert (m.chosen, m.leaning, m.difference, m.histogram.edges) == (None, None, None, ())
    assert (found.margin, found.parting, found.points) == (None, None, ())


def test_policies_without_tokens_have_no_tokens_to_compare() -> None:
    silent = side((3, 4), (0, 0), 1.0), side((5, 6), (0, 0), 0.0)
    found = pairs_report(tally(*silent))
    assert [name for name, _ in measures(found)] == ["turns", "reward", "score"]


def test_the_points_are_few_real_pairs_and_always_the_same() -> None:
    draw = random.Random(3)
    chosen = tuple(draw.randrange(1, 10**4) for _ in range(5000))
    rejected = tuple(c + 1 for c in chosen)
    made_of = tally(side(chosen, chosen, 1.0), side(rejected, rejected, 0.0))
    points = pairs_report(made_of).points
    assert len(points) == POINTS
    assert points == pairs_report(made_of).points
    assert all(r == c + 1 for c, r in points)


def test_the_json_is_the_report() -> None:
    found = pairs_report(small())
    assert msgspec.json.decode(encoded(found), type=PairsReport) == found


# --- histograms -----------------------------------------------------------------------------


def _well_made(found: Histogram) -> None:
    assert list(found.edges) == sorted(set(found.edges))
    for counts in found.counts.values():
        assert len(counts) == max(0, len(found.edges) - 1)
    assert len(found.edges) <= BINS + 3


@given(Counts)
def test_every_whole_number_is_in_one_bin(pairs: list[tuple[int, int]]) -> None:
    lists = {"chosen": [c for c, _ in pairs], "rejected": [r for _, r in pairs]}
    found = histogram(lists, whole=True)
    _well_made(found)
    for name, values in lists.items():
        assert sum(found.counts[name]) == len(values)
        for low, high, n in zip(found.edges, found.edges[1:], found.counts[name], strict=False):
            last = high == found.edges[-1]
            assert n == sum(low <= v < high or (last and v == high) for v in values)


@given(Rates)
def test_every_rate_is_in_one_bin_from_0_to_1(pairs: list[tuple[float, float]]) -> None:
    lists = {"chosen": [c for c, _ in pairs], "rejected": [r for _, r in pairs]}
    found = histogram(lists, unit=True)
    _well_made(found)
    for name, values in lists.items():
        assert sum(found.counts[name]) == len(values)
    if pairs:
        assert (found.edges[0], found.edges[-1], len(found.edges)) == (0.0, 1.0, 21)


def test_a_tenth_is_in_the_bin_that_begins_with_it() -> None:
    found = histogram({"a": [i / 20 for i in range(21)]}, unit=True)
    assert found.counts["a"] == (*(1 for _ in range(19)), 2)


def test_small_whole_numbers_have_a_bin_each() -> None:
    found = histogram({"a": [3, 5, 5, 7]}, whole=True)
    assert found.edges == (3, 4, 5, 6, 7, 8)
    assert found.counts["a"] == (1, 0, 2, 0, 1)


def test_a_single_number_is_a_single_bin() -> None:
    assert histogram({"a": [700] * 9}, whole=True).edges == (700, 701)


def test_what_lies_far_out_is_one_last_bin() -> None:
    found = histogram({"a": [*range(100)] * 10, "b": [50_000]}, whole=True)
    assert found.beyond
    assert found.edges[-2:] == (100.0, 50_000.0)
    assert (sum(found.counts["a"]), found.counts["b"][-1]) == (1000, 1)


# --- what is said first ---------------------------------------------------------------------


def test_pairs_without_a_leaning_have_nothing_to_say_first() -> None:
    assert pairs_report(small()).notices == ()


def test_a_leaning_of_length_is_told_with_its_interval() -> None:
    assert pairs_report(leaning(83, 17)).notices == (
        "Length: the chosen one samples fewer tokens than the rejected one in 83.0 % of the 100"
        " pairs that differ (95 % interval 74.5 % to 89.1 %), 10 fewer in the median. A model may"
        " learn to be short.",
    )


def test_longer_winners_are_told_as_such() -> None:
    (told,) = pairs_report(leaning(17, 83)).notices
    assert "samples more tokens than the rejected one in 83.0 %" in told
    assert "(95 % interval 74.5 % to 89.1 %), 10 more in the median" in told
    assert told.endswith("learn to be long.")


def test_equal_lengths_are_in_the_median_and_not_in_the_leaning() -> None:
    (told,) = pairs_report(leaning(83, 17, same=300)).notices
    assert "83.0 % of the 100 pairs that differ" in told
    assert "as many in the median" in told


@pytest.mark.parametrize(
    ("share", "low", "high", "told"),
    [(0.83, 0.75, 0.89, True), (0.17, 0.11, 0.25, True), (1.0, 0.44, 1.0, False),
     (0.52, 0.51, 0.53, False), (0.6, 0.55, 0.65, True)],
)  # fmt: skip
def test_a_leaning_is_told_when_it_is_certain_and_large(
    share: float, low: float, high: float, told: bool
) -> None:
    assert leans(Leaning(share=share, low=low, high=high, pairs=10)) is told
    assert not leans(None)


def _notices(**fields: Any) -> tuple[str, ...]:
    base = small()
    return pairs_report(msgspec.structs.replace(base, **fields)).notices


def test_mixed_policies_are_named() -> None:
    runs = (run_named("one", "1" * 64), run_named("two", "2" * 64), run_named("three", "1" * 64))
    assert _notices(made=made(runs=runs, mixed_policies=True)) == (
        "Attempts of 2 policies are mixed (vllm 111111111111; vllm 222222222222): a pair may join"
        " two of them, and is then off-policy for at least one.",
    )
    assert _notices(made=made(mixed_policies=True)) == ()


def test_what_could_not_be_read_and_what_was_left_out_are_told() -> None:
    told = _notices(
        made=made(damaged=tuple(f"s{i}" for i in range(10)), left_out={"infrastructure": 3})
    )
    assert told == (
        "Unreadable, and so in no pair: s0; s1; s2; s3; s4; s5; s6; s7; and 2 more.",
        "3 of 8 attempts left out: failed by the infrastructure 3.",
    )


def test_tasks_that_give_no_pair_of_a_win_and_a_loss_are_counted() -> None:
    assert _notices(outcomes=Outcomes(no_win=30, no_loss=20, mixed=49, uncounted=2)) == (
        "Of 101 tasks, 52 cannot give a pair of a win and a loss: no win in 30, no loss in 20, no"
        " attempt that counts in 2.",
    )


def test_a_rule_that_found_nothing_is_told_with_why() -> None:
    told = _notices(
        pairs_by_rule={"margin": 4, "near-miss": 0, "mine": 0},
        left_out_by_rule={"margin": {"tie": 9}, "near-miss": {"no_tests": 40, "too_few": 1}},
    )
    assert told == (
        "The rule near-miss made no pair: without tests, where pass ratios are compared (40"
        " attempts); fewer than two attempts left (1 task).",
        "The rule mine made no pair: there was nothing to pair.",
    )


def test_an_empty_result_says_so_first_and_once() -> None:
    told = pairs_report(nothing(left_out_by_rule={"margin": {"tie": 3}})).notices
    assert told == ("No pair was made; the reasons are counted below, by rule.",)


def test_a_winner_with_the_lower_reward_is_told() -> None:
    base = small()
    chosen = msgspec.structs.replace(base.chosen, rewards=(1.0, 1.0, 0.0, 1.0))
    rejected = msgspec.structs.replace(base.rejected, rewards=(0.0, 0.0, 1.0, 0.0))
    (told,) = _notices(chosen=chosen, rejected=rejected)
    assert told.startswith("In 1 pair the chosen one has the lower reward")


def test_measures_of_a_part_of_very_many_pairs_say_so() -> None:
    (told,) = _notices(pairs_by_rule={"margin": 1000})
    assert told == (
        "Lengths, scores and rewards are of 4 of the 1,000 pairs, evenly taken; counts are of all."
    )
