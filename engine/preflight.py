"""Whether the machine holds the live episodes that are asked for; said before anything starts.

Rule: limits of this process are raised where that is allowed (open files, and as root the number
of processes of the machine). A fixed number that still does not fit is reduced, and a sentence
says from what to what and why. What is estimated is idle sandboxes: what tasks need inside is
theirs to say, and `admission` watches it while the run goes on.
"""

import os
import resource
from collections.abc import Callable
from pathlib import Path

from headrace.engine.host import PROC, memory_bytes, processes_left, read_number
from headrace.sandbox.base import Footprint
from headrace.types import Record

SPARE_FILES = 256
"""Of the process itself: shards, logs, libraries, the model server's connections that are kept."""
FILES_PER_CALL = 1
SPARE_PROCESSES = 512
SPARE_MEMORY = 0.1
ENGINE_BYTES = 256 << 10
"""Of the engine, for one live episode of some ten thousand tokens."""
MOST_PROCESSES = 4_194_304
"""The kernel's own bound on `pid_max`."""


class Room(Record, frozen=True, kw_only=True):
    """What is left. None: no limit is known."""

    memory_bytes: int | None = None
    processes: int | None = None
    files: int | None = None


class Fit(Record, frozen=True, kw_only=True):
    """How many live episodes the machine holds, and what to tell."""

    live: int
    notes: tuple[str, ...] = ()


def fit(live: int, footprint: Footprint, room: Room) -> Fit:
    """Pure. At least 1, whatever is left."""
    need = (
        ("memory", room.memory_bytes, footprint.memory_bytes + ENGINE_BYTES, _megabytes),
        ("processes", room.processes, footprint.processes, _number),
        ("open files", room.files, footprint.files + FILES_PER_CALL, _number),
    )
    fits, notes = live, []
    for what, left, each, show in need:
        if left is None or each == 0 or left // each >= live:
            continue
        fits = min(fits, max(1, left // each))
        notes.append(
            f"{live} live episodes need about {show(live * each, what)}, "
            f"found {show(left, what)} to spare: at most {max(1, left // each)} are live"
        )
    return Fit(live=fits, notes=tuple(notes))


def prepare(live: int, footprint: Footprint, *, exact: bool = True) -> Fit:
    """`fit` on this machine, after limits have been raised. Blocking for some milliseconds.

    Not `exact`: so many may come to be live, so nothing of the machine itself is changed for it.
    """
    raised = [raise_files(live * (footprint.files + FILES_PER_CALL) + SPARE_FILES)]
    if exact:
        raised.append(raise_processes(live * footprint.processes + SPARE_PROCESSES))
    found = fit(live, footprint, room())
    return Fit(live=found.live, notes=(*filter(None, raised), *found.notes))


def room() -> Room:
    """What this process may still take."""
    total, free = memory_bytes()
    processes = processes_left()
    soft = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    return Room(
        memory_bytes=None if total is None or free is None else int(free - SPARE_MEMORY * total),
        processes=None if processes is None else max(0, processes - SPARE_PROCESSES),
        files=None if soft == resource.RLIM_INFINITY else max(0, soft - SPARE_FILES),
    )


def raise_files(wanted: int) -> str | None:
    """More open files for this process, if it has too few and may have more."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY or soft >= wanted:
        return None
    most = hard
    if os.geteuid() == 0 and hard < wanted:
        most = min(wanted, read_number(PROC / "sys/fs/nr_open") or hard)
    target = wanted if most == resource.RLIM_INFINITY else min(wanted, most)
    if target <= soft or not _set_files(target, max(hard, target)):
        return None
    return f"open files of this process raised from {soft} to {target}"


def raise_processes(
    wanted: int,
    file: Path = PROC / "sys/kernel/pid_max",
    left: Callable[[], int | None] = processes_left,
) -> str | None:
    """More processes for the machine, if too few are left and we are root."""
    before, spare = read_number(file), left()
    if before is None or spare is None or spare >= wanted or os.geteuid() != 0:
        return None
    target = min(MOST_PROCESSES, before + wanted)
    try:
        file.write_text(f"{target}\n")
    except OSError:
        return None
    return f"kernel.pid_max raised from {before} to {target}: too few processes were left"


def _set_files(soft: int, hard: int) -> bool:
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    except (OSError, ValueError):
        return False
    return True


def _megabytes(n: int, what: str) -> str:
    return f"{n >> 20} MB of {what}"


def _number(n: int, what: str) -> str:
    return f"{n} {what}"
