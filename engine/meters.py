"""What a run measures about itself while it runs: bounded samples and the loop's lag.

Rule: constant memory however long the run. A `Reservoir` keeps a uniform random part of what it
saw, so its percentiles are estimates once it has seen more than `size` values.
"""

import asyncio
import random
import time


class Reservoir:
    """A uniform sample of a stream of numbers, at most `size` of them."""

    def __init__(self, size: int = 8192, seed: int = 0) -> None:
        self._size = size
        self._random = random.Random(seed)
        self._kept: list[float] = []
        self.seen = 0

    def add(self, value: float) -> None:
        self.seen += 1
        if len(self._kept) < self._size:
            self._kept.append(value)
            return
        at = self._random.randrange(self.seen)
        if at < self._size:
            self._kept[at] = value

    def percentile(self, p: float) -> float | None:
        """The value below which a share `p` in [0, 1] lies; None when nothing was seen."""
        if not self._kept:
            return None
        ordered = sorted(self._kept)
        return ordered[min(len(ordered) - 1, int(p * len(ordered)))]

    def __repr__(self) -> str:
        return f"<Reservoir seen={self.seen} kept={len(self._kept)}/{self._size}>"


class Meters:
    """The measurements behind `summary.json`."""

    def __init__(self) -> None:
        self.start_s = Reservoir()
        self.command_s = Reservoir()
        self.loop_lag_s = Reservoir()
        self.started = 0
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

    async def watch_loop(self, every_s: float = 0.02) -> None:
        """Measure how late the loop wakes us, until cancelled."""
        while True:
            asked = time.monotonic()
            await asyncio.sleep(every_s)
            self.loop_lag_s.add(max(0.0, time.monotonic() - asked - every_s))
