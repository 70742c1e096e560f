"""The seam of every sandbox: `Sandbox` and `Provider`.

A sandbox has two channels. `run` is the agent's: one persistent shell whose directory, variables
and jobs live from command to command. `exec`, `read` and `write` are ours: they do not see or
touch that shell, run as root, and still work when the agent has wrecked it. A third channel is
opened on demand: `terminal`, a pseudo-terminal for programs that want a screen. The conformance
suite in `sandbox/conformance.py` is the contract in full; every provider passes it.
"""

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Final, Protocol, runtime_checkable

from headrace.types import (
    CommandResult,
    ComposeFile,
    EnvironmentRecipe,
    NetworkPolicy,
    Record,
    Task,
)

IMAGE_USER: Final = ""
"""For `Sandbox.exec(user=...)`: the user the image names (root where it names none)."""
COLUMNS, ROWS = 160, 40
"""Size of a terminal, as Terminus-2 has it."""


class Limits(Record, frozen=True, kw_only=True):
    """What one sandbox may use. None: no limit."""

    cpus: float | None = 1.0
    memory_mb: int | None = 2048
    pids: int | None = 512
    storage_mb: int | None = None
    """What it may write; enforced where the provider can (see its page)."""
    max_output_bytes: int = 1 << 20
    """Kept of each of stdout and stderr of a command; the middle is cut."""


class Footprint(Record, frozen=True, kw_only=True):
    """What one idle sandbox takes from the machine: an estimate, for limits told before a run."""

    memory_bytes: int
    processes: int
    """And threads, of the engine's helpers too."""
    files: int
    """Open in our process."""


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
    """False: loopback only, and what `egress` lets through."""
    egress: "Egress | None" = None
    """Set, with `network` False: a proxy inside the sandbox whose rule may change while it runs."""
    compose: ComposeFile | None = None
    """Set: the services of this file are started too, and the sandbox is one of them."""
    terminal: bool = False
    """Whether `Sandbox.terminal` may be called: some providers must arrange for it at the start."""
    limits: Limits = Limits()


class Egress:
    """What one sandbox may reach now. The engine changes `policy` between phases."""

    def __init__(self, policy: NetworkPolicy) -> None:
        self._policy = policy
        self._watching: list[Callable[[], None]] = []

    @property
    def policy(self) -> NetworkPolicy:
        return self._policy

    @policy.setter
    def policy(self, policy: NetworkPolicy) -> None:
        """In force when this returns: what is not allowed any more is cut."""
        self._policy = policy
        for changed in list(self._watching):
            changed()

    def watch(self, changed: Callable[[], None]) -> None:
        """The provider's side: `changed` is called after each change, until `unwatch`."""
        self._watching.append(changed)

    def unwatch(self, changed: Callable[[], None]) -> None:
        self._watching.remove(changed)


class Terminal(Protocol):
    """A login shell on a pseudo-terminal, `COLUMNS` by `ROWS`, as the agent's user."""

    async def type(self, keys: str, *, wait_s: float) -> CommandResult:
        """Send `keys` as tmux's `send-keys` would and wait until the shell is idle again.

        A `keys` that is one key name (`C-c`, `Enter`, `Up`, ...) is that key; anything else is
        typed literally. `wait_s` is the longest wait: it returns as soon as the command that was
        typed has ended and the output is still; with `timed_out` when something still runs then.
        Empty `keys` type nothing and wait: for what runs, or else for all of `wait_s`; 0 looks.
        `stdout` is what was printed since the previous call, as plain text in UTF-8, lines as the
        screen holds them, and empty when that cannot be told from the screen alone (a full-screen
        program). `screen` is the visible screen. `exit_code` is None. A shell that ended gives
        `shell_lost`, and the next call has a fresh one. A sandbox that is gone raises
        `SandboxError`. Cancelling leaves what was typed running.
        """


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

        `user` None is root, `IMAGE_USER` the image's own. At the deadline its process group is
        killed. One at a time, like `run`; never at the same time as a `run` of the same sandbox
        unless that run has been cancelled.
        """

    async def read(self, path: str, *, max_bytes: int = 64 << 20) -> bytes:
        """The bytes of a regular file.

        `FileNotFoundError`, `IsADirectoryError`, or `OverflowError` when it is larger than
        `max_bytes`.
        """

    async def write(self, path: str, data: bytes, *, mode: int = 0o644) -> None:
        """Make or replace a regular file, with its folders."""

    async def terminal(self) -> Terminal:
        """The sandbox's terminal, opened by the first call and closed with the sandbox.

        Raises `ContractError` when the spec did not ask for one.
        """

    def service(self, name: str) -> "Sandbox":
        """Another service of the same compose file: its `exec`, `read` and `write` only.

        The sandbox itself for its own service's name. Raises `SandboxError` for an unknown name.
        """

    async def aclose(self) -> None:
        """Remove it and everything in it. Idempotent; finished even when cancelled."""


class Bring(Record, frozen=True, kw_only=True):
    """A tar archive for a sandbox, and what is done before it is unpacked."""

    archive: bytes
    into: str
    removed: tuple[str, ...] = ()
    """With all below; a link itself."""
    folders: tuple[str, ...] = ()
    """Made, and open to everybody."""
    needs: tuple[str, ...] = ()
    """Programs without which nothing is done."""


@runtime_checkable
class Direct(Protocol):
    """What some sandboxes do without a program of theirs. Optional, and never the only way.

    Ask with `isinstance`; a sandbox that has the calls may still be unable to.
    """

    async def exec_with(
        self,
        bring: Bring,
        command: str,
        *,
        timeout_s: float,
        workdir: str | None,
        env: Mapping[str, str],
        user: str,
        max_output_bytes: int,
    ) -> CommandResult | None:
        """`Sandbox.exec` of a command that finds these files there, as root's.

        None: they could not be brought, and nothing was run; some may be there. Bring them by
        `Sandbox.exec`. One deadline for both.
        """

    async def kinds(self, paths: Sequence[str]) -> str | None:
        """A letter for each absolute path: `d`, `f`, `o` for another kind, `-` for nothing.

        None: look by `exec`.
        """


class Provider(Protocol):
    """Opens sandboxes. An async context manager that owns its client and caches."""

    name: str
    """`docker` or `namespace`."""
    footprint: Footprint

    async def prepare(self, recipe: EnvironmentRecipe) -> str:
        """Make sure the image exists and return its name for `SandboxSpec.image`.

        Concurrent calls for one recipe build once. Raises `ImageError` with the end of the
        build's log.
        """

    async def refuses(self, task: Task, *, network: bool) -> str | None:
        """Why this provider cannot run `task` as it asks, or None. Asked before anything starts.

        `network`: the run follows what tasks ask for. Looks at the machine at most once.
        """

    def open(self, spec: SandboxSpec) -> AbstractAsyncContextManager[Sandbox]:
        """A started sandbox for the length of the block. Raises `SandboxError`."""

    async def sweep(self) -> list[str]:
        """Remove what no live run owns, of this provider; a line for each thing removed."""

    async def __aenter__(self) -> "Provider": ...

    async def __aexit__(self, *exc: object) -> None: ...
