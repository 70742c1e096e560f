"""What every part of the conformance suite stands on: fixtures, a deadline, a few probes.

Rule: one sandbox for each test, opened for it alone, and a deadline around every test. It knows
no provider; what a provider must bring is written at the top of `Suite`.
"""

import asyncio
import functools
import inspect
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from headrace.aio import in_thread
from headrace.sandbox.base import Limits, Provider, Sandbox, SandboxSpec
from headrace.types import CommandResult, EnvironmentRecipe

TIMEOUT_S = 30.0
"""Of a command that is expected to end by itself."""
SOON_S = 15.0
"""Within this much of its deadline a command has been killed, on a busy machine too."""


class Suite:
    """Base of the tests. The subclass that is collected brings a fixture `provider`."""

    pytestmark = pytest.mark.asyncio
    recipe = EnvironmentRecipe(image="headrace/base:bookworm")
    """What the sandboxes are made of. Needs bash, coreutils, tar and python3."""
    deadline_s = 55.0
    """For each test."""

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        for name, test in list(vars(cls).items()):
            if name.startswith("test_") and inspect.iscoroutinefunction(test):
                setattr(cls, name, _with_deadline(test))

    async def leftovers(self, episode: str) -> list[str]:
        """What is left of a closed sandbox. `episode` is in its spec and on its command lines.

        A provider adds its containers, mounts, folders and leases to the processes found here.
        """
        return await in_thread(_processes, episode)

    @pytest_asyncio.fixture
    async def image(self, provider: Provider) -> str:
        return await provider.prepare(self.recipe)

    @pytest.fixture(autouse=True)
    def _opens_on(self, provider: Provider, image: str) -> None:
        self._provider = provider
        self._image = image

    @pytest_asyncio.fixture
    async def sandbox(self, _opens_on: None) -> AsyncIterator[Sandbox]:
        async with self.open() as sandbox:
            yield sandbox

    def open(self, **changes: Any) -> AbstractAsyncContextManager[Sandbox]:
        """A sandbox of the usual spec with these fields changed."""
        usual: dict[str, Any] = {
            "image": self._image,
            "episode": mark(),
            "limits": Limits(memory_mb=1024, pids=256),
        }
        return self._provider.open(SandboxSpec(**{**usual, **changes}))


def _with_deadline(test: Callable[..., Awaitable[None]]) -> Callable[..., Awaitable[None]]:
    @functools.wraps(test)
    async def timed(self: Suite, *args: Any, **kwargs: Any) -> None:
        async with asyncio.timeout(self.deadline_s):
            await test(self, *args, **kwargs)

    return timed


def mark() -> str:
    """A word that is found nowhere else on the machine."""
    return f"conformance-{secrets.token_hex(6)}"


def _processes(word: str) -> list[str]:
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            line = path.read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:
            continue  # it has just ended
        if word in line:
            found.append(f"process {path.parent.name}: {line}")
    return found


# --- probes ---


async def run(sandbox: Sandbox, command: str, timeout_s: float = TIMEOUT_S) -> CommandResult:
    """`sandbox.run` with the usual deadline."""
    return await sandbox.run(command, timeout_s=timeout_s)


async def execute(sandbox: Sandbox, command: str, **options: Any) -> CommandResult:
    """`sandbox.exec` with the usual deadline."""
    return await sandbox.exec(command, **{"timeout_s": TIMEOUT_S, **options})


async def says(sandbox: Sandbox, command: str) -> str:
    """Stdout of a command that must succeed."""
    result = await run(sandbox, command)
    assert result.exit_code == 0, result
    assert not result.shell_lost, result
    return result.stdout.decode()


async def alive(sandbox: Sandbox, word: str) -> bool:
    """Whether a process in the sandbox has `word` on its command line."""
    hidden = f"[{word[0]}]{word[1:]}"  # or the search would find itself
    found = await execute(sandbox, f"grep -al '{hidden}' /proc/[0-9]*/cmdline 2>/dev/null")
    return found.stdout != b""


async def answers(sandbox: Sandbox) -> None:
    """Both channels work, whatever happened to the shell."""
    told = await execute(sandbox, "echo ours")
    assert (told.exit_code, told.stdout, told.stderr) == (0, b"ours\n", b"")
    await sandbox.write("/tmp/conformance-probe", b"probe")
    assert await sandbox.read("/tmp/conformance-probe") == b"probe"
    await run(sandbox, "true")
