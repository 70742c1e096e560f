"""What a person sees of a run, and that a task cannot paint over it."""

import io
from array import array
from typing import Any

from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console, RenderableType

from headrace.engine.readable import render_episode, render_run, visible
from headrace.types import (
    Command,
    CommandResult,
    Episode,
    Failure,
    Segment,
    Span,
    StopReason,
    TestOutcome,
    Timing,
    Turn,
    Verdict,
    VerdictFault,
)

GONE = Verdict(reward=None, fault=VerdictFault.INFRASTRUCTURE, reason="sandbox_lost: it is gone")


def printed(renderable: RenderableType, *, color: bool = False) -> str:
    file = io.StringIO()
    console = Console(
        file=file, width=100, force_terminal=color, color_system="truecolor" if color else None
    )
    console.print(renderable)
    return file.getvalue()


def episode(**fields: Any) -> Episode:
    plain: dict[str, Any] = {
        "id": "0123456789abcdef",
        "task": "org/slug",
        "task_digest": "d" * 64,
        "sample": 0,
        "policy": "vllm",
        "policy_version": "v" * 64,
        "provider": "namespace",
        "instruction": "Write [bold]hello[/bold].",
        "stop_reason": StopReason.DONE,
        "verdict": Verdict(reward=1.0),
        "timing": Timing(prepare_s=0.5, act_s=2.0, verify_s=0.25),
    }
    return Episode(**(plain | fields))


def turn(*results: CommandResult, **fields: Any) -> Turn:
    return Turn(text="thinking", commands=(Command(text="ls -l"),), results=results, **fields)


def test_a_run_is_a_table_by_task_and_attempt() -> None:
    text = printed(
        render_run(
            [
                episode(sample=1, id="b" * 16, verdict=Verdict(reward=0.25)),
                episode(id="a" * 16),
                episode(task="org/other", id="c" * 16, verdict=GONE),
            ]
        )
    )
    rows = [line.split() for line in text.splitlines() if line]
    assert rows[0] == "task # episode reward stop turns tokens seconds".split()
    assert rows[1] == ["org/other", "0", "c" * 16, "infrastructure", "done", "0", "0", "2.8"]
    assert rows[2] == ["org/slug", "0", "a" * 16, "1", "done", "0", "0", "2.8"]
    assert rows[3] == ["1", "b" * 16, "0.25", "done", "0", "0", "2.8"]
    assert "3 episodes of 2 tasks, 1 passed, 1 not solved, 1 owed again" in text


def test_a_run_without_episodes_says_so() -> None:
    assert "0 episodes of 0 tasks, 0 passed, 0 not solved" in printed(render_run([]))


def test_a_trajectory_reads_turn_by_turn() -> None:
    result = CommandResult(exit_code=2, stdout=b"out\n", stderr=b"err", stdout_cut=7)
    segment = Segment(
        token_ids=array("I", range(10)).tobytes(),
        logprobs=array("f", [0.0] * 10).tobytes(),
        spans=(Span(turn=0, start=6, end=10),),
    )
    text = printed(render_episode(episode(turns=(turn(result),), segments=(segment,))))
    lines = [line.strip() for line in text.splitlines()]
    assert "Write [bold]hello[/bold]." in lines
    assert any(
        line.startswith("turn 1: 0.00 s policy, 0.00 s commands, 4 tokens") for line in lines
    )
    at = lines.index("thinking")
    assert lines[at + 1 : at + 6] == [
        "$ ls -l",
        "out",
        "(7 bytes are cut from the middle)",
        "err",
        "exit 2, 0.00 s",
    ]
    assert "tokens    10, 4 of them sampled" in text
    assert "reward 1" in lines


def test_every_phase_of_an_episode_is_told() -> None:
    timing = Timing(
        queue_s=1.0, prepare_s=3.0, image_s=0.5, start_s=2.0, act_s=9.0, policy_s=6.0,
        command_s=2.5, wait_s=0.25, verify_s=1.5,
    )  # fmt: skip
    told = " ".join(printed(render_episode(episode(timing=timing))).split())
    assert (
        "queue 1.00, prepare 3.00 (image 0.50, start 2.00), act 9.00 (policy 6.00, commands 2.50),"
        " wait 0.25, verify 1.50"
    ) in told


def test_what_went_wrong_in_a_turn_is_told() -> None:
    broken = turn(
        CommandResult(exit_code=None, timed_out=True, shell_lost=True),
        problems=("no JSON",),
        warnings=("extra text",),
        done=True,
    )
    text = printed(render_episode(episode(turns=(broken, turn()))))
    assert "problem: no JSON" in text
    assert "warning: extra text" in text
    assert "no exit code, timed out, shell lost, 0.00 s" in text
    assert "the policy says it is done" in text
    assert "did not run: the episode ended before" in text


def test_a_verdict_tells_tests_log_and_failure() -> None:
    tests = (TestOutcome(name="t1", status="passed"), TestOutcome(name="t2", status="failed"))
    graded = Verdict(reward=0.0, tests=tests, log_tail="1 passed, 1 failed")
    text = printed(render_episode(episode(verdict=graded)))
    assert "✓ t1 passed" in text
    assert "✗ t2 failed" in text
    assert "1 passed, 1 failed" in text
    failure = Failure(stage="act", error="SandboxError", message="connection lost")
    text = printed(render_episode(episode(verdict=GONE, failure=failure)))
    assert "reward infrastructure" in text
    assert "sandbox_lost: it is gone" in text
    assert "SandboxError in act: connection lost" in text


def test_a_missing_reward_is_named_after_its_fault() -> None:
    silent = Verdict(reward=None, fault=VerdictFault.VERIFIER, reason="reward_missing: none")
    assert "verifier" in printed(render_run([episode(verdict=silent)]))


HOSTILE = "a\x1b[2Jb\rc\x07\u202egnp\x9b31m"


def test_nothing_a_task_or_a_model_wrote_controls_the_terminal() -> None:
    result = CommandResult(exit_code=0, stdout=HOSTILE.encode(), stderr=b"\x1b]0;title\x07")
    hostile = Turn(
        text=HOSTILE,
        commands=(Command(text=HOSTILE),),
        results=(result,),
        problems=(HOSTILE,),
        warnings=(HOSTILE,),
    )
    whole = episode(
        id=HOSTILE,
        task=HOSTILE,
        instruction=HOSTILE,
        stop_detail=HOSTILE,
        turns=(hostile,),
        verdict=Verdict(
            reward=None,
            reason=HOSTILE,
            log_tail=HOSTILE,
            tests=(TestOutcome(name=HOSTILE, status=HOSTILE),),
        ),
        failure=Failure(stage=HOSTILE, error=HOSTILE, message=HOSTILE),
    )
    for renderable in (render_episode(whole), render_run([whole])):
        text = printed(renderable)
        assert not set(text) & set("\x1b\r\x07\u202e\x9b")
        assert "\\x1b[2J" in text


@given(st.text())
def test_visible_text_is_unchanged_but_for_control(text: str) -> None:
    shown = visible(text)
    assert visible(shown) == shown
    if text.isprintable():
        assert shown == text


def test_line_ends_of_a_terminal_are_line_ends() -> None:
    assert visible("a\r\nb\tc") == "a\nb\tc"
