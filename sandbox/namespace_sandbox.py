"""A running namespace sandbox: its channels wired to one process.

Rule: the sandbox is usable from `start` to the end of its process, and every call after that
raises `SandboxError` with why it ended. Closing kills the process and waits until all of it is
gone; it is idempotent and finishes even when cancelled.
"""

import asyncio
import logging
import os
import signal
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import TypeVar

from headrace.aio import in_thread, run_shielded
from headrace.errors import ContractError, SandboxEnded, SandboxError, SandboxFull
from headrace.sandbox import rooted
from headrace.sandbox.base import IMAGE_USER, Bring, Sandbox, Terminal
from headrace.sandbox.cgroups import Processes
from headrace.sandbox.control import Channel, Control, Killer, NotBegun, reserve
from headrace.sandbox.leases import children_of, number_inside
from headrace.sandbox.namespace_joined import Joined, JoinedKiller, encoded
from headrace.sandbox.namespace_launcher import Launched
from headrace.sandbox.namespace_process import (
    Inlet,
    Leader,
    Outlet,
    open_for,
    pipe_from,
    pipe_to,
)
from headrace.sandbox.namespace_terminal import PtyLine, TerminalPlace, open_pty
from headrace.sandbox.shell import Shell
from headrace.sandbox.terminal import Line, PtyTerminal, State
from headrace.types import CommandResult

log = logging.getLogger("headrace.sandbox.namespace")

CLOSE_TIMEOUT_S = 20.0
LENT_PIDS = 1024
"""Given beyond its limit to a sandbox whose processes leave no room for ours."""
SETTLE_S = 0.2
"""After lending: what runs away has eaten it by then."""
_SAID_BYTES = 2000


T = TypeVar("T")


class NamespaceSandbox:
    """See `Sandbox`. Made by `start`, closed by whoever started it."""

    def __init__(
        self,
        *,
        max_output_bytes: int,
        image_user: str = "",
        terminal: TerminalPlace | None = None,
        joined: bool = False,
    ) -> None:
        """`terminal`: whose terminal there may be, and where it starts; None: there is none.

        `joined`: its leader is the launcher's, and our own requests need no process of theirs.
        """
        self._joined = joined
        self._keep = max_output_bytes
        self._place = terminal
        self._terminal: PtyTerminal | None = None
        self._pty: PtyLine | None = None
        self._image_user = image_user
        self._leader: Leader | None = None
        self._processes: Processes | None = None
        self._need = 0
        self._inlets: list[Inlet] = []
        self._outlets: list[Outlet] = []
        self._said = b""
        self._started = False
        self._closed = False
        self._shell: Shell
        self._control: Channel
        self._killer: Killer

    async def start(
        self,
        lead: Callable[[Mapping[int, int]], Awaitable[Leader]],
        files: Mapping[int, str],
        processes: Processes | None = None,
    ) -> None:
        """Have the leader started and wait until its channels answer.

        `lead` gets the descriptors it starts with: those of the channels and `files`, opened.
        """
        self._processes = processes
        self._need = reserve(None if processes is None else processes.limit)
        try:
            await self._spawn(lead, files)
            for channel in (self._control, self._killer):
                if isinstance(channel, Control):
                    await channel.started()
            await self._shell.start()
        except OSError as e:
            raise SandboxError(f"the sandbox could not be started: {e}") from e
        self._started = True

    @property
    def leader(self) -> Leader | None:
        """The process that holds it all."""
        return self._leader

    # --- the seam ---

    async def run(self, command: str, *, timeout_s: float) -> CommandResult:
        """See `Sandbox.run`."""
        with self._attributed():
            return await self._shell.run(command, timeout_s=timeout_s)

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
        """See `Sandbox.exec`."""
        return await self._in_room(
            lambda: self._control.exec(
                command,
                timeout_s=timeout_s,
                stdin=stdin,
                workdir=workdir,
                env=env,
                user=self._image_user if user == IMAGE_USER else user,
                max_output_bytes=max_output_bytes,
            )
        )

    async def read(self, path: str, *, max_bytes: int = 64 << 20) -> bytes:
        """See `Sandbox.read`."""
        return await self._in_room_of_shells(lambda: self._control.read(path, max_bytes=max_bytes))

    async def write(self, path: str, data: bytes, *, mode: int = 0o644) -> None:
        """See `Sandbox.write`."""
        await self._in_room_of_shells(lambda: self._control.write(path, data, mode=mode))

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
        control = self._control
        if not isinstance(control, Joined):
            return None
        return await self._in_room(
            lambda: control.exec_with(
                bring,
                command,
                timeout_s=timeout_s,
                workdir=workdir,
                env=env,
                user=self._image_user if user == IMAGE_USER else user,
                max_output_bytes=max_output_bytes,
            )
        )

    async def kinds(self, paths: Sequence[str]) -> str | None:
        """See `Direct.kinds`."""
        first = self._leader.pid if self._joined and self._leader else None
        if first is None or self._ended:
            return None
        return rooted.kinds(first, [encoded(path) for path in paths])

    async def terminal(self) -> Terminal:
        """See `Sandbox.terminal`."""
        if self._place is None:
            raise ContractError("a terminal is asked for by the spec: set `terminal`")
        if self._terminal is None:
            terminal = PtyTerminal(self._connect_terminal, self._look)
            try:
                await terminal.open()
            except BaseException:
                terminal.close("the terminal did not open")
                raise
            self._terminal = terminal
        return self._terminal

    def service(self, name: str) -> Sandbox:
        """See `Sandbox.service`."""
        raise SandboxError(f"there is no service {name!r}")

    async def aclose(self) -> None:
        """See `Sandbox.aclose`."""
        await run_shielded(self._close())

    # --- room for our own processes ---

    @contextmanager
    def _attributed(self) -> Iterator[None]:
        """Says whether the sandbox or only one channel was lost."""
        try:
            yield
        except SandboxError as e:
            if self._closed or not (self._started and self._ended):
                raise
            raise SandboxEnded(str(e)) from e

    async def _in_room(self, request: Callable[[], Awaitable[T]]) -> T:
        """`request`, with processes free for it whatever the agent's do; nothing is done twice."""
        with self._attributed():
            return await self._with_room(request)

    async def _in_room_of_shells(self, request: Callable[[], Awaitable[T]]) -> T:
        """The same for what takes no process of the sandbox, unless a shell of ours does it."""
        if not self._joined:
            return await self._in_room(request)
        with self._attributed():
            return await request()

    async def _with_room(self, request: Callable[[], Awaitable[T]]) -> T:
        processes = self._processes
        if processes is None:
            return await request()
        if self._has_room(processes):
            try:
                return await request()
            except NotBegun:  # what ran away was faster
                if self._ended:
                    raise
        with suppress(OSError):  # it has ended: the channel says so
            processes.lend(LENT_PIDS)
        try:
            await asyncio.sleep(SETTLE_S)
            if self._has_room(processes):
                with suppress(NotBegun):
                    return await request()
            await run_shielded(in_thread(self._clear))
            return await request()
        except NotBegun as e:
            if self._ended:
                raise
            raise SandboxFull(str(e)) from e
        finally:
            with suppress(OSError):  # it has ended
                processes.give_back()

    @property
    def _ended(self) -> bool:
        return self._leader is None or self._leader.ended.is_set()

    def _has_room(self, processes: Processes) -> bool:
        try:
            return processes.room() >= self._need
        except (OSError, ValueError):
            return True  # it has ended: the channel says so

    async def _rescue(self, full: bool) -> None:
        processes = self._processes
        if processes is None or (not full and self._has_room(processes)):
            raise SandboxError("the sandbox has processes left")
        try:
            await run_shielded(in_thread(self._clear))
            if isinstance(self._control, Control):
                await self._control.started()
        finally:
            with suppress(OSError):
                processes.give_back()

    def _clear(self) -> None:
        """Kill all but the first process, which then starts the shell (and our own) afresh.

        Blocking for some milliseconds. The first process is stopped meanwhile: it could not fork.
        """
        processes, leader = self._processes, self._leader
        first = None if leader is None else leader.first
        if processes is None or leader is None or first is None:
            return
        log.warning("what an agent left running takes every process of its sandbox: killed")
        with suppress(OSError):  # it has ended
            os.kill(first, signal.SIGSTOP)
            try:
                processes.kill_all_but({leader.pid, first})
            finally:
                processes.lend(LENT_PIDS)
                os.kill(first, signal.SIGCONT)

    # --- inside ---

    async def _connect_terminal(
        self, token: str, feed: Callable[[bytes], None], ended: Callable[[], None]
    ) -> Line:
        assert self._place is not None and self._leader is not None
        first = self._leader.first
        if first is None:
            raise SandboxError("the sandbox has ended")
        self._pty = await open_pty(first, self._place, self._control, token, feed, ended)
        return self._pty

    async def _look(self, tty: str, token: str) -> State | None:
        return None if self._pty is None else await self._pty.look(token)

    async def _close(self) -> None:
        self._closed = True
        if self._terminal is not None:  # before its line hangs up: that reads as a shell's end
            self._terminal.close("the sandbox is closed")
        leader = self._leader
        if leader is not None:
            leader.kill()
            try:
                async with asyncio.timeout(CLOSE_TIMEOUT_S):
                    await leader.ended.wait()
            except TimeoutError:
                raise SandboxError(f"process {leader.pid} of a sandbox does not end") from None
            finally:
                self._release()
        else:
            self._release()  # it was wired, and then nothing could be spawned

    async def _spawn(
        self,
        lead: Callable[[Mapping[int, int]], Awaitable[Leader]],
        files: Mapping[int, str],
    ) -> None:
        theirs: dict[int, int] = {}
        ours: dict[int, int] = {}
        try:
            for number, make in _PIPES.items():
                if self._joined and number > 2:
                    continue
                theirs[number], ours[number] = make(0o666 if number < 3 else None)
            for number, path in files.items():
                theirs[number] = open_for(path)
            self._wire(ours)
            ours = {}
            self._leader = await lead(theirs)
        finally:
            for fd in (*theirs.values(), *ours.values()):
                os.close(fd)
        if self._leader.ended.is_set():
            self._on_end()
        else:
            self._leader.on_end = self._on_end

    def _wire(self, ours: dict[int, int]) -> None:
        agent = Outlet(ours[0])
        self._outlets = [agent]
        takes: dict[int, Callable[[bytes], None]] = {
            1: lambda data: self._shell.feed(1, data),
            2: self._take_stderr,
        }

        async def ready_killer() -> Killer:
            return self._killer

        self._shell = Shell(
            agent.write,
            killer=ready_killer,
            max_output_bytes=self._keep,
            program=None,
            rescue=self._rescue,
        )
        if self._joined:
            self._wire_joined()
        else:
            takes.update(self._wire_shells(ours))
        self._inlets = [Inlet(ours[number], take) for number, take in takes.items()]

    def _wire_joined(self) -> None:
        killer = JoinedKiller(self._launched)

        async def ready_killer() -> JoinedKiller:
            return killer

        self._killer = killer
        self._control = Joined(self._launched, killer=ready_killer, max_output_bytes=self._keep)

    def _launched(self) -> Launched:
        assert isinstance(self._leader, Launched)
        return self._leader

    def _wire_shells(self, ours: dict[int, int]) -> dict[int, Callable[[bytes], None]]:
        """Our two shells beside the agent's, and who takes what they say."""
        to_control, to_killer = Outlet(ours[3]), Outlet(ours[6])
        self._outlets += [to_control, to_killer]

        async def ready_killer() -> Control:
            return killer

        control = Control(
            to_control.write,
            killer=ready_killer,
            max_output_bytes=self._keep,
            program=None,
            nudge=lambda: self._nudge({control.pid, killer.pid}),
            restarted=lambda: f" {self._shell.pid}",
        )
        killer = Control(
            to_killer.write,
            program=None,
            nudge=lambda: self._nudge({control.pid, killer.pid}),
        )
        self._control, self._killer = control, killer
        return {
            4: lambda data: control.feed(1, data),
            5: lambda data: control.feed(2, data),
            7: lambda data: killer.feed(1, data),
        }

    def _take_stderr(self, data: bytes) -> None:
        if not self._started:  # what the launch says before there is a shell
            self._said = (self._said + data)[-_SAID_BYTES:]
        self._shell.feed(2, data)

    def _nudge(self, shells: set[int]) -> None:
        """Let our own processes go on, whoever stopped them (`kill -STOP -1`) or killed one."""
        first = None if self._leader is None else self._leader.first
        if first is None:
            return
        ours = set()
        for child in children_of(first):
            with suppress(ProcessLookupError):
                os.kill(child, signal.SIGCONT)
            ours.add(number_inside(child))
        if not shells <= ours:
            self._clear()  # the first process starts them anew when all of them are gone

    def _on_end(self) -> None:
        for inlet in self._inlets:
            inlet.drain()
        reason = self._reason()
        for channel in (self._shell, self._control, self._killer):
            channel.closed(reason)
        if self._terminal is not None:
            self._terminal.close(reason)
        self._release()

    def _reason(self) -> str:
        assert self._leader is not None
        if self._closed:
            return "the sandbox is closed"
        status = self._leader.status
        how = f"exit code {status}" if status >= 0 else signal.Signals(-status).name
        said = self._said.partition(b"\x1e")[0].decode(errors="replace").strip()
        verb = "ended" if self._started else "did not start"
        return f"the sandbox {verb} ({how})" + (f": {said[-500:]}" if said else "")

    def _release(self) -> None:
        if self._terminal is not None:
            self._terminal.close("the sandbox has ended")
        for inlet in self._inlets:
            inlet.close()
        for outlet in self._outlets:
            outlet.close()


_PIPES: dict[int, Callable[[int | None], tuple[int, int]]] = {
    0: pipe_to,
    1: pipe_from,
    2: pipe_from,
    3: pipe_to,
    4: pipe_from,
    5: pipe_from,
    6: pipe_to,
    7: pipe_from,
}
