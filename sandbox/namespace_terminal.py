"""The pseudo-terminal of a namespace sandbox.

Rule: it is made in the sandbox's own `/dev/pts`, so programs inside find it by its name, and no
terminal of the host is ever visible. The host opens the other end through the sandbox's root; the
login shell is started by the control channel and has the same walls as everything else inside.
"""

import array
import fcntl
import os
import shlex
import stat
import struct
import termios
from collections.abc import Callable
from typing import NamedTuple

from headrace.errors import SandboxError
from headrace.sandbox.base import COLUMNS, ROWS
from headrace.sandbox.control import Control
from headrace.sandbox.leases import children_of
from headrace.sandbox.namespace_process import Inlet, Outlet
from headrace.sandbox.scripts import TERMINAL_PROGRAM
from headrace.sandbox.terminal import Line

START_TIMEOUT_S = 30.0
_PTMX = os.makedev(5, 2)
_TIOCSPTLCK, _TIOCGPTN = 0x40045431, 0x80045430


class TerminalPlace(NamedTuple):
    """Whose login shell, and where it starts."""

    user: str
    workdir: str


class _PtyLine:
    """Both directions of the host's end."""

    def __init__(self, fd: int, feed: Callable[[bytes], None], ended: Callable[[], None]) -> None:
        self._outlet = Outlet(os.dup(fd))
        self._inlet = Inlet(fd, feed, ended)

    @property
    def waiting(self) -> bool:
        return self._outlet.waiting

    def write(self, data: bytes) -> None:
        self._outlet.write(data)

    def close(self) -> None:
        self._inlet.close()
        self._outlet.close()


async def open_pty(
    leader: int,
    place: TerminalPlace,
    control: Control,
    token: str,
    feed: Callable[[bytes], None],
    ended: Callable[[], None],
) -> Line:
    """A new pseudo-terminal with a login shell. Raises `SandboxError`."""
    fd, number = _open(leader)
    line = _PtyLine(fd, feed, ended)
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


def _open(leader: int) -> tuple[int, int]:
    """The host's end, and the number of the device inside."""
    first = next(iter(children_of(leader)), None)
    if first is None:
        raise SandboxError("the sandbox has ended")
    try:
        # No link can stand here: /dev/pts is a mount, and nobody inside may mount.
        path = f"/proc/{first}/root/dev/pts/ptmx"
        fd = os.open(path, os.O_RDWR | os.O_NOCTTY | os.O_CLOEXEC | os.O_NOFOLLOW)
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
