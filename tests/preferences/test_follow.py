"""Pairs of a run that goes on: as soon as they are certain, and those of its end."""

import asyncio
import os
import subprocess
import sys
from collections.abc import Sequence
from contextlib import aclosing
from pathlib import Path

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.preferences.going import DEADLINE_S, TASKS, failed, lost, put, session, won
from tests.preferences.runs import episode, said, spoil

from headrace.aio import background, in_thread
from headrace.engine.shards import Damage
from headrace.errors import RunFolderError
from headrace.preferences import Pair, Pairing, Rule, follow
from headrace.preferences.formats.registry import pair_format
from headrace.preferences.pairs import make_pairs
from headrace.preferences.rules import KINDS
from headrace.types import Episode, StopReason, VerdictFault

POLL_S = 0.001


def named(pairing: Pairing) -> tuple[str, int, int]:
    pair = pairing.pair
    return pair.task, pair.chosen.sample, pair.rejected.sample


def in_the_end(run: Path, rules: Sequence[Rule]) -> list[Pair]:
    """The pairs of `headrace pairs`."""
    out = run.with_name("pairs")
    made = make_pairs([run], out, rules=rules, format=pair_format("jsonl"), overwrite=True)
    if not made.written:
        return []
    lines = (out / "index.jsonl").read_bytes().splitlines()
    return [msgspec.json.decode(line, type=Pair) for line in lines]


# --- while it goes on, and to its end -------------------------------------------------------


async def test_a_pair_comes_while_the_run_goes_on(tmp_path: Path) -> None:
    async with session(tmp_path / "run") as store, aclosing(follow(tmp_path / "run")) as pairs:
        for task in TASKS:
            await put(store, won(task), lost(task))
            assert named(await anext(pairs)) == (task, 0, 1)


async def test_a_pair_brings_its_records(tmp_path: Path) -> None:
    async with session(tmp_path / "run") as store, aclosing(follow(tmp_path / "run")) as pairs:
        await put(store, won("org/a"), lost("org/a"))
        pairing = await anext(pairs)
    assert (pairing.chosen, pairing.rejected) == (won("org/a"), lost("org/a"))
    assert pairing.pair.divergence.turn == 1


async def test_following_ends_when_the_run_has_ended(tmp_path: Path) -> None:
    run = tmp_path / "run"
    async with session(run) as store:
        pairs = follow(run, poll_s=POLL_S)
        await put(store, won("org/a"), lost("org/a"))
        first = await anext(pairs)
        await put(store, won("org/b"))
    assert named(first) == ("org/a", 0, 1)
    assert [named(pairing) async for pairing in pairs] == []


async def test_a_run_that_has_ended_gives_all_its_pairs_at_once(tmp_path: Path) -> None:
    run = tmp_path / "run"
    async with session(run, attempts=3) as store:
        await put(store, won("org/a"), lost("org/b"), lost("org/a"), won("org/b", 2))
    rule = Rule(kind="margin")
    found = [pairing.pair async for pairing in follow(str(run), [rule])]
    assert [(pair.task, pair.chosen.sample) for pair in found] == [("org/a", 0), ("org/b", 2)]
    assert found == await in_thread(in_the_end, run, [rule])


async def test_a_run_that_has_not_begun_is_waited_for(tmp_path: Path) -> None:
    run = tmp_path / "run"
    pairs = follow(run, poll_s=POLL_S, begin_s=DEADLINE_S)
    async with asyncio.timeout(DEADLINE_S), asyncio.TaskGroup() as group:
        first = group.create_task(anext(pairs))
        async with session(run) as store:
            await put(store, won("org/a"), lost("org/a"))
            assert named(await first) == ("org/a", 0, 1)
    assert [pairing async for pairing in pairs] == []


async def test_what_is_no_run_is_a_mistake_of_the_user(tmp_path: Path) -> None:
    with pytest.raises(RunFolderError, match="nothing there"):
        await anext(follow(tmp_path / "run"))
    with pytest.raises(RunFolderError, match=r"no run\.json"):
        await anext(follow(tmp_path, begin_s=0.01, poll_s=POLL_S))


# --- attempts that the infrastructure failed ------------------------------------------------


async def test_an_attempt_of_an_older_session_is_waited_for(tmp_path: Path) -> None:
    run = tmp_path / "run"
    async with session(run, attempts=3) as store:
        await put(store, won("org/a"), failed("org/a", 1), lost("org/a", 2))
    async with session(run, attempts=3) as store:
        pairs = follow(run, poll_s=POLL_S)
        await put(store, won("org/b"), won("org/b", 1), lost("org/b", 2))
        assert named(await anext(pairs)) == ("org/b", 0, 2)  # of org/a there is none yet
        await put(store, lost("org/a", 1))
        assert named(await anext(pairs)) == ("org/a", 0, 2)
    assert [pairing async for pairing in pairs] == []


async def test_an_attempt_that_is_never_made_again_is_settled_at_the_end(tmp_path: Path) -> None:
    run = tmp_path / "run"
    async with session(run, attempts=3) as store:
        await put(store, won("org/a"), failed("org/a", 1), lost("org/a", 2))
    assert [named(pairing) async for pairing in follow(run)] == [("org/a", 0, 2)]


async def test_an_attempt_that_fails_in_the_session_that_is_followed_is_not_waited_for(
    tmp_path: Path,
) -> None:
    run = tmp_path / "run"
    async with session(run, attempts=3) as store:
        pairs = follow(run, poll_s=POLL_S)
        for task in ("org/a", "org/b", "org/c"):  # each a round of reading later than the last
            await put(store, won(task), won(task, 1), lost(task, 2))
            assert named(await anext(pairs)) == (task, 0, 2)
        await put(store, won("org/d"), failed("org/d", 1), lost("org/d", 2))
        assert named(await anext(pairs)) == ("org/d", 0, 2)
        await pairs.aclose()


# --- ends that are not the run's ------------------------------------------------------------


async def test_a_run_that_brings_nothing_for_too_long_is_given_up(tmp_path: Path) -> None:
    async with session(tmp_path / "run"):
        with pytest.raises(TimeoutError, match=r"within 0\.05 s, found none; `headrace top"):
            await anext(follow(tmp_path / "run", idle_timeout_s=0.05, poll_s=POLL_S))


async def test_without_the_end_of_the_run_an_incomplete_group_gives_nothing(tmp_path: Path) -> None:
    run = tmp_path / "run"
    async with session(run, attempts=3) as store:
        await put(store, won("org/a"), lost("org/a"))
        await put(store, won("org/b"), failed("org/b", 1), lost("org/b", 2))
    pairs = follow(run, until_end=False, idle_timeout_s=0.05, poll_s=POLL_S)
    with pytest.raises(TimeoutError):
        await anext(pairs)


async def test_without_the_end_of_the_run_following_goes_on_through_a_resumed_one(
    tmp_path: Path,
) -> None:
    run = tmp_path / "run"
    async with session(run) as store:
        await put(store, won("org/a"), lost("org/a"), failed("org/b", 0))
    pairs = follow(run, until_end=False, poll_s=POLL_S)
    assert named(await anext(pairs)) == ("org/a", 0, 1)
    async with session(run) as store:
        await put(store, won("org/b"), lost("org/b"))
    assert named(await anext(pairs)) == ("org/b", 0, 1)
    await pairs.aclose()


async def test_cancelling_leaves_no_task_and_no_open_file(tmp_path: Path) -> None:
    run = tmp_path / "run"
    came = asyncio.Event()

    async def consume() -> None:
        async with aclosing(follow(run, poll_s=0)) as pairs:
            async for _ in pairs:
                came.set()

    async with session(run) as store:
        tasks = asyncio.all_tasks()
        async with background(consume()) as consuming:
            await put(store, won("org/a"), lost("org/a"))
            await came.wait()
        assert consuming.cancelled()
        assert asyncio.all_tasks() == tasks
        assert shards_open() == 1  # the store's


def shards_open() -> int:
    """Descriptors of this process on shards."""
    return sum(target.endswith(".hrs") for target in map(_target, os.listdir("/proc/self/fd")))


def _target(fd: str) -> str:
    try:
        return os.readlink(f"/proc/self/fd/{fd}")
    except FileNotFoundError:
        return ""  # the listing's own


async def test_whoever_stops_early_closes_it(tmp_path: Path) -> None:
    run = tmp_path / "run"
    async with session(run) as store:
        await put(store, *(make(task) for task in TASKS for make in (won, lost)))
    async with aclosing(follow(run)) as pairs:
        async for _ in pairs:
            break
        assert shards_open() == 1
    assert shards_open() == 0


# --- damage ---------------------------------------------------------------------------------


async def damaged(run: Path) -> None:
    """Three shards, of which the first is spoilt."""
    for task in TASKS[:3]:
        async with session(run) as store:
            await put(store, won(task), lost(task))
    await in_thread(spoil, run, 0, 0.5)


async def test_damage_is_raised_where_nobody_is_told(tmp_path: Path) -> None:
    await damaged(tmp_path / "run")
    with pytest.raises(RunFolderError, match="damaged"):
        await anext(follow(tmp_path / "run"))


async def test_damage_is_told_and_what_is_readable_gives_pairs(tmp_path: Path) -> None:
    await damaged(tmp_path / "run")
    told: list[Damage] = []
    pairs = follow(tmp_path / "run", on_damage=told.append)
    assert [named(pairing)[0] async for pairing in pairs] == ["org/b", "org/c"]
    assert len(told) == 1


# --- any order ------------------------------------------------------------------------------


@st.composite
def attempt_records(draw: st.DrawFn) -> Episode:
    task, sample = draw(st.sampled_from(TASKS[:2])), draw(st.integers(0, 3))
    passed = draw(st.sampled_from([(), (0,), (1,), (0, 1), (0, 1, 2)]))
    return episode(
        task,
        sample,
        draw(st.sampled_from([0.0, 0.5, 1.0])),
        tests={str(n): n in passed for n in range(3)} if draw(st.integers(0, 6)) else {},
        turns=said("ls", *draw(st.lists(st.sampled_from(["a", "b"]), max_size=2))),
        stop=draw(st.sampled_from([*[StopReason.DONE] * 3, StopReason.AGENT_TIMEOUT])),
        fault=draw(st.sampled_from([*[None] * 5, VerdictFault.INFRASTRUCTURE])),
    )


sessions = st.lists(
    st.lists(attempt_records(), max_size=8, unique_by=lambda one: one.id), min_size=1, max_size=2
)
rules = st.lists(
    st.builds(
        lambda kind, per_task, ties: Rule.model_validate(
            {"kind": kind, "per_task": per_task, "ties": ties, "min_winner": 0.0}
            | ({"score": "reward"} if kind == "all-margins" else {})
        ),
        st.sampled_from(KINDS),
        st.none() | st.just(2),
        st.booleans(),
    ),
    min_size=1,
    max_size=3,
    unique_by=lambda rule: rule.name,
)


async def followed(
    run: Path, sessions: Sequence[Sequence[Episode]], rules: Sequence[Rule]
) -> list[Pair]:
    """The pairs that come while the last session writes, and after it."""
    *older, last = sessions
    counted: set[str] = set()
    for episodes in older:
        async with session(run, attempts=4) as store:
            await put(store, *episodes)
        counted |= {one.id for one in episodes if one.verdict.fault is None}
    came: list[Pair] = []

    async def consume() -> None:
        async with aclosing(follow(run, rules, poll_s=0)) as pairs:
            came.extend([pairing.pair async for pairing in pairs])

    async with asyncio.TaskGroup() as group:
        async with session(run, attempts=4) as store:
            group.create_task(consume())
            for one in last:
                if one.id not in counted:  # what counts is not made again
                    await store.append(one)
    return came


@settings(max_examples=30, deadline=None)
@given(sessions, rules)
def test_what_comes_on_the_way_is_what_the_finished_run_gives(
    tmp_path_factory: pytest.TempPathFactory,
    sessions: list[list[Episode]],
    rules: list[Rule],
) -> None:
    run = tmp_path_factory.mktemp("any") / "run"
    came = asyncio.run(followed(run, sessions, rules))
    expected = in_the_end(run, rules)
    assert sorted(came, key=lambda pair: pair.id) == sorted(expected, key=lambda pair: pair.id)


def test_the_package_imports_no_optional_library() -> None:
    code = "import sys, headrace.preferences\n"
    code += "print({'numpy', 'pyarrow', 'datasketch'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"
