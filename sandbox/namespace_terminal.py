"""The pseudo-terminal of a namespace sandbox.

Rule: it is made in the sandbox's own `/dev/pts`, so programs inside find it by its name, and no
terminal of the host is ever visible. The host opens the other end through the sandbox's root; the
login shell is started by the control channel and has the same walls as everything else inside.
What its foreground does is read from the host: nothing runs inside for that, so it works when the
sandbox has no process left to give.
"""

import array
import fcntl
import os
import shlex
import stat
import struct
import termios
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from headrace.aio import in_thread
from headrace.errors import SandboxError
from headrace.sandbox import rooted
from headrace.sandbox.base import COLUMNS, ROWS
from headrace.sandbox.control import Channel
from headrace.sandbox.namespace_process import Inlet, Outlet
from headrace.sandbox.scripts import TERMINAL_PROGRAM
from headrace.sandbox.terminal import Process, State, state_of

START_TIMEOUT_S = 30.0
MOST_PROCESSES = 2000
"""Looked at to find the foreground ones; a sandbox with more is not waited for exactly."""
_PTMX = os.makedev(5, 2)
_TIOCSPTLCK, _TIOCGPTN = 0x40045431, 0x80045430
_LFLAG = 3


class TerminalPlace(NamedTuple):
    """Whose login shell, and where it starts."""

    user: str
    workdir: str


class PtyLine:
    """The host's end: both directions, and what the other end's foreground does."""

    def __init__(
        self,
        first: int,
        fd: int,
        number: int,
        feed: Callable[[bytes], None],
        ended: Callable[[], None],
    ) -> None:
        """`first`: the sandbox's process 1; `number`: of the device in its `/dev/pts`."""
        self._first = first
        self._device = b"/dev/pts/%d" % number
        self._asked = os.dup(fd)
        self._outlet = Outlet(os.dup(fd))
        self._inlet = Inlet(fd, feed, ended)

    @property
    def waiting(self) -> bool:
        """See `Line`."""
        return self._outlet.waiting

    def write(self, data: bytes) -> None:
        """See `Line`."""
        self._outlet.write(data)

    def close(self) -> None:
        """See `Line`."""
        self._inlet.close()
        self._outlet.close()
        if self._asked >= 0:
            os.close(self._asked)
            self._asked = -1

    async def look(self, token: str) -> State | None:
        """See `headrace.sandbox.terminal.Look`."""
        if self._asked < 0:
            return None
        return await in_thread(self._look, os.dup(self._asked), token)

    def _look(self, fd: int, token: str) -> State | None:
        try:
            group = array.array("i", [0])
            fcntl.ioctl(fd, termios.TIOCGPGRP, group)
            raw = not termios.tcgetattr(fd)[_LFLAG] & termios.ICANON
        except (OSError, termios.error):
            return None
        finally:
            os.close(fd)
        state = state_of(raw, list(_members(self._first, group[0])))
        if token and state is not None and state.still_s is not None:
            self._mark(token)
        return state

    def _mark(self, token: str) -> None:
        """Print `token` on the terminal, behind what was printed before; not if it is stopped."""
        with suppress(OSError):
            flags = os.O_WRONLY | os.O_NOCTTY | os.O_NONBLOCK | os.O_NOFOLLOW
            fd = rooted.opened(self._first, self._device, flags)
            try:
                os.write(fd, f"\x1b]hr{token}\x07".encode())
            finally:
                os.close(fd)


def _members(first: int, group: int) -> Iterator[Process]:
    """The processes of a process group below `first`."""
    waiting, seen = [first], 0
    while waiting and seen < MOST_PROCESSES:
        pid = waiting.pop()
        seen += 1
        with suppress(OSError, ValueError, IndexError):  # it has just ended
            folder = Path(f"/proc/{pid}")
            for thread in os.listdir(folder / "task"):
                children = (folder / "task" / thread / "children").read_text()
                waiting += [int(child) for child in children.split()]
            fields = (folder / "stat").read_bytes().rpartition(b")")[2].split()
            if int(fields[2]) == group:
                waits = ""
                with suppress(OSError):  # not ours to know
                    waits = (folder / "wchan").read_text()
                yield Process(fields[0].decode(), fields[2] == fields[3], waits)


async def open_pty(
    first: int,
    place: TerminalPlace,
    control: Channel,
    token: str,
    feed: Callable[[bytes], None],
    ended: Callable[[], None],
) -> PtyLine:
    """A new pseudo-terminal with a login shell, below process 1. Raises `SandboxError`."""
    fd, number = _open(first)
    line = PtyLine(first, fd, number, feed, ended)
    words = ["sh", "-c", TERMINAL_PROGRAM, "sh", *place, token, f"/dev/pts/{number}"]
    try:
        started = await control.exec(
            # A plain `&` would leave the shell, and all it starts, deaf to Ctrl-C.
            "command -v setsid >/dev/null || exit 127\n"
            f"setsid -f {shlex.join(words)} </dev/null >/dev/null 2>&1",
            timeout_s=START_TIMEOUT_S,
            shell="sh",
        )
        if started.exit_code != 0:
            raise SandboxError(
                "a terminal needs the program `setsid` in the image (package util-linux)"
                if started.exit_code == 127
                else f"the terminal's shell could not be started: {started.stderr[-300:]!r}"
            )
    except BaseException:
        line.close()
        raise
    return line


def _open(first: int) -> tuple[int, int]:
    """The host's end, and the number of the device inside."""
    try:
        # Root inside may have moved process 1 to a root of its making, with links in it.
        fd = rooted.opened(first, b"/dev/pts/ptmx", os.O_RDWR | os.O_NOCTTY | os.O_NOFOLLOW)
    except OSError as e:
        raise SandboxError(f"no pseudo-terminal in the sandbox: {e.strerror}") from e
    try:
        status = os.fstat(fd)
        if not stat.S_ISCHR(status.st_mode) or status.st_rdev != _PTMX:
            raise SandboxError("no pseudo-terminal in the sandbox: /dev/pts/ptmx is something else")
        number = array.array("i", [0])
        fcntl.ioctl(fd, _TIOCSPTLCK, array.array("i", [0]))
        fcntl.ioctl(fd, _TIOCGPTN, number)
        fcntl.ioctl(fd, termios.TIOCSWINSZ, struct.pack("HHHH", ROWS, COLUMNS, 0, 0))
    except BaseException:
        os.close(fd)
        raise
    return fd, number[0]
