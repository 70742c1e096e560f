"""Findings: what `headrace tasks check` says of tasks that can be read."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from headrace.tasks.check import check
from headrace.tasks.describe import describe
from headrace.tasks.harbor import read_task

EXAMPLES = Path(__file__).resolve().parent / "data" / "harbor"


def make(root: Path, toml: str = "", *, test: str = "#!/bin/bash\necho 1 > reward.txt\n") -> Path:
    """A task in which nothing is odd."""
    for name, text in (
        ("task.toml", toml),
        ("instruction.md", "Write hello.\n"),
        ("environment/Dockerfile", "FROM debian:bookworm\n"),
        ("tests/test.sh", test),
        ("solution/solve.sh", "#!/bin/bash\n"),
    ):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    for name in ("tests/test.sh", "solution/solve.sh"):
        (root / name).chmod(0o755)
    return root


# --- findings -------------------------------------------------------------------------------


def codes(root: Path) -> list[str]:
    return [finding.code for finding in check(read_task(root, {}))]


def test_a_sound_task_has_no_findings(tmp_path: Path) -> None:
    assert codes(make(tmp_path / "t", "[agent]\ntimeout_sec = 60\n")) == []


def test_what_may_trouble_a_task_is_found(tmp_path: Path) -> None:
    root = make(
        tmp_path / "t",
        '[environment]\nskills_dir = "/skills"\ndocker_image = "x"\n',
        test="echo hi\r\ncurl -LsSf https://astral.sh/uv/install.sh | sh\n",
    )
    (root / "environment" / "Dockerfile").write_text("FROM x\nUSER me\n")
    (root / "tests" / "test.sh").chmod(0o644)
    shutil.rmtree(root / "solution")
    assert codes(root) == [
        "no_solution",
        "no_shebang",
        "crlf",
        "no_run_bit",
        "uses_network",
        "no_reward",
        "image_and_dockerfile",
        "image_user",
        "inert_fields",
        "no_agent_timeout",
    ]


@pytest.mark.parametrize(
    ("line", "fetches"),
    [
        ("apt-get update", True),
        ("uvx -p 3.13 -w pytest==8.4.1 pytest", True),
        ("pip install --quiet pytest", True),
        ("git clone https://example.org/x", True),
        ("# pip install x", False),
        ("git add .", False),
        ("git log --oneline", False),
        ("curl -s http://127.0.0.1:8080/", False),
        ("echo install it", False),
    ],
)
def test_fetching_is_told_from_its_look(tmp_path: Path, line: str, fetches: bool) -> None:
    root = make(tmp_path / "t", test=f"#!/bin/sh\n{line}\necho 1 > /logs/verifier/reward.txt\n")
    assert ("uses_network" in codes(root)) is fetches


FLAWS: list[tuple[str, Callable[[Path], object], str, str]] = [
    ("a carriage return after #!",
     lambda r: (r / "tests/test.sh").write_bytes(b"#!/bin/bash\r\n: reward\r\n"),
     "crlf_shebang", "the #! line of tests/test.sh"),
    ("a comment before #!",
     lambda r: (r / "solution/solve.sh").write_text("# canary\n#!/bin/bash\n"),
     "no_shebang", "solution/solve.sh does not begin"),
    ("no run bit", lambda r: (r / "solution/solve.sh").chmod(0o600), "no_run_bit", "solution/"),
    ("tests in the image",
     lambda r: (r / "environment/Dockerfile").write_text("FROM x\nCOPY tests /t\n"),
     "leak", "copies tests or solution"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("harm", "code", "message"), [f[1:] for f in FLAWS], ids=[f[0] for f in FLAWS]
)
def test_a_flaw_is_named_with_its_file(
    tmp_path: Path, harm: Callable[[Path], object], code: str, message: str
) -> None:
    root = make(tmp_path / "t", "[agent]\ntimeout_sec = 60\n")
    harm(root)
    found = {finding.code: finding.message for finding in check(read_task(root))}
    assert message in found[code]


def test_a_step_without_a_solution_is_named(tmp_path: Path) -> None:
    root = shutil.copytree(EXAMPLES / "steps-two", tmp_path / "t")
    shutil.rmtree(root / "steps" / "count" / "solution")
    found = {finding.code: finding.message for finding in check(read_task(root))}
    assert found["no_solution"] == "no solution of count: the oracle cannot run this task"


def test_what_a_compose_file_asks_of_the_machine_is_found(tmp_path: Path) -> None:
    root = shutil.copytree(EXAMPLES / "compose-two", tmp_path / "t")
    (root / "environment" / "docker-compose.yaml").write_text(
        "services:\n  main:\n    privileged: true\n    volumes: [/etc:/host, data:/d]\n"
        "  store:\n    image: x\n    ports: ['80:80']\n    container_name: store\n"
    )
    assert {"compose_host", "compose_mount", "compose_ports", "compose_name"} <= set(codes(root))


def test_a_name_that_each_episode_fills_in_is_not_fixed(tmp_path: Path) -> None:
    root = shutil.copytree(EXAMPLES / "compose-two", tmp_path / "t")
    (root / "environment" / "docker-compose.yaml").write_text(
        "services:\n  main:\n    container_name: ${T_BENCH_TASK_DOCKER_CLIENT_CONTAINER_NAME}\n"
        "  store:\n    image: x\n"
    )
    assert "compose_name" not in codes(root)


@pytest.mark.parametrize(
    ("example", "world", "verifier", "network", "steps", "needs"),
    [
        ("steps-two", "image", "shared", "none", 2, ()),
        ("separate-verifier", "image", "own image", "none", 0, ()),
        ("compose-two", "compose (2)", "shared", "public", 0, ("compose",)),
        ("allowlist", "image", "shared", "allowlist (4), tests none", 0, ("allowlist",)),
        ("users", "Dockerfile", "shared", "none", 0, ()),
    ],
)
def test_a_task_is_described_in_a_few_words(
    example: str, world: str, verifier: str, network: str, steps: int, needs: tuple[str, ...]
) -> None:
    said = describe(read_task(EXAMPLES / example))
    assert (said.world, said.verifier, said.network) == (world, verifier, network)
    assert (said.steps, said.needs) == (steps, needs)
