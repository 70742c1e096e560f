"""Shows a run while it runs: two live lines on a terminal, plain lines otherwise.

Rule: it watches and decides nothing. It consumes the engine's events; the clock and the console
are handed in. Everything goes to the console it is given (the command line gives it stderr), so
that stdout stays free for results.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from textwrap import shorten

from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from headrace.cli.tally import Rates, Tally
from headrace.engine.events import (
    EpisodeFinished,
    EpisodeRetried,
    Event,
    Note,
    OnEvent,
    Preparing,
    RunFinished,
    RunStarted,
    Stopping,
)
from headrace.engine.readable import visible

Clock = Callable[[], float]

PLAIN_EVERY_S = 5.0
PREPARING_EVERY_S = 2.0
"""Between two different steps of preparation; a package manager says hundreds of things."""
LISTED_EPISODES = 60
"""Up to so many planned episodes each one gets its own line; beyond that they are counted."""
LISTED_RETRIES = 5
MESSAGE = 120
"""Characters of a failure beside its episode; `show --episode` has all of it."""


@contextmanager
def watching(console: Console, clock: Clock = time.monotonic) -> Iterator[OnEvent]:
    """The display that fits the console, for the length of the block."""
    if not console.is_terminal:
        yield PlainProgress(console, clock)
        return
    progress = LiveProgress(console, clock)
    with Live(progress, console=console, refresh_per_second=5, transient=True):
        yield progress


class PlainProgress:
    """One line every few seconds, one for each thing that is said once, one at the end."""

    def __init__(self, console: Console, clock: Clock, *, every_s: float = PLAIN_EVERY_S) -> None:
        self.tally = Tally(clock())
        self._console = console
        self._clock = clock
        self._every_s = every_s
        self._last_s = clock()
        self._prepared_s = clock()
        self._last_what = ""

    def __call__(self, event: Event) -> None:
        now_s = self._clock()
        self.tally.add(event, now_s)
        for line in said(event, self.tally):
            self._print(line)
        if isinstance(event, Preparing):
            self._prepare(event, now_s)
        elif isinstance(event, RunFinished):
            self._print(Text(status(self.tally, self.tally.overall(now_s))))
        elif self.tally.began_s is not None and now_s - self._last_s >= self._every_s:
            self._last_s = now_s
            self._print(Text(status(self.tally, self.tally.rates(now_s))))

    def _prepare(self, event: Preparing, now_s: float) -> None:
        every_s = self._every_s if event.what == self._last_what else PREPARING_EVERY_S
        if self._last_what and event.fraction != 1.0 and now_s - self._prepared_s < every_s:
            return
        self._prepared_s, self._last_what = now_s, event.what
        share = f" {event.fraction:.0%}" if event.fraction is not None else ""
        self._print(Text(event.what + share))

    def _print(self, line: Text) -> None:
        self._console.print(line, soft_wrap=True, highlight=False)


class LiveProgress:
    """A bar and its counts, redrawn in place below the lines that stay."""

    def __init__(self, console: Console, clock: Clock) -> None:
        self.tally = Tally(clock())
        self._console = console
        self._clock = clock

    def __call__(self, event: Event) -> None:
        self.tally.add(event, self._clock())
        for line in said(event, self.tally):
            self._console.print(line, highlight=False)

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        now_s = self._clock()
        yield render(self.tally, now_s)


def render(tally: Tally, now_s: float) -> RenderableType:
    """The live display at one moment."""
    lines: list[RenderableType] = []
    elapsed = duration(now_s - tally.started_s)
    if tally.preparing is not None:
        lines.append(_bar(tally.preparing.what, tally.preparing.fraction, elapsed, now_s))
    if tally.planned:
        share = (tally.done + tally.dropped) / tally.planned
        lines.append(_bar(f"{tally.done}/{tally.planned} episodes", share, elapsed, now_s))
        lines.append(Text("  ".join(_counts(tally, tally.rates(now_s))), style="dim"))
    return Group(*lines)


def _bar(label: str, share: float | None, elapsed: str, now_s: float) -> Table:
    grid = Table.grid(expand=True, padding=(0, 1))
    grid.add_column(no_wrap=True, overflow="ellipsis")
    grid.add_column(ratio=1, min_width=12)
    grid.add_column(justify="right", no_wrap=True)
    grid.add_row(
        Text(label),
        ProgressBar(total=1.0, completed=share or 0.0, pulse=share is None, animation_time=now_s),
        Text(f"{share:.0%} {elapsed}" if share is not None else elapsed),
    )
    return grid


def _counts(tally: Tally, rates: Rates) -> Iterator[str]:
    if tally.pass_rate is not None:
        yield f"pass {tally.pass_rate:.0%}"
    yield f"live {tally.live} (starting {tally.starting}, verifying {tally.verifying})"
    yield f"{rate(rates.turns_s)} turns/s"
    if tally.tokens:
        yield f"{rate(rates.tokens_s)} tokens/s"
    if tally.infra_failures:
        yield f"infra failures {tally.infra_failures}"
    if tally.retried:
        yield f"retried {tally.retried}"
    if tally.dropped:
        yield f"dropped {tally.dropped}"


def status(tally: Tally, rates: Rates) -> str:
    """The plain line."""
    return "  ".join([f"{tally.done}/{tally.planned} episodes", *_counts(tally, rates)])


def said(event: Event, tally: Tally) -> Iterator[Text]:
    """The lines an event adds above the display; they stay."""
    match event:
        case RunStarted():
            done = f", {event.skipped} of them done already" if event.skipped else ""
            plan = count(event.planned, "episode")
            done += f", {event.dropped} dropped" if event.dropped else ""
            yield Text(f"{plan} planned{done}; policy {event.policy}")
            yield Text(f"sandboxes: {event.provider_reason}")
        case EpisodeFinished() if tally.planned <= LISTED_EPISODES:
            yield _outcome(event)
        case EpisodeRetried() if tally.retried <= LISTED_RETRIES:
            more = " (further ones are only counted)" if tally.retried == LISTED_RETRIES else ""
            yield Text(f"tried again: {event.error}{more}", style="yellow")
        case Note():
            yield Text(event.text, style="yellow")
        case Stopping(mode="finishing"):
            yield Text(
                f"{event.reason}: finishing what is nearly done; Ctrl-C again cancels at once",
                style="yellow",
            )
        case Stopping():
            yield Text(f"{event.reason}: cancelling", style="yellow")


def _outcome(event: EpisodeFinished) -> Text:
    if event.reward is None and event.fault != "verifier":
        word, style = "infra", "yellow"
    elif event.reward is not None and event.reward >= 1.0:
        word, style = "pass", "green"
    else:
        word, style = "fail", "red"
    line = Text(f"{word:5} ", style=style)
    line.append(f"{event.task} #{event.sample}  {event.stop_reason}", style="default")
    if event.reward is not None and 0.0 < event.reward < 1.0:
        line.append(f"  reward {event.reward:.2f}", style="default")
    if event.tries > 1:
        line.append(f"  try {event.tries}", style="default")
    if word == "infra" and event.failure:
        told = visible(shorten(event.failure, MESSAGE, placeholder=" ..."))
        line.append(f"  {told}", style="default")
    return line


def rate(value: float) -> str:
    """A rate in as many digits as say something."""
    return f"{value:,.0f}" if value >= 10 else f"{value:.1f}"


def duration(seconds: float) -> str:
    """`4.2s`, `1:05` or `1:01:05`."""
    if seconds < 60:
        return f"{seconds:.1f}s" if seconds < 10 else f"{seconds:.0f}s"
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def count(number: int, what: str, plural: str = "s") -> str:
    """`1 task`, `2 tasks`."""
    return f"{number} {what}" if number == 1 else f"{number} {what}{plural}"
