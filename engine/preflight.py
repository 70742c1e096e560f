"""Whether the machine holds the live episodes that are asked for; said before anything starts.

Rule: limits of this process are raised where that is allowed (open files, and as root the number
of processes of the machine). A fixed number that still does not fit is reduced, and a sentence
says from what to what and why; sandboxes that are only opened ahead go first. What is estimated is
idle sandboxes: what tasks need inside is theirs to say, and `admission` watches it while the run
goes on.
"""

import os
import resource
from collections.abc import Callable
from pathlib import Path

import msgspec

from headrace.engine.host import PROC, memory_bytes, processes_left, read_number, running
from headrace.errors import UsageError
from headrace.sandbox.base import Footprint
from headrace.types import Record

SPARE_FILES = 256
"""Of the process itself: shards, logs, libraries, the model server's connections that are kept."""
FILES_PER_CALL = 1
SPARE_PROCESSES = 512
"""Of what runs in the sandboxes, the verifiers and other programs. Of a limit that leaves less
than twice this, or twice `SPARE_FILES`, half is spared."""
LEAST_PROCESSES = 24
"""One sandbox, its verifier, and the threads of this process."""
LEAST_FILES = 64
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
    warm: int = 0
    """Sandboxes that may be open ahead of them."""
    notes: tuple[str, ...] = ()


def fit(live: int, footprint: Footprint, room: Room, *, warm: int = 0, held: int = 0) -> Fit:
    """Pure. At least one live episode, whatever is left.

    `warm`: sandboxes that are to be open ahead of the live episodes. `held`: sandboxes that are
    open now, so that what they take is not in `room` and need not be.
    """
    need = (
        ("memory", room.memory_bytes, footprint.memory_bytes + ENGINE_BYTES, _megabytes),
        ("processes", room.processes, footprint.processes, _number),
        ("open files", room.files, footprint.files + FILES_PER_CALL, _number),
    )
    wanted = live + warm
    most, notes = wanted, []
    for what, left, each, show in need:
        if left is None or each == 0 or left // each + held >= wanted:
            continue
        fits = max(1, left // each + held)
        most = min(most, fits)
        notes.append(
            f"{_wanted(live, warm)} need about {show(wanted * each, what)}, "
            f"found {show(left + held * each, what)} for them: {_granted(fits, live, warm)}"
        )
    return Fit(live=min(live, most), warm=max(0, most - live), notes=tuple(notes))


def prepare(
    live: int,
    footprint: Footprint,
    *,
    warm: int = 0,
    held: int = 0,
    exact: bool = True,
    processes: int = 1,
) -> Fit:
    """`fit` on this machine, after limits have been raised. Blocking for some milliseconds.

    Not `exact`: so many may come to be live, so nothing of the machine itself is changed for it.
    `processes`: engine processes that share them, each with open files of its own.
    """
    wanted = live + warm
    raised = [raise_files(files_of(-(-wanted // processes), footprint))]
    if exact:
        more = max(0, wanted - held)
        raised.append(raise_processes(more * footprint.processes + SPARE_PROCESSES))
    found = fit(live, footprint, room(processes), warm=warm, held=held)
    return msgspec.structs.replace(found, notes=(*filter(None, raised), *found.notes))


def files_of(sandboxes: int, footprint: Footprint) -> int:
    """Open files of one process that has so many."""
    return sandboxes * (footprint.files + FILES_PER_CALL) + SPARE_FILES


def check() -> None:
    """Raises `UsageError` where not even one episode can run. Blocking for some milliseconds."""
    raise_files(SPARE_FILES)
    soft = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    files = None if soft == resource.RLIM_INFINITY else soft - len(os.listdir(PROC / "self/fd"))
    raise_processes(LEAST_PROCESSES)
    for left, least, what, limit in (
        (files, LEAST_FILES, "open files", "ulimit -n"),
        (processes_left(), LEAST_PROCESSES, "processes", "ulimit -u, pids.max or kernel.pid_max"),
    ):
        if left is not None and left < least:
            raise UsageError(
                f"expected room for {least} more {what}, found {left}: raise the limit ({limit}), "
                "or end other programs"
            )


def room(engines: int = 1) -> Room:
    """What this process may still take, or so many that have its limits."""
    total, free = memory_bytes()
    processes = processes_left()
    soft = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    return Room(
        memory_bytes=None if total is None or free is None else int(free - SPARE_MEMORY * total),
        processes=None if processes is None else _without(SPARE_PROCESSES, processes),
        files=None if soft == resource.RLIM_INFINITY else engines * _without(SPARE_FILES, soft),
    )


def _without(spare: int, left: int) -> int:
    return left - min(spare, left // 2)


def raise_files(wanted: int) -> str | None:
    """More open files for this process, if it has too few and may have more."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY or soft >= wanted:
        return None
    beyond = min(wanted, read_number(PROC / "sys/fs/nr_open") or hard)
    for most in (beyond, min(wanted, hard)):  # root may go beyond, but not in every container
        if most > soft and _set_files(most, max(most, hard)):
            return f"open files of this process raised from {soft} to {most}"
    return None


def raise_processes(
    wanted: int,
    file: Path = PROC / "sys/kernel/pid_max",
    taken: Callable[[], int] = running,
) -> str | None:
    """A higher `pid_max`, if that is what leaves too few processes and we are root."""
    before = read_number(file)
    if before is None or before - taken() >= wanted or os.geteuid() != 0:
        return None
    target = min(MOST_PROCESSES, taken() + wanted)
    if target <= before:
        return None
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


def _wanted(live: int, warm: int) -> str:
    return f"{live} live episodes" + (f" and {warm} sandboxes ahead of them" if warm else "")


def _granted(fits: int, live: int, warm: int) -> str:
    ahead = f", {max(0, fits - live)} ahead" if warm else ""
    return f"at most {min(live, fits)} are live{ahead}"


def _megabytes(n: int, what: str) -> str:
    return f"{n >> 20} MB of {what}"


def _number(n: int, what: str) -> str:
    return f"{n} {what}"
