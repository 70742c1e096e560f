"""Runs in mini-swe-agent's environment: its own parts over a thread pool, as its batch runner does.

An episode is its `DockerEnvironment`, its `DefaultAgent` with its `LitellmModel`, a saved
trajectory, and one more command in the container that verifies. Prints one JSON line. Nothing of
headrace is imported.
"""

import argparse
import json
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from minisweagent.agents.default import DefaultAgent
from minisweagent.environments.docker import DockerEnvironment
from minisweagent.models.litellm_model import LitellmModel

SYSTEM = "You solve a task in a Linux shell with the tool bash, one command per answer."


def episode(number: int, arguments: argparse.Namespace) -> bool:
    """Whether the verifier agrees. The container is removed as the batch runner does it."""
    model = LitellmModel(
        model_name="openai/bash-tool",
        model_kwargs={"api_base": f"{arguments.model}/v1", "api_key": "none", "num_retries": 0},
        cost_tracking="ignore_errors",
    )
    environment = DockerEnvironment(
        image=arguments.image, cwd="/", run_args=["--rm", "--network", "none"]
    )
    agent = DefaultAgent(
        model, environment, system_template=SYSTEM, instance_template="{{ task }}", cost_limit=0.0
    )
    told = agent.run(arguments.instruction)
    verdict = environment.execute({"command": arguments.check})
    agent.save(arguments.out / f"{number}.traj.json")
    return told.get("exit_status") == "Submitted" and verdict["returncode"] == 0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    for name in ("model", "image", "instruction", "check"):
        parser.add_argument(f"--{name}", required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--workers", type=int, required=True)
    parser.add_argument("--episodes", type=int, required=True)
    arguments = parser.parse_args()
    begun = time.perf_counter()
    with ThreadPoolExecutor(arguments.workers) as pool:
        passed = list(pool.map(lambda n: episode(n, arguments), range(arguments.episodes)))
    seconds = time.perf_counter() - begun
    print(json.dumps({"episodes": len(passed), "passed": sum(passed), "seconds": seconds}))


if __name__ == "__main__":
    main()
