"""One episode's compose project: the accepted document of its task, rewritten.

Rule: pure. Names, networks, volumes and labels are the episode's own; the agent's service keeps its
world and gets our program for its first process; no port is published, nothing restarts, nothing
is pulled or built. What the file itself says of limits stands; the run's fill the gaps.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from headrace.sandbox.base import Limits, SandboxSpec
from headrace.sandbox.compose import CONTAINER, IMAGE, LOGS
from headrace.sandbox.docker_container import DROPPED
from headrace.sandbox.scripts import KEEP_ALIVE, beside, first_process
from headrace.types import ComposeFile, Record

NOWHERE = "127.0.0.1"
"""Name server of a service without network: its own loopback, so that no name leaves."""

_DROPPED_KEYS = frozenset(
    "annotations attach build container_name deploy develop env_file label_file ports pre_stop"
    " profiles pull_policy restart scale privileged cpus cpu_count cpu_percent cpu_period"
    " cpu_quota mem_limit mem_reservation memswap_limit mem_swappiness pids_limit".split()
)
_IDLE = re.compile(
    r"((/usr)?/bin/)?((ba|da|a)?sh|cat|sleep +(infinity|inf|\d{4,}d?)|tail +-[fF] +/dev/null)"
)
_UNITS = {"": 1, "b": 1, "k": 1 << 10, "m": 1 << 20, "g": 1 << 30}


class Names(Record, frozen=True, kw_only=True):
    """What belongs to one episode."""

    project: str
    networks: dict[str, str] = {}
    """By the file's own name: the network that was made for the episode."""
    folders: dict[str, str] = {}
    """By source of a bind mount: the episode's copy."""
    labels: dict[str, str] = {}

    def container(self, service: str) -> str:
        return f"{self.project}-{service}"


def networks_of(document: Mapping[str, Any]) -> list[str]:
    """The file's networks that services are on; none for a single container."""
    services = document["services"].values()
    if len(document["services"]) < 2:
        return []
    found: dict[str, None] = {}
    for service in services:
        if not service.get("network_mode"):
            found.update(dict.fromkeys(service.get("networks") or ("default",)))
    return list(found)


def copied_folders(document: Mapping[str, Any]) -> list[str]:
    """Sources of bind mounts that services may write to: each episode gets a copy."""
    found: dict[str, None] = {}
    for service in document["services"].values():
        for mount in service.get("volumes") or ():
            source = mount.get("source") or ""
            if mount["type"] == "bind" and not source.startswith(LOGS):
                if not mount.get("read_only"):
                    found[source] = None
    return list(found)


def project(
    document: Mapping[str, Any],
    spec: SandboxSpec,
    names: Names,
    images: Mapping[str, str],
    *,
    image_user: str,
    image_workdir: str = "/",
    entrypoint: Sequence[str] = (),
    env: Mapping[str, str] = {},
) -> dict[str, Any]:
    """The document that is run.

    `image_user`, `image_workdir` and `entrypoint` are the agent's image's; no user: root. `env`:
    variables of every service, such as where the proxy is.
    """
    assert spec.compose is not None
    logs: dict[str, str] = {}
    services = {
        name: _service(name, service, spec, names, images[name], logs, env)
        for name, service in document["services"].items()
    }
    main = services[spec.compose.service]
    given = document["services"][spec.compose.service]
    own = own_command(given, _escaped(entrypoint))
    _make_main(main, given, spec, own, image_user=image_user, image_workdir=image_workdir)
    volumes = {**(document.get("volumes") or {}), **{volume: {} for volume in logs.values()}}
    out = {
        "services": services,
        "networks": {k: {"external": True, "name": v} for k, v in names.networks.items()},
        "volumes": {name: _volume(name, volume or {}, names) for name, volume in volumes.items()},
        **{kind: _files(document, kind, names) for kind in ("secrets", "configs")},
    }
    return _filled(out, names, spec.compose, images)


def image_of(document: Mapping[str, Any], service: str) -> str:
    """The image a service names; empty where only a build says what it is."""
    return str(document["services"][service].get("image") or "")


def _service(
    name: str,
    given: Mapping[str, Any],
    spec: SandboxSpec,
    names: Names,
    image: str,
    logs: dict[str, str],
    env: Mapping[str, str],
) -> dict[str, Any]:
    own = {key: value for key, value in given.items() if key not in _DROPPED_KEYS}
    out = {
        **own,
        "image": image,
        "pull_policy": "never",
        "container_name": names.container(name),
        "restart": "no",
        "labels": {**(given.get("labels") or {}), **names.labels},
        "logging": {"driver": "json-file", "options": {"max-size": "1m", "max-file": "1"}},
        "volumes": [_mount(mount, names, logs) for mount in given.get("volumes") or ()],
        "cap_drop": _dropped(given, spec.network),
        **_limits(given, spec.limits),
    }
    if given.get("healthcheck"):  # engines before 25 do not know the interval of the start
        check = {k: v for k, v in given["healthcheck"].items() if k != "start_interval"}
        out["healthcheck"] = check
    if env:
        out["environment"] = {**escaped(env), **(given.get("environment") or {})}
    if not spec.network and given.get("sysctls"):
        # With IPv6 on, this machine's own end of the bridge has an address: its services are there.
        kept = {k: v for k, v in given["sysctls"].items() if not k.startswith("net.ipv6.")}
        out["sysctls"] = kept
    _connect(out, given, spec, names)
    return out


def _make_main(
    service: dict[str, Any],
    given: Mapping[str, Any],
    spec: SandboxSpec,
    own: Sequence[str],
    *,
    image_user: str,
    image_workdir: str,
) -> None:
    """The agent's shell as the first process; what would have run goes beside it.

    `own`: that, escaped as all that comes from the file.
    """
    image_user = given.get("user") or image_user
    folder = given.get("working_dir") or image_workdir.replace("$", "$$")
    after = beside(folder, image_user, own)
    words = _escaped(first_process(spec.user or image_user, after))
    service["entrypoint"] = [*words[: len(words) - len(after)], *after]
    service["command"] = []
    service["user"] = "0"
    service["stdin_open"] = True
    service["tty"] = False
    service["logging"] = {"driver": "none"}
    service["environment"] = {**(service.get("environment") or {}), **escaped(spec.env)}
    if spec.workdir:
        service["working_dir"] = spec.workdir.replace("$", "$$")


def own_command(service: Mapping[str, Any], entrypoint: Sequence[str] = ()) -> list[str]:
    """What a service would run, if that does more than wait. `entrypoint`: its image's."""
    own, command = service.get("entrypoint"), _words(service.get("command"))
    if own is None and entrypoint:  # an empty one is the file's wish that there be none
        words = [*entrypoint, *(command or KEEP_ALIVE)]
    else:
        words = [*_words(own), *command]
    inner = words[2:] if len(words) == 3 and words[1] in ("-c", "-lc") else words
    return [] if _IDLE.fullmatch(" ".join(inner).strip()) else words


def _words(value: Any) -> list[str]:
    return [str(word) for word in value or ()] if not isinstance(value, str) else [value]


def _connect(
    out: dict[str, Any], given: Mapping[str, Any], spec: SandboxSpec, names: Names
) -> None:
    mode = given.get("network_mode") or ""
    out.pop("networks", None)
    out.pop("network_mode", None)
    if mode not in ("", "bridge", "default"):
        out["network_mode"] = mode
    elif mode or not names.networks:
        out["network_mode"] = "bridge" if spec.network else "none"
    else:
        wanted = given.get("networks") or {"default": None}
        aliases = [given["container_name"]] if given.get("container_name") else []
        out["networks"] = {
            network: {**(own or {}), "aliases": [*((own or {}).get("aliases") or ()), *aliases]}
            for network, own in wanted.items()
        }
        if not spec.network:
            out["dns"] = [NOWHERE]
            out["dns_opt"] = ["timeout:1", "attempts:1"]  # some engines drop what has no answer
    if mode.startswith("service:"):
        for key in ("hostname", "domainname", "dns", "dns_search", "extra_hosts", "links"):
            out.pop(key, None)


def _mount(mount: Mapping[str, Any], names: Names, logs: dict[str, str]) -> dict[str, Any]:
    source = mount.get("source") or ""
    if mount["type"] == "bind" and source.startswith(LOGS):
        volume = logs.setdefault(source, f"headrace-logs-{len(logs)}")
        out: dict[str, Any] = {"type": "volume", "source": volume, "target": mount["target"]}
        return {**out, "volume": {"nocopy": True}}
    if mount["type"] == "bind":
        copy = names.folders.get(source)
        # The engine must not make a folder on this machine, nor share mounts with it.
        return {**mount, "source": copy or source, "bind": {"create_host_path": False}}
    return dict(mount)


def _volume(name: str, given: Mapping[str, Any], names: Names) -> dict[str, Any]:
    kept = {key: given[key] for key in ("driver", "driver_opts") if given.get(key)}
    labels = {**(given.get("labels") or {}), **names.labels}
    return {**kept, "name": f"{names.project}_{name}", "labels": labels}


def _files(document: Mapping[str, Any], kind: str, names: Names) -> dict[str, Any]:
    return {
        name: {**entry, "name": f"{names.project}_{name}"}
        for name, entry in (document.get(kind) or {}).items()
    }


def _dropped(given: Mapping[str, Any], network: bool) -> list[str]:
    added = {name.upper().removeprefix("CAP_") for name in given.get("cap_add") or ()}
    ours = DROPPED if network else [*DROPPED, "NET_RAW"]
    return sorted({*(given.get("cap_drop") or ()), *(name for name in ours if name not in added)})


def _limits(given: Mapping[str, Any], ours: Limits) -> dict[str, Any]:
    own = ((given.get("deploy") or {}).get("resources") or {}).get("limits") or {}
    cpus = float(given.get("cpus") or own.get("cpus") or ours.cpus or 0)
    memory = _bytes(given.get("mem_limit") or own.get("memory") or 0) or (
        (ours.memory_mb or 0) << 20
    )
    pids = int(given.get("pids_limit") or own.get("pids") or 0)
    if pids <= 0:  # -1 is no limit, which is not the file's to give
        pids = ours.pids or 0
    out: dict[str, Any] = {"cpus": cpus} if cpus else {}
    if memory:
        out["mem_limit"] = out["memswap_limit"] = str(memory)
    return {**out, "pids_limit": pids} if pids else out


def limits_of(service: Mapping[str, Any], ours: Limits) -> Limits:
    """What a service of the document that is run is limited to."""
    return msgspec.structs.replace(
        ours,
        cpus=service.get("cpus"),
        memory_mb=int(service["mem_limit"]) >> 20 if "mem_limit" in service else None,
        pids=service.get("pids_limit"),
    )


def _bytes(value: object) -> int:
    """`512m`, `1073741824`, 4096: as compose writes sizes."""
    match = re.fullmatch(r"(\d+)\s*([kmg]?)(?:b|ib)?", str(value).lower().strip())
    return int(match[1]) * _UNITS[match[2]] if match else 0


def _escaped(words: Sequence[str]) -> list[str]:
    return [word.replace("$", "$$") for word in words]


def escaped(env: Mapping[str, str]) -> dict[str, str]:
    """Values that `docker compose` leaves as they are."""
    return {name: value.replace("$", "$$") for name, value in env.items()}


def _filled(
    out: dict[str, Any], names: Names, compose: ComposeFile, images: Mapping[str, str]
) -> dict[str, Any]:
    """With this episode's names where the placeholders are."""
    text = msgspec.json.encode(out).decode()
    text = text.replace(CONTAINER, names.container(compose.service))
    text = text.replace(IMAGE, images[compose.service])
    filled: dict[str, Any] = msgspec.json.decode(text)
    return filled
