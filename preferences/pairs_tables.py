"""A pairs report as renderables for a terminal.

Rule: names are shown, never obeyed. It prints nothing.
"""

from collections.abc import Iterator

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from headrace.engine.evaluation_page import number, percent
from headrace.engine.evaluation_tables import plain_table
from headrace.engine.readable import visible
from headrace.preferences.compared import Compared
from headrace.preferences.pairs_notices import leaning
from headrace.preferences.pairs_page import difference, outcome_kinds, rules, title
from headrace.preferences.pairs_report import PairsReport, measures


def render_pairs(report: PairsReport) -> RenderableType:
    """What to know first, tasks by outcome, winners against losers, and the rules."""
    return Group(*_report(report))


def _report(report: PairsReport) -> Iterator[RenderableType]:
    yield Text(title(report), style="bold")
    for notice in report.notices:
        yield Text(visible(notice), style="yellow")
    kinds = ", ".join(f"{name} {number(n)}" for _, name, n in outcome_kinds(report.outcomes))
    yield Text(f"tasks: {kinds}")
    if report.measured:
        yield Text()
        yield _medians(report)
        yield Text()
        yield _shares(report)
    yield Text()
    yield _rules(report)


def _medians(report: PairsReport) -> Table:
    table = plain_table("per attempt", "median chosen", "rejected", "mean chosen", "rejected")
    for name, m in measures(report):
        if m.chosen is not None and m.rejected is not None:
            table.add_row(
                name, number(m.chosen.median), number(m.rejected.median),
                number(m.chosen.mean), number(m.rejected.mean),
            )  # fmt: skip
    if report.margin is not None:
        table.add_row("margin", number(report.margin.median), "", number(report.margin.mean), "")
    return table


def _shares(report: PairsReport) -> Table:
    table = plain_table("chosen has", "less", "same", "more", "median diff.", "less of differing")
    for name, m in measures(report):
        if m.pairs:
            table.add_row(name, *shares(m), difference(m.difference), leaning(m.leaning))
    table.caption = "with its 95 % interval (Wilson), as if each pair were independent"
    table.caption_justify = "left"
    return table


def shares(m: Compared) -> list[str]:
    """Less, the same and more, as shares of the pairs."""
    return [percent(m.share(n)) for n in (m.less, m.same, m.more)]


def _rules(report: PairsReport) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 3, 0, 0))
    table.add_column("rule", overflow="fold")
    table.add_column("pairs", justify="right", no_wrap=True)
    table.add_column("left out", overflow="fold")
    for name, n, left_out in rules(report):
        told = "\n".join(f"{number(k)} {what}: {why}" for why, what, k in left_out)
        table.add_row(Text(visible(name)), number(n), Text(visible(told)))
    return table
