"""The reader of single-step Harbor tasks: a folder with `task.toml` becomes a `Task`.

Rule: what Harbor accepts is accepted, what it drops in silence is named in a warning, and what
cannot be run yet (several steps, compose, separate verifiers, Windows) is refused by name. It
builds nothing and runs nothing; it blocks on the disk, so loops call it in a thread.
"""

import os
import re
import tomllib
from collections.abc import Mapping
from pathlib import Path

from headrace.errors import TaskError
from headrace.tasks.harbor_files import digest, missing_sources, read_text
from headrace.tasks.harbor_toml import Fields, interpret
from headrace.tasks.reading import Read
from headrace.types import (
    AgentRecipe,
    EnvironmentRecipe,
    NetworkPolicy,
    SolutionRecipe,
    Task,
    VerifierRecipe,
)

CONFIG = "task.toml"
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
        raise TaskError(f"{root}: expected a task folder, found {found}")
    try:
        return _read(root, os.environ if environ is None else environ)
    except TaskError as e:
        if str(e).startswith(str(root)):
            raise
        raise TaskError(f"{root / CONFIG}: {e}") from None
    except OSError as e:
        raise TaskError(f"{e.filename or root}: {e.strerror}") from None


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
    fields = interpret(_document(root), environ)
    warnings = list(fields.warnings)
    environment = _environment(root, fields, warnings)
    instruction = strip_canary(read_text(root, "instruction.md", MAX_TEXT_BYTES))
    if not instruction.strip():
        raise TaskError(f"{root / 'instruction.md'}: the instruction is empty")
    tests = root / "tests"
    if not (tests / "test.sh").is_file():
        raise TaskError(f"{root}: no tests/test.sh, the script that grades the task")
    warnings += [
        f"tests/{name} is not used: the verifier shares the agent's sandbox"
        for name in ("Dockerfile", "docker-compose.yaml")
        if (tests / name).exists()
    ]
    inert = [*fields.inert]
    inert += [name for name in ("trajectory.json", ".harborignore") if (root / name).exists()]
    task = Task(
        name=fields.name or root.name,
        digest=task_digest,
        path=str(root),
        format="harbor",
        instruction=instruction,
        environment=environment,
        agent=AgentRecipe(timeout_s=fields.agent_timeout_s, user=fields.agent_user),
        verifier=VerifierRecipe(
            tests=(str(tests),),
            timeout_s=fields.verifier_timeout_s,
            env=fields.verifier_env,
            user=fields.verifier_user,
        ),
        solution=_solution(root, fields),
        category=fields.category,
        difficulty=fields.difficulty,
        tags=fields.tags,
        metadata=fields.metadata,
        inert=tuple(inert),
    )
    return Read(task=task, warnings=tuple(warnings))


def _document(root: Path) -> dict[str, object]:
    text = read_text(root, CONFIG, MAX_TEXT_BYTES)
    try:
        return tomllib.loads(text)
    except ValueError as e:
        raise TaskError(f"{root / CONFIG}: broken TOML: {e}") from None
    except RecursionError:
        raise TaskError(f"{root / CONFIG}: broken TOML: nested too deep") from None


def _solution(root: Path, fields: Fields) -> SolutionRecipe | None:
    folder = root / "solution"
    if not (folder / "solve.sh").is_file():
        return None
    return SolutionRecipe(path=str(folder), env=fields.solution_env)


def _environment(root: Path, fields: Fields, warnings: list[str]) -> EnvironmentRecipe:
    context = root / "environment"
    if (context / "docker-compose.yaml").exists():
        raise TaskError(f"{context / 'docker-compose.yaml'}: compose tasks cannot be run yet")
    dockerfile = context / "Dockerfile"
    has_dockerfile = dockerfile.is_file()
    if has_dockerfile:
        _check_sources(root, context, fields, warnings)
    elif fields.docker_image is None:
        raise TaskError(f"{root}: no environment/Dockerfile and no environment.docker_image")
    has_context = context.is_dir()
    return EnvironmentRecipe(
        image=fields.docker_image,
        dockerfile=str(dockerfile) if has_dockerfile else None,
        context=str(context) if has_context else None,
        upload_context=has_context and not has_dockerfile and any(context.iterdir()),
        workdir=fields.workdir,
        env=fields.env,
        cpus=fields.cpus,
        memory_mb=fields.memory_mb,
        storage_mb=fields.storage_mb,
        network=NetworkPolicy(mode=fields.network),
        build_timeout_s=fields.build_timeout_s,
    )


def _check_sources(root: Path, context: Path, fields: Fields, warnings: list[str]) -> None:
    text = read_text(root, "environment/Dockerfile", MAX_TEXT_BYTES)
    if not text.strip():
        raise TaskError(f"{context / 'Dockerfile'}: the file is empty")
    missing = missing_sources(text, context)
    if not missing:
        return
    message = f"{context / 'Dockerfile'}: COPY source {missing[0]!r} is not in {context}"
    if not missing_sources(text, root):
        message += " (it is in the task folder, but only environment/ is the build context)"
    if fields.docker_image is None:
        raise TaskError(message)
    warnings.append(message)
