"""What the machine says of itself: pressure, free memory, free disk, and what a process may hold.

Rule: small reads of `/proc`, no state, nothing decided here (`admission` and `preflight` do). What
a kernel does not tell is left at the value that holds nothing back.
"""

import os
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
    """Of the machine, all and free; None where it is not told."""
    found: dict[str, int] = {}
    try:
        for line in (proc / "meminfo").read_text().splitlines():
            name, _, rest = line.partition(":")
            if name in ("MemTotal", "MemAvailable"):
                found[name] = int(rest.split()[0]) << 10
    except (OSError, ValueError, IndexError):
        return None, None
    return found.get("MemTotal"), found.get("MemAvailable")


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
