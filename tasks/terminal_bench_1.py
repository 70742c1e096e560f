"""The reader of Terminal-Bench 1.0 tasks: a folder with `task.yaml` becomes a `Task`.

Rule: what the official harness runs is read as it means it; what it drops in silence, or refuses
although it can mean one thing only, is named in a warning. It builds nothing and runs nothing; it
blocks on the disk, so loops call it in a thread.

The whole folder is the task, for the build context is the folder: every file counts for the
digest. Times are the task's own; the official harness's multipliers are options of a run.
"""

import os
from collections.abc import Mapping
from pathlib import Path

import msgspec

from headrace.errors import ImageError, TaskError
from headrace.tasks import terminal_bench_1_compose as compose
from headrace.tasks import terminal_bench_1_fields as fields
from headrace.tasks.compose_variables import env_file
from headrace.tasks.copy_sources import missing_sources
from headrace.tasks.dockerfile import arguments, parse, stage_of
from headrace.tasks.harbor import printable, strip_canary
from headrace.tasks.harbor_files import LEFTOVERS, digest_of, entries, read_text
from headrace.tasks.reading import Read
from headrace.tasks.yaml_file import read_yaml
from headrace.types import (
    AgentRecipe,
    ComposeFile,
    EnvironmentRecipe,
    NetworkPolicy,
    SolutionRecipe,
    Task,
    VerifierRecipe,
)

CONFIG = "task.yaml"
RUN_TESTS = "run-tests.sh"
BUILD_TIMEOUT_S = 1800.0
"""The official harness has no deadline for a build; we have one for everything."""
MAX_TEXT_BYTES = 1 << 20
_FILES = ("docker-compose.yaml", "docker-compose.yml", "compose.yaml", "compose.yml")
_OFFICIAL_BASES = "/t-bench/"
"""In the names of Terminal-Bench's own base images, all of which have this directory:"""
_OFFICIAL_WORKDIR = "/app"


class _Stage(msgspec.Struct):
    """What an image of a Dockerfile has by the end of a stage."""

    base: str
    workdir: bool = False


def read_terminal_bench_1(path: str | Path, environ: Mapping[str, str] | None = None) -> Read:
    """The task in the folder `path`, with warnings. `environ` fills `${VAR}`; None: our own."""
    root = Path(os.path.abspath(path))
    if not root.is_dir():
        found = "a file" if root.exists() else "nothing"
        raise TaskError(f"{printable(root)}: expected a task folder, found {found}")
    try:
        return _read(root, os.environ if environ is None else environ)
    except TaskError as e:
        raise TaskError(printable(e)) from None
    except OSError as e:
        raise TaskError(printable(f"{e.filename or root}: {e.strerror}")) from None


def _read(root: Path, environ: Mapping[str, str]) -> Read:
    parts = sorted(set(os.listdir(root)) - LEFTOVERS)
    digest = digest_of(entries(root, parts, alone=("tests",)))  # first: it refuses what is odd
    if str(root) != printable(root):
        raise TaskError(f"{root}: expected a path in UTF-8 without control characters")
    warnings: list[str] = []
    config = _config(root, warnings)
    environment, agent_user, inert = _environment(root, environ, warnings)
    if not (root / RUN_TESTS).is_file():
        raise TaskError(f"{root}: no {RUN_TESTS}, the script that grades the task")
    tests = root / "tests"
    if not tests.is_dir():
        warnings.append(f"no tests/ folder; {RUN_TESTS} alone goes to {compose.TEST_DIR}")
    task = Task(
        name=root.name,
        digest=digest,
        path=str(root),
        format="terminal-bench-1",
        instruction=config.instruction,
        environment=environment,
        agent=AgentRecipe(timeout_s=config.agent_timeout_s, user=agent_user),
        verifier=VerifierRecipe(
            kind="terminal-bench-1",
            tests=(str(tests),) if tests.is_dir() else (),
            script=str(root / RUN_TESTS),
            timeout_s=config.test_timeout_s,
            user=None if config.same_shell else "root",
            parser=config.parser,
            same_shell=config.same_shell,
        ),
        solution=_solution(root, warnings),
        category=config.category,
        difficulty=config.difficulty,
        tags=config.tags,
        metadata=config.metadata,
        inert=inert,
    )
    return Read(task=task, warnings=tuple(dict.fromkeys(map(printable, warnings))))


def _config(root: Path, warnings: list[str]) -> fields.Fields:
    read = read_yaml(root, CONFIG)
    try:
        found = fields.interpret(read.value)
    except TaskError as e:
        raise TaskError(f"{root / CONFIG}: {e}") from None
    instruction = strip_canary(found.instruction)
    if not instruction.strip():
        raise TaskError(f"{root / CONFIG}: the instruction is empty")
    warnings += [*read.warnings, *found.warnings]
    return msgspec.structs.replace(found, instruction=instruction)


def _solution(root: Path, warnings: list[str]) -> SolutionRecipe | None:
    """`solution.sh` comes before `solution.yaml`, as officially."""
    if (root / "solution.sh").is_file():
        return SolutionRecipe(
            path=str(root / "solution.sh"), target="/oracle", script="solution.sh"
        )
    if not (root / "solution.yaml").is_file():
        return None
    read = read_yaml(root, "solution.yaml")
    try:
        typed, odd = fields.keystrokes(read.value)
    except TaskError as e:
        warnings.append(f"solution.yaml cannot be used: {e}")
        return None
    warnings += [f"solution.yaml: {text}" for text in (*read.warnings, *odd)]
    return SolutionRecipe(
        path=str(root / "solution.yaml"), target="/oracle", script="", keystrokes=typed
    )


# --- the environment ------------------------------------------------------------------------


def _environment(
    root: Path, environ: Mapping[str, str], warnings: list[str]
) -> tuple[EnvironmentRecipe, str | None, tuple[str, ...]]:
    """The recipe, the agent's user, and what is read but not acted on."""
    name = next((name for name in _FILES if (root / name).is_file()), None)
    if name is None:
        warnings.append(f"no {_FILES[0]}; the Dockerfile in the folder is taken")
        client = compose.Client(service=compose.CLIENT, services=(compose.CLIENT,), features=())
    else:
        client = _client(root, name, environ)
    warnings += client.warnings
    if name is not None and client.features:
        recipe = EnvironmentRecipe(
            compose=ComposeFile(
                path=str(root / name),
                context=str(root),
                service=client.service,
                services=client.services,
            ),
            build_timeout_s=BUILD_TIMEOUT_S,
        )
        return recipe, client.user, client.inert
    if name is not None and name != _FILES[0]:
        warnings.append(f"{name} is read in place of {_FILES[0]}")
    return _plain(root, client)


def _client(root: Path, name: str, environ: Mapping[str, str]) -> compose.Client:
    extra = {}
    if (root / ".env").is_file():
        extra = env_file(read_text(root, ".env", MAX_TEXT_BYTES))
    variables = compose.variables_of(root.name, environ, extra)
    document = read_yaml(root, name, compose=True).value
    try:
        client = compose.interpret(document, variables)
    except TaskError as e:
        raise TaskError(f"{root / name}: {e}") from None
    notes = list(client.warnings)
    notes += [f"takes the variable {used} of this machine" for used in variables.used
              if used in environ]  # fmt: skip
    notes += [f"the variable {unset} is not set; it is empty" for unset in variables.missing]
    return msgspec.structs.replace(client, warnings=tuple(f"{name}: {note}" for note in notes))


def _plain(
    root: Path, client: compose.Client
) -> tuple[EnvironmentRecipe, str | None, tuple[str, ...]]:
    """One container: its image, or its Dockerfile with the official base's working directory."""
    workdir = client.workdir
    dockerfile = context = None
    if client.image is None:
        context = _inside(root, root / client.context, "build.context")
        dockerfile = _inside(root, context / client.dockerfile, "build.dockerfile")
        last = _last_stage(_dockerfile(root, dockerfile, context))
        if workdir is None and not last.workdir and _OFFICIAL_BASES in last.base:
            workdir = _OFFICIAL_WORKDIR
    recipe = EnvironmentRecipe(
        image=client.image,
        dockerfile=None if dockerfile is None else str(dockerfile),
        context=None if context is None else str(context),
        workdir=workdir,
        env={"TEST_DIR": compose.TEST_DIR, **client.env},
        cpus=client.cpus,
        memory_mb=client.memory_mb,
        network=NetworkPolicy(mode=client.network),
        build_timeout_s=BUILD_TIMEOUT_S,
    )
    return recipe, client.user, client.inert


def _inside(root: Path, path: Path, key: str) -> Path:
    found = Path(os.path.normpath(path))
    if not found.is_relative_to(root):
        raise TaskError(f"{root}: {key}: expected a place in the task folder, found {found}")
    return found


def _dockerfile(root: Path, dockerfile: Path, context: Path) -> str:
    text = read_text(root, str(dockerfile.relative_to(root)), MAX_TEXT_BYTES)
    if not text.strip():
        raise TaskError(f"{dockerfile}: the file is empty")
    if not context.is_dir():
        raise TaskError(f"{context}: expected a folder as build context, found none")
    missing = missing_sources(text, context)
    if missing:
        raise TaskError(f"{dockerfile}: COPY source {missing[0]!r} is not in {context}")
    return text


def _last_stage(dockerfile: str) -> _Stage:
    """The image a Dockerfile makes; what is no Dockerfile is left to the builder."""
    stages: dict[str, _Stage] = {}
    stage, args = _Stage(base=""), dict[str, str]()
    try:
        for one in parse(dockerfile):
            if one.name == "FROM":
                said = stage_of(one, args)
                earlier = stages.get(said.base.lower(), _Stage(base=said.base))
                stage = stages[said.name or str(len(stages))] = msgspec.structs.replace(earlier)
            elif one.name == "ARG" and not stages:
                args.update(arguments(one.value, args))
            elif one.name == "WORKDIR":
                stage.workdir = True
    except ImageError:
        return _Stage(base="")
    return stage
