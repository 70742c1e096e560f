"""Limits of a sandbox through control groups, version 1 or 2, where we may set them.

Rule: what cannot be limited here is said (`Cgroups.lacks`), never pretended. Groups are made below
our own one (version 1) or below `/headrace` (version 2, root only) and named by the caller, so
that a sweep finds them again. Blocking, but only on the kernel's own files.
"""

import os
import signal
import time
from collections.abc import Collection, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from headrace.errors import SandboxError
from headrace.sandbox.base import Limits

_CONTROLLERS = ("pids", "memory", "cpu")
_PERIOD_US = 100_000
_REMOVE_S = 5.0


Settings = list[tuple[str, str]]
"""Names of files of a group, and what goes into them."""


@dataclass(frozen=True)
class Cgroups:
    """Where groups can be made: a parent folder by controller."""

    version: int
    parents: Mapping[str, Path]

    @property
    def lacks(self) -> tuple[str, ...]:
        """Controllers that cannot be set here."""
        return tuple(name for name in _CONTROLLERS if name not in self.parents)

    def plan(self, name: str, limits: Limits, *, outer: int = 0) -> dict[Path, Settings]:
        """The groups of one sandbox: what is written into which files of each, in order.

        `outer` processes of the sandbox are not seen inside: they come on top of `limits.pids`.
        """
        out: dict[Path, Settings] = {}
        for controller, parent in self.parents.items():
            out.setdefault(parent / name, []).extend(
                _settings(self.version, controller, limits, outer)
            )
        return out


def create(planned: Mapping[Path, Settings]) -> None:
    """Make the groups of one sandbox; the caller puts its first process into each."""
    made: list[Path] = []
    try:
        for group, settings in planned.items():
            group.mkdir()
            made.append(group)
            for file, value in settings:
                (group / file).write_text(value)
    except OSError as e:
        remove(made)
        raise SandboxError(f"control group {group}: {e.strerror or e}") from e


class Processes:
    """The process limit of one sandbox's group. The kernel's own files: never slow."""

    def __init__(self, group: Path, limit: int) -> None:
        self._group = group
        self.limit = self._most = limit
        self._current = str(group / "pids.current")

    def room(self) -> int:
        """How many more can start."""
        fd = os.open(self._current, os.O_RDONLY | os.O_CLOEXEC)  # before every command: no more
        try:
            return self._most - int(os.read(fd, 32))
        finally:
            os.close(fd)

    def lend(self, more: int) -> None:
        """`more` than there are now, or than the limit allows."""
        now = max(int(self._read("pids.current")), self.limit)
        self._most = now + more
        (self._group / "pids.max").write_text(str(self._most))

    def give_back(self) -> None:
        self._most = self.limit
        (self._group / "pids.max").write_text(str(self.limit))

    def kill_all_but(self, spared: Collection[int]) -> None:
        """SIGKILL every process of the group; none can be started meanwhile, nor after."""
        (self._group / "pids.max").write_text("0")
        deadline = time.monotonic() + _REMOVE_S
        while time.monotonic() < deadline:
            pids = {int(pid) for pid in self._read("cgroup.procs").split()}.difference(spared)
            if not pids:
                return
            for pid in pids:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            time.sleep(0.005)

    def _read(self, file: str) -> str:
        return (self._group / file).read_text().strip()


def processes_of(planned: Mapping[Path, Settings]) -> Processes | None:
    """Of the groups of a sandbox, the one that limits processes; None without such a limit."""
    for group, settings in planned.items():
        for file, value in settings:
            if file == "pids.max":
                return Processes(group, int(value))
    return None


def remove(groups: Iterable[Path]) -> None:
    """Remove groups, waiting a moment for their last process to end. Idempotent."""
    deadline = time.monotonic() + _REMOVE_S
    for group in groups:
        while True:
            try:
                group.rmdir()
            except FileNotFoundError:
                break
            except OSError:
                if time.monotonic() > deadline:
                    break  # the lease stays, so that a sweep tries again
                time.sleep(0.005)
            else:
                break


def detect(root: Path = Path("/sys/fs/cgroup"), proc: Path = Path("/proc/self")) -> Cgroups:
    """What this process may set. An empty `parents` means: nothing."""
    own = _own_groups(proc)
    if (root / "cgroup.controllers").exists():
        return Cgroups(2, _unified(root))
    parents = {}
    for controller in _CONTROLLERS:
        mounted = root / controller
        # Where our own path is not visible (a container's mount), the mount's root is ours.
        inside = mounted / own.get(controller, "").lstrip("/")
        folder = inside if inside.is_dir() else mounted
        if folder.is_dir() and os.access(folder, os.W_OK) and (folder / "cgroup.procs").exists():
            parents[controller] = folder
    return Cgroups(1, parents)


def _unified(root: Path) -> dict[str, Path]:
    folder = root / "headrace"
    try:
        _enable(root)
        folder.mkdir(exist_ok=True)
        _enable(folder)
        enabled = (folder / "cgroup.subtree_control").read_text().split()
    except OSError:
        return {}
    return {name: folder for name in _CONTROLLERS if name in enabled}


def _enable(folder: Path) -> None:
    offered = (folder / "cgroup.controllers").read_text().split()
    enabled = (folder / "cgroup.subtree_control").read_text().split()
    for name in _CONTROLLERS:
        if name in offered and name not in enabled:
            (folder / "cgroup.subtree_control").write_text(f"+{name}")


def _own_groups(proc: Path) -> dict[str, str]:
    own = {}
    try:
        lines = (proc / "cgroup").read_text().splitlines()
    except OSError:
        return {}
    for line in lines:
        _, controllers, path = line.split(":", 2)
        for controller in controllers.split(","):
            own[controller] = path
    return own


def _settings(version: int, controller: str, limits: Limits, outer: int) -> list[tuple[str, str]]:
    if controller == "pids" and limits.pids is not None:
        return [("pids.max", str(limits.pids + outer))]
    if controller == "memory" and limits.memory_mb is not None:
        memory = str(limits.memory_mb << 20)
        if version == 2:
            return [("memory.max", memory), ("memory.oom.group", "0")]
        return [("memory.limit_in_bytes", memory)]
    if controller == "cpu" and limits.cpus is not None:
        quota = max(1000, round(limits.cpus * _PERIOD_US))
        if version == 2:
            return [("cpu.max", f"{quota} {_PERIOD_US}")]
        return [("cpu.cfs_period_us", str(_PERIOD_US)), ("cpu.cfs_quota_us", str(quota))]
    return []
