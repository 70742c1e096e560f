"""Damaged Terminal-Bench 1.0 folders: each is a task or a `TaskError`, whatever was done to it."""

import shutil
from pathlib import Path

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from headrace.errors import TaskError
from headrace.tasks.terminal_bench_1 import read_terminal_bench_1

DATA = Path(__file__).parent / "data" / "terminal-bench-1"
FOLDERS = sorted(path for path in DATA.iterdir() if path.is_dir())
FILES = ("task.yaml", "docker-compose.yaml", "solution.yaml", "Dockerfile")
FRAGMENTS = [
    b"${", b"}", b"&a ", b"*a", b"<<: ", b"[", b"]", b"{", b": ", b"- ", b"\n", b"\t", b"  ", b"'",
    b'"', b"|", b"\x00", b"\xff", b"\xed\xa0\x80", b"!!python/x ", b"null", b"true", b".nan",
    b"-1", b"1e999", b"9" * 30, b"${A:-", b"$$", b"---\n", b"services:", b"client:", b"..", b"/",
    b"FROM ", b"COPY x y\n", b"WORKDIR ",
]  # fmt: skip
Cut = tuple[str, int, int, bytes]


@pytest.mark.timeout(120)
@settings(
    max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    st.sampled_from(FOLDERS),
    st.lists(
        st.tuples(
            st.sampled_from(FILES),
            st.integers(0, 600),
            st.integers(0, 20),
            st.sampled_from(FRAGMENTS) | st.binary(max_size=6),
        ),
        min_size=1,
        max_size=5,
    ),
)
def test_a_damaged_folder_is_a_task_or_a_task_error(
    tmp_path: Path, source: Path, cuts: list[Cut]
) -> None:
    root = tmp_path / "task"
    shutil.rmtree(root, ignore_errors=True)
    shutil.copytree(source, root)
    for name, start, length, fragment in cuts:
        path = root / name
        if path.exists():
            data = path.read_bytes()
            path.write_bytes(data[:start] + fragment + data[start + length :])
    try:
        read = read_terminal_bench_1(root, {})
    except TaskError as e:
        assert str(e).isprintable()
        return
    assert msgspec.msgpack.encode(read)  # it can be stored
    assert read.task.instruction.strip()
