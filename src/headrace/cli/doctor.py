"""What this machine has for headrace, part by part, and what to do about each lack.

Rule: it looks and changes nothing, but that the namespace provider is tried by starting one shell
and on cgroup v2 headrace's own parent group is made if it may be. One part that cannot be looked
at is a finding and stops none of the others. The facts come from the parts themselves, so that
the doctor and a run agree.
"""

import os
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import replace
from pathlib import Path

from headrace.cli.host import Finding, host_findings
from headrace.errors import HeadraceError

Probe = Callable[[], Awaitable[Finding]]


async def diagnose(folder: Path) -> list[Finding]:
    """Every finding; the sandboxes first, then the model, then the machine."""
    sandboxes = [await _safe("docker", _docker), await _safe("namespace", _namespace)]
    findings = list(judge_providers(sandboxes))
    if sandboxes[0].state == "ok":
        findings += [await _safe("compose", _compose), await _safe("storage", _storage)]
    findings += [await _safe("base image", _base), await _safe("cgroups", _cgroups)]
    findings += [
        await _safe("gpu", _gpu),
        await _safe("vllm", _vllm),
        await _safe("weights", _weights),
    ]
    return [*findings, *host_findings(folder)]


def judge_providers(found: list[Finding]) -> Iterator[Finding]:
    """One provider is enough: what the other lacks is then only a note."""
    enough = any(finding.state == "ok" for finding in found)
    for finding in found:
        yield replace(finding, state="note") if enough and finding.state == "lack" else finding


async def _safe(name: str, probe: Probe) -> Finding:
    try:
        return await probe()
    except (HeadraceError, OSError) as e:
        return Finding(name=name, state="lack", found=str(e))


async def _docker() -> Finding:
    from headrace.sandbox.docker_engine import available, socket_path

    reason = await available()
    if reason is None:
        return Finding(name="docker", state="ok", found=f"an engine answers on {socket_path()}")
    return Finding(name="docker", state="lack", found=reason)


async def _namespace() -> Finding:
    from headrace.sandbox.namespace import available

    reason = await available()
    if reason is None:
        who = "as root" if os.geteuid() == 0 else "with unprivileged user namespaces"
        return Finding(name="namespace", state="ok", found=f"bubblewrap over an overlay, {who}")
    return Finding(name="namespace", state="lack", found=reason)


async def _compose() -> Finding:
    from headrace.sandbox.compose_cli import ComposeCli
    from headrace.sandbox.docker_engine import socket_path

    reason = await ComposeCli(socket_path()).lacks()
    if reason is None:
        return Finding(name="compose", state="ok", found="tasks of several containers can run")
    return Finding(name="compose", state="note", found=f"no tasks of several containers: {reason}")


async def _storage() -> Finding:
    from headrace.sandbox.docker_engine import EngineClient, socket_path
    from headrace.sandbox.docker_storage import can_limit, info_of

    async with EngineClient(socket_path()) as engine:
        info = await info_of(engine)
    driver = f"storage driver {info.get('Driver')}"
    if (can := can_limit(info)) is not False:
        found = "containers' writes can be limited" + ("" if can else ", if it has project quotas")
        return Finding(name="storage", state="ok", found=f"{driver}: {found}")
    return Finding(
        name="storage",
        state="note",
        found=f"{driver}: what a container writes cannot be limited; storage_mb is not enforced",
        advice="put the engine's data on xfs with project quotas, btrfs or zfs; or use `namespace`",
    )


async def _base() -> Finding:
    from headrace.sandbox.rootfs import base_folder, can_build

    folder, reason = base_folder(), can_build()
    if folder.is_dir():
        return Finding(name="base image", state="ok", found=f"a root filesystem in {folder}")
    if reason is None:
        found = "not made yet; the first run that needs it makes it, in about a minute"
        return Finding(name="base image", state="ok", found=found)
    return Finding(name="base image", state="note", found=reason)


async def _cgroups() -> Finding:
    from headrace.sandbox.cgroups import detect

    groups = detect()
    if not groups.lacks:
        found = f"version {groups.version}; limits of sandboxes can be set"
        return Finding(name="cgroups", state="ok", found=found)
    return Finding(
        name="cgroups",
        state="note",
        found=f"version {groups.version}; cannot be set here: {', '.join(groups.lacks)}",
        advice="namespace sandboxes fall back on rlimits; run as root or use Docker",
    )


async def _gpu() -> Finding:
    from headrace.policies.server_command import has_gpu

    if has_gpu():
        return Finding(name="gpu", state="ok", found="an NVIDIA device", advice="")
    advice = "larger models need one, or a server elsewhere (policy.base_url)"
    return Finding(name="gpu", state="note", found="no NVIDIA device", advice=advice)


async def _vllm() -> Finding:
    from headrace.policies.server_command import choose_device, has_gpu, vllm_build

    build, gpu = vllm_build(), has_gpu()
    device = choose_device("auto", build=build, gpu=gpu)
    where = "the GPU" if device == "cuda" else "the CPU"
    found = f"a build for {'GPUs' if build == 'cuda' else 'CPUs'}; the model runs on {where}"
    advice = "there is a GPU: install the extra `vllm` to use it" if gpu and build == "cpu" else ""
    return Finding(name="vllm", state="note" if advice else "ok", found=found, advice=advice)


async def _weights() -> Finding:
    from headrace.policies.weights import SMALL_MODEL, check_model, model_folder, small_model_file

    folder = model_folder(SMALL_MODEL)
    if folder.exists():
        check_model(folder)
        return Finding(name="weights", state="ok", found=f"{SMALL_MODEL} in {folder}")
    package = small_model_file().name
    return Finding(
        name="weights",
        state="ok",
        found=f"{SMALL_MODEL} is installed ({package}); the first run converts it, once",
    )
