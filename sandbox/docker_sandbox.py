"""One container with its shell and our own channels.

Rule: the agent's shell is the container's own process, behind the stream attached before the start;
our channel is the first process's own child, behind pipes (`docker_pipes`). Where that is not to be
had, or was wrecked, and for the channel that kills, `exec` sessions as root are opened at the first
need, because each costs the engine as much as a third of a start. After that no command costs an
engine call, unless the agent's processes leave no room for ours: then some are lent for as long as
the call takes, and where what runs takes those too, everything of the agent's is killed. The
container ends when its shell's stdin is closed, else by force; its removal is finished even when
the caller is cancelled.
"""

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager, suppress
from typing import Any, TypeVar

from aiodocker.exceptions import DockerError

from headrace.aio import in_thread, run_shielded
from headrace.errors import (
    ContractError,
    ProviderGone,
    SandboxEnded,
    SandboxError,
    SandboxFull,
)
from headrace.sandbox.base import COLUMNS, IMAGE_USER, ROWS, Sandbox, SandboxSpec, Terminal
from headrace.sandbox.control import Control, NotBegun, reserve
from headrace.sandbox.docker_channel import Channel, Pipe, answers
from headrace.sandbox.docker_container import HOSTS, mounted
from headrace.sandbox.docker_engine import EngineClient, status_of
from headrace.sandbox.docker_pipes import NO_SOURCE, OPENING, PipeRooms, Pipes
from headrace.sandbox.docker_stream import (
    EXEC_BODY,
    TTY_BODY,
    attach_path,
    exec_path,
    open_stream,
)
from headrace.sandbox.docker_sweep import ended_by, remove
from headrace.sandbox.scripts import (
    AGENT_PROGRAM,
    CONTROL,
    CONTROL_PROGRAM,
    TERMINAL_PROGRAM,
)
from headrace.sandbox.shell import Shell
from headrace.sandbox.terminal import (
    PROBE_TIMEOUT_S,
    Line,
    PtyTerminal,
    State,
    probe_script,
    read_state,
)
from headrace.types import CommandResult

CREATE_S = 120.0
ATTACH_S = 60.0
START_S = 180.0
EXEC_S = 60.0
INSPECT_S = 30.0
GONE = 404
UPDATE_S = 60.0
STATS_S = 30.0
ROOM_PIDS = 4096
"""Lent to a container that has used up its processes, so that a channel into it can open."""
SETTLE_S = 0.2
"""After lending: what runs away has eaten it by then."""
FULL_S = 10.0
"""For a channel into a full container: one that only sleeps leaves it the time."""

T = TypeVar("T")

_OWN_PROGRAM = HOSTS + OPENING + AGENT_PROGRAM
_IN_WORKDIR = 'cd -- "$1" 2>/dev/null || cd /\n'

log = logging.getLogger("headrace.sandbox.docker")


class DockerSandbox:
    """See `headrace.sandbox.base.Sandbox`."""

    def __init__(
        self,
        engine: EngineClient,
        container: str,
        spec: SandboxSpec,
        *,
        workdir: str,
        image_user: str = "",
        on_left_behind: Callable[[str], None],
        rooms: PipeRooms | None = None,
    ) -> None:
        """`rooms` None: every channel of ours is an `exec` session."""
        self.container = container
        """Name of the container."""
        self._engine = engine
        self._spec = spec
        self._workdir = workdir
        self._image_user = image_user
        self._user = spec.user or image_user
        """The agent's; empty: root."""
        self._terminal: PtyTerminal | None = None
        self._on_left_behind = on_left_behind
        self._rooms = rooms
        self._named: Pipes | None = None
        self._pipes: list[Pipe] = []
        self._commands = 0
        self._ended = False
        self._closed = False
        self._lending = self._restarting = False
        self._control = Channel()
        self._killer = Channel()
        self._pipes.append(Pipe())
        self._shell = Shell(
            lambda data: self._pipes[0].write(data),
            killer=self._open_killer,
            max_output_bytes=spec.limits.max_output_bytes,
            program=AGENT_PROGRAM if rooms is None else _OWN_PROGRAM,
            rescue=self._rescue,
        )

    # --- the provider's side ---

    async def start(self, body: Mapping[str, Any]) -> None:
        """Create, attach, start, wait for the first answer. `aclose` is due even if it fails."""
        # Shielded: a create that is cancelled half way would appear after it has been removed.
        await run_shielded(self._create(body))
        await self._attach()
        if self._named is not None:
            self._connect(self._named)
        await self._begin()
        async with self._attributed():
            await self._shell.start()
        if self._named is not None:
            await self._settle(self._named)

    async def pids(self) -> list[int]:
        """The first process of the container as the engine's machine numbers it."""
        doing = f"inspect {self.container}"
        async with self._engine.call(doing, timeout_s=INSPECT_S) as docker:
            state = (await docker.containers.container(self.container).show())["State"]
        return [int(state["Pid"])]

    # --- the contract ---

    async def run(self, command: str, *, timeout_s: float) -> CommandResult:
        self._check()
        self._commands += 1
        async with self._attributed():
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
        return await self._in_room(
            lambda control: control.exec(
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
        return await self._in_room(lambda control: control.read(path, max_bytes=max_bytes))

    async def write(self, path: str, data: bytes, *, mode: int = 0o644) -> None:
        await self._in_room(lambda control: control.write(path, data, mode=mode))

    async def terminal(self) -> Terminal:
        """See `Sandbox.terminal`."""
        self._check()
        if not self._spec.terminal:
            raise ContractError("a terminal is asked for by the spec: set `terminal`")
        if self._terminal is None:
            async with self._attributed():
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
        if not self._closed:
            self._closed = True
            self._close_terminal(f"{self.container} is closed")
            await run_shielded(self._remove())

    # --- inside ---

    async def _create(self, body: Mapping[str, Any]) -> None:
        if self._rooms is not None:
            self._named = await self._rooms.make(self.container)
        if self._rooms is None or self._named is None:
            return await self._created(body)
        try:
            await self._created(mounted(body, self._named.mount))
        except SandboxError as e:
            if NO_SOURCE not in str(e):
                raise
            self._rooms.refuse("it does not see their folder")
            await in_thread(self._named.drop)
            self._named = None
            await self._created(body)

    async def _created(self, body: Mapping[str, Any]) -> None:
        doing = f"create {self.container} from {self._spec.image}"
        async with self._engine.call(doing, timeout_s=CREATE_S) as docker:
            await docker.containers.create(body, name=self.container)

    def _connect(self, named: Pipes) -> None:
        """Our channel, for as long as the agent lets it live."""
        channel = self._control
        channel.pipe = self._pipe()
        channel.control = self._new_control(channel.pipe, killer=False, program=None)
        named.connect(channel.control)
        channel.pipe.connect(named)

    async def _settle(self, named: Pipes) -> None:
        channel = self._control
        assert self._rooms is not None and channel.control is not None
        if not await self._rooms.opened(named, channel.control):
            channel.close()

    async def _attach(self) -> None:
        """Connect the agent's shell to the first process of the container."""
        async with self._engine.call(f"attach to {self.container}", timeout_s=ATTACH_S):
            stream = await open_stream(
                self._engine.socket,
                attach_path(self.container),
                feed=self._shell.feed,
                lost=self._shell_lost,
            )
        self._pipes[0].connect(stream)

    async def _begin(self) -> None:
        async with self._engine.call(f"start {self.container}", timeout_s=START_S) as docker:
            await docker.containers.container(self.container).start()

    async def _remove(self) -> None:
        try:
            if self._ended or not self._pipes[0].connected:
                await remove(self._engine, self.container)
            elif not await ended_by(self._engine, self.container, self._pipes[0].close):
                await remove(self._engine, self.container)
        except SandboxError as e:
            # The episode is over; what is left is removed when the provider closes, or by a sweep.
            log.warning("%s was left behind: %s", self.container, e)
            self._on_left_behind(self.container)
        finally:
            self._close_pipes()
            if self._named is not None:
                await in_thread(self._named.drop)

    def _close_pipes(self) -> None:
        for pipe in self._pipes:
            pipe.close()

    def _pipe(self) -> Pipe:
        pipe = Pipe()
        self._pipes.append(pipe)
        return pipe

    def _check(self) -> None:
        if self._closed:
            raise SandboxError(f"{self.container} is closed")

    def _shell_lost(self) -> None:
        if self._restarting:
            return
        self._ended = True
        self._shell.closed(f"{self.container} has ended")
        self._close_terminal(f"{self.container} has ended")

    def _close_terminal(self, reason: str) -> None:
        if self._terminal is not None:
            self._terminal.close(reason)

    @asynccontextmanager
    async def _attributed(self) -> AsyncIterator[None]:
        """Says whether the engine, the container, or only one channel was lost."""
        try:
            yield
        except ProviderGone:
            raise
        except SandboxError as e:
            why = None if self._closed else await self._why_ended()
            if why is None:
                raise
            raise await self._engine.lost(self.container, why, SandboxEnded) from e

    async def _why_ended(self) -> str | None:
        """None while it runs, as far as the engine says."""
        try:
            doing = f"inspect {self.container}"
            async with self._engine.call(doing, timeout_s=INSPECT_S) as docker:
                state = (await docker.containers.container(self.container).show())["State"]
        except SandboxError as e:
            if not self._ended and status_of(e) != GONE:
                return None
            return "ended by itself: its first process was killed, or it ran out of memory"
        if state.get("Running") and not self._ended:
            return None
        if state.get("OOMKilled"):
            return f"out of memory: more than {self._spec.limits.memory_mb} MB"
        return f"ended by itself with exit code {state.get('ExitCode')}"

    async def _connect_terminal(
        self, token: str, feed: Callable[[bytes], None], ended: Callable[[], None]
    ) -> Line:
        doing = f"open a terminal in {self.container}"
        async with self._engine.call(doing, timeout_s=EXEC_S) as docker:
            program = ["sh", "-c", TERMINAL_PROGRAM, "sh", self._user, self._workdir, token, ""]
            session = await docker.containers.container(self.container).exec(
                cmd=program, stdin=True, tty=True, user="0", workdir="/"
            )
            stream = await open_stream(
                self._engine.socket,
                exec_path(session.id),
                TTY_BODY,
                feed=lambda fd, data: feed(data),
                lost=ended,
                raw=True,
            )
            with suppress(DockerError):  # it has ended already, or the image's `stty` has done it
                await session.resize(h=ROWS, w=COLUMNS)
            return stream

    async def _look(self, tty: str, token: str) -> State | None:
        self._commands += 1  # what was typed may have wrecked our channel
        script = probe_script(tty, token)
        try:
            answer = await self._in_room(
                lambda control: control.exec(
                    script, timeout_s=PROBE_TIMEOUT_S, user=self._user, shell="sh"
                ),
                may_kill=False,
            )
        except SandboxFull:
            return None  # what runs away leaves nobody the room to look
        return read_state(answer.stdout.decode(errors="replace"))

    # --- room for our own processes ---

    async def _in_room(
        self, request: Callable[[Control], Awaitable[T]], *, may_kill: bool = True
    ) -> T:
        """`request`, once it has processes to start; nothing is done twice."""
        self._check()
        async with self._attributed():
            if self._ended:  # a pipe of ours may still answer for as long as a command runs
                raise SandboxError(f"{self.container} has ended")
            try:
                return await request(await self._open_control())
            except (NotBegun, SandboxFull):
                if self._ended:
                    raise
            self._commands += 1  # no channel is trusted now
            async with self._lent():
                await asyncio.sleep(SETTLE_S)
                try:
                    return await request(await self._open_control())
                except (NotBegun, SandboxFull) as e:
                    if self._ended:
                        raise
                    if not may_kill:
                        raise SandboxFull(f"{self.container}: {e}") from e
                await self._clear()
                return await request(await self._open_control())

    @asynccontextmanager
    async def _lent(self) -> AsyncIterator[None]:
        """More processes than the limit, for the length of the block."""
        limit = self._spec.limits.pids
        if limit is None or self._lending:
            yield
            return
        self._lending = True
        try:
            await self._set_pids(limit + ROOM_PIDS)
            yield
        finally:
            self._lending = False
            with suppress(SandboxError):  # it has ended, and whoever asks next hears of it
                await run_shielded(self._set_pids(limit))

    async def _rescue(self, full: bool) -> None:
        # asked again, the answer may differ: out of memory, the kernel kills some of a bomb
        if not full and not await self._is_full():
            raise SandboxError(f"{self.container} has processes left")
        await self._clear()

    async def _clear(self) -> None:
        """Start the container again: that ends all that runs in it, and keeps its files.

        No command from inside could: what runs away leaves it neither a process nor time.
        """
        log.warning("%s: what the agent left running takes every process: killed", self.container)
        self._restarting = True
        try:
            self._close_terminal(f"{self.container} is started again")
            for channel in (self._control, self._killer):
                channel.close()
            await run_shielded(self._restart())
            self._pipes[0].close()
            self._pipes[0] = Pipe()
            self._shell.renewed()
            await self._attach()
        finally:
            self._restarting = False

    async def _restart(self) -> None:
        async with self._engine.call(f"restart {self.container}", timeout_s=START_S) as docker:
            await docker.containers.container(self.container).restart(t=0)

    async def _is_full(self) -> bool:
        """Whether the engine, asked, says that the container's processes are used up."""
        limit = self._spec.limits.pids
        if limit is None or self._ended:
            return False
        doing = f"look at {self.container}"
        async with self._engine.call(doing, timeout_s=STATS_S) as docker:
            url = f"http://docker/containers/{self.container}/stats?stream=false&one-shot=true"
            async with docker.session.get(url) as answer:
                current = (await answer.json()).get("pids_stats", {}).get("current", 0)
        return int(current) > limit - reserve(limit)

    async def _open_control(self) -> Control:
        return await self._open_channel(self._control, killer=False)

    async def _open_killer(self) -> Control:
        return await self._open_channel(self._killer, killer=True)

    async def _open_channel(self, channel: Channel, *, killer: bool) -> Control:
        """The channel, opened anew if the agent's commands since its last use have wrecked it."""
        if channel.control is not None and channel.commands_before != self._commands:
            if not await answers(channel.control):
                channel.close()
        if channel.control is None:
            channel.control, channel.pipe = await self._open(killer=killer)
        channel.commands_before = self._commands
        return channel.control

    async def _open(self, *, killer: bool) -> tuple[Control, Pipe]:
        try:
            return await self._open_exec(killer=killer)
        except ProviderGone:
            raise
        except SandboxError:
            if self._ended or self._spec.limits.pids is None:
                raise
        # A fork bomb leaves no process for the channel that is to end it: lend some.
        async with self._lent():
            try:
                async with asyncio.timeout(FULL_S if await self._is_full() else None):
                    return await self._open_exec(killer=killer)
            except ProviderGone:
                raise
            except (SandboxError, TimeoutError) as e:
                if await self._is_full():
                    raise SandboxFull(f"{self.container}: its processes keep ours out: {e}") from e
                raise

    async def _set_pids(self, limit: int) -> None:
        doing = f"set the process limit of {self.container}"
        async with self._engine.call(doing, timeout_s=UPDATE_S) as docker:
            url = f"http://docker/containers/{self.container}/update"
            async with docker.session.post(url, json={"PidsLimit": limit}) as answer:
                if answer.status != 200:
                    raise SandboxError(f"{doing}: {(await answer.text()).strip()}")

    def _new_control(self, pipe: Pipe, *, killer: bool, program: str | None) -> Control:
        return Control(
            pipe.write,
            killer=None if killer else self._open_killer,
            max_output_bytes=self._spec.limits.max_output_bytes,
            program=program,
            need=reserve(self._spec.limits.pids),
        )

    async def _open_exec(self, *, killer: bool) -> tuple[Control, Pipe]:
        pipe = self._pipe()
        control = self._new_control(pipe, killer=killer, program=CONTROL_PROGRAM)
        doing = f"open a channel into {self.container}"
        async with self._engine.call(doing, timeout_s=EXEC_S) as docker:
            session = await docker.containers.container(self.container).exec(
                cmd=["sh", "-c", _IN_WORKDIR + CONTROL, "sh", self._workdir],
                stdin=True,
                user="0",
                workdir="/",
            )
            stream = await open_stream(
                self._engine.socket,
                exec_path(session.id),
                EXEC_BODY,
                feed=control.feed,
                lost=lambda: control.closed(f"{doing}: it has ended"),
            )
            pipe.connect(stream)
            await control.started()
            return control, pipe
