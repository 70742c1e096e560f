"""What a container of a sandbox is created with.

Rule: pure; from a `SandboxSpec` to the engine's JSON. Nothing of the host is mounted, nothing is
logged by the engine (it would write every byte a command prints to disk), the image's health check
and volumes play no part, its entrypoint runs beside our first process (`scripts.BESIDE`), and the
container goes when its shell's stdin is closed: a driver that is killed leaves nothing running.
"""

from collections.abc import Mapping
from typing import Any

from headrace.sandbox.base import Limits, SandboxSpec

DROPPED = ["MKNOD", "AUDIT_WRITE", "SETPCAP"]
"""Of the engine's default capabilities: what no task needs. Packages install and `su` works."""


def config(
    spec: SandboxSpec, *, command: list[str], labels: Mapping[str, str], storage: bool = False
) -> dict[str, Any]:
    """The body of the engine's create call. `storage`: the engine can limit what is written."""
    return {
        "Image": spec.image,
        "Entrypoint": command,
        "Cmd": [],
        "User": "0",
        "Env": [f"{name}={value}" for name, value in spec.env.items()],
        "Labels": dict(labels),
        "OpenStdin": True,
        "StdinOnce": True,
        "AttachStdin": True,
        "AttachStdout": True,
        "AttachStderr": True,
        "Tty": False,
        "Healthcheck": {"Test": ["NONE"]},
        **({"WorkingDir": spec.workdir} if spec.workdir else {}),
        "HostConfig": {
            "NetworkMode": "bridge" if spec.network else "none",
            "LogConfig": {"Type": "none"},
            "AutoRemove": True,
            "CapDrop": DROPPED if spec.network else [*DROPPED, "NET_RAW"],
            **limits(spec.limits),
            **({"StorageOpt": {"size": f"{spec.limits.storage_mb}m"}} if storage else {}),
        },
    }


def limits(of: Limits) -> dict[str, Any]:
    """Limits in the engine's words; what is None is left to the engine: no limit."""
    out: dict[str, Any] = {}
    if of.cpus is not None:
        out["NanoCpus"] = round(of.cpus * 1e9)
    if of.memory_mb is not None:
        out["Memory"] = out["MemorySwap"] = of.memory_mb << 20
    if of.pids is not None:
        out["PidsLimit"] = of.pids
    return out
