"""One writer at a time: a lock file that names its holder.

Rule: the kernel's lock (`flock`) decides, so a dead holder never blocks anyone; the text in the
file is only for the message. The file is left in place, because removing it would race.
"""

import fcntl
import os
import socket
import time
from pathlib import Path
from typing import Final

import msgspec

from headrace.errors import RunFolderError
from headrace.types import Record

LOOK_S: Final = 0.01
"""Longer than anyone who only asks (`holding`) has a lock."""


class Owner(Record, frozen=True, kw_only=True):
    """Who holds a lock."""

    pid: int
    host: str
    since: str


class FolderLock:
    """Held from construction to `close`. Raises `RunFolderError` when another holds it."""

    def __init__(self, path: Path) -> None:
        self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            self._take()
            self._name_owner()
        except BlockingIOError:
            holder = _describe(os.pread(self._fd, 4096, 0))
            self.close()
            raise RunFolderError(
                f"{path.parent} is in use by {holder}; wait for it, stop it, or use another folder"
            ) from None
        except BaseException:
            self.close()
            raise

    def fileno(self) -> int:
        """Its descriptor. A process that inherits it holds the lock too, until it ends."""
        return self._fd

    def close(self) -> None:
        """Let go. Idempotent."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def _take(self) -> None:
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            time.sleep(LOOK_S)  # perhaps somebody only asks who has it
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)

    def _name_owner(self) -> None:
        now = time.strftime("%Y-%m-%dT%H:%M:%S%z")
        owner = Owner(pid=os.getpid(), host=socket.gethostname(), since=now)
        os.ftruncate(self._fd, 0)
        os.pwrite(self._fd, msgspec.json.encode(owner), 0)


def holding(path: Path) -> int | None:
    """A number for the holding of a lock that goes on now, another for each; None: nobody has it.

    The kernel is asked, not the text: a holder that was killed has it no more, processes that
    inherited it still do. Blocking. Raises `RunFolderError` for a file that may not be read.
    """
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return os.fstat(fd).st_mtime_ns  # when its holder wrote its name
        finally:
            os.close(fd)
    except FileNotFoundError:
        return None  # a run that was imported, or copied without it
    except OSError as e:
        raise RunFolderError(f"{path} cannot be read: {e.strerror or e}") from e
    return None


def _describe(text: bytes) -> str:
    try:
        owner = msgspec.json.decode(text, type=Owner)
    except msgspec.DecodeError:
        return "another process"
    who = f"process {owner.pid} on {owner.host} since {owner.since}"
    if owner.host == socket.gethostname() and not Path(f"/proc/{owner.pid}").exists():
        return f"processes that {who} started; it has ended, they are closing what they had"
    return who
