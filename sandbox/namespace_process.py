"""One namespace sandbox as the host sees it: a process, its eight pipes, and its end.

Rule: everything a sandbox holds is reachable from its leader process; killing that frees it all,
mounts included, because they live in its namespaces. Spawning uses `posix_spawn`, so its cost does
not grow with the driver's memory.
"""

import asyncio
import fcntl
import os
import resource
import signal
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress

from headrace.sandbox.leases import children_of, kill_tree

CHUNK_BYTES = 1 << 17
_LOW_FD = 32  # above every number the sandbox's end of the pipes is moved to


class Outlet:
    """The writing end of a pipe: never blocks, keeps what does not fit, and keeps the order."""

    __slots__ = ("_fd", "_is_last", "_loop", "_waiting")

    def __init__(self, fd: int) -> None:
        os.set_blocking(fd, False)
        self._fd = fd
        self._loop = asyncio.get_running_loop()
        self._waiting: deque[memoryview] = deque()
        self._is_last = False

    def finish(self) -> None:
        """Nothing more comes: close it once all of it is sent."""
        self._is_last = True
        if not self._waiting:
            self.close()

    def write(self, data: bytes) -> None:
        """Send `data`, now or when there is room. Silent once the other end is gone."""
        if self._fd < 0 or not data:
            return
        if self._waiting:
            self._waiting.append(memoryview(data))
            return
        sent = self._send(data)
        if 0 <= sent < len(data):
            self._waiting.append(memoryview(data)[sent:])
            self._loop.add_writer(self._fd, self._flush)

    @property
    def waiting(self) -> bool:
        """Whether something is not sent yet."""
        return bool(self._waiting)

    def close(self) -> None:
        if self._fd >= 0:
            if self._waiting:
                self._loop.remove_writer(self._fd)
                self._waiting.clear()
            os.close(self._fd)
            self._fd = -1

    def _flush(self) -> None:
        while self._waiting:
            data = self._waiting[0]
            sent = self._send(data)
            if sent < 0:
                return
            if sent < len(data):
                self._waiting[0] = data[sent:]
                return
            self._waiting.popleft()
        self._loop.remove_writer(self._fd)
        if self._is_last:
            self.close()

    def _send(self, data: bytes | memoryview) -> int:
        try:
            return os.write(self._fd, data)
        except BlockingIOError:
            return 0
        except OSError:  # nobody reads any more; the process's end says why
            self.close()
            return -1


class Inlet:
    """The reading end of a pipe: hands every chunk on as it comes."""

    __slots__ = ("_ended", "_fd", "_loop", "_take")

    def __init__(
        self,
        fd: int,
        take: Callable[[bytes], None],
        ended: Callable[[], None] = lambda: None,
    ) -> None:
        """`ended` is called when the other end is gone; not after `close`."""
        os.set_blocking(fd, False)
        self._fd = fd
        self._take = take
        self._ended = ended
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(fd, self._read)

    @property
    def is_open(self) -> bool:
        """Whether something may still come."""
        return self._fd >= 0

    def forget(self, ended: Callable[[], None]) -> None:
        """Read on and drop what comes, so that whoever writes is not held up."""
        self._take, self._ended = _drop, ended

    def drain(self) -> None:
        """Hand on what is still in the pipe, at its end."""
        for _ in range(8):
            if self._fd >= 0:
                self._read()

    def close(self) -> None:
        if self._fd >= 0:
            self._loop.remove_reader(self._fd)
            os.close(self._fd)
            self._fd = -1

    def _read(self) -> None:
        try:
            data = os.read(self._fd, CHUNK_BYTES)
        except (BlockingIOError, InterruptedError):
            return
        except OSError:
            data = b""
        if data:
            self._take(data)
        else:
            self.close()
            self._ended()


def _drop(data: bytes) -> None:
    pass


class Leader:
    """The process that holds a sandbox, and the moment of its end."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self.ended = asyncio.Event()
        self.status = 0
        """Exit code, or minus the signal."""
        self.cleared = False
        """Once it has ended: whether its control groups are removed already."""
        self.on_end: Callable[[], None] = lambda: None

    @property
    def first(self) -> int | None:
        """The host's number of process 1 inside, which may be the leader; None: it has ended."""
        raise NotImplementedError

    def kill(self) -> None:
        """End it and everything in its namespaces. Idempotent."""
        raise NotImplementedError

    def end(self, status: int) -> None:
        """Called once, by whoever is told of its end."""
        self.status = status
        self.ended.set()
        self.on_end()


class Spawned(Leader):
    """A child of this process, with process 1 below it."""

    def __init__(self, pid: int) -> None:
        super().__init__(pid)
        self._loop = asyncio.get_running_loop()
        self._pidfd = os.pidfd_open(pid)
        self._loop.add_reader(self._pidfd, self._reap)

    @property
    def first(self) -> int | None:
        """See `Leader.first`."""
        return next(iter(children_of(self.pid)), None)

    def kill(self) -> None:
        """See `Leader.kill`."""
        if not self.ended.is_set():
            kill_tree(self.pid)

    def _reap(self) -> None:
        self._loop.remove_reader(self._pidfd)
        os.close(self._pidfd)
        status = 0
        with suppress(ChildProcessError):
            status = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
        self.end(status)


def pipe_to(mode: int | None = None) -> tuple[int, int]:
    """A pipe for the sandbox to read from: (its end, ours), both above the reserved numbers."""
    theirs, ours = os.pipe()
    return raised(theirs, mode), raised(ours, None)


def pipe_from(mode: int | None = None) -> tuple[int, int]:
    """A pipe for the sandbox to write to: (its end, ours)."""
    ours, theirs = os.pipe()
    return raised(theirs, mode), raised(ours, None)


def open_for(path: str) -> int:
    """A file for the sandbox to read, above the reserved numbers."""
    return raised(os.open(path, os.O_RDONLY | os.O_CLOEXEC), None)


def inherited() -> tuple[int, ...]:
    """Descriptors that this process would hand to every child; they are none of a sandbox's.

    One above the limit of open files (lowered after it was opened) is handed to no child from now
    on, for `posix_spawn` refuses to close it.
    """
    found = []
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    for fd in map(int, os.listdir("/proc/self/fd")):
        with suppress(OSError):
            if fd <= 2 or not os.get_inheritable(fd):
                continue
            if limit != resource.RLIM_INFINITY and fd >= limit:
                os.set_inheritable(fd, False)
            else:
                found.append(fd)
    return tuple(found)


def raised(fd: int, mode: int | None = None) -> int:
    """`fd`, moved above the reserved numbers, which closes the old one; then with `mode`."""
    if mode is not None:
        os.fchmod(fd, mode)  # so that another user inside can reopen /dev/stdout
    if fd >= _LOW_FD:
        return fd
    try:
        return fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, _LOW_FD)
    finally:
        os.close(fd)


def spawn(
    command: Sequence[str],
    env: Mapping[str, str],
    fds: Mapping[int, int],
    closed: tuple[int, ...] = (),
) -> Leader:
    """Start `command` in a session of its own; `fds[n]` becomes its descriptor n.

    Of what this process hands down (see `inherited`), `closed` is not. Raises `OSError`.
    """
    actions: list[tuple[int, int] | tuple[int, int, int]] = [
        (os.POSIX_SPAWN_CLOSE, fd) for fd in closed
    ]
    actions += [(os.POSIX_SPAWN_DUP2, fd, number) for number, fd in fds.items()]
    pid = os.posix_spawn(
        command[0],
        list(command),
        env,
        file_actions=actions,
        setsid=True,
        setsigmask=(),
        setsigdef=signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP},
    )
    try:
        return Spawned(pid)
    except OSError:  # no descriptor left to watch it with
        kill_tree(pid)
        os.waitpid(pid, 0)
        raise
