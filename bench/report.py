"""What every benchmark prints and writes: a table, and JSON with the commit and the machine."""

import json
import os
import platform
import subprocess
import sys
from pathlib import Path


def report(bench: str, metrics: dict[str, float | None], json_path: Path | None = None) -> None:
    """Print the metrics as a table; write them with command, commit and machine if asked to."""
    width = max(len(name) for name in metrics)
    print(f"\n{bench} at {commit()} on {machine()}")
    for name, value in metrics.items():
        print(f"  {name:<{width}}  {'-' if value is None else f'{value:,.3f}'}")
    if json_path is not None:
        result = {
            "bench": bench,
            "command": command(bench),
            "commit": commit(),
            "machine": machine(),
            "metrics": metrics,
        }
        json_path.parent.mkdir(parents=True, exist_ok=True)
        json_path.write_text(json.dumps(result, indent=2) + "\n")


def command(bench: str) -> str:
    """What was called, without the place of its result."""
    arguments = sys.argv[1:]
    if "--json" in arguments:
        at = arguments.index("--json")
        del arguments[at : at + 2]
    return " ".join(["python -m", f"bench.{bench}", *arguments])


def commit() -> str:
    """The commit that is measured, marked when the working tree differs from it."""
    try:
        done = subprocess.run(
            ["git", "describe", "--always", "--dirty", "--exclude=*"],
            cwd=Path(__file__).parent,
            capture_output=True,
            text=True,
            check=True,
        )
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return done.stdout.strip()


def machine() -> str:
    """Cores, memory, kernel and Python, without the host's name."""
    memory_gib = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return (
        f"{os.cpu_count()} cores, {memory_gib:.0f} GiB, Linux {platform.release()},"
        f" Python {platform.python_version()}"
    )
