"""A comparison as one HTML page, as Markdown, and as tables for a terminal.

Rules: those of the reports: no request, no script, names escaped. It computes no difference.
"""

from collections.abc import Iterable, Iterator
from pathlib import Path

from rich.console import Group, RenderableType
from rich.text import Text

from headrace.engine import evaluation_report
from headrace.engine.compare import Comparison, Difference, Side, TaskPair, left_out
from headrace.engine.evaluation_markdown import escaped, table
from headrace.engine.evaluation_page import (
    difficulty_rank,
    number,
    percent,
    signed,
    template,
    title,
    who,
)
from headrace.engine.evaluation_tables import plain_table
from headrace.engine.readable import visible
from headrace.engine.run_folder import read_manifest

TASKS_NAMED = 12
"""So many tasks that are not compared are named in a sentence."""
MOVED_SHOWN = 20
"""Rows of gained and of lost tasks in a terminal; the files have all."""


def side(run: Path) -> Side:
    """Read and evaluate one run. Blocking. Raises `RunFolderError`."""
    manifest = read_manifest(run)
    return Side(report=evaluation_report.report(run), tasks=manifest.tasks, config=manifest.config)


def page(found: Comparison) -> str:
    """The whole page."""
    reach = max((max(abs(d.low), abs(d.high)) for d in _rates(found)), default=0.0)
    return template("comparison.html.j2").render(
        title=_title(found),
        c=found,
        verdict=verdict(found),
        notices=list(_notices(found)),
        reach=min(1.0, reach * 1.1) or 1.0,
        splits=[(h, parts) for h, parts in _splits(found) if parts],
    )


def _title(found: Comparison) -> str:
    if found.a.tasks_source != found.b.tasks_source:
        return f"{title(found.b)} against {title(found.a)}"
    return visible(f"{who(found.b)} against {who(found.a)} on {found.a.tasks_source}")


def verdict(found: Comparison) -> str:
    """The comparison in one sentence."""
    first = found.pass_at_k[0]
    told = (
        f"pass@1 goes from {percent(first.a)} (A) to {percent(first.b)} (B):"
        f" {signed(first.value)} points, 95 % interval {signed(first.low)} to {signed(first.high)},"
        f" p is {chance(found)}, over {first.tasks} task{'' if first.tasks == 1 else 's'}."
    )
    if found.p_value >= 0.05:
        told += " A difference of this size is not rare by chance alone."
    return told


def chance(found: Comparison) -> str:
    return "less than 0.001" if found.p_value < 0.001 else f"{found.p_value:.3f}"


def markdown(found: Comparison) -> str:
    """The whole comparison."""
    return "\n".join(_markdown(found)) + "\n"


def render(found: Comparison) -> RenderableType:
    """For a terminal."""
    return Group(*_render(found))


def _rates(found: Comparison) -> Iterator[Difference]:
    yield from found.pass_at_k
    yield from found.by_difficulty
    yield from found.by_category


def _splits(found: Comparison) -> Iterator[tuple[str, tuple[Difference, ...]]]:
    yield "difficulty", tuple(sorted(found.by_difficulty, key=lambda d: difficulty_rank(d.name)))
    yield "category", found.by_category


def _notices(found: Comparison) -> Iterator[str]:
    for why, names in left_out(found):
        more = f" and {len(names) - TASKS_NAMED} more" if len(names) > TASKS_NAMED else ""
        yield (
            f"Not compared, {why}: {len(names)} task{'' if len(names) == 1 else 's'}:"
            f" {', '.join(names[:TASKS_NAMED])}{more}."
        )
    if found.a.compat != found.b.compat:
        yield f"Verdicts are read {found.a.compat} in A and {found.b.compat} in B."
    for name, told in (("A", found.notices_a), ("B", found.notices_b)):
        yield from (f"Run {name}: {notice}" for notice in told)


def _interval(d: Difference) -> str:
    return f"{signed(d.low)} to {signed(d.high)}"


def _rate_row(d: Difference) -> list[str]:
    return [percent(d.a), percent(d.b), signed(d.value), _interval(d), str(d.tasks)]


def _cost_row(d: Difference) -> list[str]:
    ratio = f"{d.b / d.a:.2f}" if d.a else ""
    interval = f"{_delta(d.low)} to {_delta(d.high)}"
    return [number(d.a), number(d.b), _delta(d.value), interval, ratio]


def _delta(value: float) -> str:
    return ("+" if value > 0 else "\N{MINUS SIGN}" if value < 0 else "") + number(abs(value))


# --- Markdown -------------------------------------------------------------------------------


def _markdown(found: Comparison) -> Iterator[str]:
    yield "# Comparison of two runs\n"
    yield f"- A: {escaped(title(found.a))}, run {escaped(found.a.run)}, made {found.a.created}"
    yield f"- B: {escaped(title(found.b))}, run {escaped(found.b.run)}, made {found.b.created}\n"
    yield f"{escaped(verdict(found))}\n"
    told = list(_notices(found))
    if told:
        yield "**Read this first**\n"
        yield from (f"- {escaped(notice)}" for notice in told)
        yield ""
    yield from table(
        ["rate", "A", "B", "B less A, points", "95 % interval", "tasks"],
        ([d.name.replace("@", "&#64;"), *_rate_row(d)] for d in found.pass_at_k),
    )
    for heading, parts in _splits(found):
        if parts:
            yield from table(
                [
                    f"pass&#64;1 by {heading}",
                    "A",
                    "B",
                    "B less A, points",
                    "95 % interval",
                    "tasks",
                ],
                ([escaped(d.name), *_rate_row(d)] for d in parts),
            )
    yield from table(
        ["mean", "A", "B", "B less A", "95 % interval", "B over A"],
        ([d.name, *_cost_row(d)] for d in found.costs),
    )
    for heading, tasks in (("gained", found.gained), ("lost", found.lost)):
        if tasks:
            yield f"## Tasks {heading} by B: {len(tasks)}\n"
            yield from table(["task", "A", "B", "flipped", "episodes"], _task_rows(tasks))
    yield f"{found.same} tasks pass as often in both.\n"
    if found.settings:
        yield "## Settings that differ\n"
        rows = ([escaped(s.key), escaped(s.a), escaped(s.b)] for s in found.settings)
        yield from table(["key", "A", "B"], rows)


def _task_rows(tasks: Iterable[TaskPair]) -> Iterator[list[str]]:
    for t in tasks:
        episodes = f"A {escaped(t.a_episode)}, B {escaped(t.b_episode)}"
        counts = [f"{t.a_passed}/{t.a_attempts}", f"{t.b_passed}/{t.b_attempts}"]
        yield [escaped(t.name), *counts, "yes" if t.flipped else "", episodes]


# --- a terminal -----------------------------------------------------------------------------


def _render(found: Comparison) -> Iterator[RenderableType]:
    yield Text(f"A: {title(found.a)}, run {visible(found.a.run)}")
    yield Text(f"B: {title(found.b)}, run {visible(found.b.run)}")
    for notice in _notices(found):
        yield Text(visible(notice), style="yellow")
    yield Text()
    rates = plain_table("", "A", "B", "B less A", "95 % interval", "tasks")
    for d in found.pass_at_k:
        rates.add_row(d.name, *_rate_row(d))
    yield rates
    for heading, parts in _splits(found):
        if parts:
            split = plain_table(heading, "A", "B", "B less A", "95 % interval", "tasks")
            for d in parts:
                split.add_row(Text(visible(d.name)), *_rate_row(d))
            yield Group(Text(), split)
    costs = plain_table("mean", "A", "B", "B less A", "95 % interval", "B over A")
    for d in found.costs:
        costs.add_row(d.name, *_cost_row(d))
    yield Group(Text(), costs)
    for heading, tasks in (("gained", found.gained), ("lost", found.lost)):
        if tasks:
            yield Group(Text(), _moved(heading, tasks))
    if found.settings:
        differ = plain_table("settings that differ", "A", "B", text=3)
        for s in found.settings:
            differ.add_row(*(Text(visible(value)) for value in (s.key, s.a, s.b)))
        yield Group(Text(), differ)
    yield Text(f"\n{found.same} tasks pass as often in both", style="dim")
    yield Text(verdict(found), style="bold")


def _short(episode: str) -> str:
    """The start of an id is enough for `headrace show --episode`, and for 80 columns."""
    return visible(episode[:10])


def _moved(heading: str, tasks: tuple[TaskPair, ...]) -> RenderableType:
    moved = plain_table(f"{heading} ({len(tasks)})", "A", "B", "flipped", "episode A", "episode B")
    for t in tasks[:MOVED_SHOWN]:
        moved.add_row(
            Text(visible(t.name)), f"{t.a_passed}/{t.a_attempts}", f"{t.b_passed}/{t.b_attempts}",
            "yes" if t.flipped else "", _short(t.a_episode), _short(t.b_episode),
        )  # fmt: skip
    if len(tasks) <= MOVED_SHOWN:
        return moved
    return Group(moved, Text(f"and {len(tasks) - MOVED_SHOWN} more; --json has all", style="dim"))
