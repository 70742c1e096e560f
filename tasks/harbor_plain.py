"""A compose file of one service that says only what a sandbox has anyway: then it is not needed.

Rule: variables, a working directory, limits, a command that waits and where the image is built
from become a plain recipe, which every provider runs and no `docker compose` has to be there for.
Anything else, and anything in doubt, stays with `docker compose`. What the compose file says of
limits counts before the task.toml, and of variables after it, as Harbor layers them.
"""

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec

from headrace.errors import TaskError
from headrace.tasks.compose_variables import Variables
from headrace.tasks.terminal_bench_1_compose import Client, read_service
from headrace.tasks.yaml_file import read_yaml
from headrace.types import EnvironmentRecipe

_OURS = re.compile(r"\$\{?(MAIN_IMAGE_NAME|PREBUILT_IMAGE_NAME)\b")
_LOG_FOLDERS = re.compile(r"\$\{?HOST_(VERIFIER_LOGS|AGENT_LOGS|ARTIFACTS)_PATH\b")


def plain_world(
    recipe: EnvironmentRecipe, root: Path, environ: Mapping[str, str], warnings: list[str]
) -> EnvironmentRecipe:
    """`recipe` without its compose file, or as it is where that is needed."""
    compose = recipe.compose
    if compose is None or len(compose.services) > 1:
        return recipe
    path = Path(compose.path)
    document = read_yaml(path.parent, path.name, compose=True).value
    if not {key for key, value in document.items() if value} <= {"services", "version", "name"}:
        return recipe
    service = _as_harbor_lays_it(document["services"].get(compose.service) or {})
    variables = Variables({**environ, **_values(recipe, path)})
    try:
        client = read_service(compose.service, service, variables)
    except TaskError as e:
        raise TaskError(f"{path}: {e}") from None
    if client.features or client.inert or client.user or client.network != "public":
        return recipe
    warnings += [
        f"{path}: takes the variable {name} of this machine"
        for name in variables.used
        if name not in _values(recipe, path)
    ]
    return _built(recipe, client, service, root, path.parent) or recipe


def _as_harbor_lays_it(service: Mapping[str, Any]) -> dict[str, Any]:
    """The service over Harbor's own: its image is ours, it waits, its log folders are there."""
    found = {"command": "sleep infinity", **service}
    if _OURS.search(str(found.get("image", ""))):
        del found["image"]
    if isinstance(found.get("volumes"), list):
        found["volumes"] = [
            v for v in found["volumes"] if not (isinstance(v, str) and _LOG_FOLDERS.match(v))
        ]
    return found


def _values(recipe: EnvironmentRecipe, path: Path) -> dict[str, str]:
    return {
        "CONTEXT_DIR": str(path.parent),
        "TEST_DIR": "/tests",
        "CPUS": f"{recipe.cpus or 1:g}",
        "MEMORY": f"{recipe.memory_mb or 2048}M",
    }


def _built(
    recipe: EnvironmentRecipe,
    client: Client,
    service: Mapping[str, Any],
    root: Path,
    folder: Path,
) -> EnvironmentRecipe | None:
    image, dockerfile, context = recipe.image, recipe.dockerfile, recipe.context
    if service.get("build") is not None:
        context = os.path.normpath(folder / client.context)
        dockerfile = os.path.normpath(os.path.join(context, client.dockerfile))
        inside = f"{context}/".startswith(f"{root}/")
        if not inside or not os.path.isfile(dockerfile) or os.path.islink(dockerfile):
            return None
    elif service.get("image") is not None:
        image, dockerfile, context = client.image, None, None
    if image is None and dockerfile is None:
        return None
    return msgspec.structs.replace(
        recipe,
        compose=None,
        image=image,
        dockerfile=dockerfile,
        context=context,
        workdir=recipe.workdir or client.workdir,
        env=client.env | recipe.env,
        cpus=client.cpus or recipe.cpus,
        memory_mb=client.memory_mb or recipe.memory_mb,
    )
