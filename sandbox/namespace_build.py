"""Images from Dockerfiles without an engine: one overlay layer per instruction that changes files.

Rule: what a step does is fixed by its text, its files, its variables and the layers below; the
digest of these names the layer, so that the same step runs once per machine. A Dockerfile that
asks for more than this understands is refused before anything is built, naming the line and what
to use instead.

Understood: FROM of a known image, RUN, COPY and ADD of local files, WORKDIR, ENV, ARG, USER, SHELL,
ENTRYPOINT. Read and without effect here: LABEL, EXPOSE, CMD, HEALTHCHECK, VOLUME, STOPSIGNAL,
MAINTAINER. Steps run with the host's network, as a build does under Docker.
"""

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from headrace.aio import in_thread, run_shielded
from headrace.errors import ImageError, SandboxError
from headrace.sandbox.base import Limits, SandboxSpec
from headrace.sandbox.build_turns import Turn
from headrace.sandbox.namespace_plan import Copy, Image, Plan, Step, pack_copies
from headrace.sandbox.rootfs import lock
from headrace.types import CommandResult

if TYPE_CHECKING:
    from headrace.sandbox.namespace import NamespaceProvider
    from headrace.sandbox.namespace_sandbox import NamespaceSandbox

_STEP_TIMEOUT_S = 86_400.0  # the caller's deadline is the one that counts
_LIMITS = Limits(cpus=None, memory_mb=None, pids=4096, max_output_bytes=1 << 16)

Progress = Callable[[str], None]


async def build(
    plan: Plan,
    base: Image,
    provider: "NamespaceProvider",
    folder: Path,
    progress: Progress,
    turn: Turn,
) -> Image:
    """The image of `plan` over `base`; layers that are in `folder` already are taken from it.

    Raises `ImageError` with the end of the output of the step that failed.
    """
    image = base
    await in_thread(lambda: folder.mkdir(parents=True, exist_ok=True))
    for step, key in zip(plan.steps, plan.keys(base), strict=False):
        layer = folder / key
        if not await in_thread(layer.is_dir):
            async with lock(layer, progress):
                if not await in_thread(layer.is_dir):
                    progress(f"{plan.path}: line {step.line}: {step.text}")
                    await _make_layer(plan, step, image, layer, provider)
        turn.made(key)
        image = Image(layers=(layer, *image.layers))
    return Image(
        layers=image.layers,
        env={**base.env, **plan.env},
        workdir=base.workdir if plan.workdir is None else plan.workdir,
        user=base.user if plan.user is None else plan.user,
        entrypoint=base.entrypoint if plan.entrypoint is None else plan.entrypoint,
    )


async def _make_layer(
    plan: Plan, step: Step, below: Image, layer: Path, provider: "NamespaceProvider"
) -> None:
    partial = layer.with_name(f".{layer.name}-{os.getpid()}")
    upper = partial / "upper"
    spec = SandboxSpec(
        image="", episode=f"build of {plan.path}", network=True, limits=_LIMITS, workdir="/"
    )
    try:
        await run_shielded(in_thread(_make_folders, upper, partial / "work"))  # never after removal
        where = f"{plan.path}: line {step.line}: {step.text}"
        try:
            async with provider.open_over(below, spec, upper=upper) as sandbox:
                await _do(step, sandbox, where)
        except SandboxError as e:
            raise ImageError(f"{where}: {e}") from e
        await in_thread(_keep, upper, layer)
    finally:
        await run_shielded(in_thread(remove_partial, partial))


async def _do(step: Step, sandbox: "NamespaceSandbox", where: str) -> None:
    for name in step.folders:
        made = await sandbox.exec('mkdir -p -- "$D"', timeout_s=60, env={"D": name})
        _check(made, where)
    if step.copies:
        await _copy(step, sandbox, where)
    if step.command:
        result = await sandbox.exec(
            step.command,
            timeout_s=_STEP_TIMEOUT_S,
            workdir=step.workdir,
            env=step.env,
            user=step.user or None,
        )
        _check(result, where)


async def _copy(step: Step, sandbox: "NamespaceSandbox", where: str) -> None:
    copies = step.copies
    if step.into_if_folder:  # a lone file goes into a target that is a folder already
        target = copies[0].target
        probe = await sandbox.exec('[ -d "$D" ]', timeout_s=60, env={"D": target})
        if probe.exit_code == 0:
            name = copies[0].source.name
            copies = (Copy(source=copies[0].source, target=f"{target}/{name}"),)
    data = await in_thread(pack_copies, copies, step.mode)
    unpack = "tar -x -p -o --keep-directory-symlink -f - -C /"
    _check(await sandbox.exec(unpack, timeout_s=_STEP_TIMEOUT_S, stdin=data), where)
    if step.owner:
        names = "\0".join(copy.target for copy in copies).encode()
        _check(
            await sandbox.exec(
                'xargs -0 chown -h -- "$O"', timeout_s=600, stdin=names, env={"O": step.owner}
            ),
            where,
        )


def _check(result: CommandResult, where: str) -> None:
    if result.exit_code == 0:
        return
    end = (result.stdout[-2000:] + result.stderr[-2000:]).decode(errors="replace").strip()
    how = "was stopped" if result.exit_code is None else f"ended with exit code {result.exit_code}"
    raise ImageError(f"{where} {how}; the end of its output:\n{end}")


def _make_folders(*folders: Path) -> None:
    for folder in folders:
        folder.mkdir(parents=True)
    folders[0].chmod(0o755)  # it becomes the root of the image


def _keep(upper: Path, layer: Path) -> None:
    etc = upper / "etc"
    if etc.is_dir() and not etc.is_symlink():
        (etc / "resolv.conf").unlink(missing_ok=True)  # the host's, for the build alone
    upper.rename(layer)


def remove_partial(partial: Path) -> None:
    """Remove a layer in the making, or what a dead builder left of it."""
    work = partial / "work" / "work"  # the kernel makes it without any permission
    if work.is_dir():
        work.chmod(0o700)
    shutil.rmtree(partial, ignore_errors=True)
