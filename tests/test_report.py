"""The last lines of a run."""

from pathlib import Path
from typing import Any

import msgspec

from headrace.cli.report import summary_lines
from headrace.engine.summary import EngineSummary, PhaseSummary, SandboxSummary, Summary

SANDBOX = SandboxSummary(
    provider="namespace", started=21, start_p50_s=0.0123, start_p99_s=0.25, command_p50_s=0.0009
)
SUMMARY = Summary(
    run="r", tasks=20, planned=20, episodes=20, passed=3, failed=16, infra_failures=1, owed=1,
    stop_reasons={"done": 4, "max_turns": 16}, pass_at_k={"1": 0.15}, wall_s=75.0,
    episodes_per_s=0.27, turns=77, turns_per_s=1.03, sampled_tokens=4704,
    sampled_tokens_per_s=62.7, sandbox=SANDBOX,
    engine=EngineSummary(loop_lag_p99_s=None, cpu_s_per_turn=None), versions={},
)  # fmt: skip


def lines(**changes: Any) -> list[str]:
    return summary_lines(msgspec.structs.replace(SUMMARY, **changes), Path("runs/one"))


def test_the_end_says_what_came_of_it_and_what_to_do_next() -> None:
    assert lines() == [
        "20 of 20 episodes over 20 tasks: 3 passed, 16 failed, 1 infrastructure failure",
        "pass@1 0.150",
        "stopped by max_turns 16, done 4",
        "1:15  0.3 episodes/s  77 turns (1.0/s)  4704 sampled tokens (63/s)",
        "21 namespace sandboxes: start 12 ms p50, 0.25 s p99; command 0.9 ms p50",
        "1 episode owed: the same command again runs only those",
        "see: headrace show runs/one",
    ]


def test_episodes_that_their_groups_went_on_without_are_told() -> None:
    told = lines(episodes=13, owed=0, dropped=7)
    assert "7 episodes dropped: their groups went on without them" in told


def test_the_phases_of_an_episode_are_a_table() -> None:
    phases = {
        "verify": PhaseSummary(p50_s=1.4, p99_s=130.0, total_s=300.0),
        "queue": PhaseSummary(p50_s=0.0, p99_s=7.03, total_s=9.0),
        "act": PhaseSummary(p50_s=1.0, p99_s=2.0, total_s=9.0),
    }
    told = lines(engine=msgspec.structs.replace(SUMMARY.engine, phases=phases))
    assert told[5:8] == ["episode  queue  verify", "p50      0      1.4 s", "p99      7 s    130 s"]


def test_turns_of_episodes_that_were_cut_are_no_rate_beside_none() -> None:
    assert "0 turns" in lines(turns=0, turns_per_s=1.3)[3].split("  ")


def test_what_would_say_nothing_is_left_out() -> None:
    nothing = SandboxSummary(
        provider="namespace", started=0, start_p50_s=None, start_p99_s=None, command_p50_s=None
    )
    told = lines(
        tasks=0, episodes=0, passed=0, failed=0, infra_failures=0, owed=0, stop_reasons={},
        pass_at_k={}, turns=0, sampled_tokens=0, sandbox=nothing,
    )  # fmt: skip
    assert told == [
        "0 of 20 episodes over 0 tasks: 0 passed, 0 failed, 0 infrastructure failures",
        "1:15  0.3 episodes/s  0 turns",
        "see: headrace show runs/one",
    ]


def test_sandboxes_without_a_command_have_no_command_time() -> None:
    quiet = msgspec.structs.replace(SANDBOX, started=1, command_p50_s=None)
    assert "1 namespace sandbox: start 12 ms p50, 0.25 s p99" in lines(sandbox=quiet)


def test_pass_at_k_shows_the_powers_of_two_and_the_largest_k() -> None:
    told = lines(pass_at_k={str(k): k / 100 for k in range(1, 101)})[1]
    assert told == "pass@1 0.010  pass@2 0.020  pass@4 0.040  pass@8 0.080  pass@100 1.000"


def test_a_single_task_is_not_plural() -> None:
    assert lines(tasks=1)[0].startswith("20 of 20 episodes over 1 task: ")
