"""What the operating system grants this process: the part of `headrace doctor` that needs no
sandbox and no model.

Rule: reads `/proc`, `/sys` and limits; changes nothing. Each judgement is a pure function of the
numbers it is given.
"""

import os
import platform
import resource
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

State = Literal["ok", "lack", "note"]

OPEN_FILES_PER_EPISODE = 8
"""An estimate: a shell's pipes, a connection to the model, room for a file in flight."""
WANTED_OPEN_FILES = 4096
WANTED_PIDS = 4096
WANTED_MEMORY_GB = 4.0
WANTED_DISK_GB = 5.0


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One line of the doctor's report."""

    name: str
    state: State
    """`lack` stops something; `note` only limits it."""
    found: str
    advice: str = ""
    """What to do about it; empty when there is nothing to do."""


def host_findings(folder: Path) -> list[Finding]:
    """Processor, memory, disk and limits, as they are now."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    return [
        python(sys.version_info[:3]),
        Finding(name="cpus", state="ok", found=f"{cpus()} usable, {platform.machine()}"),
        memory(_available_memory_gb()),
        disk(shutil.disk_usage(_existing(folder)).free / 1e9, folder),
        open_files(soft, hard),
        pids(_pids_left()),
    ]


def python(version: tuple[int, ...]) -> Finding:
    found = ".".join(map(str, version))
    if (3, 11) <= version < (3, 14):
        return Finding(name="python", state="ok", found=found)
    return Finding(name="python", state="lack", found=found, advice="use Python 3.11 to 3.13")


def cpus() -> int:
    """Processors this process may use."""
    return len(os.sched_getaffinity(0))


def memory(available_gb: float) -> Finding:
    state: State = "ok" if available_gb >= WANTED_MEMORY_GB else "note"
    advice = "" if state == "ok" else "lower engine.live and policy.server.kv_cache_gib"
    return Finding(name="memory", state=state, found=f"{available_gb:.1f} GB free", advice=advice)


def disk(free_gb: float, folder: Path) -> Finding:
    state: State = "ok" if free_gb >= WANTED_DISK_GB else "note"
    advice = "" if state == "ok" else "images, weights and runs need a few GB: make room"
    return Finding(
        name="disk", state=state, found=f"{free_gb:.1f} GB free at {folder}", advice=advice
    )


def open_files(soft: int, hard: int) -> Finding:
    """Open files bound how many episodes can be live."""
    live = max(soft - 200, 0) // OPEN_FILES_PER_EPISODE
    found = f"{_number(soft)}, at most {_number(hard)}: about {live} live episodes"
    if soft == resource.RLIM_INFINITY or soft >= WANTED_OPEN_FILES:
        unlimited = soft == resource.RLIM_INFINITY
        return Finding(name="open files", state="ok", found="unlimited" if unlimited else found)
    more = hard == resource.RLIM_INFINITY or hard >= WANTED_OPEN_FILES
    advice = f"ulimit -n {WANTED_OPEN_FILES}" if more else "raise nofile in limits.conf"
    return Finding(name="open files", state="note", found=found, advice=advice)


def pids(left: int | None) -> Finding:
    """Processes and threads bound how many sandboxes can be live."""
    if left is None:
        return Finding(name="processes", state="ok", found="unlimited")
    if left >= WANTED_PIDS:
        return Finding(name="processes", state="ok", found=f"{left:,} more may start")
    return Finding(
        name="processes",
        state="note",
        found=f"{left:,} more may start",
        advice=f"ulimit -u {WANTED_PIDS}, or raise pids.max of this control group",
    )


def _number(limit: int) -> str:
    return "unlimited" if limit == resource.RLIM_INFINITY else f"{limit:,}"


def _available_memory_gb() -> float:
    available = _memory_of_machine()
    for limit, used in (
        ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory.current"),
        (
            "/sys/fs/cgroup/memory/memory.limit_in_bytes",
            "/sys/fs/cgroup/memory/memory.usage_in_bytes",
        ),
    ):
        most, now = _read_number(Path(limit)), _read_number(Path(used))
        if most is not None and now is not None:
            available = min(available, most - now)
    return available / 1e9


def _memory_of_machine() -> int:
    for line in Path("/proc/meminfo").read_text().splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def _pids_left() -> int | None:
    """The tightest of the kernel's, the control group's and the user's limit."""
    running = sum(1 for entry in os.scandir("/proc") if entry.name.isdigit())
    limits = [
        _read_number(Path("/proc/sys/kernel/pid_max")),
        _read_number(Path("/proc/sys/kernel/threads-max")),
        _read_number(Path("/sys/fs/cgroup/pids.max")),
        _read_number(Path("/sys/fs/cgroup/pids/pids.max")),
    ]
    soft = resource.getrlimit(resource.RLIMIT_NPROC)[0]
    if soft != resource.RLIM_INFINITY and os.geteuid() != 0:  # root is not bound by it
        limits.append(soft)
    known = [limit for limit in limits if limit is not None]
    return max(min(known) - running, 0) if known else None


def _read_number(path: Path) -> int | None:
    try:
        text = path.read_text().strip()
    except OSError:
        return None
    return int(text) if text.isdigit() else None


def _existing(folder: Path) -> Path:
    folder = folder.absolute()
    while not folder.exists():
        folder = folder.parent
    return folder
