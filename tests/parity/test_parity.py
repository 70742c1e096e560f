"""headrace and Harbor come to the same verdicts: a part of `bench.parity`, on the real programs.

The whole comparison takes minutes: `python -m bench.parity`.
"""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from headrace.policies.scripted import read_script
from headrace.tasks.catalog import load

HERE = Path(__file__).parent
ROOT = HERE.parent.parent
TASKS, ANSWERS = HERE / "tasks", HERE / "answers.toml"
SOME = ("agent-and-verifier-user", "workdir", "reward-missing", "several-keys")


def lacking() -> str | None:
    """Why Harbor cannot run here, or None."""
    if not (ROOT / ".harbor" / "bin" / "harbor").exists():
        return "no Harbor in .harbor: scripts/install-harbor.sh .harbor"
    command = ["docker", "compose", "version"]
    if subprocess.run(command, capture_output=True, timeout=30).returncode != 0:
        return "no docker compose: scripts/docker-compose.sh up"
    return None


@pytest.mark.docker
@pytest.mark.timeout(240)
def test_verdicts_agree_with_harbors(unavailable: dict[str, str | None], tmp_path: Path) -> None:
    reason = unavailable["docker"] or lacking()
    if reason is not None:
        pytest.skip(reason)
    result = tmp_path / "parity.json"
    done = subprocess.run(
        [sys.executable, "-m", "bench.parity", "--json", result]
        + ["--tasks", ",".join(SOME), "--policies", "oracle,terminus"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=220,
    )
    assert done.returncode == 0, (done.stdout + done.stderr)[-4000:]
    metrics = json.loads(result.read_text())["metrics"]
    assert (metrics["compared"], metrics["agree"]) == (8, 8), done.stdout


def test_the_parity_tasks_can_be_read_and_told_apart() -> None:
    catalog = load(str(TASKS))
    assert catalog.problems == ()
    assert len(catalog.tasks) >= 20
    instructions = [
        part.instruction.strip() for task in catalog.tasks for part in (task.steps or (task,))
    ]
    assert len(set(instructions)) == len(instructions)
    assert not [a for a in instructions for b in instructions if a != b and a in b]


def test_every_answer_is_for_a_task_that_exists() -> None:
    assert set(read_script(ANSWERS).tasks) <= {task.name for task in load(str(TASKS)).tasks}
