"""What a set of pairs came to, in numbers: what its report shows.

Rule: data only, and bounded. Lists of numbers are of the same pairs in the same order, at most
`KEPT` of them, evenly taken; the counts are of all.
"""

from headrace.preferences.made import Made
from headrace.types import Record

KEPT = 100_000
"""Pairs whose numbers are kept."""


class Outcomes(Record, frozen=True, kw_only=True):
    """How many groups have which outcomes; a win is a reward of 1 or more."""

    no_win: int = 0
    no_loss: int = 0
    mixed: int = 0
    """Both."""
    uncounted: int = 0
    """No attempt that counts."""


class SideTally(Record, frozen=True, kw_only=True):
    """The chosen ones of the pairs, or the rejected ones; one that is in two pairs is here twice.

    The i-th number of every list, of both sides, is of the same pair.
    """

    turns: tuple[int, ...] = ()
    sampled_tokens: tuple[int, ...] = ()
    scores: tuple[float, ...] = ()
    """What the rules compared."""
    rewards: tuple[float, ...] = ()
    """0 where the verifier left none, as everywhere."""


class PairsTally(Record, frozen=True, kw_only=True):
    """Everything that the report of a set of pairs shows."""

    made: Made
    outcomes: Outcomes
    groups: int
    """Attempts at one task by one policy; at one task by any, where policies are mixed."""
    pairs_by_rule: dict[str, int]
    """Every rule, those without a pair too."""
    left_out_by_rule: dict[str, dict[str, int]]
    """Attempts, pairs or groups, by reason (see `pairing.REASONS`)."""
    chosen: SideTally
    rejected: SideTally
    margins: tuple[float, ...]
    divergence_turns: tuple[int, ...]
