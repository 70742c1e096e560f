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

from headrace.engine.host import memory_bytes, processes_left
from headrace.engine.preflight import SPARE_FILES

State = Literal["ok", "lack", "note"]

OPEN_FILES_PER_EPISODE = 10
"""Of the sandbox that needs most, and a connection to the model."""
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
        memory((memory_bytes()[1] or 0) / 1e9),
        disk(shutil.disk_usage(_existing(folder)).free / 1e9, folder),
        open_files(soft, hard),
        pids(processes_left()),
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
    """Open files bound how many episodes can be live. A run raises what it needs of them."""
    if hard == resource.RLIM_INFINITY:
        return Finding(name="open files", state="ok", found=f"{_number(soft)}, unlimited for runs")
    live = max(hard - SPARE_FILES, 0) // OPEN_FILES_PER_EPISODE
    found = f"{_number(soft)}, at most {_number(hard)} for a run: about {live:,} live episodes"
    if hard >= WANTED_OPEN_FILES:
        return Finding(name="open files", state="ok", found=found)
    return Finding(
        name="open files", state="note", found=found, advice="raise nofile in limits.conf"
    )


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


def _existing(folder: Path) -> Path:
    folder = folder.absolute()
    while not folder.exists():
        folder = folder.parent
    return folder
