"""A pairs report as one HTML page that asks nothing of anyone: no script, no font, no request.

Rule: names come from task folders, models and command lines, so every one is escaped by the
template engine and its control characters are spelled out. It computes no rate.
"""

from collections.abc import Iterator, Mapping
from typing import Any

from headrace.engine.evaluate import Spread
from headrace.engine.evaluation_page import number, percent, template
from headrace.engine.readable import visible
from headrace.preferences.compared import Compared
from headrace.preferences.made import Made
from headrace.preferences.pairs_notices import counted, leaning, reasons
from headrace.preferences.pairs_plots import bars, cloud
from headrace.preferences.pairs_report import PairsReport, measures
from headrace.preferences.tally import Outcomes

Box = tuple[str, str, Spread]


def page(report: PairsReport) -> str:
    """The whole page."""
    return template("pairs.html.j2", package="headrace.preferences").render(
        title=title(report),
        r=report,
        facts=list(facts(report)),
        heroes=list(_heroes(report)),
        kinds=outcome_kinds(report.outcomes),
        tasks=tasks(report.outcomes),
        boxes=list(_boxes(report)),
        compared=list(measures(report)),
        lengths=[(name, bars(m.histogram)) for name, m in _lengths(report)],
        scores=bars(report.score.histogram),
        margins=bars(report.margins),
        partings=bars(report.partings),
        cloud=cloud(report.points),
        rules=list(rules(report)),
        options=list(flat(report.made.options)),
        leaning=leaning,
        difference=difference,
    )


def title(report: PairsReport) -> str:
    """What the pairs are of, in one line."""
    return visible(f"{counted(report.pairs, 'preference pair')} of {_who(report.made)}")


def facts(report: PairsReport) -> Iterator[tuple[str, str]]:
    """How the pairs were made, as names and values; the runs have a table of their own."""
    made = report.made
    yield "format", made.format
    yield "attempts read", number(made.attempts)
    yield "attempts left out", number(sum(made.left_out.values()))
    yield "rows", ", ".join(f"{split} {number(n)}" for split, n in made.rows.items()) or "none"
    yield "licence", made.licence
    yield "made by", f"headrace {made.headrace}"


def difference(value: float | None) -> str:
    """With its sign, as every difference."""
    if value is None:
        return ""
    sign = "+" if value > 0 else "\N{MINUS SIGN}" if value < 0 else ""
    return sign + number(abs(value))


def outcome_kinds(outcomes: Outcomes) -> list[tuple[str, str, int]]:
    """Colour, name and number of each kind of task, in the order of the bar."""
    return [
        ("fail", "no win", outcomes.no_win),
        ("pass", "mixed", outcomes.mixed),
        ("no-loss", "no loss", outcomes.no_loss),
        ("track", "no attempt that counts", outcomes.uncounted),
    ]


def tasks(outcomes: Outcomes) -> int:
    """All of them."""
    return sum(n for _, _, n in outcome_kinds(outcomes))


def rules(report: PairsReport) -> Iterator[tuple[str, int, list[tuple[str, str, int]]]]:
    """Each rule, its pairs, and what it left out: why, what and how many."""
    for name, n in report.pairs_by_rule.items():
        yield name, n, reasons(report.left_out_by_rule.get(name, {}))


def flat(options: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """Every value of nested options under a dotted name."""
    for key, value in options.items():
        name = f"{prefix}{key}"
        match value:
            case dict():
                yield from flat(value, f"{name}.")
            case list() | tuple() if any(isinstance(item, dict) for item in value):
                yield from flat({str(i): item for i, item in enumerate(value)}, f"{name}.")
            case list() | tuple():
                yield name, ", ".join(map(str, value)) or "none"
            case bool():
                yield name, "yes" if value else "no"
            case None:
                yield name, "none"
            case _:
                yield name, str(value)


def _who(made: Made) -> str:
    """The policies, each once, with their models."""
    named = dict.fromkeys(f"{m.policy} ({m.model})" if m.model else m.policy for m in made.runs)
    many = f" and {len(named) - 2} more" if len(named) > 2 else ""
    return ", ".join(list(named)[:2]) + many


def _heroes(report: PairsReport) -> Iterator[tuple[str, str, str]]:
    """Heading, number, and what belongs to it."""
    outcomes = report.outcomes
    fruitful = sum(n > 0 for n in report.pairs_by_rule.values())
    yield "pairs", number(report.pairs), f"by {counted(fruitful, 'rule')}"
    yield "mixed tasks", number(outcomes.mixed), f"of {counted(tasks(outcomes), 'task')}"
    for name, m in _lengths(report):
        if m.pairs:
            rest = f"fewer in {percent(m.share(m.less))}, the same in {percent(m.share(m.same))}"
            yield f"chosen has more {name}", percent(m.share(m.more)), rest
    if report.margin is not None:
        low, high = number(report.margin.lower), number(report.margin.upper)
        yield "median margin", number(report.margin.median), f"middle half {low} to {high}"


def _lengths(report: PairsReport) -> Iterator[tuple[str, Compared]]:
    return ((name, m) for name, m in measures(report) if name in ("turns", "sampled tokens"))


def _boxes(report: PairsReport) -> Iterator[tuple[str, list[Box], float]]:
    """Rows of boxes on one scale each: where nine in ten of either side lie."""
    for name, m in measures(report):
        sides = (("pass", "chosen", m.chosen), ("fail", "rejected", m.rejected))
        rows = [(kind, label, spread) for kind, label, spread in sides if spread is not None]
        if rows:
            yield name, rows, max(max(s.high, s.median) for _, _, s in rows) or 1.0
