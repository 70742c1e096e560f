"""Do headrace and Harbor come to the same verdict on the same tasks, under the same policies?

23 small tasks with everything a verdict depends on (services, users, working folders, steps,
rewards by JSON and text, missing and broken ones, timeouts), by three policies: the reference
solution, nothing, and Terminus-2 with a scripted model. Harbor runs as it is published, in an
environment of its own; both sides use Docker and the same images. A case agrees when every number
the verifier wrote and the kind of failure are equal.

    python -m bench.parity [--tasks NAME,...] [--policies oracle,noop,terminus] [--json FILE]
"""

import argparse
import asyncio
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import uvloop
from bench import parity_harbor
from bench.parity_outcome import EXPECTED_DIFFERENCES, Outcome
from bench.parity_tasks import ANSWERS, Ready, prepare
from bench.report import report

from headrace.configs.models import (
    EngineConfig,
    NoopConfig,
    OracleConfig,
    RunConfig,
    SandboxConfig,
    ScriptedConfig,
    TasksConfig,
)
from headrace.engine import runner
from headrace.engine.reader import latest_episodes
from headrace.types import Episode, StopReason

POLICIES = ("oracle", "noop", "terminus")
SAME = {"reward_not_finite": "reward_unparsable"}
"""Kinds that Harbor has one name for."""


def ours(ready: Ready, policy: str, work: Path) -> dict[str, Outcome]:
    """Run one policy over the tasks with headrace; the outcome by task."""
    policies = {
        "oracle": OracleConfig(),
        "noop": NoopConfig(),
        "terminus": ScriptedConfig(script=str(ANSWERS), protocol="terminus-json", confirm=True),
    }
    config = RunConfig(
        policy=policies[policy],
        tasks=TasksConfig(source=str(ready.ours)),
        sandbox=SandboxConfig(provider="docker"),
        engine=EngineConfig(live=8),
    )
    out = work / f"run-{policy}"
    uvloop.run(runner.run(config, out))
    return {episode.task: _outcome(episode) for episode in latest_episodes(out)}


def _outcome(episode: Episode) -> Outcome:
    verdict = episode.verdict
    kind = "" if verdict.reason is None else verdict.reason.partition(":")[0]
    if episode.stop_reason is StopReason.AGENT_TIMEOUT:
        kind = "agent_timeout"
    rewards = None if verdict.reward is None else verdict.rewards
    return Outcome(rewards=rewards, kind=SAME.get(kind, kind))


def compare(
    task: str, policy: str, harbors: Outcome | None, headraces: Outcome | None
) -> tuple[str, str]:
    """`agree`, `expected` or `DIFFER`, and the reason of an expected difference."""
    if harbors is not None and harbors == headraces:
        return "agree", ""
    reason = EXPECTED_DIFFERENCES.get((task, policy))
    return ("DIFFER", "") if reason is None else ("expected", reason)


def measure(
    work: Path, names: Sequence[str], policies: Sequence[str], concurrency: int
) -> dict[str, float | None]:
    ready = asyncio.run(prepare(work, names))
    if not names:
        unknown = {task for task, _ in EXPECTED_DIFFERENCES} - {task.name for task in ready.tasks}
        assert not unknown, f"expected differences of tasks that do not exist: {unknown}"
    counts = {"agree": 0, "expected": 0, "DIFFER": 0}
    seconds = {"harbor_s": 0.0, "headrace_s": 0.0}
    print(f"\n{'task':<32}{'policy':<10}{'':<10}{'Harbor 0.24':<40}headrace")
    for policy in policies:
        begun = time.monotonic()
        theirs = parity_harbor.run(ready, policy, work, concurrency)
        seconds["harbor_s"] += time.monotonic() - begun
        begun = time.monotonic()
        mine = ours(ready, policy, work)
        seconds["headrace_s"] += time.monotonic() - begun
        for task in sorted(task.name for task in ready.tasks):
            a, b = theirs.get(task), mine.get(task)
            found, reason = compare(task, policy, a, b)
            counts[found] += 1
            print(f"{task:<32}{policy:<10}{found:<10}{a!s:<40}{b}")
            if reason:
                print(f"{'':<52}{reason}")
        sys.stdout.flush()
    shared = counts["agree"] + counts["DIFFER"]
    return {
        "compared": shared,
        "agree": counts["agree"],
        "expected_differences": counts["expected"],
        **seconds,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tasks", default="", help="names of task folders; all by default")
    parser.add_argument("--policies", default=",".join(POLICIES))
    parser.add_argument("--concurrency", type=int, default=6, help="of Harbor")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    lacking = parity_harbor.lacking()
    if lacking is not None:
        raise SystemExit(f"bench.parity: {lacking}")
    names = [name for name in arguments.tasks.split(",") if name]
    with tempfile.TemporaryDirectory(prefix="headrace-parity-") as work:
        metrics = measure(Path(work), names, arguments.policies.split(","), arguments.concurrency)
    report("parity", metrics, arguments.json)
    if metrics["agree"] != metrics["compared"]:
        sys.exit(1)


if __name__ == "__main__":
    main()
