"""Rates and their uncertainty: pass@k, intervals, and the test of a paired difference. Pure.

Rules: a task is the unit that is drawn, because attempts at one task resemble each other; the same
numbers and seed give the same result in whatever order they come. No numpy: the cost is that of
counting a sample.
"""

import math
import random
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import TypeVar

Key = TypeVar("Key", float, tuple[int, int])

Z95 = 1.959963984540054
RESAMPLES = 2000
EXACT_STEPS = 2_000_000
"""What an exact test may cost before it is replaced by drawn signs."""
DRAWN_SIGNS = 20_000


def pass_at_k(attempts: int, passed: int, k: int) -> float:
    """Unbiased chance that at least one of k attempts passes: 1 - C(n - c, k) / C(n, k).

    A product of ratios, each in [0, 1], so that nothing overflows or cancels.
    """
    if not 1 <= k <= attempts or not 0 <= passed <= attempts:
        raise ValueError(f"expected 1 <= k <= n and 0 <= c <= n, found {k=} {attempts=} {passed=}")
    if attempts - passed < k:
        return 1.0
    missed = 1.0
    for i in range(k):
        missed *= (attempts - passed - i) / (attempts - i)
    return 1.0 - missed


def mean(values: Sequence[float]) -> float:
    """The mean, the same in any order."""
    return math.fsum(values) / len(values)


def wilson(rate: float, n: int, z: float = Z95) -> tuple[float, float]:
    """Wilson's score interval of a rate over n trials; (0, 1) when there were none."""
    if n == 0:
        return 0.0, 1.0
    square = z * z / n
    centre = (rate + square / 2) / (1 + square)
    spread = z / (1 + square) * math.sqrt(rate * (1 - rate) / n + square / (4 * n))
    low = 0.0 if rate <= 0 else max(0.0, centre - spread)
    high = 1.0 if rate >= 1 else min(1.0, centre + spread)
    return min(low, rate), max(high, rate)


def bootstrap(
    values: Sequence[float], *, seed: int, resamples: int = RESAMPLES
) -> tuple[float, float]:
    """95 % percentile interval of the mean, resampling the values (one for each task)."""
    worth = {value: (value,) for value in values}
    return bootstrap_many(values, worth, seed=seed, resamples=resamples)[0]


def bootstrap_many(
    drawn: Sequence[Key],
    worth: Mapping[Key, Sequence[float]],
    *,
    seed: int,
    resamples: int = RESAMPLES,
) -> list[tuple[float, float]]:
    """As `bootstrap`, for several means over the same draws.

    `drawn` has one key for each task and `worth` a key's values: tasks of the same counts share a
    key, so that a resample costs one counting and not one sum for each mean.
    """
    chance, n = random.Random(seed), len(drawn)
    ordered = sorted(drawn)
    widths = range(len(worth[ordered[0]]))
    means: list[list[float]] = [[] for _ in widths]
    for _ in range(resamples):
        counted = sorted(Counter(chance.choices(ordered, k=n)).items())
        for i in widths:
            means[i].append(math.fsum(worth[key][i] * times for key, times in counted) / n)
    cut = int(resamples * 0.025)
    out: list[tuple[float, float]] = []
    for i in widths:
        means[i].sort()
        value = math.fsum(worth[key][i] for key in ordered) / n
        # The mean lies outside only by rounding, or where hardly anything was drawn.
        low, high = means[i][cut], means[i][resamples - 1 - cut]
        out.append((min(low, value), max(high, value)))
    return out


def sign_flip(differences: Sequence[float], *, seed: int) -> tuple[float, str]:
    """How often chance alone gives so large a mean difference; with the method, for the reader.

    Two-sided: under no difference each task's sign is a coin. Exact where the differences are
    few enough steps of a common unit (for one attempt a task this is McNemar's exact test), else
    over drawn signs.
    """
    moved = sorted(abs(d) for d in differences if d)
    if not moved:
        return 1.0, "exact"
    units = _units(moved)
    seen = abs(math.fsum(differences))
    if units is not None and sum(units) * len(units) <= EXACT_STEPS:
        return _exact(units, round(seen / (moved[0] / units[0]))), "exact"
    chance = random.Random(seed)
    hits = 0
    for _ in range(DRAWN_SIGNS):
        total = math.fsum(d if chance.getrandbits(1) else -d for d in moved)
        hits += abs(total) >= seen - 1e-12
    return (hits + 1) / (DRAWN_SIGNS + 1), "drawn"


def _units(moved: Sequence[float], finest: int = 720_720) -> list[int] | None:
    """The differences in the largest whole steps that they have in common, or None.

    Every difference of two rates of up to 16 attempts is in steps of 1 / finest.
    """
    steps = [round(d * finest) for d in moved]
    if any(abs(s - d * finest) > 1e-6 for s, d in zip(steps, moved, strict=True)):
        return None
    common = math.gcd(*steps)
    return [s // common for s in steps]


def _exact(units: Sequence[int], seen: int) -> float:
    """Share of all signs whose sum is at least `seen` in size."""
    ways = {0: 1}
    for unit in units:
        after: dict[int, int] = {}
        for total, count in ways.items():
            for sum_ in (total + unit, total - unit):
                after[sum_] = after.get(sum_, 0) + count
        ways = after
    hits = sum(count for total, count in ways.items() if abs(total) >= seen)
    return hits / (1 << len(units))
