"""A report as renderables for a terminal. It prints nothing; names are shown, never obeyed."""

from collections.abc import Iterator

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from headrace.engine.evaluate import Estimate, Evaluation
from headrace.engine.evaluation_page import (
    counted_of,
    means,
    measures,
    number,
    percent,
    shown_rates,
    splits,
    title,
)
from headrace.engine.evaluation_report import Report, notices
from headrace.engine.readable import visible


def render_report(report: Report) -> RenderableType:
    """Rates with their intervals, by part, and what attempts cost."""
    return Group(*_report(report))


def render_rates(report: Report) -> RenderableType:
    """What a run's end shows: what is left out, the rates, and the rates by difficulty."""
    return Group(*_notices(report), *_rates(report.evaluation, parts=("difficulty",)))


def plain_table(*columns: str, text: int = 1) -> Table:
    """A table without lines; the first `text` columns are words, the others numbers."""
    table = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 3, 0, 0))
    for i, name in enumerate(columns):
        if i < text:
            table.add_column(name, overflow="fold")
        else:
            table.add_column(name, justify="right", no_wrap=True)
    return table


def interval(e: Estimate) -> str:
    return f"{percent(e.low)} to {percent(e.high)}"


def _report(report: Report) -> Iterator[RenderableType]:
    e = report.evaluation
    yield Text(title(report.provenance), style="bold")
    yield from _notices(report)
    yield from _rates(e, parts=("difficulty", "category"))
    if e.attempts:
        yield Text()
        yield _costs(e)
        yield Text()
        yield Text("stopped by " + _tally(e.stop_reasons))
        if e.faults:
            yield Text("verifier faults, not solved: " + _tally(e.faults))


def _notices(report: Report) -> Iterator[RenderableType]:
    for notice in notices(report):
        yield Text(visible(notice), style="yellow")


def _rates(e: Evaluation, *, parts: tuple[str, ...]) -> Iterator[RenderableType]:
    yield Text(f"{e.passed} of {e.attempts} counted attempts passed, {e.left_out} left out")
    if not e.attempts:
        return
    table = plain_table("", "value", "95 % interval", "tasks", "interval over")
    for x in shown_rates(e):
        over = "attempts (Wilson)" if x.interval == "wilson" else "tasks (bootstrap)"
        table.add_row(f"pass@{x.k}", percent(x.value), interval(x), str(x.tasks), over)
    for name, x in means(e):
        table.add_row(name, percent(x.value), interval(x), str(x.tasks), "tasks (bootstrap)")
    yield Text()
    yield table
    for heading, found in splits(e):
        if heading in parts:
            yield Text()
            yield _parts(heading, found)


def _parts(heading: str, parts: dict[str, Evaluation]) -> Table:
    deepest = max(len(part.pass_at_k) for part in parts.values())
    more = [f"pass@{deepest}"] if deepest > 1 else []
    table = plain_table(heading, "pass@1", "95 % interval", *more, "tasks")
    for name, part in parts.items():
        rates = part.pass_at_k
        first = [percent(rates[0].value), interval(rates[0])] if rates else ["", "none counted"]
        last = percent(rates[-1].value) if rates and len(rates) == deepest else ""
        table.add_row(Text(visible(name)), *first, *([last] if more else []), counted_of(part))
    return table


def _costs(e: Evaluation) -> Table:
    table = plain_table("per attempt", "median", "mean", "median passed", "median not passed")
    for name, measure in measures(e):
        if measure.all is not None:
            by_outcome = [number(s.median) if s else "" for s in (measure.passed, measure.failed)]
            table.add_row(name, number(measure.all.median), number(measure.all.mean), *by_outcome)
    return table


def _tally(counts: dict[str, int]) -> str:
    return ", ".join(f"{visible(name)} {n}" for name, n in counts.items())
