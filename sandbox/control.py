"""Our own channel into a sandbox: one-off commands, files, and the kill at a deadline.

A plain `sh` with pipes of its own, run as root and apart from the agent's shell, so that nothing
the agent does to its shell reaches it. Sans-I/O: the provider connects `write` and `feed`. Two of
them stand beside each agent shell: one serves `exec`, `read` and `write`, the other kills, so that
a request in progress never keeps a deadline waiting.

Requests of one channel go one at a time. What a command leaves running in the background keeps its
end of the pipes; what such a process prints between two requests is dropped.
"""

import asyncio
import secrets
import shlex
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager, suppress
from errno import EISDIR, ENOENT
from typing import Protocol

from headrace.aio import run_shielded
from headrace.errors import ContractError, SandboxError
from headrace.sandbox.frames import Capture, Latch, Stream, are_numbers
from headrace.sandbox.inside import FOLDER, MISSING, NOT_REGULAR, TOO_LARGE
from headrace.sandbox.scripts import CONTROL_PROGRAM
from headrace.types import CommandResult

START_TIMEOUT_S = 60.0
KILL_TIMEOUT_S = 10.0
SILENT_S = 0.3
RESTARTS = 4
RESERVE_PIDS = 256
"""Processes that a command of ours finds free when it starts, whatever the agent left running."""
MAX_SCRIPT_BYTES = 120_000
"""A longer command does not fit into one argument; it goes into a file first."""
_KEEP_IDLE = 4096
_TICKS = 100  # USER_HZ: the unit of /proc/PID/stat, 100 on every architecture we run on


class Span:
    """When a command began, on our clock, and the last process id before it."""

    __slots__ = ("began", "last_pid")

    def __init__(self, last_pid: int) -> None:
        self.began = time.monotonic()
        self.last_pid = last_pid


class NotBegun(SandboxError):
    """The channel ended, or had no process to give, before the command began: repeat it."""


def reserve(pids: int | None) -> int:
    """What is kept free for us of a limit; 0 without one. A small limit cannot spare it all."""
    return 0 if pids is None else min(RESERVE_PIDS, pids // 2)


class Channel(Protocol):
    """Our own commands and files; `Control` is one, `namespace_joined.Joined` the other."""

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
    ) -> CommandResult: ...

    async def read(self, path: str, *, max_bytes: int) -> bytes: ...

    async def write(self, path: str, data: bytes, *, mode: int) -> None: ...

    def closed(self, reason: str) -> None: ...


class Killer(Protocol):
    """What interrupts and kills at a deadline; see `Control` for each."""

    @property
    def pid(self) -> int: ...

    async def started(self) -> "Killer": ...

    async def window(self, span: Span) -> tuple[int, int]: ...

    async def interrupt(self, window: tuple[int, int], last_pid: int, pids: list[int]) -> None: ...

    async def kill(self, window: tuple[int, int], last_pid: int, pids: list[int]) -> None: ...

    async def signal(self, name: str, pid: int) -> None: ...

    def closed(self, reason: str) -> None: ...


class Control:
    """One control channel. `started` first, then any number of requests."""

    def __init__(
        self,
        write: Callable[[bytes], None],
        *,
        killer: Callable[[], Awaitable["Control"]] | None = None,
        max_output_bytes: int = 1 << 20,
        program: str | None = CONTROL_PROGRAM,
        nudge: Callable[[], None] = lambda: None,
        restarted: Callable[[], str] = lambda: "",
        need: int = 0,
    ) -> None:
        """`program` is sent first, to the loader at the other end; None: it runs already.

        `nudge` is called when the channel is silent for a moment after a request: something
        inside may have stopped it. What `restarted` returns goes with the word to go on. A channel
        that finds fewer than `need` processes free before a command ends instead: `NotBegun`.
        """
        self.pid = 0
        """Process id of the channel's `sh` inside the sandbox."""
        self._write = write
        self._killer = killer
        self._keep = max_output_bytes
        self._nudge = nudge
        self._restarted = restarted
        self._room = f"hr_room {need} || exit 0; " if need else ""
        self._key = secrets.token_hex(10)
        self._streams = (
            Stream(lambda fields: self._frame(0, fields), _KEEP_IDLE),
            Stream(lambda fields: self._frame(1, fields), _KEEP_IDLE),
        )
        self._streams[0].tokens.add(self._key.encode())
        self._streams[1].tokens.add(self._key.encode())
        self._latch = Latch()
        self._frames_due = 0
        self._exit: bytes | None = None
        self._fields: list[bytes] = []
        self._outputs = [Capture(0), Capture(0)]
        self._keep_now = _KEEP_IDLE
        self._busy = False
        self._lost = False
        self._has_begun = False
        self._ready = asyncio.Event()
        self._gone: str | None = None
        self._begun = Span(0)
        if program is not None:
            write(f"{program}#end\n".encode())
        write(f"{self._key}\n".encode())

    # --- the provider's side ---

    def feed(self, fd: int, data: bytes) -> None:
        """Bytes from the channel's stdout (1) or stderr (2)."""
        self._streams[fd - 1].feed(data)

    def closed(self, reason: str) -> None:
        """The channel is gone for good; every request from now on raises `SandboxError`."""
        if self._gone is None:
            self._gone = reason
            self._ready.set()
            self._latch.set(SandboxError(reason))

    async def started(self) -> "Control":
        """Return once the channel answers."""
        try:
            async with asyncio.timeout(START_TIMEOUT_S):
                await self._ready.wait()
        except TimeoutError:
            self.closed(f"the control channel did not answer within {START_TIMEOUT_S:.0f} s")
        self._check()
        return self

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
        """Run `command` in a fresh process group; see `Sandbox.exec`."""
        script = script_of(command, workdir, env or {})
        lines = script.count("\n")
        if self._gone is not None:
            raise NotBegun(self._gone)
        self._claim()
        try:
            keep = self._keep if max_output_bytes is None else max_output_bytes
            for _ in range(RESTARTS):
                await self.started()
                token = self._expect(frames=2, keep=keep)
                head = f"{self._key} {self._room}hr_exec {token} {len(stdin)} {lines} {shell} "
                self._write(encode(f"{head}{shlex.quote(user or '')}\n{script}"))
                if stdin:
                    self._write(stdin)
                result = await self._finish(timeout_s)
                if not self._lost or self._has_begun:
                    break  # else its `sh` was killed before it heard of the command
            if not (self._has_begun or result.timed_out):
                raise NotBegun("a command could not be started: the sandbox has no process to give")
            return result
        finally:
            self._busy = False

    async def read(self, path: str, *, max_bytes: int) -> bytes:
        """The bytes of a regular file; see `Sandbox.read`."""
        # Bytes of a stray process may fall between ours, so the length is checked.
        script = (
            f"p={shlex.quote(path)}\n"
            f'[ -e "$p" ] || exit {MISSING}\n[ ! -d "$p" ] || exit {FOLDER}\n'
            f'[ -f "$p" ] || exit {NOT_REGULAR}\n'
            's=$(wc -c <"$p")\n'
            f'[ "$s" -le {max_bytes} ] || {{ echo $s; exit {TOO_LARGE}; }}\n'
            'printf "%s\\n" $s\nexec head -c "$s" -- "$p"\n'
        )
        for _ in range(3):
            result = await self.exec(
                script, timeout_s=120, shell="sh", max_output_bytes=2 * (max_bytes + 64)
            )
            raise_for(path, result.exit_code, result, max_bytes)
            size, _, data = result.stdout.partition(b"\n")
            told = size.strip() or b"-"
            if result.exit_code == 0 and are_numbers((told,), 0) and len(data) == int(told):
                return data
        raise SandboxError(f"{path}: could not be read: {tail(result)}")

    async def write(self, path: str, data: bytes, *, mode: int) -> None:
        """Make or replace a regular file; see `Sandbox.write`."""
        temporary = f".hr-{secrets.token_hex(6)}"
        script = (
            f"p={shlex.quote(path)}\n"
            f'[ -L "$p" ] || [ ! -d "$p" ] || exit {FOLDER}\n'
            'd=${p%/*}; [ "$d" != "$p" ] || d=.; d=${d:-/}\n'
            '[ -d "$d" ] || mkdir -p -- "$d" || exit 1\n'
            f't="$d"/{temporary}\n'
            f'cat >"$t" && [ "$(wc -c <"$t")" -eq {len(data)} ] && chmod {mode:o} "$t"'
            ' && mv -f -- "$t" "$p" && exit 0\n'
            'rm -f -- "$t"; exit 1\n'
        )
        result = await self.exec(script, timeout_s=120, stdin=data, shell="sh")
        raise_for(path, result.exit_code, result, 0)
        if result.exit_code != 0:
            raise SandboxError(f"{path}: could not be written: {tail(result)}")

    async def window(self, span: Span) -> tuple[int, int]:
        """Bounds in ticks of the sandbox's clock between which `span` began."""
        asked = time.monotonic()
        reply = await self._ask("hr_uptime {}")
        try:
            uptime_s = float(reply[1])
            now = time.monotonic()
            low = uptime_s - (now - span.began)
            high = uptime_s - (asked - span.began)
            return int(low * _TICKS) - 1, int(high * _TICKS) + 2
        except (IndexError, ValueError, OverflowError):  # the last two: `inf` and `nan` are floats
            raise SandboxError(f"expected the sandbox's uptime, found {reply[1:]}") from None

    async def interrupt(self, window: tuple[int, int], last_pid: int, pids: list[int]) -> None:
        """What Ctrl-C does: SIGINT to what the command started and to the shell, `pids[0]`."""
        await self._ask(f"hr_int {{}} {_arguments(window, last_pid, pids)}")

    async def kill(self, window: tuple[int, int], last_pid: int, pids: list[int]) -> None:
        """SIGKILL what the command started until nothing is left. `pids` are spared."""
        await self._ask(f"hr_kill {{}} {_arguments(window, last_pid, pids)}")

    async def signal(self, name: str, pid: int) -> None:
        """Send a signal to a process, or to a group if `pid` is negative."""
        await self._ask(f"hr_sig {{}} {name} {pid}")

    # --- inside ---

    async def _ask(self, request: str) -> list[bytes]:
        name = request.split(" ", 1)[0]
        self._claim()
        try:
            for _ in range(RESTARTS):
                await self.started()
                token = self._expect(frames=1, keep=_KEEP_IDLE)
                self._write(f"{self._key} {request.format(token)}\n".encode())
                try:
                    async with asyncio.timeout(KILL_TIMEOUT_S), self._watched():
                        await self._latch.wait()
                except TimeoutError:
                    self.closed(f"the control channel did not answer `{name}`")
                self._check()
                if not self._lost:
                    return self._fields
            raise SandboxError(f"the control channel was killed again and again during `{name}`")
        finally:
            self._busy = False

    @asynccontextmanager
    async def _watched(self) -> AsyncIterator[None]:
        """Nudge the other end while it does not take up the request."""
        loop = asyncio.get_running_loop()
        timers: list[asyncio.TimerHandle] = []

        def look() -> None:
            if not (self._has_begun or self._latch.is_set):
                self._nudge()
                timers[:] = [loop.call_later(SILENT_S, look)]

        timers.append(loop.call_later(SILENT_S, look))
        try:
            yield
        finally:
            timers[0].cancel()

    async def _finish(self, timeout_s: float) -> CommandResult:
        began = time.perf_counter()
        timed_out = False
        try:
            async with asyncio.timeout(timeout_s), self._watched():
                await self._latch.wait()
        except TimeoutError:
            timed_out = True
            await run_shielded(self._stop())
        except asyncio.CancelledError:
            await run_shielded(self._stop())
            raise
        except SandboxError as e:
            if self._has_begun:
                raise
            raise NotBegun(str(e)) from e
        (out, out_cut), (err, err_cut) = (output.bytes_and_cut() for output in self._outputs)
        return CommandResult(
            exit_code=None if timed_out or self._exit is None else int(self._exit),
            stdout=out,
            stderr=err,
            stdout_cut=out_cut,
            stderr_cut=err_cut,
            timed_out=timed_out,
            shell_lost=self._lost,
            duration_s=time.perf_counter() - began,
        )

    async def _stop(self) -> None:
        """Kill what the current request started, then wait for its end frame."""
        try:
            async with asyncio.timeout(2 * KILL_TIMEOUT_S):
                await self._stop_now()
        except (TimeoutError, SandboxError) as e:
            self.closed(f"a command could not be killed: {str(e) or 'its channel does not answer'}")
            self._check()

    async def _stop_now(self) -> None:
        if self._killer is None:
            raise SandboxError("there is no second control channel")
        killer = await self._killer()
        window = await killer.window(self._begun)
        while not self._latch.is_set:
            await killer.kill(window, self._begun.last_pid, [0, self.pid, killer.pid])
            with suppress(TimeoutError):
                async with asyncio.timeout(0.5):
                    await self._latch.wait()

    def _claim(self) -> None:
        self._check()
        if self._busy:
            raise ContractError("a control channel takes one request at a time")
        self._busy = True

    def _check(self) -> None:
        if self._gone is not None:
            raise SandboxError(self._gone)

    def _expect(self, *, frames: int, keep: int) -> str:
        token = secrets.token_hex(10)
        self._latch = Latch()
        self._frames_due = frames
        self._exit = None
        self._lost = False
        self._has_begun = False
        self._keep_now = keep
        self._begun = Span(0)
        for stream in self._streams:
            stream.tokens = {self._key.encode(), token.encode()}
        return token

    def _frame(self, index: int, fields: list[bytes]) -> None:
        stream = self._streams[index]
        if fields[0] == self._key.encode():
            self._session_frame(index, fields)
        elif fields[1:2] == [b"begin"]:
            stream.take(self._keep_now)
            if index == 0 and are_numbers(fields, 2):
                self._has_begun = True
                self._begun.last_pid = int(fields[2] or 0)
        elif fields[1:2] != [b"end"] or are_numbers(fields, 2):
            self._outputs[index] = stream.take(_KEEP_IDLE)
            self._fields = fields
            if fields[1:2] == [b"end"]:
                self._exit = fields[2] or None
            self._frames_due -= 1
            if self._frames_due == 0:
                self._latch.set()

    def _session_frame(self, index: int, fields: list[bytes]) -> None:
        if index == 1:
            return
        if fields[1:2] == [b"ready"]:
            if not are_numbers(fields, 2):
                return
            self.pid = int(fields[2] or 0)
            self._gone = None  # given up for not answering, it was started again since
            self._ready.set()
            return
        # Its `sh` was killed; another one waits for the word.
        self._ready.clear()
        self._lost = True
        for i, stream in enumerate(self._streams):
            self._outputs[i] = stream.take(_KEEP_IDLE)
        self._latch.set()
        self._write(f"\ngo {self._key}{self._restarted()}\n".encode())


def settings(workdir: str | None, env: Mapping[str, str]) -> str:
    """The lines of a script that put what follows into `workdir`, with `env`."""
    lines = []
    for name, value in env.items():
        if not name.isidentifier() or not name.isascii() or "\0" in value:
            raise ContractError(f"not an environment variable: {name}")
        lines.append(f"export {name}={shlex.quote(value)}\n")
    if workdir is not None:
        where = shlex.quote(workdir)
        failed = f'{{ echo "headrace: no folder" {where} >&2; exit 126; }}'
        lines.append(f"cd -- {where} 2>/dev/null || {failed}\n")
    return "".join(lines)


def script_of(command: str, workdir: str | None, env: Mapping[str, str]) -> str:
    """What a shell is given to run `command`."""
    if "\0" in command:
        raise ContractError("a command cannot contain a NUL byte")
    # A last line of ours keeps the shell in front of the command: without it, `setsid x` would be
    # the leader of its session already, fork, and be waited for by nobody.
    script = f"{settings(workdir, env)}{command}\nexit $?\n"
    if len(encode(script)) > MAX_SCRIPT_BYTES:
        raise ContractError(
            f"a command of at most {MAX_SCRIPT_BYTES} bytes was expected; write it to a file first"
        )
    return script


def encode(text: str) -> bytes:
    """Text as bytes for a shell; what is no UTF-8 passes as the bytes it came from."""
    try:
        return text.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:
        return text.encode("utf-8", "surrogatepass")


def _arguments(window: tuple[int, int], last_pid: int, pids: list[int]) -> str:
    return " ".join(map(str, [*window, last_pid, *pids]))


def raise_for(path: str, code: int | None, result: CommandResult, max_bytes: int) -> None:
    """The errors of `read` and `write`, by their exit codes."""
    if code == MISSING:
        raise FileNotFoundError(ENOENT, "no such file in the sandbox", path)
    if code == NOT_REGULAR:
        raise FileNotFoundError(ENOENT, "not a regular file in the sandbox", path)
    if code == FOLDER:
        raise IsADirectoryError(EISDIR, "a folder in the sandbox", path)
    if code == TOO_LARGE:
        size = result.stdout[:40].decode(errors="replace").strip()
        raise OverflowError(f"{path}: {size} bytes, at most {max_bytes} were asked for")


def tail(result: CommandResult) -> str:
    """Why one of ours failed, in short."""
    if result.timed_out:
        return "it took too long"
    return result.stderr[-500:].decode(errors="replace").strip() or f"exit {result.exit_code}"
