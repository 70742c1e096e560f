"""Our channel into a container without an engine call: three named pipes in a folder of ours.

Rule: the folder is mounted read-only, the first process opens the pipes before the agent's shell,
and they are unlinked before the agent's first command; what stays is an empty folder. Until then
they are root's alone: an image's entrypoint that runs as root could open them.
It is a saving, never a need: an engine that does not share our files (in a virtual machine, in
another mount namespace, with other user ids) never opens them, is found out by the first container,
and from then on every channel is an `exec` session.
"""

import asyncio
import logging
import os
import secrets
import shutil
from pathlib import Path
from typing import Any

from headrace.aio import in_thread, run_shielded
from headrace.errors import SandboxError
from headrace.sandbox import leases
from headrace.sandbox.control import Control
from headrace.sandbox.namespace_process import Inlet, Outlet
from headrace.sandbox.scripts import CONTROL_PROGRAM

OPEN_S = 10.0
"""The first process opens them before it answers for the agent's shell."""
TARGET = "/dev/headrace"
"""In a file system that is the container's own and not its image's: nothing is left in a layer."""
NO_SOURCE = "bind source path"
"""In the engine's words for a mount of what it does not see."""

_IN, _OUT, _ERR, _PROGRAM = "in", "out", "err", "program"

OPENING = f"""\
if [ -p {TARGET}/{_IN} ]; then
exec 9>&2 2>/dev/null
(read -r hr_s hr_x </proc/self/stat
. {TARGET}/{_PROGRAM} <{TARGET}/{_IN} >{TARGET}/{_OUT} 2>{TARGET}/{_ERR} | kill -9 "$hr_s"
) </dev/null >/dev/null
exec 2>&9 9>&-
fi
"""
"""For the first process. The channel is started in a pipe, whose subshell is then ended, and not by
`&`: what a shell starts so ignores SIGINT, with all its children."""

ENDED = "the channel into the container has ended"

log = logging.getLogger("headrace.sandbox.docker")


class Pipes:
    """Those of one sandbox. `close` and `drop` are due whatever happens."""

    def __init__(self, folder: Path, program: Path) -> None:
        """Make the folder and open our ends. Blocking. Raises `OSError`; nothing is left then."""
        self._folder = folder
        self._fds: list[int] = []
        self._ends: list[Inlet | Outlet] = []
        self._outlet: Outlet | None = None
        try:
            folder.mkdir(mode=0o700)
            os.link(program, folder / _PROGRAM)
            for name in (_IN, _OUT, _ERR):
                os.mkfifo(folder / name, 0o600)
            # The first keeps a reader there until the container is one, so that we can write.
            for name, flags in (
                *((_IN, os.O_RDWR), (_IN, os.O_WRONLY)),
                *((_OUT, os.O_RDONLY), (_ERR, os.O_RDONLY)),
            ):
                self._fds.append(os.open(folder / name, flags | os.O_NONBLOCK | os.O_CLOEXEC))
        except BaseException:
            self.drop()
            raise

    @property
    def mount(self) -> dict[str, Any]:
        """In the engine's words."""
        source = str(self._folder)
        return {"Type": "bind", "Source": source, "Target": TARGET, "ReadOnly": True}

    def write(self, data: bytes) -> None:
        """To the channel's stdin, once it is connected."""
        if self._outlet is not None:
            self._outlet.write(data)

    def connect(self, control: Control) -> None:
        """Hand on what comes, from now on."""
        reader, stdin, stdout, stderr = self._fds
        self._fds = [reader]
        self._outlet = Outlet(stdin)
        self._ends = [
            self._outlet,
            Inlet(stdout, lambda data: control.feed(1, data), lambda: control.closed(ENDED)),
            Inlet(stderr, lambda data: control.feed(2, data)),
        ]

    def close(self) -> None:
        """Our ends. Idempotent."""
        for end in self._ends:
            end.close()
        while self._fds:
            os.close(self._fds.pop())

    def settle(self) -> None:
        """The container has opened its ends, or never will: nothing is left to open. Blocking."""
        while self._fds:
            os.close(self._fds.pop())
        for name in (_IN, _OUT, _ERR, _PROGRAM):
            (self._folder / name).unlink(missing_ok=True)

    def drop(self) -> None:
        """Everything. Blocking, idempotent."""
        self.close()
        shutil.rmtree(self._folder, ignore_errors=True)


class PipeRooms:
    """The folders of one provider, and what is known of its engine."""

    def __init__(self, *, open_s: float = OPEN_S) -> None:
        self._open_s = open_s
        self.usable: bool | None = None
        """Whether the engine's containers open them; None: none has been asked yet."""
        self._folder: Path | None = None
        self._lease: Path | None = None
        self._making = asyncio.Lock()

    async def make(self, name: str) -> Pipes | None:
        """Those of a new sandbox. None: its channels are `exec` sessions."""
        if self.usable is False:
            return None
        try:
            async with self._making:
                if self._folder is None:
                    await run_shielded(in_thread(self._prepare))
            assert self._folder is not None
            return await run_shielded(in_thread(Pipes, self._folder / name, self._program))
        except OSError as e:  # no descriptor left, no room left: the engine's own way remains
            log.debug("no pipes for %s: %s", name, e)
            return None

    async def opened(self, pipes: Pipes, control: Control) -> bool:
        """Whether the container opened them, once that is known; in either case they settle."""
        try:
            async with asyncio.timeout(self._open_s):
                await control.started()
            self.usable = answered = True
        except (TimeoutError, SandboxError):
            answered = False
            self.refuse("its containers do not open them")
        await run_shielded(in_thread(pipes.settle))
        return answered

    def refuse(self, reason: str) -> None:
        """No pipes from now on, unless they have worked before."""
        if self.usable is None:
            self.usable = False
            log.info("the engine does not share our pipes (%s): channels are exec sessions", reason)

    async def aclose(self) -> None:
        await run_shielded(in_thread(self._drop))

    # --- inside; blocking ---

    @property
    def _program(self) -> Path:
        assert self._folder is not None
        return self._folder / _PROGRAM

    def _prepare(self) -> None:
        name = f"docker-{os.getpid()}-{secrets.token_hex(4)}"
        folder = leases.runtime_folder() / name
        owner = leases.this_process()
        what = "pipes into containers"
        self._lease = leases.take(
            name, leases.Lease(owner=owner, what=what, folders=(str(folder),))
        )
        folder.mkdir(mode=0o700)
        (folder / _PROGRAM).write_text(CONTROL_PROGRAM)
        self._folder = folder

    def _drop(self) -> None:
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)
            self._folder = None
        if self._lease is not None:
            leases.drop(self._lease)
            self._lease = None
