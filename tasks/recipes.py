"""What a task needs made before it runs: the environments of its agent and its verifiers. Pure."""

from headrace.types import EnvironmentRecipe, Task


def recipes_of(task: Task) -> list[EnvironmentRecipe]:
    """Each distinct environment of the task once, the agent's first."""
    verifiers = [step.verifier for step in task.steps] or [task.verifier]
    found = [task.environment]
    for verifier in verifiers:
        if verifier.environment is not None and verifier.environment not in found:
            found.append(verifier.environment)
    return found


def unsupported(task: Task) -> str | None:
    """Why no provider can run the task as it asks, or None."""
    users = {step.agent.user for step in task.steps}
    if len(users) > 1:
        named = ", ".join(sorted(user or "the image's own" for user in users))
        return (
            f"its steps have agents of different users ({named}); one shell serves all steps:"
            " give every step the same `agent.user`"
        )
    return None
