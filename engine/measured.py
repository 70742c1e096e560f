"""The meters of several engine processes as one.

Rule: counts are sums, samples are put together in proportion to what each process has seen, and the
loop's lag is that of the worst, because an average hides the one that hangs.
"""

import random
from collections import Counter
from collections.abc import Sequence

from headrace.engine.meters import Meters, Reservoir
from headrace.types import Record


class Sampled(Record, frozen=True, kw_only=True):
    """What a `Reservoir` has kept."""

    seen: int
    total: float
    kept: tuple[float, ...]


class Measured(Record, frozen=True, kw_only=True):
    """The samples of one process's `Meters`."""

    start_s: Sampled
    command_s: Sampled
    loop_lag_s: Sampled
    phase_s: dict[str, Sampled]


class Counts(Record, frozen=True, kw_only=True):
    """The sums of one process's `Meters`."""

    turns: int
    sampled_tokens: int
    started: int
    outcomes: dict[str, int]
    cpu_s: float


def measured(meters: Meters) -> Measured:
    """To be sent."""
    return Measured(
        start_s=_sampled(meters.start_s),
        command_s=_sampled(meters.command_s),
        loop_lag_s=_sampled(meters.loop_lag_s),
        phase_s={phase: _sampled(seen) for phase, seen in meters.phase_s.items()},
    )


def together(samples: Sequence[Sampled]) -> Reservoir:
    """One reservoir, as if it had seen what all have."""
    found = Reservoir()
    seen = sum(one.seen for one in samples)
    size = min(found.size, sum(len(one.kept) for one in samples))
    whole = all(one.seen == len(one.kept) for one in samples) and seen <= found.size
    kept: list[float] = []
    for one in samples:
        part = len(one.kept) if whole else min(len(one.kept), size * one.seen // max(1, seen))
        kept += random.Random(one.seen).sample(one.kept, part)
    found.restore(kept, seen=seen, total=sum(one.total for one in samples))
    return found


class Merged(Meters):
    """The meters of a run of several processes. Its own loop's lag counts as one of theirs."""

    def __init__(self) -> None:
        super().__init__()
        self._counts: dict[int, Counts] = {}
        self._samples: dict[int, Measured] = {}
        self._starts: dict[int, float] = {}
        self._lags: dict[int, float] = {}

    def count(self, worker: int, counts: Counts) -> None:
        """What a process has come to so far."""
        self._counts[worker] = counts
        every = self._counts.values()
        self.turns = sum(one.turns for one in every)
        self.sampled_tokens = sum(one.sampled_tokens for one in every)
        self.started = sum(one.started for one in every)
        self.outcomes = Counter()
        for one in every:
            self.outcomes.update(one.outcomes)

    def recent(self, worker: int, start_s: float | None, lag_s: float) -> None:
        """Its median start and p99 lag of the last second."""
        if start_s is not None:
            self._starts[worker] = start_s
        self._lags[worker] = max(lag_s, self._lags.get(worker, 0.0))

    def sample(self, worker: int, samples: Measured) -> None:
        """Everything it has sampled so far."""
        self._samples[worker] = samples
        every = list(self._samples.values())
        self.start_s = together([one.start_s for one in every])
        self.command_s = together([one.command_s for one in every])
        names = dict.fromkeys(name for one in every for name in one.phase_s)
        self.phase_s = {
            name: together([one.phase_s[name] for one in every if name in one.phase_s])
            for name in names
        }

    @property
    def cpu_s(self) -> float:
        """Of all processes."""
        return super().cpu_s + sum(one.cpu_s for one in self._counts.values())

    def take_recent(self) -> tuple[float | None, float]:
        """The middle of their medians, and the worst lag."""
        own_s = super().take_recent()[1]
        starts, lags = sorted(self._starts.values()), [own_s, *self._lags.values()]
        self._starts.clear()
        self._lags.clear()
        return (starts[len(starts) // 2] if starts else None), max(lags)

    def settle(self) -> None:
        """At the end: the lag is that of the worst loop, this process's included."""
        lags = [self.loop_lag_s, *(together([one.loop_lag_s]) for one in self._samples.values())]
        self.loop_lag_s = max(lags, key=lambda one: one.percentile(0.99) or 0.0)


def _sampled(seen: Reservoir) -> Sampled:
    return Sampled(seen=seen.seen, total=seen.total, kept=seen.kept)
