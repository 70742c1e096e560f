"""A whole run with the real model: nothing is lost when its server is killed in the middle."""

import os
import signal
from pathlib import Path

import pytest

from headrace.configs.models import (
    EngineConfig,
    LimitsConfig,
    RunConfig,
    SamplingConfig,
    SandboxConfig,
    ServerConfig,
    TasksConfig,
    VllmConfig,
)
from headrace.engine import runner
from headrace.engine.events import EpisodeRetried, Event, TurnFinished
from headrace.engine.reader import latest_episodes
from headrace.policies.rendering import Chat

pytestmark = [pytest.mark.vllm, pytest.mark.namespace, pytest.mark.timeout(500)]


def descendants(pid: int) -> list[int]:
    """Processes below `pid`, from /proc."""
    found: list[int] = []
    for task in Path(f"/proc/{pid}/task").glob("*/children"):
        for child in task.read_text().split():
            found += [int(child), *descendants(int(child))]
    return found


def server_pid(among: set[int]) -> int:
    """The model server that this run started."""
    for pid in among:
        command = Path(f"/proc/{pid}/cmdline").read_bytes()
        if b"server_main.py" in command and b"server_keeper.py" not in command:
            return pid
    raise AssertionError("no model server is running below this run")


def alive(pids: set[int]) -> list[int]:
    return [pid for pid in sorted(pids) if Path(f"/proc/{pid}").exists()]


async def test_a_server_killed_in_mid_run_costs_tries_and_no_episode(
    small_model: Path, chat: Chat, tmp_path: Path, unavailable: dict[str, str | None]
) -> None:
    if unavailable["namespace"] is not None:
        pytest.skip(f"namespace: {unavailable['namespace']}")
    config = RunConfig(
        attempts=2,
        tasks=TasksConfig(limit=4),
        policy=VllmConfig(
            model=str(small_model),
            protocol="shell-block",
            structured=True,
            sampling=SamplingConfig(max_tokens=32, temperature=0.5),
            server=ServerConfig(
                kv_cache_gib=1, max_model_len=2048, max_num_seqs=16, start_timeout_s=240.0
            ),
        ),
        sandbox=SandboxConfig(provider="namespace"),
        limits=LimitsConfig(max_turns=3, command_timeout_s=5.0),
        engine=EngineConfig(live=4),
    )
    others = set(descendants(os.getpid()))  # the other tests' server
    events: list[Event] = []
    killed: list[int] = []
    started: set[int] = set()

    def watch(event: Event) -> None:
        events.append(event)
        if isinstance(event, TurnFinished) and not killed:
            started.update(set(descendants(os.getpid())) - others)
            killed.append(server_pid(started))
            os.kill(killed[0], signal.SIGKILL)

    summary = await runner.run(config, tmp_path / "run", on_event=watch)

    retried = [e.error for e in events if isinstance(e, EpisodeRetried)]
    assert killed
    assert retried
    assert all(error.startswith("ServerGone") for error in retried)
    assert (summary.episodes, summary.owed, summary.infra_failures) == (8, 0, 0)
    for episode in latest_episodes(tmp_path / "run"):
        (segment,) = episode.segments
        ids = segment.tokens()
        for span in segment.spans:
            sampled = list(ids[span.start : span.end])
            decoded = chat.vocabulary.decode(sampled, control=False)
            assert decoded == episode.turns[span.turn].text
        assert len(segment.spans) == len(episode.turns)
    assert alive(started) == []
