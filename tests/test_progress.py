"""What a watcher of a run sees: counts, plain lines and the live display."""

import io
import re

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from headrace.cli.progress import (
    LISTED_RETRIES,
    LiveProgress,
    PlainProgress,
    duration,
    rate,
    render,
    said,
    status,
    watching,
)
from headrace.cli.tally import WINDOW_S, Tally
from headrace.engine.events import (
    EpisodeDropped,
    EpisodeFinished,
    EpisodeRetried,
    EpisodeStarted,
    Event,
    Note,
    Preparing,
    RunFinished,
    RunStarted,
    StageEntered,
    Stopping,
    TurnFinished,
)


class Clock:
    """Time that moves when told."""

    def __init__(self) -> None:
        self.now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


def started(planned: int = 20, skipped: int = 0) -> RunStarted:
    return RunStarted(
        run="r", planned=planned, skipped=skipped, provider="namespace",
        provider_reason="namespace: no Docker engine", policy="vllm",
    )  # fmt: skip


def ended(
    id: str, reward: float | None = 1.0, fault: str | None = None, tries: int = 1
) -> EpisodeFinished:
    return EpisodeFinished(
        id=id, task=f"task-{id}", sample=0, reward=reward, fault=fault, stop_reason="done",
        tries=tries,
    )  # fmt: skip


def folded(*events: Event) -> Tally:
    tally = Tally(0.0)
    for event in events:
        tally.add(event, 0.0)
    return tally


def begun(id: str) -> EpisodeStarted:
    return EpisodeStarted(id=id, task=f"task-{id}", sample=0)


def test_an_infrastructure_failure_says_beside_its_episode_what_failed() -> None:
    lost = msgspec.structs.replace(
        ended("a", None, "infrastructure"), failure="no solution:\n\x1b[31m" + "x " * 200
    )
    (line,) = said(lost, folded(started(1), lost))
    assert line.plain.startswith("infra task-a #0  done  no solution: ")
    assert line.plain.endswith(" ...")
    assert "\x1b" not in line.plain and "\n" not in line.plain


# --- the tally ------------------------------------------------------------------------------


def test_an_episode_is_counted_in_the_stage_it_is_in() -> None:
    tally = folded(begun("a"), begun("b"), begun("c"), StageEntered(id="b", stage="act"),
                   StageEntered(id="c", stage="verify"))  # fmt: skip
    assert (tally.live, tally.starting, tally.acting, tally.verifying) == (3, 1, 1, 1)


def test_a_finished_episode_is_not_live() -> None:
    tally = folded(started(), begun("a"), StageEntered(id="a", stage="store"), ended("a"))
    assert (tally.live, tally.done, tally.passed) == (0, 1, 1)


def test_a_retried_episode_is_not_live_until_it_starts_again() -> None:
    tally = folded(begun("a"), EpisodeRetried(id="a", error="x"))
    assert (tally.live, tally.retried, tally.finished) == (0, 1, 0)
    tally.add(begun("a"), 0.0)
    assert tally.live == 1


def test_a_dropped_episode_is_not_live_and_is_counted() -> None:
    dropped = [EpisodeDropped(id=id, task="t", sample=0) for id in ("a", "never begun")]
    tally = folded(started(4), begun("a"), begun("b"), ended("b"), *dropped)
    assert (tally.live, tally.starting, tally.done, tally.dropped) == (0, 0, 1, 2)
    assert "dropped 2" in status(tally, tally.rates(1.0))


def test_what_an_earlier_session_dropped_is_not_done() -> None:
    begins = msgspec.structs.replace(started(4, skipped=1), dropped=3)
    tally = folded(begins)
    assert (tally.done, tally.dropped) == (1, 3)
    assert "4 episodes planned, 1 of them done already, 3 dropped" in plain((0, begins))[0]


def test_infrastructure_failures_are_left_out_of_the_pass_rate() -> None:
    tally = folded(
        ended("a"), ended("b", 0.0), ended("c", None, "infrastructure"),
        ended("d", None, "verifier"),
    )  # fmt: skip
    assert (tally.passed, tally.failed, tally.infra_failures) == (1, 2, 1)
    assert tally.pass_rate == pytest.approx(1 / 3)


def test_there_is_no_pass_rate_before_the_first_verdict() -> None:
    assert folded(started()).pass_rate is None


def test_part_of_the_reward_is_no_pass() -> None:
    assert folded(ended("a", 0.99)).failed == 1


def test_skipped_episodes_are_done_but_not_finished_now() -> None:
    tally = folded(started(20, 5), ended("a"))
    assert (tally.done, tally.finished) == (6, 1)


def test_rates_are_of_the_recent_past() -> None:
    tally = Tally(0.0)
    for second in range(1, 11):
        for _ in range(3):
            tally.add(TurnFinished(id="a", sampled_tokens=10), float(second))
    rates = tally.rates(10.0)
    assert rates.turns_s == pytest.approx(3.0, rel=0.15)
    assert rates.tokens_s == pytest.approx(30.0, rel=0.15)


def test_rates_fall_to_zero_when_nothing_happens() -> None:
    tally = Tally(0.0)
    tally.add(TurnFinished(id="a", sampled_tokens=10), 1.0)
    assert tally.rates(1.0 + 2 * WINDOW_S).turns_s == 0.0


def test_the_overall_rate_leaves_out_the_time_before_the_first_episode() -> None:
    tally = Tally(0.0)
    tally.add(begun("a"), 90.0)
    tally.add(TurnFinished(id="a", sampled_tokens=10), 95.0)
    assert tally.overall(100.0).turns_s == pytest.approx(0.1)


@given(
    st.lists(
        st.tuples(
            st.sampled_from(["start", "act", "verify", "store", "retry", "end"]),
            st.sampled_from("abcde"),
        )
    )
)
def test_the_stages_never_count_more_than_is_live(steps: list[tuple[str, str]]) -> None:
    tally = Tally(0.0)
    live: set[str] = set()
    for step, id in steps:
        event: Event
        if step == "start":
            event, live = begun(id), live | {id}
        elif step == "retry":
            event, live = EpisodeRetried(id=id, error="x"), live - {id}
        elif step == "end":
            event, live = ended(id), live - {id}
        else:
            event, live = StageEntered(id=id, stage=step), live | {id}
        tally.add(event, 0.0)
        assert tally.live == len(live)
        assert min(tally.starting, tally.acting, tally.verifying) >= 0
        assert tally.starting + tally.acting + tally.verifying <= tally.live


# --- plain lines ----------------------------------------------------------------------------


def plain(*events: tuple[float, Event]) -> list[str]:
    """The lines of events that each come so many seconds after the one before."""
    clock, out = Clock(), io.StringIO()
    progress = PlainProgress(Console(file=out, width=80), clock)
    for after_s, event in events:
        clock.now_s += after_s
        progress(event)
    return out.getvalue().splitlines()


def test_the_start_says_plan_policy_and_why_this_provider() -> None:
    assert plain((0, started(20, 3))) == [
        "20 episodes planned, 3 of them done already; policy vllm",
        "sandboxes: namespace: no Docker engine",
    ]


def test_a_plain_line_comes_every_few_seconds_and_not_more_often() -> None:
    turn = TurnFinished(id="a", sampled_tokens=5)
    lines = plain((0, started()), (0, begun("a")), *[(1.0, turn)] * 11)
    assert [line for line in lines if line.startswith("0/20 episodes")] == lines[2:]
    assert len(lines) == 4


def test_the_last_line_has_the_totals_at_their_overall_rate() -> None:
    turn = TurnFinished(id="a", sampled_tokens=50)
    lines = plain((0, started(1)), (0, begun("a")), (10, turn), (0, ended("a")),
                  (0, RunFinished(finished=1, owed=0)))  # fmt: skip
    assert lines[-1] == (
        "1/1 episodes  pass 100%  live 0 (starting 0, verifying 0)  0.1 turns/s  5.0 tokens/s"
    )


def test_each_outcome_has_its_word() -> None:
    lines = plain(
        (0, started()), (0, ended("a")), (0, ended("b", 0.5)), (0, ended("c", None, "verifier")),
        (0, ended("d", None, "infrastructure", tries=3)),
    )  # fmt: skip
    assert lines[2:] == [
        "pass  task-a #0  done",
        "fail  task-b #0  done  reward 0.50",
        "fail  task-c #0  done",
        "infra task-d #0  done  try 3",
    ]


def test_a_large_run_does_not_list_its_episodes() -> None:
    assert len(plain((0, started(1000)), (0, ended("a")))) == 2


def test_quick_steps_of_preparation_are_not_all_said() -> None:
    steps = [(0.01, Preparing(what=f"package {i}")) for i in range(500)]
    assert len(plain(*steps)) == 3


def test_what_is_prepared_is_said_once_until_it_changes() -> None:
    lines = plain(
        (0, Preparing(what="weights", fraction=0.0)),
        (0.1, Preparing(what="weights", fraction=0.1)),
        (9, Preparing(what="weights", fraction=0.5)), (2.1, Preparing(what="server")),
    )  # fmt: skip
    assert lines == ["weights 0%", "weights 50%", "server"]


def test_retries_are_listed_a_few_times_and_then_counted() -> None:
    lines = plain((0, started(99)), *[(0.0, EpisodeRetried(id="a", error="gone"))] * 9)
    assert lines[2:] == ["tried again: gone"] * (LISTED_RETRIES - 1) + [
        "tried again: gone (further ones are only counted)"
    ]


def test_the_first_ctrl_c_says_what_a_second_does() -> None:
    lines = plain((0, Stopping(mode="finishing", reason="Ctrl-C")),
                  (0, Stopping(mode="cancelling", reason="Ctrl-C")))  # fmt: skip
    assert lines == [
        "Ctrl-C: finishing what is nearly done; Ctrl-C again cancels at once",
        "Ctrl-C: cancelling",
    ]


def test_markup_in_a_note_is_shown_as_it_is() -> None:
    assert plain((0, Note(text="[bold]x[/] [/tmp]"))) == ["[bold]x[/] [/tmp]"]


def test_a_console_that_is_no_terminal_gets_plain_lines_without_escapes() -> None:
    out = io.StringIO()
    with watching(Console(file=out)) as on_event:
        on_event(started())
        on_event(ended("a", 0.0))
    assert "\x1b" not in out.getvalue()
    assert "fail  task-a" in out.getvalue()


# --- the live display -----------------------------------------------------------------------


def shown(tally: Tally, now_s: float, width: int = 80) -> list[str]:
    out = io.StringIO()
    console = Console(file=out, width=width, force_terminal=True, color_system=None)
    console.print(render(tally, now_s))
    return [line.rstrip() for line in out.getvalue().splitlines()]


def test_the_display_has_a_bar_and_all_counts() -> None:
    events: list[Event] = [started(), begun("a"), begun("b"), begun("c")]
    events += [StageEntered(id="b", stage="act"), StageEntered(id="c", stage="verify")]
    events += [TurnFinished(id="b", sampled_tokens=30), ended("d"), ended("e", 0.0)]
    bar, *counts = shown(folded(*events), 5.0, width=120)
    assert re.fullmatch(r"2/20 episodes .* 10% 5\.0s", bar)
    assert counts == ["pass 50%  live 3 (starting 1, verifying 1)  0.2 turns/s  6.0 tokens/s"]


@pytest.mark.parametrize("width", [20, 40, 80, 200])
def test_the_display_fits_the_terminal(width: int) -> None:
    tally = folded(started(), Preparing(what="a very long name of a thing " * 5), begun("a"))
    tally.preparing = Preparing(what="a very long name of a thing " * 5)
    assert all(len(line) <= width for line in shown(tally, 5.0, width))


def test_preparing_shows_before_the_plan_is_known() -> None:
    lines = shown(folded(Preparing(what="starting vLLM")), 5.0)
    assert len(lines) == 1
    assert lines[0].startswith("starting vLLM ")


def test_the_live_display_leaves_the_lines_that_were_said() -> None:
    out = io.StringIO()
    console = Console(file=out, width=80, force_terminal=True, color_system=None)
    with watching(console, Clock()) as on_event:
        assert isinstance(on_event, LiveProgress)
        on_event(started())
        on_event(ended("a"))
    assert "pass  task-a #0  done" in out.getvalue()


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.04, "0.0s"), (9.94, "9.9s"), (59.4, "59s"), (60, "1:00"), (3661, "1:01:01")],
)
def test_durations_are_short(seconds: float, text: str) -> None:
    assert duration(seconds) == text


@pytest.mark.parametrize(("value", "text"), [(0.0, "0.0"), (9.94, "9.9"), (12345.6, "12,346")])
def test_rates_have_the_digits_that_say_something(value: float, text: str) -> None:
    assert rate(value) == text
