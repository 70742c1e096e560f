"""A step of a task of several, seen as a task of its own. Pure."""

import msgspec

from headrace.types import StepRecipe, Task


def step_view(task: Task, step: StepRecipe) -> Task:
    """`task` with the step's instruction, agent, verifier, solution and artifacts, and no steps.

    Digest, name and environment stay the task's: policies and verifiers need know nothing of
    steps. Who does finds the step's name in `metadata["step"]`.
    """
    return msgspec.structs.replace(
        task,
        instruction=step.instruction,
        agent=step.agent,
        verifier=step.verifier,
        solution=step.solution,
        artifacts=(*task.artifacts, *step.artifacts),
        metadata={**task.metadata, "step": step.name},
        steps=(),
    )
