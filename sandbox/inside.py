"""What a child of the launcher does in a sandbox by itself, with no program of the sandbox.

Rule: each call runs behind the sandbox's walls, with the capabilities of its root and no more, and
in its files, so that no path leads out of it. It ends as an exit code; what it reads goes to
stdout. Those in `CALLS` are outside the sandbox's process namespace: nobody inside sees them. What
a command finds there (`bring`) and whom it runs as (`become`) is done by what becomes it.

Imported by `launcher.py`, which every sandbox begins as a copy of: nothing of headrace here, and
nothing is imported late.
"""

from __future__ import annotations

import contextlib
import marshal
import os
import signal
import stat

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence
    from typing import Any

    Entry = tuple[str, bytes, int, int, bytes]

MISSING, FOLDER, NOT_REGULAR, TOO_LARGE = 101, 102, 103, 104
NO_USER = 126
BROUGHT = b"\x06"
PASSES = 60
_CHUNK_BYTES = 1 << 18
_TABLE_BYTES = 4 << 20
search_path = ""
"""`PATH` of the sandbox; set by the launcher's child."""
_ROOT = ("", "root", "0", "root:root", "0:0")


# --- files ---


def read(path: bytes, max_bytes: int) -> int:
    """The bytes of a regular file to stdout; of one that is too large, its size."""
    try:
        kind = os.stat(path).st_mode
        if stat.S_ISDIR(kind):
            return FOLDER
        if not stat.S_ISREG(kind):
            return NOT_REGULAR
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
    except OSError:
        return MISSING
    status = os.fstat(fd)
    if not stat.S_ISREG(status.st_mode):
        return NOT_REGULAR
    if status.st_size > max_bytes:
        os.write(1, b"%d" % status.st_size)
        return TOO_LARGE
    left = status.st_size
    while left and (data := os.read(fd, min(left, _CHUNK_BYTES))):
        left -= len(data)
        _write_all(1, data)
    return 0


def write(path: bytes, temporary: bytes, size: int, mode: int) -> int:
    """Make or replace a regular file with `size` bytes from stdin; its folders are made."""
    if not os.path.islink(path) and os.path.isdir(path):
        return FOLDER
    folder = os.path.dirname(path)
    aside = os.path.join(folder, temporary)
    try:
        if folder:
            os.makedirs(folder, exist_ok=True)
        fd = os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
        try:
            if (came := _copy(0, fd)) != size:
                raise OSError(0, f"{size} bytes were expected, {came} came")
            os.fchmod(fd, mode)
            os.rename(aside, path)
        except OSError:
            os.unlink(aside)
            raise
    except OSError as e:
        os.write(2, f"{e.strerror}\n".encode())
        return 1
    return 0


def bring(*arguments: Any) -> None:
    """`unpack` ahead of a program, which has nothing to read then; told by the first byte it says.

    Whoever does not get that far ends here.
    """
    if unpack(*arguments) != 0:
        os._exit(1)
    nothing = os.open("/dev/null", os.O_RDONLY | os.O_CLOEXEC)  # a mount: it is what it is called
    os.dup2(nothing, 0)
    os.write(1, BROUGHT)


def unpack(
    into: bytes, removed: Sequence[bytes], folders: Sequence[bytes], needs: Sequence[str]
) -> int:
    """Put entries from stdin below `into`, as `tar -x -o` of root's would.

    First what is at each of `removed` is removed, whatever it is, and `folders` are made or, the
    last two parts of them, opened to everybody. Without all programs of `needs`, or when anything
    is odd, it fails, and whoever asked does it by a program of the sandbox.
    """
    entries: list[Entry] = marshal.loads(_all_of(0))
    if not all(map(_has_program, needs)):
        return 1
    try:
        for path in removed:
            _remove(path)
        for path in folders:
            _open_folder(path)
        for entry in entries:
            _place(into, *entry)
        for kind, name, _, mtime, _ in entries:
            if kind == "folder":
                os.utime(os.path.join(into, name), (mtime, mtime))
    except (OSError, RecursionError) as e:
        os.write(2, f"{e}\n".encode(errors="replace"))
        return 1
    return 0


def _has_program(name: str) -> bool:
    return any(os.access(f"{folder}/{name}", os.X_OK) for folder in search_path.split(":"))


def _remove(path: bytes) -> None:
    try:
        if not stat.S_ISDIR(os.lstat(path).st_mode):
            os.unlink(path)
            return
    except FileNotFoundError:
        return
    for name in os.listdir(path):
        _remove(os.path.join(path, name))
    os.rmdir(path)


def _open_folder(path: bytes) -> None:
    """A folder that everybody may write to, with the one above it."""
    if os.path.islink(path) or (os.path.lexists(path) and not os.path.isdir(path)):
        _remove(path)
    above = os.path.dirname(path)
    for folder in (above, path):
        if folder != b"/":
            os.makedirs(folder, exist_ok=True)
            os.chmod(folder, 0o777)


def _place(into: bytes, kind: str, name: bytes, mode: int, mtime: int, data: bytes) -> None:
    path = os.path.join(into, name)
    if kind == "folder":
        os.makedirs(path, exist_ok=True)
        os.chmod(path, mode)
        return
    if os.path.lexists(path):
        os.unlink(path)
    os.makedirs(os.path.dirname(path), exist_ok=True)
    if kind == "link":
        os.symlink(data, path)
        return
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
    try:
        _write_all(fd, data)
        os.fchmod(fd, mode)
        os.utime(fd, (mtime, mtime))
    finally:
        os.close(fd)


def _all_of(fd: int) -> bytes:
    parts = []
    while data := os.read(fd, _CHUNK_BYTES):
        parts.append(data)
    return b"".join(parts)


def _copy(source: int, target: int) -> int:
    size = 0
    while data := os.read(source, _CHUNK_BYTES):
        _write_all(target, data)
        size += len(data)
    return size


def _write_all(fd: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]


# --- processes: the same rules as those of `scripts.py` ---


def kill(low: int, high: int, last: int, spared: Sequence[int], target: int = -1) -> int:
    """SIGKILL what a command started until nothing is left. The shell, `spared[0]`, waits for it.

    `target`: the command itself, which came from outside; it and what is above it in number count
    as new. 0: it has ended.
    """
    if target == 0:
        return 0
    last = target - 1 if target > 0 else last
    ours, shell = _ours(spared), spared[0] if spared else 0
    if shell > 1:
        _send(signal.SIGSTOP, [shell])
    for _ in range(PASSES):
        found = _new(low, high, last, ours, target)
        if not found:
            break
        _send(signal.SIGSTOP, found)
        _send(signal.SIGKILL, found)
    if shell > 1:
        _send(signal.SIGCONT, [shell])
    return 0


def interrupt(low: int, high: int, last: int, spared: Sequence[int]) -> int:
    """What Ctrl-C does: SIGINT to what the command started, to the shell (`spared[0]`) first."""
    ours = _ours(spared)
    _send(signal.SIGSTOP, _new(low, high, last, ours))
    _send(signal.SIGINT, spared[:1])
    found = _new(low, high, last, ours)
    _send(signal.SIGINT, found)
    _send(signal.SIGCONT, found)
    return 0


def send(number: int, pid: int) -> int:
    """A signal to one process."""
    _send(number, [pid])
    return 0


def _send(number: int, pids: Iterable[int]) -> None:
    for pid in pids:
        with contextlib.suppress(OSError):  # it has just ended
            fd = os.open(f"/proc/{pid}", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                signal.pidfd_send_signal(fd, number)
            finally:
                os.close(fd)


def _ours(pids: Iterable[int]) -> set[int]:
    """Process 1, and these with their ancestors."""
    out = {1}
    for pid in pids:
        while pid > 1 and pid not in out:
            out.add(pid)
            found = _stat(pid)
            pid = found[1] if found else 0
    return out


def _stat(pid: int) -> tuple[bytes, int, int] | None:
    """State, parent and start of a process."""
    try:
        fd = os.open(f"/proc/{pid}/stat", os.O_RDONLY | os.O_CLOEXEC)
        try:
            fields = os.read(fd, 4096).rpartition(b") ")[2].split()
        finally:
            os.close(fd)
        return fields[0], int(fields[1]), int(fields[19])
    except (OSError, IndexError):
        return None


def _new(low: int, high: int, last: int, ours: set[int], target: int = -1) -> list[int]:
    """Who began with the command, and whose parents did."""
    old: set[int] = set()
    fresh: dict[int, int] = {}
    for pid in _processes():
        found = None if pid in ours else _stat(pid)
        if found is None or found[0] in b"ZXx":
            continue
        _, parent, start = found
        if parent <= 0 and pid != target:  # somebody else from outside
            continue
        if pid == target or start > high or (start >= low and pid > last):
            fresh[pid] = parent
        else:
            old.add(pid)
    more = True
    while more:
        of_old = [pid for pid, parent in fresh.items() if parent in old]
        more = bool(of_old)
        for pid in of_old:
            del fresh[pid]
            old.add(pid)
    return list(fresh)


def _processes() -> Iterator[int]:
    return (int(name) for name in os.listdir("/proc") if name.isdigit())


# --- who a program runs as ---


def become(user: str) -> dict[str, str]:
    """Take on a user with its groups; the variables that go with it. Root stays as it is."""
    if user in _ROOT:
        return {}
    name, _, group = user.partition(":")
    uid, home, is_known = name, "/", False
    for row in _table("/etc/passwd", 7):
        if name in (row[0], row[2]):
            name, uid, home, is_known = row[0], row[2], row[5], True
            group = group or row[3]
            break
    groups = _table("/etc/group", 4)
    if group and not group.isdecimal():
        group = next((row[2] for row in groups if row[0] == group), group)
    group = group or uid
    if not (uid.isdecimal() and group.isdecimal()):
        os.write(2, f"headrace: no user {user}\n".encode(errors="replace"))
        os._exit(NO_USER)
    more = [int(row[2]) for row in groups if row[2].isdecimal() and name in row[3].split(",")]
    os.setgroups(sorted({int(group), *more}) if is_known else [])
    os.setresgid(int(group), int(group), int(group))
    os.setresuid(int(uid), int(uid), int(uid))
    return {"HOME": home, "USER": name, "LOGNAME": name}


def _table(path: str, columns: int) -> list[list[str]]:
    """The rows of a table of users or groups; none where there is no such file."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
    except OSError:
        return []
    with contextlib.suppress(OSError):
        data = b""
        while len(data) < _TABLE_BYTES and (more := os.read(fd, _CHUNK_BYTES)):
            data += more
        os.close(fd)
        lines = data.decode("utf-8", "surrogateescape").split("\n")
        return [row for line in lines if len(row := line.split(":")) >= columns]
    return []


CALLS: dict[str, Callable[..., Any]] = {
    "read": read,
    "write": write,
    "kill": kill,
    "interrupt": interrupt,
    "send": send,
}
