"""The tasks of `bench.peers`: sixteen folders that differ by name, and the image all of them use.

The image is built once, before any clock starts, by each provider of headrace. Harbor would build
one for every trial, so it gets folders that name the image as built; the other peers get its name.
"""

from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

from bench.peers.script import CHECK, INSTRUCTION

from headrace.configs.models import SandboxConfig
from headrace.sandbox.providers import choose
from headrace.sandbox.rootfs import BASE_IMAGE
from headrace.tasks.catalog import load
from headrace.types import EnvironmentRecipe

TASKS = 16
DOCKERFILE = f"""\
FROM {BASE_IMAGE}
RUN apt-get update \\
 && apt-get install -y --no-install-recommends tmux asciinema git python3 \\
 && rm -rf /var/lib/apt/lists/*
WORKDIR /app
"""
"""Terminus-2 wants tmux in it, and verifiers Python."""
TOML = """\
schema_version = "1.1"

[task]
name = "peers/line-{number:02}"

[agent]
timeout_sec = 120.0

[verifier]
timeout_sec = 60.0

[environment]
cpus = 1
memory_mb = 1024
"""
COMPOSE = """\
services:
  main:
    network_mode: none
"""
"""For Harbor: its own way to cut a task off starts a second container for each trial."""
TEST = f"""\
#!/bin/bash
if {CHECK}; then echo 1; else echo 0; fi > /logs/verifier/reward.txt
"""


@dataclass(frozen=True)
class Ready:
    """What every system is given."""

    ours: Path
    """Task folders with a Dockerfile."""
    harbors: Path
    """The same, naming the image, and without a network as ours are by default."""
    image: str
    """The image under the name the Docker engine knows."""


def write_tasks(folder: Path, *, image: str | None = None) -> Path:
    """The task folders; with `image` they name it in place of a Dockerfile."""
    for number in range(TASKS):
        task = folder / f"line-{number:02}"
        for part in ("environment", "tests"):
            (task / part).mkdir(parents=True)
        toml = TOML.format(number=number)
        if image is None:
            (task / "environment" / "Dockerfile").write_text(DOCKERFILE)
        else:
            toml += f'docker_image = "{image}"\n'
            (task / "environment" / "docker-compose.yaml").write_text(COMPOSE)
        (task / "task.toml").write_text(toml)
        (task / "instruction.md").write_text(INSTRUCTION)
        test = task / "tests" / "test.sh"
        test.write_text(TEST)
        test.chmod(0o755)
    return folder


async def prepare(work: Path, providers: Collection[str]) -> Ready:
    """Write the folders below `work` and build the image for each of headrace's providers."""
    ours = write_tasks(work / "tasks")
    recipe = load(str(ours)).tasks[0].environment
    images = {name: await _built(name, recipe) for name in ("docker", *providers)}
    image = images["docker"]
    return Ready(ours=ours, harbors=write_tasks(work / "harbor-tasks", image=image), image=image)


async def _built(provider: str, recipe: EnvironmentRecipe) -> str:
    config = SandboxConfig.model_validate({"provider": provider})
    async with await choose(config, run_id="peers", progress=print) as chosen:
        if provider == "docker":
            await chosen.provider.prepare(EnvironmentRecipe(image=BASE_IMAGE))
        return await chosen.provider.prepare(recipe)
