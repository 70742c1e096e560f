"""Who grades a Harbor task or a step of it, and where.

Rule: what a step does not say is the task's. A verifier of its own takes its image from the first
of: the step's `verifier.environment.docker_image`, the step's `tests/` when that describes one,
the task's `verifier.environment.docker_image`, the task's `tests/`, the agent's environment. In
the first four the image holds the tests; in the last they are brought.
"""

from collections.abc import Mapping
from pathlib import Path

import msgspec

from headrace.errors import TaskError
from headrace.tasks.harbor_ignore import HarborIgnore
from headrace.tasks.harbor_plain import plain_world
from headrace.tasks.harbor_toml import Fields, StepFields
from headrace.tasks.harbor_world import describes_image, with_folder
from headrace.types import EnvironmentRecipe, VerifierRecipe

SCRIPT = "test.sh"
DEFAULT_TIMEOUT_S = 600.0


def verifier_recipe(
    root: Path,
    fields: Fields,
    step: StepFields | None,
    environ: Mapping[str, str],
    warnings: list[str],
) -> VerifierRecipe:
    """The verifier of a task without steps, or of `step`. `TaskError` if no script grades it."""
    own, of_step = fields.verifier, step.verifier if step is not None else None
    levels = [level for level in (of_step, own) if level is not None]
    separate = next((level.separate for level in levels if level.separate is not None), False)
    folders = ["tests", *([f"steps/{step.name}/tests"] if step is not None else [])]
    environment, bundled = None, False
    if separate:
        environment, bundled = _own_environment(root, fields, step, warnings)
        told: list[str] = []
        environment = plain_world(environment, root, environ, told)
        warnings += [one for one in told if one not in warnings]  # steps may share a file
    else:
        warnings += _unused(root, folders)
    return VerifierRecipe(
        tests=() if bundled else _tests(root, folders),
        script=SCRIPT,
        timeout_s=next((v.timeout_s for v in levels if v.timeout_s), DEFAULT_TIMEOUT_S),
        env=own.env | (of_step.env if of_step is not None else {}),
        user=next((v.user for v in levels if v.user is not None), None),
        network=next((v.network for v in levels if v.network is not None), None),
        environment=environment,
        collect=(*own.collect, *(of_step.collect if of_step is not None else ())),
    )


def _own_environment(
    root: Path, fields: Fields, step: StepFields | None, warnings: list[str]
) -> tuple[EnvironmentRecipe, bool]:
    """The environment of a separate verifier, and whether its image holds the tests."""
    candidates = [(fields.verifier.environment, "tests")]
    if step is not None:
        candidates.insert(0, (step.verifier.environment, f"steps/{step.name}/tests"))
    settings = next((given for given, _ in candidates if given is not None), None)
    settings = _without_start(settings or fields.environment)
    for given, folder in candidates:
        image = given.image if given is not None else None
        if image is not None or describes_image(root / folder):
            recipe = msgspec.structs.replace(settings, image=image)
            return with_folder(recipe, root, folder, warnings, for_agent=False), True
    recipe = msgspec.structs.replace(settings, image=fields.environment.image)
    already_said: list[str] = []
    return with_folder(recipe, root, "environment", already_said), False


def _without_start(recipe: EnvironmentRecipe) -> EnvironmentRecipe:
    """Health checks and tool servers are the agent's; nobody asks for them beside the tests."""
    return msgspec.structs.replace(recipe, healthcheck=None, mcp_servers=())


def _unused(root: Path, folders: list[str]) -> list[str]:
    return [
        f"{folder} describes an image, which is not used: the verifier shares the agent's "
        'sandbox; environment_mode = "separate" in [verifier] would use it'
        for folder in folders
        if describes_image(root / folder)
    ]


def _tests(root: Path, folders: list[str]) -> tuple[str, ...]:
    there = [root / folder for folder in folders if (root / folder).is_dir()]
    scripts = [folder for folder in there if (folder / SCRIPT).is_file()]
    if not scripts:
        shared = f", and no {folders[0]}/{SCRIPT}" if len(folders) > 1 else ""
        raise TaskError(
            f"{root}: no {folders[-1]}/{SCRIPT}, the script that grades the task{shared}"
        )
    if HarborIgnore(scripts[-1]).excludes(SCRIPT):
        raise TaskError(f"{scripts[-1] / SCRIPT}: .harborignore keeps the script from the sandbox")
    return tuple(str(folder) for folder in there)
