"""What a selection came to, as renderables for a terminal. It prints nothing."""

from collections.abc import Iterator
from typing import Final

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from headrace.engine.evaluate import Spread
from headrace.engine.evaluation_page import number
from headrace.engine.evaluation_tables import plain_table
from headrace.preferences.selection import SelectionTally

MEANING: Final = {
    "infrastructure": "failed by the infrastructure, or cancelled",
    "not_solved": "no success, and no informative failure",
    "empty": "the policy never said a word",
    "malformed": "turns that could not be read as an action",
    "truncated": "ended by budget or context, or cut inside an answer",
    "looping": "the same actions over and over",
    "refusal": "the policy refused",
    "test_access": "a command names the tests or the solution",
    "false_success": "said to be done, and is no success",
    "hinted": "was shown a hint that tokens cannot be rid of",
    "no_tokens": "has no token stream",
    "overlap": "has words of a benchmark",
    "duplicate": "much the same as one that is kept",
    "several_contexts": "the format holds one context only",
    "not_held": "the format cannot hold it",
}
"""Each count in a few words; `docs/howto/sft-data.md` says them exactly."""


def render_selection(tally: SelectionTally) -> RenderableType:
    """Attempts, filters, splits and scores."""
    return Group(*_parts(tally))


def _parts(tally: SelectionTally) -> Iterator[RenderableType]:
    kept = sum(split.trajectories for split in tally.splits.values())
    left_out = sum(tally.left_out.values())
    yield Text(f"{tally.attempts} attempts read, {kept} selected, {left_out} left out")
    if tally.failed or tally.left_out:
        yield Text()
        yield _filters(tally)
    if tally.splits:
        yield Text()
        yield _splits(tally)
        yield Text()
        yield _scores(tally)


def _filters(tally: SelectionTally) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 3, 0, 0))
    table.add_column("filter", no_wrap=True)
    table.add_column("left out", justify="right", no_wrap=True)
    table.add_column("in all", justify="right", no_wrap=True)
    table.add_column("because", overflow="fold")
    for name, meaning in MEANING.items():
        first = tally.left_out.get(name, 0)
        in_all = max(first, tally.failed.get(name, 0))
        if in_all:
            table.add_row(name, number(first), number(in_all), meaning)
    table.caption = "in all: also those that an earlier filter left out, or that are in failures"
    table.caption_justify = "left"
    return table


def _splits(tally: SelectionTally) -> Table:
    table = plain_table("split", "rows", "trajectories", "tasks")
    for name, split in tally.splits.items():
        table.add_row(name, number(split.rows), number(split.trajectories), number(split.tasks))
    return table


def _scores(tally: SelectionTally) -> Table:
    table = plain_table("median (10 % to 90 %)", *tally.splits)
    names = dict.fromkeys(name for split in tally.splits.values() for name in split.scores)
    for name in names:
        table.add_row(name, *(_spread(s.scores.get(name)) for s in tally.splits.values()))
    return table


def _spread(found: Spread | None) -> str:
    if found is None:
        return ""
    return f"{_value(found.median)} ({_value(found.low)} to {_value(found.high)})"


def _value(value: float) -> str:
    return number(value) if value == int(value) else f"{value:.2f}"
