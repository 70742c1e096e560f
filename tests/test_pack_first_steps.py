"""Facts about the folders of the first-steps pack, read from the files themselves.

That the reference solutions pass and that doing nothing fails is tested where sandboxes are.
"""

import ast
import hashlib
import os
import re
import shutil
import subprocess
import sys
import tomllib
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

import headrace.tasks

PACK = Path(headrace.tasks.__file__).resolve().parent / "packs" / "first-steps"
TASKS = sorted(path for path in PACK.iterdir() if path.is_dir())
DOMAINS = {
    "ai_ml",
    "build_tools",
    "coding",
    "data_science",
    "games",
    "networking",
    "scientific_computing",
    "security",
    "system_admin",
    "version_control",
}
BASE_IMAGE = "headrace/base:bookworm"
NETWORK = re.compile(
    r"\b(apt|apt-get|pip3?|npm|cargo|wget|curl|git clone (https?|git)|ssh)\b|https?://(?!127\.0\.0\.1)"
)

each_task = pytest.mark.parametrize("task", TASKS, ids=lambda path: path.name)


def settings(task: Path) -> dict[str, Any]:
    return tomllib.loads((task / "task.toml").read_text())


def files(folder: Path) -> list[Path]:
    return sorted(
        path for path in folder.rglob("*") if path.is_file() and "__pycache__" not in path.parts
    )


def test_there_are_two_tasks_for_each_domain() -> None:
    assert Counter(settings(task)["metadata"]["category"] for task in TASKS) == dict.fromkeys(
        DOMAINS, 2
    )


def test_difficulty_is_spread() -> None:
    spread = Counter(settings(task)["metadata"]["difficulty"] for task in TASKS)
    assert set(spread) == {"easy", "medium", "hard"}
    assert spread["easy"] >= 4
    assert spread["medium"] >= 6
    assert spread["hard"] >= 6


def test_about_a_quarter_of_the_tasks_build_an_image() -> None:
    builds = [task.name for task in TASKS if (task / "environment" / "Dockerfile").exists()]
    assert 4 <= len(builds) <= 6


def test_at_least_half_of_the_tasks_report_their_tests() -> None:
    reporting = [task for task in TASKS if (task / "tests" / "grading.py").exists()]
    assert 2 * len(reporting) >= len(TASKS)


def test_both_forms_of_reward_occur() -> None:
    graders = "".join(path.read_text() for path in PACK.glob("*/tests/checks.py"))
    assert "as_json=True" in graders
    assert any("reward.txt" in path.read_text() for path in PACK.glob("*/tests/test.sh"))


def test_every_copy_of_the_grading_module_is_the_same() -> None:
    assert len({path.read_bytes() for path in PACK.glob("*/tests/grading.py")}) == 1


def test_the_readme_lists_every_task_with_domain_and_difficulty() -> None:
    rows = re.findall(
        r"^\| `([\w-]+)` \| (\w+) \| (\w+) \|", (PACK / "README.md").read_text(), re.M
    )
    metadata = {task.name: settings(task)["metadata"] for task in TASKS}
    assert sorted(rows) == sorted((n, m["category"], m["difficulty"]) for n, m in metadata.items())


@each_task
def test_the_settings_are_complete_and_known(task: Path) -> None:
    found = settings(task)
    assert found["schema_version"] == "1.1"
    assert found["task"] == {"name": f"first-steps/{task.name}"}
    assert set(found["metadata"]) == {"author_name", "difficulty", "category", "tags"}
    assert found["metadata"]["tags"]
    assert 0 < found["agent"]["timeout_sec"] <= 600
    assert 0 < found["verifier"]["timeout_sec"] <= 120
    assert set(found) == {
        "schema_version",
        "task",
        "metadata",
        "agent",
        "verifier",
        "environment",
    }


@each_task
def test_the_environment_is_an_image_with_files_or_a_dockerfile(task: Path) -> None:
    environment = settings(task)["environment"]
    dockerfile = task / "environment" / "Dockerfile"
    assert files(task / "environment")
    if dockerfile.exists():
        assert "docker_image" not in environment
    else:
        assert environment["docker_image"] == BASE_IMAGE
        assert environment["workdir"] == "/app"


@each_task
def test_a_dockerfile_is_simple_and_its_sources_exist(task: Path) -> None:
    dockerfile = task / "environment" / "Dockerfile"
    lines = dockerfile.read_text().splitlines() if dockerfile.exists() else [f"FROM {BASE_IMAGE}"]
    assert lines[0] == f"FROM {BASE_IMAGE}"
    for line in lines[1:]:
        word, _, rest = line.partition(" ")
        assert word in {"RUN", "COPY", "WORKDIR", "ENV"}, line
        if word == "COPY":
            assert (task / "environment" / rest.split()[0]).exists(), line


@each_task
def test_scripts_are_executable_and_say_what_runs_them(task: Path) -> None:
    for script in (task / "solution" / "solve.sh", task / "tests" / "test.sh"):
        assert os.access(script, os.X_OK), script
        head, *rest = script.read_text().splitlines()
        assert head == "#!/bin/bash", script
        assert any(re.match(r"set -e?u", line) for line in rest), script


@each_task
def test_the_instruction_names_paths_and_keeps_quiet_about_the_tests(task: Path) -> None:
    text = (task / "instruction.md").read_text()
    assert "/app" in text or "/usr/local" in text
    assert not re.search(r"/tests|/logs|/solution|reward|verifier|grader", text)


@each_task
def test_nothing_needs_the_network(task: Path) -> None:
    for path in files(task):
        if path.name != "instruction.md":
            match = NETWORK.search(path.read_text())
            assert match is None, f"{path}: {match}"


@each_task
def test_text_files_are_tidy(task: Path) -> None:
    for path in task.rglob("*"):
        assert not path.is_symlink(), path
    for path in files(task):
        data = path.read_bytes()
        assert b"\r\n" not in data, path
        assert data.endswith(b"\n") and not data.endswith(b"\n\n"), path


@each_task
def test_python_files_and_the_programs_in_solutions_parse(task: Path) -> None:
    for path in files(task):
        text = path.read_text()
        if path.suffix == ".py":
            ast.parse(text, filename=str(path), feature_version=(3, 11))
        if path.name == "solve.sh":
            for program in re.findall(r"<<'PY'\n(.*?)\nPY\n", text, re.S):
                ast.parse(program, filename=str(path), feature_version=(3, 11))


@each_task
def test_the_tests_know_the_files_that_the_agent_is_given(task: Path) -> None:
    """Copies are equal, and a grader's sha256 of the original is that of a given file."""
    given = {path.name: path.read_bytes() for path in files(task / "environment")}
    for path in files(task / "tests"):
        if path.name in given:
            assert path.read_bytes() == given[path.name], path
    grader = task / "tests" / "checks.py"
    original = re.search(
        r'^ORIGINAL = "(\w+)"', grader.read_text() if grader.exists() else "", re.M
    )
    if original:
        digests = {hashlib.sha256(data).hexdigest() for data in given.values()}
        assert original[1] in digests


def test_the_history_to_bisect_has_the_hashes_that_its_grader_expects(tmp_path: Path) -> None:
    if shutil.which("git") is None:
        pytest.skip("git is not installed")
    task = PACK / "bisect-regression"
    maker = task / "environment" / "make_history.py"
    clean = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    subprocess.run([sys.executable, maker, tmp_path / "repo"], check=True, timeout=30, env=clean)

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(tmp_path / "repo"), *arguments]
        return subprocess.run(
            command, check=True, capture_output=True, text=True, timeout=30, env=clean
        ).stdout.strip()

    grader = (task / "tests" / "checks.py").read_text()
    wanted = dict(re.findall(r'^(TAGGED|CULPRIT|HEAD_BEFORE) = "(\w+)"', grader, re.M))
    assert wanted == {
        "TAGGED": git("rev-parse", "v1.0"),
        "HEAD_BEFORE": git("rev-parse", "main"),
        "CULPRIT": git("log", "--format=%H", "--grep=^Share the ordering", "main"),
    }
