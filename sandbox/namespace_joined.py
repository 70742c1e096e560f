"""Our own way into a sandbox that the launcher started: no process waits in there for us.

The same calls as those of `control.py`, and the same promises. A command is a process of its own
that the launcher starts in the sandbox, with pipes of its own; files are read and written, and
processes killed at a deadline, by children of the launcher that run nothing of the sandbox
(`inside.py`) and that nobody inside sees.

Requests go one at a time. What a command leaves running in the background keeps its end of the
pipes; what such a process prints later is read and dropped, until the sandbox ends.
"""

import asyncio
import os
import secrets
import signal
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import partial

import msgspec

from headrace.aio import run_shielded
from headrace.errors import ContractError, SandboxError, boundary
from headrace.sandbox.archive import entries
from headrace.sandbox.base import Bring
from headrace.sandbox.control import (
    KILL_TIMEOUT_S,
    RESTARTS,
    NotBegun,
    Span,
    encode,
    raise_for,
    script_of,
    tail,
)
from headrace.sandbox.frames import Capture
from headrace.sandbox.inside import BROUGHT
from headrace.sandbox.launcher import FAILED
from headrace.sandbox.namespace_launcher import Launched, Member
from headrace.sandbox.namespace_process import Inlet, Outlet, pipe_from, pipe_to
from headrace.types import CommandResult

FILE_TIMEOUT_S = 120.0
END_TIMEOUT_S = 20.0
"""From the death of what a sandbox ran to that of the sandbox, where that is why."""
_SAID_BYTES = 4096
_TICKS = 100  # USER_HZ: the unit of /proc/PID/stat, 100 on every architecture we run on
_EXITING = 0x4
"""Of the flags in `/proc/PID/stat`."""


class Joined:
    """See the module. Requests of one at a time; `closed` ends them all."""

    def __init__(
        self,
        leader: Callable[[], Launched],
        *,
        killer: Callable[[], Awaitable["JoinedKiller"]],
        max_output_bytes: int,
    ) -> None:
        self._leader = leader
        self._killer = killer
        self._keep = max_output_bytes
        self._gone: str | None = None
        self._busy = False
        self._now: Member | None = None
        self._lingering: set[Inlet] = set()

    def closed(self, reason: str) -> None:
        """The sandbox is gone; every request from now on raises `SandboxError`."""
        if self._gone is None:
            self._gone = reason
        if self._now is not None:
            self._now.end.set(SandboxError(self._gone))
        for inlet in tuple(self._lingering):
            inlet.close()
        self._lingering.clear()

    # --- requests ---

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
        shell: str = "bash",
    ) -> CommandResult:
        """Run `command` in a session of its own; see `Sandbox.exec`."""
        asked = self._asked(command, workdir, env or {}, user or "", shell)
        keep = self._keep if max_output_bytes is None else max_output_bytes
        with self._claimed():
            return await self._carry_out(asked, stdin, keep, timeout_s, mode=_mode_for(user))

    async def read(self, path: str, *, max_bytes: int) -> bytes:
        """The bytes of a regular file; see `Sandbox.read`."""
        arguments = (encoded(path), max_bytes)
        result = await self._call("read", arguments, b"", max_bytes + 64)
        raise_for(path, result.exit_code, result, max_bytes)
        if result.exit_code != 0 or result.stdout_cut:
            raise SandboxError(f"{path}: could not be read: {tail(result)}")
        return result.stdout

    async def write(self, path: str, data: bytes, *, mode: int) -> None:
        """Make or replace a regular file; see `Sandbox.write`."""
        temporary = f".hr-{secrets.token_hex(6)}".encode()
        arguments = (encoded(path), temporary, len(data), mode)
        result = await self._call("write", arguments, data, 0, charged=True)
        raise_for(path, result.exit_code, result, 0)
        if result.exit_code != 0:
            raise SandboxError(f"{path}: could not be written: {tail(result)}")

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
        """See `Direct.exec_with`."""
        asked = self._asked(command, workdir, env, user, "bash")
        asked["bring"] = (
            encoded(bring.into),
            [encoded(path) for path in bring.removed],
            [encoded(path) for path in bring.folders],
            bring.needs,
        )
        with self._claimed():
            result = await self._carry_out(
                asked, entries(bring.archive), max_output_bytes, timeout_s, mode=_mode_for(user)
            )
        if not (result.stdout.startswith(BROUGHT) or result.timed_out):
            return None
        return msgspec.structs.replace(result, stdout=result.stdout.removeprefix(BROUGHT))

    def _asked(
        self, command: str, workdir: str | None, env: Mapping[str, str], user: str, shell: str
    ) -> dict[str, object]:
        script = encode(script_of(command, workdir, env))
        shells = [shell] if shell == "sh" else [shell, "sh"]
        return {"argv": [[name, "-c", script] for name in shells], "user": user}

    async def _call(
        self,
        name: str,
        arguments: tuple[object, ...],
        stdin: bytes,
        keep: int,
        *,
        charged: bool = False,
    ) -> CommandResult:
        """`charged`: what it writes counts as the sandbox's memory."""
        asked = {"call": name, "arguments": arguments, "charged": charged}
        with self._claimed():
            return await self._carry_out(asked, stdin, keep, FILE_TIMEOUT_S)

    # --- inside ---

    @contextmanager
    def _claimed(self) -> Iterator[None]:
        if self._gone is not None:
            raise NotBegun(self._gone)
        if self._busy:
            raise ContractError("a control channel takes one request at a time")
        self._busy = True
        try:
            yield
        finally:
            self._busy = False
            self._now = None

    async def _carry_out(
        self,
        asked: Mapping[str, object],
        stdin: bytes,
        keep: int,
        timeout_s: float,
        *,
        mode: int | None = None,
    ) -> CommandResult:
        span = Span(0)
        with boundary(SandboxError, "nothing could be started in the sandbox"):
            pipes = _Pipes(stdin, keep, mode)
        timed_out = False
        try:
            try:
                member = self._now = await self._leader().join(asked, pipes.theirs)
            finally:
                pipes.close_theirs()
            pipes.begin()
            try:
                await member.end.wait_for(timeout_s)
            except TimeoutError:
                timed_out = True
                await run_shielded(self._stop(member, span))
            except asyncio.CancelledError:
                await run_shielded(self._stop(member, span))
                raise
            except SandboxError:
                await self._told_apart()
                raise
            if member.status in (-signal.SIGKILL, FAILED) and not timed_out:
                await self._told_apart()
            pipes.drain()
        finally:
            pipes.end(self._lingering if self._gone is None else None)
        status = member.status
        return CommandResult(
            exit_code=None if timed_out else status if status >= 0 else 128 - status,
            stdout=pipes.text(1)[0],
            stderr=pipes.text(2)[0],
            stdout_cut=pipes.text(1)[1],
            stderr_cut=pipes.text(2)[1],
            timed_out=timed_out,
            shell_lost=False,
            duration_s=time.monotonic() - span.began,
        )

    async def _told_apart(self) -> None:
        """Who has ended: it alone, or the sandbox? Of a sandbox the first process ends last."""
        leader = self._leader()
        if not leader.ended.is_set() and not _is_exiting(leader.pid):
            return
        with suppress(TimeoutError):
            async with asyncio.timeout(END_TIMEOUT_S):
                await leader.ended.wait()
        raise SandboxError(self._gone or "the sandbox has ended")

    async def _stop(self, member: Member, span: Span) -> None:
        """Kill what the current request started, and wait for its end."""
        try:
            async with asyncio.timeout(2 * KILL_TIMEOUT_S):
                killer = await self._killer()
                while not member.end.is_set:
                    await killer.kill_command(member, span)
                    member.kill()
                    with suppress(TimeoutError):
                        await member.end.wait_for(0.5)
                await member.end.wait()
        except (TimeoutError, SandboxError) as e:
            why = str(e) or "it does not end"
            self.closed(f"a command could not be killed: {why}")
            raise SandboxError(self._gone) from None


class JoinedKiller:
    """Kills at deadlines, from outside the sandbox's processes. Any number of requests at once."""

    pid = 0
    """It has none inside."""

    def __init__(self, leader: Callable[[], Launched]) -> None:
        self._leader = leader
        self._gone: str | None = None

    def closed(self, reason: str) -> None:
        """See `Joined.closed`."""
        if self._gone is None:
            self._gone = reason

    async def started(self) -> "JoinedKiller":
        """There is nothing to wait for."""
        if self._gone is not None:
            raise SandboxError(self._gone)
        return self

    async def window(self, span: Span) -> tuple[int, int]:
        """Bounds in ticks since boot between which `span` began."""
        return _window(span)

    async def interrupt(self, window: tuple[int, int], last_pid: int, pids: list[int]) -> None:
        """See `Control.interrupt`."""
        await self._ask("interrupt", (*window, last_pid, pids))

    async def kill(self, window: tuple[int, int], last_pid: int, pids: list[int]) -> None:
        """See `Control.kill`."""
        await self._ask("kill", (*window, last_pid, pids))

    async def kill_command(self, member: Member, span: Span) -> None:
        """SIGKILL a command that came from outside and what it started."""
        await self._ask("kill", (*_window(span), 0, []), target=member.number)

    async def signal(self, name: str, pid: int) -> None:
        """See `Control.signal`."""
        await self._ask("send", (int(signal.Signals[f"SIG{name}"]), pid))

    async def _ask(self, name: str, arguments: tuple[object, ...], **more: int) -> None:
        asked = {"call": name, "arguments": arguments, "charged": False, **more}
        for _ in range(RESTARTS):
            await self.started()
            member = await self._leader().join(asked, {})
            try:
                await member.end.wait_for(KILL_TIMEOUT_S)
            except TimeoutError:
                member.kill()
                raise SandboxError(f"`{name}` did not end in the sandbox") from None
            if member.status == 0:
                return
        raise SandboxError(f"`{name}` failed in the sandbox (exit {member.status})")


class _Pipes:
    """Stdin, stdout and stderr of one request. None for stdin where there is nothing to say."""

    def __init__(self, stdin: bytes, keep: int, mode: int | None) -> None:
        self.theirs: dict[int, int] = {}
        self._ours: dict[int, int] = {}
        self._stdin = stdin
        self._captures = [Capture(keep), Capture(keep or _SAID_BYTES)]
        self._outlet: Outlet | None = None
        self._inlets: list[Inlet] = []
        try:
            if stdin:
                self.theirs[0], self._ours[0] = pipe_to(mode)
            for number in (1, 2):
                self.theirs[number], self._ours[number] = pipe_from(mode)
        except OSError:
            self.close_theirs()
            self.end(None)
            raise

    def close_theirs(self) -> None:
        for fd in self.theirs.values():
            os.close(fd)
        self.theirs = {}

    def begin(self) -> None:
        """The other ends are held by the process alone."""
        ours, self._ours = self._ours, {}
        if 0 in ours:
            self._outlet = Outlet(ours[0])
            self._outlet.write(self._stdin)
            self._outlet.finish()
        for number, capture in ((1, self._captures[0]), (2, self._captures[1])):
            self._inlets.append(Inlet(ours[number], capture.add))

    def drain(self) -> None:
        """Take what the process left in the pipes."""
        for inlet in self._inlets:
            inlet.drain()

    def text(self, number: int) -> tuple[bytes, int]:
        return self._captures[number - 1].bytes_and_cut()

    def end(self, lingering: set[Inlet] | None) -> None:
        """What is still open goes to `lingering`, and is read for nothing. None: it is closed."""
        for fd in self._ours.values():
            os.close(fd)
        self._ours = {}
        if self._outlet is not None:
            self._outlet.close()
        for inlet in self._inlets:
            if lingering is None:
                inlet.close()
            elif inlet.is_open:
                lingering.add(inlet)
                inlet.forget(partial(lingering.discard, inlet))


def _mode_for(user: str | None) -> int | None:
    """Of the pipes: another user opens `/dev/stdout` again."""
    return 0o666 if user else None


def _window(span: Span) -> tuple[int, int]:
    booted_s = time.clock_gettime(time.CLOCK_BOOTTIME) - time.monotonic()
    ticks = int((booted_s + span.began) * _TICKS)
    return ticks - 1, ticks + 2


def _is_exiting(pid: int) -> bool:
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            fields = file.read().rpartition(b") ")[2].split()
    except OSError:
        return True
    return bool(int(fields[6]) & _EXITING) or fields[0] in b"ZX"


def encoded(path: str) -> bytes:
    """A path as the kernel takes it."""
    if "\0" in path:
        raise ContractError("a path cannot contain a NUL byte")
    return encode(path)
