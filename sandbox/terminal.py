"""An interactive terminal of a sandbox: keystrokes in, what they led to out.

Rule: `type` returns when nothing more is to come, never after a fixed sleep. It asks the kernel
what the terminal's foreground programs do:

- they read a line (a shell without line editing, `cat`, `read`): idle at once;
- the terminal is raw and its login shell is in front: a prompt, idle at once;
- the terminal is raw and another program is in front (an editor, a pager, a prompt of a language):
  idle when it sleeps and has printed nothing for `STILL_RAW_S`;
- anything else runs, and is waited for, `wait_s` at most.

The question ends with a mark through the terminal, so all that was printed before it has been read.
It types nothing into the shell and sets nothing in it: the user's prompt and start files stay.
How a terminal is opened and asked is the provider's: it gives `connect` and `look`.
"""

import asyncio
import re
import secrets
import shlex
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from typing import Any, NamedTuple, Protocol

from headrace.aio import run_shielded
from headrace.errors import ContractError, SandboxError
from headrace.sandbox.base import COLUMNS, ROWS
from headrace.sandbox.scripts import PROBE
from headrace.sandbox.terminal_keys import encode
from headrace.sandbox.terminal_screen import Emulator
from headrace.types import CommandResult

OPEN_TIMEOUT_S = 60.0
FIRST_PROMPT_S = 10.0
"""For the start files of the login shell; a shell that takes longer is typed at all the same."""
STILL_S = 0.01
"""Output that pauses so long is worth a probe."""
STILL_RAW_S = 0.15
"""What a full-screen program prints in one go has no longer pauses."""
SILENT_S = 0.3
"""Keys that nothing answers (a password) have been taken up by then."""
ANSWERED_S = 0.1
"""What the terminal answers a program has been read by then, on a busy machine too."""
LONGEST_PAUSE_S = 1.0
"""Between two probes of a program that prints nothing."""
PROBE_TIMEOUT_S = 10.0
"""For a probe that runs inside."""
MARK_TIMEOUT_S = 1.0
"""For the mark to come: a terminal stopped by `C-s` brings none."""
_MARK_BYTES = 128
_READING = ("tty_read", "wait_woken")
_ELSEWHERE = ("nanosleep", "do_wait", "pipe_", "anon_pipe")
"""Waits that no key can end: for time, for a child, for another program's output."""


class Line(Protocol):
    """The host's end of a pseudo-terminal."""

    @property
    def waiting(self) -> bool:
        """Whether something written is not sent yet."""

    def write(self, data: bytes) -> None:
        """Never blocks; silent once the other end is gone."""

    def close(self) -> None:
        """Idempotent."""


Connect = Callable[[str, Callable[[bytes], None], Callable[[], None]], Awaitable[Line]]
"""Starts `TERMINAL_PROGRAM` with a token; the bytes it prints go to the first callable, the second
is called when it has ended."""


class Process(NamedTuple):
    """One process in the foreground group of a terminal."""

    state: str
    """Its letter in /proc/PID/stat."""
    is_leader: bool
    """It belongs to the group of the login shell."""
    waits: str
    """Where in the kernel it sleeps; `0` or nothing: unknown."""


class State(NamedTuple):
    """What the foreground of a terminal does."""

    raw: bool | None
    """Whether keys reach the program one by one; None: unknown."""
    asleep: bool
    """All of its processes sleep."""
    is_shell: bool
    """It is the login shell itself."""
    reading: bool | None
    """One of them waits for the terminal; None: the kernel does not say."""
    elsewhere: bool
    """All of them wait for something that is surely not the terminal."""

    @property
    def still_s(self) -> float | None:
        """How long its output must have paused for it to be idle; None: it runs."""
        if not self.asleep or self.elsewhere:
            return None
        if self.raw:
            return STILL_S if self.is_shell else STILL_RAW_S
        if self.reading:
            return STILL_S
        if self.is_shell and self.raw is None:  # no `stty` inside to ask
            return STILL_RAW_S
        return SILENT_S if self.reading is None and self.is_shell else None


Look = Callable[[str, str], Coroutine[Any, Any, State | None]]
"""What the foreground of a terminal does; None: unknown. Given the terminal's name, and a token to
be printed on it as `OSC hr<token> BEL` if it may be idle; empty: nothing is printed."""


def state_of(raw: bool | None, processes: Sequence[Process]) -> State | None:
    """The state of a foreground with these processes; None when there is nobody."""
    if not processes:
        return None
    known = [process.waits for process in processes if process.waits not in ("", "0")]
    reading = any(word in waits for waits in known for word in _READING)
    return State(
        raw=raw,
        asleep=all(process.state in "STtZXI" for process in processes),
        is_shell=all(process.is_leader for process in processes),
        reading=reading if reading or len(known) == len(processes) else None,
        elsewhere=len(known) == len(processes)
        and all(any(word in waits for word in _ELSEWHERE) for waits in known),
    )


def probe_script(tty: str, token: str) -> str:
    """A script that answers a `Look` inside the sandbox, for `read_state`."""
    number = _device_number(tty)
    return f"hr_tty={shlex.quote(tty)} hr_nr={number} hr_token={token}\n{PROBE}"


def read_state(answer: str) -> State | None:
    """What `probe_script` printed."""
    mode, processes = "", []
    for line in answer.splitlines():
        word, _, rest = line.partition(" ")
        fields = rest.split()
        if word == "mode":
            mode = rest.strip()
        elif word == "process" and len(fields) >= 3:
            waits = fields[3] if len(fields) > 3 else "0"
            processes.append(Process(fields[0], fields[1] == fields[2], waits))
    return state_of({"raw": True, "cooked": False}.get(mode), processes)


class PtyTerminal:
    """See `headrace.sandbox.base.Terminal`."""

    def __init__(self, connect: Connect, look: Look) -> None:
        self._connect = connect
        self._ask = look
        self._emulator = Emulator(COLUMNS, ROWS, self._reply)
        self._line: Line | None = None
        self._tty = ""
        self._busy = False
        self._lost = False
        """The shell ended and nobody has heard of it yet."""
        self._gone: str | None = None
        self._token = b""
        self._said = b""
        """What came with the mark."""
        self._edge = b""
        self._marked = asyncio.Event()
        self._changed = asyncio.Event()
        self._stopped = False
        """The last mark did not come: each further one would leave a process that cannot end."""
        self._chunks = 0
        self._last = 0.0
        """When something was printed last, or what a program asked will have been read."""

    def __repr__(self) -> str:
        return f"<PtyTerminal {self._tty or 'closed'} {self._emulator!r}>"

    # --- the seam ---

    async def type(self, keys: str, *, wait_s: float) -> CommandResult:
        """See `Terminal.type`. Empty `keys` wait: for what runs, or for all of `wait_s`."""
        if self._busy:
            raise ContractError("one call at a time: the terminal still waits for another")
        self._busy = True
        try:
            return await self._type(keys, wait_s)
        finally:
            self._busy = False

    # --- the provider's side ---

    async def open(self) -> None:
        """Start a shell and wait for its prompt. `type` does so too where needed."""
        self._emulator = Emulator(COLUMNS, ROWS, self._reply)
        self._lost = False
        self._expect()
        line = await self._connect(self._token.decode(), self._feed, self._on_end)
        self._line = line
        try:
            async with asyncio.timeout(OPEN_TIMEOUT_S):
                await self._marked.wait()
        except TimeoutError:
            self.close(f"the terminal did not open within {OPEN_TIMEOUT_S:.0f} s")
        self._check()
        if self._lost:
            said = "\n".join(self._emulator.display().splitlines()[-5:])
            raise SandboxError(f"the terminal did not open: {said or 'its shell ended at once'}")
        self._tty = self._said.decode(errors="replace").strip()
        await self._settle(FIRST_PROMPT_S, typed=False)
        self._emulator.take()

    def close(self, reason: str) -> None:
        """It is gone for good; every call from now on raises `SandboxError`. Idempotent."""
        if self._gone is None:
            self._gone = reason
        self._drop_line()
        self._marked.set()
        self._changed.set()

    # --- inside ---

    async def _type(self, keys: str, wait_s: float) -> CommandResult:
        self._check()
        began = _now()
        lost_before = self._lost
        if self._line is None or self._lost:
            await self.open()
        line = self._line
        assert line is not None
        if keys:
            await self._digest()  # which cursor keys are asked for may have just been printed
            line.write(encode(keys, application=self._emulator.screen.application_cursor))
            idle = await self._settle(wait_s, typed=True)
        else:
            idle = await self._wait(wait_s)
        await self._digest()
        self._check()
        text, cut = self._emulator.take()
        lost_now = self._lost
        if lost_now:
            self._drop_line()
            self._lost = False  # said now
        return CommandResult(
            exit_code=None,
            stdout=text.encode(),
            stdout_cut=cut,
            timed_out=not idle,
            shell_lost=lost_now or lost_before,
            duration_s=_now() - began,
            screen=self._emulator.display().encode(),
        )

    async def _wait(self, wait_s: float) -> bool:
        """Without keys: until what runs has ended, else, where nothing runs, the whole time."""
        deadline = _now() + wait_s
        if wait_s <= 0:
            return True
        state = await self._look()
        if state is None or state.still_s is None:
            return await self._settle(deadline - _now(), typed=False)
        while not self._lost and (left := deadline - _now()) > 0:
            self._changed.clear()
            await _first(self._changed, left)
        return True

    async def _settle(self, wait_s: float, *, typed: bool) -> bool:
        """Wait until the foreground is idle; False when it is not within `wait_s`."""
        began = _now()
        chunks_before = self._chunks
        pause = STILL_S
        while not (self._lost or self._gone):
            now = _now()
            left = began + wait_s - now
            if left <= 0:
                return False
            quiet = now - max(self._last, began)
            if quiet < STILL_S or (self._line is not None and self._line.waiting):
                await asyncio.sleep(min(STILL_S, left))
                continue
            await self._digest()  # a program may ask the terminal, and wait for its answer
            if self._last > now:  # it has just been given one
                continue
            seen = self._chunks
            state = await self._look()
            if self._chunks != seen:
                pause = STILL_S
                continue
            answered = self._chunks > chunks_before or not typed
            need = None if state is None else state.still_s
            if need is not None:
                need = max(need, 0.0 if answered else SILENT_S)
                short = need - (_now() - max(self._last, began))
                if short <= 0:
                    return True
                pause = short
            left = began + wait_s - _now()
            self._changed.clear()
            await _first(self._changed, max(0.0, min(pause, left)))
            pause = min(2 * pause, LONGEST_PAUSE_S)
        return True

    async def _look(self) -> State | None:
        """What the foreground does now. All it printed before has been read on return."""
        self._expect()
        token = "" if self._stopped else self._token.decode()
        try:
            # Shielded: it takes milliseconds, and to be cancelled half way costs far more.
            state = await run_shielded(self._ask(self._tty, token))
        except ContractError:  # our channel does something else just now
            return None
        except SandboxError as e:
            if e.final or self._gone is not None:
                raise
            return None  # such as no process left to ask with
        if token and state is not None and state.still_s is not None:
            await _first(self._marked, MARK_TIMEOUT_S)
            self._stopped = not self._marked.is_set()
        return state

    async def _digest(self) -> None:
        for _ in self._emulator.digest():
            await asyncio.sleep(0)

    def _expect(self) -> None:
        self._token = secrets.token_hex(10).encode()
        self._marked.clear()
        self._edge = b""

    def _feed(self, data: bytes) -> None:
        if self._token and not self._marked.is_set():
            data = self._without_mark(data)
            if not data:
                return
        self._chunks += 1
        self._last = _now()
        self._stopped = False
        self._emulator.feed(data)
        self._changed.set()

    def _without_mark(self, data: bytes) -> bytes:
        """`data` less the mark we wait for; one that came in pieces stays: no screen shows it."""
        both = self._edge + data
        mark = re.search(rb"\x1b\]hr%s([^\x07]*)\x07" % self._token, both)
        if mark is None:
            self._edge = both[-_MARK_BYTES:]
            return data
        self._said = mark[1]
        self._marked.set()
        self._changed.set()
        start = mark.start() - len(self._edge)
        return data if start < 0 else data[:start] + both[mark.end() :]

    def _on_end(self) -> None:
        self._lost = True
        self._marked.set()
        self._changed.set()

    def _reply(self, answer: str) -> None:
        if self._line is not None:
            self._line.write(answer.encode())
            self._last = _now() + ANSWERED_S

    def _drop_line(self) -> None:
        if self._line is not None:
            self._line.close()
            self._line = None

    def _check(self) -> None:
        if self._gone is not None:
            raise SandboxError(self._gone)


async def _first(event: asyncio.Event, timeout_s: float) -> None:
    """Return when `event` is set, or after `timeout_s`."""
    try:
        async with asyncio.timeout(timeout_s):
            await event.wait()
    except TimeoutError:
        pass


def _device_number(tty: str) -> int:
    """What /proc/PID/stat calls the terminal `/dev/pts/N`."""
    number = tty.rpartition("/")[2]
    if not number.isdecimal():  # `²` is a digit, and no number
        raise SandboxError(f"a terminal named /dev/pts/N was expected, found {tty!r}")
    minor = int(number)
    return (minor & 0xFF) | (136 << 8) | ((minor & ~0xFF) << 12)


def _now() -> float:
    return asyncio.get_running_loop().time()
