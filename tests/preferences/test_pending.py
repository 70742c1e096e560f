"""Pairs of groups that are not complete yet: what comes on the way is what comes in the end."""

from collections.abc import Sequence
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headrace.engine.reader import Place
from headrace.preferences.attempt import NO_TESTS, Attempt
from headrace.preferences.pairing import groups, propose
from headrace.preferences.pending import Found, Pending, When, when
from headrace.preferences.rules import KINDS, Rule
from headrace.types import StopReason

Two = tuple[str, str, str]


def attempt(
    sample: int,
    reward: float | None = 1.0,
    *,
    task: str = "a",
    passed: int | None = None,
    **fields: Any,
) -> Attempt:
    """An attempt at a task of three tests, of which bit i of `passed` says how the i-th ended."""
    bits = passed if passed is not None else (0b111 if reward == 1.0 else 0)
    plain: dict[str, Any] = {
        "run": 0,
        "place": Place(0, 0, sample),
        "id": f"{task}{sample}",
        "task": task,
        "task_digest": task,
        "policy_version": "v",
        "counted": True,
        "pass_ratio": bits.bit_count() / 3,
        "tests": b"three",
        "turns": 2,
        "sampled_tokens": 10 + sample,
        "tokens": 20,
        "contexts": 1,
        "stop_reason": StopReason.DONE,
    }
    return Attempt(sample=sample, reward=reward, passed=bits, **(plain | fields))


def rule(kind: str, **values: Any) -> Rule:
    return Rule.model_validate({"kind": kind, **values})


def twos(found: Sequence[Found]) -> list[tuple[int, int]]:
    return [(f.proposed.chosen.sample, f.proposed.rejected.sample) for f in found]


# --- when -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "at"),
    [
        (rule("margin"), When.COMPLETE),
        (rule("best-worst"), When.COMPLETE),
        (rule("first-divergence"), When.COMPLETE),
        (rule("litecoder"), When.FIRST),
        (rule("near-miss"), When.COMPLETE),
        (rule("near-miss", per_task=None), When.EACH),
        (rule("all-margins", score="reward"), When.COMPLETE),
        (rule("all-margins", per_task=None), When.COMPLETE),
        (rule("all-margins", per_task=None, score="reward"), When.EACH),
    ],
)
def test_a_rule_says_when_later_attempts_can_change_it(given: Rule, at: When) -> None:
    assert when(given) is at


def test_every_kind_is_known_here() -> None:
    assert {when(rule(kind)) for kind in KINDS} == {When.COMPLETE, When.FIRST}


def test_a_margin_comes_with_the_last_attempt_of_its_group() -> None:
    pending = Pending([rule("margin")], planned=3)
    assert pending.offer(attempt(2, 0.0)) == []
    assert pending.offer(attempt(0, 1.0)) == []
    assert twos(pending.offer(attempt(1, 0.5))) == [(0, 2)]


def test_groups_do_not_wait_for_each_other() -> None:
    pending = Pending([rule("best-worst")], planned=2)
    assert pending.offer(attempt(0, task="a")) == []
    assert pending.offer(attempt(0, task="b")) == []
    assert twos(pending.offer(attempt(1, 0.0, task="b"))) == [(0, 1)]
    assert pending.snapshot().groups == 1


def test_litecoder_waits_for_no_third_attempt() -> None:
    pending = Pending([rule("litecoder")], planned=4)
    assert pending.offer(attempt(1, passed=0b001)) == []
    assert pending.offer(attempt(2, passed=0b111)) == []
    assert twos(pending.offer(attempt(0, passed=0b011))) == [(0, 1)]


def test_litecoder_takes_the_next_sample_for_one_that_does_not_count() -> None:
    pending = Pending([rule("litecoder")], planned=4)
    lost = attempt(0, None, counted=False, pass_ratio=None)
    assert pending.offer(lost) == []
    assert pending.offer(attempt(1, passed=0b001)) == []
    assert twos(pending.offer(attempt(2, passed=0b011))) == [(2, 1)]


def test_a_tie_of_the_first_two_ends_a_litecoder_group() -> None:
    pending = Pending([rule("litecoder")], planned=4)
    for sample in (0, 1):
        assert pending.offer(attempt(sample, passed=0b001)) == []
    assert (pending.snapshot().groups, pending.snapshot().done) == (0, 1)


def test_two_attempts_one_test_apart_are_a_pair_at_once() -> None:
    pending = Pending([rule("near-miss", per_task=None)], planned=3)
    assert pending.offer(attempt(0, passed=0b001)) == []
    assert twos(pending.offer(attempt(1, passed=0b011))) == [(1, 0)]
    assert twos(pending.offer(attempt(2, passed=0b111))) == [(2, 1)]


def test_a_rule_waits_for_the_one_before_it_which_may_make_the_same_pair() -> None:
    pending = Pending([rule("best-worst"), rule("litecoder")], planned=3)
    for sample, passed in ((0, 0b111), (1, 0b001)):
        assert pending.offer(attempt(sample, passed=passed)) == []
    found = pending.offer(attempt(2, passed=0b011))
    assert [f.rule.kind for f in found] == ["best-worst", "litecoder"]
    assert twos(found) == [(0, 1), (0, 1)]
    assert [len(f.before) for f in found] == [0, 1]


# --- attempts that failed -------------------------------------------------------------------


def failed(sample: int, place: int) -> Attempt:
    where = Place(0, 0, place)
    return attempt(sample, None, counted=False, pass_ratio=None, tests=NO_TESTS, place=where)


def test_a_group_waits_for_an_attempt_that_may_be_tried_again() -> None:
    pending = Pending([rule("margin")], planned=2)
    assert pending.offer(attempt(0)) == []
    assert pending.offer(failed(1, place=5), final=False) == []
    again = attempt(1, 0.0, place=Place(1, 0, 0))
    assert twos(pending.offer(again)) == [(0, 1)]


def test_an_attempt_that_failed_for_good_completes_its_group() -> None:
    pending = Pending([rule("margin")], planned=3)
    assert pending.offer(attempt(0)) == []
    assert pending.offer(attempt(2, 0.0)) == []
    assert twos(pending.offer(failed(1, place=5))) == [(0, 2)]


def test_an_older_record_does_not_replace_a_newer_one() -> None:
    pending = Pending([rule("margin")], planned=2)
    pending.offer(attempt(0, 0.0, place=Place(2, 0, 0)))
    pending.offer(attempt(0, 1.0, place=Place(1, 0, 0)))
    assert twos(pending.offer(attempt(1, 1.0))) == [(1, 0)]


def test_the_end_of_the_run_decides_what_is_left() -> None:
    pending = Pending([rule("margin")], planned=8)
    pending.offer(attempt(0))
    pending.offer(failed(1, place=1), final=False)
    pending.offer(attempt(2, 0.0))
    assert twos(list(pending.finish())) == [(0, 2)]
    assert list(pending.finish()) == []


def test_without_a_planned_number_the_end_of_the_run_decides() -> None:
    pending = Pending([rule("best-worst")], planned=None)
    assert pending.offer(attempt(0)) == []
    assert pending.offer(attempt(1, 0.0)) == []
    assert twos(list(pending.finish())) == [(0, 1)]


def test_what_has_yielded_everything_is_forgotten() -> None:
    pending = Pending([rule("margin"), rule("near-miss", per_task=None)], planned=2)
    for task in "abc":
        pending.offer(attempt(0, task=task))
        pending.offer(attempt(1, 0.0, task=task))
    assert pending.snapshot().attempts == 0
    assert pending.offer(attempt(1, 1.0, task="a", place=Place(9, 0, 0))) == []
    assert repr(pending) == "Pending(PendingSnapshot(groups=0, attempts=0, done=3))"


# --- any order ------------------------------------------------------------------------------

rules = st.lists(
    st.builds(
        lambda kind, values: rule(
            kind, **({k: v for k, v in values.items() if k != "score" or kind not in BY_TESTS})
        ),
        st.sampled_from(KINDS),
        st.fixed_dictionaries(
            {
                "score": st.sampled_from(["auto", "reward", "pass-ratio"]),
                "per_task": st.none() | st.integers(1, 3),
                "min_margin": st.sampled_from([0.0, 0.25]),
                "min_winner": st.sampled_from([0.0, 0.5]),
                "timeouts": st.booleans(),
                "ties": st.booleans(),
                "infrastructure": st.booleans(),
            }
        ),
    ),
    min_size=1,
    max_size=3,
)
BY_TESTS = ("near-miss", "litecoder")

attempts = st.builds(
    lambda sample, task, reward, passed, tests, out_of_time, odd: attempt(
        sample,
        reward,
        task=task,
        passed=passed if tests else 0,
        pass_ratio=passed.bit_count() / 3 if tests else None,
        tests=b"three" if tests else NO_TESTS,
        **({"stop_reason": StopReason.AGENT_TIMEOUT} if out_of_time else {}) | odd,
    ),
    st.integers(0, 4),
    st.sampled_from("ab"),
    st.sampled_from([None, 0.0, 0.5, 1.0]),
    st.integers(0, 7),
    st.integers(0, 9).map(bool),
    st.integers(0, 4).map(lambda n: n == 0),
    st.sampled_from(
        [
            *[{}] * 8,
            {"turns": 0},
            {"contexts": 2},
            {"counted": False},
            {"counted": False, "stop_reason": StopReason.CANCELLED},
        ]
    ),
)


def batch(stored: Sequence[Attempt], rules: Sequence[Rule]) -> list[Two]:
    """As the finished run gives them."""
    newest = {one.id: one for one in sorted(stored, key=lambda one: one.place)}
    return [
        (str(number), two.chosen.id, two.rejected.id)
        for group in groups(newest.values(), mixed=False)
        for number, one in enumerate(rules)
        for two in propose(group, one).pairs
    ]


def first_rules(found: Sequence[Two]) -> dict[tuple[str, str], str]:
    """Which rule made each pair first."""
    return {(chosen, rejected): number for number, chosen, rejected in reversed(found)}


@settings(max_examples=400)
@given(
    rules,
    st.lists(attempts, max_size=12, unique_by=lambda one: one.id),
    st.just(5) | st.none(),
    st.data(),
)
def test_in_any_order_what_comes_is_what_the_finished_run_gives(
    rules: list[Rule], last: list[Attempt], planned: int | None, data: st.DataObject
) -> None:
    """An attempt that is tried again has an older record, which comes first."""
    rules = [one.model_copy(update={"name": str(n)}) for n, one in enumerate(rules)]
    again = data.draw(st.lists(st.sampled_from(last), unique_by=id) if last else st.just([]))
    order = data.draw(st.permutations([(one, True) for one in last]))
    for one in again:
        at = next(n for n, (other, _) in enumerate(order) if other is one)
        order.insert(data.draw(st.integers(0, at)), (failed_before(one), False))
    pending = Pending(rules, planned)
    found: list[Found] = []
    stored: list[Attempt] = []
    for number, (one, final) in enumerate(order):
        stored.append(msgspec.structs.replace(one, place=Place(0, number, 0)))
        found += pending.offer(stored[-1], final=final)
    found += pending.finish()
    told = [(f.rule.name, f.proposed.chosen.id, f.proposed.rejected.id) for f in found]
    expected = batch(stored, rules)
    assert sorted(told) == sorted(expected)
    assert first_rules(told) == first_rules(expected)
    assert pending.snapshot().groups == 0


def failed_before(one: Attempt) -> Attempt:
    return msgspec.structs.replace(
        one, counted=False, reward=None, pass_ratio=None, tests=NO_TESTS, passed=0
    )
