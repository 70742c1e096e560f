"""Task folders by the hundred, shaped like a large public set of Harbor tasks.

The shape: 602 tasks, 450 distinct Dockerfiles with one common head, files copied into 278 of the
images, and 3 tasks whose COPY sources are not there. Rule: the same arguments give the same bytes.
The texts are made up; only counts and layout follow the public set. Nothing is built or run.

    python -m bench.task_folders FOLDER [--count 602]
"""

import argparse
import hashlib
import random
from collections.abc import Sequence
from pathlib import Path

BASE = "ubuntu:24.04"
HEAD = (
    "ENV DEBIAN_FRONTEND=noninteractive",
    "RUN apt-get update && apt-get install -y curl git ca-certificates build-essential"
    " && rm -rf /var/lib/apt/lists/*",
    "RUN curl -LsSf https://astral.sh/uv/0.7.13/install.sh | sh",
    'ENV PATH="/root/.local/bin:$PATH"',
    "RUN uv python install 3.13",
    "ENV NVM_DIR=/root/.nvm",
    "RUN curl -fsSL https://nvm.example.org/install.sh | bash \\\n"
    "    && . $NVM_DIR/nvm.sh \\\n"
    "    && nvm install 22",
    "RUN uv tool install openhands-ai --python 3.13",
)
"""What every Dockerfile of the set begins with, after `FROM`."""
COUNT, DISTINCT, COPYING, BROKEN = 602, 450, 278, 3
PACKAGES = (
    "nginx", "redis-server", "sqlite3", "postgresql", "golang", "rustc", "cmake", "gdb", "openssl",
    "jq", "tmux", "rsync", "ffmpeg", "graphviz", "haproxy", "bind9", "openssh-server", "php-cli",
)  # fmt: skip
CATEGORIES = (
    ("system-administration", 215), ("machine-learning", 106), ("security", 79),
    ("data-processing", 74), ("software-engineering", 64), ("version-control", 48),
    ("build-tools", 8), ("build_tools", 1), ("networking", 7),
)  # fmt: skip
DIFFICULTIES = (("medium", 342), ("hard", 165), ("easy", 95))
TOML = """\
schema_version = "1.1"

[task]
name = "many/{slug}"
description = ""
authors = []
keywords = []

[metadata]
author_name = "nobody"
author_email = "nobody@example.org"
difficulty = "{difficulty}"
category = "{category}"
tags = ["{category}", "generated"]
expert_time_estimate_min = 45.0
junior_time_estimate_min = 120.0

[verifier]
timeout_sec = {verifier}.0

[verifier.env]

[agent]
timeout_sec = {agent}.0

[environment]
build_timeout_sec = 600.0
{image}cpus = {cpus}
memory_mb = {memory}
storage_mb = 10240
gpus = 0
allow_internet = true
mcp_servers = []

[environment.env]

[solution.env]
"""
TEST = """\
#!/bin/bash
cd "$(dirname "$0")/.."
python3 /tests/check.py
case $? in
    0) echo 1 > /logs/verifier/reward.txt ;;
    1) echo 0 > /logs/verifier/reward.txt ;;
    *) exit 2 ;;
esac
"""


def write_folders(
    root: Path,
    count: int = COUNT,
    *,
    base: str = BASE,
    head: Sequence[str] = HEAD,
    broken: int | None = None,
    images: bool = False,
    seed: int = 1,
) -> list[Path]:
    """Write `count` task folders below `root` and return them.

    Fewer than 602 keep the proportions. `broken` of them (None: in proportion) copy a file that is
    not there. With `images` each names a ready image too, which no registry has.
    """
    share = count / COUNT
    distinct = max(1, round(DISTINCT * share))
    broken = round(BROKEN * share) if broken is None else broken
    recipes = [_recipe(number, base, head, seed) for number in range(distinct)]
    copying = max(broken, round(COPYING * share))
    folders = []
    for number in range(count):
        # The first recipes are used again, so that repeats are not all of one Dockerfile.
        recipe = recipes[number if number < distinct else (number - distinct) % max(1, distinct)]
        folder = root / f"sample_{number:04d}_{PACKAGES[number % len(PACKAGES)]}"
        _write(folder, number, recipe, images)
        folders.append(folder)
    with_files = _with_files(folders, distinct, copying)
    for folder in with_files:
        _add_files(folder)
    for folder in with_files[:broken]:
        _append(folder / "environment" / "Dockerfile", "COPY not-shipped/ /app/data/\n")
    return folders


def _recipe(number: int, base: str, head: Sequence[str], seed: int) -> str:
    """Dockerfile `number`: the head, then what is its own. Number 0 is the head alone."""
    dice = random.Random(f"{seed} {number}")
    lines = [f"FROM {base}", *head, "WORKDIR /app"]
    if number:
        packages = " ".join(sorted(dice.sample(PACKAGES, 1 + number % 3)))
        lines.append(f"RUN apt-get update && apt-get install -y {packages}")
        lines.append(f"RUN mkdir -p /app/data && echo {number} > /app/data/number")
    return "\n".join(lines) + "\n"


def _with_files(folders: Sequence[Path], distinct: int, copying: int) -> list[Path]:
    """The folders that get files of their own, none of them sharing its Dockerfile."""
    repeats = len(folders) - distinct
    alone = folders[repeats:distinct] or folders
    return list(alone[:copying])


def _add_files(folder: Path) -> None:
    data = folder / "environment" / "data"
    data.mkdir()
    content = hashlib.sha256(folder.name.encode()).hexdigest()
    (data / "input.csv").write_text("".join(f"{i},{content}\n" for i in range(40)))
    (data / ".config").write_text("mode = test\n")
    _append(folder / "environment" / "Dockerfile", "COPY data/ /app/data/\n")


def _append(path: Path, line: str) -> None:
    with path.open("a") as file:
        file.write(line)


def _write(folder: Path, number: int, recipe: str, images: bool) -> None:
    for part in ("environment", "tests", "solution"):
        (folder / part).mkdir(parents=True)
    tag = hashlib.sha256(recipe.encode()).hexdigest()[:12]
    fields = {
        "slug": folder.name,
        "category": _pick(CATEGORIES, number),
        "difficulty": _pick(DIFFICULTIES, number),
        "verifier": 360 if number % 3 else 900,
        "agent": 1800 if number % 2 else 5400,
        "image": f'docker_image = "registry.example.org/many:{tag}"\n' if images else "",
        "cpus": 1 if number % 2 else 2,
        "memory": 2048 if number % 2 else 4096,
    }
    (folder / "task.toml").write_text(TOML.format(**fields))
    (folder / "instruction.md").write_text(f"# Task {number}\n\nWrite {number} to /app/answer.\n")
    (folder / "environment" / "Dockerfile").write_text(recipe)
    (folder / "solution" / "solve.sh").write_text(
        f"#!/bin/bash\nset -e\necho {number} > /app/answer\n"
    )
    (folder / "tests" / "test.sh").write_text(TEST)
    (folder / "tests" / "check.py").write_text(
        f'import sys\nsys.exit(open("/app/answer").read().strip() != "{number}")\n'
    )


def _pick(shares: Sequence[tuple[str, int]], number: int) -> str:
    """The name whose share of 602 holds `number`."""
    at = number * 241 % sum(n for _, n in shares)  # 241 is prime to 602: spread, and each once
    for name, share in shares:
        at -= share
        if at < 0:
            return name
    raise AssertionError("the shares add up")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("folder", type=Path, help="a folder that is empty or does not exist")
    parser.add_argument("--count", type=int, default=COUNT)
    parser.add_argument("--images", action="store_true", help="name a ready image in each task")
    arguments = parser.parse_args()
    written = write_folders(arguments.folder, arguments.count, images=arguments.images)
    print(f"{len(written)} task folders in {arguments.folder}")


if __name__ == "__main__":
    main()
