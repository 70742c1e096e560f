"""A run as a trace: one row for each episode that was live at the same time, phases as slices.

Beside the rows there is a counter of the live episodes by stage.

Rule: made from the stored episodes alone, so it costs a run nothing and works on any run folder.
The format is the trace events that Perfetto and browsers' own viewers open: complete events with
microseconds since the first episode began. Two passes, constant memory but for a few numbers of
each episode.

What it cannot show: the tries that were not stored, storing (it comes after the record), and time
inside a turn beyond policy and commands. What was waited before an episode was live is a number of
it, not a slice. Steps of a task are laid end to end; the waits between them are not told apart.
"""

import heapq
from array import array
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import msgspec

from headrace.engine.reader import latest_episodes
from headrace.engine.run_folder import not_writable
from headrace.engine.shards import Damage
from headrace.errors import StoreError, boundary
from headrace.types import Command, Episode

RUN = 1
"""The only process of the trace."""
POINTS = 1000
"""Of the counter, over the whole run."""
STAGES = ("prepare", "act", "wait", "verify")

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
    rows, first, counter = _rows(episodes)
    written = 0
    with boundary(StoreError, f"the trace {out}"), _made(out) as file:
        file.write(b'{"displayTimeUnit": "ms", "traceEvents": [\n')
        file.write(msgspec.json.encode(_named("process_name", 0, "run")))
        for row in range(max(rows.values(), default=-1) + 1):
            file.write(b",\n" + msgspec.json.encode(_named("thread_name", row, f"slot {row}")))
        for event in counter.events():
            file.write(b",\n" + msgspec.json.encode(event))
        for episode in episodes:
            if episode.id not in rows:  # of a run that goes on: stored since the first pass
                continue
            for event in events_of(episode, rows[episode.id], first):
                file.write(b",\n" + msgspec.json.encode(event))
            written += 1
        file.write(b"\n]}\n")
    return written


def _made(out: Path) -> BinaryIO:
    try:
        return out.open("wb")
    except OSError as e:
        raise not_writable(f"{out} cannot be written", e) from e


def events_of(episode: Episode, row: int, first: int) -> Iterator[dict[str, Any]]:
    """The slices of one episode; `first` is what is 0 in the trace, in Unix microseconds."""
    verdict = episode.verdict
    at = _began(episode) - first
    told = {
        "id": episode.id,
        "sample": episode.sample,
        "reward": verdict.reward,
        "stop": episode.stop_reason.value,
        "tries": episode.tries,
        "queue_s": episode.timing.queue_s,
        "tokens": episode.sampled_tokens,
    }
    whole = _Line(row, at, at + _length(episode))
    yield whole.slice(episode.task, _length_s(episode), told)
    yield from filter(_has_length, _parts(episode, row, at, whole.until))


def _parts(episode: Episode, row: int, at: int, until: int) -> Iterator[dict[str, Any]]:
    timing = episode.timing
    prepare = _Line(row, at, until, timing.prepare_s)
    yield prepare.slice("image", timing.image_s)
    yield prepare.slice("start", timing.start_s)
    act = _Line(row, prepare.until, until, timing.act_s)
    for number, turn in enumerate(episode.turns, 1):
        yield act.slice("policy", turn.policy_s, {"turn": number})
        yield act.slice("command", turn.command_s, {"turn": number, **_commands(turn.commands)})
    rest = _Line(row, act.until, until)
    yield rest.slice("wait", timing.wait_s)
    yield rest.slice("verify", timing.verify_s)


def _has_length(event: Mapping[str, Any]) -> bool:
    """One without is nothing to see, and some viewers never close it."""
    return bool(event["dur"])


class _Line:
    """Slices one after the other, none beyond the end of what they are parts of.

    Whole microseconds: viewers drop slices that overlap without one being inside the other.
    """

    def __init__(self, row: int, at: int, until: int, length_s: float | None = None) -> None:
        """`until`: the end of the whole; `length_s`: an end before it."""
        self._row = row
        self._at = at
        self.until = until if length_s is None else min(until, at + _us(length_s))

    def slice(
        self, name: str, length_s: float, told: Mapping[str, Any] | None = None
    ) -> dict[str, Any]:
        began, self._at = self._at, min(self.until, self._at + _us(length_s))
        event: dict[str, Any] = {
            "ph": "X",
            "name": name,
            "pid": RUN,
            "tid": self._row,
            "ts": began,
            "dur": self._at - began,
        }
        return event | ({"args": dict(told)} if told else {})


def _commands(commands: Iterable[Command]) -> dict[str, str]:
    return {"commands": "\n".join(command.text for command in commands)[:500]}


def _length_s(episode: Episode) -> float:
    timing = episode.timing
    return timing.prepare_s + timing.act_s + timing.wait_s + timing.verify_s


def _length(episode: Episode) -> int:
    return _us(_length_s(episode))


def _began(episode: Episode) -> int:
    return _us(episode.started_at)


def _us(seconds: float) -> int:
    return round(seconds * 1e6)


class _Counter:
    """How many episodes were in which stage, over time."""

    def __init__(self) -> None:
        self._began = {stage: array("d") for stage in STAGES}
        self._ended = {stage: array("d") for stage in STAGES}

    def add(self, episode: Episode) -> None:
        at, timing = episode.started_at, episode.timing
        lengths = (timing.prepare_s, timing.act_s, timing.wait_s, timing.verify_s)
        for stage, length_s in zip(STAGES, lengths, strict=True):
            self._began[stage].append(at)
            at += length_s
            self._ended[stage].append(at)

    def events(self) -> Iterator[dict[str, Any]]:
        """At most `POINTS`, and where nothing changed none."""
        began = {stage: sorted(times) for stage, times in self._began.items()}
        ended = {stage: sorted(times) for stage, times in self._ended.items()}
        if not began["prepare"]:
            return
        first, last = began["prepare"][0], ended["verify"][-1]
        before = None
        for point in range(POINTS):
            at = first + (last - first) * point / (POINTS - 1)
            counts = {s: bisect_right(began[s], at) - bisect_right(ended[s], at) for s in STAGES}
            if counts != before:
                ts = round((at - first) * 1e6)
                yield {"ph": "C", "name": "live episodes", "pid": RUN, "ts": ts, "args": counts}
            before = counts


def _rows(episodes: Episodes) -> tuple[Mapping[str, int], int, _Counter]:
    """The row of each episode, rows taken again once they are free; and when the first began."""
    counter = _Counter()
    spans = []
    for episode in episodes:
        counter.add(episode)
        began = _began(episode)
        spans.append((began, began + _length(episode), episode.id))
    spans.sort()
    rows: dict[str, int] = {}
    free: list[int] = []
    taken: list[tuple[int, int]] = []
    for began, ended, id in spans:
        while taken and taken[0][0] <= began:
            heapq.heappush(free, heapq.heappop(taken)[1])
        row = heapq.heappop(free) if free else len(taken)
        rows[id] = row
        heapq.heappush(taken, (ended, row))
    return rows, spans[0][0] if spans else 0, counter


def _named(what: str, row: int, name: str) -> dict[str, Any]:
    return {"ph": "M", "name": what, "pid": RUN, "tid": row, "args": {"name": name}}
