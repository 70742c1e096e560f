"""The policy that runs a task's reference solution.

Rule: the solution goes where its format wants it and is started as the official harness does, in
the working directory, as the agent's user: a folder (Harbor) by its executable script, with its
variables; a single file (Terminal-Bench 1) by `bash`; keystrokes are typed into the terminal. Its
exit status is recorded and means nothing. It is the proof that a task can be solved, and no more.
"""

import shlex
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from headrace.errors import PolicyError, boundary
from headrace.policies.base import NoServer
from headrace.policies.listed import ListedSession
from headrace.policies.version import version_of
from headrace.types import Action, Command, SolutionRecipe, Task, Upload

LONGEST_S = 86_400.0
"""The engine cuts it to what is left of the agent's time."""


class OraclePolicy(NoServer):
    """One turn: bring the solution and run it."""

    name = "oracle"
    version = version_of(name="oracle", rules=2)
    terminal = False  # but for a solution of keystrokes, which is the task's to say

    @asynccontextmanager
    async def session(self, task: Task, sample: int) -> AsyncIterator[ListedSession]:
        """Raises `PolicyError` when the task has no solution, or one that cannot be read."""
        if task.solution is None:
            expected = "solution.sh" if task.format == "terminal-bench-1" else "solution/solve.sh"
            raise PolicyError(
                f"task {task.name!r} has no reference solution ({task.path}/{expected}); "
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
    if solution.keystrokes:
        return Action(text="Type the reference solution.", commands=solution.keystrokes, done=True)
    command = Command(text=solution_command(solution), timeout_s=LONGEST_S)
    return Action(
        text="Run the reference solution.",
        uploads=(Upload(source=solution.path, target=solution.target),),
        commands=(command,),
        done=True,
    )


def solution_command(solution: SolutionRecipe) -> str:
    """The shell command that runs the solution's script; see the rule above.

    A script of a folder that does not name its interpreter is run by bash.
    """
    script = f"{solution.target}/{solution.script}"
    path = Path(solution.path)
    if not path.is_dir():
        with path.open("rb"):  # told here, not by a sandbox
            return f"bash {script}"
    variables = {"DEBIAN_FRONTEND": "noninteractive", **solution.env}
    assigned = " ".join(shlex.quote(f"{name}={value}") for name, value in variables.items())
    with (path / solution.script).open("rb") as file:
        interpreter = "" if file.read(2) == b"#!" else "bash "
    return f"chmod +x {script} 2> /dev/null; env {assigned} {interpreter}{script}"
