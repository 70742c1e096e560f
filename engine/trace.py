"""A run as a trace: one row for each episode that was live at the same time, phases as slices.

Rule: made from the stored episodes alone, so it costs a run nothing and works on any run folder.
The format is the trace events that Perfetto and browsers' own viewers open: complete events with
microseconds since the first episode began. Two passes, constant memory but for a few numbers of
each episode.

What it cannot show: the tries that were not stored, and time inside a turn beyond policy and
commands. Steps of a task are laid end to end; the waits between them are not told apart.
"""

import heapq
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import msgspec

from headrace.engine.reader import latest_episodes
from headrace.engine.shards import Damage
from headrace.errors import StoreError, boundary
from headrace.types import Episode

RUN = 1
"""The only process of the trace."""


Episodes = Iterable[Episode]
"""Iterated twice: not a generator."""


class Stored:
    """The episodes of a run folder, read anew each time they are iterated."""

    def __init__(self, run: Path) -> None:
        self._run = run
        self.damage: list[Damage] = []
        """What could not be read the last time."""

    def __iter__(self) -> Iterator[Episode]:
        self.damage.clear()
        return iter(latest_episodes(self._run, on_damage=self.damage.append))


def write_trace(episodes: Episodes, out: Path) -> int:
    """Write `out`; returns the number of episodes. Blocking."""
    rows, first = _rows(episodes)
    written = 0
    with boundary(StoreError, f"the trace {out}"), out.open("wb") as file:
        file.write(b'{"displayTimeUnit": "ms", "traceEvents": [\n')
        file.write(msgspec.json.encode(_named("process_name", 0, "run")))
        for row in range(max(rows.values(), default=-1) + 1):
            file.write(b",\n" + msgspec.json.encode(_named("thread_name", row, f"slot {row}")))
        for episode in episodes:
            for event in events_of(episode, rows[episode.id], first):
                file.write(b",\n" + msgspec.json.encode(event))
            written += 1
        file.write(b"\n]}\n")
    return written


def events_of(episode: Episode, row: int, first: float) -> Iterator[dict[str, Any]]:
    """The slices of one episode; `first` is the Unix time that is 0 in the trace."""
    timing, start_s = episode.timing, episode.started_at - first
    verdict = episode.verdict
    yield _slice(
        episode.task,
        row,
        start_s,
        _length_s(episode),
        {
            "id": episode.id,
            "sample": episode.sample,
            "reward": verdict.reward,
            "stop": episode.stop_reason.value,
            "tries": episode.tries,
            "queue_s": timing.queue_s,
            "tokens": episode.sampled_tokens,
        },
    )
    if timing.image_s > 0:
        yield _slice("image", row, start_s, timing.image_s)
    if timing.start_s > 0:
        yield _slice("start", row, start_s + timing.image_s, timing.start_s)
    at_s = start_s + timing.prepare_s
    for number, turn in enumerate(episode.turns, 1):
        yield _slice("policy", row, at_s, turn.policy_s, {"turn": number})
        at_s += turn.policy_s
        if turn.command_s > 0:
            yield _slice("command", row, at_s, turn.command_s, _commands(turn.commands))
        at_s += turn.command_s
    at_s = start_s + timing.prepare_s + timing.act_s
    if timing.wait_s > 0:
        yield _slice("wait", row, at_s, timing.wait_s)
    if timing.verify_s > 0:
        yield _slice("verify", row, at_s + timing.wait_s, timing.verify_s)


def _commands(commands: Iterable[Any]) -> dict[str, str]:
    return {"commands": "\n".join(command.text for command in commands)[:500]}


def _length_s(episode: Episode) -> float:
    timing = episode.timing
    return timing.prepare_s + timing.act_s + timing.wait_s + timing.verify_s


def _rows(episodes: Episodes) -> tuple[Mapping[str, int], float]:
    """The row of each episode, rows taken again once they are free; and when the first began."""
    spans = sorted((e.started_at, e.started_at + _length_s(e), e.id) for e in episodes)
    rows: dict[str, int] = {}
    free: list[int] = []
    taken: list[tuple[float, int]] = []
    for began, ended, id in spans:
        while taken and taken[0][0] <= began:
            heapq.heappush(free, heapq.heappop(taken)[1])
        row = heapq.heappop(free) if free else len(taken)
        rows[id] = row
        heapq.heappush(taken, (ended, row))
    return rows, spans[0][0] if spans else 0.0


def _slice(
    name: str, row: int, start_s: float, length_s: float, told: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    event: dict[str, Any] = {
        "ph": "X",
        "name": name,
        "pid": RUN,
        "tid": row,
        "ts": round(start_s * 1e6, 1),
        "dur": round(length_s * 1e6, 1),
    }
    return event | ({"args": dict(told)} if told else {})


def _named(what: str, row: int, name: str) -> dict[str, Any]:
    return {"ph": "M", "name": what, "pid": RUN, "tid": row, "args": {"name": name}}
