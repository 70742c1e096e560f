"""What may trouble a task that can be read: the findings of `headrace tasks check`.

Rule: hints from the text of the files, never proof; nothing is run. A task without findings can
still be broken: run it with `oracle` and with `noop`.
"""

import os
import re
from collections.abc import Iterator
from pathlib import Path

from headrace.errors import TaskError
from headrace.tasks.copy_sources import context_sources
from headrace.tasks.harbor_world import leaks
from headrace.tasks.steps import step_view
from headrace.tasks.yaml_file import read_yaml
from headrace.types import ComposeFile, EnvironmentRecipe, Record, SolutionRecipe, Task

MAX_SCRIPT_BYTES = 1 << 20
MAX_TEST_FILES = 200
_FETCH = re.compile(
    r"^[^#\n]*?\b(?:(?P<installer>apt-get|apt|apk|pip3?|uv|npm|cargo|conda)\s[^\n]*?"
    r"\b(?:install|update|add|sync)\b"
    r"|(?P<runner>uvx|npx)\s"
    r"|(?P<client>curl|wget)\s[^\n]*?https?://(?!127\.|localhost)"
    r"|(?P<git>git)\s[^\n]*?\b(?:clone|pull|fetch)\b[^\n]*?://)",
    re.MULTILINE,
)
_SHEBANG = re.compile(r"#!\s*/")
_RUNS_AS = re.compile(r"^\s*USER\s+\S", re.MULTILINE | re.IGNORECASE)
_COPIES_TESTS = re.compile(r"^\s*(COPY|ADD)\s.*\b(tests|solution)\b", re.MULTILINE | re.IGNORECASE)


class Finding(Record, frozen=True, kw_only=True):
    """One thing to look at."""

    code: str
    """Snake case, stable."""
    message: str


def check(task: Task) -> list[Finding]:
    """The findings about one task, in a fixed order."""
    found = [*_solutions(task)]
    for path in _scripts(task):
        found += _script(path, os.path.relpath(path, task.path))
    found += _rewards(task)
    found += _environment(task, task.environment)
    if task.environment.compose is not None:
        found += _compose(task.environment.compose)
    if task.inert:
        found.append(("inert_fields", f"read but not acted on: {', '.join(task.inert)}"))
    untimed = [view for view in _views(task) if view.agent.timeout_s is None]
    if untimed:
        found.append(("no_agent_timeout", "agent.timeout_sec is not set: only the run limits it"))
    return [Finding(code=code, message=message) for code, message in dict.fromkeys(found)]


def _views(task: Task) -> list[Task]:
    return [step_view(task, step) for step in task.steps] or [task]


def _solutions(task: Task) -> Iterator[tuple[str, str]]:
    without = [step.name for step in task.steps if step.solution is None]
    if without:
        yield "no_solution", f"no solution of {', '.join(without)}: the oracle cannot run this task"
    elif not task.steps and task.solution is None:
        wanted = "solution.sh" if task.format == "terminal-bench-1" else "solution/solve.sh"
        yield "no_solution", f"no {wanted}: the oracle cannot run this task"


def _scripts(task: Task) -> list[Path]:
    """What is run, each once, in the order of running."""
    found: dict[Path, None] = {}
    for step in task.steps:
        if step.files is not None:
            found[Path(step.files) / "setup.sh"] = None
    for view in _views(task):
        if view.solution is not None and not view.solution.keystrokes:
            found[_solve(view.solution)] = None
        for folder in view.verifier.tests or ("/",):
            found[Path(folder) / view.verifier.script] = None
    return [path for path in found if path.is_file()]


def _solve(solution: SolutionRecipe) -> Path:
    path = Path(solution.path)
    return path / solution.script if path.is_dir() else path


def _script(path: Path, name: str) -> list[tuple[str, str]]:
    text, found = _text(path), []
    if not _SHEBANG.match(text):
        found.append(("no_shebang", f"{name} does not begin with #!; bash runs it"))
    elif text.partition("\n")[0].endswith("\r"):
        found.append(
            ("crlf_shebang", f"the #! line of {name} ends in a carriage return: no such program")
        )
    if "\r\n" in text:
        found.append(("crlf", f"{name} has Windows line ends; a shell stumbles over them"))
    if not path.stat().st_mode & 0o111:
        found.append(("no_run_bit", f"{name} is not executable; it is run all the same"))
    if fetch := _FETCH.search(text):
        program = fetch["installer"] or fetch["runner"] or fetch["client"] or fetch["git"]
        line = text.count("\n", 0, fetch.end()) + 1
        found.append(("uses_network", f"{name}:{line} seems to fetch with {program!r}"))
    return found


def _rewards(task: Task) -> Iterator[tuple[str, str]]:
    """Harbor's tests write their reward into a file; some file of theirs has to name it."""
    for view in _views(task):
        if view.verifier.kind != "harbor" or not view.verifier.tests:
            continue
        files = (path for folder in view.verifier.tests for path in _test_files(Path(folder)))
        if not any("reward" in _text(path) for path in files):
            name = os.path.relpath(view.verifier.tests[-1], task.path)
            yield "no_reward", f"no file in {name}/ mentions the reward file it must write"


def _environment(task: Task, environment: EnvironmentRecipe) -> Iterator[tuple[str, str]]:
    if environment.image is not None and environment.dockerfile is not None:
        yield "image_and_dockerfile", "both docker_image and a Dockerfile are given"
    if environment.dockerfile is None:
        return
    text = _text(Path(environment.dockerfile))
    if environment.context == task.path:
        leaking = any(leaks(source) for source in context_sources(text))
    else:
        leaking = _COPIES_TESTS.search(text) is not None
    if leaking:
        yield "leak", "the Dockerfile copies tests or solution into the image"
    if _RUNS_AS.search(text):
        yield "image_user", "the Dockerfile sets USER: check what tests may write"


def _compose(compose: ComposeFile) -> Iterator[tuple[str, str]]:
    """What a compose file asks of the machine it runs on."""
    path = Path(compose.path)
    try:
        document = read_yaml(path.parent, path.name, compose=True).value
    except TaskError:
        return
    services = document.get("services") if isinstance(document, dict) else None
    for name, fields in (services if isinstance(services, dict) else {}).items():
        if not isinstance(fields, dict):
            continue
        for key in ("privileged", "network_mode", "pid", "ipc", "devices", "cap_add"):
            if fields.get(key):
                yield "compose_host", f"the service {name} asks for {key}: {fields[key]!r}"
        if fields.get("ports"):
            yield "compose_ports", f"the service {name} publishes ports: attempts may collide"
        if "$" not in str(fields.get("container_name") or "$"):
            yield "compose_name", f"the service {name} has a fixed name: attempts may collide"
        for mount in _host_mounts(fields.get("volumes")):
            yield "compose_mount", f"the service {name} mounts {mount!r} of this machine"


def _host_mounts(volumes: object) -> Iterator[str]:
    for volume in volumes if isinstance(volumes, list) else ():
        source = volume.get("source") if isinstance(volume, dict) else volume
        if isinstance(volume, dict) and volume.get("type") != "bind":
            continue
        if isinstance(source, str) and source.startswith(("/", ".", "~")):
            yield source.split(":")[0]


def _test_files(tests: Path) -> list[Path]:
    return [path for path in sorted(tests.rglob("*")) if path.is_file()][:MAX_TEST_FILES]


def _text(path: Path) -> str:
    with path.open("rb") as file:
        return file.read(MAX_SCRIPT_BYTES).decode("utf-8", "replace")
