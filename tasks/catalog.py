"""Finding tasks: in a folder of task folders, one task folder, or a bundled pack.

Rule: a folder that cannot be read is a `Problem` and stops none of the others; a folder without
`task.toml` is no task and only counted; two tasks of one name are an error, because names address
tasks. It blocks on the disk, so loops call it in a thread.
"""

import difflib
from collections.abc import Sequence
from fnmatch import fnmatchcase
from pathlib import Path

from headrace.errors import TaskError
from headrace.tasks.harbor import CONFIG, read_harbor
from headrace.tasks.reading import Read
from headrace.types import Record, Task

PACKS = Path(__file__).resolve().parent / "packs"


class Problem(Record, frozen=True, kw_only=True):
    """A task folder that cannot be read."""

    path: str
    message: str


class Catalog(Record, frozen=True, kw_only=True):
    """What a source holds."""

    tasks: tuple[Task, ...]
    """By name."""
    problems: tuple[Problem, ...] = ()
    warnings: dict[str, tuple[str, ...]] = {}
    """By task name: what was odd but could be read."""
    skipped: int = 0
    """Folders that are no tasks."""


def load(
    source: str,
    include: Sequence[str] = (),
    exclude: Sequence[str] = (),
    limit: int | None = None,
) -> Catalog:
    """The tasks of `source` after the filters. `TaskError` when there is none to find."""
    root = locate(source)
    folders, skipped = _folders(root)
    found: list[Read] = []
    problems: list[Problem] = []
    for folder in folders:
        try:
            found.append(read_harbor(folder))
        except TaskError as e:
            problems.append(Problem(path=str(folder), message=str(e)))
    if not found and not problems:
        raise TaskError(_nothing_in(root, skipped))
    _refuse_duplicates(found)
    _refuse_idle_patterns(include, found, problems)
    chosen = [one for one in found if _matches(one.task.name, include, exclude)]
    chosen.sort(key=lambda one: one.task.name)
    chosen = chosen[:limit]
    return Catalog(
        tasks=tuple(one.task for one in chosen),
        problems=tuple(p for p in problems if _matches(Path(p.path).name, include, exclude)),
        warnings={one.task.name: one.warnings for one in chosen if one.warnings},
        skipped=skipped,
    )


def locate(source: str) -> Path:
    """The folder of `source`: a bundled pack's if it is the name of one, else the path's."""
    if source in packs():
        return PACKS / source
    path = Path(source).expanduser()
    if path.is_dir():
        return path.resolve()
    known = ", ".join(packs()) or "none"
    found = "a file" if path.exists() else "nothing"
    raise TaskError(
        f"{source}: expected a folder of tasks, a task folder or a bundled pack ({known}), "
        f"found {found}"
    )


def packs() -> list[str]:
    """Names of the bundled packs."""
    if not PACKS.is_dir():
        return []
    return sorted(path.name for path in PACKS.iterdir() if path.is_dir() and path.name[0].isalnum())


def _folders(root: Path) -> tuple[list[Path], int]:
    if (root / CONFIG).exists():
        return [root], 0
    try:
        children = sorted(path for path in root.iterdir() if path.name[0] != "." and path.is_dir())
    except OSError as e:
        raise TaskError(f"{root}: {e.strerror}") from None
    tasks = [path for path in children if (path / CONFIG).exists()]
    return tasks, len(children) - len(tasks)


def _nothing_in(root: Path, skipped: int) -> str:
    message = f"{root}: expected {CONFIG} here or in its folders, found none"
    if skipped:
        message += f" in {skipped} folders"
    if (root / "task.yaml").exists() or any(root.glob("*/task.yaml")):
        message += "; task.yaml is the Terminal-Bench 1 format, which cannot be read yet"
    return message


def _refuse_duplicates(found: Sequence[Read]) -> None:
    paths: dict[str, str] = {}
    for one in found:
        other = paths.setdefault(one.task.name, one.task.path)
        if other != one.task.path:
            raise TaskError(
                f"two tasks are called {one.task.name!r}: {other} and {one.task.path}; "
                "rename one in its task.toml"
            )


def _refuse_idle_patterns(
    include: Sequence[str], found: Sequence[Read], problems: Sequence[Problem]
) -> None:
    names = [one.task.name for one in found] + [Path(p.path).name for p in problems]
    for pattern in include:
        if not any(_matches(name, (pattern,), ()) for name in names):
            near = difflib.get_close_matches(pattern, [n.rpartition("/")[2] for n in names], n=1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            raise TaskError(f"include {pattern!r} matches none of {len(names)} tasks{hint}")


def _matches(name: str, include: Sequence[str], exclude: Sequence[str]) -> bool:
    forms = {name, name.rpartition("/")[2]}  # with and without the organisation

    def any_of(patterns: Sequence[str]) -> bool:
        return any(fnmatchcase(form, pattern) for pattern in patterns for form in forms)

    return (not include or any_of(include)) and not any_of(exclude)
