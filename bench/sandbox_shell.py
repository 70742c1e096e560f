"""What does one command cost in a sandbox, alone and with many sandboxes at once?

A round trip of `echo hi` through the persistent shell, its median over one sandbox; then commands
per second with 100 sandboxes busy at once. Beside them, in the same run, the same command by one
`exec` of the engine per command, which is what a shell per command costs.

    python -m bench.sandbox_shell [--provider namespace|docker|both] [--json FILE]
"""

import argparse
import asyncio
import statistics
import time
from contextlib import AsyncExitStack
from pathlib import Path

import uvloop
from bench.report import report

from headrace.aio import fan_out
from headrace.sandbox import docker, namespace
from headrace.sandbox.base import Limits, Provider, Sandbox, SandboxSpec
from headrace.sandbox.rootfs import BASE_IMAGE
from headrace.types import EnvironmentRecipe

COMMAND = "echo hi"
ROUND_TRIPS = 2000
EXECS = 30
SANDBOXES = 100
SECONDS = 5.0
STARTING = {"docker": 4, "namespace": 16}
LIMITS = Limits(cpus=None)


async def measure(name: str, metrics: dict[str, float | None]) -> None:
    """Both figures of one provider; of Docker also `exec`."""
    provider: Provider = (
        docker.DockerProvider() if name == "docker" else namespace.NamespaceProvider()
    )
    async with provider:
        image = await provider.prepare(EnvironmentRecipe(image=BASE_IMAGE))
        async with provider.open(SandboxSpec(image=image, episode="alone", limits=LIMITS)) as one:
            metrics[f"{name}_p50_ms"] = await median_ms(one)
        if name == "docker":
            metrics["exec_p50_ms"] = await engine_exec_p50_ms(image)
        async with AsyncExitStack() as stack:

            async def start(number: int) -> Sandbox:
                spec = SandboxSpec(image=image, episode=f"{number}", limits=LIMITS)
                return await stack.enter_async_context(provider.open(spec))

            many = await fan_out(start, range(SANDBOXES), limit=STARTING[name])
            metrics[f"{name}_cmds_s"] = await commands_per_s(many)


async def median_ms(sandbox: Sandbox) -> float:
    """Median round trip of one command after another."""
    for _ in range(50):
        await sandbox.run(COMMAND, timeout_s=30)
    times = []
    for _ in range(ROUND_TRIPS):
        began = time.perf_counter()
        result = await sandbox.run(COMMAND, timeout_s=30)
        times.append(time.perf_counter() - began)
        assert result.stdout == b"hi\n"
    return statistics.median(times) * 1000


async def commands_per_s(sandboxes: list[Sandbox]) -> float:
    """Commands finished per second, one after another in each of the sandboxes."""
    done = 0
    end = time.perf_counter() + SECONDS

    async def busy(sandbox: Sandbox) -> None:
        nonlocal done
        while time.perf_counter() < end:
            await sandbox.run(COMMAND, timeout_s=30)
            done += 1

    began = time.perf_counter()
    async with asyncio.TaskGroup() as group:
        for sandbox in sandboxes:
            group.create_task(busy(sandbox))
    return done / (time.perf_counter() - began)


async def engine_exec_p50_ms(image: str) -> float:
    """The same command by one exec of the engine each, in one container."""
    import aiodocker
    import aiohttp

    connector = aiohttp.UnixConnector(docker.socket_path(), limit=0)
    client = aiodocker.Docker(url="unix://localhost", connector=connector)
    container = await client.containers.create(
        {"Image": image, "Entrypoint": ["sleep", "600"], "HostConfig": {"NetworkMode": "none"}}
    )
    times = []
    try:
        await container.start()
        for _ in range(EXECS):
            began = time.perf_counter()
            execution = await container.exec(["sh", "-c", COMMAND])
            async with execution.start(detach=False) as stream:
                message = await stream.read_out()
                while await stream.read_out() is not None:
                    pass
            await execution.inspect()
            times.append(time.perf_counter() - began)
            assert message is not None and message.data == b"hi\n"
    finally:
        await container.delete(force=True, v=True)
        await client.close()
        await connector.close()
    return statistics.median(times) * 1000


async def run(wanted: list[str]) -> dict[str, float | None]:
    names = (
        "docker_p50_ms",
        "namespace_p50_ms",
        "exec_p50_ms",
        "docker_cmds_s",
        "namespace_cmds_s",
    )
    metrics: dict[str, float | None] = dict.fromkeys(names)
    reasons = {"docker": await docker.available(), "namespace": await namespace.available()}
    for name in wanted:
        if reasons[name] is None:
            await measure(name, metrics)
        else:
            print(f"{name} is left out: {reasons[name]}")
    return metrics


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--provider", choices=("namespace", "docker", "both"), default="both")
    parser.add_argument("--json", type=Path, default=None)
    given = parser.parse_args()
    wanted = ["namespace", "docker"] if given.provider == "both" else [given.provider]
    report("sandbox_shell", uvloop.run(run(wanted)), given.json)


if __name__ == "__main__":
    main()
