"""Starts namespace sandboxes with one fork each: the small process that root's driver keeps for it.

Run by path as `python -S -E launcher.py FD`, FD one end of a `SOCK_SEQPACKET` pair. Each message is
one marshalled tuple `(number, plan)` with the descriptors of the sandbox beside it; None as plan
asks for its end. The answer is `(number, "started", pid)` or `(number, "refused", errno)`; of a
sandbox that has ended, `(number, "ended", wait status)` follows, with `"left"` where one of its
control groups is still there. At the end of the socket it exits, and every sandbox with it.

Rule: the child does in its own fresh namespaces what bubblewrap would do, in the order of the plan;
nothing is decided here. A step that fails is said on the sandbox's stderr, with exit code 125.
Nothing of headrace is imported, and nothing late: each sandbox begins as a copy of this process,
which stays small, and after the step `pivot` there is no file of Python's left to import.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import gc
import marshal
import os
import resource
import select
import signal
import socket
import struct
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:  # `typing` would make every sandbox's first pages more
    from collections.abc import Callable
    from typing import Any

    Plan = dict[str, Any]

FAILED = 125
MAX_MESSAGE = 200_000
MAX_FDS = 16
_RESERVED = 32
"""Descriptors below it are the sandboxes': what comes over the socket never lands on one."""

_NEW_NS, _NEW_CGROUP, _NEW_UTS = 0x20000, 0x2000000, 0x4000000
_NEW_IPC, _NEW_PID, _NEW_NET = 0x8000000, 0x20000000, 0x40000000
_RDONLY, _REMOUNT, _BIND, _RECURSIVE, _PRIVATE = 1, 32, 4096, 16384, 1 << 18
_DETACH = 2
_NOSUID, _NOEXEC = 2, 8
_PDEATHSIG, _CAPBSET_DROP, _NO_NEW_PRIVS, _SECCOMP = 1, 24, 38, 22
_FILTER = 2
_CAP_VERSION_3 = 0x20080522
_LAST_CAP = 63
_UP, _SET_FLAGS = 1, 0x8914
_PIVOT_ROOT = {"x86_64": 155, "aarch64": 41}

_libc = ctypes.CDLL(None, use_errno=True)


def _check(result: int, what: str) -> None:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), what)


def _mount(source: str, target: str, kind: str, flags: int, data: str) -> None:
    as_bytes = [os.fsencode(text) if text else None for text in (source, target, kind)]
    _check(_libc.mount(*as_bytes, flags, os.fsencode(data) if data else None), f"mount {target}")


def _become(plan: Plan, fds: list[int], alive: int) -> None:
    """All between the fork and the program. Runs as process 1 of its namespace."""
    for fd, number in zip(fds, plan["fds"], strict=True):
        os.dup2(fd, number)
        os.close(fd)  # every program of the sandbox would have it, and so our channels
    os.setsid()
    _check(_libc.prctl(_PDEATHSIG, signal.SIGKILL, 0, 0, 0), "die with the launcher")
    if select.select([alive], [], [], 0)[0]:
        os._exit(FAILED)  # it ended before we asked
    for group, settings in plan["groups"]:
        os.mkdir(group)
        for file, value in (*settings, ("cgroup.procs", "0")):
            _write(f"{group}/{file}", value)
    for number, value in plan["rlimits"]:
        resource.setrlimit(number, (value, value))
    flags = _NEW_NS | _NEW_IPC | _NEW_UTS | _NEW_CGROUP | (0 if plan["network"] else _NEW_NET)
    _check(_libc.unshare(flags), "namespaces")
    if not plan["network"]:
        _raise_loopback()
    os.umask(0o022)
    for step in plan["steps"]:
        _STEPS[step[0]](*step[1:])
    socket.sethostname(plan["hostname"])
    _drop(plan["capabilities"])
    _check(_libc.prctl(_NO_NEW_PRIVS, 1, 0, 0, 0), "no new privileges")
    if plan["seccomp"]:
        _filter(plan["seccomp"])
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
    for name in signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP}:
        signal.signal(name, signal.SIG_DFL)  # Python ignores some, and whoever began the run may
    _run(plan["argv"], plan["env"])


def _write(path: str, value: str) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(fd, value.encode())
    except OSError as e:
        raise OSError(e.errno, e.strerror, path) from None
    finally:
        os.close(fd)


def can_launch() -> bool:
    """Whether this machine's numbers of system calls are known here."""
    return os.uname().machine in _PIVOT_ROOT


# --- steps of a plan: paths are as seen at that step ---


def _folder(path: str, mode: int) -> None:
    os.mkdir(path)
    os.chmod(path, mode)


def _place(path: str) -> None:
    """A folder to mount on, in an image that may have none, or a link in its place."""
    if os.path.islink(path):
        raise OSError(errno.ELOOP, "a folder was expected, found a link", path)
    os.makedirs(path, 0o755, exist_ok=True)


def _device(path: str, of_host: str) -> None:
    os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666))
    _mount(of_host, path, "", _BIND, "")
    # It can be written to all the same, but its mode and owner are the host's and stay.
    _mount("", path, "", _BIND | _REMOUNT | _RDONLY | _NOSUID | _NOEXEC, "")


def _read_only(path: str, flags: int) -> None:
    """A folder of the kernel's, if there is one."""
    if os.path.isdir(path):
        _mount(path, path, "", _BIND | _RECURSIVE, "")
        _mount("", path, "", _BIND | _REMOUNT | _RDONLY | flags, "")


def _hide(path: str, behind: str) -> None:
    if os.path.exists(path):
        _mount(behind, path, "", _BIND, "")


def _text(folder: str, name: str, text: str, replace: bool) -> None:
    """A file of the image's `/etc`; links there would be followed on the host, so they are not."""
    if not os.path.isdir(folder) or os.path.islink(folder):
        return
    path = f"{folder}/{name}"
    if os.path.lexists(path):
        if not replace:
            return
        os.unlink(path)
    with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o644), "w") as f:
        f.write(text)


def _pivot(root: str) -> None:
    os.chdir(root)
    number = _PIVOT_ROOT[os.uname().machine]
    _check(_libc.syscall(number, b".", b"."), f"pivot to {root}")
    _check(_libc.umount2(b".", _DETACH), "detach the host's files")
    os.chdir("/")


_STEPS: dict[str, Callable[..., None]] = {
    "mount": _mount,
    "folder": _folder,
    "place": _place,
    "device": _device,
    "link": os.symlink,
    "read_only": _read_only,
    "hide": _hide,
    "text": _text,
    "pivot": _pivot,
}


# --- the rest of a child ---


def _raise_loopback() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
        fcntl.ioctl(any_socket, _SET_FLAGS, struct.pack("16sH22x", b"lo", _UP))


def _drop(kept: list[int]) -> None:
    """Capabilities but these, from the bounding set as from the others."""
    for number in range(_LAST_CAP + 1):
        if number not in kept and _libc.prctl(_CAPBSET_DROP, number, 0, 0, 0) < 0:
            break  # the kernel knows no more
    mask = sum(1 << number for number in kept)
    low, high = mask & 0xFFFFFFFF, mask >> 32
    sets = struct.pack("6I", low, low, 0, high, high, 0)
    _check(_libc.capset(struct.pack("Ii", _CAP_VERSION_3, 0), sets), "capabilities")


def _filter(program: bytes) -> None:
    code = ctypes.create_string_buffer(program, len(program))
    head = struct.pack("HxxxxxxP", len(program) // 8, ctypes.addressof(code))
    _check(_libc.prctl(_SECCOMP, _FILTER, head, 0, 0), "the filter of system calls")


def _run(argv: list[str], env: dict[str, str]) -> None:
    for folder in env["PATH"].split(":"):
        with contextlib.suppress(FileNotFoundError, NotADirectoryError, PermissionError):
            os.execve(f"{folder or '.'}/{argv[0]}", argv, env)
    raise FileNotFoundError(errno.ENOENT, f"not found in {env['PATH']}", argv[0])


# --- the launcher itself ---


def _own_mounts() -> None:
    """A mount namespace without the containers of an engine: every sandbox copies what is in it.

    What the host mounts later is not seen here, and what it unmounts is kept until we end.
    """
    _check(_libc.unshare(_NEW_NS), "a mount namespace")
    _mount("", "/", "", _RECURSIVE | _PRIVATE, "")
    with open("/proc/self/mountinfo", errors="surrogateescape") as file:
        lines = file.read().splitlines()
    for line in reversed(lines):
        head, _, tail = line.partition(" - ")
        path = head.split(" ")[4]
        if _is_of_an_engine(path, tail.split(" ")[0]):
            _libc.umount2(os.fsencode(path), _DETACH)  # it may have gone meanwhile


def _is_of_an_engine(path: str, kind: str) -> bool:
    """A container's root, its shared memory or its network namespace; never a layer of an image."""
    if kind == "overlay":
        return path.endswith(("/merged", "/rootfs"))
    return kind == "nsfs" or (kind == "tmpfs" and path.endswith("/mounts/shm"))


def _fork(plan: Plan, fds: list[int], own: int, alive: tuple[int, int]) -> int:
    """Process 1 of a new process namespace, as a child of ours."""
    _check(_libc.unshare(_NEW_PID), "a process namespace")
    try:
        pid = os.fork()
    finally:
        if os.getpid() != 1:
            _check(_libc.setns(own, _NEW_PID), "back to the own process namespace")
    if pid:
        return pid
    try:
        os.close(alive[1])
        _become(plan, fds, alive[0])
    except BaseException as e:
        words = f"{e.filename}: {e.strerror}" if isinstance(e, OSError) else repr(e)
        os.write(2, f"headrace: {words}\n".encode(errors="replace"))
    finally:
        os._exit(FAILED)


def _say(channel: socket.socket, number: int, what: str, value: int) -> None:
    channel.send(marshal.dumps((number, what, value)))


class _Live:
    """The sandboxes that have been started and have not ended."""

    def __init__(self) -> None:
        self.pids: dict[int, int] = {}
        """By number."""
        self._by_pid: dict[int, tuple[int, list[str]]] = {}

    def add(self, number: int, pid: int, groups: list[str]) -> None:
        self.pids[number] = pid
        self._by_pid[pid] = number, groups

    def reap(self, channel: socket.socket) -> None:
        """Say who has ended; with its last process gone, its control groups go too."""
        while self.pids:
            pid, status = os.waitpid(-1, os.WNOHANG)
            if pid == 0:
                return
            if pid in self._by_pid:
                number, groups = self._by_pid.pop(pid)
                del self.pids[number]
                gone = [_removed(group) for group in groups]
                _say(channel, number, "ended" if all(gone) else "left", status)


def _removed(group: str) -> bool:
    """Whether a control group is gone. Its last process just ended, and nobody waits here."""
    try:
        os.rmdir(group)
    except FileNotFoundError:
        return True  # the sandbox did not come that far
    except OSError:
        return False
    return True


def _bell() -> int:
    """A descriptor to read from when a child has ended."""
    bell, ring = os.pipe()
    os.set_blocking(bell, False)
    os.set_blocking(ring, False)
    signal.signal(signal.SIGCHLD, lambda number, frame: None)
    signal.set_wakeup_fd(ring, warn_on_full_buffer=False)
    return bell


def _serve(channel: socket.socket) -> None:
    own = os.open("/proc/self/ns/pid", os.O_RDONLY | os.O_CLOEXEC)
    alive, bell = os.pipe(), _bell()
    live = _Live()
    gc.freeze()  # the children share these pages
    gc.disable()
    while True:
        ready = select.select([channel.fileno(), bell], [], [])[0]
        if bell in ready:
            os.read(bell, 4096)
            live.reap(channel)
        if channel.fileno() not in ready:
            continue
        said, fds, _, _ = socket.recv_fds(channel, MAX_MESSAGE, MAX_FDS)  # they are inheritable
        if not said:
            return
        number, plan = marshal.loads(said)
        if plan is None:
            if number in live.pids:
                os.kill(live.pids[number], signal.SIGKILL)
            continue
        try:
            pid = _fork(plan, fds, own, alive)
        except OSError as e:
            _say(channel, number, "refused", e.errno or 0)
        else:
            live.add(number, pid, [group for group, _ in plan["groups"]])
            _say(channel, number, "started", pid)
        for fd in fds:
            os.close(fd)


def _main() -> None:
    channel_fd = fcntl.fcntl(int(sys.argv[1]), fcntl.F_DUPFD_CLOEXEC, _RESERVED)
    nowhere = os.open(os.devnull, os.O_RDWR)
    for fd in range(_RESERVED):
        if fd > 2 and fd != nowhere:
            os.dup2(nowhere, fd, inheritable=False)
    _own_mounts()
    with socket.socket(fileno=channel_fd) as channel, contextlib.suppress(ConnectionError):
        _serve(channel)  # the driver was killed: so are we, and our sandboxes with us


if __name__ == "__main__":
    _main()
