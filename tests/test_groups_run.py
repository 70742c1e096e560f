"""Groups in whole runs: complete without their rest, and tasks in the order of their history."""

from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest

from headrace.configs.models import RunConfig, StoreConfig
from headrace.engine import runner
from headrace.engine.events import (
    EpisodeDropped,
    EpisodeFinished,
    EpisodeStarted,
    Event,
    Note,
    RunStarted,
)
from headrace.engine.history import seconds_by_task
from headrace.engine.reader import latest_episodes
from headrace.engine.store import Store
from headrace.errors import RunFolderError
from headrace.types import Episode

QUICK = {"type": "scripted", "commands": ["true"]}
PREBUILT = [f"first-steps/{name}" for name in ("compile-hello", "game-of-life", "sort-scores")]
"""Tasks of one image: none is held back while another starts."""


def config(
    provider: str, policy: object, *, attempts: int, tasks: int, **engine: object
) -> RunConfig:
    numbers = {"live": 4, "preparing": 4, "verifying": 4, "outage_s": 0, **engine}
    return RunConfig.model_validate(
        {
            "attempts": attempts,
            "tasks": {"include": PREBUILT, "limit": tasks},
            "policy": policy,
            "sandbox": {"provider": provider},
            "limits": {"command_timeout_s": 300.0, "agent_timeout_s": 300.0},
            "engine": numbers,
        }
    )


async def rewritten(run: Path, change: Callable[[Episode], Episode]) -> None:
    """The same run with other episodes, in its own store."""
    episodes = [change(episode) for episode in latest_episodes(run)]
    async with Store(run, StoreConfig()) as store:
        for episode in episodes:
            await store.append(episode)


def started(events: list[Event]) -> list[tuple[str, int]]:
    return [(e.task, e.sample) for e in events if isinstance(e, EpisodeStarted)]


async def test_a_complete_group_starts_no_more_and_the_next_session_owes_none(
    only_namespace: str, tmp_path: Path
) -> None:
    few = config(only_namespace, QUICK, attempts=4, tasks=1, live=1, min_group=2)
    events: list[Event] = []
    first = await runner.run(few, tmp_path / "run", on_event=events.append)
    assert (first.planned, first.episodes, first.dropped, first.owed) == (4, 2, 2, 0)
    assert [e.sample for e in events if isinstance(e, EpisodeDropped)] == [2, 3]
    events.clear()
    again = await runner.run(few, tmp_path / "run", on_event=events.append)
    assert (again.episodes, again.dropped, again.owed) == (2, 2, 0)
    assert started(events) == []
    (begun,) = (event for event in events if isinstance(event, RunStarted))
    assert (begun.planned, begun.skipped, begun.dropped) == (4, 2, 2)


@pytest.mark.timeout(120)
async def test_a_straggler_is_let_go_once_its_group_has_enough(
    only_namespace: str, tmp_path: Path
) -> None:
    """One sibling of three sleeps for minutes; a recording of an edited run says which."""
    three = config(only_namespace, QUICK, attempts=3, tasks=1)
    await runner.run(three, tmp_path / "recorded")

    def slow(episode: Episode) -> Episode:
        if episode.sample != 1:
            return episode
        turn = episode.turns[0]
        command = msgspec.structs.replace(turn.commands[0], text="sleep 250")
        turns = (msgspec.structs.replace(turn, commands=(command,)), *episode.turns[1:])
        return msgspec.structs.replace(episode, turns=turns)

    await rewritten(tmp_path / "recorded", slow)
    again = {"type": "replay", "run": str(tmp_path / "recorded")}
    two = config(only_namespace, again, attempts=3, tasks=1, min_group=2, patience=1.0)
    events: list[Event] = []
    summary = await runner.run(two, tmp_path / "run", on_event=events.append)
    assert (summary.episodes, summary.dropped, summary.owed) == (2, 1, 0)
    assert [e.sample for e in events if isinstance(e, EpisodeDropped)] == [1]
    assert sorted(e.sample for e in latest_episodes(tmp_path / "run")) == [0, 2]
    assert summary.wall_s < 100


async def test_the_longest_task_of_an_earlier_run_goes_first_and_siblings_stay_together(
    only_namespace: str, tmp_path: Path
) -> None:
    plain = config(only_namespace, QUICK, attempts=1, tasks=3)
    await runner.run(plain, tmp_path / "before")
    a, b, c = sorted({episode.task for episode in latest_episodes(tmp_path / "before")})
    took = {a: 5.0, b: 1.0, c: 60.0}

    def timed(episode: Episode) -> Episode:
        timing = msgspec.structs.replace(episode.timing, act_s=took[episode.task])
        return msgspec.structs.replace(episode, timing=timing)

    await rewritten(tmp_path / "before", timed)
    seconds = seconds_by_task([tmp_path / "before", tmp_path / "before"])
    assert all(seconds[e.task_digest] > took[e.task] for e in latest_episodes(tmp_path / "before"))
    events: list[Event] = []
    ordered = config(
        only_namespace,
        QUICK,
        attempts=2,
        tasks=3,
        live=1,
        order="longest-first",
        history=[str(tmp_path / "before")],
    )
    await runner.run(ordered, tmp_path / "run", on_event=events.append)
    assert started(events) == [(name, sample) for name in (c, a, b) for sample in (0, 1)]


async def test_a_history_that_is_no_run_is_a_mistake_of_the_user(
    only_namespace: str, tmp_path: Path
) -> None:
    wrong = config(
        only_namespace,
        QUICK,
        attempts=1,
        tasks=1,
        order="longest-first",
        history=[str(tmp_path / "nothing")],
    )
    with pytest.raises(RunFolderError, match="nothing"):
        await runner.run(wrong, tmp_path / "run")


async def test_more_than_the_machine_holds_is_told_and_runs(
    only_namespace: str, tmp_path: Path
) -> None:
    """Sandboxes ahead are bounded by the episodes there are, whatever is asked for."""
    events: list[Event] = []
    many = config(only_namespace, QUICK, attempts=2, tasks=2, live=10**6, preparing=10**6)
    summary = await runner.run(many, tmp_path / "run", on_event=events.append)
    assert (summary.episodes, summary.infra_failures) == (4, 0)
    assert not [e for e in events if isinstance(e, Note) and "need about" in e.text]


async def test_no_more_are_live_than_auto_may_although_it_starts_with_more_by_default(
    only_namespace: str, tmp_path: Path
) -> None:
    events: list[Event] = []
    one = config(only_namespace, QUICK, attempts=3, tasks=1, live="auto", live_most=1)
    await runner.run(one, tmp_path / "run", on_event=events.append)
    order = [type(e) for e in events if isinstance(e, EpisodeStarted | EpisodeFinished)]
    assert order == [EpisodeStarted, EpisodeFinished] * 3
