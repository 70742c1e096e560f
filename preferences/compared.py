"""One measure of the chosen attempts of all pairs against that of the rejected ones. Pure.

Rule: a leaning is over the pairs whose two sides differ, and comes with its interval. Pairs of one
task share attempts, and the interval takes them as independent: the true one is wider.
"""

import statistics
from collections.abc import Sequence

from headrace.engine.estimates import wilson
from headrace.engine.evaluate import Spread, spread
from headrace.preferences.histogram import Histogram, histogram
from headrace.types import Record


class Leaning(Record, frozen=True, kw_only=True):
    """Of the pairs whose sides differ, the share in which the chosen one has less."""

    share: float
    low: float
    high: float
    """Wilson's 95 % interval, as if each pair were independent."""
    pairs: int
    """That differ."""


class Compared(Record, frozen=True, kw_only=True):
    """A measure of both sides."""

    chosen: Spread | None
    """Over pairs: an attempt in two pairs is in it twice. None without a number."""
    rejected: Spread | None
    less: int
    """Pairs in which the chosen one has less."""
    same: int
    more: int
    leaning: Leaning | None
    """None where no pair differs."""
    difference: float | None
    """The median over pairs of chosen less rejected."""
    histogram: Histogram

    @property
    def pairs(self) -> int:
        """With a number on both sides."""
        return self.less + self.same + self.more

    def share(self, pairs: int) -> float:
        """Some of the pairs as a share of all; the shares of less, same and more sum to 1."""
        return pairs / self.pairs if self.pairs else 0.0


def compared(
    chosen: Sequence[float], rejected: Sequence[float], *, whole: bool = False
) -> Compared:
    """Both sides in the order of the pairs. `whole`: of whole numbers, not of rates.

    Lists of unequal length, where some have no number, are not paired: only their spreads are told.
    """
    both = list(zip(chosen, rejected, strict=True)) if len(chosen) == len(rejected) else []
    less = sum(c < r for c, r in both)
    more = sum(c > r for c, r in both)
    return Compared(
        chosen=spread(chosen),
        rejected=spread(rejected),
        less=less,
        same=len(both) - less - more,
        more=more,
        leaning=_leaning(less, less + more),
        difference=statistics.median(c - r for c, r in both) if both else None,
        histogram=histogram({"chosen": chosen, "rejected": rejected}, whole=whole, unit=not whole),
    )


def _leaning(less: int, differ: int) -> Leaning | None:
    if not differ:
        return None
    low, high = wilson(less / differ, differ)
    return Leaning(share=less / differ, low=low, high=high, pairs=differ)
