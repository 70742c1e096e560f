"""A run and its trajectories as renderables for a terminal.

Rule: what a task or a model wrote never reaches the terminal as control: escape sequences,
carriage returns and direction marks are shown, not obeyed. It prints nothing.
"""

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.rule import Rule
from rich.table import Table
from rich.text import Text

from headrace.engine.resume import is_owed
from headrace.types import Command, CommandResult, Episode, Timing, Turn, Verdict, VerdictFault

_CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u2028-\u202e\u2066-\u2069]")
_MARKS = {"passed": "✓", "failed": "✗", "error": "!", "skipped": "-"}


def visible(text: str) -> str:
    """`text` with every control character but tab and newline spelled out."""
    text = text.replace("\r\n", "\n")
    return _CONTROL.sub(lambda m: m[0].encode("unicode_escape").decode(), text)


def render_run(episodes: Iterable[Episode]) -> RenderableType:
    """A table of attempts by task, and what they came to. Keeps a row of each, not the episode."""
    rows = sorted((_row(e) for e in episodes), key=lambda row: (row.task, row.sample))
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("task", overflow="fold")
    table.add_column("#", justify="right")
    table.add_column("episode", no_wrap=True)
    table.add_column("reward", no_wrap=True)
    table.add_column("stop")
    for name in ("turns", "tokens", "seconds"):
        table.add_column(name, justify="right")
    before = None
    for row in rows:
        table.add_row(
            Text(visible(row.task) if row.task != before else ""),
            str(row.sample),
            Text(visible(row.id)),
            Text(row.reward, style=row.style),
            row.stop,
            str(row.turns),
            str(row.tokens),
            f"{row.seconds:.1f}",
        )
        before = row.task
    return Group(table, Text(), _totals(rows))


def render_episode(episode: Episode) -> RenderableType:
    """One trajectory, turn by turn, then its verdict."""
    return Group(*_episode(episode))


# --- the table ------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Row:
    task: str
    sample: int
    id: str
    reward: str
    style: str
    stop: str
    turns: int
    tokens: int
    seconds: float
    passed: bool
    owed: bool


def _row(episode: Episode) -> _Row:
    reward, style = _reward(episode.verdict)
    timing = episode.timing
    return _Row(
        task=episode.task,
        sample=episode.sample,
        id=episode.id,
        reward=reward,
        style=style,
        stop=episode.stop_reason.value,
        turns=len(episode.turns),
        tokens=episode.sampled_tokens,
        seconds=timing.prepare_s + timing.act_s + timing.verify_s,
        passed=episode.verdict.passed,
        owed=is_owed(episode),
    )


def _reward(verdict: Verdict) -> tuple[str, str]:
    if verdict.reward is None:
        fault = verdict.fault.value if verdict.fault else "none"
        return fault, "yellow" if verdict.fault is VerdictFault.INFRASTRUCTURE else "red"
    return f"{verdict.reward:.3g}", "green" if verdict.passed else "red"


def _totals(rows: list[_Row]) -> Text:
    counted = [row for row in rows if not row.owed]
    passed = sum(row.passed for row in counted)
    text = Text(f"{_count(len(rows), 'episode')} of {_count(len({r.task for r in rows}), 'task')}")
    text.append(f", {passed} passed, {len(counted) - passed} not solved")
    if len(rows) > len(counted):
        text.append(f", {len(rows) - len(counted)} owed again", style="yellow")
    return text


# --- a trajectory ---------------------------------------------------------------------------


def _episode(episode: Episode) -> Iterator[RenderableType]:
    yield _facts(episode)
    yield Rule("instruction", align="left", style="dim")
    yield Text(visible(episode.instruction.strip()))
    for number, turn in enumerate(episode.turns):
        yield Rule(_turn_title(episode, number, turn), align="left", style="dim")
        yield from _turn(turn)
    yield Rule("verdict", align="left", style="dim")
    yield from _verdict(episode)


def _facts(episode: Episode) -> Table:
    facts = {
        "episode": f"{episode.id}, attempt {episode.sample}, try {episode.tries}",
        "task": f"{episode.task} ({episode.task_digest[:12]})",
        "policy": f"{episode.policy} ({episode.policy_version[:12]})",
        "provider": episode.provider,
        "stop": f"{episode.stop_reason.value} {episode.stop_detail}".strip(),
        "seconds": _seconds(episode.timing),
    }
    if episode.segments:
        total = sum(len(s.token_ids) // 4 for s in episode.segments)
        facts["tokens"] = f"{total}, {episode.sampled_tokens} of them sampled"
    table = Table(box=None, show_header=False, pad_edge=False)
    table.add_column(style="bold", no_wrap=True)
    table.add_column()
    for name, value in facts.items():
        table.add_row(name, Text(visible(value)))
    return table


def _seconds(timing: Timing) -> str:
    """Every phase; what `prepare` and `act` took beyond theirs is in their sums."""
    return (
        f"queue {timing.queue_s:.2f}, "
        f"prepare {timing.prepare_s:.2f} (image {timing.image_s:.2f}, start {timing.start_s:.2f}), "
        f"act {timing.act_s:.2f} (policy {timing.policy_s:.2f}, commands {timing.command_s:.2f}), "
        f"wait {timing.wait_s:.2f}, verify {timing.verify_s:.2f}"
    )


def _turn_title(episode: Episode, number: int, turn: Turn) -> str:
    spans = (span for segment in episode.segments for span in segment.spans)
    sampled = sum(span.end - span.start for span in spans if span.turn == number)
    title = f"turn {number + 1}: {turn.policy_s:.2f} s policy, {turn.command_s:.2f} s commands"
    return f"{title}, {sampled} tokens" if sampled else title


def _turn(turn: Turn) -> Iterator[RenderableType]:
    if turn.text.strip():
        yield Text(visible(turn.text.strip()), style="cyan")
    for problem in turn.problems:
        yield Text(f"problem: {visible(problem)}", style="red")
    for warning in turn.warnings:
        yield Text(f"warning: {visible(warning)}", style="yellow")
    for i, command in enumerate(turn.commands):
        yield from _command(command, turn.results[i] if i < len(turn.results) else None)
    if turn.done:
        yield Text("the policy says it is done", style="dim")


def _command(command: Command, result: CommandResult | None) -> Iterator[RenderableType]:
    yield Text(f"$ {visible(command.text.rstrip())}", style="bold")
    if result is None:
        yield Text("  did not run: the episode ended before", style="dim")
        return
    yield from _output(result.stdout, result.stdout_cut, "")
    yield from _output(result.stderr, result.stderr_cut, "red")
    told = [f"exit {result.exit_code}" if result.exit_code is not None else "no exit code"]
    told += ["timed out"] if result.timed_out else []
    told += ["shell lost"] if result.shell_lost else []
    yield Text(f"  {', '.join(told)}, {result.duration_s:.2f} s", style="dim")


def _output(data: bytes, cut: int, style: str) -> Iterator[RenderableType]:
    if data:
        text = visible(data.decode(errors="replace").rstrip("\n"))
        yield Padding(Text(text, style=style), (0, 0, 0, 2))
    if cut:
        yield Text(f"  ({cut} bytes are cut from the middle)", style="dim")


def _verdict(episode: Episode) -> Iterator[RenderableType]:
    verdict = episode.verdict
    reward, style = _reward(verdict)
    yield Text(f"reward {reward}", style=style)
    if verdict.reason:
        yield Text(visible(verdict.reason))
    if episode.failure is not None:
        failure = episode.failure
        told = f"{failure.error} in {failure.stage}: {failure.message}"
        yield Text(visible(told), style="yellow")
    for test in verdict.tests:
        mark = _MARKS.get(test.status, "?")
        yield Text(f"  {mark} {visible(test.name)} {visible(test.status)}")
    if verdict.log_tail.strip():
        yield Padding(Text(visible(verdict.log_tail.strip()), style="dim"), (0, 0, 0, 2))


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"
