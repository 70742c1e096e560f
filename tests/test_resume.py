"""Identity of an attempt, and what a run still owes."""

import subprocess
import sys
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.engine.resume import episode_id, is_owed, owed
from headrace.types import Episode, StopReason, Verdict, VerdictFault

identities = st.tuples(st.text(), st.text(), st.integers(0, 2**31))


@given(identities, identities)
def test_two_attempts_share_an_id_only_if_they_are_the_same(
    a: tuple[str, str, int], b: tuple[str, str, int]
) -> None:
    assert (episode_id(*a) == episode_id(*b)) == (a == b)


@given(identities)
def test_an_id_is_sixteen_hexadecimal_digits(identity: tuple[str, str, int]) -> None:
    key = episode_id(*identity)
    assert len(key) == 16
    assert set(key) <= set("0123456789abcdef")


def test_an_id_is_the_same_in_every_process_and_version() -> None:
    program = "from headrace.engine.resume import episode_id; print(episode_id('d', 'v', 3))"
    told = subprocess.run([sys.executable, "-c", program], capture_output=True, check=True)
    assert told.stdout.decode().strip() == episode_id("d", "v", 3) == "e8210338bcf7868f"


plans = st.lists(st.text(max_size=3))


@given(plans, st.sets(st.text(max_size=3)))
def test_what_is_owed_is_the_plan_without_what_is_finished(
    planned: list[str], finished: set[str]
) -> None:
    left = owed(planned, finished)
    assert set(left) == set(planned) - finished
    assert len(left) == len(set(left))
    places = [planned.index(key) for key in left]
    assert places == sorted(places)


@given(plans, st.data())
def test_a_run_in_any_number_of_sessions_makes_every_attempt_once(
    planned: list[str], data: st.DataObject
) -> None:
    finished: list[str] = []
    while left := owed(planned, set(finished)):
        finished += left[: data.draw(st.integers(1, len(left)))]
    assert sorted(finished) == sorted(set(planned))


@pytest.mark.parametrize(
    ("fault", "stop", "expected"),
    [
        (None, StopReason.DONE, False),
        (None, StopReason.AGENT_TIMEOUT, False),
        (VerdictFault.VERIFIER, StopReason.DONE, False),
        (VerdictFault.INFRASTRUCTURE, StopReason.DONE, True),
        (VerdictFault.INFRASTRUCTURE, StopReason.SANDBOX_ERROR, True),
        (None, StopReason.CANCELLED, True),
    ],
)
def test_only_what_failed_around_the_policy_is_owed_again(
    fault: VerdictFault | None, stop: StopReason, expected: bool
) -> None:
    plain: dict[str, Any] = dict.fromkeys(
        ["id", "task", "task_digest", "policy", "policy_version", "provider", "instruction"], "x"
    )
    verdict = Verdict(reward=None if fault else 0.0, fault=fault)
    assert is_owed(Episode(sample=0, stop_reason=stop, verdict=verdict, **plain)) is expected
