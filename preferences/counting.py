"""Counts pairs while they are made, and what was left out, for `PairsTally`.

Rule: it keeps numbers, never a record; its lists grow by some bytes a pair.
"""

from array import array
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from headrace.preferences.made import Made
from headrace.preferences.pair import Pair, Side
from headrace.preferences.pairing import REASONS
from headrace.preferences.rules import Rule
from headrace.preferences.tally import KEPT, Outcomes, PairsTally, SideTally


class Counting:
    """The pairs of one set so far."""

    def __init__(self, rules: Sequence[Rule]) -> None:
        self.rows: Counter[str] = Counter()
        """Written, by split."""
        self.pairs: dict[str, int] = {rule.name: 0 for rule in rules}
        self.left_out: dict[str, Counter[str]] = {rule.name: Counter() for rule in rules}
        self._chosen = _Sides()
        self._rejected = _Sides()
        self._margins = array("d")
        self._turns = array("q")

    def add(self, pair: Pair, split: str, rows: int) -> None:
        """A pair that became rows."""
        self.rows[split] += rows
        self.pairs[pair.rule] += 1
        self._chosen.add(pair.chosen)
        self._rejected.add(pair.rejected)
        self._margins.append(pair.margin)
        self._turns.append(pair.divergence.turn)

    def tally(self, made: Made, outcomes: Outcomes, groups: int) -> PairsTally:
        """All of it."""
        return PairsTally(
            made=made,
            outcomes=outcomes,
            groups=groups,
            pairs_by_rule=dict(self.pairs),
            left_out_by_rule={name: dict(sorted(c.items())) for name, c in self.left_out.items()},
            chosen=self._chosen.tally(),
            rejected=self._rejected.tally(),
            margins=evenly(self._margins),
            divergence_turns=evenly(self._turns),
        )


class _Sides:
    def __init__(self) -> None:
        self._turns, self._sampled = array("q"), array("q")
        self._scores, self._rewards = array("d"), array("d")

    def add(self, side: Side) -> None:
        self._turns.append(side.turns)
        self._sampled.append(side.sampled_tokens)
        self._scores.append(side.score)
        self._rewards.append(side.reward or 0.0)

    def tally(self) -> SideTally:
        return SideTally(
            turns=evenly(self._turns),
            sampled_tokens=evenly(self._sampled),
            scores=evenly(self._scores),
            rewards=evenly(self._rewards),
        )


def evenly(numbers: Sequence[Any], most: int = KEPT) -> tuple[Any, ...]:
    """At most so many of them; of lists of one length, those at the same places."""
    if len(numbers) <= most:
        return tuple(numbers)
    return tuple(numbers[i * len(numbers) // most] for i in range(most))


def attempts_left_out(left_out: Mapping[str, Mapping[str, int]]) -> dict[str, int]:
    """Attempts by reason; where rules differ, what the strictest left out."""
    found: dict[str, int] = {}
    for counts in left_out.values():
        for reason, count in counts.items():
            if REASONS[reason].of == "attempts":
                found[reason] = max(found.get(reason, 0), count)
    return dict(sorted(found.items()))
