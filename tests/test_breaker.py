"""The breaker: starts stop while the engine fails, and one is tried before going on."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.engine.breaker import Breaker
from headrace.errors import ContractError


def opened(at: float = 0.0) -> Breaker:
    breaker = Breaker(failures=3, pause_s=5, longest_s=20)
    for _ in range(3):
        breaker.failed(at)
    return breaker


def test_closed_it_bounds_nothing() -> None:
    breaker = Breaker()
    assert breaker.allowance(0) is None
    assert breaker.next_at() is None


def test_failures_that_are_not_in_a_row_do_not_open_it() -> None:
    breaker = Breaker(failures=3)
    for _ in range(10):
        breaker.failed(0)
        breaker.failed(0)
        breaker.succeeded()
    assert not breaker.is_open


def test_open_it_allows_nothing_until_its_pause_is_over_and_then_one() -> None:
    breaker = opened(at=10)
    assert breaker.allowance(14.9) == 0
    assert breaker.next_at() == 15
    assert breaker.allowance(15) == 1
    breaker.begun()
    assert breaker.allowance(15) == 0
    assert breaker.next_at() is None


def test_a_probe_that_succeeds_closes_it() -> None:
    breaker = opened()
    breaker.begun()
    breaker.succeeded()
    assert breaker.allowance(5) is None


def test_each_failed_probe_doubles_the_pause_up_to_the_longest() -> None:
    breaker, now, pauses = opened(), 5.0, []
    for _ in range(4):
        breaker.begun()
        breaker.failed(now)
        until = breaker.next_at()
        assert until is not None
        pauses.append(until - now)
        now = until
    assert pauses == [10, 20, 20, 20]
    assert breaker.opened == 1


def test_starts_under_way_when_it_opened_neither_prolong_nor_probe() -> None:
    breaker = opened()
    breaker.failed(4)
    assert breaker.next_at() == 5


def test_a_start_under_way_that_succeeds_closes_it() -> None:
    breaker = opened()
    breaker.succeeded()
    assert not breaker.is_open


def test_a_cancelled_probe_gives_its_place_back() -> None:
    breaker = opened()
    breaker.begun()
    breaker.abandoned()
    assert breaker.allowance(5) == 1


def test_an_engine_that_does_not_answer_opens_it_at_once_and_is_probed_every_pause() -> None:
    breaker = Breaker(failures=3, pause_s=5, longest_s=20, outage_s=60)
    assert breaker.gone(0, starting=False)
    assert (breaker.is_gone, breaker.is_open, breaker.next_at()) == (True, True, 5)
    assert breaker.gone(2, starting=False), "others lose their sandboxes too"
    assert breaker.next_at() == 5
    for now in (5, 10, 15):
        assert breaker.allowance(now) == 1
        breaker.begun()
        assert breaker.gone(now, starting=True)
        assert breaker.next_at() == now + 5
    breaker.begun()
    breaker.succeeded()
    assert (breaker.is_gone, breaker.allowance(20)) == (False, None)


def test_what_an_open_sandbox_loses_does_not_end_a_probe() -> None:
    breaker = Breaker(pause_s=5, outage_s=60)
    breaker.gone(0, starting=False)
    breaker.begun()
    breaker.gone(6, starting=False)
    assert breaker.allowance(100) == 0


def test_an_engine_that_stays_away_is_given_up_and_one_that_came_back_is_not() -> None:
    breaker = Breaker(outage_s=60)
    assert breaker.gone(0, starting=False)
    assert breaker.gone(59, starting=False)
    assert not breaker.gone(60, starting=False)
    breaker.succeeded()
    assert breaker.gone(61, starting=False)
    assert not Breaker().gone(0, starting=False), "told to wait for none"


def test_two_moments_without_an_answer_far_apart_are_no_long_outage() -> None:
    """Nothing was left to be started, so no probe said that it had come back."""
    breaker = Breaker(outage_s=60)
    assert breaker.gone(0, starting=False)
    assert breaker.gone(500, starting=False)
    assert breaker.gone(559, starting=False)
    assert not breaker.gone(560, starting=False)


def test_a_probe_that_takes_longer_than_the_outage_may_last_ends_the_wait() -> None:
    breaker = Breaker(outage_s=60)
    assert breaker.gone(0, starting=False)
    breaker.begun()
    assert not breaker.gone(100, starting=False), "an open sandbox, while the probe hangs"
    assert not breaker.gone(125, starting=True)


@pytest.mark.parametrize(
    "settings", [(0, 1.0, 2.0), (1, 0.0, 2.0), (1, 3.0, 2.0), (1, 1.0, 1.0, -1.0)]
)
def test_settings_without_sense_are_refused(settings: tuple[int, float, float]) -> None:
    with pytest.raises(ContractError):
        Breaker(*settings)


@given(
    st.lists(st.sampled_from(["start", "fails", "gone", "works", "gives up", "time"]), max_size=60)
)
def test_it_is_never_stuck(steps: list[str]) -> None:
    """Whatever happens, waiting long enough allows a start, unless one is under way."""
    breaker, now, under_way = Breaker(failures=2, pause_s=1, longest_s=8), 0.0, 0
    for step in steps:
        if step == "start" and breaker.allowance(now) != 0:
            breaker.begun()
            under_way += 1
        elif step == "time":
            now += 0.5
        elif under_way and step in ("fails", "gone", "works", "gives up"):
            under_way -= 1
            if step == "fails":
                breaker.failed(now)
            elif step == "gone":
                breaker.gone(now, starting=True)
            elif step == "works":
                breaker.succeeded()
            else:
                breaker.abandoned()
    if not under_way:
        assert breaker.allowance(now + 8) != 0
