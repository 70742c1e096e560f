"""What a task needs made before it runs: the environments of its agent and its verifiers. Pure."""

from collections.abc import Iterator

from headrace.tasks.phases import views_of
from headrace.types import Artifact, EnvironmentRecipe, Task

MAX_COMMAND_BYTES = 90_000
"""A command goes into a sandbox as one argument, with its variables."""


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
    for name, size in _commands(task):
        if size > MAX_COMMAND_BYTES:
            return (
                f"{name}: {size} bytes, expected at most {MAX_COMMAND_BYTES}; put what is long"
                " into a file of the task"
            )
    return None


def _commands(task: Task) -> Iterator[tuple[str, int]]:
    """What the task has us run, and how long it is."""
    checks = [("environment.healthcheck", task.environment.healthcheck)]
    checks += [(f"healthcheck of step {step.name!r}", step.healthcheck) for step in task.steps]
    for name, check in checks:
        if check is not None:
            yield name, _bytes(check.command)
    for view in views_of(task):
        for number, hook in enumerate(view.verifier.collect):
            yield f"verifier.collect[{number}]", _bytes(hook.command)
        yield "artifacts", sum(_artifact_bytes(artifact) for artifact in view.artifacts)


def _artifact_bytes(artifact: Artifact) -> int:
    return sum(_bytes(text) + 16 for text in (artifact.source, *artifact.exclude))


def _bytes(text: str) -> int:
    return len(text.encode("utf-8", "surrogatepass"))
