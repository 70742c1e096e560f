"""What a run holds at one moment, seen from outside: `/proc`, leases, groups, containers, status.

Rule: read only. It asks the run nothing, so looking does not change what is looked at. Blocking.
"""

import asyncio
import os
import time
from collections import defaultdict
from contextlib import suppress
from pathlib import Path

import aiodocker
import aiohttp
import msgspec

from headrace.engine import status
from headrace.engine.scheduler import LIVE, Stage
from headrace.sandbox import cgroups
from headrace.sandbox.docker_sweep import OWNER
from headrace.sandbox.leases import Lease, Owner, owner_of, runtime_folder

PAGE_MB = os.sysconf("SC_PAGE_SIZE") / 1e6


class Sample(msgspec.Struct, frozen=True, kw_only=True):
    """A run at one moment."""

    at_s: float
    finished: int
    live: int
    """As the run itself says, what it has open ahead included."""
    lag_p99_s: float
    """Over the second before."""
    rss_mb: float
    helper_mb: float
    """Of its children that are Python: what starts sandboxes."""
    files: int
    threads: int
    processes: int
    """Of the run's children, theirs and so on, those that still live."""
    sandboxes: int
    """Containers, or control groups in the hierarchy that counts processes."""
    leases: int
    """One for all namespace sandboxes, or for all pipes into containers."""
    scratch: int
    """Entries of its folder for temporary files."""

    def line(self) -> str:
        return (
            f"{self.at_s:5.0f} s {self.finished:7} finished {self.live:4} live "
            f"{self.rss_mb:7.1f} MB, helper {self.helper_mb:5.1f} MB, {self.files:4} files, "
            f"{self.threads:3} threads, {self.processes:4} processes, "
            f"{self.sandboxes:4} sandboxes, {self.leases:2} leases, {self.scratch:3} scratch, "
            f"lag {1000 * self.lag_p99_s:4.0f} ms, load {os.getloadavg()[0]:.0f}"
        )


class Look:
    """Looks at one run, a child of this process, again and again."""

    def __init__(self, pid: int, provider: str, run: Path, scratch: Path) -> None:
        owner = owner_of(pid)
        if owner is None:
            raise SystemExit("the run ended at once")
        self._owner = owner
        self._provider = provider
        self._run = run
        self._scratch = scratch
        self._begun = time.monotonic()
        self._groups = cgroups.detect().parents.get("pids")
        self._seen: set[Owner] = set()
        """Descendants, kept when their parent is gone and they are not."""

    def take(self) -> Sample:
        pid = self._owner.pid
        children = _children()
        self._seen.update(filter(None, map(owner_of, _below(pid, children))))
        self._seen = {one for one in self._seen if owner_of(one.pid) == one}
        told = [one for one in status.read(self._run) if one.pid == pid]
        return Sample(
            at_s=time.monotonic() - self._begun,
            finished=sum(one.finished for one in told),
            live=sum(map(_live, told)),
            lag_p99_s=max((one.lag_p99_s for one in told), default=0.0),
            rss_mb=_rss_mb(pid),
            helper_mb=sum(_rss_mb(child) for child in children[pid] if _is_python(child)),
            files=_entries(Path(f"/proc/{pid}/fd")),
            threads=_entries(Path(f"/proc/{pid}/task")),
            processes=len(self._seen),
            sandboxes=self._named() if self._provider == "namespace" else self._containers(),
            leases=self._leases(),
            scratch=_entries(self._scratch),
        )

    def _named(self) -> int:
        if self._groups is None:
            raise SystemExit("no control group can be made here: nothing says what is left")
        return len(list(self._groups.glob(f"headrace-{self._run.name}-*")))

    def _leases(self) -> int:
        count = 0
        for path in (runtime_folder() / "leases").glob("*.json"):
            with suppress(OSError, msgspec.DecodeError):  # gone meanwhile
                lease = msgspec.json.decode(path.read_bytes(), type=Lease)
                count += lease.owner == self._owner
        return count

    def _containers(self) -> int:
        label = f"{OWNER}={self._owner.pid}:{self._owner.started}"

        async def count() -> int:
            address = os.environ.get("DOCKER_HOST", "unix:///var/run/docker.sock")
            connector = aiohttp.UnixConnector(address.removeprefix("unix://"))
            async with (
                asyncio.timeout(60),
                connector,
                aiodocker.Docker(url="unix://localhost", connector=connector) as docker,
            ):
                filters = f'{{"label":["{label}"]}}'
                return len(await docker.containers.list(all=1, filters=filters))

        return asyncio.run(count())


def _live(told: status.Status) -> int:
    return sum(n for stage, n in told.stages.items() if Stage(stage) in LIVE) + told.warm


def _children() -> dict[int, list[int]]:
    """Every process of the machine by its parent."""
    found: dict[int, list[int]] = defaultdict(list)
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with suppress(OSError):
                fields = (entry / "stat").read_text().rpartition(") ")[2].split()
                found[int(fields[1])].append(int(entry.name))
    return found


def _below(pid: int, children: dict[int, list[int]]) -> list[int]:
    found = list(children.get(pid, ()))
    for one in found:
        found.extend(children.get(one, ()))
    return found


def _rss_mb(pid: int) -> float:
    with suppress(OSError):
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * PAGE_MB
    return 0.0


def _is_python(pid: int) -> bool:
    with suppress(OSError):
        return Path(f"/proc/{pid}/comm").read_text().startswith("python")
    return False


def _entries(folder: Path) -> int:
    with suppress(OSError):
        return len(os.listdir(folder))
    return 0
