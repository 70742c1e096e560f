"""One writer at a time: a lock file that names its holder.

Rule: the kernel's lock (`flock`) decides, so a dead holder never blocks anyone; the text in the
file is only for the message. The file is left in place, because removing it would race.
"""

import fcntl
import os
import socket
import time
from pathlib import Path

import msgspec

from headrace.errors import RunFolderError
from headrace.types import Record


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
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
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

    def _name_owner(self) -> None:
        now = time.strftime("%Y-%m-%dT%H:%M:%S%z")
        owner = Owner(pid=os.getpid(), host=socket.gethostname(), since=now)
        os.ftruncate(self._fd, 0)
        os.pwrite(self._fd, msgspec.json.encode(owner), 0)


def _describe(text: bytes) -> str:
    try:
        owner = msgspec.json.decode(text, type=Owner)
    except msgspec.DecodeError:
        return "another process"
    who = f"process {owner.pid} on {owner.host} since {owner.since}"
    if owner.host == socket.gethostname() and not Path(f"/proc/{owner.pid}").exists():
        return f"processes that {who} started; it has ended, they are closing what they had"
    return who
