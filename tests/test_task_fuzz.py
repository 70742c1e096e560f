"""Hundreds of spoilt task folders: each is a task or a `TaskError`, and nothing else happens."""

import json
import os
import shutil
import tempfile
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headrace.errors import TaskError
from headrace.tasks.catalog import load, read_any
from headrace.tasks.check import check
from headrace.tasks.describe import describe

EXAMPLES = Path(__file__).resolve().parent / "data" / "harbor"
HARBOR = sorted(path for path in EXAMPLES.iterdir() if path.is_dir())
TB1_FILES = {
    "task.yaml": "instruction: |\n  Write hello.\ndifficulty: easy\ncategory: x\ntags: [a]\n"
    "parser_name: pytest\nmax_agent_timeout_sec: 360.0\nmax_test_timeout_sec: 60\n",
    "Dockerfile": "FROM debian:bookworm\nWORKDIR /app\n",
    "docker-compose.yaml": "services:\n  client:\n    build: .\n"
    "    image: ${T_BENCH_TASK_DOCKER_CLIENT_IMAGE_NAME}\n"
    "    container_name: ${T_BENCH_TASK_DOCKER_CLIENT_CONTAINER_NAME}\n"
    '    command: ["sh", "-c", "sleep infinity"]\n',
    "run-tests.sh": "#!/bin/bash\npytest $TEST_DIR/test_outputs.py -rA\n",
    "solution.sh": "#!/bin/bash\necho hello > /app/hello.txt\n",
    "tests/test_outputs.py": "def test_hello(): pass\n",
}

TOML_KEYS = (
    "version task metadata agent verifier environment solution steps artifacts env name user "
    "timeout_sec min_reward healthcheck command service collect network_mode allowed_hosts "
    "environment_mode docker_image memory memory_mb cpus gpus tpu os workdir mcp_servers url "
    "transport source destination exclude interval_sec retries multi_step_reward_strategy tags"
).split()
YAML_KEYS = (
    "instruction difficulty parser_name tags services client build image command depends_on "
    "extends volumes environment container_name max_agent_timeout_sec descriptions main"
).split()
TOML_VALUES = st.recursive(
    st.sampled_from([
        '""', '"x"', '"main"', '"../x"', '"separate"', '"allowlist"', '"${X}"', '"a\\u0000b"', "-1",
        "0", "1e400", "nan", "9" * 400, "true", "2026-01-02", "[]", "{}", '"2G"', '"/app"', "'\t'",
    ]),
    lambda inner: st.lists(inner, max_size=3).map(lambda items: f"[{', '.join(items)}]")
    | st.tuples(st.sampled_from(TOML_KEYS), inner).map(lambda pair: f"{{{pair[0]} = {pair[1]}}}"),
    max_leaves=6,
)  # fmt: skip
TOML_LINES = st.one_of(
    st.sampled_from(TOML_KEYS).map(lambda key: f"[{key}]"),
    st.sampled_from(TOML_KEYS).map(lambda key: f"[environment.{key}]"),
    st.sampled_from(TOML_KEYS).map(lambda key: f"[[steps.{key}]]"),
    st.tuples(st.sampled_from(TOML_KEYS), TOML_VALUES).map(lambda pair: f"{pair[0]} = {pair[1]}"),
    st.text(max_size=12),
)
YAML_LINES = st.one_of(
    st.tuples(
        st.sampled_from(["", "  ", "    "]),
        st.sampled_from(YAML_KEYS),
        st.sampled_from(["", "1", "null", "[a, *x]", "&x {a: b}", "*x", "{<<: *x}", "[main]",
                         '"\\ud800"', ".inf", "2026-13-45", "!!python/object:os.system {}",
                         "!!binary =", "0o7", "|", "? x", "9" * 5000, "2001-01-01", "0x_", "-0b"]),
    ).map(lambda parts: f"{parts[0]}{parts[1]}: {parts[2]}"),
    st.text(max_size=12),
)  # fmt: skip
NAMES = st.sampled_from(
    "task.toml instruction.md tests tests/test.sh tests/Dockerfile environment solution steps "
    "environment/Dockerfile environment/docker-compose.yaml solution/solve.sh steps/count "
    "steps/count/tests steps/count/instruction.md tests/.harborignore steps/collect/tests/test.sh "
    "task.yaml docker-compose.yaml run-tests.sh solution.sh solution.yaml Dockerfile".split()
)
LINKS = st.sampled_from(
    ["/etc/passwd", "..", ".", "../../..", "/dev/zero", "nowhere", "tests", "task.toml"]
)


def _clear(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _put(root: Path, name: str, place: Callable[[Path], object]) -> None:
    """Put something where `name` is or was; never through a link, which may lead out."""
    path = root / name
    if any(above.is_symlink() for above in path.parents):
        return
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError):  # a file stands where a folder was
        return
    _clear(path)
    place(path)


def _append(path: Path, text: str) -> None:
    old = path.read_bytes() if path.is_file() and not path.is_symlink() else b""
    _clear(path)
    path.write_bytes(old + f"\n{text}".encode("utf-8", "surrogatepass"))


def _nest(path: Path) -> None:
    for _ in range(60):
        path = path / "deep"
    path.mkdir(parents=True)


MAKERS: list[Callable[[Path], object]] = [os.mkfifo, Path.mkdir, _nest]
TOML_HARM = st.lists(TOML_LINES, min_size=1, max_size=5).map("\n".join).map(
    lambda text: lambda root: _append(root / "task.toml", text)
)  # fmt: skip
PATHS = st.sampled_from(
    ["", "task", "agent", "verifier", "environment", "environment.healthcheck", "solution",
     "verifier.environment", "steps.0", "steps.1.verifier", "steps.0.agent", "steps.1.healthcheck",
     "metadata"]
)  # fmt: skip
VALUES = st.recursive(
    st.sampled_from(["", "x", "main", "../x", "/app", "2G", "public", "allowlist", "no-network",
                     "separate", "shared", "mean", "${X}", "a\0b", "*.x.y", "10.0.0.0/8", "1.5"])
    | st.integers(-(10**30), 10**30) | st.floats() | st.booleans(),
    lambda inner: st.lists(inner, max_size=3)
    | st.dictionaries(st.sampled_from(TOML_KEYS), inner, max_size=3),
    max_leaves=5,
)  # fmt: skip


def _toml(value: Any) -> str:
    if isinstance(value, dict):
        return f"{{{', '.join(f'{json.dumps(k)} = {_toml(v)}' for k, v in value.items())}}}"
    if isinstance(value, list):
        return f"[{', '.join(map(_toml, value))}]"
    return json.dumps(value) if isinstance(value, str) else str(value).lower()


def _set(root: Path, path: str, key: str, value: Any) -> None:
    """One key of the task.toml, where that can still be read."""
    try:
        document = tomllib.loads((root / "task.toml").read_text())
    except (OSError, ValueError):
        return
    if path.startswith("steps") and "steps" not in document:
        return
    table: Any = document
    for name in filter(None, path.split(".")):
        if isinstance(table, list):
            table = table[int(name)] if int(name) < len(table) else {}
        else:
            table = table.setdefault(name, {})
    if isinstance(table, dict):
        table[key] = value
        text = "\n".join(f"{name} = {_toml(value)}" for name, value in document.items())
        (root / "task.toml").write_text(text)


SET_HARM = st.tuples(PATHS, st.sampled_from(TOML_KEYS), VALUES).map(
    lambda v: lambda root: _set(root, *v)
)
YAML_HARM = st.tuples(
    st.sampled_from(["environment/docker-compose.yaml", "docker-compose.yaml", "task.yaml",
                     "tests/docker-compose.yaml", "solution.yaml"]),
    st.lists(YAML_LINES, min_size=1, max_size=6).map("\n".join),
    st.booleans(),
).map(lambda v: lambda root: (
    _append(root / v[0], v[1]) if v[2] and (root / v[0]).is_file()
    else _put(root, v[0], lambda p: p.write_bytes(v[1].encode("utf-8", "surrogatepass")))
))  # fmt: skip
FILE_HARM = NAMES.flatmap(
    lambda name: st.one_of(
        st.just(lambda root: _put(root, name, lambda path: None)),
        st.binary(max_size=40).map(
            lambda data: lambda root: _put(root, name, lambda path: path.write_bytes(data))
        ),
        LINKS.map(lambda to: lambda root: _put(root, name, lambda path: path.symlink_to(to))),
        st.sampled_from(MAKERS).map(lambda make: lambda root: _put(root, name, make)),
    )
)
HARMS = st.lists(
    st.one_of(SET_HARM, SET_HARM, TOML_HARM, YAML_HARM, FILE_HARM), min_size=1, max_size=4
)


@pytest.fixture(scope="module")
def folders() -> Iterator[list[Path]]:
    """Valid folders of both formats; deleted with all that is put into them."""
    place = Path(tempfile.mkdtemp())
    tb1 = place / "tb1"
    for name, text in TB1_FILES.items():
        (tb1 / name).parent.mkdir(parents=True, exist_ok=True)
        (tb1 / name).write_text(text)
    yield [*HARBOR, tb1]
    shutil.rmtree(place)


@given(number=st.integers(0, len(HARBOR)), harms=HARMS)
@settings(max_examples=500, deadline=None, derandomize=True)
@pytest.mark.timeout(120)
def test_five_hundred_spoilt_folders_crash_nothing(
    folders: list[Path], number: int, harms: list[Callable[[Path], object]]
) -> None:
    with tempfile.TemporaryDirectory() as place:
        root = Path(place) / "sound" / "t"
        shutil.copytree(folders[number], root)
        for harm in harms:
            harm(root)
        try:
            one = read_any(root, {})
        except TaskError as e:
            assert str(root) in str(e)
            assert str(e).isprintable()
        else:
            assert one.task.instruction.strip() or one.task.steps
            assert all(warning.isprintable() for warning in one.warnings)
            check(one.task)
            describe(one.task)


def test_a_spoilt_folder_is_a_problem_beside_the_sound_ones(folders: list[Path]) -> None:
    with tempfile.TemporaryDirectory() as place:
        for folder in folders:
            shutil.copytree(folder, Path(place) / folder.name)
        spoilt = Path(place) / "spoilt"
        shutil.copytree(folders[0], spoilt)
        os.mkfifo(spoilt / "tests" / "pipe")
        found = load(place, environ={})
        assert len(found.tasks) == len(folders)
        assert [problem.path for problem in found.problems] == [str(spoilt)]
