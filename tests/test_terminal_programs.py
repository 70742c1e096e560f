"""Full-screen programs that the base image lacks, in a terminal of each provider."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest_asyncio

from headrace.sandbox.base import Limits, Sandbox, SandboxSpec, Terminal
from headrace.sandbox.docker import DockerProvider
from headrace.sandbox.namespace import NamespaceProvider
from headrace.types import CommandResult, EnvironmentRecipe

DOCKERFILE = """\
FROM headrace/base:bookworm
RUN apt-get update && apt-get install -y --no-install-recommends vim-tiny htop
"""
WAIT_S = 30.0


@pytest_asyncio.fixture
async def sandbox(provider: str, tmp_path: Path) -> AsyncIterator[Sandbox]:
    (tmp_path / "Dockerfile").write_text(DOCKERFILE)
    recipe = EnvironmentRecipe(dockerfile=str(tmp_path / "Dockerfile"), context=str(tmp_path))
    async with opened(provider) as source:
        image = await source.prepare(recipe)
        spec = SandboxSpec(image=image, episode="programs", terminal=True, limits=Limits())
        async with source.open(spec) as sandbox:
            yield sandbox


def opened(name: str) -> DockerProvider | NamespaceProvider:
    return DockerProvider() if name == "docker" else NamespaceProvider()


async def typed(terminal: Terminal, keys: str) -> str:
    """The screen after `keys`."""
    result: CommandResult = await terminal.type(keys, wait_s=WAIT_S)
    assert not result.timed_out and result.duration_s < WAIT_S / 2, result
    assert result.screen is not None
    return result.screen.decode()


async def test_an_editor_writes_a_file(sandbox: Sandbox) -> None:
    terminal = await sandbox.terminal()
    assert "~" in await typed(terminal, "vi /tmp/file\n")
    await typed(terminal, "i")
    await typed(terminal, "first\nsecnd")
    for key in ("Escape", "h", "i", "o", "Escape"):
        await typed(terminal, key)
    assert "~" not in await typed(terminal, ":wq\n")
    assert await sandbox.read("/tmp/file") == b"first\nsecond\n"


async def test_a_program_in_colours_with_a_menu_quits(sandbox: Sandbox) -> None:
    terminal = await sandbox.terminal()
    shown = await typed(terminal, "htop\n")
    assert "F10Quit" in shown
    assert "F10Quit" not in await typed(terminal, "F10")
    assert "back" in await typed(terminal, "echo back\n")
