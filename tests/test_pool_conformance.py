"""Sandboxes opened ahead by the pool keep the contract of every provider.

The whole suite on `namespace`; on `docker` the part in which one that was opened ahead could
differ: what it leaves behind.
"""

import os
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager
from pathlib import Path

import aiodocker
import pytest_asyncio

from headrace.aio import in_thread
from headrace.sandbox.base import Sandbox, SandboxSpec
from headrace.sandbox.cgroups import detect
from headrace.sandbox.conformance import SandboxConformance
from headrace.sandbox.conformance_walls import Close
from headrace.sandbox.docker import DockerProvider, socket_path
from headrace.sandbox.leases import runtime_folder
from headrace.sandbox.namespace import NamespaceProvider
from headrace.sandbox.pool import Pool

RUN = f"pool{os.getpid()}"


class Expecting(Pool):
    """Expects what it is asked for, so that every sandbox was opened ahead."""

    def open(self, spec: SandboxSpec) -> AbstractAsyncContextManager[Sandbox]:
        self.expect([spec])
        return super().open(spec)


class TestNamespaceAhead(SandboxConformance):
    @pytest_asyncio.fixture
    async def provider(self, only_namespace: str) -> AsyncIterator[Pool]:
        async with NamespaceProvider(run_id=RUN) as inner, Expecting(inner, most=1) as pool:
            yield pool
            assert pool.misses == 0 or pool.hits == 0

    async def leftovers(self, episode: str) -> list[str]:
        return await in_thread(_kept) + await super().leftovers(episode)


class TestDockerAhead(Close):
    @pytest_asyncio.fixture
    async def provider(self, only_docker: str) -> AsyncIterator[Pool]:
        async with DockerProvider(run_id=RUN) as inner, Expecting(inner, most=1) as pool:
            yield pool
            assert pool.misses == 0

    async def leftovers(self, episode: str) -> list[str]:
        async with aiodocker.Docker(url=f"unix://{socket_path()}") as docker:
            labels = {"label": [f"dev.headrace.run={RUN}"]}
            found = await docker.containers.list(all=True, filters=labels)
        return [str(one["Names"]) for one in found] + await super().leftovers(episode)


def _kept() -> list[str]:
    """Control groups and mounts. The lease is the provider's, for all of its sandboxes."""
    found = []
    for folder in set(detect().parents.values()):
        found += [f"group {path}" for path in folder.glob(f"headrace-{RUN}-*")]
    mounts = Path("/proc/self/mounts").read_text().splitlines()
    return found + [f"mount {line}" for line in mounts if f" {runtime_folder()}/mnt" in line]
