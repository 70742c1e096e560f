"""Whole runs of small Terminal-Bench 1.0 tasks, through the real runner on both providers."""

from pathlib import Path

import pytest

from headrace.configs.models import RunConfig
from headrace.engine import runner
from headrace.engine.reader import latest_episodes
from headrace.errors import TaskError
from headrace.sandbox.compose_cli import ComposeCli
from headrace.sandbox.docker import socket_path
from headrace.types import Episode, VerdictFault

DATA = Path(__file__).parent / "data" / "terminal-bench-1"
TASKS = sorted(path.name for path in DATA.iterdir() if path.is_dir())


COMPOSE = DATA.parent / "terminal-bench-1-compose"


async def run(
    provider: str, folder: Path, policy: str, *, compat: str = "correct", source: Path = DATA
) -> dict[str, Episode]:
    config = RunConfig.model_validate(
        {
            "tasks": {"source": str(source)},
            "policy": {"type": policy},
            "sandbox": {"provider": provider},
            "verifier": {"compat": compat},
            "engine": {"live": 6, "preparing": 4, "verifying": 3, "tries": 1},
        }
    )
    await runner.run(config, folder / "run")
    return {episode.task: episode for episode in latest_episodes(folder / "run")}


@pytest.mark.timeout(180)
async def test_the_oracle_solves_every_task(provider: str, tmp_path: Path) -> None:
    episodes = await run(provider, tmp_path, "oracle")
    failed = [
        (e.task, e.verdict.reason, e.failure, e.verdict.log_tail)
        for e in episodes.values()
        if not e.verdict.passed
    ]
    assert failed == []
    assert sorted(episodes) == TASKS


@pytest.mark.timeout(180)
async def test_doing_nothing_solves_none_and_says_why(provider: str, tmp_path: Path) -> None:
    episodes = await run(provider, tmp_path, "noop")
    assert sorted(episodes) == TASKS
    verdicts = {name: episode.verdict for name, episode in episodes.items()}
    assert not any(verdict.passed for verdict in verdicts.values())
    faults = {
        name: (verdict.reason or "").partition(":")[0]
        for name, verdict in verdicts.items()
        if verdict.fault is not None
    }
    assert faults == {
        "empty-summary": "no_tests", "no-summary": "parse_error",
        "test-that-waits": "test_timeout",
    }  # fmt: skip
    assert {v.fault for v in verdicts.values()} == {None, VerdictFault.VERIFIER}
    assert verdicts["partial"].pass_ratio == 0.5
    differ = {name: verdict.other for name, verdict in verdicts.items() if verdict.other}
    assert {name: (other.compat, other.reward) for name, other in differ.items()} == {
        "duplicate-names": ("strict", 1.0), "empty-summary": ("strict", 1.0),
    }  # fmt: skip


@pytest.mark.namespace
@pytest.mark.timeout(180)
async def test_strict_solves_what_the_official_harness_would(
    unavailable: dict[str, str | None], tmp_path: Path
) -> None:
    if unavailable["namespace"]:
        pytest.skip(unavailable["namespace"])
    episodes = await run("namespace", tmp_path, "noop", compat="strict")
    solved = sorted(name for name, episode in episodes.items() if episode.verdict.passed)
    assert solved == ["duplicate-names", "empty-summary"]


@pytest.mark.docker
@pytest.mark.timeout(180)
@pytest.mark.parametrize(("policy", "reward"), [("oracle", 1.0), ("noop", 0.0)])
async def test_a_task_of_several_containers_is_run_by_docker_compose(
    unavailable: dict[str, str | None], tmp_path: Path, policy: str, reward: float
) -> None:
    reason = unavailable["docker"] or await ComposeCli(socket_path()).lacks()
    if reason:
        pytest.skip(reason)
    episodes = await run("docker", tmp_path, policy, source=COMPOSE)
    verdict = episodes["client-and-server"].verdict
    assert (verdict.reward, verdict.fault) == (reward, None), verdict.log_tail


@pytest.mark.namespace
async def test_a_task_of_several_containers_is_refused_where_sandboxes_stand_alone(
    unavailable: dict[str, str | None], tmp_path: Path
) -> None:
    if unavailable["namespace"]:
        pytest.skip(unavailable["namespace"])
    with pytest.raises(TaskError, match=r"docker-compose\.yaml\) with client, server"):
        await run("namespace", tmp_path, "noop", source=COMPOSE)
