"""The tasks of `bench.parity`, ready for both sides: built once, the same image for both.

headrace runs the task folders as they are. Harbor would build an image for every trial, so it gets
copies that name the image headrace has built.
"""

import shutil
import subprocess
import tomllib
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

from headrace.configs.models import SandboxConfig
from headrace.sandbox.providers import choose
from headrace.sandbox.rootfs import BASE_IMAGE
from headrace.tasks.catalog import load
from headrace.types import EnvironmentRecipe, Task

FOLDER = Path(__file__).parent.parent / "tests" / "parity"
TASKS = FOLDER / "tasks"
ANSWERS = FOLDER / "answers.toml"
BASE_TAG = "headrace/parity-base:1"
"""What the tasks' Dockerfiles start from."""


@dataclass(frozen=True)
class Ready:
    """Both sides' folders of the same tasks."""

    ours: Path
    harbors: Path
    tasks: Sequence[Task]


async def prepare(work: Path, names: Collection[str]) -> Ready:
    """Build the images of the named tasks (empty: all) and write both folders below `work`."""
    ours, harbors = work / "tasks", work / "harbor-tasks"
    for folder in sorted(TASKS.iterdir()):
        if not names or folder.name in names:
            shutil.copytree(folder, ours / folder.name, symlinks=True)
    catalog = load(str(ours))
    if catalog.problems:
        raise SystemExit(f"tasks that cannot be read: {catalog.problems}")
    config = SandboxConfig(provider="docker")
    async with await choose(config, run_id="parity") as chosen:
        await chosen.provider.prepare(EnvironmentRecipe(image=BASE_IMAGE))
        build_base()
        for task in catalog.tasks:
            image = await chosen.provider.prepare(task.environment)
            _for_harbor(Path(task.path), harbors / Path(task.path).name, image)
    return Ready(ours=ours, harbors=harbors, tasks=catalog.tasks)


def build_base() -> None:
    """The common image, under the tag the Dockerfiles name. A second build takes no time."""
    command = ["docker", "build", "--quiet", "--tag", BASE_TAG, str(FOLDER / "base")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    if done.returncode:
        raise SystemExit(f"the base image was not built: {done.stderr[-800:]}")


def _for_harbor(source: Path, target: Path, image: str) -> None:
    """A copy with `docker_image` in place of the Dockerfile, in an otherwise equal task."""
    shutil.copytree(source, target, symlinks=True)
    shutil.rmtree(target / "environment")
    (target / "environment").mkdir()  # 0.24 wants the folder, if only an empty one
    config = target / "task.toml"
    text = config.read_text()
    line = f'docker_image = "{image}"\n'
    if "[environment]\n" in text:
        text = text.replace("[environment]\n", f"[environment]\n{line}")
    else:
        text += f"\n[environment]\n{line}"
    assert tomllib.loads(text)["environment"]["docker_image"] == image
    config.write_text(text)
