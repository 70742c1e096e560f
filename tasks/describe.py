"""A task in a few words, for lists: what it is made from, how it is graded, what it needs. Pure."""

from headrace.tasks.steps import step_view
from headrace.types import EnvironmentRecipe, NetworkPolicy, Record, Task

_MODES = {"public": "public", "none": "none"}


class Description(Record, frozen=True, kw_only=True):
    """What a list shows of one task."""

    format: str
    world: str
    """`image`, `Dockerfile` or `compose (2)`, with the number of services."""
    steps: int
    """0: it has none."""
    verifier: str
    """`shared`, `own sandbox`, `own image`, or the parser of a Terminal-Bench 1 task."""
    network: str
    """`public`, `none` or `allowlist (3)`; with the phases that differ."""
    needs: tuple[str, ...]
    """What not every provider has."""


def describe(task: Task) -> Description:
    """The words for `task`."""
    views = [step_view(task, step) for step in task.steps] or [task]
    return Description(
        format=task.format,
        world=_world(task.environment),
        steps=len(task.steps),
        verifier=_one_of(dict.fromkeys(_verifier(view) for view in views)),
        network=_network(task, views),
        needs=_needs(task, views),
    )


def _world(environment: EnvironmentRecipe) -> str:
    if environment.compose is not None:
        return f"compose ({len(environment.compose.services)})"
    return "Dockerfile" if environment.dockerfile is not None else "image"


def _verifier(view: Task) -> str:
    verifier = view.verifier
    if verifier.kind != "harbor":
        return verifier.parser or verifier.kind
    if verifier.environment is None:
        return "shared"
    return "own sandbox" if verifier.tests else "own image"


def _one_of(words: dict[str, None]) -> str:
    return ", ".join(words)


def _network(task: Task, views: list[Task]) -> str:
    base = task.environment.network
    shown = [_policy(base)]
    agents = {_policy(view.agent.network or base): None for view in views}
    if list(agents) != shown:
        shown.append(f"agent {_one_of(agents)}")
    verifiers = {
        _policy(view.verifier.network or (view.verifier.environment or view.environment).network):
        None for view in views
    }  # fmt: skip
    if list(verifiers) != [_policy(base)]:
        shown.append(f"tests {_one_of(verifiers)}")
    return ", ".join(shown)


def _policy(policy: NetworkPolicy) -> str:
    return _MODES.get(policy.mode) or f"allowlist ({len(policy.allowed_hosts)})"


def _needs(task: Task, views: list[Task]) -> tuple[str, ...]:
    verifiers = [view.verifier for view in views]
    environments = [task.environment, *(v.environment for v in verifiers if v.environment)]
    policies = [environment.network for environment in environments]
    policies += [view.agent.network for view in views if view.agent.network is not None]
    policies += [verifier.network for verifier in verifiers if verifier.network is not None]
    found = {
        "compose": any(environment.compose is not None for environment in environments),
        "allowlist": any(policy.mode == "allowlist" for policy in policies),
    }
    return tuple(name for name, needed in found.items() if needed)
