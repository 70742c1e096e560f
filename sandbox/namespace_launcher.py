"""The driver's side of `launcher.py`: starts sandboxes with it, and learns of their ends.

Rule: one launcher per provider. It ends with the driver, whatever ends the driver, and its
sandboxes end with it. A launcher that has ended is told to every sandbox it started, and the next
start begins another one. What is sent keeps its order, so that a sandbox can be killed while it is
still asked for.
"""

import asyncio
import marshal
import os
import signal
import socket
import sys
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from headrace.aio import run_shielded
from headrace.errors import SandboxError
from headrace.sandbox.frames import Latch
from headrace.sandbox.launcher import MAX_MESSAGE
from headrace.sandbox.leases import VARIABLE
from headrace.sandbox.namespace_process import Leader, raised

PROGRAM = Path(__file__).with_name("launcher.py")
END_TIMEOUT_S = 20.0
_CHANNEL_FD = 3
_GONE = "the process that starts sandboxes has ended"


class Launcher:
    """See the module. Begins with its first `start`; `close` ends it and all it started."""

    def __init__(self, closed: tuple[int, ...] = (), *, lease: str = "") -> None:
        """`closed`: descriptors this process hands down and the launcher may not get.

        `lease`: the name of the one that a sweep finds the launcher by.
        """
        self._closed = closed
        self._lease = lease
        self._line: _Line | None = None
        self._numbers = 0

    async def start(self, plan: Mapping[str, object], fds: Mapping[int, int]) -> Leader:
        """Start a sandbox; `fds[n]` becomes its descriptor n.

        Raises `SandboxError` when no process can be had. What goes wrong later is told by the
        sandbox's stderr and its end.
        """
        self._numbers += 1
        message = marshal.dumps((self._numbers, "start", {**plan, "fds": list(fds)}))
        if len(message) > MAX_MESSAGE:
            raise SandboxError(
                f"at most {MAX_MESSAGE} bytes of settings were expected of a sandbox, found "
                f"{len(message)}: its environment or its list of layers is too long"
            )
        if self._line is None or self._line.ended:
            self._line = _Line(self._closed, self._lease, self._next)
        return await self._line.start(self._numbers, message, tuple(fds.values()))

    def _next(self) -> int:
        self._numbers += 1
        return self._numbers

    async def close(self, *, within_s: float = END_TIMEOUT_S) -> None:
        """End the launcher; returns when it is gone, and with it every sandbox. Idempotent.

        It ends at the end of its socket, and is killed where it does not.
        """
        if self._line is not None:
            await self._line.close(within_s)
            self._line = None


class Member:
    """What was started in a sandbox: a program, or a call of `inside.py`."""

    __slots__ = ("_line", "end", "number", "status")

    def __init__(self, number: int, line: "_Line") -> None:
        self.number = number
        self.end = Latch()
        """Set at its end; failed where it could not start, or the launcher is gone."""
        self.status = 0
        """Exit code, or minus the signal."""
        self._line = line

    def kill(self) -> None:
        """It alone. Of one that has ended: nothing happens."""
        if not self.end.is_set:
            self._line.kill(self.number)


class Launched(Leader):
    """Process 1 of a sandbox: it is its own leader."""

    def __init__(self, pid: int, number: int, line: "_Line") -> None:
        super().__init__(pid)
        self._number = number
        self._line = line

    @property
    def first(self) -> int | None:
        return None if self.ended.is_set() else self.pid

    def kill(self) -> None:
        if not self.ended.is_set():
            self._line.kill(self._number)

    async def join(self, asked: Mapping[str, object], fds: Mapping[int, int]) -> Member:
        """Start something in the sandbox; `fds[n]` becomes its descriptor n, of the three.

        Returns when that has been asked for: `Member.end` says the rest. Cancelled, it may run.
        """
        return await self._line.join({**asked, "sandbox": self._number}, fds)


class _Line:
    """One launcher process and the socket to it."""

    def __init__(self, closed: tuple[int, ...], lease: str, number: Callable[[], int]) -> None:
        self.ended = False
        self._number = number
        self._loop = asyncio.get_running_loop()
        self._asked: dict[int, asyncio.Future[Leader]] = {}
        self._live: dict[int, Launched] = {}
        self._members: dict[int, Member] = {}
        self._waiting: deque[tuple[bytes, Sequence[int], asyncio.Future[None] | None]] = deque()
        self._gone = asyncio.Event()
        self._channel, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._channel.setblocking(False)
        try:
            self._pid = _spawn(theirs, closed, lease)
            self._pidfd = os.pidfd_open(self._pid)
        except OSError as e:
            self._channel.close()
            raise SandboxError(f"{PROGRAM.name} could not be started: {e}") from e
        finally:
            theirs.close()
        self._loop.add_reader(self._pidfd, self._reap)
        self._loop.add_reader(self._channel, self._read)

    async def start(self, number: int, message: bytes, fds: Sequence[int]) -> Leader:
        answer: asyncio.Future[Leader] = self._loop.create_future()
        sent: asyncio.Future[None] = self._loop.create_future()
        self._asked[number] = answer
        try:
            self._push(message, fds, sent)
            await sent
            return await asyncio.shield(answer)
        except asyncio.CancelledError:
            if sent.done() and not sent.cancelled() and sent.exception() is None:
                await run_shielded(_ended(answer))
            raise
        finally:
            self._asked.pop(number, None)

    async def join(self, asked: Mapping[str, object], fds: Mapping[int, int]) -> Member:
        member = Member(self._number(), self)
        message = marshal.dumps((member.number, "join", {**asked, "fds": list(fds)}))
        sent: asyncio.Future[None] = self._loop.create_future()
        self._members[member.number] = member
        try:
            self._push(message, tuple(fds.values()), sent)
            if not sent.done():
                async with asyncio.timeout(END_TIMEOUT_S):
                    await sent
            sent.result()
        except TimeoutError:
            del self._members[member.number]
            raise SandboxError("the process that starts sandboxes takes nothing on") from None
        except BaseException:
            if sent.done() and not sent.cancelled() and sent.exception() is None:
                self.kill(member.number)
            else:
                del self._members[member.number]
            raise
        return member

    def kill(self, number: int) -> None:
        """Of what has ended: nothing happens."""
        self._push(marshal.dumps((number, "kill", None)), (), None)

    async def close(self, within_s: float) -> None:
        self._fail()
        try:
            async with asyncio.timeout(within_s):
                await self._gone.wait()
        except TimeoutError:
            os.kill(self._pid, signal.SIGKILL)  # not reaped yet: the number is its own
            await self._gone.wait()

    # --- inside ---

    def _push(self, message: bytes, fds: Sequence[int], sent: asyncio.Future[None] | None) -> None:
        if self.ended:
            if sent is not None:
                sent.set_exception(SandboxError(_GONE))
            return
        self._waiting.append((message, fds, sent))
        if len(self._waiting) == 1:
            self._flush()

    def _flush(self) -> None:
        while self._waiting:
            message, fds, sent = self._waiting[0]
            if sent is None or not sent.done():  # else who asked has gone, and its files with it
                try:
                    socket.send_fds(self._channel, [message], fds)
                except BlockingIOError:
                    self._loop.add_writer(self._channel, self._flush)
                    return
                except OSError as e:
                    if sent is None or isinstance(e, ConnectionError):  # a kill must not be lost
                        self._fail()
                        return
                    # of this message alone, such as too many files on their way
                    sent.set_exception(SandboxError(f"{PROGRAM.name} could not be told: {e}"))
            self._waiting.popleft()
            if sent is not None and not sent.done():
                sent.set_result(None)
        self._loop.remove_writer(self._channel)

    def _read(self) -> None:
        for _ in range(64):
            try:
                said = self._channel.recv(MAX_MESSAGE)
            except (BlockingIOError, InterruptedError):
                return
            except OSError:
                said = b""
            if not said:
                self._fail()
                return
            number, what, value = marshal.loads(said)
            if number in self._members:
                self._end_member(number, what, value)
            elif what in ("ended", "left"):
                self._end(number, os.waitstatus_to_exitcode(value), cleared=what == "ended")
            else:
                self._answer(number, what, value)

    def _answer(self, number: int, what: str, value: int) -> None:
        asked = self._asked.get(number)
        if asked is None or asked.done():
            self.kill(number)  # who asked has given it up
            return
        if what == "started":
            self._live[number] = Launched(value, number, self)
            asked.set_result(self._live[number])
        else:
            words = f"no process for a sandbox: {os.strerror(value)}"
            asked.set_exception(SandboxError(words))

    def _end(self, number: int, status: int, *, cleared: bool) -> None:
        launched = self._live.pop(number, None)
        if launched is not None:
            launched.cleared = cleared
            launched.end(status)

    def _end_member(self, number: int, what: str, value: int) -> None:
        member = self._members.pop(number)
        if what == "refused":
            words = f"nothing could be started in the sandbox: {os.strerror(value)}"
            member.end.set(SandboxError(words))
        else:
            member.status = os.waitstatus_to_exitcode(value)
            member.end.set()

    def _fail(self) -> None:
        """The launcher is gone, or may go: it ends at the end of its socket."""
        if self.ended:
            return
        self.ended = True
        self._loop.remove_reader(self._channel)
        self._loop.remove_writer(self._channel)
        self._channel.close()
        for _, _, sent in self._waiting:
            if sent is not None and not sent.done():
                sent.set_exception(SandboxError(_GONE))
        self._waiting.clear()
        for asked in self._asked.values():
            if not asked.done():
                asked.set_exception(SandboxError(_GONE))

    def _reap(self) -> None:
        """Its children were killed by the kernel as it ended."""
        self._fail()
        self._loop.remove_reader(self._pidfd)
        os.close(self._pidfd)
        with suppress(ChildProcessError):
            os.waitpid(self._pid, 0)
        for number in tuple(self._live):
            self._end(number, -signal.SIGKILL, cleared=False)
        for member in self._members.values():
            member.end.set(SandboxError(_GONE))
        self._members.clear()
        self._gone.set()


async def _ended(answer: "asyncio.Future[Leader]") -> None:
    """Nobody wants the sandbox any more: returns when nothing of it can come into being."""
    with suppress(SandboxError, TimeoutError):
        async with asyncio.timeout(END_TIMEOUT_S):
            leader = await answer
            leader.kill()
            await leader.ended.wait()


def _spawn(theirs: socket.socket, closed: tuple[int, ...], lease: str) -> int:
    fd = raised(os.dup(theirs.fileno()))
    nowhere = raised(os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC))
    try:
        return os.posix_spawn(
            sys.executable,
            [sys.executable, "-S", "-E", str(PROGRAM), str(_CHANNEL_FD)],
            {VARIABLE: lease, "LD_BIND_NOW": "1"},  # else each child looks up the same names again
            file_actions=[
                *((os.POSIX_SPAWN_CLOSE, number) for number in closed),
                *((os.POSIX_SPAWN_DUP2, nowhere, number) for number in (0, 1)),
                (os.POSIX_SPAWN_DUP2, fd, _CHANNEL_FD),
            ],
            setsid=True,
            setsigmask=(),
        )
    finally:
        os.close(fd)
        os.close(nowhere)
