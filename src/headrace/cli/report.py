"""The end of a run in a few lines for people; `summary.json` has the numbers for programs.

Rule: pure; a line is left out when it would say nothing.
"""

import shlex
from collections.abc import Iterator, Mapping
from pathlib import Path

from headrace.cli.progress import count, duration, rate
from headrace.engine.meters import PHASES
from headrace.engine.readable import visible
from headrace.engine.summary import PhaseSummary, Summary


def summary_lines(summary: Summary, out: Path, *, rates: bool = True) -> list[str]:
    """What came of the run, its rates, and what to do next. `rates`: with pass@k."""
    return list(_lines(summary, out, rates))


def _lines(summary: Summary, out: Path, rates: bool) -> Iterator[str]:
    graded = summary.passed + summary.failed
    yield (
        f"{summary.episodes} of {summary.planned} episodes over {count(summary.tasks, 'task')}: "
        f"{summary.passed} passed, {summary.failed} failed, "
        f"{count(summary.infra_failures, 'infrastructure failure')}"
    )
    if rates and graded and summary.pass_at_k:
        yield "  ".join(f"pass@{k} {value:.3f}" for k, value in _by_k(summary.pass_at_k))
    if summary.refused:
        yield f"{count(len(summary.refused), 'task')} left out: {_names(summary.refused)}"
    stopped = sorted(summary.stop_reasons.items(), key=lambda item: -item[1])
    if stopped:
        yield "stopped by " + ", ".join(f"{reason} {n}" for reason, n in stopped)
    yield "  ".join(_rates(summary))
    sandbox = summary.sandbox
    if sandbox.started:
        start = f"{_ms(sandbox.start_p50_s)} p50, {_ms(sandbox.start_p99_s)} p99"
        started = count(sandbox.started, f"{sandbox.provider} sandbox", "es")
        if sandbox.command_p50_s is not None:
            start += f"; command {_ms(sandbox.command_p50_s)} p50"
        yield f"{started}: start {start}"
    yield from _phases(summary.engine.phases)
    if summary.retries:
        yield f"{summary.retries} further tries after infrastructure failures"
    if summary.dropped:
        yield f"{count(summary.dropped, 'episode')} dropped: their groups went on without them"
    if summary.owed:
        yield f"{count(summary.owed, 'episode')} owed: the same command again runs only those"
    yield f"see: headrace show {shlex.quote(str(out))}"


def _rates(summary: Summary) -> Iterator[str]:
    yield duration(summary.wall_s)
    yield f"{rate(summary.episodes_per_s)} episodes/s"
    # Turns of episodes that were cut are measured and not stored: no rate beside none.
    per_s = f" ({rate(summary.turns_per_s)}/s)" if summary.turns else ""
    yield f"{count(summary.turns, 'turn')}{per_s}"
    if summary.sampled_tokens:
        per_s = rate(summary.sampled_tokens_per_s)
        yield f"{summary.sampled_tokens} sampled tokens ({per_s}/s)"


def _phases(phases: Mapping[str, PhaseSummary]) -> Iterator[str]:
    """A table of three lines: where an episode's time goes."""
    shown = [(name, phases[name]) for name in PHASES if name in phases]
    if not shown:
        return
    names = ["episode", *(name for name, _ in shown)]
    medians = ["p50", *(_ms(phase.p50_s) for _, phase in shown)]
    tails = ["p99", *(_ms(phase.p99_s) for _, phase in shown)]
    widths = [max(map(len, column)) for column in zip(names, medians, tails, strict=True)]
    for row in (names, medians, tails):
        cells = (cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        yield "  ".join(cells).rstrip()


def _names(refused: dict[str, str]) -> str:
    """A few of them; `summary.json` has all, with the reasons."""
    names = [visible(name) for name in refused]
    return ", ".join([*names[:4], *(["..."] if len(names) > 4 else [])])


def _by_k(pass_at_k: dict[str, float]) -> list[tuple[str, float]]:
    """At most five values of k: 1, the powers of two, and the largest."""
    known = sorted(pass_at_k.items(), key=lambda item: int(item[0]))
    shown = [item for item in known if int(item[0]).bit_count() == 1 or item is known[-1]]
    return shown if len(shown) <= 5 else [*shown[:4], shown[-1]]


def _ms(seconds: float | None) -> str:
    if seconds is None:
        return "unknown"
    if seconds >= 99.5:
        return f"{seconds:.0f} s"
    if seconds < 0.000_005:
        return "0"
    return f"{seconds * 1000:.2g} ms" if seconds < 0.0995 else f"{seconds:.2g} s"
