"""Whether the engine can limit what a container writes.

Rule: asked once, and never pretended: where it cannot, the limit is not set, and `doctor` says so.
The size of a container's layer can be limited on btrfs and zfs, and on overlay2 over an xfs with
project quotas; whether an xfs has them shows only when it is tried.
"""

import asyncio
import secrets
from collections.abc import Mapping
from typing import Any

from headrace.errors import SandboxError
from headrace.sandbox.base import SandboxSpec
from headrace.sandbox.docker_engine import EngineClient

INFO_S = 30.0
TRY_S = 60.0


def can_limit(info: Mapping[str, Any]) -> bool | None:
    """From the engine's `info`; None: it must be tried. Pure."""
    driver = info.get("Driver")
    if driver in ("btrfs", "zfs"):
        return True
    status = dict(info.get("DriverStatus") or ())
    if driver == "overlay2" and status.get("Backing Filesystem") == "xfs":
        return None
    return False


async def info_of(engine: EngineClient) -> Mapping[str, Any]:
    """What the engine says of itself."""
    async with engine.call("docker info", timeout_s=INFO_S) as docker:
        info: Mapping[str, Any] = await docker.system.info()
    return info


class Storage:
    """What one engine can do."""

    def __init__(self, engine: EngineClient) -> None:
        self._engine = engine
        self._asked = asyncio.Lock()
        self._can: bool | None = None

    async def enforced(self, spec: SandboxSpec) -> bool:
        """Whether the limit of `spec` is to be set: it has one, and the engine can."""
        if spec.limits.storage_mb is None:
            return False
        async with self._asked:
            if self._can is None:
                self._can = can_limit(await info_of(self._engine))
            if self._can is None:
                self._can = await self._try(spec.image)
        return self._can

    async def _try(self, image: str) -> bool:
        """Create a container with a size, start nothing, remove it."""
        name = f"headrace-probe-{secrets.token_hex(4)}"
        body: dict[str, Any] = {"Image": image, "HostConfig": {"StorageOpt": {"size": "64m"}}}
        try:
            async with self._engine.call("try a storage limit", timeout_s=TRY_S) as docker:
                container = await docker.containers.create(body, name=name)
                await container.delete(force=True)
        except SandboxError:
            return False
        return True
