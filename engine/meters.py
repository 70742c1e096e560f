"""What a run measures about itself while it runs: bounded samples and the loop's lag.

Rule: constant memory however long the run. A `Reservoir` keeps a uniform random part of what it
saw, so its percentiles are estimates once it has seen more than `size` values.
"""

import asyncio
import random
import time
from array import array
from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

RECENT = 1000
"""Values kept between two looks of whoever steers."""
PHASES = ("queue", "image", "start", "policy", "command", "wait", "verify", "store")
"""Of an episode, in order. `queue` and `store` are outside the time it is live."""


PHASE_SIZE = 2048
"""Values kept of a phase: all phases are sorted each second, on the loop."""


class Phase(NamedTuple):
    """One phase of the episodes that are stored."""

    p50_s: float
    p99_s: float
    episodes: int = 0
    total_s: float = 0.0
    """Of all of them."""


class Reservoir:
    """A uniform sample of a stream of numbers, at most `size` of them."""

    def __init__(self, size: int = 8192, seed: int = 0) -> None:
        self.size = size
        self._random = random.Random(seed)
        self._kept = array("d")
        self.seen = 0
        self.total = 0.0

    def add(self, value: float) -> None:
        self.seen += 1
        self.total += value
        if len(self._kept) < self.size:
            self._kept.append(value)
            return
        at = self._random.randrange(self.seen)
        if at < self.size:
            self._kept[at] = value

    @property
    def kept(self) -> tuple[float, ...]:
        """The sample, in no order."""
        return tuple(self._kept)

    def restore(self, kept: Sequence[float], *, seen: int, total: float) -> None:
        """Go on from a sample of another one: at most `size` of `seen` values."""
        self._kept, self.seen, self.total = array("d", kept), seen, total

    def percentile(self, p: float) -> float | None:
        """The value below which a share `p` in [0, 1] lies; None when nothing was seen."""
        found = self.percentiles(p)
        return found[0] if found else None

    def percentiles(self, *shares: float) -> list[float]:
        """Several at the price of one; empty when nothing was seen."""
        ordered = sorted(self._kept)
        return [ordered[min(len(ordered) - 1, int(p * len(ordered)))] for p in shares if ordered]

    def __repr__(self) -> str:
        return f"<Reservoir seen={self.seen} kept={len(self._kept)}/{self.size}>"


class Meters:
    """The measurements behind `summary.json`."""

    def __init__(self) -> None:
        self.start_s = Reservoir()
        self.command_s = Reservoir()
        self.loop_lag_s = Reservoir()
        self.phase_s: dict[str, Reservoir] = {}
        """Seconds by phase of an episode; see `Timing`, and `store_s`."""
        self._recent_starts: list[float] = []
        self._recent_lags: list[float] = []
        self.started = 0
        self.outcomes: Counter[str] = Counter()
        """Durable episodes: `passed`, `failed` and `infrastructure`."""
        self.turns = 0
        self.sampled_tokens = 0
        self._wall = time.monotonic()
        self._cpu = time.process_time()

    @property
    def wall_s(self) -> float:
        return time.monotonic() - self._wall

    @property
    def cpu_s(self) -> float:
        """Processor seconds of this process, all threads."""
        return time.process_time() - self._cpu

    def add_start(self, seconds: float) -> None:
        """A sandbox was opened and answered."""
        self.started += 1
        self.start_s.add(seconds)
        if len(self._recent_starts) < RECENT:
            self._recent_starts.append(seconds)

    def add_phases(self, **seconds: float) -> None:
        """Of one episode, by phase."""
        for phase, value in seconds.items():
            if phase not in self.phase_s:
                self.phase_s[phase] = Reservoir(PHASE_SIZE)
            self.phase_s[phase].add(value)

    def phases(self) -> dict[str, Phase]:
        """Each phase that was seen."""
        found = {}
        for phase, seen in self.phase_s.items():
            p50_s, p99_s = seen.percentiles(0.5, 0.99) or (0.0, 0.0)
            found[phase] = Phase(p50_s, p99_s, seen.seen, seen.total)
        return found

    def take_recent(self) -> tuple[float | None, float]:
        """Median start and p99 lag since the last call."""
        starts, lags = sorted(self._recent_starts), sorted(self._recent_lags)
        self._recent_starts.clear()
        self._recent_lags.clear()
        median = starts[len(starts) // 2] if starts else None
        return median, lags[int(0.99 * (len(lags) - 1))] if lags else 0.0

    async def watch_loop(self, every_s: float = 0.02) -> None:
        """Measure how late the loop wakes us, until cancelled."""
        while True:
            asked = time.monotonic()
            await asyncio.sleep(every_s)
            lag_s = max(0.0, time.monotonic() - asked - every_s)
            self.loop_lag_s.add(lag_s)
            if len(self._recent_lags) < RECENT:
                self._recent_lags.append(lag_s)
