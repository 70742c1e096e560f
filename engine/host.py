"""What the machine says of itself: pressure, free memory, free disk, and what a process may hold.

Rule: small reads of `/proc` and of the control groups this process is in, no state, nothing
decided here (`admission` and `preflight` do). What a kernel does not tell is left at the value that
holds nothing back.
"""

import os
import resource
from collections.abc import Iterator
from pathlib import Path

from headrace.engine.admission import HostLoad

PROC = Path("/proc")
CGROUPS = Path("/sys/fs/cgroup")
_MEMORY = (("memory.max", "memory.current"), ("memory.limit_in_bytes", "memory.usage_in_bytes"))
"""Of the second and of the first version of control groups."""


def read_host(folder: Path, proc: Path = PROC, cgroups: Path = CGROUPS) -> HostLoad:
    """The load now; `folder` says which file system is written to. Takes about a millisecond."""
    total, free = memory_bytes(proc, cgroups)
    return HostLoad(
        cpu=_pressure(proc, "cpu", "some"),
        memory=_pressure(proc, "memory", "some"),
        io=_pressure(proc, "io", "full"),
        memory_free=1.0 if not total or free is None else free / total,
        disk_free_bytes=_disk_free(folder),
    )


def memory_bytes(proc: Path = PROC, cgroups: Path = CGROUPS) -> tuple[int | None, int | None]:
    """All, and free: of the machine, or of a control group we are in where that has less left."""
    found: dict[str, int] = {}
    try:
        for line in (proc / "meminfo").read_text().splitlines():
            name, _, rest = line.partition(":")
            if name in ("MemTotal", "MemAvailable"):
                found[name] = int(rest.split()[0]) << 10
    except (OSError, ValueError, IndexError):
        return None, None
    total, free = found.get("MemTotal"), found.get("MemAvailable")
    if total is None or free is None:
        return total, free
    for group in own_groups("memory", proc, cgroups):
        for limit, used in _MEMORY:
            most, now = read_number(group / limit), read_number(group / used)
            if most is None or now is None or most >= total:
                continue
            left = max(0, most - now + _reclaimable(group))
            if left < free:
                total, free = most, left
    return total, free


def running(proc: Path = PROC) -> int:
    """Threads of the machine: what the kernel's limits count."""
    try:
        return int((proc / "loadavg").read_text().split()[3].partition("/")[2])
    except (OSError, ValueError, IndexError):
        return 0


def processes_left(proc: Path = PROC, cgroups: Path = CGROUPS) -> int | None:
    """Processes that may still start: by the kernel's, a control group's or the user's limit.

    Each limit is held against what it counts: the machine, the group, or the user. None: no limit
    is known.
    """
    here = running(proc)
    left = [
        limit - here
        for name in ("pid_max", "threads-max")
        if (limit := read_number(proc / "sys/kernel" / name)) is not None
    ]
    for group in own_groups("pids", proc, cgroups):
        most, now = read_number(group / "pids.max"), read_number(group / "pids.current")
        if most is not None and now is not None:
            left.append(most - now)
    soft = resource.getrlimit(resource.RLIMIT_NPROC)[0]
    if soft != resource.RLIM_INFINITY and os.geteuid() != 0:  # root is not bound by it
        left.append(soft - _of_this_user(proc))
    return max(0, min(left)) if left else None


def own_groups(controller: str, proc: Path = PROC, cgroups: Path = CGROUPS) -> Iterator[Path]:
    """Folders of the control group of this process and of those around it, innermost first.

    A container often sees its own group as the root; then that is the only one.
    """
    try:
        lines = (proc / "self/cgroup").read_text().splitlines()
    except OSError:
        lines = []
    seen = {cgroups, cgroups / controller}
    for line in lines:
        _, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if controllers and controller not in controllers.split(","):
            continue
        root = cgroups / controller if controllers else cgroups
        group = root / path.lstrip("/")
        while group not in seen and root in group.parents:
            seen.add(group)
            yield group
            group = group.parent
    yield cgroups / controller
    yield cgroups


def read_number(path: Path) -> int | None:
    """A file that holds one number; None for any other, such as `max`."""
    try:
        text = path.read_text().strip()
    except OSError:
        return None
    return int(text) if text.isdigit() else None


def _reclaimable(group: Path) -> int:
    """File cache that is counted as used, and is given up when memory is asked for."""
    try:
        lines = (group / "memory.stat").read_text().splitlines()
    except OSError:
        return 0
    counts = dict(line.partition(" ")[::2] for line in lines)
    value = counts.get("total_inactive_file", counts.get("inactive_file", "0"))
    return int(value) if value.isdigit() else 0


def _of_this_user(proc: Path) -> int:
    """Threads of the user we are: what the user's limit counts."""
    user, threads = os.geteuid(), 0
    for entry in os.scandir(proc):
        try:
            if entry.name.isdigit() and entry.stat().st_uid == user:
                threads += len(os.listdir(f"{entry.path}/task"))
        except OSError:
            continue  # it has just ended
    return threads


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
