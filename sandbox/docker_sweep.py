"""Who owns a container, network or volume, and the removal of what no live process owns.

Rule: a thing goes only if its label proves that its owner is dead: the process id is gone or
belongs to a later process. An owner that cannot be judged from here (another process namespace of
the same boot) is left alone and named. Images are never removed: they are a cache.
"""

import asyncio
import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from headrace.aio import fan_out
from headrace.errors import ProviderGone, SandboxError
from headrace.sandbox.docker_engine import EngineClient, parsed_labels, status_of
from headrace.sandbox.leases import Owner, owner_of, this_process

RUN = "dev.headrace.run"
EPISODE = "dev.headrace.episode"
OWNER = "dev.headrace.owner"
"""`PID:STARTTIME` of the process that opened the sandbox."""
PLACE = "dev.headrace.place"
"""Boot and process namespace in which that process id means something."""
PROJECT = "dev.headrace.project"
"""On everything of one episode of several containers: the name that they share."""

LIST_S = 60.0
REMOVE_S = 120.0
END_S = 5.0
"""For a container to go by itself."""
_AT_ONCE = 4
_BOOT = Path("/proc/sys/kernel/random/boot_id")


def labels(run_id: str, episode: str) -> dict[str, str]:
    """The labels of a container opened by this process."""
    return {RUN: run_id, EPISODE: episode, OWNER: owner(), PLACE: place()}


def owner() -> str:
    this = this_process()
    return f"{this.pid}:{this.started}"


def place() -> str:
    return f"{_BOOT.read_text().strip()}:{os.readlink('/proc/self/ns/pid')}"


def is_dead(found: Mapping[str, str]) -> bool | None:
    """Whether the owner named by a container's labels is dead; None if that cannot be told."""
    boot, _, namespace = found.get(PLACE, "").partition(":")
    here_boot, _, here_namespace = place().partition(":")
    if boot and boot != here_boot:
        return True
    if not boot or namespace != here_namespace:
        return None
    pid, _, started = found.get(OWNER, "").partition(":")
    if not pid.isdigit() or not started.isdigit():
        return None
    return owner_of(int(pid)) != Owner(int(pid), int(started))


async def sweep(engine: EngineClient) -> list[str]:
    """Remove the containers, networks and volumes of dead owners; a line for each, and for each
    that was left.
    """
    async with engine.call("list containers", timeout_s=LIST_S) as docker:
        filters = f'{{"label":["{OWNER}"]}}'
        found = await docker.containers.list(all=1, filters=filters)
    lines: list[str] = []
    dead: list[tuple[str, str]] = []
    for container in found:
        its = parsed_labels(container)
        line = _line(_name(container), its)
        verdict = is_dead(its)
        if verdict:
            dead.append((container.id, line))
        elif verdict is None:
            lines.append(f"left {line}: cannot tell from here whether its owner lives")

    async def remove_one(item: tuple[str, str]) -> str:
        await remove(engine, item[0])
        return f"removed {item[1]}"

    removed = await fan_out(remove_one, dead, limit=_AT_ONCE)
    return [*removed, *await _sweep_rest(engine), *lines]


async def _sweep_rest(engine: EngineClient) -> list[str]:
    lines = []
    for kind, name, its in await _rest(engine, OWNER):
        if is_dead(its):
            await _delete(engine, kind, name)
            lines.append(f"removed {_line(f'{kind} {name}', its)}")
    return lines


def _line(what: str, its: Mapping[str, str]) -> str:
    line = f"{what} of run {its.get(RUN) or '?'}"
    return f"{line}, episode {its.get(EPISODE) or '?'}, owner {its[OWNER]}"


async def remove_project(engine: EngineClient, project: str) -> None:
    """Remove all containers, networks and volumes of a project; they are gone when this returns.

    Raises `SandboxError` for what is left.
    """
    label = f"{PROJECT}={project}"
    for _ in range(2):  # a container whose creation was cut short may appear after the first look
        async with engine.call(f"list containers of {project}", timeout_s=LIST_S) as docker:
            filters = json.dumps({"label": [label]})
            found = await docker.containers.list(all=1, filters=filters)
        await fan_out(lambda each: remove(engine, each.id), found, limit=_AT_ONCE)
        rest = await _rest(engine, label)
        for kind, name, _ in rest:
            await _delete(engine, kind, name)
        if not found and not rest:
            return
    if left := await _rest(engine, label):
        raise SandboxError(f"remove {project}: left {', '.join(name for _, name, _ in left)}")


async def _rest(engine: EngineClient, label: str) -> list[tuple[str, str, dict[str, str]]]:
    """(kind, name, labels) of the networks and volumes with a label."""
    async with engine.call("list networks and volumes", timeout_s=LIST_S) as docker:
        networks = await docker.networks.list(filters={"label": [label]})
        params = {"filters": json.dumps({"label": [label]})}
        volumes = (await docker._query_json("volumes", params=params))["Volumes"] or []
    return [
        *(("network", each["Name"], dict(each.get("Labels") or {})) for each in networks),
        *(("volume", each["Name"], dict(each.get("Labels") or {})) for each in volumes),
    ]


async def _delete(engine: EngineClient, kind: str, name: str) -> None:
    try:
        async with engine.call(f"remove {kind} {name}", timeout_s=REMOVE_S) as docker:
            async with docker._query(f"{kind}s/{name}", method="DELETE"):
                pass
    except SandboxError as e:
        if status_of(e) != 404:
            raise


def _name(container: Any) -> str:
    names = container["Names"]
    return f"container {names[0].lstrip('/') if names else container.id[:12]}"


async def remove(engine: EngineClient, container: str) -> None:
    """Kill and remove a container and its volumes; it is gone when this returns."""
    try:
        async with engine.call(f"remove container {container}", timeout_s=REMOVE_S) as docker:
            await docker.containers.container(container).delete(force=True, v=True)
    except ProviderGone:
        raise
    except SandboxError as e:
        if status_of(e) == 409:  # it ended by itself and the engine is removing it
            await _removed(engine, container)
        elif status_of(e) != 404:
            raise


async def ended_by(engine: EngineClient, container: str, hang_up: Callable[[], None]) -> bool:
    """Whether a container that removes itself is gone a moment after `hang_up`, its shell's end.

    A third cheaper for the engine than a removal by force, which starts a program to kill it. What
    the agent left may keep it: then the caller removes it. Raises nothing but `ProviderGone`.
    """
    doing = f"wait for the end of container {container}"
    url = f"http://docker/containers/{container}/wait?condition=removed"
    try:
        async with engine.call(doing, timeout_s=REMOVE_S) as docker:
            try:
                async with asyncio.timeout(END_S), docker.session.post(url) as answer:
                    hang_up()  # it answers when it has begun to wait
                    found = await answer.json()
                    return answer.status == 404 or (answer.status == 200 and not found.get("Error"))
            except TimeoutError:
                return False
    except ProviderGone:
        raise
    except SandboxError:
        return False


async def _removed(engine: EngineClient, container: str) -> None:
    doing = f"wait for the removal of container {container}"
    try:
        async with engine.call(doing, timeout_s=REMOVE_S) as docker:
            await docker.containers.container(container).wait(condition="removed")
    except SandboxError as e:
        if status_of(e) != 404:
            raise
