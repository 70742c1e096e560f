"""Replicas: a session stays with its prefix unless that costs more than it saves."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.errors import ContractError
from headrace.policies.replicas import AVOIDED_S, PROVEN, Call, Replicas


def settled(replicas: Replicas, session: str) -> int:
    """The replica that answered one call of `session`."""
    call = replicas.begin(session, 0.0)
    replicas.end(call, 1.0)
    return call.replica


def answered(replicas: Replicas, replica: int, *, s_per_token: float, tokens: int = 100) -> None:
    """As many answers as prove a pace."""
    others = [i for i in range(len(replicas)) if i != replica]
    for n in range(PROVEN):
        call = replicas.begin(f"{replica}.{n}.{s_per_token}", 0.0, avoid=others)
        assert call.replica == replica
        replicas.end(call, tokens * s_per_token, tokens=tokens)


def test_new_sessions_spread_evenly() -> None:
    replicas = Replicas(3)
    for n in range(9):
        replicas.begin(f"s{n}", 0.0)
    assert replicas.calls == (3, 3, 3)


def test_idle_replicas_take_turns() -> None:
    replicas = Replicas(2)
    seen: list[Call] = []
    for n in range(4):
        seen.append(replicas.begin(f"s{n}", 0.0))
        replicas.end(seen[-1], 1.0)
    assert [call.replica for call in seen] == [0, 1, 0, 1]


def test_a_session_stays_where_its_prefix_is() -> None:
    replicas = Replicas(4)
    home = settled(replicas, "a")
    for n in range(20):
        replicas.begin(f"other{n}", 0.0)
    assert replicas.begin("a", 0.0).replica == home
    assert replicas.moved == 0


def test_a_session_leaves_an_overloaded_replica_and_stays_away() -> None:
    replicas = Replicas(2, overload=1.5, slack=2)
    home = settled(replicas, "a")
    replicas.down(1 - home)
    for n in range(10):
        replicas.begin(f"pinned{n}", 0.0)
    replicas.back(1 - home)
    assert settled(replicas, "a") == 1 - home
    assert replicas.begin("a", 0.0).replica == 1 - home
    assert replicas.moved == 1


def test_a_dead_replicas_sessions_move_to_the_others() -> None:
    replicas = Replicas(3)
    home = settled(replicas, "a")
    replicas.down(home)
    assert replicas.begin("a", 0.0).replica != home
    assert home not in replicas.up


def test_when_all_are_down_a_session_waits_at_its_own() -> None:
    replicas = Replicas(2)
    home = replicas.begin("a", 0.0).replica
    replicas.down(0)
    replicas.down(1)
    assert replicas.begin("a", 0.0).replica == home


def test_a_call_that_never_began_cannot_end() -> None:
    with pytest.raises(ContractError):
        Replicas(1).end(Call(0, 0.0), 1.0)
    with pytest.raises(ContractError):
        Replicas(0)


def test_a_call_that_failed_at_a_replica_goes_to_another_and_its_session_with_it() -> None:
    replicas = Replicas(2)
    home = settled(replicas, "a")
    assert replicas.begin("a", 0.0, avoid={home}).replica == 1 - home
    assert replicas.begin("a", 0.0).replica == 1 - home


def test_a_session_leaves_a_replica_that_takes_four_times_as_long_for_a_token() -> None:
    replicas = Replicas(2)
    answered(replicas, 0, s_per_token=0.01)
    answered(replicas, 1, s_per_token=0.05)
    assert replicas.slow == [1]
    assert replicas.begin("1.0.0.05", 1.0).replica == 0
    assert {replicas.begin(f"new{n}", 1.0).replica for n in range(20)} == {0}


def test_long_answers_are_not_slow_ones() -> None:
    replicas = Replicas(2)
    answered(replicas, 0, s_per_token=0.01, tokens=10)
    answered(replicas, 1, s_per_token=0.01, tokens=4000)
    assert replicas.slow == []


def test_four_times_a_moment_is_not_slow() -> None:
    replicas = Replicas(2)
    answered(replicas, 0, s_per_token=0.001)
    answered(replicas, 1, s_per_token=0.009)
    assert replicas.slow == []


def test_a_slow_replica_has_to_prove_itself_again_after_a_while() -> None:
    replicas = Replicas(2)
    answered(replicas, 0, s_per_token=0.01)
    answered(replicas, 1, s_per_token=0.05)
    slow_at = 100 * 0.05
    replicas.begin("early", slow_at + AVOIDED_S - 1)
    assert replicas.slow == [1]
    replicas.begin("late", slow_at + AVOIDED_S)
    assert replicas.slow == []
    answered(replicas, 1, s_per_token=0.012)
    assert replicas.slow == []


def test_one_that_came_back_is_not_judged_by_its_former_pace() -> None:
    replicas = Replicas(2)
    answered(replicas, 0, s_per_token=0.01)
    answered(replicas, 1, s_per_token=0.05)
    replicas.down(1)
    replicas.back(1)
    assert replicas.slow == []


def test_a_slow_replica_is_better_than_a_dead_one() -> None:
    replicas = Replicas(2)
    answered(replicas, 0, s_per_token=0.01)
    answered(replicas, 1, s_per_token=0.05)
    replicas.down(0)
    assert replicas.begin("a", 1.0).replica == 1


@given(
    st.lists(
        st.tuples(st.sampled_from(["call", "end", "down", "back", "forget"]), st.integers(0, 7)),
        max_size=120,
    )
)
def test_every_call_is_counted_once_and_none_goes_to_a_dead_replica(
    steps: list[tuple[str, int]],
) -> None:
    replicas, in_flight, dead = Replicas(3, slack=1), list[Call](), set[int]()
    for what, n in steps:
        if what == "call":
            chosen = replicas.begin(f"s{n}", 0.0)
            in_flight.append(chosen)
            assert chosen.replica not in dead or len(dead) == 3
        elif what == "end" and in_flight:
            replicas.end(in_flight.pop(n % len(in_flight)), 1.0, tokens=n)
        elif what == "down":
            replicas.down(n % 3)
            dead.add(n % 3)
        elif what == "back":
            replicas.back(n % 3)
            dead.discard(n % 3)
        elif what == "forget":
            replicas.forget(f"s{n}")
        assert list(replicas.calls) == [
            sum(call.replica == i for call in in_flight) for i in range(3)
        ]
