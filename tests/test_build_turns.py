"""Whose build may go on: never two that make the same layer."""

import asyncio

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headrace.errors import ImageError
from headrace.sandbox.build_turns import TRIES, BuildTurns, Turns


def chain(text: str) -> list[str]:
    """Steps as chained digests are: each holds all below it."""
    return [text[: n + 1] for n in range(len(text))]


def test_builds_with_nothing_in_common_run_up_to_the_limit() -> None:
    turns = Turns(2)
    for id, text in enumerate(("ab", "cd", "ef")):
        turns.submit(id, chain(text))
    assert turns.grants() == [0, 1]
    turns.ended(0)
    assert turns.grants() == [2]


def test_a_sibling_waits_until_the_common_head_is_made_and_no_longer() -> None:
    turns = Turns(4)
    turns.submit(1, chain("hhx"))
    turns.submit(2, chain("hhy"))
    assert turns.grants() == [1]
    turns.made(1, "h")
    assert turns.grants() == []
    turns.made(1, "hh")
    assert turns.grants() == [2]


def test_the_same_build_waits_for_the_first() -> None:
    turns = Turns(4)
    turns.submit(1, chain("ab"))
    turns.submit(2, chain("ab"))
    assert turns.grants() == [1]
    turns.made(1, "ab")
    turns.ended(1)
    assert turns.grants() == [2]


def test_one_that_must_wait_does_not_hold_up_another_head() -> None:
    turns = Turns(2)
    turns.submit(1, chain("aax"))
    turns.submit(2, chain("aay"))
    turns.submit(3, chain("bb"))
    assert turns.grants() == [1, 3]


def test_the_next_tries_a_step_that_failed_and_after_that_nobody() -> None:
    turns = Turns(1)
    for id in range(TRIES + 1):
        turns.submit(id, chain("hx"))
    for id in range(TRIES):
        assert turns.hopeless(chain("hx")) is None
        assert turns.grants() == [id]
        turns.made(id, "h")
        turns.failed(id, f"failure {id}")
        turns.ended(id)
    assert turns.hopeless(chain("hx")) == f"failure {TRIES - 1}"
    assert turns.hopeless(chain("hy")) is None


@settings(max_examples=200, deadline=None)
@given(
    st.lists(st.text("ab", min_size=1, max_size=5), min_size=1, max_size=12),
    st.integers(1, 4),
    st.randoms(use_true_random=False),
)
def test_whatever_the_order_every_step_is_made_once_and_every_build_ends(
    texts: list[str], limit: int, dice: "st.DataObject"
) -> None:
    turns = Turns(limit)
    left = {}
    for id, text in enumerate(texts):
        turns.submit(id, chain(text))
        left[id] = chain(text)
    made: list[str] = []
    running: list[int] = []
    while left:
        running += turns.grants()
        assert 0 < len(running) <= limit
        id = dice.choice(running)  # type: ignore[attr-defined]
        step = next((step for step in left[id] if step not in made), None)
        if step is not None:
            made.append(step)
            turns.made(id, step)
        if step is None or step == left[id][-1]:
            turns.ended(id)
            running.remove(id)
            del left[id]
    assert len(made) == len(set(made)) == len({s for text in texts for s in chain(text)})
    assert turns.snapshot() == {"running": 0, "waiting": 0, "made": len(made)}


async def test_a_turn_is_given_back_whatever_happens() -> None:
    turns = BuildTurns(1)
    with pytest.raises(ImageError, match="no"):
        async with turns.take(["a"]):
            raise ImageError("no")
    async with asyncio.timeout(5), turns.take(["a"]) as turn:
        turn.made("a")
    assert turns.state.snapshot()["running"] == 0


async def test_who_stops_waiting_leaves_the_queue() -> None:
    turns = BuildTurns(1)
    async with turns.take(["a"]):
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.01), turns.take(["b"]):
                pass
        assert turns.state.snapshot() == {"running": 1, "waiting": 0, "made": 0}


async def test_a_step_that_failed_too_often_is_told_and_not_tried() -> None:
    turns = BuildTurns(1)
    for _ in range(TRIES):
        async with turns.take(["a", "b"]) as turn:
            turn.failed("the network is down")
    with pytest.raises(ImageError, match="the network is down"):
        async with turns.take(["a", "c"]):
            pass
