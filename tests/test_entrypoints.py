"""An image's entrypoint runs beside the agent, on every provider."""

import signal
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import aiodocker
import pytest

from headrace.configs.models import ImagesConfig, RunConfig, SandboxConfig, TasksConfig
from headrace.engine import runner
from headrace.engine.reader import latest_episodes
from headrace.sandbox.base import Provider, Sandbox, SandboxSpec
from headrace.sandbox.docker import DockerProvider, socket_path
from headrace.sandbox.namespace import NamespaceProvider
from headrace.sandbox.rootfs import BASE_IMAGE
from headrace.types import EnvironmentRecipe

pytestmark = pytest.mark.timeout(120)

SERVICE = r"""#!/bin/sh
trap '' HUP
{
  echo "user $(id -un)"; echo "home $HOME"; echo "folder $PWD"; echo "colour $COLOUR"
  echo "arguments $*"
  awk '{ print "leads a session", ($1 == $6) }' /proc/$$/stat
} >/tmp/says 2>&1
while :; do date +%s%N >/tmp/beat.new; mv /tmp/beat.new /tmp/beat; sleep 0.05; done &
exec "$@"
"""
BEATS = 'was=$(cat /tmp/beat); until [ "$(cat /tmp/beat)" != "$was" ]; do sleep 0.05; done'
UP = "until [ -s /tmp/beat ]; do sleep 0.05; done; "
DOCKERFILE = f"""FROM {BASE_IMAGE}
ENV COLOUR=blue
COPY entry.sh /entry.sh
RUN chmod 755 /entry.sh
WORKDIR /srv/task
USER nobody
"""
ENTRY = 'ENTRYPOINT ["/entry.sh"]'


@asynccontextmanager
async def opened(name: str) -> AsyncIterator[Provider]:
    if name == "docker":
        async with DockerProvider() as docker:
            yield docker
    else:
        own = ImagesConfig(builder="own")
        async with NamespaceProvider(images=own) as spaces:
            yield spaces


@pytest.fixture
async def built(unavailable: dict[str, str | None]) -> AsyncIterator[list[str]]:
    """Names of images to remove."""
    names: list[str] = []
    yield names
    if unavailable["docker"] is None:
        async with aiodocker.Docker(url=f"unix://{socket_path()}") as docker:
            for name in names:
                if name.startswith("headrace/task:"):
                    await docker.images.delete(name, force=True)


def recipe(folder: Path, lines: str, dockerfile: str = DOCKERFILE) -> EnvironmentRecipe:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "entry.sh").write_text(SERVICE)
    (folder / "Dockerfile").write_text(f"{dockerfile}{lines}\nENV MADE={time.time_ns()}\n")
    return EnvironmentRecipe(dockerfile=str(folder / "Dockerfile"), context=str(folder))


@asynccontextmanager
async def sandbox_of(
    name: str, its: EnvironmentRecipe, built: list[str], workdir: str | None = None
) -> AsyncIterator[Sandbox]:
    async with opened(name) as provider:
        image = await provider.prepare(its)
        built.append(image)
        spec = SandboxSpec(image=image, episode=f"entry{time.time_ns()}", workdir=workdir)
        async with provider.open(spec) as sandbox:
            yield sandbox


async def out(sandbox: Sandbox, command: str) -> str:
    result = await sandbox.run(command, timeout_s=20)
    return (result.stdout + result.stderr).decode()


async def test_it_runs_as_the_image_says(provider: str, tmp_path: Path, built: list[str]) -> None:
    its = recipe(tmp_path, f'CMD ["false"]\n{ENTRY}')
    async with sandbox_of(provider, its, built, workdir="/opt") as sandbox:
        said = dict(
            line.split(" ", 1) for line in (await out(sandbox, UP + "cat /tmp/says")).splitlines()
        )
        assert said == {
            "user": "nobody",
            "home": "/nonexistent",
            "folder": "/srv/task",
            "colour": "blue",
            "arguments": "sh -c sleep infinity",
            "leads": "a session 1",
        }
        assert await out(sandbox, "jobs; pwd; echo $!") == "/opt\n\n"
        kept = "until p=$(pgrep -xf 'sleep infinity'); do sleep 0.05; done; "
        ran = await sandbox.exec(f"{kept} readlink /proc/$p/fd/*", timeout_s=20, user="nobody")
        assert ran.stdout.decode() == "/dev/null\n" * 3, "of what it is given to run"


async def test_it_outlives_a_command_that_is_killed(
    provider: str, tmp_path: Path, built: list[str]
) -> None:
    async with sandbox_of(provider, recipe(tmp_path, ENTRY), built) as sandbox:
        result = await sandbox.run(f"{UP} trap '' INT TERM; sleep 60 & sleep 60", timeout_s=1)
        assert result.timed_out
        assert await out(sandbox, BEATS) == ""
        result = await sandbox.exec(BEATS, timeout_s=20)
        assert result.exit_code == 0


async def test_the_shell_form_runs_and_the_last_one_counts(
    provider: str, tmp_path: Path, built: list[str]
) -> None:
    shell = 'ENTRYPOINT ["/nowhere"]\nENTRYPOINT echo "$0 $COLOUR" >/tmp/beat; sleep 99'
    async with sandbox_of(provider, recipe(tmp_path, shell), built) as sandbox:
        assert await out(sandbox, UP + "cat /tmp/beat") == "sh blue\n"
    none = f"{ENTRY}\nENTRYPOINT []"
    async with sandbox_of(provider, recipe(tmp_path, none), built) as sandbox:
        result = await sandbox.exec("pgrep -f '[e]ntry.sh'; pgrep -x sleep", timeout_s=20)
        assert result.stdout == b""


async def test_one_that_fails_leaves_a_sandbox(
    provider: str, tmp_path: Path, built: list[str]
) -> None:
    for line in ('ENTRYPOINT ["/nowhere"]', "ENTRYPOINT exit 3"):
        async with sandbox_of(provider, recipe(tmp_path, line), built) as sandbox:
            assert await out(sandbox, "id -un; pwd") == "nobody\n/srv/task\n"


async def test_it_ends_with_the_sandbox(provider: str, tmp_path: Path, built: list[str]) -> None:
    name = f"beat-{time.time_ns()}"
    line = f'ENTRYPOINT ["/bin/bash", "-c", "exec -a {name} sleep 9999"]'
    async with sandbox_of(provider, recipe(tmp_path, line), built) as sandbox:
        await out(sandbox, f"until pgrep -f '^{name}'; do sleep 0.05; done")
        assert _running(name), "the test could not see it"
    assert not _running(name)


def _running(name: str) -> list[str]:
    """Processes of this machine, sandboxes included, whose first word is `name`."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            if path.read_bytes().startswith(name.encode()):
                found.append(str(path))
        except OSError:
            continue
    return found


TASK = {
    "task.toml": '[environment.healthcheck]\ncommand = "test -s /tmp/beat"\ninterval_sec = 0.1\n',
    "instruction.md": "Nothing.\n",
    "environment/entry.sh": SERVICE,
    "environment/Dockerfile": f"{DOCKERFILE}{ENTRY}\n",
    "solution/solve.sh": f"#!/bin/sh\n{BEATS}\necho 1 >/tmp/agent\n",
    "tests/test.sh": f"#!/bin/sh\n{BEATS}\ncat /tmp/agent >/logs/verifier/reward.txt\n",
}


async def test_agent_and_verifier_meet_it(provider: str, tmp_path: Path) -> None:
    for name, text in TASK.items():
        path = tmp_path / "tasks" / "service" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        path.chmod(0o755)
    config = RunConfig.model_validate(
        {
            "policy": {"type": "oracle"},
            "sandbox": SandboxConfig.model_validate({"provider": provider}),
            "tasks": TasksConfig(source=str(tmp_path / "tasks")),
        }
    )
    await runner.run(config, tmp_path / "run")
    (episode,) = latest_episodes(tmp_path / "run")
    assert episode.verdict.passed, (episode.verdict, episode.turns)


async def test_ctrl_c_can_end_what_it_starts(
    provider: str, tmp_path: Path, built: list[str]
) -> None:
    line = 'ENTRYPOINT ["/bin/bash", "-c", "awk /SigIgn/ /proc/self/status >/tmp/beat"]'
    async with sandbox_of(provider, recipe(tmp_path, line), built) as sandbox:
        ignored = int((await out(sandbox, UP + "cat /tmp/beat")).split()[1], 16)
        assert not ignored & 1 << (signal.SIGINT - 1)
