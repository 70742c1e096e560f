"""Real runs to exchange, and Harbor's own Python to judge what comes of them."""

import asyncio
import json
import os
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from headrace.configs.models import RunConfig
from headrace.engine import runner

ROOT = Path(__file__).parent.parent.parent
HARBOR = ROOT / ".harbor" / "bin" / "python"
READS = Path(__file__).with_name("harbor_reads.py")
EXAMPLES = ROOT / "tests" / "data" / "harbor"
DONE = '{"analysis": "", "plan": "", "commands": [], "task_complete": true}'
ANSWERS = (
    '{"analysis": "a", "plan": "p", "commands": [{"keystrokes": "echo \'žluť\' > out.txt\\n",'
    ' "duration": 1.0}, {"keystrokes": "sleep 60\\n", "duration": 0.3}]}',
    "no JSON at all",
    '{"analysis": "a", "plan": "p", "commands": [{"keystrokes": "C-c", "duration": 1.0}]}',
    DONE,
)
SHELL = ("echo one; echo two >&2", "printf '\\377\\376 no text'", "false", "sleep 30", "exit 3")


@pytest.fixture(scope="session")
def harbor() -> Callable[..., list[Any]]:
    """Asks Harbor's own code about files; skips, with the reason, where it is not installed."""
    if not HARBOR.exists():
        pytest.skip("no Harbor in .harbor: scripts/install-harbor.sh .harbor")

    def ask(what: str, *paths: Path) -> list[Any]:
        done = subprocess.run(
            [HARBOR, READS, what, *paths],
            capture_output=True,
            text=True,
            timeout=100,
            env=os.environ | {"HARBOR_TELEMETRY": "0", "LITELLM_LOCAL_MODEL_COST_MAP": "True"},
        )
        assert done.returncode == 0, done.stderr[-2000:]
        return [json.loads(line) for line in done.stdout.splitlines()]

    return ask


@pytest.fixture(scope="session")
def runs(
    tmp_path_factory: pytest.TempPathFactory, unavailable: dict[str, str | None]
) -> dict[str, Path]:
    """By name: the folder of a run of each kind of policy, and of what goes wrong."""
    if unavailable["namespace"] is not None:
        pytest.skip(f"namespace: {unavailable['namespace']}")
    folder = tmp_path_factory.mktemp("runs")
    two = {"source": "first-steps", "limit": 2}
    kinds: dict[str, dict[str, Any]] = {
        "oracle": {"policy": {"type": "oracle"}, "tasks": two},
        "noop": {"policy": {"type": "noop"}, "tasks": two, "attempts": 2},
        "keys": {"policy": {"type": "scripted", "answers": ANSWERS}, "tasks": two},
        "shell": {
            "policy": {"type": "scripted", "commands": SHELL},
            "tasks": two,
            "limits": {"command_timeout_s": 0.5},
        },
        "steps": {
            "policy": {"type": "oracle"},
            "tasks": {"source": str(EXAMPLES), "include": ["*steps-two", "*separate-verifier"]},
        },
        "timeout": {
            "policy": {"type": "scripted", "commands": ["sleep 30"]},
            "tasks": two,
            "limits": {"agent_timeout_s": 0.5},
        },
    }
    for name, settings in kinds.items():
        config = RunConfig.model_validate({"sandbox": {"provider": "namespace"}} | settings)
        asyncio.run(runner.run(config, folder / name))
    return {name: folder / name for name in kinds}
