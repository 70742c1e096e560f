"""Rates and their uncertainty: pass@k, intervals, and the test of a paired difference. Pure.

Rules: a task is the unit that is drawn, because attempts at one task resemble each other; the same
numbers and seed give the same result in whatever order they come. No numpy: the cost is that of
counting a sample.
"""

import math
import random
from collections import Counter
from collections.abc import Mapping, Sequence
from operator import mul
from typing import TypeVar

Key = TypeVar("Key", float, tuple[int, int])

Z95 = 1.959963984540054
RESAMPLES = 2000
LEAST_RESAMPLES, MOST_DRAWS = 500, 1_000_000
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
    chance, n = random.Random(seed), len(values)
    ordered = sorted(values)
    means = [math.fsum(chance.choices(ordered, k=n)) / n for _ in range(_times(resamples, n))]
    return _middle(means, mean(ordered))


def bootstrap_many(
    drawn: Sequence[Key],
    worth: Mapping[Key, Sequence[float]],
    *,
    seed: int,
    resamples: int = RESAMPLES,
) -> list[tuple[float, float]]:
    """As `bootstrap`, for several means over the same draws.

    `drawn` has one key for each task and `worth` a key's values: tasks of the same counts share a
    key, so that a resample is drawn and counted once for all means.
    """
    chance, n = random.Random(seed), len(drawn)
    keys = sorted(worth)
    number = {key: i for i, key in enumerate(keys)}
    ordered = sorted(number[key] for key in drawn)
    columns = list(zip(*(worth[key] for key in keys), strict=True))
    means: list[list[float]] = [[] for _ in columns]
    for _ in range(_times(resamples, n)):
        counted = Counter(chance.choices(ordered, k=n))
        times = [counted[i] for i in range(len(keys))]
        for column, found in zip(columns, means, strict=True):
            found.append(sum(map(mul, column, times)) / n)
    values = (mean([column[i] for i in ordered]) for column in columns)
    return [_middle(found, value) for found, value in zip(means, values, strict=True)]


def _times(resamples: int, n: int) -> int:
    """Fewer resamples where each draws thousands of tasks: their mean hardly moves."""
    return min(resamples, max(LEAST_RESAMPLES, MOST_DRAWS // n))


def _middle(means: list[float], value: float) -> tuple[float, float]:
    """The middle 95 %, with the mean itself, which lies outside only by rounding or few draws."""
    means.sort()
    cut = int(len(means) * 0.025)
    return min(means[cut], value), max(means[-1 - cut], value)


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
