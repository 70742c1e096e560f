"""Every phase of a task on real sandboxes: steps, users, health, artifacts, two sandboxes."""

import json
from pathlib import Path

import pytest

from headrace.configs.models import RunConfig, SandboxConfig, TasksConfig
from headrace.engine import runner
from headrace.engine.reader import latest_episodes
from headrace.types import Episode, StopReason

EXAMPLES = Path(__file__).parent / "data" / "harbor"
PLAIN = ("*steps-two", "*separate-verifier", "*healthcheck", "*users")


async def run(provider: str, policy: dict[str, object], out: Path, *include: str) -> list[Episode]:
    config = RunConfig.model_validate(
        {
            "policy": policy,
            "sandbox": SandboxConfig.model_validate({"provider": provider}),
            "tasks": TasksConfig(source=str(EXAMPLES), include=include or PLAIN),
        }
    )
    await runner.run(config, out)
    return sorted(latest_episodes(out), key=lambda e: e.task)


@pytest.mark.timeout(120)
async def test_the_oracle_solves_every_example(provider: str, tmp_path: Path) -> None:
    episodes = await run(provider, {"type": "oracle"}, tmp_path / "run")
    failed = [(e.task, e.verdict, e.failure) for e in episodes if not e.verdict.passed]
    assert failed == []
    assert [e.task for e in episodes] == [
        "examples/healthcheck",
        "examples/separate-verifier",
        "examples/steps-two",
        "examples/users",
    ]
    apart, steps = episodes[1], episodes[2]
    folder = tmp_path / "run" / "artifacts"
    assert [(a.source, a.status) for a in apart.artifacts] == [("/app/answer.txt", "ok")]
    assert (folder / apart.id / "app/answer.txt").read_text() == "5050\n"
    assert [(s.name, s.stop_reason, s.verdict.reward) for s in steps.steps] == [
        ("collect", StopReason.DONE, 1.0),
        ("count", StopReason.DONE, 1.0),
    ]
    assert [turn.step for turn in steps.turns] == ["collect", "count"]
    assert (folder / steps.id / "steps/collect/app/words.txt").read_text() == "one\ntwo\nthree\n"
    manifest = json.loads((folder / steps.id / "manifest.json").read_bytes())
    assert [entry["destination"] for entry in manifest] == [a.destination for a in steps.artifacts]
    assert steps.artifacts[-1].destination == "steps/count/app/total.txt"


@pytest.mark.timeout(120)
async def test_doing_nothing_solves_no_example(provider: str, tmp_path: Path) -> None:
    episodes = await run(provider, {"type": "noop"}, tmp_path / "run")
    assert [e.verdict.reward for e in episodes] == [0.0] * 4
    steps = episodes[2]
    assert [s.name for s in steps.steps] == ["collect"], "its min_reward was missed"
    assert {a.status for a in steps.artifacts} == {"missing"}
