"""The task's compose file as `docker compose config` gives it: what it may ask for.

Rule: pure. Only keys that are known here pass; anything else is refused by its name, so that a
later version of the format opens nothing. Nothing of the host is reached: no path outside the
task's folder, no device, no namespace or network of the host, no program run beside the engine.
`compose_project` turns an accepted document into an episode's; `compose_docker` runs it.
"""

import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from headrace.sandbox.scripts import KEEP_ALIVE
from headrace.types import ComposeFile, EnvironmentRecipe

Document = Mapping[str, Any]

HARBOR_SERVICE = "main"

CONTAINER = "headrace-container-placeholder-5c1d"
"""Stands for the name of the agent's container, and of the project: every episode has its own."""
IMAGE = "headrace-image-placeholder-5c1d"
"""Stands for the image of the agent's service."""
PREFIX = "headrace-prefix-placeholder-5c1d"
LOGS = "/headrace-logs-placeholder-5c1d/"
"""Stands for folders of a harness's host; each becomes a volume of the episode."""

_SERVICE_KEYS = frozenset(
    "annotations attach build cap_add cap_drop command configs container_name cpus cpu_count"
    " cpu_percent cpu_period cpu_quota cpu_shares cpuset depends_on deploy develop dns dns_opt"
    " dns_search domainname entrypoint environment env_file expose extra_hosts group_add"
    " healthcheck hostname image init ipc label_file labels links logging mac_address mem_limit"
    " mem_reservation mem_swappiness memswap_limit network_mode networks oom_score_adj pid"
    " pids_limit platform ports post_start pre_stop privileged profiles pull_policy read_only"
    " restart scale secrets security_opt shm_size stdin_open stop_grace_period stop_signal"
    " sysctls tmpfs tty ulimits user uts volumes volumes_from working_dir".split()
)
_TOP_KEYS = frozenset(("name", "version", "services", "networks", "volumes", "secrets", "configs"))
_BUILD_KEYS = frozenset(
    "context dockerfile args target labels cache_from cache_to no_cache pull shm_size tags"
    " platforms extra_hosts network isolation provenance sbom".split()
)
_CAPABILITIES = frozenset(
    "AUDIT_WRITE CHOWN DAC_OVERRIDE FOWNER FSETID IPC_LOCK KILL MKNOD NET_ADMIN NET_BIND_SERVICE"
    " NET_RAW SETFCAP SETGID SETPCAP SETUID SYS_CHROOT SYS_NICE SYS_PTRACE".split()
)
_SECURITY = "no-new-privileges"
_TMPFS_FLAGS = frozenset(
    "size mode uid gid nr_inodes nr_blocks ro rw exec noexec suid nosuid dev nodev noatime".split()
)
_OWN_NAMESPACES = {
    "network_mode": ("none", "bridge", "default"),
    "pid": (),
    "ipc": ("none", "private", "shareable"),
    "uts": (),
}
"""Any other name but `service:` is the host's, or a container's or network's of somebody else."""
MAX_SERVICES = 100


def variables(recipe: EnvironmentRecipe) -> dict[str, str]:
    """What a compose file of either harness may interpolate; never the host's environment."""
    assert recipe.compose is not None
    memory = f"{recipe.memory_mb or 2048}M"
    return {
        **recipe.env,
        "MAIN_IMAGE_NAME": IMAGE,
        "PREBUILT_IMAGE_NAME": IMAGE,
        "CONTEXT_DIR": recipe.compose.context,
        "TEST_DIR": "/tests",
        "CPUS": f"{recipe.cpus or 1:g}",
        "MEMORY": memory,
        **{f"HOST_{what.upper()}_PATH": LOGS + what for what in _LOGS},
        **{f"ENV_{what.upper()}_PATH": inside for what, inside in _LOGS.items()},
        "T_BENCH_TASK_DOCKER_CLIENT_IMAGE_NAME": IMAGE,
        "T_BENCH_TASK_DOCKER_CLIENT_CONTAINER_NAME": CONTAINER,
        "T_BENCH_TASK_DOCKER_NAME_PREFIX": PREFIX,
        "T_BENCH_TEST_DIR": "/tests",
        "T_BENCH_TASK_LOGS_PATH": LOGS + "sessions",
        "T_BENCH_CONTAINER_LOGS_PATH": "/logs",
        "T_BENCH_TASK_AGENT_LOGS_PATH": LOGS + "agent",
        "T_BENCH_CONTAINER_AGENT_LOGS_PATH": "/agent-logs",
    }


def wanted(values: Mapping[str, str], text: str) -> dict[str, str]:
    """Of `values`, what the file's text interpolates.

    They reach `docker compose` as its environment; what would steer that program, or the loader
    that starts it, is not handed on.
    """
    named = set(_VARIABLE.findall(text))
    return {k: v for k, v in values.items() if k in named and not _STEERING.match(k)}


_VARIABLE = re.compile(r"\$\{?([A-Za-z_][A-Za-z0-9_]*)")
_STEERING = re.compile(
    r"(?i)(LD_|DOCKER_|COMPOSE_|BUILDKIT_|BUILDX_|BASH|GO|SSL_|XDG_|OTEL_|(ENV|IFS|PS4|PATH|HOME|TMPDIR)$|.*_PROXY$)"
)
_LOGS = {
    "verifier_logs": "/logs/verifier",
    "agent_logs": "/logs/agent",
    "artifacts": "/logs/artifacts",
}


def base_document(compose: ComposeFile) -> dict[str, Any]:
    """What the task's file is laid over: the agent's service may leave its image to the harness.

    Harbor, whose service is `main`, lays a command under it too; Terminal-Bench 1 does not.
    """
    command = {"command": list(KEEP_ALIVE)} if compose.service == HARBOR_SERVICE else {}
    return {"services": {compose.service: {"image": IMAGE, **command}}}


def roots(compose: ComposeFile) -> tuple[str, ...]:
    """The folders that paths may be in: the file's own and, in `environment/`, the task's."""
    context = Path(os.path.realpath(compose.context))
    nested = context.name == "environment" or (context.parent / "task.toml").is_file()
    return (str(context.parent if nested else context),)


def files_named(document: Any) -> Iterator[tuple[str, str]]:
    """(key, path) of each file that a raw compose file would read on this machine."""
    if not isinstance(document, dict):
        return
    for paths, _ in includes(document):
        yield from (("include", path) for path in paths)
    for entry in _entries(document.get("include")):
        if isinstance(entry, dict):
            for path in _entries(entry.get("env_file")):
                yield "env_file", str(path)
    services = document.get("services")
    for service in services.values() if isinstance(services, dict) else ():
        if not isinstance(service, dict):
            continue
        for key in ("env_file", "label_file"):
            for entry in _entries(service.get(key)):
                yield key, str(entry.get("path") if isinstance(entry, dict) else entry)
        extends = service.get("extends")
        if isinstance(extends, dict) and extends.get("file"):
            yield "extends", str(extends["file"])


def includes(document: Any) -> Iterator[tuple[list[str], str]]:
    """(paths, folder) of each `include`; what those files name is relative to that folder."""
    for entry in _entries(document.get("include") if isinstance(document, dict) else None):
        told = entry if isinstance(entry, dict) else {"path": entry}
        paths = [str(path) for path in _entries(told.get("path"))]
        first = os.path.dirname(paths[0]) if paths else ""
        yield paths, str(told.get("project_directory") or first)


def refusal(document: Document, compose: ComposeFile) -> str | None:
    """The first thing in a normalised document that is not run here, or None."""
    return next(_refusals(document, compose), None)


def _refusals(document: Document, compose: ComposeFile) -> Iterator[str]:
    allowed = roots(compose)
    for key in document:
        if key not in _TOP_KEYS and not key.startswith("x-"):
            yield f"its compose file has `{key}`, which is not supported"
    services = document.get("services") or {}
    if compose.service not in services:
        yield (
            f"its compose file has no service {compose.service!r} that is active: found "
            f"{', '.join(services) or 'none'}"
        )
    if len(services) > MAX_SERVICES:
        yield f"its compose file has {len(services)} services; at most {MAX_SERVICES} are started"
    for name, network in (document.get("networks") or {}).items():
        yield from (f"network {name} of its compose file {why}" for why in _network(network or {}))
    for name, volume in (document.get("volumes") or {}).items():
        yield from (f"volume {name} of its compose file {why}" for why in _volume(volume or {}))
    for kind in ("secrets", "configs"):
        for name, entry in (document.get(kind) or {}).items():
            if entry.get("external"):
                yield f"{kind} {name} of its compose file is external: it is not the task's own"
            elif "file" in entry and not inside(entry["file"], allowed):
                yield f"{kind} {name} of its compose file is {_outside(entry['file'])}"
    for name, service in services.items():
        yield from (
            f"service {name} of its compose file {why}" for why in _service(service, allowed)
        )


def _network(network: Document) -> Iterator[str]:
    if network.get("external"):
        yield "is external: every episode has its own; leave `external` out"
    if network.get("driver", "bridge") != "bridge":
        yield f"has the driver {network['driver']}; only `bridge` is given"


def _volume(volume: Document) -> Iterator[str]:
    if volume.get("external"):
        yield "is external: every episode has its own; leave `external` out"
    if volume.get("driver", "local") != "local":
        yield f"has the driver {volume['driver']}; only `local` is given"
    options = volume.get("driver_opts") or {}
    if options and not _only_memory(options):
        told = ", ".join(f"{key}={value}" for key, value in options.items())
        yield f"has driver_opts ({told}), which could mount what is the host's"


def _only_memory(options: Document) -> bool:
    """Whether it is a plain tmpfs: with `bind` among its options it would be a host's folder."""
    flags = str(options.get("o") or "").split(",")
    return (
        set(options) <= {"type", "device", "o"}
        and options.get("type") == "tmpfs"
        and options.get("device") in (None, "", "tmpfs")
        and all(flag.partition("=")[0] in _TMPFS_FLAGS for flag in flags if flag)
    )


def _service(service: Document, allowed: tuple[str, ...]) -> Iterator[str]:
    for key in service:
        if key not in _SERVICE_KEYS and not key.startswith("x-"):
            yield f"has `{key}`, which is not supported"
    if service.get("privileged"):
        yield "is privileged: it could take over this machine"
    yield from _namespaces(service)
    for capability in service.get("cap_add") or ():
        if capability.upper().removeprefix("CAP_") not in _CAPABILITIES:
            yield f"adds the capability {capability}, which reaches the host"
    for option in service.get("security_opt") or ():
        if not option.startswith(_SECURITY):
            yield f"has security_opt {option}, which takes a wall down"
    for hook in service.get("post_start") or ():
        if hook.get("privileged"):
            yield "has a privileged post_start"
    yield from _copies(service)
    yield from _mounts(service, allowed)
    if service.get("build"):
        yield from _build(service["build"], allowed)


def _namespaces(service: Document) -> Iterator[str]:
    for key, own in _OWN_NAMESPACES.items():
        value = str(service.get(key) or "")
        if value and value not in own and not (value.startswith("service:") and key != "uts"):
            yield f"has {key}: {value}, which leaves the episode's own"
    for name, network in (service.get("networks") or {}).items():
        for key in ("ipv4_address", "ipv6_address", "link_local_ips"):
            if network and network.get(key):
                yield f"has a fixed {key} in {name}: only one episode at a time could have it"
    for entry in service.get("volumes_from") or ():
        if str(entry).startswith("container:"):
            yield f"takes volumes from {entry}, which is not of this file"


def _copies(service: Document) -> Iterator[str]:
    deploy = service.get("deploy") or {}
    if max(service.get("scale", 1) or 1, deploy.get("replicas", 1) or 1) > 1:
        yield "asks for more than one copy of itself"
    if ((deploy.get("resources") or {}).get("reservations") or {}).get("devices"):
        yield "asks for GPUs or other devices, which sandboxes do not have"


def _mounts(service: Document, allowed: tuple[str, ...]) -> Iterator[str]:
    for mount in service.get("volumes") or ():
        kind = mount.get("type")
        if kind not in ("bind", "volume", "tmpfs"):
            yield f"has a mount of type {kind}, which is not supported"
        source = mount.get("source") or ""
        if kind == "bind" and not source.startswith(LOGS) and not inside(source, allowed):
            yield f"mounts {_outside(source)}"


def _build(build: Document, allowed: tuple[str, ...]) -> Iterator[str]:
    for key in build:
        if key not in _BUILD_KEYS:
            yield f"has `build.{key}`, which is not supported: write it into its Dockerfile"
    if (build.get("network") or "default") not in ("default", "none"):
        yield f"is built with the network {build['network']}; only `default` and `none` are given"
    context = build.get("context") or ""
    if "://" in context or context.startswith("git@") or not inside(context, allowed):
        yield f"is built from {_outside(context)}"
    elif not inside(os.path.join(context, build.get("dockerfile") or "Dockerfile"), allowed):
        yield f"is built from {_outside(build['dockerfile'])}"


def inside(path: str, allowed: tuple[str, ...]) -> bool:
    """Whether a path, links followed, lies in one of the folders."""
    real = os.path.realpath(path)
    return any(real == root or real.startswith(root.rstrip("/") + "/") for root in allowed)


def _outside(path: str) -> str:
    return f"{path or 'nothing'}, outside the task's folder: put it there"


def _entries(value: Any) -> list[Any]:
    if value is None:
        return []
    return list(value) if isinstance(value, list | tuple) else [value]
