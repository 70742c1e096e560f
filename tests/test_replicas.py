"""Replicas: a session stays with its prefix unless that costs more than it saves."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.errors import ContractError
from headrace.policies.replicas import Replicas


def test_new_sessions_spread_evenly() -> None:
    replicas = Replicas(3)
    for n in range(9):
        replicas.begin(f"s{n}")
    assert replicas.calls == (3, 3, 3)


def test_idle_replicas_take_turns() -> None:
    replicas = Replicas(2)
    seen = []
    for n in range(4):
        seen.append(replicas.begin(f"s{n}"))
        replicas.end(seen[-1])
    assert seen == [0, 1, 0, 1]


def test_a_session_stays_where_its_prefix_is() -> None:
    replicas = Replicas(4)
    home = replicas.begin("a")
    replicas.end(home)
    for n in range(20):
        replicas.begin(f"other{n}")
    assert replicas.begin("a") == home
    assert replicas.moved == 0


def test_a_session_leaves_an_overloaded_replica_and_stays_away() -> None:
    replicas = Replicas(2, overload=1.5, slack=2)
    home = replicas.begin("a")
    replicas.end(home)
    replicas.down(1 - home)
    for n in range(10):
        replicas.begin(f"pinned{n}")
    replicas.back(1 - home)
    away = replicas.begin("a")
    assert away == 1 - home
    replicas.end(away)
    assert replicas.begin("a") == away
    assert replicas.moved == 1


def test_a_dead_replicas_sessions_move_to_the_others() -> None:
    replicas = Replicas(3)
    home = replicas.begin("a")
    replicas.end(home)
    replicas.down(home)
    assert replicas.begin("a") != home
    assert home not in replicas.up


def test_when_all_are_down_a_session_waits_at_its_own() -> None:
    replicas = Replicas(2)
    home = replicas.begin("a")
    replicas.down(0)
    replicas.down(1)
    assert replicas.begin("a") == home


def test_a_call_that_never_began_cannot_end() -> None:
    with pytest.raises(ContractError):
        Replicas(1).end(0)
    with pytest.raises(ContractError):
        Replicas(0)


@given(
    st.lists(
        st.tuples(st.sampled_from(["call", "end", "down", "back", "forget"]), st.integers(0, 7)),
        max_size=120,
    )
)
def test_every_call_is_counted_once_and_none_goes_to_a_dead_replica(
    steps: list[tuple[str, int]],
) -> None:
    replicas, in_flight, dead = Replicas(3, slack=1), [], set[int]()
    for what, n in steps:
        if what == "call":
            chosen = replicas.begin(f"s{n}")
            in_flight.append(chosen)
            assert chosen not in dead or len(dead) == 3
        elif what == "end" and in_flight:
            replicas.end(in_flight.pop(n % len(in_flight)))
        elif what == "down":
            replicas.down(n % 3)
            dead.add(n % 3)
        elif what == "back":
            replicas.back(n % 3)
            dead.discard(n % 3)
        elif what == "forget":
            replicas.forget(f"s{n}")
        assert list(replicas.calls) == [in_flight.count(i) for i in range(3)]
