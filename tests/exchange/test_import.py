"""Imports: our own exports come back as they were, everybody else's as far as they say."""

import asyncio
import json
import os
import subprocess
import sys
from array import array
from pathlib import Path
from typing import Any

import msgspec
import pytest

from headrace.engine import atif
from headrace.engine.atif_import import Around, to_episode
from headrace.engine.atif_reading import VERSIONS, parse_document
from headrace.engine.exchange import export_run, import_run
from headrace.engine.reader import latest_episodes
from headrace.engine.resume import is_owed
from headrace.engine.run_folder import read_manifest
from headrace.errors import TrajectoryError
from headrace.types import (
    Collected,
    Command,
    CommandResult,
    Episode,
    OtherReading,
    Segment,
    Span,
    StepResult,
    StopReason,
    TestOutcome,
    Turn,
    Upload,
    Verdict,
    VerdictFault,
)


def without_sources(episode: Episode) -> Episode:
    """An export keeps no path of the machine: uploads come back without theirs."""
    turns = tuple(
        msgspec.structs.replace(
            turn, uploads=tuple(Upload(source="", target=up.target) for up in turn.uploads)
        )
        for turn in episode.turns
    )
    return msgspec.structs.replace(episode, turns=turns)


def with_tokens() -> Episode:
    """Two segments, three samples, a turn without one, bytes that are no text."""

    def segment(count: int, *spans: Span) -> Segment:
        logprobs = array("f", [0.0] * count)
        for span in spans:
            for at in range(span.start, span.end):
                logprobs[at] = -0.1 * at - 1e-7
        return Segment(
            token_ids=array("I", range(7, 7 + count)).tobytes(),
            logprobs=logprobs.tobytes(),
            spans=spans,
        )

    ran = CommandResult(exit_code=0, stdout=b"\xff\xfe", stderr=b"two", duration_s=0.5)
    turns = (
        Turn(text="one", commands=(Command(text="ls"),), results=(ran,), policy_s=1.5),
        Turn(text="", problems=("no JSON object found",), warnings=("odd",)),
        Turn(text="three", commands=(Command(text="C-c", keys=True, timeout_s=2.0),)),
        Turn(text="four", done=True, step="last"),
    )
    return Episode(
        id="abcdef0123456789",
        task="org/slug",
        task_digest="d",
        sample=3,
        policy="vllm",
        policy_version="v",
        provider="docker",
        instruction="Do it.",
        prompt="You work in a shell.\nDo it.",
        turns=turns,
        observations=("shown", "", "again"),
        segments=(
            segment(9, Span(turn=0, start=4, end=6), Span(turn=1, start=8, end=9)),
            segment(5, Span(turn=3, start=3, end=5)),
        ),
        stop_reason=StopReason.DONE,
        verdict=Verdict(reward=0.25, rewards={"reward": 0.25, "style": -2.0}, log_tail="end"),
        started_at=1.7e9,
    )


def back(episode: Episode) -> Episode:
    data = msgspec.json.encode(atif.trajectory(episode))
    return to_episode(parse_document(data, "x"), Around(), name="x")


def test_an_episode_with_tokens_comes_back_to_the_last_bit() -> None:
    episode = with_tokens()
    assert back(episode) == episode


@pytest.mark.namespace
@pytest.mark.timeout(180)
@pytest.mark.parametrize("name", ["oracle", "noop", "keys", "shell", "steps", "timeout"])
async def test_an_exported_run_comes_back_episode_by_episode(
    name: str, runs: dict[str, Path], tmp_path: Path
) -> None:
    export_run(runs[name], "atif", tmp_path / "out", on_damage=lambda damage: None)
    done = await import_run(tmp_path / "out", tmp_path / "back")
    assert done.left_out == ()
    before = {e.id: without_sources(e) for e in latest_episodes(runs[name])}
    assert {e.id: e for e in latest_episodes(tmp_path / "back")} == before
    manifest = read_manifest(tmp_path / "back")
    assert set(manifest.tasks) == {e.task for e in before.values()}


def foreign(version: str = "ATIF-v1.4", **changes: Any) -> dict[str, Any]:
    """A trajectory as another program writes it: Terminus-2's calls, one result for all."""
    call = {
        "tool_call_id": "c1",
        "function_name": "bash_command",
        "arguments": {"keystrokes": "ls\n", "duration": 0.5},
    }
    steps = [
        {"step_id": 1, "source": "system", "message": "Be good."},
        {"step_id": 2, "source": "user", "message": "Do it.", "timestamp": "2026-01-02T03:04:05Z"},
        {
            "step_id": 3,
            "source": "agent",
            "message": "Listing.",
            "reasoning_content": "hm",
            "tool_calls": [call],
            "observation": {"results": [{"content": "a  b"}]},
            "metrics": {"prompt_tokens": 3, "cost_usd": 0.1},
        },
        {"step_id": 4, "source": "user", "message": "Go on."},
        {
            "step_id": 5,
            "source": "agent",
            "message": "",
            "tool_calls": [
                {"tool_call_id": "c2", "function_name": "exec", "arguments": {"cmd": "make"}},
                {"tool_call_id": "c3", "function_name": "search", "arguments": {"query": "x"}},
                {"tool_call_id": "c4", "function_name": "mark_task_complete", "arguments": {}},
            ],
            "observation": {"results": [{"source_call_id": "c2", "content": "made"}]},
        },
    ]
    agent = {"name": "terminus-2", "version": "2.0.0", "model_name": "m"}
    return {"schema_version": version, "session_id": "s", "agent": agent, "steps": steps} | changes


def read(document: dict[str, Any], around: Around | None = None) -> Episode:
    data = json.dumps(document).encode()
    return to_episode(parse_document(data, "x"), around or Around(), name="x")


@pytest.mark.parametrize("version", VERSIONS)
def test_every_version_is_read(version: str) -> None:
    episode = read(foreign(version))
    assert (episode.policy, episode.instruction) == ("terminus-2", "Be good.\n\nDo it.")
    first, second = episode.turns
    assert first.text == "<think>\nhm\n</think>\nListing."
    assert first.commands == (Command(text="ls\n", keys=True, timeout_s=0.5),)
    assert episode.observations == ("a  b\n\nGo on.", "made")
    assert second.commands == (Command(text="make"),)
    assert second.results == (CommandResult(exit_code=None, stdout=b"made"),)
    assert (second.done, episode.stop_reason) == (True, StopReason.DONE)
    assert second.warnings == ("the tool call search is no shell command",)
    assert episode.segments == ()


def test_what_nobody_graded_has_no_reward_and_a_named_reason() -> None:
    episode = read(foreign())
    assert episode.verdict.reward is None
    assert (episode.verdict.reason or "").startswith("not_graded:")
    assert is_owed(episode), "it is left out of every rate"


def test_tokens_are_joined_where_one_prompt_extends_the_other() -> None:
    document = foreign()
    for step, prompt in ((2, [1, 2, 3]), (4, [1, 2, 3, 9, 4])):
        document["steps"][step]["metrics"] = {
            "prompt_token_ids": prompt,
            "completion_token_ids": [9],
            "logprobs": [-0.5],
        }
    (segment,) = read(document).segments
    assert segment.tokens().tolist() == [1, 2, 3, 9, 4, 9]
    assert list(segment.loss_mask()) == [0, 0, 0, 1, 0, 1]
    document["steps"][4]["metrics"]["prompt_token_ids"] = [1, 5]
    assert [s.tokens().tolist() for s in read(document).segments] == [[1, 2, 3, 9], [1, 5, 9]]


def test_copied_steps_are_not_turns_of_this_trajectory() -> None:
    document = foreign()
    document["steps"][2]["is_copied_context"] = True
    assert len(read(document).turns) == 1


BROKEN: dict[str, bytes] = {
    "empty": b"",
    "no-json": b"{",
    "no-object": b"[]",
    "no-utf8": b'{"schema_version": "\xff"}',
    "deep": b'{"steps":' + b"[" * 100_000,
    "no-steps": json.dumps(foreign(steps=[])).encode(),
    "new-version": json.dumps(foreign("ATIF-v9.0")).encode(),
    "no-agent": json.dumps(foreign(agent=None)).encode(),
    "steps-out-of-order": json.dumps(foreign(steps=foreign()["steps"][1:])).encode(),
    "unknown-source": json.dumps(foreign()).replace('"system"', '"tool"').encode(),
    "unknown-call": json.dumps(foreign()).replace('"source_call_id": "c2"', '"source_call_id": "z"')
    .encode(),
    "ours-but-broken": json.dumps(foreign(extra={"headrace": {"id": 1}})).encode(),
}  # fmt: skip


async def test_each_broken_file_is_named_and_the_others_are_imported(tmp_path: Path) -> None:
    source = tmp_path / "in"
    source.mkdir()
    for name, data in BROKEN.items():
        (source / f"{name}.json").write_bytes(data)
    (source / "good.json").write_text(json.dumps(foreign()))
    (source / "good-too.json").write_text(json.dumps(foreign("ATIF-v1.0")))
    done = await import_run(source, tmp_path / "run")
    assert done.episodes == 2
    assert len(done.left_out) == len(BROKEN)
    for name in BROKEN:
        assert any(f"{name}.json" in message for message in done.left_out)
    kept = list(latest_episodes(tmp_path / "run"))
    assert [e.sample for e in kept] == [0, 1], "two attempts of one group"
    assert len({e.id for e in kept}) == 2


async def test_what_is_no_regular_file_is_named_and_not_waited_for(tmp_path: Path) -> None:
    agent = tmp_path / "job" / "t__aaaaaaa" / "agent"
    agent.mkdir(parents=True)
    (agent / "trajectory.json").write_text(json.dumps(foreign()))
    os.mkfifo(agent.parent / "result.json")
    endless = tmp_path / "job" / "t__bbbbbbb" / "agent"
    endless.mkdir(parents=True)
    os.mkfifo(endless / "trajectory.json")
    rewards = tmp_path / "rewards.json"
    rewards.write_text('{"s": 1}')
    done = await import_run(tmp_path / "job", tmp_path / "run", rewards)
    assert done.episodes == 1
    assert [e.verdict.reward for e in latest_episodes(tmp_path / "run")] == [1.0]
    assert [line.endswith("found no regular file") for line in done.left_out] == [True]


async def test_nothing_to_import_is_a_message(tmp_path: Path) -> None:
    with pytest.raises(TrajectoryError, match="found nothing"):
        await import_run(tmp_path / "missing", tmp_path / "run")
    (tmp_path / "empty").mkdir()
    with pytest.raises(TrajectoryError, match="no JSON file"):
        await import_run(tmp_path / "empty", tmp_path / "run")


async def test_rewards_come_from_a_file_by_name_or_by_id(tmp_path: Path) -> None:
    source = tmp_path / "in"
    source.mkdir()
    (source / "by-name.json").write_text(json.dumps(foreign(session_id="other")))
    (source / "by-id.json").write_text(json.dumps(foreign()))
    rewards = tmp_path / "rewards.json"
    rewards.write_text('{"by-name": 1, "s": 0.5}')
    await import_run(source, tmp_path / "run", rewards)
    found = sorted(e.verdict.reward or 0.0 for e in latest_episodes(tmp_path / "run"))
    assert found == [0.5, 1.0]
    rewards.write_text('{"a": "much"}')
    with pytest.raises(TrajectoryError, match="a reward by name"):
        await import_run(source, tmp_path / "run-2", rewards)


async def test_a_harbor_job_is_imported_with_its_tasks_and_rewards(tmp_path: Path) -> None:
    job = tmp_path / "job"
    for name, result in {
        "t__aaaaaaa": {"task_name": "org/t", "verifier_result": {"rewards": {"a": 1, "b": 0.5}}},
        "t__bbbbbbb": {
            "task_name": "org/t",
            "verifier_result": None,
            "exception_info": {"exception_type": "RewardFileEmptyError", "exception_message": "e"},
        },
        "t__ccccccc": {
            "task_name": "org/t",
            "verifier_result": {"rewards": {"reward": 0}},
            "exception_info": {"exception_type": "AgentTimeoutError"},
        },
    }.items():
        (job / name / "agent").mkdir(parents=True)
        (job / name / "agent" / "trajectory.json").write_text(json.dumps(foreign()))
        (job / name / "result.json").write_text(json.dumps(result))
    await import_run(job, tmp_path / "run")
    episodes = list(latest_episodes(tmp_path / "run"))
    assert {e.task for e in episodes} == {"org/t"}
    assert [e.sample for e in episodes] == [0, 1, 2]
    assert [e.verdict.reward for e in episodes] == [0.75, None, 0.0]
    assert (episodes[1].verdict.reason or "").startswith("reward_empty:")
    assert episodes[2].stop_reason is StopReason.AGENT_TIMEOUT


async def test_a_verdict_of_ours_comes_back_whole_from_a_harbor_job(tmp_path: Path) -> None:
    verdict = Verdict(
        reward=0.25,
        rewards={"reward": 0.25, "style": -2.0},
        tests=(TestOutcome(name="t", status="failed"),),
        log_tail="\u2713 end",
        duration_s=1.5,
        other=OtherReading(compat="strict", reward=1.0, reason="why"),
    )
    graded = msgspec.structs.replace(with_tokens(), verdict=verdict)
    broken = Verdict(reward=None, fault=VerdictFault.VERIFIER, reason="reward_missing: no file")
    failed = msgspec.structs.replace(with_tokens(), id="0123456789abcdef", verdict=broken)
    (tmp_path / "in").mkdir()
    for episode in (graded, failed):
        document = msgspec.json.encode(atif.trajectory(episode))
        (tmp_path / "in" / f"{episode.id}.json").write_bytes(document)
    await import_run(tmp_path / "in", tmp_path / "run")
    export_run(tmp_path / "run", "harbor-job", tmp_path / "job", on_damage=print)
    await import_run(tmp_path / "job", tmp_path / "back")
    found = {e.id: e.verdict for e in latest_episodes(tmp_path / "back")}
    assert found == {graded.id: verdict, failed.id: broken}
    rewards = tmp_path / "rewards.json"
    rewards.write_text(json.dumps({graded.id: 1}))
    await import_run(tmp_path / "job", tmp_path / "regraded", rewards)
    regraded = {e.id: e.verdict for e in latest_episodes(tmp_path / "regraded")}
    assert regraded == found | {graded.id: Verdict(reward=1.0, rewards={"reward": 1.0})}


def test_a_harbor_job_is_written_in_utf_8_whatever_the_locale_says(tmp_path: Path) -> None:
    checked = Verdict(reward=0.0, log_tail="\u2713 one test")
    episode = msgspec.structs.replace(with_tokens(), verdict=checked)
    (tmp_path / "in.json").write_bytes(msgspec.json.encode(atif.trajectory(episode)))
    asyncio.run(import_run(tmp_path / "in.json", tmp_path / "run"))
    plain = os.environ | {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    done = subprocess.run(
        [sys.executable, "-c", "from headrace.cli import main; main()"]
        + ["export", tmp_path / "run"]
        + ["--format", "harbor-job", "--out", tmp_path / "job"],
        capture_output=True,
        text=True,
        timeout=60,
        env=plain,
    )
    assert (done.returncode, done.stderr) == (0, "")
    (log,) = (tmp_path / "job").glob("*/verifier/test-stdout.txt")
    assert log.read_text(encoding="utf-8") == "\u2713 one test"


def test_no_name_in_a_trajectory_leads_out_of_an_export(tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.mkdir()
    (secret / "key.txt").write_text("mine")
    verdict = Verdict(reward=1.0)
    hostile = msgspec.structs.replace(
        with_tokens(),
        id="../../secret",
        task="../../up",
        steps=(StepResult(name="../../../up", stop_reason=StopReason.DONE, verdict=verdict),),
        artifacts=(Collected(source="/x", destination="../../../up", status="ok"),),
    )
    (tmp_path / "in").mkdir()
    document = msgspec.json.encode(atif.trajectory(hostile))
    (tmp_path / "in" / "a.json").write_bytes(document)
    asyncio.run(import_run(tmp_path / "in", tmp_path / "run"))
    before = set(tmp_path.iterdir())
    for format in ("atif", "harbor-job", "jsonl"):
        out = tmp_path / "out" / format
        assert export_run(tmp_path / "run", format, out, on_damage=lambda damage: None) == 1
        assert not list(out.rglob("key.txt"))
    assert set(tmp_path.iterdir()) == before | {tmp_path / "out"}
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"atif", "harbor-job", "jsonl"}
