"""Finding tasks: in a folder of task folders, one task folder, or a bundled pack.

Rule: the file that describes a task says its format. A folder that cannot be read is a `Problem`
and stops none of the others; so is the second of two tasks of one name, because names address
tasks; a folder without such a file is no task and only counted. Nothing is downloaded. It blocks
on the disk, so loops call it in a thread.
"""

import os
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from headrace.errors import TaskError
from headrace.tasks import harbor
from headrace.tasks.harbor import printable, read_harbor
from headrace.tasks.reading import Read
from headrace.tasks.selection import Named, Selection
from headrace.types import Record, Task

PACKS = Path(__file__).resolve().parent / "packs"
_DATASET = re.compile(r"(?:[\w.-]+/)?[\w.-]+(?:@|==)[\w.-]+")
_SHOWN = 5


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
    notes: tuple[str, ...] = ()
    """How the source was understood, where that is not plain."""


def load(
    source: str,
    include: Sequence[str] = (),
    exclude: Sequence[str] = (),
    limit: int | None = None,
    environ: Mapping[str, str] | None = None,
) -> Catalog:
    """The tasks of `source` after the filters. `TaskError` when there is none to find."""
    root = locate(source)
    folders, skipped, notes = _folders(root)
    found: dict[str, Read] = {}
    problems: list[Problem] = []
    for folder in folders:
        try:
            one = read_any(folder, environ)
            if one.task.name in found:
                raise TaskError(_same_name(folder, one.task.name, found[one.task.name].task.path))
            found[one.task.name] = one
        except TaskError as e:
            problems.append(Problem(path=printable(folder), message=str(e)))
    tasks = {name: Named(name=name, path=one.task.path) for name, one in found.items()}
    broken = [(p, Named(name=Path(p.path).name, path=p.path)) for p in problems]
    selection = Selection([*tasks.values(), *(named for _, named in broken)], include, exclude)
    selection.refuse_idle()
    chosen = [found[name] for name in sorted(found) if selection.takes(tasks[name])][:limit]
    return Catalog(
        tasks=tuple(one.task for one in chosen),
        problems=tuple(problem for problem, named in broken if selection.takes(named)),
        warnings={one.task.name: one.warnings for one in chosen if one.warnings},
        skipped=skipped,
        notes=notes,
    )


def read_any(folder: str | Path, environ: Mapping[str, str] | None = None) -> Read:
    """The task in `folder`, by the reader of its format. `TaskError` says what is wrong."""
    for config, reader in READERS.items():
        if os.path.lexists(os.path.join(folder, config)):
            return reader(folder, environ)
    raise TaskError(f"{printable(folder)}: expected one of {_files()}, found none")


def _read_terminal_bench_1(folder: str | Path, environ: Mapping[str, str] | None) -> Read:
    from headrace.tasks.terminal_bench_1 import read_terminal_bench_1  # most sets need only Harbor

    return read_terminal_bench_1(folder, environ)


READERS: dict[str, Callable[[str | Path, Mapping[str, str] | None], Read]] = {
    harbor.CONFIG: read_harbor,
    "task.yaml": _read_terminal_bench_1,
}
"""By the file that makes a folder a task of that format; the first that is there counts."""


def locate(source: str) -> Path:
    """The folder of `source`: a bundled pack's if it is the name of one, else the path's."""
    if source in packs():
        return PACKS / source
    path = Path(source).expanduser()
    try:
        if path.is_dir():
            return path.resolve()
        found = "a file" if path.exists() else "nothing"
    except (OSError, ValueError) as e:
        raise TaskError(f"{printable(source)}: cannot be a path: {e}") from None
    known = ", ".join(packs()) or "none"
    hint = ""
    if _DATASET.fullmatch(source):
        hint = (
            "; this looks like the name of a dataset, and none is downloaded: clone its repository "
            "and give the path of the clone"
        )
    raise TaskError(
        f"{printable(source)}: expected a folder of tasks, a task folder or a bundled pack "
        f"({known}), found {found}{hint}"
    )


def packs() -> list[str]:
    """Names of the bundled packs."""
    if not PACKS.is_dir():
        return []
    return sorted(path.name for path in PACKS.iterdir() if path.is_dir() and path.name[0].isalnum())


def _folders(root: Path) -> tuple[list[Path], int, tuple[str, ...]]:
    """The task folders of `root`, how many others there are, and where they were found."""
    if _is_task(root):
        return [root], 0, ()
    if not os.access(root, os.R_OK | os.X_OK):
        raise TaskError(f"{printable(root)}: expected a folder that may be read, found no access")
    children = _children(root)
    tasks = [path for path in children if _is_task(path)]
    if tasks:
        return tasks, len(children) - len(tasks), ()
    deeper = {path: [child for child in _children(path) if _is_task(child)] for path in children}
    holders = [path for path, below in deeper.items() if below]
    if len(holders) != 1:
        raise TaskError(_nothing_in(root, children, holders))
    holder = holders[0]
    note = f"{root} holds no tasks itself; those of its folder {holder.name}/ are taken"
    return deeper[holder], len(_children(holder)) - len(deeper[holder]), (printable(note),)


def _is_task(folder: Path) -> bool:
    return any(os.path.lexists(os.path.join(folder, config)) for config in READERS)


def _children(folder: Path) -> list[Path]:
    """Folders below, without hidden ones; none where they may not be listed."""
    try:
        with os.scandir(folder) as found:
            names = sorted(e.name for e in found if e.name[0] != "." and e.is_dir())
    except PermissionError:
        return []
    except OSError as e:
        raise TaskError(f"{printable(folder)}: {e.strerror}") from None
    return [folder / name for name in names]


def _nothing_in(root: Path, children: Sequence[Path], holders: Sequence[Path]) -> str:
    if holders:
        names = ", ".join(f"{path.name}/" for path in holders[:_SHOWN])
        more = f" and {len(holders) - _SHOWN} more" if len(holders) > _SHOWN else ""
        return printable(
            f"{root}: no tasks here, but in {names}{more}: give the path of one of these folders"
        )
    message = f"{root}: expected {_files()} here or in its folders, found none"
    return printable(message + (f" in {len(children)} folders" if children else ""))


def _files() -> str:
    return " or ".join(READERS)


def _same_name(folder: Path, name: str, other: str) -> str:
    return printable(f"{folder}: {other} is called {name!r} too; rename one of the two tasks")
