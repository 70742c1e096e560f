"""A pairs report as Markdown, the short version: for a pull request or beside the data.

Rule: names are escaped so that none of them is markup, a mention or a table's edge.
"""

from collections.abc import Iterator

from headrace.engine.evaluation_markdown import escaped, table
from headrace.engine.evaluation_page import number, percent
from headrace.preferences.pairs_notices import leaning
from headrace.preferences.pairs_page import difference, facts, outcome_kinds, rules, tasks, title
from headrace.preferences.pairs_report import PairsReport, measures

_SHARES = ("chosen has", "less", "same", "more", "less, where they differ", "median difference")


def markdown(report: PairsReport) -> str:
    """The whole report."""
    return "\n".join(_report(report)) + "\n"


def _report(report: PairsReport) -> Iterator[str]:
    yield f"# {escaped(title(report))}\n"
    if report.notices:
        yield "**Read this first**\n"
        yield from (f"- {escaped(notice)}" for notice in report.notices)
        yield ""
    yield from (f"- {name}: {escaped(value)}" for name, value in facts(report))
    for m in report.made.runs:
        model = f", model {escaped(m.model)}" if m.model else ""
        policy = f"policy {escaped(m.policy)} {escaped(m.policy_version[:12])}{model}"
        yield f"- run {escaped(m.run)}: {policy}, {m.tasks} tasks, digest {m.tasks_digest[:16]}"
    yield f"- command: {escaped(report.made.command)}\n"
    yield "## Tasks by what came of them\n"
    yield from table(["outcome", "tasks", "share"], _outcomes(report))
    if report.measured:
        yield "## Winners against losers\n"
        head = ["per attempt", "median chosen", "median rejected", "mean chosen", "mean rejected"]
        yield from table(head, _spreads(report))
        yield from table(_SHARES, _shares(report))
        yield (
            "In brackets the 95 % interval (Wilson). It takes pairs as independent; those of one"
            " task are not, and the true one is wider.\n"
        )
    yield "## Rules\n"
    yield from table(["rule", "pairs", "left out"], _rules(report))


def _outcomes(report: PairsReport) -> Iterator[list[str]]:
    every = tasks(report.outcomes)
    for _, name, n in outcome_kinds(report.outcomes):
        yield [name, number(n), percent(n / every) if every else ""]


def _spreads(report: PairsReport) -> Iterator[list[str]]:
    for name, m in measures(report):
        if m.chosen is not None and m.rejected is not None:
            medians = [number(m.chosen.median), number(m.rejected.median)]
            yield [name, *medians, number(m.chosen.mean), number(m.rejected.mean)]


def _shares(report: PairsReport) -> Iterator[list[str]]:
    for name, m in measures(report):
        if m.pairs:
            shares = [percent(m.share(n)) for n in (m.less, m.same, m.more)]
            yield [name, *shares, leaning(m.leaning), difference(m.difference)]


def _rules(report: PairsReport) -> Iterator[list[str]]:
    for name, n, left_out in rules(report):
        told = "; ".join(f"{why} ({number(k)} {what})" for why, what, k in left_out)
        yield [escaped(name), number(n), escaped(told)]
