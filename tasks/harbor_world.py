"""The folder of an environment: Dockerfile, compose file, build context.

Rule: the recipe of a task.toml gets its paths here, nothing is built. A build context is the
folder of the Dockerfile; where what it copies is in the task folder only, the task folder is the
context, with a warning, since that is how some public tasks are built.
"""

import os
import re
from collections.abc import Iterable
from pathlib import Path

import msgspec

from headrace.errors import TaskError
from headrace.tasks.copy_sources import context_sources, missing
from headrace.tasks.harbor_compose import COMPOSE, read_compose
from headrace.tasks.harbor_files import read_text
from headrace.types import EnvironmentRecipe

DOCKERFILE = "Dockerfile"
MAX_TEXT_BYTES = 1 << 20
_UPWARDS = re.compile(r"(?<![\w.])\.\.(?![\w.])")
HIDDEN_FROM_THE_AGENT = ("tests", "solution", "steps")
"""Folders of a task that its image must not hold."""


def describes_image(folder: Path) -> bool:
    """Whether a `tests/` folder describes an image of its own."""
    return (folder / DOCKERFILE).is_file() or (folder / COMPOSE).is_file()


def with_folder(
    recipe: EnvironmentRecipe,
    root: Path,
    folder: str,
    warnings: list[str],
    *,
    for_agent: bool = True,
) -> EnvironmentRecipe:
    """`recipe` with the paths of `folder` (relative to the task `root`) filled in.

    `TaskError` when nothing describes an image. `for_agent`: a copy of tests or solutions into
    the image is worth a warning.
    """
    context = root / folder
    has_dockerfile = (context / DOCKERFILE).is_file()
    build_context = context
    if has_dockerfile:
        may_fail = recipe.image is not None or (context / COMPOSE).is_file()
        build_context = _context(root, folder, warnings, for_agent=for_agent, may_fail=may_fail)
    compose = None
    if (context / COMPOSE).is_file():
        compose, odd = read_compose(
            root, f"{folder}/{COMPOSE}", main_is_ours=has_dockerfile or recipe.image is not None
        )
        warnings += odd
    if not has_dockerfile and compose is None and recipe.image is None:
        raise TaskError(f"{root}: no {folder}/{DOCKERFILE} and no environment.docker_image")
    return msgspec.structs.replace(
        recipe,
        dockerfile=str(context / DOCKERFILE) if has_dockerfile else None,
        context=str(build_context) if context.is_dir() else None,
        compose=compose,
        upload_context=for_agent
        and not has_dockerfile
        and compose is None
        and context.is_dir()
        and any(context.iterdir()),
    )


def _context(
    root: Path, folder: str, warnings: list[str], *, for_agent: bool, may_fail: bool
) -> Path:
    """The build context of `folder`'s Dockerfile: the folder, or the task folder.

    `may_fail`: the image can come from elsewhere, or a compose file names another context.
    """
    dockerfile, context = root / folder / DOCKERFILE, root / folder
    text = read_text(root, f"{folder}/{DOCKERFILE}", MAX_TEXT_BYTES)
    if not text.strip():
        raise TaskError(f"{dockerfile}: the file is empty")
    sources = context_sources(text)
    absent = missing(sources, context)
    if not absent:
        return context
    message = f"{dockerfile}: COPY source {absent[0]!r} is not in {context}"
    still_absent = missing(sources, root)
    if not still_absent:
        warnings.append(f"{message}; the build context is the task folder, which has it")
        if for_agent:
            warnings += _leaks(sources, dockerfile)
        return root
    if len(still_absent) < len(absent):
        message += f", nor is {still_absent[0]!r} in {root}"
    if not may_fail:
        raise TaskError(message)
    warnings.append(message)
    return context


def reaches_task_folder(environment: EnvironmentRecipe, root: Path) -> bool:
    """Whether files beside `environment/` may be in the image: then all of them count."""
    if environment.context == str(root):
        return True
    if environment.compose is None:
        return False
    name = os.path.relpath(environment.compose.path, root)
    return _UPWARDS.search(read_text(root, name, MAX_TEXT_BYTES)) is not None


def _leaks(sources: Iterable[str], dockerfile: Path) -> list[str]:
    shown = dict.fromkeys(source for source in sources if leaks(source))
    return [
        f"{dockerfile}: leak: COPY brings {source!r} of the task folder into the agent's image"
        for source in shown
    ]


def leaks(source: str) -> bool:
    """Whether a source, relative to the task folder, brings tests or solutions along."""
    first = source.strip("/").removeprefix("./").split("/")[0]
    return first in ("", ".", "*", *HIDDEN_FROM_THE_AGENT)
