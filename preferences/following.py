"""The pairs of a run while it goes on, for whoever consumes them as they come.

Rule: what comes is, when the run has ended, what `headrace pairs` makes of it with the same rules;
a group's pairs come as soon as that is certain (`pending`). Reading is in a thread, memory holds
a few blocks and the attempts of groups that wait. Nothing is written, and the run knows of nobody
who follows it.

A run that is resumed after its end is another one to follow: attempts that had failed are then
tried again, and what was certain is certain no more.
"""

import asyncio
import os
import time
from collections.abc import AsyncGenerator, Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Final, TypeVar

from headrace.aio import in_thread, run_shielded
from headrace.engine.reader import OnDamage
from headrace.engine.run_folder import RUN_FILE, RunManifest
from headrace.engine.tail import Tail, session
from headrace.preferences.attempt import attempt
from headrace.preferences.pair import Pair, Pairing
from headrace.preferences.pending import Found, Pending
from headrace.preferences.rules import Rule
from headrace.preferences.settling import settle, where
from headrace.preferences.source import Source

T = TypeVar("T")

DEFAULT_RULES: Final = (Rule(kind="margin"),)
"""As `headrace pairs` without `--rule`."""


async def follow(
    run: Path | str,
    rules: Sequence[Rule] = DEFAULT_RULES,
    *,
    poll_s: float = 0.5,
    idle_timeout_s: float | None = None,
    until_end: bool = True,
    begin_s: float = 0.0,
    on_damage: OnDamage | None = None,
) -> AsyncGenerator[Pairing, None]:
    """Every pair of a run, as soon as it is certain; ends when the run has ended.

    `poll_s`: seconds between two looks at a run that brings nothing new. `idle_timeout_s`: raises
    `TimeoutError` when it brings nothing for so long. `until_end` False: its end is not asked for,
    so groups that are not complete yield nothing; the idle timeout or the caller ends it.
    `begin_s`: how long to wait for a run that has not begun. Raises `RunFolderError` for what is
    no run, and at the first damage unless `on_damage` is told of it.

    Holds a file open between pairs: `async with aclosing(follow(run)) as pairs` closes it when the
    caller stops early. Cancelling waits for the read that is under way.
    """
    path = Path(run)
    await _begun(path, begin_s, poll_s)
    source = await in_thread(Source, [path])
    with Tail(path, on_damage=on_damage) as tail:
        follower = _Follower(path, source, tail, rules, until_end=until_end)
        heard_at = time.monotonic()
        while True:
            goes_on = await _read(follower.begin_round)
            while (found := await _read(follower.read)) is not None:
                for one in found:
                    pairing = await _read(follower.settled, one)
                    if pairing is not None:
                        yield pairing
                heard_at = time.monotonic()
            if until_end and not goes_on:
                break
            idle_s = time.monotonic() - heard_at
            if idle_timeout_s is not None and idle_s >= idle_timeout_s:
                raise TimeoutError(
                    f"{path}: expected a further episode within {idle_timeout_s:g} s, found none;"
                    f" `headrace top {path}` shows what the run is doing"
                )
            left_s = poll_s if idle_timeout_s is None else idle_timeout_s - idle_s
            await asyncio.sleep(min(poll_s, left_s))
        for one in follower.finish():
            pairing = await _read(follower.settled, one)
            if pairing is not None:
                yield pairing


class _Follower:
    """A run as it is read. Blocking, used by one thread at a time."""

    def __init__(
        self, path: Path, source: Source, tail: Tail, rules: Sequence[Rule], *, until_end: bool
    ) -> None:
        self._path = path
        self._source = source
        self._tail = tail
        self._pending = Pending(rules, _planned(source.manifests[0]))
        self._runs = tuple(manifest.run for manifest in source.manifests)
        self._until_end = until_end
        self._seen: int | None = None
        """The session when this round began."""
        self._certain: int | None = None
        """The session of which everything is that is read from now on, while it lasts."""

    def begin_round(self) -> bool:
        """Look who works on the run, before what is new is read; whether anybody does."""
        now = session(self._path)
        # All that older sessions stored was there, and has been read since.
        self._certain = self._seen if now == self._seen else None
        self._seen = now
        return now is not None

    def read(self) -> list[Found] | None:
        """What the next records make certain; None when there are none for now."""
        records = self._tail.read()
        if not records:
            return None
        found: list[Found] = []
        spent = self._no_try_is_left()
        for place, episode in records:
            self._source.refuse_another(episode, self._path)
            one = attempt(episode, 0, place)
            found += self._pending.offer(one, final=one.counted or spent)
        return found

    def _no_try_is_left(self) -> bool:
        """For an attempt that failed and was read just now: stored as such it has none in its
        session, and that is the one to follow, unless the end is not asked for.
        """
        lasts = self._certain is not None and session(self._path) == self._certain
        return lasts and self._until_end

    def finish(self) -> Iterator[Found]:
        """What the end of the run makes certain."""
        return self._pending.finish()

    def settled(self, found: Found) -> Pairing | None:
        """The pair with its records; None if the records say that it is none."""
        two = found.proposed
        chosen, rejected = self._source.fetch(two.chosen), self._source.fetch(two.rejected)
        at = where(chosen, rejected)
        pair = settle(two, found.rule, at, runs=self._runs)
        if not isinstance(pair, Pair):
            return None
        for rule in found.before:
            earlier = settle(two, rule, at, runs=self._runs)
            if isinstance(earlier, Pair) and earlier.start == pair.start:
                return None
        return Pairing(pair, chosen, rejected)


async def _read(call: Callable[..., T], *arguments: Any) -> T:
    """In a thread, and to its end: the tail is not closed while a thread reads from it."""
    return await run_shielded(in_thread(call, *arguments))


def _planned(manifest: RunManifest) -> int | None:
    """Attempts at each task; None for a run that was imported."""
    attempts = manifest.config.get("attempts")
    return attempts if isinstance(attempts, int) else None


async def _begun(path: Path, begin_s: float, poll_s: float) -> None:
    until = time.monotonic() + begin_s
    while True:
        there = await in_thread(os.path.exists, path / RUN_FILE)  # no error where it is forbidden
        left_s = until - time.monotonic()
        if there or left_s <= 0:
            return
        await asyncio.sleep(min(poll_s, left_s))
