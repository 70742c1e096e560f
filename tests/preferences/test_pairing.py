"""Pairing: what each rule makes of a group, and what no order of attempts can change."""

import random
from collections import Counter
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.engine.reader import Place
from headrace.preferences.attempt import Attempt
from headrace.preferences.pairing import (
    REASONS,
    Proposal,
    groups,
    key_of,
    outcomes,
    propose,
)
from headrace.preferences.rules import KINDS, Rule, rule_of
from headrace.preferences.tally import Outcomes
from headrace.types import StopReason


def one(sample: int, reward: float | None = None, **fields: Any) -> Attempt:
    """An attempt without tests, unless told otherwise."""
    plain: dict[str, Any] = {
        "run": 0,
        "place": Place(0, 16, sample),
        "id": f"id{sample}",
        "task": "org/a",
        "task_digest": "a" * 64,
        "policy_version": "v1",
        "counted": True,
        "pass_ratio": None,
        "tests": b"",
        "passed": 0,
        "turns": 4,
        "sampled_tokens": 100 + sample,
        "tokens": 500,
        "contexts": 1,
        "stop_reason": StopReason.DONE,
    }
    return Attempt(sample=sample, reward=reward, **(plain | fields))


def graded(sample: int, passed: str, **fields: Any) -> Attempt:
    """An attempt with a test for each digit, passed where it is 1."""
    bits = sum(1 << i for i, digit in enumerate(passed) if digit == "1")
    ratio = passed.count("1") / len(passed)
    plain = {"tests": b"T%d" % len(passed), "passed": bits, "pass_ratio": ratio}
    return one(sample, **({"reward": float(ratio == 1)} | plain | fields))


def rewarded(*rewards: float) -> list[Attempt]:
    return [one(sample, reward) for sample, reward in enumerate(rewards)]


def samples(proposal: Proposal) -> list[tuple[int, int]]:
    return [(two.chosen.sample, two.rejected.sample) for two in proposal.pairs]


def left_out(group: Sequence[Attempt], rule: Rule) -> dict[str, int]:
    found = propose(group, rule)
    assert found.pairs == ()
    return dict(found.left_out)


MARGIN = rule_of("margin")


# --- groups ---------------------------------------------------------------------------------


def test_a_group_is_a_task_and_a_policy() -> None:
    a, b = one(1), one(0)
    other_task, other_policy = one(0, task_digest="b" * 64), one(0, policy_version="v2")
    assert groups([a, other_task, b, other_policy], mixed=False) == [
        [b, a],
        [other_policy],
        [other_task],
    ]


def test_a_mixed_group_is_a_task() -> None:
    a, b = one(1), one(0, policy_version="v2")
    assert groups([a, b], mixed=True) == [[b, a]]


def test_attempts_of_one_id_in_two_runs_are_two() -> None:
    a, b = one(0, 1.0), one(0, 0.0, run=1)
    assert key_of(a) != key_of(b)
    (two,) = propose([b, a], MARGIN).pairs
    assert (two.chosen, two.rejected) == (a, b)


def test_outcomes_count_groups() -> None:
    lost = one(0, None, counted=False)
    found = [rewarded(0, 0.9), rewarded(1, 1), rewarded(1, 0), [lost], [one(0, 1.0), lost]]
    assert outcomes(found) == Outcomes(no_win=1, no_loss=2, mixed=1, uncounted=1)


# --- what is compared -----------------------------------------------------------------------


def test_auto_compares_pass_ratios_where_all_have_tests() -> None:
    (two,) = propose([graded(0, "111"), graded(1, "100")], MARGIN).pairs
    assert (two.score, two.chosen_score, two.rejected_score) == ("pass_ratio", 1.0, 1 / 3)


def test_auto_compares_rewards_where_one_has_no_tests() -> None:
    (two,) = propose([graded(0, "110", reward=0.0), one(1, 1.0)], MARGIN).pairs
    assert (two.score, two.chosen.sample, two.margin) == ("reward", 1, 1.0)


def test_auto_does_not_ask_for_tests_of_what_the_infrastructure_failed() -> None:
    failed = one(2, None, counted=False)
    (two,) = propose([graded(0, "11"), graded(1, "00"), failed], MARGIN).pairs
    assert two.score == "pass_ratio"


def test_a_score_that_is_asked_for_is_compared() -> None:
    group = [graded(0, "110", reward=0.0), graded(1, "100", reward=1.0)]
    (two,) = propose(group, rule_of("margin", score="reward")).pairs
    assert (two.chosen.sample, two.score) == (1, "reward")
    found = propose([*group, one(2, 1.0)], rule_of("margin", score="pass-ratio"))
    assert samples(found) == [(0, 1)]
    assert found.left_out == {"no_tests": 1}


def test_an_attempt_whose_verifier_broke_has_not_solved_its_task() -> None:
    (two,) = propose([one(0, None), one(1, 1.0)], MARGIN).pairs
    assert (two.chosen.sample, two.rejected_score) == (1, 0.0)


def test_ratios_that_are_a_margin_apart_are_so_as_floats_too() -> None:
    assert 8 / 12 - 5 / 12 < 0.25
    (two,) = propose(rewarded(8 / 12, 5 / 12), MARGIN).pairs
    assert two.margin == 0.25


# --- what is left out -----------------------------------------------------------------------


def test_one_attempt_makes_no_pair() -> None:
    assert left_out([], MARGIN) == {"alone": 1}
    assert left_out(rewarded(1), MARGIN) == {"alone": 1}


def test_one_outcome_makes_no_pair() -> None:
    assert left_out(rewarded(1, 1, 1), MARGIN) == {"one_outcome": 1}


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"counted": False}, "infrastructure"),
        ({"counted": False, "stop_reason": StopReason.CANCELLED}, "cancelled"),
        ({"turns": 0, "contexts": 0}, "no_turns"),
        ({"contexts": 2}, "several_contexts"),
    ],
)
def test_what_cannot_be_paired_is_left_out_with_its_reason(
    fields: dict[str, Any], reason: str
) -> None:
    odd = one(2, 0.0, **fields)
    assert left_out([one(0, 1.0), odd], MARGIN) == {reason: 1, "too_few": 1}
    found = propose([one(0, 1.0), odd, one(1, 0.0)], MARGIN)
    assert (samples(found), found.left_out) == ([(0, 1)], {reason: 1})


def test_a_tie_makes_no_pair() -> None:
    found = propose(rewarded(1, 0.5, 0.5, 0), MARGIN)
    assert (samples(found), found.left_out) == ([(0, 3)], {"tie": 1})


def test_a_tie_that_is_asked_for_prefers_the_one_that_sampled_less() -> None:
    group = [one(0, 1.0, sampled_tokens=9), one(1, 1.0, sampled_tokens=8)]
    (two,) = propose(group, rule_of("margin", ties=True)).pairs
    assert (two.chosen.sample, two.tie, two.margin) == (1, True, 0.0)
    without_tokens = [one(0, 1.0, sampled_tokens=0), one(1, 1.0, sampled_tokens=0, turns=3)]
    assert samples(propose(without_tokens, rule_of("margin", ties=True))) == [(1, 0)]


def test_a_small_margin_makes_no_pair() -> None:
    assert left_out(rewarded(1, 0.76), MARGIN) == {"margin": 1}
    assert samples(propose(rewarded(1, 0.76), rule_of("margin", min_margin=0.2))) == [(0, 1)]


def test_a_poor_winner_makes_no_pair() -> None:
    assert left_out(rewarded(0.4, 0), MARGIN) == {"winner_too_low": 1}
    assert left_out(rewarded(0, 0), rule_of("margin", ties=True)) == {"winner_too_low": 1}
    assert samples(propose(rewarded(0.4, 0), rule_of("margin", min_winner=0.4))) == [(0, 1)]


def test_what_ran_out_of_time_loses_only_if_asked_for() -> None:
    late = one(1, 0.0, stop_reason=StopReason.AGENT_TIMEOUT)
    group = [one(0, 1.0), late]
    assert left_out(group, MARGIN) == {"timeout": 1}
    assert samples(propose(group, rule_of("margin", timeouts=True))) == [(0, 1)]


def test_another_loser_takes_the_place_of_one_that_ran_out_of_time() -> None:
    late = one(2, 0.0, stop_reason=StopReason.AGENT_TIMEOUT)
    for kind in ("margin", "best-worst", "all-margins"):
        found = propose([one(0, 1.0), one(1, 0.5), late], rule_of(kind))
        assert (samples(found), found.left_out) == ([(0, 1)], {"timeout": 1})


def test_what_ran_out_of_time_and_won_is_a_winner() -> None:
    late = one(0, 1.0, stop_reason=StopReason.AGENT_TIMEOUT)
    found = propose([late, one(1, 0.0)], MARGIN)
    assert (samples(found), found.left_out) == ([(0, 1)], {})


def test_a_tie_does_not_make_a_loser_of_what_ran_out_of_time() -> None:
    late = one(0, 1.0, sampled_tokens=900, stop_reason=StopReason.AGENT_TIMEOUT)
    assert left_out([late, one(1, 1.0)], rule_of("margin", ties=True)) == {"tie": 1}


def test_an_infrastructure_failure_loses_with_zero_if_asked_for() -> None:
    failed = one(1, None, counted=False)
    rule = rule_of("margin", infrastructure=True)
    (two,) = propose([one(0, 1.0), failed], rule).pairs
    assert (two.rejected, two.rejected_score) == (failed, 0.0)


def test_an_infrastructure_failure_never_wins() -> None:
    failed = [one(sample, None, counted=False, sampled_tokens=1) for sample in (1, 2)]
    rule = rule_of("margin", infrastructure=True, ties=True, min_winner=0)
    assert left_out(failed, rule) == {"tie": 1}
    (two,) = propose([failed[0], one(0, 0.0)], rule).pairs
    assert two.rejected is failed[0]


# --- kinds ----------------------------------------------------------------------------------


def test_margin_pairs_best_with_worst_and_inwards() -> None:
    found = propose(rewarded(0.9, 0.1, 1, 0, 0.5), MARGIN)
    assert samples(found) == [(2, 3), (0, 1)]
    assert found.left_out == {}


def test_best_worst_is_one_pair() -> None:
    assert samples(propose(rewarded(0.9, 0.1, 1, 0), rule_of("best-worst"))) == [(2, 3)]


def test_equal_scores_are_taken_by_sample_not_by_length() -> None:
    """Shortest winner with longest loser would teach a model to be short."""
    group = [
        one(0, 1.0, sampled_tokens=900),
        one(1, 1.0, sampled_tokens=10),
        one(2, 0.0, sampled_tokens=900),
        one(3, 0.0, sampled_tokens=10),
    ]
    assert samples(propose(group, rule_of("best-worst"))) == [(0, 3)]


def test_all_margins_is_every_two_up_to_the_cap() -> None:
    rule = rule_of("all-margins", per_task=None)
    every = propose(rewarded(1, 0.6, 0), rule.model_copy(update={"per_task": 9}))
    assert sorted(samples(every)) == [(0, 1), (0, 2), (1, 2)]
    found = propose(rewarded(1, 1, 0, 0, 0), rule)
    assert len(found.pairs) == 4
    assert found.left_out == {"capped": 2, "tie": 4}


def test_all_margins_spreads_over_the_attempts_before_it_repeats_one() -> None:
    found = propose(rewarded(1, 1, 1, 0, 0, 0), rule_of("all-margins", per_task=3))
    assert Counter(two.chosen.sample for two in found.pairs) == {0: 1, 1: 1, 2: 1}
    assert Counter(two.rejected.sample for two in found.pairs) == {3: 1, 4: 1, 5: 1}


def test_the_largest_margins_come_first() -> None:
    found = propose(rewarded(0.6, 1, 0.3, 0), rule_of("all-margins", per_task=2))
    assert [two.margin for two in found.pairs] == [1.0, 0.3]


def test_near_miss_is_one_test_apart() -> None:
    group = [graded(0, "110"), graded(1, "100"), graded(2, "011"), graded(3, "111")]
    found = propose(group, rule_of("near-miss"))
    assert sorted(samples(found)) == [(0, 1), (3, 0), (3, 2)]


def test_near_miss_wants_the_same_tests() -> None:
    other = graded(1, "10", tests=b"other")
    assert left_out([graded(0, "11"), other], rule_of("near-miss")) == {"no_near_miss": 1}
    assert left_out([graded(0, "111"), graded(1, "100")], rule_of("near-miss")) == {
        "no_near_miss": 1
    }


def test_near_miss_without_tests_makes_no_pair() -> None:
    assert left_out(rewarded(1, 0), rule_of("near-miss")) == {"no_tests": 2, "too_few": 1}


def test_first_divergence_pairs_as_margin_does() -> None:
    group = rewarded(0.9, 0.1, 1, 0)
    assert propose(group, rule_of("first-divergence")) == propose(group, MARGIN)


def test_litecoder_takes_the_first_two_that_count() -> None:
    failed = one(0, None, counted=False)
    group = [failed, graded(1, "100"), graded(2, "110"), graded(3, "111")]
    found = propose(group, rule_of("litecoder"))
    assert samples(found) == [(2, 1)]
    assert found.left_out == {"infrastructure": 1}


def test_litecoder_drops_a_task_whose_first_two_are_equal() -> None:
    group = [graded(0, "110"), graded(1, "011"), graded(2, "111")]
    assert left_out(group, rule_of("litecoder")) == {"tie": 1}


def test_litecoder_does_not_look_further_for_a_loser() -> None:
    late = graded(1, "00", stop_reason=StopReason.AGENT_TIMEOUT)
    group = [graded(0, "11"), late, graded(2, "10")]
    assert left_out(group, rule_of("litecoder")) == {"timeout": 1}


# --- for every group and rule ---------------------------------------------------------------

attempts = st.builds(
    one,
    sample=st.integers(0, 9),
    reward=st.sampled_from([None, 0.0, 0.3, 0.5, 0.55, 0.8, 1.0]),
    run=st.integers(0, 1),
    place=st.builds(Place, st.just(0), st.just(16), st.integers(0, 10**6)),
    policy_version=st.sampled_from(["v1", "v2"]),
    task_digest=st.sampled_from(["a" * 64, "b" * 64]),
    counted=st.sampled_from([True, True, True, False]),
    turns=st.sampled_from([0, 1, 2, 9]),
    contexts=st.sampled_from([1, 1, 1, 2]),
    sampled_tokens=st.integers(0, 3),
    stop_reason=st.sampled_from([StopReason.DONE, StopReason.AGENT_TIMEOUT, StopReason.CANCELLED]),
) | st.builds(
    graded,
    sample=st.integers(0, 9),
    passed=st.text("01", min_size=1, max_size=3),
    place=st.builds(Place, st.just(1), st.just(16), st.integers(0, 10**6)),
)
crowds = st.lists(attempts, max_size=14, unique_by=key_of)
rules = st.builds(
    rule_of,
    st.sampled_from(KINDS),
    min_margin=st.none() | st.sampled_from([0.0, 0.25, 0.5]),
    min_winner=st.none() | st.sampled_from([0.0, 1.0]),
    per_task=st.none() | st.integers(1, 5),
    timeouts=st.booleans(),
    ties=st.booleans(),
    infrastructure=st.booleans(),
)


@given(crowds, rules, st.booleans(), st.randoms(use_true_random=False))
def test_the_order_of_the_attempts_changes_nothing(
    crowd: list[Attempt], rule: Rule, mixed: bool, chance: random.Random
) -> None:
    shuffled = chance.sample(crowd, len(crowd))
    found, again = groups(crowd, mixed=mixed), groups(shuffled, mixed=mixed)
    assert found == again
    for group in found:
        assert propose(group, rule) == propose(chance.sample(group, len(group)), rule)


@given(crowds, rules, st.booleans())
def test_every_pair_keeps_its_rule(crowd: list[Attempt], rule: Rule, mixed: bool) -> None:
    found = groups(crowd, mixed=mixed)
    assert sum(map(len, found)) == len(crowd)
    for group in found:
        proposal = propose(group, rule)
        pairs = [(key_of(two.chosen), key_of(two.rejected)) for two in proposal.pairs]
        assert len(set(pairs)) == len(pairs)
        assert rule.per_task is None or len(pairs) <= rule.per_task
        if rule.kind in ("margin", "first-divergence", "best-worst", "litecoder"):
            assert len({key for pair in pairs for key in pair}) == 2 * len(pairs), "disjoint"
        if rule.kind in ("best-worst", "litecoder"):
            assert len(pairs) <= 1
        assert set(proposal.left_out) <= set(REASONS)
        assert all(count > 0 for count in proposal.left_out.values())
        assert pairs or proposal.left_out, "no pair without a reason"
        for two in proposal.pairs:
            chosen, rejected = two.chosen, two.rejected
            assert key_of(chosen) != key_of(rejected)
            assert chosen.task_digest == rejected.task_digest
            assert mixed or chosen.policy_version == rejected.policy_version
            assert chosen.contexts == rejected.contexts == 1
            assert chosen.turns and rejected.turns
            assert chosen.counted
            assert rejected.counted or rule.infrastructure
            assert rule.timeouts or not rejected.out_of_time
            assert two.chosen_score >= rule.min_winner
            assert two.tie == (two.chosen_score == two.rejected_score)
            if two.tie:
                assert rule.ties
                assert two.margin == 0
                assert not rejected.counted or chosen.sampled_tokens <= rejected.sampled_tokens
            else:
                assert two.margin >= rule.min_margin
                assert two.chosen_score > two.rejected_score
            if rule.kind == "near-miss":
                assert chosen.tests == rejected.tests != b""
                assert chosen.passed.bit_count() == rejected.passed.bit_count() + 1
