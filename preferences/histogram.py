"""Numbers counted into bins that several lists share, so that their bars can be compared.

Rule: every number is in exactly one bin, so the counts of a list sum to its length. Pure.
"""

import math
from bisect import bisect_right
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence

from headrace.types import Record

BINS = 24
"""At most so many, and one for what lies far beyond the others."""
FAR = 2.0
"""The largest number is far when it is so many times the 99th percentile."""


class Histogram(Record, frozen=True, kw_only=True):
    """Counts by bin and by list; without bins where there is no number."""

    edges: tuple[float, ...] = ()
    """Ascending, one more than bins. A bin holds its lower edge; the last one its upper too."""
    beyond: bool = False
    """The last bin is wider than the others: everything that lies far out."""
    whole: bool = False
    """The numbers are whole: a bin of width 1 holds one of them."""
    counts: dict[str, tuple[int, ...]]
    """By name of the list."""


def histogram(
    lists: Mapping[str, Sequence[float]], *, whole: bool = False, unit: bool = False
) -> Histogram:
    """Count several lists. `whole`: of whole numbers. `unit`: rates, shown from 0 to 1."""
    counted = {name: Counter(values) for name, values in lists.items()}
    every: Counter[float] = Counter()
    for one in counted.values():
        every.update(one)
    if not every:
        return Histogram(whole=whole, counts=dict.fromkeys(lists, ()))
    edges, beyond = _edges(every, whole=whole, unit=unit)
    bins = {value: _bin(edges, value) for value in every}
    counts = {name: _sums(one, bins, len(edges) - 1) for name, one in counted.items()}
    return Histogram(edges=edges, beyond=beyond, whole=whole, counts=counts)


def step(reach: float, most: int) -> float:
    """The smallest of 1, 2 and 5 times a power of ten that covers `reach` in `most` steps."""
    least = reach / most
    power = 10.0 ** math.floor(math.log10(least))
    # The quotient of two floats may lie a hair above the step it is.
    return next((n * power for n in (1, 2, 5) if least <= n * power * (1 + 1e-9)), 10 * power)


def multiples(width: float, first: int, count: int) -> Iterator[float]:
    """Multiples of `width` without the dust of binary fractions: 0.15, not 0.15000000000000002."""
    for i in range(first, first + count):
        yield round(i * width, 12)


def _edges(
    every: Mapping[float, int], *, whole: bool, unit: bool
) -> tuple[tuple[float, ...], bool]:
    """Edges that cover every number, and whether the last bin is a far one."""
    low, largest = min(every), max(every)
    common = _percentile(every, 0.99)
    far = largest > FAR * common > 0 and largest - low > BINS
    top = common if far else largest
    if unit:
        low, top = min(0.0, low), max(1.0, top)
    # Whole numbers: the bin of the largest ends behind it.
    reach = top - low + (1 if whole else 0)
    width = step(reach or 1.0, BINS if whole or not unit else 20)
    width = max(1.0, width) if whole else width
    first = math.floor(low / width + 1e-9)
    count = max(1, math.ceil((top + (1 if whole else 0)) / width - 1e-9) - first)
    edges = tuple(multiples(width, first, count + 1))
    return ((*edges, float(largest)), True) if far and largest > edges[-1] else (edges, False)


def _percentile(every: Mapping[float, int], share: float) -> float:
    left = share * sum(every.values())
    for value in sorted(every):
        left -= every[value]
        if left <= 0:
            return value
    return max(every)


def _bin(edges: Sequence[float], value: float) -> int:
    return min(max(bisect_right(edges, value) - 1, 0), len(edges) - 2)


def _sums(one: Counter[float], bins: Mapping[float, int], count: int) -> tuple[int, ...]:
    sums = [0] * count
    for value, n in one.items():
        sums[bins[value]] += n
    return tuple(sums)
