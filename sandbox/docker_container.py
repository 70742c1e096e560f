"""What a container of a sandbox is created with.

Rule: pure; from a `SandboxSpec` to the engine's JSON. Nothing of the host is mounted but the folder
of `docker_pipes`, nothing is logged by the engine (it would write every byte a command prints to
disk), the image's health check and volumes play no part, its entrypoint runs beside our first
process (`scripts.BESIDE`), and the container goes when its shell's stdin is closed: a driver that
is killed leaves nothing running.

A sandbox without a network is made past the engine's networks altogether (`NetworkDisabled`): it
has a network namespace with a loopback all the same, and starting it costs about half. The engine
then writes no `/etc/hosts`, so the first process does (`HOSTS`).
"""

from collections.abc import Mapping
from typing import Any

from headrace.sandbox.base import Limits, SandboxSpec

DROPPED = ["MKNOD", "AUDIT_WRITE", "SETPCAP"]
"""Of the engine's default capabilities: what no task needs. Packages install and `su` works."""

HOSTS = r"""[ -s /etc/hosts ] || printf '%s\n' '127.0.0.1 localhost' \
  '::1 localhost ip6-localhost ip6-loopback' 'fe00::0 ip6-localnet' 'ff00::0 ip6-mcastprefix' \
  'ff02::1 ip6-allnodes' 'ff02::2 ip6-allrouters' 2>/dev/null >/etc/hosts || :
"""
"""Names of the loopback, as the engine writes them. Run as root before anything of the task."""


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
        "NetworkDisabled": not spec.network,
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


def mounted(body: Mapping[str, Any], mount: Mapping[str, Any]) -> dict[str, Any]:
    """The body with a mount."""
    return {**body, "HostConfig": {**body["HostConfig"], "Mounts": [mount]}}


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
