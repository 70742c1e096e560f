"""What a run is doing now, as a picture: from the status files of its processes.

Rule: pure but for `follow`; it reads files and asks the run nothing, so it cannot slow one down.
"""

import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from headrace.cli.progress import count, duration, rate
from headrace.engine import status
from headrace.engine.meters import PHASES
from headrace.engine.readable import visible
from headrace.engine.status import STALE_S, Status

EVERY_S = 1.0
STAGES = ("queued", "prepare", "act", "waiting", "verify", "store")
SLOWEST = 10
TABLES = 72
"""Columns that the tables need."""
Rows = Sequence[tuple[str, ...]]
"""The first has the names of the columns."""


def follow(
    run: Path, console: Console, *, once: bool, sleep: Callable[[float], None] = time.sleep
) -> None:
    """Show the run until it ends; `once`, or where there is no terminal: one picture."""
    if once or not console.is_terminal:
        if found := status.read(run):
            console.print(picture(found, time.time(), console.width))
        return
    with Live(console=console, refresh_per_second=4, screen=False) as live:
        while True:
            found = status.read(run)
            if not found:  # its folder was moved or removed
                return
            live.update(picture(found, time.time(), console.width))
            if not any(one.running(time.time()) for one in found):
                return
            sleep(EVERY_S)


def picture(found: Sequence[Status], now: float, width: int = TABLES) -> RenderableType:
    """Everything there is to say about a run at one moment. Too narrow for tables: lines."""
    wide = width >= TABLES
    lines: list[RenderableType] = [Text(line) for line in _head(found, now)]
    lines += [Text(line, style="yellow") for line in _troubles(found, now)]
    for rows in (_stages(found), None, _phases(found), _slowest(found)):
        if rows is None:
            lines += _ends(found)
        elif rows:
            lines.append(_table(rows) if wide else _listed(rows))
    return Group(*lines)


def _table(rows: Rows) -> Table:
    table = Table.grid(padding=(0, 2))
    head, *others = rows
    table.add_row(*(Text(word, style="dim") for word in head))
    for row in others:
        table.add_row(*(Text(cell, overflow="ellipsis", no_wrap=True) for cell in row))
    return table


def _listed(rows: Rows) -> Text:
    """Each cell after the word of its column."""
    head, *others = rows
    cells = [zip(head, row, strict=True) for row in others]
    return Text("\n".join("  ".join(f"{name} {cell}" for name, cell in row) for row in cells))


def _head(found: Sequence[Status], now: float) -> Iterator[str]:
    planned, finished = sum(s.planned for s in found), sum(s.finished for s in found)
    dropped = sum(s.dropped for s in found)
    state = "ended" if all(s.ended for s in found) else "silent"
    state = "running" if any(s.running(now) for s in found) else state
    processes = sum(s.processes for s in found)
    over = f" over {count(processes, 'process', 'es')}" if processes > 1 else ""
    more = f", {dropped} dropped" if dropped else ""
    yield (
        f"run {found[0].run} {state}{over}: {finished}/{planned} episodes{more}, "
        f"{duration(max(s.uptime_s for s in found))}"
    )
    rates = [s.rates for s in found]
    words = [
        f"{rate(sum(r.episodes for r in rates))} episodes/s",
        f"{rate(sum(r.turns for r in rates))} turns/s",
    ]
    tokens = sum(r.sampled_tokens for r in rates)
    words += [f"{rate(tokens)} tokens/s"] if tokens else []
    lag = max(s.lag_p99_s for s in found)
    yield "  ".join([*words, f"loop lag p99 {1000 * lag:.1f} ms"])


def _troubles(found: Sequence[Status], now: float) -> Iterator[str]:
    for one in found:
        if not one.ended and not one.running(now):
            ago = duration(now - one.at)
            who = f"process {one.process} (pid {one.pid})"
            yield f"{who} has said nothing for {ago}: it has ended or hangs"
        if one.breaker_open:
            yield (
                f"process {one.process}: sandbox starts are paused, for the sandbox engine "
                "failed again and again; one is tried soon"
            )


def _stages(found: Sequence[Status]) -> Rows:
    counts: Counter[str] = Counter()
    for one in found:
        counts.update(one.stages)
    warm = sum(one.warm for one in found)
    return [(*STAGES, "warm"), (*(str(counts[stage]) for stage in STAGES), str(warm))]


def _ends(found: Sequence[Status]) -> Iterator[Text]:
    live = sum(one.live for one in found)
    why = ", ".join(dict.fromkeys(one.why for one in found))
    preparing, verifying = sum(s.preparing for s in found), sum(s.verifying for s in found)
    yield Text(f"bounds: live {live} ({why}), preparing {preparing}, verifying {verifying}")
    model = next((one.model for one in found if one.model is not None), None)
    if model is not None:
        hits = ""
        if model.prefix_queries > 0:  # a server that was just started has answered nobody
            hits = f", prefix cache {model.prefix_hits / model.prefix_queries:.0%}"
        old = f" ({duration(model.age_s)} ago)" if model.age_s > STALE_S else ""
        yield Text(
            f"model: {model.running} running, {model.waiting} waiting, KV cache "
            f"{model.kv_use:.0%}{hits}, {model.preemptions:.0f} preemptions{old}"
        )
    host = found[0].host
    disk = (
        "" if host.disk_free_bytes is None else f", disk {host.disk_free_bytes / 1e9:.0f} GB free"
    )
    yield Text(
        f"host: pressure cpu {host.cpu:.0%} memory {host.memory:.0%} io {host.io:.0%}, "
        f"memory {host.memory_free:.0%} free{disk}"
    )


def _phases(found: Sequence[Status]) -> Rows:
    if not any(one.phases for one in found):
        return []
    rows: list[tuple[str, ...]] = [("seconds", *PHASES)]
    for name, at in (("p50", 0), ("p99", 1)):
        cells = []
        for phase in PHASES:
            seen = [s.phases[f"{phase}_s"][at] for s in found if f"{phase}_s" in s.phases]
            cells.append(_short(max(seen)) if seen else "")
        rows.append((name, *cells))
    return rows


def _short(seconds: float) -> str:
    return f"{seconds:.3f}" if seconds < 1 else f"{seconds:.1f}"


def _slowest(found: Sequence[Status]) -> Rows:
    slow = sorted((slow for one in found for slow in one.slowest), key=lambda s: -s.for_s)
    rows = [(duration(s.for_s), s.stage, visible(s.task), str(s.sample)) for s in slow[:SLOWEST]]
    return [("longest", "stage", "task", "sample"), *rows] if rows else []
