"""Exports of real runs, judged by Harbor's own validator, models and viewer."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from headrace.engine import atif
from headrace.engine.exchange import export_run
from headrace.engine.reader import latest_episodes
from headrace.errors import RunFolderError
from headrace.types import Episode, Failure, StopReason, Timing, Verdict, VerdictFault

pytestmark = [pytest.mark.namespace, pytest.mark.timeout(180)]
Ask = Callable[..., list[Any]]


def export(run: Path, format: str, out: Path) -> int:
    damages: list[object] = []
    written = export_run(run, format, out, on_damage=damages.append)
    assert damages == []
    return written


def failed_episode() -> Episode:
    """The infrastructure failed before the first turn."""
    return Episode(
        id="0123456789abcdef",
        task="org/a task, with a long name that goes on and on",
        task_digest="d",
        sample=0,
        policy="vllm",
        policy_version="v",
        provider="docker",
        instruction="",
        stop_reason=StopReason.SANDBOX_ERROR,
        verdict=Verdict(reward=None, fault=VerdictFault.INFRASTRUCTURE, reason="SandboxError: no"),
        failure=Failure(stage="prepare", error="SandboxError", message="no"),
        timing=Timing(prepare_s=1.0),
    )


def test_harbor_accepts_the_trajectory_of_every_kind_of_run(
    runs: dict[str, Path], harbor: Ask, tmp_path: Path
) -> None:
    counts = {name: export(run, "atif", tmp_path / name) for name, run in runs.items()}
    assert counts == {"oracle": 2, "noop": 4, "keys": 2, "shell": 2, "steps": 2, "timeout": 2}
    broken = tmp_path / "failed.json"
    broken.write_bytes(msgspec.json.encode(atif.trajectory(failed_episode())))
    told = harbor("atif", *sorted(tmp_path.rglob("*.json")))
    assert len(told) == 15
    assert [entry for entry in told if entry["errors"]] == []


def test_harbors_validator_does_refuse_what_is_wrong(harbor: Ask, tmp_path: Path) -> None:
    document = atif.trajectory(failed_episode())
    document["steps"][0]["step_id"] = 2
    (tmp_path / "wrong.json").write_bytes(msgspec.json.encode(document))
    assert harbor("atif", tmp_path / "wrong.json")[0]["errors"]


def test_keystrokes_and_shell_commands_have_the_names_harbor_knows(
    runs: dict[str, Path], tmp_path: Path
) -> None:
    keys = next(latest_episodes(runs["keys"]))
    steps = atif.trajectory(keys)["steps"]
    assert [step["source"] for step in steps] == ["user"] + ["agent"] * len(keys.turns)
    first = steps[1]["tool_calls"][0]
    assert (first["function_name"], first["arguments"]) == (
        "bash_command",
        {"keystrokes": "echo 'žluť' > out.txt\n", "duration": 1.0},
    )
    assert steps[2].get("tool_calls") is None, "an answer that cannot be read calls nothing"
    assert steps[2]["extra"]["headrace"]["problems"]
    assert steps[-1]["tool_calls"][-1]["function_name"] == "mark_task_complete"
    assert steps[1]["observation"]["results"][0]["content"] == keys.observations[0]
    shell = next(latest_episodes(runs["shell"]))
    call = atif.trajectory(shell)["steps"][1]["tool_calls"][0]
    assert (call["function_name"], call["arguments"]["command"]) == (
        "bash",
        "echo one; echo two >&2",
    )


def test_what_atif_has_no_place_for_is_in_extra(runs: dict[str, Path]) -> None:
    episode = next(latest_episodes(runs["oracle"]))
    document = atif.trajectory(episode, model="a-model")
    told = document["extra"]["headrace"]
    assert told["verdict"]["reward"] == 1.0
    assert (told["task"], told["sample"]) == (episode.task, 0)
    assert document["final_metrics"]["extra"] == {"reward": 1.0}
    assert document["agent"]["model_name"] == "a-model"


def test_no_path_of_this_machine_leaves_with_an_upload(runs: dict[str, Path]) -> None:
    episode = next(latest_episodes(runs["oracle"]))
    uploads = [up for turn in episode.turns for up in turn.uploads]
    assert uploads, "the oracle brings its solution"
    text = json.dumps(atif.trajectory(episode)["steps"])
    assert not any(up.source in text for up in uploads)


def test_harbor_reads_the_job_folders_and_its_viewer_shows_them(
    runs: dict[str, Path], harbor: Ask, tmp_path: Path
) -> None:
    for name, run in runs.items():
        assert export(run, "harbor-job", tmp_path / name) > 0
    for run, told in zip(runs.values(), harbor("job", *map(tmp_path.joinpath, runs)), strict=True):
        episodes = list(latest_episodes(run))
        assert told["completed"] == len(episodes) == len(told["trials"])
        assert {page: code for page, code in told["viewer"].items() if code != 200} == {}
        trials = {key.rpartition("__")[2]: trial for key, trial in told["trials"].items()}
        for episode in episodes:
            trial = trials[episode.id[:7]]
            rewards = None if episode.verdict.reward is None else episode.verdict.rewards
            assert trial["rewards"] == rewards
            assert trial["steps"] == [step.name for step in episode.steps]
            timed_out = episode.stop_reason is StopReason.AGENT_TIMEOUT
            assert (trial["error"] == "AgentTimeoutError") is timed_out


def test_artifacts_travel_with_the_trial(runs: dict[str, Path], tmp_path: Path) -> None:
    export(runs["steps"], "harbor-job", tmp_path / "job")
    kept = list((tmp_path / "job").glob("*/artifacts/app/answer.txt"))
    assert [path.read_text() for path in kept] == ["5050\n"]
    manifest = json.loads((kept[0].parent.parent / "manifest.json").read_bytes())
    assert manifest[0]["status"] == "ok"


def test_json_lines_have_one_line_for_each_episode(runs: dict[str, Path], tmp_path: Path) -> None:
    export(runs["noop"], "jsonl", tmp_path / "lines")
    lines = (tmp_path / "lines" / "episodes.jsonl").read_text().splitlines()
    assert len({json.loads(line)["id"] for line in lines}) == 4


def test_a_folder_that_is_not_empty_is_not_written_into(
    runs: dict[str, Path], tmp_path: Path
) -> None:
    (tmp_path / "mine.txt").touch()
    with pytest.raises(RunFolderError, match=r"mine\.txt"):
        export(runs["noop"], "atif", tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]
