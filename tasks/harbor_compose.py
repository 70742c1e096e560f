"""The compose file of a Harbor task: which services it has, and that it can be followed.

Rule: read, never run. Cycles and services that are not there are a `TaskError`, since `docker
compose` would find them only after the run has begun; everything else is left to it. Only
`docker-compose.yaml` counts: `docker-compose.yml` is a file of the task.
"""

import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from headrace.errors import TaskError
from headrace.tasks.keyed import show
from headrace.tasks.yaml_file import read_yaml
from headrace.types import ComposeFile

COMPOSE = "docker-compose.yaml"
MAIN = "main"
MAX_SERVICES = 100
_NAME = re.compile(r"[a-zA-Z0-9._-]+")


def read_compose(root: Path, name: str, *, main_is_ours: bool) -> tuple[ComposeFile, list[str]]:
    """The compose file `name` of the task `root`, and warnings.

    `main_is_ours`: a Dockerfile or a ready image makes the service `main`, so that the file need
    not name it.
    """
    path = root / name
    found = read_yaml(root, name, compose=True)
    services = _services(found.value, path)
    warnings = [f"{path}: {warning}" for warning in found.warnings]
    for service, fields in services.items():
        for other in (*depends_on(fields), *_extends(fields)):
            if other not in services and not _from_elsewhere(found.value, fields):
                raise TaskError(f"{path}: {service} needs the service {other!r}, which is not "
                                f"there ({', '.join(services)})")  # fmt: skip
    _refuse_cycles(services, depends_on, "depends_on", path)
    _refuse_cycles(services, _extends, "extends", path)
    main = _main(services, path, main_is_ours, warnings)
    names = dict.fromkeys((main, *services))
    compose = ComposeFile(
        path=str(path), context=str(path.parent), service=main, services=tuple(names)
    )
    return compose, warnings


def _services(document: Any, path: Path) -> dict[str, dict[str, Any]]:
    if not isinstance(document, dict):
        raise TaskError(f"{path}: expected a compose file with services, found {show(document)}")
    services = document.get("services")
    if services is None and document.get("include"):
        services = {}
    if not isinstance(services, dict) or not (services or document.get("include")):
        raise TaskError(f"{path}: services: expected a table of services, found {show(services)}")
    if len(services) > MAX_SERVICES:
        raise TaskError(f"{path}: expected at most {MAX_SERVICES} services, found {len(services)}")
    for name, fields in services.items():
        if not _NAME.fullmatch(name):
            raise TaskError(f"{path}: services: {show(name)} is no name of a service")
        if fields is not None and not isinstance(fields, dict):
            raise TaskError(f"{path}: services.{name}: expected a table, found {show(fields)}")
    return {name: fields or {} for name, fields in services.items()}


def depends_on(fields: Mapping[str, Any]) -> list[str]:
    """The services that one waits for."""
    value = fields.get("depends_on") or []
    if not isinstance(value, list | dict):
        return []
    return [name for name in value if isinstance(name, str)]


def _extends(fields: Mapping[str, Any]) -> list[str]:
    value = fields.get("extends")
    if isinstance(value, str):
        return [value]
    if isinstance(value, dict) and "file" not in value and isinstance(value.get("service"), str):
        return [value["service"]]
    return []


def _from_elsewhere(document: Any, fields: Mapping[str, Any]) -> bool:
    """Whether services may come from files that are not read here."""
    extends = fields.get("extends")
    return bool(document.get("include")) or (isinstance(extends, dict) and "file" in extends)


def _refuse_cycles(
    services: Mapping[str, Mapping[str, Any]],
    follow: Callable[[Mapping[str, Any]], list[str]],
    key: str,
    path: Path,
) -> None:
    done: set[str] = set()
    for start in services:
        trail: list[str] = []
        walk: list[Iterator[str]] = [iter((start,))]
        while walk:
            name = next(walk[-1], None)
            if name is None:
                walk.pop()
                if trail:
                    done.add(trail.pop())
            elif name in trail:
                cycle = " -> ".join((*trail[trail.index(name) :], name))
                raise TaskError(f"{path}: {key} goes in a circle: {cycle}")
            elif name not in done and name in services:
                trail.append(name)
                walk.append(iter(follow(services[name])))


def _main(services: Mapping[str, Any], path: Path, main_is_ours: bool, warnings: list[str]) -> str:
    if MAIN in services or main_is_ours:
        return MAIN
    if len(services) == 1:
        only = next(iter(services))
        warnings.append(f"{path}: no service {MAIN!r}; the agent works in its only one, {only!r}")
        return only
    raise TaskError(
        f"{path}: expected a service {MAIN!r} for the agent, found {', '.join(services) or 'none'}"
    )
