"""Leases: what a live driver owns outside its own memory, written down before it exists.

Rule: a lease names its owner by process id and start time, so that a reused id is not mistaken for
it; `sweep` removes what leases of dead owners name and touches nothing a live owner holds. One
file per lease, in a runtime folder of this user. Blocking: call it in a thread.
"""

import os
import shutil
import signal
import tempfile
import time
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

import msgspec

from headrace.sandbox import cgroups

VARIABLE = "HEADRACE_LEASE"
"""In the environment of what starts a driver's sandboxes: the name of their lease."""
_END_S = 5.0


class Owner(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A process, told apart from a later one with the same id."""

    pid: int
    started: int
    """Field 22 of `/proc/PID/stat`: ticks since boot."""


class Lease(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What there is to remove when the owner is gone."""

    owner: Owner
    what: str
    """For people: `sandbox of EPISODE`."""
    processes: tuple[Owner, ...] = ()
    groups: tuple[str, ...] = ()
    """Folders of control groups."""
    group_prefixes: tuple[str, ...] = ()
    """What such folders begin with, where their names go on with `-NUMBER-` and an episode."""
    folders: tuple[str, ...] = ()


def runtime_folder() -> Path:
    """The folder of this user's leases and mount points, made if needed."""
    base = os.environ.get("XDG_RUNTIME_DIR")
    if base and os.path.isdir(base):
        folder = Path(base) / "headrace"
    elif os.geteuid() == 0 and os.path.isdir("/run"):
        folder = Path("/run/headrace")
    else:
        folder = Path(tempfile.gettempdir()) / f"headrace-{os.geteuid()}"
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    if folder.stat().st_uid != os.geteuid():
        raise PermissionError(f"{folder} belongs to somebody else; set XDG_RUNTIME_DIR")
    (folder / "leases").mkdir(exist_ok=True)
    (folder / "mnt").mkdir(exist_ok=True)
    return folder


def owner_of(pid: int) -> Owner | None:
    """The process with this id, or None if there is none (a zombie is none)."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return None
    fields = stat.rpartition(") ")[2].split()
    return None if fields[0] in "ZXx" else Owner(pid, int(fields[19]))


def this_process() -> Owner:
    owner = owner_of(os.getpid())
    assert owner is not None
    return owner


def take(name: str, lease: Lease) -> Path:
    """Write a lease, or replace the one of that name; the returned file is what `drop` takes."""
    folder = runtime_folder() / "leases"
    path = folder / f"{name}.json"
    temporary = folder / f".{name}.tmp"
    temporary.write_bytes(msgspec.json.encode(lease))
    temporary.replace(path)
    return path


def drop(path: Path) -> None:
    """The thing is gone; so is its lease."""
    path.unlink(missing_ok=True)


def sweep() -> list[str]:
    """Remove what dead owners left; a line for each lease."""
    lines = []
    for path in sorted((runtime_folder() / "leases").glob("*.json")):
        try:
            lease = msgspec.json.decode(path.read_bytes(), type=Lease)
        except FileNotFoundError:
            continue
        except msgspec.DecodeError:
            path.unlink(missing_ok=True)
            lines.append(f"unreadable lease {path.name}")
            continue
        if owner_of(lease.owner.pid) == lease.owner:
            continue
        found = _remove(lease) or [lease.what]
        if not _is_left(lease):  # else the next sweep tries again
            drop(path)
        lines += [f"{what} (its driver, process {lease.owner.pid}, is gone)" for what in found]
    return lines


def _is_left(lease: Lease) -> bool:
    """Whether a control group of it is still there."""
    return any(map(os.path.exists, lease.groups)) or bool(groups_like(_begins(lease)))


def _begins(lease: Lease) -> tuple[str, ...]:
    return tuple(f"{prefix}-" for prefix in lease.group_prefixes)


def groups_like(prefixes: Iterable[str]) -> list[Path]:
    """The folders that begin so."""
    found = []
    for prefix in map(Path, prefixes):
        with suppress(OSError):
            found += [path for path in prefix.parent.iterdir() if path.name.startswith(prefix.name)]
    return found


def _remove(lease: Lease) -> list[str]:
    """What was found by a prefix, for people."""
    for name in {Path(prefix).name for prefix in lease.group_prefixes}:
        _end_starters(name)
    for process in lease.processes:
        if owner_of(process.pid) == process:
            kill_tree(process.pid)
    prefixes = _begins(lease)
    found = groups_like(prefixes)
    groups = (*map(Path, lease.groups), *found)
    for group in groups:
        with suppress(OSError):
            for pid in (group / "cgroup.procs").read_text().split():
                os.kill(int(pid), signal.SIGKILL)
    cgroups.remove(groups)
    for folder in lease.folders:
        shutil.rmtree(folder, ignore_errors=True)
    lengths = {Path(prefix).name: len(Path(prefix).name) for prefix in prefixes}
    names = {
        path.name[length:]
        for path in found
        for name, length in lengths.items()
        if path.name.startswith(name)
    }
    return sorted(f"sandbox of {name.partition('-')[2]}" for name in names)


def _end_starters(name: str) -> None:
    """Kill what still starts sandboxes under a lease, and those it has just begun.

    It may not have heard yet that its driver is dead, and would make groups after we looked.
    """
    deadline = time.monotonic() + _END_S
    while (pids := _with_variable(f"{VARIABLE}={name}")) and time.monotonic() < deadline:
        for pid in pids:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.01)


def _with_variable(variable: str) -> list[int]:
    wanted = variable.encode()
    found = []
    for entry in Path("/proc").iterdir():
        with suppress(OSError):
            if entry.name.isdigit() and wanted in (entry / "environ").read_bytes().split(b"\0"):
                found.append(int(entry.name))
    return found


def kill_tree(leader: int) -> None:
    """Kill the leader of a sandbox and its children.

    The leader is stopped first: its child is the first process of a namespace, whose end is the
    end of all in it, and a child made a moment later would escape.
    """
    with suppress(ProcessLookupError):
        os.kill(leader, signal.SIGSTOP)
        for child in children_of(leader):
            with suppress(ProcessLookupError):
                os.kill(child, signal.SIGKILL)
        os.kill(leader, signal.SIGKILL)


def children_of(pid: int) -> list[int]:
    """Process ids of the children of a single-threaded process."""
    try:
        return [
            int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        ]
    except OSError:
        return []


def number_inside(pid: int) -> int:
    """What a process is called in its own namespace; 0 for one that is gone or a zombie."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return 0
    fields = dict(line.split(":", 1) for line in lines)
    return 0 if fields["State"].split()[0] in "ZX" else int(fields["NSpid"].split()[-1])
