"""A real model's episode as ATIF: every token goes out, and comes back."""

import json
from pathlib import Path
from typing import Any

import pytest

from headrace.configs.models import RunConfig
from headrace.engine import runner
from headrace.engine.atif import trajectory
from headrace.engine.exchange import export_run, import_run
from headrace.engine.reader import latest_episodes

pytestmark = [pytest.mark.vllm, pytest.mark.namespace, pytest.mark.timeout(400)]


async def test_every_token_of_a_model_goes_out_and_comes_back(
    host: Any, tmp_path: Path, unavailable: dict[str, str | None]
) -> None:
    if unavailable["namespace"] is not None:
        pytest.skip(f"namespace: {unavailable['namespace']}")
    policy = {"type": "vllm", "base_url": host.base_url, "sampling": {"max_tokens": 40}}
    config = RunConfig.model_validate(
        {
            "policy": policy | {"protocol": "shell-block"},
            "tasks": {"source": "first-steps", "limit": 2},
            "limits": {"max_turns": 3, "command_timeout_s": 5.0},
            "sandbox": {"provider": "namespace"},
        }
    )
    await runner.run(config, tmp_path / "run")
    episodes = {e.id: e for e in latest_episodes(tmp_path / "run")}
    export_run(tmp_path / "run", "atif", tmp_path / "out", on_damage=lambda damage: None)
    for path in (tmp_path / "out").glob("*.json"):
        document = json.loads(path.read_bytes())
        episode = episodes[document["trajectory_id"]]
        sampled = [s["metrics"] for s in document["steps"] if "metrics" in s]
        assert len(sampled) == len(episode.turns)
        assert sum(len(m["completion_token_ids"]) for m in sampled) == episode.sampled_tokens
        assert all(len(m["logprobs"]) == m["completion_tokens"] for m in sampled)
        assert document == json.loads(json.dumps(trajectory(episode, model="smollm2-135m")))
    await import_run(tmp_path / "out", tmp_path / "back")
    assert {e.id: e for e in latest_episodes(tmp_path / "back")} == episodes
