"""What the machine says of itself: pressure, free memory, free disk, and what a process may hold.

Rule: small reads of `/proc`, no state, nothing decided here (`admission` and `preflight` do). What
a kernel does not tell is left at the value that holds nothing back.
"""

import os
import resource
from pathlib import Path

from headrace.engine.admission import HostLoad

PROC = Path("/proc")


def read_host(folder: Path, proc: Path = PROC) -> HostLoad:
    """The load now; `folder` says which file system is written to. Takes about 0.1 ms."""
    total, free = memory_bytes(proc)
    return HostLoad(
        cpu=_pressure(proc, "cpu", "some"),
        memory=_pressure(proc, "memory", "some"),
        io=_pressure(proc, "io", "full"),
        memory_free=1.0 if total is None or free is None else free / total,
        disk_free_bytes=_disk_free(folder),
    )


def memory_bytes(proc: Path = PROC) -> tuple[int | None, int | None]:
    """All, and free: of the machine, or of this control group where that is less."""
    found: dict[str, int] = {}
    try:
        for line in (proc / "meminfo").read_text().splitlines():
            name, _, rest = line.partition(":")
            if name in ("MemTotal", "MemAvailable"):
                found[name] = int(rest.split()[0]) << 10
    except (OSError, ValueError, IndexError):
        return None, None
    total, free = found.get("MemTotal"), found.get("MemAvailable")
    for limit, used in _MEMORY_GROUPS:
        most, now = read_number(Path(limit)), read_number(Path(used))
        if most is not None and now is not None and total is not None and most < total:
            total, free = most, min(free or most, max(0, most - now))
    return total, free


_MEMORY_GROUPS = (
    ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory.current"),
    (
        "/sys/fs/cgroup/memory/memory.limit_in_bytes",
        "/sys/fs/cgroup/memory/memory.usage_in_bytes",
    ),
)


def running(proc: Path = PROC) -> int:
    """Threads of the machine: what the kernel's limits count."""
    try:
        return int((proc / "loadavg").read_text().split()[3].partition("/")[2])
    except (OSError, ValueError, IndexError):
        return 0


def processes_left() -> int | None:
    """Processes that may still start: by the kernel's, the control group's or the user's limit.

    None: no limit is known.
    """
    limits = [
        read_number(PROC / "sys/kernel/pid_max"),
        read_number(PROC / "sys/kernel/threads-max"),
        read_number(Path("/sys/fs/cgroup/pids.max")),
        read_number(Path("/sys/fs/cgroup/pids/pids.max")),
    ]
    soft = resource.getrlimit(resource.RLIMIT_NPROC)[0]
    if soft != resource.RLIM_INFINITY and os.geteuid() != 0:  # root is not bound by it
        limits.append(soft)
    known = [limit for limit in limits if limit is not None]
    return max(min(known) - running(), 0) if known else None


def read_number(path: Path) -> int | None:
    """A file that holds one number; None for any other, such as `max`."""
    try:
        text = path.read_text().strip()
    except OSError:
        return None
    return int(text) if text.isdigit() else None


def _pressure(proc: Path, what: str, kind: str) -> float:
    """Share of the last ten seconds, from a line such as `some avg10=1.53 avg60=...`."""
    try:
        for line in (proc / "pressure" / what).read_text().splitlines():
            words = line.split()
            if words[:1] == [kind]:
                return float(words[1].removeprefix("avg10=")) / 100
    except (OSError, ValueError, IndexError):
        pass
    return 0.0


def _disk_free(folder: Path) -> int | None:
    try:
        found = os.statvfs(folder)
    except OSError:
        return None
    return found.f_bavail * found.f_frsize
