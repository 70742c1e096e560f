"""One lease for all namespace sandboxes of a provider: a file once, not for each of them.

Rule: the lease is written before the first sandbox begins and dropped after the last one is gone,
when no control group of theirs is left. It names what the groups begin with; the name of each says
the rest, so that a sweep finds them without a file of their own.
"""

import asyncio
import re
from pathlib import Path

from headrace.aio import in_thread, run_shielded
from headrace.errors import SandboxError, boundary
from headrace.sandbox import leases
from headrace.sandbox.cgroups import Cgroups

_NAME_CHARS = 60


class SharedLease:
    """See the module. `hold` before a sandbox begins, `let_go` when it is gone."""

    def __init__(self, name: str, groups: Cgroups) -> None:
        self._name = name
        self._prefixes = tuple(str(parent / name) for parent in set(groups.parents.values()))
        self._owner = leases.this_process()
        self._turn = asyncio.Lock()
        self._holders = self._numbers = 0
        self._path: Path | None = None

    def name_for(self, episode: str) -> str:
        """A name for the groups of one more sandbox."""
        self._numbers += 1
        said = re.sub(r"[^A-Za-z0-9_.-]", "_", episode)[:_NAME_CHARS]
        return f"{self._name}-{self._numbers}-{said}"

    async def hold(self) -> None:
        """Raises `SandboxError` when it cannot be written; then nothing is held."""
        self._holders += 1
        try:
            async with self._turn:
                if self._path is None:
                    with boundary(SandboxError, f"the lease of {self._name}"):
                        await run_shielded(in_thread(self._take))
        except BaseException:
            self._holders -= 1
            raise

    async def let_go(self) -> None:
        self._holders -= 1
        if self._holders == 0:
            async with self._turn:
                if self._holders == 0 and self._path is not None:
                    await run_shielded(in_thread(self._drop))

    # --- blocking ---

    def _take(self) -> None:
        self._path = leases.take(
            self._name,
            leases.Lease(
                owner=self._owner,
                what=f"sandboxes of {self._name}",
                group_prefixes=self._prefixes,
            ),
        )

    def _drop(self) -> None:
        if self._path is not None and not leases.groups_like(f"{p}-" for p in self._prefixes):
            leases.drop(self._path)
            self._path = None
