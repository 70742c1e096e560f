"""The seam of every sandbox: `Sandbox` and `Provider`.

A sandbox has two channels. `run` is the agent's: one persistent shell whose directory, variables
and jobs live from command to command. `exec`, `read` and `write` are ours: they do not see or
touch that shell, run as root, and still work when the agent has wrecked it. The conformance suite
in `sandbox/conformance.py` is the contract in full; every provider passes it.
"""

from collections.abc import Mapping
from contextlib import AbstractAsyncContextManager
from typing import Protocol

from headrace.types import CommandResult, EnvironmentRecipe, Record


class Limits(Record, frozen=True, kw_only=True):
    """What one sandbox may use. None: no limit."""

    cpus: float | None = 1.0
    memory_mb: int | None = 2048
    pids: int | None = 512
    max_output_bytes: int = 1 << 20
    """Kept of each of stdout and stderr of a command; the middle is cut."""


class SandboxSpec(Record, frozen=True, kw_only=True):
    """What to open. `image` is what `Provider.prepare` returned."""

    image: str
    episode: str
    """Id of the episode, for labels and leases."""
    workdir: str | None = None
    """None: the image's own, else `/`. Made if it does not exist."""
    env: dict[str, str] = {}
    user: str | None = None
    """Who the agent's shell runs as; None: the image's own."""
    network: bool = False
    """False: loopback only."""
    limits: Limits = Limits()


class Sandbox(Protocol):
    """One isolated machine with a shell. Opened by a provider, closed by leaving its block."""

    async def run(self, command: str, *, timeout_s: float) -> CommandResult:
        """Run `command` in the persistent shell; stdin is closed, stdout and stderr stay apart.

        At the deadline the processes the command started are killed; the shell, its directory and
        its variables live on, and the result says `timed_out`. A shell that ended (`exit`,
        `exec`, a kill) gives `shell_lost` and the next command runs in a fresh one. A second
        command while one runs raises `ContractError`. A NUL byte in `command` raises
        `ContractError`. A sandbox that is gone raises `SandboxError`. Cancelling kills the command
        as a deadline does.
        """

    async def exec(
        self,
        command: str,
        *,
        timeout_s: float,
        stdin: bytes = b"",
        workdir: str | None = None,
        env: Mapping[str, str] | None = None,
        user: str | None = None,
        max_output_bytes: int | None = None,
    ) -> CommandResult:
        """Run `command` in a fresh process apart from the agent's shell, as root by default.

        At the deadline its process group is killed. One at a time, like `run`; never at the
        same time as a `run` of the same sandbox unless that run has been cancelled.
        """

    async def read(self, path: str, *, max_bytes: int = 64 << 20) -> bytes:
        """The bytes of a regular file.

        `FileNotFoundError`, `IsADirectoryError`, or `OverflowError` when it is larger than
        `max_bytes`.
        """

    async def write(self, path: str, data: bytes, *, mode: int = 0o644) -> None:
        """Make or replace a regular file, with its folders."""

    async def aclose(self) -> None:
        """Remove it and everything in it. Idempotent; finished even when cancelled."""


class Provider(Protocol):
    """Opens sandboxes. An async context manager that owns its client and caches."""

    name: str
    """`docker` or `namespace`."""

    async def prepare(self, recipe: EnvironmentRecipe) -> str:
        """Make sure the image exists and return its name for `SandboxSpec.image`.

        Concurrent calls for one recipe build once. Raises `ImageError` with the end of the
        build's log.
        """

    def open(self, spec: SandboxSpec) -> AbstractAsyncContextManager[Sandbox]:
        """A started sandbox for the length of the block. Raises `SandboxError`."""

    async def sweep(self) -> list[str]:
        """Remove what no live run owns, of this provider; a line for each thing removed."""

    async def __aenter__(self) -> "Provider": ...

    async def __aexit__(self, *exc: object) -> None: ...
