"""Starts namespace sandboxes with one fork each, and what we run in them later with one more.

The small process that root's driver keeps for it. Run by path as `python -S -E launcher.py FD`, FD
one end of a `SOCK_SEQPACKET` pair. Each message is one marshalled tuple `(number, what, plan)` with
descriptors beside it: `start` a sandbox, `join` one, `kill` what has that number. The answers are
`(number, word, value)`; the last is its end. At the end of the socket it exits, and every sandbox
with it.

Rule: the child does in its own fresh namespaces what bubblewrap would do, in the order of the plan;
nothing is decided here. A step that fails is said on the sandbox's stderr, with exit code 125.
Nothing late is imported: each child begins as a copy of this process, which stays small, and after
the step `pivot` there is no file of Python's left to import.

Who joins a sandbox is a copy of this process until it becomes a program of the sandbox. Until then
nobody inside may look into it: it cannot be traced (`dumpable` is off), it has no descriptor but
its three, and its capabilities go before it reads a file. What needs no program (`inside.py`) stays
out of the sandbox's process namespace, where nobody sees, stops or kills it. This program runs from
a mount that is read-only: a script `#!/proc/self/exe` of the agent's would have it as `exe`.
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
if TYPE_CHECKING or __package__:
    from headrace.sandbox import inside
else:
    import inside  # run by path: the folder of this file is where modules are looked for

FAILED = 125
NO_PROGRAM = 127
MAX_MESSAGE = 200_000
MAX_FDS = 16
_RESERVED = 32
"""Descriptors below it are the sandboxes': what comes over the socket never lands on one."""

_NEW_NS, _NEW_CGROUP, _NEW_UTS = 0x20000, 0x2000000, 0x4000000
_NEW_IPC, _NEW_PID, _NEW_NET = 0x8000000, 0x20000000, 0x40000000
_RDONLY, _REMOUNT, _BIND, _RECURSIVE, _PRIVATE = 1, 32, 4096, 16384, 1 << 18
_DETACH = 2
_NOSUID, _NOEXEC = 2, 8
_PDEATHSIG, _DUMPABLE, _CAPBSET_DROP, _NO_NEW_PRIVS, _SECCOMP = 1, 4, 24, 38, 22
_FILTER = 2
_CAP_VERSION_3 = 0x20080522
_CAP_HEAD = struct.pack("Ii", _CAP_VERSION_3, 0)
_LAST_CAP = 63
_UP, _SET_FLAGS = 1, 0x8914
_PIVOT_ROOT = {"x86_64": 155, "aarch64": 41}
_CLOSE_RANGE = 436
_KERNEL = (5, 9)
"""The first with `close_range`, and with `setns` by a pidfd."""
_NOWHERE = 3
"""Like the others below `_RESERVED`: `/dev/null`."""
_KEPT = ("groups", "rlimits", "capabilities", "seccomp", "env", "workdir")
"""Of a sandbox's plan: what holds for those who join it too."""

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
    _wall_in(plan)
    if plan["workdir"]:
        with contextlib.suppress(OSError):  # its shell starts in `/` then
            os.makedirs(plan["workdir"], exist_ok=True)
    _run(plan["argv"], plan["env"])


def _wall_in(plan: Plan) -> None:
    """What a process in a sandbox may no more, but for what the launcher gave up for all."""
    _check(_libc.capset(_CAP_HEAD, _capabilities(plan["capabilities"])), "capabilities")
    if plan["seccomp"]:
        _filter(plan["seccomp"])


def _enter(plan: Plan, asked: Plan, fds: list[int], first: int) -> None:
    """All between the fork and the program, or the call, of one who joins; `first` is a pidfd."""
    given = dict(zip(asked["fds"], fds, strict=True))
    for number in range(3):
        os.dup2(given.get(number, _NOWHERE), number)
    for group in asked["groups"]:
        _write(f"{group}/cgroup.procs", "0")
    for number, value in plan["rlimits"]:
        resource.setrlimit(number, (value, value))
    os.setsid()
    os.umask(0o022)
    flags = _NEW_NS | (_NEW_IPC | _NEW_UTS | _NEW_CGROUP | _NEW_NET if "argv" in asked else 0)
    _check(_libc.setns(first, flags), "join the sandbox")
    _check(_libc.syscall(_CLOSE_RANGE, 3, 0xFFFFFFFF, 0), "close what is the host's")
    _wall_in(plan if "argv" in asked else {**plan, "seccomp": b""})  # it is for other programs
    try:
        os.chdir(plan["workdir"] or "/")
    except OSError:
        os.chdir("/")
    if "argv" not in asked:
        inside.search_path = plan["env"]["PATH"]
        os._exit(inside.CALLS[asked["call"]](*asked["arguments"]))
    if "bring" in asked:
        inside.search_path = plan["env"]["PATH"]
        inside.bring(*asked["bring"])
    env = {**plan["env"], **inside.become(asked["user"])}
    for argv in asked["argv"]:
        with contextlib.suppress(FileNotFoundError):
            _run(argv, env)
    os.write(2, b"headrace: neither bash nor sh is left in the sandbox\n")
    os._exit(NO_PROGRAM)


def _write(path: str, value: str) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(fd, value.encode())
    except OSError as e:
        raise OSError(e.errno, e.strerror, path) from None
    finally:
        os.close(fd)


def can_launch() -> bool:
    """Whether this machine's numbers of system calls are known here, and its kernel has them."""
    host = os.uname()
    release = tuple(int(part) for part in host.release.split("-")[0].split(".")[:2])
    return host.machine in _PIVOT_ROOT and release >= _KERNEL


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


def _give_up(kept: list[int]) -> None:
    """Of what each child would have to: done once, here, where it takes nothing from us.

    What no program may have again (the bounding set), and the signals that Python ignores.
    """
    for number in range(_LAST_CAP + 1):
        if number not in kept and _libc.prctl(_CAPBSET_DROP, number, 0, 0, 0) < 0:
            break  # the kernel knows no more
    _check(_libc.prctl(_NO_NEW_PRIVS, 1, 0, 0, 0), "no new privileges")
    for name in signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP, signal.SIGCHLD}:
        signal.signal(name, signal.SIG_DFL)  # whoever began the run may ignore some too


def _capabilities(kept: list[int]) -> bytes:
    mask = sum(1 << number for number in kept)
    low, high = mask & 0xFFFFFFFF, mask >> 32
    return struct.pack("6I", low, low, 0, high, high, 0)


def _filter(program: bytes) -> None:
    code = ctypes.create_string_buffer(program, len(program))
    head = struct.pack("HxxxxxxP", len(program) // 8, ctypes.addressof(code))
    _check(_libc.prctl(_SECCOMP, _FILTER, head, 0, 0), "the filter of system calls")


def _run(argv: list[str | bytes], env: dict[str, str]) -> None:
    for folder in env["PATH"].split(":"):
        with contextlib.suppress(FileNotFoundError, NotADirectoryError, PermissionError):
            os.execve(f"{folder or '.'}/{argv[0]!s}", argv, env)
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


def _fork(child: Callable[[], None]) -> int:
    pid = os.fork()
    if pid:
        return pid
    try:
        child()
    except BaseException as e:
        words = f"{e.filename}: {e.strerror}" if isinstance(e, OSError) else repr(e)
        os.write(2, f"headrace: {words}\n".encode(errors="replace"))
    finally:
        os._exit(FAILED)


class _Own:
    """Our own process namespace, to come back to."""

    def __init__(self) -> None:
        self._fd = os.open("/proc/self/ns/pid", os.O_RDONLY | os.O_CLOEXEC)

    def fork_elsewhere(self, child: Callable[[], None]) -> int:
        """The next child is in another namespace: undo that for those that follow."""
        try:
            return _fork(child)
        finally:  # in the child we are never here
            _check(_libc.setns(self._fd, _NEW_PID), "back to the own process namespace")


def _say(channel: socket.socket, number: int, what: str, value: int) -> None:
    channel.send(marshal.dumps((number, what, value)), socket.MSG_NOSIGNAL)


class _Live:
    """What has been started and has not ended: sandboxes, and who joined them."""

    def __init__(self) -> None:
        self.pids: dict[int, int] = {}
        """By number."""
        self.plans: dict[int, Plan] = {}
        """Of sandboxes, by number: `_KEPT`."""
        self._numbers: dict[int, int] = {}
        self._filters: dict[bytes, bytes] = {}

    def add(self, number: int, pid: int, plan: Plan | None = None) -> None:
        self.pids[number] = pid
        self._numbers[pid] = number
        if plan is not None:
            kept = self.plans[number] = {name: plan[name] for name in _KEPT}
            kept["seccomp"] = self._filters.setdefault(plan["seccomp"], plan["seccomp"])

    def reap(self, channel: socket.socket) -> None:
        """Say who has ended; with the last process of a sandbox gone, its control groups go too."""
        while self.pids:
            pid, status = os.waitpid(-1, os.WNOHANG)
            if pid == 0:
                return
            number = self._numbers.pop(pid)
            del self.pids[number]
            plan = self.plans.pop(number, None)
            gone = [_removed(group) for group, _ in plan["groups"]] if plan else []
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


class _Server:
    """Carries out one message after the other."""

    def __init__(self, channel: socket.socket) -> None:
        self._channel = channel
        self._own = _Own()
        self._alive = os.pipe()
        self.live = _Live()
        self._kept: list[int] | None = None

    def start(self, number: int, plan: Plan, fds: list[int]) -> None:
        """Process 1 of a new process namespace, as a child of ours."""
        if self._kept is None:
            self._kept = plan["capabilities"]
            _give_up(self._kept)
        if plan["capabilities"] != self._kept:
            raise OSError(errno.EINVAL, "the same capabilities were expected for every sandbox")

        def child() -> None:
            os.close(self._alive[1])
            _become(plan, fds, self._alive[0])

        _check(_libc.unshare(_NEW_PID), "a process namespace")
        pid = self._own.fork_elsewhere(child)
        self.live.add(number, pid, plan)
        _say(self._channel, number, "started", pid)

    def join(self, number: int, asked: Plan, fds: list[int]) -> None:
        """A program, or a call, in a sandbox. Only a program is in its process namespace."""
        live = self.live
        if asked["sandbox"] not in live.plans:
            raise OSError(errno.ESRCH, "the sandbox has ended")
        plan = live.plans[asked["sandbox"]]
        if "target" in asked:
            inner = _inner(live.pids.get(asked["target"]))
            asked["arguments"] = (*asked["arguments"], inner)
        asked["groups"] = [
            group
            for group, settings in plan["groups"]
            if "argv" in asked or (asked["charged"] and _is_of_memory(settings))
        ]
        first = os.pidfd_open(live.pids[asked["sandbox"]])
        try:
            if "argv" in asked:
                _check(_libc.setns(first, _NEW_PID), "the sandbox's process namespace")
                pid = self._own.fork_elsewhere(lambda: _enter(plan, asked, fds, first))
            else:
                pid = _fork(lambda: _enter(plan, asked, fds, first))
        finally:
            os.close(first)
        live.add(number, pid)

    def kill(self, number: int) -> None:
        if number in self.live.pids:
            os.kill(self.live.pids[number], signal.SIGKILL)

    def take(self) -> bool:
        """One message, if there is one; False at the end of the socket."""
        said, fds, _, _ = socket.recv_fds(self._channel, MAX_MESSAGE, MAX_FDS)
        if not said:
            return False
        number, what, plan = marshal.loads(said)
        try:
            if what == "start":
                self.start(number, plan, fds)
            elif what == "join":
                self.join(number, plan, fds)
            else:
                self.kill(number)
        except OSError as e:
            _say(self._channel, number, "refused", e.errno or 0)
        for fd in fds:
            os.close(fd)
        return True


def _is_of_memory(settings: list[tuple[str, str]]) -> bool:
    return any(file.startswith("memory.") for file, _ in settings)


def _inner(pid: int | None) -> int:
    """What a child of ours is called in its own process namespace; 0 when it is gone."""
    if pid is None:
        return 0
    with open(f"/proc/{pid}/status") as file:
        for line in file:
            if line.startswith("NSpid:"):
                return int(line.split()[-1])
    return 0


def _warm() -> None:
    """Do harmlessly what every child does first: what that fills in, it finds done.

    Each page that a child writes to is copied, and that is most of what it costs.
    """
    for _ in range(16):
        for flags in (_NEW_NS, _NEW_PID):
            with contextlib.suppress(OSError):
                _check(_libc.setns(-1, flags), "nowhere")
        _libc.syscall(_CLOSE_RANGE, 1 << 30, 1 << 30, 0)
        _libc.capset(None, _capabilities([0, 1]))
        _libc.prctl(-1, 0, 0, 0, 0)
        os.umask(os.umask(0o022))
        os.chdir("/")
        with contextlib.suppress(OSError):
            os.stat(b"/none/none")
        inside.send(0, 0)
        os.waitpid(_fork(lambda: os._exit(0)), 0)


def _serve(channel: socket.socket) -> None:
    _warm()
    server, bell = _Server(channel), _bell()
    gc.freeze()  # the children share these pages
    gc.disable()
    while True:
        ready = select.select([channel.fileno(), bell], [], [])[0]
        if bell in ready:
            os.read(bell, 4096)
            server.live.reap(channel)
        if channel.fileno() in ready and not server.take():
            return


def _read_only_exe() -> None:
    """Have our program's file behind a read-only mount, and begin again from there."""
    file = os.path.realpath(sys.executable)
    _mount(file, file, "", _BIND, "")
    _mount("", file, "", _BIND | _REMOUNT | _RDONLY, "")
    os.execv(file, [file, "-S", "-E", *sys.argv, "again"])


def _main() -> None:
    if len(sys.argv) < 3:
        _own_mounts()
        _read_only_exe()
    _check(_libc.prctl(_DUMPABLE, 0, 0, 0, 0), "not to be traced")
    channel_fd = fcntl.fcntl(int(sys.argv[1]), fcntl.F_DUPFD_CLOEXEC, _RESERVED)
    nowhere = os.open(os.devnull, os.O_RDWR)
    for fd in range(_RESERVED):
        if fd > 2 and fd != nowhere:
            os.dup2(nowhere, fd, inheritable=False)
    os.set_inheritable(nowhere, False)
    with socket.socket(fileno=channel_fd) as channel, contextlib.suppress(ConnectionError):
        _serve(channel)  # the driver was killed: so are we, and our sandboxes with us


if __name__ == "__main__":
    _main()
