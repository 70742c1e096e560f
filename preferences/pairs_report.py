"""What a set of pairs is like, before anyone trains on it: winners against losers. Pure.

Rule: what a reader must know is said before any number. How it looks is in `pairs_page.py`,
`pairs_markdown.py` and `pairs_tables.py`.
"""

import random
from collections.abc import Iterator, Sequence

from headrace.engine.evaluate import Spread, spread
from headrace.preferences.compared import Compared, compared
from headrace.preferences.histogram import Histogram, histogram
from headrace.preferences.made import Made
from headrace.preferences.pairs_notices import notices
from headrace.preferences.tally import Outcomes, PairsTally
from headrace.types import Record

PAIRS_REPORT_SCHEMA = 1
POINTS = 1000
"""Pairs that are points in the plot of tokens."""


class PairsReport(Record, frozen=True, kw_only=True):
    """`pairs-report.json`."""

    schema: int = PAIRS_REPORT_SCHEMA
    notices: tuple[str, ...]
    """What to read first, as sentences."""
    made: Made
    pairs: int
    measured: int
    """Pairs that the measures are over: all, or evenly taken ones of very many."""
    groups: int
    outcomes: Outcomes
    pairs_by_rule: dict[str, int]
    left_out_by_rule: dict[str, dict[str, int]]
    turns: Compared
    sampled_tokens: Compared
    reward: Compared
    score: Compared
    """What the rules compared."""
    margin: Spread | None
    margins: Histogram
    parting: Spread | None
    """Turns that both sides share before they part."""
    partings: Histogram
    points: tuple[tuple[int, int], ...]
    """Sampled tokens of the chosen and of the rejected one, of pairs drawn by a fixed seed; empty
    where no policy sampled tokens."""


def pairs_report(tally: PairsTally) -> PairsReport:
    """Every number that is shown of a set of pairs."""
    chosen, rejected = tally.chosen, tally.rejected
    turns = compared(chosen.turns, rejected.turns, whole=True)
    tokens = compared(chosen.sampled_tokens, rejected.sampled_tokens, whole=True)
    reward = compared(chosen.rewards, rejected.rewards)
    return PairsReport(
        notices=tuple(notices(tally, turns, tokens, reward)),
        made=tally.made,
        pairs=sum(tally.pairs_by_rule.values()),
        measured=len(chosen.turns),
        groups=tally.groups,
        outcomes=tally.outcomes,
        pairs_by_rule=tally.pairs_by_rule,
        left_out_by_rule=tally.left_out_by_rule,
        turns=turns,
        sampled_tokens=tokens,
        reward=reward,
        score=compared(chosen.scores, rejected.scores),
        margin=spread(tally.margins),
        margins=histogram({"pairs": tally.margins}, unit=True),
        parting=spread(tally.divergence_turns),
        partings=histogram({"pairs": tally.divergence_turns}, whole=True),
        points=_points(chosen.sampled_tokens, rejected.sampled_tokens),
    )


def measures(report: PairsReport) -> Iterator[tuple[str, Compared]]:
    """What is compared, by name; tokens only where a policy sampled."""
    yield "turns", report.turns
    if report.points:
        yield "sampled tokens", report.sampled_tokens
    yield "reward", report.reward
    yield "score", report.score


def _points(chosen: Sequence[int], rejected: Sequence[int]) -> tuple[tuple[int, int], ...]:
    if not any(chosen) and not any(rejected):
        return ()
    every = range(len(chosen))
    taken = sorted(random.Random(0).sample(every, POINTS)) if len(every) > POINTS else every
    return tuple((chosen[i], rejected[i]) for i in taken)
