"""The `namespace` provider keeps the contract of every provider."""

import os
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from headrace.aio import in_thread
from headrace.sandbox.cgroups import detect
from headrace.sandbox.conformance import SandboxConformance
from headrace.sandbox.leases import runtime_folder
from headrace.sandbox.namespace import NamespaceProvider

RUN = f"conformance{os.getpid()}"


@pytest.mark.namespace
class TestNamespace(SandboxConformance):
    """Leases, control groups and mounts of its run are gone when the sandbox is closed."""

    @pytest_asyncio.fixture
    async def provider(
        self, unavailable: dict[str, str | None]
    ) -> AsyncIterator[NamespaceProvider]:
        reason = unavailable["namespace"]
        if reason is not None:
            pytest.skip(f"namespace: {reason}")
        async with NamespaceProvider(run_id=RUN) as provider:
            yield provider

    async def leftovers(self, episode: str) -> list[str]:
        return await in_thread(_kept, episode) + await super().leftovers(episode)


def _kept(episode: str) -> list[str]:
    leases = (runtime_folder() / "leases").glob(f"headrace-{RUN}-*.json")
    found = [f"lease {path}" for path in leases if episode in path.read_text()]
    for folder in set(detect().parents.values()):
        found += [f"group {path}" for path in folder.glob(f"headrace-{RUN}-*")]
    mounts = Path("/proc/self/mounts").read_text().splitlines()
    return found + [f"mount {line}" for line in mounts if f" {runtime_folder()}/mnt" in line]
