"""The agent's persistent shell: one command at a time over one attached stream.

Sans-I/O and push-based: the provider gives `write`, calls `feed(fd, data)` with what the stream
brings and `closed(reason)` when it ends. At the other end is `sh -c AGENT` (see `scripts.py`).

A command is two lines. The first evaluates it with stdin closed; the second prints the end frame
with a fresh random token on stdout and stderr, so that an error which throws the shell back to its
top level is answered all the same. The shell is an interactive bash without a terminal, because
only an interactive one survives SIGINT with its variables; where there is no bash, `sh` serves.

What it does not do: hide from a command that means harm to its own shell. Such a command can only
spoil its own result; ours go over `control.py`.
"""

import asyncio
import re
import secrets
import time
from collections.abc import Awaitable, Callable

from headrace.aio import run_shielded
from headrace.errors import ContractError, SandboxError, SandboxFull
from headrace.sandbox.control import Killer, Span, encode
from headrace.sandbox.frames import Capture, Latch, Stream, are_numbers
from headrace.sandbox.scripts import AGENT_PROGRAM, SETUP
from headrace.types import CommandResult

START_TIMEOUT_S = 60.0
RESCUE_TIMEOUT_S = 120.0
"""Thousands of processes that all want the CPU may have to be ended first."""
INTERRUPT_ROUNDS = 6
"""How often a command is interrupted and killed before the shell itself is."""
ROUND_S = 0.15
RESEND_S = 0.05
"""A `sh` other than bash forgets its input on some errors, so the end is asked for again."""

_IN_BASH = b"eval %b <&27 >&28 2>&29 27<&- 28>&- 29>&-\n_hr_end %b\n"
_IN_SH = b"eval %b <&7 >&8 2>&9 7<&- 8>&- 9>&-\n_hr_end %b\n"
_JOB_STARTED = re.compile(rb"^\[\d+\] \d+\n", re.MULTILINE)
_NO_TERMINAL = re.compile(rb"bash: \[\d+: \d+ \(\d+\)\] tcsetattr: [^\n]*\n")
_SIGNAL_NAMES = {
    132: b"Illegal instruction\n",
    134: b"Aborted\n",
    135: b"Bus error\n",
    136: b"Floating point exception\n",
    137: b"Killed\n",
    139: b"Segmentation fault\n",
    143: b"Terminated\n",
}


class Shell:
    """One agent shell. `start` it, then `run` any number of commands."""

    def __init__(
        self,
        write: Callable[[bytes], None],
        *,
        killer: Callable[[], Awaitable[Killer]],
        max_output_bytes: int = 1 << 20,
        program: str | None = AGENT_PROGRAM,
        rescue: Callable[[bool], Awaitable[None]] | None = None,
    ) -> None:
        """`killer` gives what interrupts; it is first called at a deadline.

        `program` is sent first, to the loader at the other end; None: it runs already. `rescue`
        kills all that runs inside when a command cannot be killed alone; the shell ends with it.
        It is told whether that was for want of processes, and else finds out.
        """
        self.pid = 0
        """Process id of the shell inside the sandbox."""
        self._write = write
        self._killer = killer
        self._program = program
        self._rescue = rescue
        self._keep = max_output_bytes
        self._key = secrets.token_hex(10)
        self._streams = (
            Stream(lambda fields: self._frame(0, fields), max_output_bytes),
            Stream(lambda fields: self._frame(1, fields), max_output_bytes),
        )
        self._tokens = {self._key.encode()}
        self._token = b""
        self._latch = Latch()
        self._outputs: list[Capture | None] = [None, None]
        self._fields: list[bytes] = []
        self._deaths = [0, 0]
        self._deaths_before = 0
        self._death_code: int | None = None
        self._alive = False
        self._lost = False
        self._is_bash = True
        self._last_job = b"0"
        self._last_pid = 0
        self._busy = False
        self._gone: str | None = None
        self._greet()

    def _greet(self) -> None:
        if self._program is not None:
            self._write(f"{self._program}#end\n".encode())
        self._write(f"{self._key}\n".encode())

    # --- the provider's side ---

    def renewed(self) -> None:
        """The other end was started again: its shell is gone, as if it had been killed."""
        self._greet()
        self._alive = False
        self._lost = True
        self._death_code = 137
        for i, stream in enumerate(self._streams):
            if self._outputs[i] is None:
                self._outputs[i] = stream.take(self._keep)
        self._latch.set()

    def feed(self, fd: int, data: bytes) -> None:
        """Bytes from stdout (1) or stderr (2)."""
        self._streams[fd - 1].feed(data)

    def closed(self, reason: str) -> None:
        """The stream is gone for good; every command from now on raises `SandboxError`."""
        if self._gone is None:
            self._gone = reason
            self._latch.set(SandboxError(reason))

    # --- commands ---

    async def start(self) -> None:
        """Start a shell and wait for its first answer. `run` does so too where needed."""
        self._last_job = b"0"
        token = self._expect()
        self._write(f"\ngo {self._key}\n{SETUP}_hr_end {token}\n".encode())
        try:
            async with asyncio.timeout(START_TIMEOUT_S):
                await self._latch.wait()
        except TimeoutError:
            self.closed(f"the shell did not start within {START_TIMEOUT_S:.0f} s")
        self._check()
        if self._death_code is not None:
            said = self._text(1)[0][-500:].decode(errors="replace").strip()
            self.closed(f"the shell did not start (exit {self._death_code}): {said}")
            self._check()
        self._lost = False

    async def run(self, command: str, *, timeout_s: float) -> CommandResult:
        """Run `command`; see `Sandbox.run`."""
        text = _quote(command)
        self._check()
        if self._busy:
            raise ContractError("one command at a time: the shell still runs another")
        self._busy = True
        try:
            lost_before = self._lost
            if not self._alive:
                await self.start()
            return await self._run(text, timeout_s, lost_before)
        finally:
            self._busy = False

    async def _run(self, text: bytes, timeout_s: float, lost_before: bool) -> CommandResult:
        span = Span(self._last_pid)
        token = self._expect()
        line = (_IN_BASH if self._is_bash else _IN_SH) % (text, token.encode())
        timed_out = False
        try:
            self._write(line)
            if self._is_bash:
                await self._latch.wait_for(timeout_s)
            else:
                async with asyncio.timeout(timeout_s):
                    await self._asked_again(token)
        except TimeoutError:
            timed_out = True
            await run_shielded(self._interrupt(span))
        except asyncio.CancelledError:
            await run_shielded(self._interrupt(span))
            raise
        duration_s = time.monotonic() - span.began
        (out, out_cut), (err, err_cut) = self._text(0), self._text(1)
        lost_now = self._death_code is not None
        code = self._death_code if lost_now else int(self._fields[1] or 0)
        if lost_now:
            self._lost = False  # said now
            err = err.removesuffix(b"exit\n")  # an interactive bash announces `exit`
        job = self._last_job if lost_now else self._fields[3]
        if b"tcsetattr" in err:
            err = _name_signal(err, code)
        if job != self._last_job:
            self._last_job = job
            err = _JOB_STARTED.sub(b"", err)
        return CommandResult(
            exit_code=None if timed_out else code,
            stdout=out,
            stderr=err,
            stdout_cut=out_cut,
            stderr_cut=err_cut,
            timed_out=timed_out,
            shell_lost=lost_now or lost_before,
            duration_s=duration_s,
        )

    async def _asked_again(self, token: str) -> None:
        wait_s = RESEND_S
        while not self._latch.is_set:
            try:
                await self._latch.wait_for(wait_s)
            except TimeoutError:
                self._write(f"_hr_end {token}\n".encode())
                wait_s = min(2 * wait_s, 5.0)
        await self._latch.wait()

    # --- the deadline ---

    async def _interrupt(self, span: Span) -> None:
        """Bring the shell back to its top level and kill what the command started."""
        try:
            async with asyncio.timeout(START_TIMEOUT_S):
                await self._interrupt_now(span)
        except (TimeoutError, SandboxError) as e:
            if await self._rescued(full=isinstance(e, SandboxFull)):
                return
            self.closed(f"a command could not be killed: {str(e) or 'its channel does not answer'}")
            self._check()

    async def _rescued(self, *, full: bool) -> bool:
        """Whether the command is dead after all, with everything else inside."""
        if self._rescue is None or self._gone is not None:
            return False
        try:
            async with asyncio.timeout(RESCUE_TIMEOUT_S):
                await self._rescue(full)
                await self._latch.wait()
        except (TimeoutError, SandboxError):
            return False
        return True

    async def _interrupt_now(self, span: Span) -> None:
        killer = await self._killer()
        await killer.started()
        window = await killer.window(span)
        pids = [self.pid, killer.pid]
        for _ in range(INTERRUPT_ROUNDS):
            await killer.interrupt(window, span.last_pid, pids)
            if await self._answers():
                break
            await killer.kill(window, span.last_pid, pids)
            if await self._answers():
                break
        else:
            await killer.signal("KILL", self.pid)
            async with asyncio.timeout(5):
                await self._latch.wait()
        await killer.kill(window, span.last_pid, [self.pid if self._alive else 0, killer.pid])

    async def _answers(self) -> bool:
        """Whether the shell, asked now, answers within a round."""
        if self._latch.is_set and self._death_code is not None:
            return True
        token = self._expect(fresh=False)
        self._write(f"\n_hr_end {token}\n".encode())
        try:
            await self._latch.wait_for(ROUND_S)
        except TimeoutError:
            return False
        return True

    # --- inside ---

    def _check(self) -> None:
        if self._gone is not None:
            raise SandboxError(self._gone)

    def _expect(self, *, fresh: bool = True) -> str:
        """A new token whose frame ends the command. Not `fresh`: the command goes on."""
        token = secrets.token_hex(10)
        self._token = token.encode()
        if fresh and (self._is_bash or len(self._tokens) > 64):
            self._tokens = {self._key.encode()}
        self._tokens.add(self._token)
        if fresh:
            self._death_code = None
            self._deaths_before = max(self._deaths)
        self._latch = Latch()
        for i, stream in enumerate(self._streams):
            stream.tokens = self._tokens
            taken = self._outputs[i]
            if not fresh and self._deaths[i] > self._deaths_before:
                continue  # its end is known already; the other stream's is on the way
            if not fresh and taken is not None:  # the command goes on after all
                taken.extend(stream.capture)
                stream.capture = taken
            self._outputs[i] = None
        return token

    def _frame(self, index: int, fields: list[bytes]) -> None:
        """An end or a death. What the agent forged, and so has another form, is passed over."""
        if fields[0] == self._key.encode():
            if not are_numbers(fields, 1):
                return
            death = self._deaths[index] + 1
            if death > max(self._deaths):
                self._alive = False
                self._lost = True
                self._death_code = int(fields[1] or 0)
            self._deaths[index] = death
            if death > self._deaths_before:  # else it is an old death, heard late here
                self._end(index)
        elif fields[0] == self._token:
            if index == 0:
                if len(fields) < 6 or not are_numbers(fields, 1, 2, 4):
                    return
                self._fields = fields
                self._alive = True
                self.pid = int(fields[2] or 0)
                self._last_pid = int(fields[4] or 0)
                self._is_bash = bool(fields[5])
            self._end(index)

    def _end(self, index: int) -> None:
        if self._latch.is_set or self._outputs[index] is not None:
            return
        self._outputs[index] = self._streams[index].take(self._keep)
        if self._outputs[1 - index] is not None:
            self._latch.set()

    def _text(self, index: int) -> tuple[bytes, int]:
        output = self._outputs[index]
        return output.bytes_and_cut() if output else (b"", 0)


def _quote(command: str) -> bytes:
    if "\0" in command:
        raise ContractError("a command cannot contain a NUL byte")
    return b"'" + encode(command).replace(b"'", b"'\\''") + b"'"


def _name_signal(err: bytes, code: int | None) -> bytes:
    """What bash says of a signal in a terminal, instead of what it says without one."""
    name = _SIGNAL_NAMES.get(code or 0, b"")
    head, _, tail = err.rpartition(b"bash: [")
    return _NO_TERMINAL.sub(b"", head) + _NO_TERMINAL.sub(name, b"bash: [" + tail)
