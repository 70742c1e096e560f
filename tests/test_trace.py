"""The trace: slices that add up to what is stored, rows that are used one at a time."""

import itertools
import json
from pathlib import Path
from typing import Any

import msgspec
from bench.trajectories import make_episode
from hypothesis import given, settings
from hypothesis import strategies as st

from headrace.engine.trace import write_trace
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


@settings(deadline=None, max_examples=50)
@given(st.lists(SPAN, max_size=25))
def test_no_row_has_two_episodes_at_once_and_no_more_rows_than_needed(
    spans: list[tuple[float, float]],
) -> None:
    import tempfile

    episodes = [an_episode(n, at, Timing(act_s=took)) for n, (at, took) in enumerate(spans)]
    with tempfile.TemporaryDirectory() as folder:
        events = written(Path(folder), *episodes)
    wholes = sorted(
        (e["tid"], e["ts"], e["ts"] + e["dur"]) for e in events if "id" in e.get("args", {})
    )
    for (row, _, ended), (other, began, _) in itertools.pairwise(wholes):
        assert row != other or began >= ended - 1.0  # microseconds
    most = max((sum(a <= at < a + t for a, t in spans) for at, _ in spans), default=0)
    assert len({row for row, *_ in wholes}) == most
