"""The trace: slices that add up to what is stored, rows that are used one at a time."""

import itertools
import json
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from bench.trajectories import make_episode
from hypothesis import given, settings
from hypothesis import strategies as st

from headrace.engine.trace import write_trace
from headrace.errors import RunFolderError
from headrace.types import Episode, Timing

SPAN = st.tuples(st.floats(0, 100), st.floats(0.001, 50))
TIMING = Timing(
    queue_s=9.0,
    prepare_s=2.0,
    image_s=0.5,
    start_s=1.0,
    act_s=10.0,
    policy_s=6.0,
    command_s=4.0,
    wait_s=0.25,
    verify_s=1.5,
)


def an_episode(n: int, began: float, timing: Timing = TIMING) -> Episode:
    made = make_episode(n, turns=2)
    turns = tuple(msgspec.structs.replace(t, policy_s=3.0, command_s=2.0) for t in made.turns)
    return msgspec.structs.replace(
        made, id=f"e{n}", started_at=1e9 + began, timing=timing, turns=turns
    )


@pytest.mark.parametrize("where", ["nowhere/trace.json", "."])
def test_a_place_that_cannot_be_written_is_a_mistake_of_the_user(
    tmp_path: Path, where: str
) -> None:
    with pytest.raises(RunFolderError, match="cannot be written: .* give a place that can be"):
        write_trace([an_episode(1, 0.0)], tmp_path / where)


def written(tmp_path: Path, *episodes: Episode) -> list[dict[str, Any]]:
    out = tmp_path / "trace.json"
    assert write_trace(episodes, out) == len(episodes)
    events: list[dict[str, Any]] = json.loads(out.read_bytes())["traceEvents"]
    return events


def test_the_phases_of_an_episode_follow_each_other_inside_it(tmp_path: Path) -> None:
    events = [e for e in written(tmp_path, an_episode(0, 5.0)) if e["ph"] == "X"]
    whole, *phases = [(e["name"], e["ts"] / 1e6, e["dur"] / 1e6) for e in events]
    assert whole[1:] == (0.0, 13.75)
    assert phases == [
        ("image", 0.0, 0.5),
        ("start", 0.5, 1.0),
        ("policy", 2.0, 3.0),
        ("command", 5.0, 2.0),
        ("policy", 7.0, 3.0),
        ("command", 10.0, 2.0),
        ("wait", 12.0, 0.25),
        ("verify", 12.25, 1.5),
    ]


def test_the_live_episodes_are_counted_by_stage(tmp_path: Path) -> None:
    events = written(tmp_path, an_episode(0, 0.0), an_episode(1, 5.0))
    counts = [(e["ts"] / 1e6, e["args"]) for e in events if e["ph"] == "C"]
    assert {name for _, args in counts for name in args} == {"prepare", "act", "wait", "verify"}

    def at(second: float) -> dict[str, int]:
        found: dict[str, int] = [args for ts, args in counts if ts <= second][-1]
        return found

    assert at(1.0) == {"prepare": 1, "act": 0, "wait": 0, "verify": 0}
    assert at(6.0) == {"prepare": 1, "act": 1, "wait": 0, "verify": 0}
    assert at(13.0) == {"prepare": 0, "act": 1, "wait": 0, "verify": 1}
    assert at(18.75) == {"prepare": 0, "act": 0, "wait": 0, "verify": 0}


def test_an_episode_that_is_stored_meanwhile_is_left_to_the_next_trace(tmp_path: Path) -> None:
    class Growing:
        """A run that goes on: one more each time it is read."""

        n = 0

        def __iter__(self) -> Iterator[Episode]:
            self.n += 1
            return iter([an_episode(i, float(i)) for i in range(self.n)])

    out = tmp_path / "trace.json"
    assert write_trace(Growing(), out) == 1
    events = json.loads(out.read_bytes())["traceEvents"]
    assert {event["args"]["id"] for event in events if "id" in event.get("args", {})} == {"e0"}


def test_an_episode_says_what_came_of_it(tmp_path: Path) -> None:
    episode = an_episode(0, 0.0)
    (whole,) = [e for e in written(tmp_path, episode) if e.get("args", {}).get("id") == "e0"]
    assert whole["name"] == episode.task
    assert whole["args"]["reward"] == episode.verdict.reward
    assert whole["args"]["tokens"] == episode.sampled_tokens


def test_rows_have_names(tmp_path: Path) -> None:
    events = written(tmp_path, an_episode(0, 0.0), an_episode(1, 1.0), an_episode(2, 20.0))
    names = [e["args"]["name"] for e in events if e["ph"] == "M"]
    assert names == ["run", "slot 0", "slot 1"]


def test_a_run_without_episodes_is_an_empty_trace(tmp_path: Path) -> None:
    assert [e["ph"] for e in written(tmp_path)] == ["M"]


PHASE = st.floats(0, 20)


@settings(deadline=None, max_examples=50)
@given(st.lists(st.tuples(st.floats(0, 30), *[PHASE] * 6), max_size=15))
def test_every_event_is_one_that_viewers_read(times: list[tuple[float, ...]]) -> None:
    """By the published trace event format, also for records whose parts exceed their sum."""
    episodes = [
        an_episode(
            n, began, Timing(image_s=i, start_s=s, prepare_s=p, act_s=a, wait_s=w, verify_s=v)
        )
        for n, (began, i, s, p, a, w, v) in enumerate(times)
    ]
    with tempfile.TemporaryDirectory() as folder:
        events = written(Path(folder), *episodes)
    rows: dict[int, list[tuple[int, int]]] = {}
    for event in events:
        assert isinstance(event["name"], str) and event["pid"] == 1
        if event["ph"] == "X":
            assert event["ts"] >= 0
            assert event["dur"] > 0 or "id" in event["args"], "some viewers never close it"
            rows.setdefault(event["tid"], []).append((event["ts"], event["ts"] + event["dur"]))
        elif event["ph"] == "C":
            assert event["ts"] >= 0 and all(count >= 0 for count in event["args"].values())
        else:
            assert event["ph"] == "M" and event["name"] in ("process_name", "thread_name")
    for slices in rows.values():
        _assert_nested(slices)


def _assert_nested(slices: list[tuple[int, int]]) -> None:
    open_until: list[int] = []
    for began, ended in sorted(slices, key=lambda s: (s[0], -s[1])):
        while open_until and open_until[-1] <= began:
            open_until.pop()
        assert not open_until or ended <= open_until[-1]
        open_until.append(ended)


@settings(deadline=None, max_examples=50)
@given(st.lists(SPAN, max_size=25))
def test_no_row_has_two_episodes_at_once_and_no_more_rows_than_needed(
    spans: list[tuple[float, float]],
) -> None:
    episodes = [an_episode(n, at, Timing(act_s=took)) for n, (at, took) in enumerate(spans)]
    with tempfile.TemporaryDirectory() as folder:
        events = written(Path(folder), *episodes)
    wholes = sorted(
        (e["tid"], e["ts"], e["ts"] + e["dur"]) for e in events if "id" in e.get("args", {})
    )
    for (row, _, ended), (other, began, _) in itertools.pairwise(wholes):
        assert row != other or began >= ended
    most = max((sum(a <= at < a + t for a, t in spans) for at, _ in spans), default=0)
    assert len({row for row, *_ in wholes}) == most
