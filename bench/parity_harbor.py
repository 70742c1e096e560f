"""The Harbor side of `bench.parity`: its own command line, in its own environment."""

import json
import os
import subprocess
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from bench.parity_model import Answers, serving
from bench.parity_outcome import Outcome
from bench.parity_tasks import ANSWERS, Ready

HARBOR = Path(__file__).parent.parent / ".harbor" / "bin" / "harbor"
DEADLINE_S = 1500.0
KINDS = {
    "AgentTimeoutError": "agent_timeout",
    "RewardFileNotFoundError": "reward_missing",
    "RewardFileEmptyError": "reward_empty",
    "VerifierOutputParseError": "reward_unparsable",
    "VerifierTimeoutError": "verifier_timeout",
}


def lacking() -> str | None:
    """Why Harbor cannot run here, or None."""
    if not HARBOR.exists():
        return "no Harbor in .harbor: make it with scripts/install-harbor.sh .harbor"
    command = ["docker", "compose", "version"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=30)
    except OSError as e:
        return f"no docker command line: {e.strerror}"
    return None if done.returncode == 0 else "no docker compose: scripts/docker-compose.sh up"


def run(ready: Ready, policy: str, work: Path, concurrency: int) -> dict[str, Outcome]:
    """Run one policy over the tasks with Harbor; the outcome by task."""
    job = f"parity-{policy}"
    with ExitStack() as stack:
        agent = ["--agent", {"oracle": "oracle", "noop": "nop", "terminus": "terminus-2"}[policy]]
        if policy == "terminus":
            # By instruction, for that is all a model sees of a task.
            instructions = [
                (task.name, part.instruction)
                for task in ready.tasks
                for part in (task.steps or (task,))
            ]
            address = stack.enter_context(serving(Answers(ANSWERS, instructions)))
            agent += ["--model", "openai/scripted", "--agent-kwarg", f"api_base={address}"]
            for setting in ("record_terminal_session=false", "enable_summarize=false"):
                agent += ["--agent-kwarg", setting]
        _call(
            ["run", "--path", str(ready.harbors), *agent]
            + ["--n-concurrent", str(concurrency), "--jobs-dir", str(work / "jobs")]
            + ["--job-name", job, "--yes", "--quiet"]
        )
    results = sorted((work / "jobs" / job).glob("*/result.json"))
    return dict(_outcome(json.loads(path.read_text())) for path in results)


def _call(arguments: Sequence[str]) -> None:
    environment = os.environ | {
        "HARBOR_TELEMETRY": "0",
        "LITELLM_LOCAL_MODEL_COST_MAP": "True",
        "OPENAI_API_KEY": "none",
    }
    done = subprocess.run(
        [str(HARBOR), *arguments],
        env=environment,
        capture_output=True,
        text=True,
        timeout=DEADLINE_S,
    )
    if done.returncode:
        raise SystemExit(f"harbor {' '.join(arguments)}: {(done.stdout + done.stderr)[-2000:]}")


def _outcome(result: Mapping[str, Any]) -> tuple[str, Outcome]:
    error = result["exception_info"]
    kind = "" if error is None else error["exception_type"]
    rewards = (result["verifier_result"] or {}).get("rewards")
    return result["task_name"], Outcome(
        rewards=None if rewards is None else {k: float(v) for k, v in rewards.items()},
        kind=KINDS.get(kind, kind),
    )
