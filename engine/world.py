"""A sandbox made from a task's recipe, open, with its files and its network.

Rule: what a phase may reach is set by `World.enter` before the phase begins. The caller's exit
stack owns the sandbox.
"""

import time
from contextlib import AsyncExitStack

import msgspec

from headrace.engine.act import put
from headrace.engine.parts import Parts, Planned
from headrace.policies.base import Policy
from headrace.sandbox.base import Egress, Limits, Sandbox, SandboxSpec
from headrace.tasks.phases import Reach, reach, verifier_reach, views_of
from headrace.types import EnvironmentRecipe, NetworkPolicy, Task

LOGS_TIMEOUT_S = 60.0
_LOGS = """\
umask 0
set -- /logs/agent /logs/artifacts /logs/verifier
mkdir -p -- "$@" && chmod 777 /logs "$@"
"""


class World(msgspec.Struct, frozen=True):
    """An open sandbox."""

    sandbox: Sandbox
    egress: Egress | None
    image_s: float = 0.0
    """Until the image was there."""
    start_s: float = 0.0
    """Until the sandbox answered, from then on."""

    def enter(self, policy: NetworkPolicy) -> None:
        """The next phase begins; without a proxy there is nothing that could change."""
        if self.egress is not None:
            self.egress.policy = policy


async def open_agents(stack: AsyncExitStack, planned: Planned, parts: Parts) -> World:
    """The sandbox in which the agent works. Raises `ImageError` and `SandboxError`."""
    task = planned.task
    begun = time.monotonic()
    spec = await agents_spec(planned, parts)
    image_s = time.monotonic() - begun
    world = await _open(stack, parts, task.environment, spec)
    if parts.policy.name == "oracle" or speaks_of_logs(task):
        await world.sandbox.exec(_LOGS, timeout_s=LOGS_TIMEOUT_S)
    return msgspec.structs.replace(world, image_s=image_s)


async def agents_spec(planned: Planned, parts: Parts) -> SandboxSpec:
    """What `open_agents` opens, its image made if it must be. Raises `ImageError`."""
    task = planned.task
    return await _spec(
        planned,
        parts,
        task.environment,
        reach(task, follow=planned.network),
        user=views_of(task)[0].agent.user,
        terminal=types_keys(parts.policy, task),
    )


async def open_verifiers(
    stack: AsyncExitStack, planned: Planned, parts: Parts, view: Task
) -> World:
    """A sandbox of the verifier's own, from its own environment."""
    recipe = view.verifier.environment
    assert recipe is not None
    connected = verifier_reach(view, follow=planned.network)
    # no user: its shell is not used, and the tests have their own
    return await _open(
        stack, parts, recipe, await _spec(planned, parts, recipe, connected, user=None)
    )


def speaks_of_logs(task: Task) -> bool:
    """Whether the agent may look for Harbor's folders; to make them costs a command."""
    if task.format != "harbor":
        return False
    texts = [view.instruction for view in views_of(task)]
    texts += [artifact.source for view in views_of(task) for artifact in view.artifacts]
    texts += [hook.command for view in views_of(task) for hook in view.verifier.collect]
    return any("/logs" in text for text in texts)


def limits_of(recipe: EnvironmentRecipe, others: Limits) -> Limits:
    """The recipe's limits where it names them, else the others'."""
    named = {
        name: value
        for name in ("cpus", "memory_mb", "storage_mb")
        if (value := getattr(recipe, name)) is not None
    }
    return msgspec.structs.replace(others, **named)


def types_keys(policy: Policy, task: Task) -> bool:
    """Whether anything will be typed into the terminal."""
    solved_by_keys = policy.name == "oracle" and any(
        view.solution is not None and view.solution.keystrokes for view in views_of(task)
    )
    return policy.terminal or solved_by_keys


async def _spec(
    planned: Planned,
    parts: Parts,
    recipe: EnvironmentRecipe,
    connected: Reach,
    *,
    user: str | None,
    terminal: bool = False,
) -> SandboxSpec:
    return SandboxSpec(
        image=await parts.provider.prepare(recipe),
        episode=planned.id,
        workdir=recipe.workdir,
        env=recipe.env,
        user=user,
        network=connected.network,
        egress=None if connected.egress is None else Egress(connected.egress),
        compose=recipe.compose,
        terminal=terminal,
        limits=limits_of(recipe, planned.sandbox),
    )


async def _open(
    stack: AsyncExitStack, parts: Parts, recipe: EnvironmentRecipe, spec: SandboxSpec
) -> World:
    begun = time.monotonic()
    sandbox = await stack.enter_async_context(parts.provider.open(spec))
    start_s = time.monotonic() - begun
    if recipe.upload_context and recipe.context is not None:
        await put(sandbox, recipe.context, recipe.workdir or ".")
    return World(sandbox, spec.egress, start_s=start_s)
