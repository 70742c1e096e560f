"""A report as Markdown, for a pull request or a paper's notebook.

Rule: names are escaped so that none of them is markup, a mention or a table's edge.
"""

import re
from collections.abc import Iterable, Iterator, Sequence

from headrace.engine.evaluate import Estimate, Evaluation
from headrace.engine.evaluation_page import (
    counted_of,
    facts,
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

# An underscore inside a word is no markup.
_MARKUP = re.compile(r"([\\`*{}\[\]<>|#!~$&]|\b_|_\b|(?<=_)_)")


def markdown(report: Report) -> str:
    """The whole report."""
    return "\n".join(_report(report)) + "\n"


def escaped(text: str) -> str:
    """`text` as plain words on one line."""
    line = " ".join(visible(text).split())
    return _MARKUP.sub(r"\\\1", line).replace("@", "&#64;")


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> Iterator[str]:
    """Lines of a table; the first column is text, the others are numbers. Cells are escaped."""
    yield f"| {' | '.join(head)} |"
    yield f"|---{'|---:' * (len(head) - 1)}|"
    for row in rows:
        yield f"| {' | '.join(row)} |"
    yield ""


def rate(e: Estimate) -> list[str]:
    """Value and interval."""
    return [percent(e.value), f"{percent(e.low)} to {percent(e.high)}"]


def _report(report: Report) -> Iterator[str]:
    e = report.evaluation
    yield f"# {escaped(title(report.provenance))}\n"
    told = notices(report)
    if told:
        yield "**Read this first**\n"
        yield from (f"- {escaped(notice)}" for notice in told)
        yield ""
    yield from (f"- {name}: {escaped(value)}" for name, value in facts(report.provenance))
    yield f"- counted attempts: {e.attempts}, passed {e.passed}, left out {e.left_out}\n"
    if not e.attempts:
        yield "No attempt counts yet, so there is no rate to show."
        return
    yield "## pass@k\n"
    yield from table(["rate", "value", "95 % interval", "tasks", "interval over"], _rates(e))
    for heading, parts in splits(e):
        yield f"## pass@1 by {heading}\n"
        head = [heading, "pass@1", "95 % interval", "tasks", "counted attempts"]
        yield from table(head, _parts(parts.items()))
    yield "## What attempts cost\n"
    head = ["per attempt", "median", "mean", "median passed", "median not passed"]
    yield from table(head, _costs(e))
    yield "## Why attempts ended\n"
    yield from table(
        ["stop reason", "attempts"], ([escaped(k), str(n)] for k, n in e.stop_reasons.items())
    )
    if e.faults:
        yield from table(
            ["verifier fault, counted as not solved", "attempts"],
            ([escaped(k), str(n)] for k, n in e.faults.items()),
        )
    yield "## Tasks\n"
    yield from table(
        ["task", "passed", "counted", "left out", "reward", "turns", "agent s"], _tasks(e)
    )


def _rates(e: Evaluation) -> Iterator[list[str]]:
    for x in shown_rates(e):
        over = "attempts (Wilson)" if x.interval == "wilson" else "tasks (bootstrap)"
        yield [f"pass&#64;{x.k}", *rate(x), str(x.tasks), over]
    for name, x in means(e):
        yield [escaped(name), *rate(x), str(x.tasks), "tasks (bootstrap)"]


def _parts(parts: Iterable[tuple[str, Evaluation]]) -> Iterator[list[str]]:
    for name, part in parts:
        cells = rate(part.pass_at_k[0]) if part.pass_at_k else ["none counted", ""]
        yield [escaped(name), *cells, counted_of(part), str(part.attempts)]


def _costs(e: Evaluation) -> Iterator[list[str]]:
    for name, measure in measures(e):
        if measure.all is None:
            continue
        by_outcome = [number(s.median) if s else "" for s in (measure.passed, measure.failed)]
        yield [name, number(measure.all.median), number(measure.all.mean), *by_outcome]


def _tasks(e: Evaluation) -> Iterator[list[str]]:
    for t in e.by_task:
        means = ["" if v is None else number(v) for v in (t.reward, t.turns, t.agent_s)]
        yield [escaped(t.name), str(t.passed), str(t.attempts), str(t.left_out), *means]
        for step in t.steps:
            cells = [str(step.passed), str(step.begun), "", number(step.reward), "", ""]
            yield [f"step {escaped(step.name)}", *cells]
