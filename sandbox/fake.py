"""`FakeProvider`: a provider in memory, for tests and measurements of the engine.

Rule: it does what it was told and writes down what it was asked; the same calls give the same
answers in the same order. Every call gives way to the loop once, as a real one does, and costs
microseconds, so thousands can be open at once.

What it is not: a sandbox. It runs nothing. Commands have the results of a script and no effect on
files; there is no shell, no directory, no user, no limit and no isolation, and it does not pass the
conformance suite. A verdict from it says nothing about a task, and a rate nothing about a machine.
"""

import asyncio
import posixpath
from collections import ChainMap, deque
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from errno import EISDIR, ENOENT
from typing import NamedTuple

from msgspec import structs

from headrace.aio import first_of
from headrace.errors import ContractError, ProviderGone, SandboxError
from headrace.sandbox.base import Footprint, Sandbox, SandboxSpec, Terminal
from headrace.types import CommandResult, EnvironmentRecipe, Task

Answer = CommandResult | Exception | bytes
"""A result, an error to raise, or the stdout of a command that succeeds."""
Script = Mapping[str, Answer] | Callable[[str], Answer]
"""By command. One that a mapping does not hold gives 127."""

_DONE = CommandResult(exit_code=0)


class Call(NamedTuple):
    """One call of a sandbox, as it was made."""

    episode: str
    method: str
    """`run`, `type`, `exec`, `read`, `write` or `close`."""
    subject: str
    """The command, the keys or the path."""
    data: bytes = b""
    """Stdin of an `exec`, bytes of a `write`."""
    user: str | None = None
    """Of an `exec`, as it was asked for."""


class FakeProvider:
    """See `Provider`. Its attributes may be changed at any time and hold from then on."""

    name = "fake"
    footprint = Footprint(memory_bytes=0 << 20, processes=0, files=0)

    def __init__(
        self,
        script: Script | None = None,
        *,
        exec_script: Script | None = None,
        keys_script: Script | None = None,
        files: Mapping[str, bytes] | None = None,
        start_s: float = 0.0,
        command_s: float = 0.0,
        record: bool = True,
    ) -> None:
        """`script` answers `run`, `exec_script` `exec` and `keys_script` what is typed into the
        terminal, where bytes are what is printed and the screen; without one all succeed.

        `files` are in every sandbox at its start. `start_s` and `command_s` are how long an open
        and a command take; a command longer than its deadline times out. Without `record` no
        call is kept, for measurements.
        """
        self.script = script
        self.exec_script = exec_script
        self.keys_script = keys_script
        self.files: dict[str, bytes] = dict(files or {})
        self.start_s = start_s
        self.command_s = command_s
        self.record = record
        self.open_gate: asyncio.Event | None = None
        """Until it is set, `open` waits."""
        self.run_gate: asyncio.Event | None = None
        """Until it is set, `run` waits, at most to the command's deadline."""
        self.open_errors: deque[Exception] = deque()
        """Each is raised by one `open`, in order."""
        self.calls: list[Call] = []
        self.prepared: list[EnvironmentRecipe] = []
        self.sandboxes: dict[str, FakeSandbox] = {}
        """The open ones by episode."""
        self.opened = 0
        self.closed = 0
        self.most_live = 0
        self._gone: str | None = None
        self._going = asyncio.Event()

    def __repr__(self) -> str:
        return f"<FakeProvider opened={self.opened} closed={self.closed} live={self.live}>"

    @property
    def live(self) -> int:
        """Open now."""
        return self.opened - self.closed

    def go(self, reason: str = "the engine is gone") -> None:
        """From now on every call raises `ProviderGone`, those that wait at a gate too."""
        self._gone = reason
        self._going.set()

    def come_back(self) -> None:
        """After `go`: calls are answered again, also those of sandboxes that are still open."""
        self._gone = None
        self._going.clear()

    # --- the seam ---

    async def __aenter__(self) -> "FakeProvider":
        return self

    async def __aexit__(self, *exc: object) -> None:
        return None

    async def prepare(self, recipe: EnvironmentRecipe) -> str:
        """See `Provider.prepare`: the recipe's image or Dockerfile, whatever it is."""
        await asyncio.sleep(0)
        self.check()
        self.prepared.append(recipe)
        return recipe.image or recipe.dockerfile or "fake"

    async def refuses(self, task: Task, *, network: bool) -> str | None:
        """See `Provider.refuses`."""
        return None

    @asynccontextmanager
    async def open(self, spec: SandboxSpec) -> "AsyncIterator[FakeSandbox]":
        """See `Provider.open`."""
        await asyncio.sleep(self.start_s)
        await self.pass_gate(self.open_gate)
        if self.open_errors:
            raise self.open_errors.popleft()
        sandbox = FakeSandbox(self, spec)
        self.opened += 1
        self.most_live = max(self.most_live, self.live)
        self.sandboxes[spec.episode] = sandbox
        try:
            yield sandbox
        finally:
            await sandbox.aclose()

    async def sweep(self) -> list[str]:
        """See `Provider.sweep`: nothing is ever left."""
        return []

    # --- for its sandboxes ---

    def check(self) -> None:
        """Raise if the provider is gone."""
        if self._gone is not None:
            raise ProviderGone(self._gone)

    async def pass_gate(self, gate: asyncio.Event | None) -> None:
        """Wait for `gate` or for the end of the provider."""
        if gate is not None and not gate.is_set():
            await first_of(gate, self._going)
        self.check()


class FakeSandbox:
    """See `Sandbox`. Opened by `FakeProvider.open`."""

    def __init__(self, provider: FakeProvider, spec: SandboxSpec) -> None:
        self.spec = spec
        self.files: ChainMap[str, bytes] = ChainMap({}, provider.files)
        """By absolute path. What is written here is seen by this sandbox only."""
        self._provider = provider
        self._running = False
        self._typing = False
        self._terminal = FakeTerminal(self)
        self._lost: str | None = None
        self._closed = False

    def lose(self, reason: str = "the sandbox is gone") -> None:
        """From now on every call raises `SandboxError`."""
        self._lost = reason

    # --- the seam ---

    async def run(self, command: str, *, timeout_s: float) -> CommandResult:
        """See `Sandbox.run`; the answer is the script's."""
        self._note("run", command)
        if "\0" in command:
            raise ContractError("a command cannot contain a NUL byte")
        if self._running:
            raise ContractError("one command at a time: the shell still runs another")
        self._running = True
        try:
            return await self._answer(
                self._provider.script, command, timeout_s, self._provider.run_gate
            )
        finally:
            self._running = False

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
        """See `Sandbox.exec`; the answer is the script's. An upload succeeds and is only noted."""
        self._note("exec", command, stdin, user)
        return await self._answer(self._provider.exec_script, command, timeout_s, None)

    async def read(self, path: str, *, max_bytes: int = 64 << 20) -> bytes:
        """See `Sandbox.read`."""
        self._note("read", path)
        await asyncio.sleep(0)
        self._check()
        where = self._absolute(path)
        data = self.files.get(where)
        if data is None:
            if any(name.startswith(where.rstrip("/") + "/") for name in self.files):
                raise IsADirectoryError(EISDIR, "a folder in the sandbox", path)
            raise FileNotFoundError(ENOENT, "no such file in the sandbox", path)
        if len(data) > max_bytes:
            raise OverflowError(f"{path}: {len(data)} bytes, at most {max_bytes} were asked for")
        return data

    async def write(self, path: str, data: bytes, *, mode: int = 0o644) -> None:
        """See `Sandbox.write`."""
        self._note("write", path, data)
        await asyncio.sleep(0)
        self._check()
        self.files[self._absolute(path)] = data

    async def terminal(self) -> Terminal:
        """See `Sandbox.terminal`; what it answers is the script's."""
        await asyncio.sleep(0)
        self._check()
        if not self.spec.terminal:
            raise ContractError("a terminal is asked for by the spec: set `terminal`")
        return self._terminal

    def service(self, name: str) -> Sandbox:
        """See `Sandbox.service`."""
        raise SandboxError(f"there is no service {name!r}")

    async def aclose(self) -> None:
        """See `Sandbox.aclose`."""
        if not self._closed:
            self._closed = True
            self._note("close", "")
            provider = self._provider
            provider.closed += 1
            if provider.sandboxes.get(self.spec.episode) is self:
                del provider.sandboxes[self.spec.episode]

    # --- inside ---

    async def type(self, keys: str, wait_s: float) -> CommandResult:
        """What its terminal does."""
        self._note("type", keys)
        provider = self._provider
        if self._typing:
            raise ContractError("one call at a time: the terminal still waits for another")
        self._typing = True
        try:
            told = await self._answer(provider.keys_script, keys, wait_s, provider.run_gate)
        finally:
            self._typing = False
        return structs.replace(told, exit_code=None, screen=told.screen or told.stdout)

    async def _answer(
        self, script: Script | None, command: str, timeout_s: float, gate: asyncio.Event | None
    ) -> CommandResult:
        self._check()
        provider = self._provider
        takes_s = provider.command_s
        await asyncio.sleep(min(takes_s, timeout_s))
        timed_out = takes_s > timeout_s
        if gate is not None and not timed_out:
            try:
                async with asyncio.timeout(timeout_s - takes_s):
                    await provider.pass_gate(gate)
            except TimeoutError:
                timed_out = True
        self._check()
        if timed_out:
            return CommandResult(exit_code=None, timed_out=True, duration_s=timeout_s)
        return _look_up(script, command)

    def _check(self) -> None:
        self._provider.check()
        if self._closed:
            raise SandboxError(f"the sandbox of {self.spec.episode} is closed")
        if self._lost is not None:
            raise SandboxError(self._lost)

    def _note(self, method: str, subject: str, data: bytes = b"", user: str | None = None) -> None:
        if self._provider.record:
            self._provider.calls.append(Call(self.spec.episode, method, subject, data, user))

    def _absolute(self, path: str) -> str:
        return posixpath.normpath(posixpath.join(self.spec.workdir or "/", path))


class FakeTerminal:
    """See `Terminal`. The answers are its sandbox's."""

    def __init__(self, sandbox: FakeSandbox) -> None:
        self._sandbox = sandbox

    async def type(self, keys: str, *, wait_s: float) -> CommandResult:
        """See `Terminal.type`."""
        return await self._sandbox.type(keys, wait_s)


def _look_up(script: Script | None, command: str) -> CommandResult:
    if script is None:
        return _DONE
    if isinstance(script, Mapping):
        answer = script.get(command)
        if answer is None:
            said = f"not in the script: {command}\n".encode()
            return CommandResult(exit_code=127, stderr=said)
    else:
        answer = script(command)
    if isinstance(answer, Exception):
        raise answer
    if isinstance(answer, bytes):
        return CommandResult(exit_code=0, stdout=answer)
    return answer
