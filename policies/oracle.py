"""The policy that runs a task's reference solution.

Rule: the solution goes to `/solution` and is started as Harbor starts it: executable, in the
working directory, with the solution's variables, as the agent's user. Its exit status is recorded
and means nothing. It is the proof that a task can be solved, and no more.
"""

import shlex
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from headrace.errors import PolicyError, boundary
from headrace.policies.listed import ListedSession
from headrace.policies.version import version_of
from headrace.types import Action, Command, SolutionRecipe, Task, Upload

LONGEST_S = 86_400.0
"""The engine cuts it to what is left of the agent's time."""
TARGET = "/solution"


class OraclePolicy:
    """One turn: bring the solution and run it."""

    name = "oracle"
    version = version_of(name="oracle", rules=1)

    @asynccontextmanager
    async def session(self, task: Task, sample: int) -> AsyncIterator[ListedSession]:
        """Raises `PolicyError` when the task has no solution, or one that cannot be read."""
        if task.solution is None:
            raise PolicyError(
                f"task {task.name!r} has no reference solution ({task.path}/solution/solve.sh); "
                "the oracle policy cannot run it"
            )
        with boundary(PolicyError, f"the reference solution of task {task.name!r}"):
            action = _action(task.solution)
        yield ListedSession([action])

    async def __aenter__(self) -> "OraclePolicy":
        return self

    async def __aexit__(self, *exc: object) -> None:
        return None


def _action(solution: SolutionRecipe) -> Action:
    command = Command(text=solution_command(solution), timeout_s=LONGEST_S)
    return Action(
        text="Run the reference solution.",
        uploads=(Upload(source=solution.path, target=TARGET),),
        commands=(command,),
        done=True,
    )


def solution_command(solution: SolutionRecipe) -> str:
    """The shell command that runs `solve.sh`; by bash when it does not name its interpreter."""
    script = f"{TARGET}/solve.sh"
    variables = {"DEBIAN_FRONTEND": "noninteractive", **solution.env}
    assigned = " ".join(shlex.quote(f"{name}={value}") for name, value in variables.items())
    with (Path(solution.path) / "solve.sh").open("rb") as file:
        interpreter = "" if file.read(2) == b"#!" else "bash "
    return f"chmod +x {script} 2> /dev/null; env {assigned} {interpreter}{script}"
