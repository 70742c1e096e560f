"""How many scripted episodes per second, against starting and removing sandboxes alone?

Each episode has 7 turns of one command and a verification, over the 20 tasks of `first-steps`,
with no sandbox started ahead of time. The floor does nothing but start and remove; the lean floor
does so with containers as headrace makes them, without the engine's networks.

    python -m bench.episodes [--provider namespace|docker|both] [--attempts 10] [--json FILE]
"""

import argparse
import asyncio
import shutil
import tempfile
from pathlib import Path

import uvloop
from bench.floors import docker_floor, namespace_floor
from bench.report import report

from headrace.configs.models import (
    EngineConfig,
    RunConfig,
    SandboxConfig,
    ScriptedConfig,
    StoreConfig,
    TasksConfig,
)
from headrace.engine import runner
from headrace.sandbox import docker, namespace
from headrace.sandbox.rootfs import BASE_IMAGE

COMMANDS = (
    "ls -la",
    "cat /etc/os-release",
    "mkdir -p /tmp/work && cd /tmp/work && echo one > a",
    "for i in {1..20}; do echo line $i; done > lines; wc -l lines",
    "grep -c 1 lines",
    "export X=7; test -f a && echo found",
    'echo "$X $PWD"; rm -r /tmp/work',
)
LIVE = {"docker": 12, "namespace": 16}


async def episodes_per_s(provider: str, attempts: int) -> float:
    """One cold run of the whole pack; images are built before the clock starts."""
    config = RunConfig(
        attempts=attempts,
        tasks=TasksConfig(source="first-steps"),
        policy=ScriptedConfig(commands=COMMANDS),
        sandbox=SandboxConfig.model_validate({"provider": provider}),
        engine=EngineConfig(live=LIVE[provider], preparing=LIVE[provider], verifying=8),
        store=StoreConfig(),
    )
    out = Path(tempfile.mkdtemp(prefix="headrace-bench-"))
    try:
        summary = await runner.run(config, out / "run")
    finally:
        shutil.rmtree(out)
    if summary.infra_failures:
        raise SystemExit(f"{summary.infra_failures} infrastructure failures: no figure")
    return summary.episodes_per_s


async def measure(providers: list[str], attempts: int) -> dict[str, float | None]:
    metrics: dict[str, float | None] = dict.fromkeys(
        (
            *("docker_eps_s", "namespace_eps_s"),
            *("docker_floor_s", "docker_lean_floor_s", "namespace_floor_s"),
        )
    )
    if "namespace" in providers:
        metrics["namespace_floor_s"] = await namespace_floor(200, LIVE["namespace"])
        metrics["namespace_eps_s"] = await episodes_per_s("namespace", attempts)
    if "docker" in providers:
        for name, lean in (("docker_floor_s", False), ("docker_lean_floor_s", True)):
            metrics[name] = await docker_floor(60, LIVE["docker"], BASE_IMAGE, lean=lean)
        metrics["docker_eps_s"] = await episodes_per_s("docker", max(1, attempts // 3))
    return metrics


async def usable() -> list[str]:
    found = []
    for name, available in (("namespace", namespace.available), ("docker", docker.available)):
        reason = await available()
        if reason is None:
            found.append(name)
        else:
            print(f"{name} is left out: {reason}")
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--provider", choices=("namespace", "docker", "both"), default="both")
    parser.add_argument("--attempts", type=int, default=10, help="episodes per task")
    parser.add_argument("--json", type=Path, help="write {bench, commit, machine, metrics} here")
    arguments = parser.parse_args()
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as loop:
        providers = loop.run(usable())
        if arguments.provider != "both":
            providers = [p for p in providers if p == arguments.provider]
        metrics = loop.run(measure(providers, arguments.attempts))
    report("episodes", metrics, arguments.json)


if __name__ == "__main__":
    main()
