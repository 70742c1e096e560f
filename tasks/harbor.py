"""The reader of Harbor tasks: a folder with `task.toml` becomes a `Task`.

Rule: what Harbor accepts is accepted, what it drops in silence is named in a warning, and what
cannot be run (Windows, GPUs) is refused by name. One thing is read otherwise, on purpose: a step
that names no time for its tests has the task's, where Harbor gives it 600 s. It builds nothing
and runs nothing; it blocks on the disk, so loops call it in a thread.
"""

import os
import re
import tomllib
from collections.abc import Mapping
from pathlib import Path

from headrace.errors import TaskError
from headrace.tasks.harbor_files import LEFTOVERS, PARTS, digest, read_text
from headrace.tasks.harbor_ignore import NAME as HARBORIGNORE
from headrace.tasks.harbor_ignore import HarborIgnore
from headrace.tasks.harbor_plain import plain_world
from headrace.tasks.harbor_toml import Fields, StepFields, interpret
from headrace.tasks.harbor_verifier import verifier_recipe
from headrace.tasks.harbor_world import reaches_task_folder, with_folder
from headrace.tasks.reading import Read
from headrace.tasks.toml_table import MAX_DEPTH, depth, has_long_key
from headrace.types import (
    AgentRecipe,
    SolutionRecipe,
    StepRecipe,
    Task,
    VerifierRecipe,
)

CONFIG = "task.toml"
INSTRUCTION = "instruction.md"
PRIOR_CONTEXT = "trajectory.json"
MAX_TEXT_BYTES = 1 << 20
_CANARY = re.compile(r"\s*(?:<!--.*canary.*-->|#.*canary.*)\s*", re.IGNORECASE)


def read_task(path: str | Path, environ: Mapping[str, str] | None = None) -> Task:
    """The task in the folder `path`. `TaskError` says what is wrong with it."""
    return read_harbor(path, environ).task


def read_harbor(path: str | Path, environ: Mapping[str, str] | None = None) -> Read:
    """The task in the folder `path`, with warnings. `environ` fills `${VAR}`; None: our own."""
    root = Path(os.path.abspath(path))
    if not root.is_dir():
        found = "a file" if root.exists() else "nothing"
        raise TaskError(f"{printable(root)}: expected a task folder, found {found}")
    try:
        return _read(root, os.environ if environ is None else environ)
    except TaskError as e:
        message = str(e) if str(e).startswith(str(root)) else f"{root / CONFIG}: {e}"
        raise TaskError(printable(message)) from None
    except OSError as e:
        raise TaskError(printable(f"{e.filename or root}: {e.strerror}")) from None


def printable(text: object) -> str:
    """`text` in one line that every terminal and file takes."""
    clean = str(text).encode("utf-8", "backslashreplace").decode()
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in clean)


def strip_canary(text: str) -> str:
    """`text` without its leading canary lines and the blank lines after them."""
    lines = text.splitlines(keepends=True)
    start = 0
    while start < len(lines) and _CANARY.fullmatch(lines[start]):
        start += 1
    if start:
        while start < len(lines) and not lines[start].strip():
            start += 1
    return "".join(lines[start:])


def _read(root: Path, environ: Mapping[str, str]) -> Read:
    task_digest = digest(root)  # first: it refuses what must not be opened
    if str(root) != printable(root):
        raise TaskError(f"{root}: expected a path in UTF-8 without control characters")
    fields = interpret(_document(root), environ)
    warnings = list(fields.warnings)
    environment = with_folder(fields.environment, root, "environment", warnings)
    if reaches_task_folder(environment, root):
        task_digest = digest(root, sorted({*os.listdir(root), *PARTS} - LEFTOVERS))
    environment = plain_world(environment, root, environ, warnings)
    steps = tuple(_step(root, fields, step, environ, warnings) for step in fields.steps)
    task = Task(
        name=fields.name or root.name,
        digest=task_digest,
        path=str(root),
        format="harbor",
        instruction="" if steps else _instruction(root, INSTRUCTION),
        environment=environment,
        agent=fields.agent,
        verifier=_inherited(fields)
        if steps
        else verifier_recipe(root, fields, None, environ, warnings),
        solution=_solution(root, "solution", fields),
        steps=steps,
        reward_strategy=fields.reward_strategy,
        artifacts=fields.artifacts,
        category=fields.category,
        difficulty=fields.difficulty,
        tags=fields.tags,
        metadata=fields.metadata,
        inert=(*fields.inert, *_prior_contexts(root, fields)),
    )
    warnings += _unread(root, fields)
    warnings += _services_not_there(task)
    return Read(task=task, warnings=tuple(dict.fromkeys(map(printable, warnings))))


def _document(root: Path) -> dict[str, object]:
    text = read_text(root, CONFIG, MAX_TEXT_BYTES)
    if has_long_key(text):
        raise TaskError(f"{root / CONFIG}: a key of more than {MAX_DEPTH} parts")
    try:
        document = tomllib.loads(text)
    except ValueError as e:
        raise TaskError(f"{root / CONFIG}: broken TOML: {e}") from None
    except RecursionError:
        raise TaskError(f"{root / CONFIG}: broken TOML: nested too deep") from None
    if depth(document) > MAX_DEPTH:
        raise TaskError(f"{root / CONFIG}: nested deeper than {MAX_DEPTH}")
    return document


def _instruction(root: Path, name: str) -> str:
    text = strip_canary(read_text(root, name, MAX_TEXT_BYTES))
    if not text.strip():
        raise TaskError(f"{root / name}: the instruction is empty")
    return text


def _inherited(fields: Fields) -> VerifierRecipe:
    """The verifier of a task with steps: what they inherit; they have the tests."""
    own = fields.verifier
    return VerifierRecipe(
        timeout_s=own.timeout_s or 600.0, env=own.env, user=own.user, network=own.network,
        collect=own.collect,
    )  # fmt: skip


def _step(
    root: Path,
    fields: Fields,
    step: StepFields,
    environ: Mapping[str, str],
    warnings: list[str],
) -> StepRecipe:
    folder = f"steps/{step.name}"
    if not (root / folder).is_dir():
        raise TaskError(f"{root}: no folder {folder}/, the step's files")
    files = root / folder / "workdir"
    own_solution = f"{folder}/solution"
    return StepRecipe(
        name=step.name,
        instruction=_instruction(root, f"{folder}/{INSTRUCTION}"),
        agent=AgentRecipe(
            timeout_s=step.agent.timeout_s or fields.agent.timeout_s,
            user=step.agent.user if step.agent.user is not None else fields.agent.user,
            network=step.agent.network or fields.agent.network,
        ),
        verifier=verifier_recipe(root, fields, step, environ, warnings),
        solution=_solution(root, own_solution, fields)
        if (root / own_solution).is_dir()
        else _solution(root, "solution", fields),
        files=str(files) if files.is_dir() else None,
        healthcheck=step.healthcheck,
        min_reward=step.min_reward,
        artifacts=step.artifacts,
    )


def _solution(root: Path, name: str, fields: Fields) -> SolutionRecipe | None:
    folder = root / name
    if not (folder / "solve.sh").is_file() or HarborIgnore(folder).excludes("solve.sh"):
        return None
    return SolutionRecipe(path=str(folder), env=fields.solution_env)


def _prior_contexts(root: Path, fields: Fields) -> list[str]:
    names = [PRIOR_CONTEXT, *(f"steps/{step.name}/{PRIOR_CONTEXT}" for step in fields.steps)]
    return [name for name in names if (root / name).exists()]


def _unread(root: Path, fields: Fields) -> list[str]:
    """What is in the folder and looks as if it counted."""
    found = []
    if (root / HARBORIGNORE).exists():
        found.append(f"{HARBORIGNORE} counts inside tests/ and solution/ only; this one does not")
    if fields.steps and (root / INSTRUCTION).exists():
        found.append(f"{INSTRUCTION} is not used: each step has its own")
    steps = root / "steps"
    if steps.is_dir():
        named = {step.name for step in fields.steps}
        found += [
            f"steps/{name} is not used: no [[steps]] of task.toml has this name"
            for name in sorted(os.listdir(steps))
            if name not in named and (steps / name).is_dir() and not name.startswith(".")
        ]
    return found


def _services_not_there(task: Task) -> list[str]:
    """Services that artifacts and hooks name and no compose file has."""
    known = task.environment.compose.services if task.environment.compose is not None else ()
    verifiers = [task.verifier, *(step.verifier for step in task.steps)]
    named = [artifact.service for artifact in task.artifacts]
    named += [artifact.service for step in task.steps for artifact in step.artifacts]
    named += [hook.service for verifier in verifiers for hook in verifier.collect]
    return [
        f"the service {name!r} is asked for files, and the task has none of this name"
        for name in dict.fromkeys(named)
        if name not in ("main", *known)
    ]
