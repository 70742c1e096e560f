"""What each phase of a task may reach, and what its sandbox needs for that. Pure.

Rule: a phase has its own policy or the environment's. A sandbox whose phases all say the same
needs nothing that changes while it runs; only one whose phases differ, or that names hosts, needs
a proxy whose rule can change.
"""

from collections.abc import Sequence

from headrace.tasks.steps import step_view
from headrace.types import NetworkPolicy, Record, Task


class Reach(Record, frozen=True, kw_only=True):
    """How a sandbox is connected."""

    network: bool
    """Connected like any machine; False: loopback only, and what `egress` lets through."""
    egress: NetworkPolicy | None = None
    """Set: a proxy is needed, and this is its rule at the start."""


def views_of(task: Task) -> list[Task]:
    """The task as its steps, each a task of its own; the task itself where it has none."""
    return [step_view(task, step) for step in task.steps] or [task]


def agent_policy(view: Task) -> NetworkPolicy:
    """What the agent may reach."""
    return view.agent.network or view.environment.network


def verifier_policy(view: Task) -> NetworkPolicy:
    """What the tests may reach, in the agent's sandbox or in their own."""
    environment = view.verifier.environment or view.environment
    return view.verifier.network or environment.network


def reach(task: Task, *, follow: bool) -> Reach:
    """What the agent's sandbox needs; `follow` False: the run cuts everything off."""
    policies = [task.environment.network] if _acts_outside_phases(task) else []
    for view in views_of(task):
        policies.append(agent_policy(view))
        if view.verifier.environment is None:
            policies.append(verifier_policy(view))
    return fold(policies, follow=follow)


def verifier_reach(view: Task, *, follow: bool) -> Reach:
    """What a verifier's own sandbox needs."""
    return fold([verifier_policy(view)], follow=follow)


def asks_for_network(task: Task) -> bool:
    """Whether a run that cuts everything off gives some phase of the task less than it asks for."""
    apart = [view for view in views_of(task) if view.verifier.environment is not None]
    asked = [reach(task, follow=True), *(verifier_reach(view, follow=True) for view in apart)]
    return any(wanted != Reach(network=False) for wanted in asked)


def fold(policies: Sequence[NetworkPolicy], *, follow: bool) -> Reach:
    """One connection that can serve all of `policies`, in the first's state."""
    if not follow or all(_closed(policy) for policy in policies):
        return Reach(network=False)
    if all(policy.mode == "public" for policy in policies):
        return Reach(network=True)
    return Reach(network=False, egress=policies[0])


def _closed(policy: NetworkPolicy) -> bool:
    return policy.mode == "none" or (policy.mode == "allowlist" and not policy.allowed_hosts)


def _acts_outside_phases(task: Task) -> bool:
    """Whether anything of the task runs in neither phase: then the environment's policy holds."""
    views = views_of(task)
    return bool(
        task.environment.healthcheck
        or any(step.healthcheck or step.files for step in task.steps)
        or any(view.verifier.collect for view in views)
    )
