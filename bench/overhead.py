"""What does `headrace eval` add to the time the agent and the verifier need, at 32 live episodes?

Each episode works for 15 to 40 s in ten commands (a sleep each: the work of somebody else) and is
verified for 4 s. Overhead is the time an episode is live and neither acting nor verifying (image,
start, waiting for a verify slot, closing, storing), as a share of acting and verifying. A second
figure says how much longer than its sleeps the acting took: what the engine adds within.

    python -m bench.overhead [--provider namespace|docker|both] [--live 32] [--json FILE]
"""

import argparse
import asyncio
import random
import tempfile
import time
from pathlib import Path

import uvloop
from bench.episodes import usable
from bench.report import report

from headrace.configs.models import (
    EngineConfig,
    RunConfig,
    SandboxConfig,
    ScriptedConfig,
    TasksConfig,
)
from headrace.engine import runner
from headrace.engine.events import EpisodeFinished, EpisodeStarted, Event
from headrace.engine.reader import latest_episodes

COMMANDS = 10
VERIFY_S = 4
TOML = """\
[task]
name = "overhead/{name}"
[environment]
docker_image = "headrace/base:bookworm"
network_mode = "no-network"
memory_mb = 256
[verifier]
timeout_sec = 60.0
"""
TEST = f"#!/bin/sh\nsleep {VERIFY_S}\necho 1 > /logs/verifier/reward.txt\n"


def write_tasks(folder: Path, count: int) -> tuple[Path, dict[str, float]]:
    """Task folders and a script of sleeps for each; the seconds that each task sleeps."""
    chance = random.Random(0)
    lines: list[str] = []
    slept: dict[str, float] = {}
    for i in range(count):
        name = f"task-{i:03}"
        task = folder / "tasks" / name
        (task / "tests").mkdir(parents=True)
        (task / "task.toml").write_text(TOML.format(name=name))
        (task / "instruction.md").write_text("Wait.\n")
        (task / "tests" / "test.sh").write_text(TEST)
        pause_s = round(chance.uniform(1.5, 4.0), 2)
        slept[f"overhead/{name}"] = pause_s * COMMANDS
        commands = ", ".join([f'"sleep {pause_s}"'] * COMMANDS)
        lines.append(f'[tasks."overhead/{name}"]\ncommands = [{commands}]\n')
    script = folder / "script.toml"
    script.write_text("\n".join(lines))
    return script, slept


async def overhead(provider: str, live: int) -> tuple[float, float]:
    """Overhead around and within the work of the agent and the verifier, both as shares."""
    began: dict[str, float] = {}
    lived: dict[str, float] = {}

    def watch(event: Event) -> None:
        if isinstance(event, EpisodeStarted):
            began[event.id] = time.monotonic()
        elif isinstance(event, EpisodeFinished):
            lived[event.id] = time.monotonic() - began[event.id]

    with tempfile.TemporaryDirectory(prefix="headrace-bench-") as name:
        script, slept = write_tasks(Path(name), 2 * live)
        config = RunConfig(
            tasks=TasksConfig(source=str(script.parent / "tasks")),
            policy=ScriptedConfig(script=str(script)),
            sandbox=SandboxConfig.model_validate({"provider": provider, "pids": 64}),
            engine=EngineConfig(live=live, preparing=8, verifying=live),
        )
        out = Path(name) / "run"
        summary = await runner.run(config, out, on_event=watch)
        episodes = list(latest_episodes(out))
    if summary.passed != 2 * live:
        raise SystemExit(f"expected {2 * live} passed episodes, found {summary.passed}: no figure")
    work_s = sum(e.timing.act_s + e.timing.verify_s for e in episodes)
    nominal_s = sum(slept[e.task] + VERIFY_S for e in episodes)
    return sum(lived.values()) / work_s - 1, work_s / nominal_s - 1


async def measure(providers: list[str], live: int) -> dict[str, float | None]:
    metrics: dict[str, float | None] = {}
    for provider in providers:
        around, within = await overhead(provider, live)
        metrics[f"{provider}_overhead"] = around
        metrics[f"{provider}_within"] = within
    return metrics


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--provider", choices=("namespace", "docker", "both"), default="both")
    parser.add_argument("--live", type=int, default=32, help="live episodes")
    parser.add_argument("--json", type=Path, help="write {bench, commit, machine, metrics} here")
    arguments = parser.parse_args()
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as loop:
        providers = loop.run(usable())
        if arguments.provider != "both":
            providers = [p for p in providers if p == arguments.provider]
        metrics = loop.run(measure(providers, arguments.live))
    report("overhead", metrics, arguments.json)


if __name__ == "__main__":
    main()
