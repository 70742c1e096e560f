"""How long does it take to read 602 task folders, and to plan their images?

The folders are those of `bench.task_folders`. The floor reads the same bytes and parses the same
TOML, and does nothing else. Layers: what is built when images share what they begin with, beside
one build per task.

    python -m bench.tasks [--count 602] [--repeat 3] [--json FILE]
"""

import argparse
import tempfile
import time
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from bench.report import report
from bench.task_folders import COUNT, write_folders

from headrace.sandbox.images import plan_images
from headrace.tasks.catalog import Catalog, load

T = TypeVar("T")


def floor(root: Path) -> int:
    """Bytes of all files, read once; every task.toml parsed."""
    total = 0
    for path in root.rglob("*"):
        if path.is_file():
            data = path.read_bytes()
            total += len(data)
            if path.name == "task.toml":
                tomllib.loads(data.decode())
    return total


def fastest(repeat: int, work: Callable[[], T]) -> tuple[float, T]:
    """Seconds of the fastest of `repeat` rounds, and what the last one gave."""
    best, found = float("inf"), None
    for _ in range(repeat):
        begun = time.perf_counter()
        found = work()
        best = min(best, time.perf_counter() - begun)
    assert found is not None
    return best, found


def measure(count: int, repeat: int) -> dict[str, float | None]:
    with tempfile.TemporaryDirectory(prefix="headrace-bench-") as folder:
        write_folders(Path(folder), count)
        floor_s, _ = fastest(repeat, lambda: floor(Path(folder)))
        read_s, catalog = fastest(repeat, lambda: load(folder))
        assert isinstance(catalog, Catalog)
        plan_s, plan = fastest(repeat, lambda: plan_images(catalog.tasks))
    return {
        "tasks": len(catalog.tasks),
        "floor_s": floor_s,
        "read_s": read_s,
        "plan_s": plan_s,
        "layers_planned": plan.layers_distinct,
        "layers_naive": plan.layers_naive,
        "factor": plan.factor,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--count", type=int, default=COUNT, help="task folders")
    parser.add_argument("--repeat", type=int, default=3, help="rounds; the fastest counts")
    parser.add_argument("--json", type=Path, help="write {bench, commit, machine, metrics} here")
    arguments = parser.parse_args()
    report("tasks", measure(arguments.count, arguments.repeat), arguments.json)


if __name__ == "__main__":
    main()
