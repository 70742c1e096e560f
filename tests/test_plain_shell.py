"""The agent's shell where the image has no bash: a POSIX `sh` serves."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from headrace.sandbox.base import Sandbox, SandboxSpec
from headrace.sandbox.namespace import NamespaceProvider
from headrace.sandbox.rootfs import BASE_IMAGE
from headrace.types import EnvironmentRecipe

pytestmark = pytest.mark.namespace


@pytest.fixture
async def sandbox(unavailable: dict[str, str | None], tmp_path: Path) -> AsyncIterator[Sandbox]:
    if unavailable["namespace"] is not None:
        pytest.skip(f"namespace: {unavailable['namespace']}")
    (tmp_path / "Dockerfile").write_text(f"FROM {BASE_IMAGE}\nRUN rm /bin/bash\n")
    async with NamespaceProvider() as provider:
        image = await provider.prepare(
            EnvironmentRecipe(dockerfile=str(tmp_path / "Dockerfile"), context=str(tmp_path))
        )
        async with provider.open(SandboxSpec(image=image, episode="e", workdir="/app")) as sandbox:
            yield sandbox


async def test_state_is_kept_and_stderr_is_apart(sandbox: Sandbox) -> None:
    await sandbox.run("cd /tmp; x=5; (exit 3)", timeout_s=20)
    result = await sandbox.run("echo $? $x $PWD; echo err >&2; false", timeout_s=20)
    assert (result.stdout, result.stderr, result.exit_code) == (b"3 5 /tmp\n", b"err\n", 1)


@pytest.mark.parametrize("command", ["echo $((1/0))", "if", "set -u; echo $nope", ": ${x:?bad}"])
async def test_an_error_that_throws_the_shell_back_is_answered(
    sandbox: Sandbox, command: str
) -> None:
    result = await sandbox.run(command, timeout_s=20)
    assert result.exit_code == 2 and result.stderr != b"" and not result.timed_out
    assert (await sandbox.run("echo on", timeout_s=20)).stdout == b"on\n"


async def test_a_slow_command_is_asked_for_its_end_without_a_trace(sandbox: Sandbox) -> None:
    result = await sandbox.run("sleep 0.6; echo done", timeout_s=20)
    assert (result.stdout, result.stderr, result.exit_code) == (b"done\n", b"", 0)
    after = await sandbox.run("echo next", timeout_s=20)
    assert (after.stdout, after.stderr) == (b"next\n", b"")


async def test_a_timeout_keeps_the_shell(sandbox: Sandbox) -> None:
    await sandbox.run("x=5", timeout_s=20)
    result = await sandbox.run("sleep 1000", timeout_s=0.5)
    assert (result.timed_out, result.shell_lost) == (True, False)
    assert (await sandbox.run("echo $x", timeout_s=20)).stdout == b"5\n"


async def test_exec_uses_the_plain_shell(sandbox: Sandbox) -> None:
    result = await sandbox.exec("echo $0; exit 4", timeout_s=20)
    assert (result.stdout, result.exit_code) == (b"sh\n", 4)
