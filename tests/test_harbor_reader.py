"""Real task folders, read: what is accepted, what is warned of, what is refused and how."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from headrace.errors import TaskError
from headrace.tasks.copy_sources import missing_sources
from headrace.tasks.harbor import read_harbor, read_task, strip_canary
from headrace.types import Artifact
from headrace.types import HealthCheck as HealthCheckRecord

TOML = '[task]\nname = "org/hello"\n'


def make(
    root: Path,
    toml: str = TOML,
    *,
    instruction: str = "Write hello to hello.txt.\n",
    dockerfile: str | None = "FROM debian:bookworm\n",
    solution: str | None = "#!/bin/bash\necho hello > hello.txt\n",
    test: str = "#!/bin/bash\necho 1 > /logs/verifier/reward.txt\n",
) -> Path:
    """A task folder."""
    (root / "tests").mkdir(parents=True)
    (root / "environment").mkdir()
    (root / "task.toml").write_text(toml)
    (root / "instruction.md").write_text(instruction)
    (root / "tests" / "test.sh").write_text(test)
    if dockerfile is not None:
        (root / "environment" / "Dockerfile").write_text(dockerfile)
    if solution is not None:
        (root / "solution").mkdir()
        (root / "solution" / "solve.sh").write_text(solution)
    return root


# --- what is read ---------------------------------------------------------------------------

FULL = """
schema_version = "1.1"
source = "somewhere"
artifacts = ["/app/out"]

[task]
name = "org/full"
description = "d"
authors = [{name = "A", email = "a@example.org"}]
keywords = ["k"]

[metadata]
category = "coding"
difficulty = "hard"
tags = ["a", "b"]
written = 2026-01-02

[agent]
timeout_sec = 900
user = 1000

[verifier]
timeout_sec = 120.5
user = "tester"
env = {MODE = "${MODE:-full}", N = 3}

[environment]
network_mode = "allowlist"
allowed_hosts = ["example.org"]
build_timeout_sec = 1800
cpus = 2
memory_mb = 4096
storage_mb = 10240
gpus = 0
mcp_servers = []
workdir = "/app"
env = {HOME_OF = "${WHO}", RAW = "a${WHO}"}
healthcheck = {command = "true"}

[solution]
env = {KEY = "v"}
"""


def test_every_field_of_the_format_is_read(tmp_path: Path) -> None:
    root = make(tmp_path / "full", FULL)
    one = read_harbor(root, {"WHO": "me"})
    task = one.task
    assert (task.name, task.format, task.path) == ("org/full", "harbor", str(root))
    assert (task.category, task.difficulty, task.tags) == ("coding", "hard", ("a", "b"))
    assert task.metadata["written"] == "2026-01-02"
    assert (task.agent.timeout_s, task.agent.user) == (900.0, "1000")
    assert (task.verifier.timeout_s, task.verifier.user) == (120.5, "tester")
    assert task.verifier.env == {"MODE": "full", "N": "3"}
    assert task.verifier.tests == (str(root / "tests"),)
    environment = task.environment
    assert environment.env == {"HOME_OF": "me", "RAW": "a${WHO}"}
    assert (environment.cpus, environment.memory_mb, environment.storage_mb) == (2.0, 4096, 10240)
    assert (environment.network.mode, environment.workdir) == ("allowlist", "/app")
    assert (environment.build_timeout_s, environment.upload_context) == (1800.0, False)
    assert environment.dockerfile == str(root / "environment" / "Dockerfile")
    assert task.solution is not None and task.solution.env == {"KEY": "v"}
    assert environment.network.allowed_hosts == ("example.org",)
    assert environment.healthcheck == HealthCheckRecord(command="true")
    assert task.artifacts == (Artifact(source="/app/out"),)
    assert (task.steps, task.inert) == ((), ())
    assert one.warnings == ("environment.env.HOME_OF: takes the variable WHO of this machine",)


def test_an_empty_task_toml_has_harbors_defaults(tmp_path: Path) -> None:
    one = read_harbor(make(tmp_path / "bare", ""), {})
    task = one.task
    assert task.name == "bare"
    assert (task.agent.timeout_s, task.verifier.timeout_s) == (None, 600.0)
    assert (task.environment.network.mode, task.environment.build_timeout_s) == ("public", 600.0)
    assert (task.inert, one.warnings) == ((), ())


@pytest.mark.parametrize(
    ("toml", "memory_mb", "warned"),
    [
        ('memory = "2G"', 2048, False),
        ('memory = "512M"', 512, False),
        ('memory = "1024K"', 1, False),
        ('memory = "1.5G"', 1536, False),
        ('memory = "2GB"', 2048, True),
        ('memory = "2Gi"', 2048, True),
        ("memory = 2048", None, True),
        ("memory_mb = 100.0", 100, False),
        ('memory_mb = "100"', 100, True),
        ("memory_mb = 0", None, True),
        ('memory_mb = 2048\nmemory = "2G"', 2048, False),
    ],
)
def test_memory_in_every_form(
    tmp_path: Path, toml: str, memory_mb: int | None, warned: bool
) -> None:
    one = read_harbor(make(tmp_path / "t", f'version = "1.0"\n[environment]\n{toml}\n'))
    assert one.task.environment.memory_mb == memory_mb
    assert bool(one.warnings) is warned


@pytest.mark.parametrize(
    ("toml", "network"),
    [
        ("allow_internet = false", "none"),
        ("allow_internet = true", "public"),
        ('network_mode = "no-network"', "none"),
        ('network_mode = "public"\nallow_internet = false', "public"),
    ],
)
def test_the_network_in_both_forms(tmp_path: Path, toml: str, network: str) -> None:
    task = read_task(make(tmp_path / "t", f"[environment]\n{toml}\n"))
    assert task.environment.network.mode == network


def test_an_unknown_key_is_a_warning_with_the_nearest_name(tmp_path: Path) -> None:
    toml = "colour = 1\n[agent]\ntimeout_secs = 9\n[environment]\nmemory_md = 1\n"
    assert read_harbor(make(tmp_path / "t", toml)).warnings == (
        "unknown key 'colour'",
        "unknown key 'environment.memory_md'; did you mean 'memory_mb'?",
        "unknown key 'agent.timeout_secs'; did you mean 'timeout_sec'?",
    )


def test_a_ready_image_needs_no_dockerfile_and_its_files_are_uploaded(tmp_path: Path) -> None:
    root = make(tmp_path / "t", '[environment]\ndocker_image = "x:1"\n', dockerfile=None)
    assert not read_task(root).environment.upload_context
    (root / "environment" / "data.csv").write_text("1\n")
    environment = read_task(root).environment
    assert (environment.image, environment.dockerfile) == ("x:1", None)
    assert environment.upload_context
    assert environment.context == str(root / "environment")


def test_a_missing_variable_of_the_solution_only_concerns_the_oracle(tmp_path: Path) -> None:
    one = read_harbor(make(tmp_path / "t", '[solution]\nenv = {K = "${NOT_SET_HERE}"}\n'), {})
    assert one.task.solution is not None and one.task.solution.env == {}
    assert "NOT_SET_HERE is not set" in one.warnings[0]


def test_canary_lines_and_the_blanks_after_them_are_stripped() -> None:
    text = "<!-- task canary GUID 1 -->\n# a Canary string\n\n\nDo it.\n# canary stays here\n"
    assert strip_canary(text) == "Do it.\n# canary stays here\n"
    assert strip_canary("\n\nDo it.\n") == "\n\nDo it.\n"


def test_a_byte_order_mark_and_windows_line_ends_are_read(tmp_path: Path) -> None:
    root = make(tmp_path / "t")
    (root / "task.toml").write_bytes(b'\xef\xbb\xbf[task]\r\nname = "org/x"\r\n')
    assert read_task(root).name == "org/x"


# --- identity -------------------------------------------------------------------------------

CHANGES: list[tuple[str, Callable[[Path], object], bool]] = [
    ("a test's content", lambda r: (r / "tests/test.sh").write_text("#!/bin/sh\n"), True),
    ("an executable bit", lambda r: (r / "tests/test.sh").chmod(0o755), True),
    ("a new file", lambda r: (r / "environment/.hidden").write_text(""), True),
    ("a file's name", lambda r: (r / "solution/solve.sh").rename(r / "solution/do.sh"), True),
    ("a link", lambda r: (r / "tests/again.sh").symlink_to("test.sh"), True),
    ("the instruction", lambda r: (r / "instruction.md").write_text("Other.\n"), True),
    ("a README", lambda r: (r / "README.md").write_text("hint"), False),
    ("the time of a file", lambda r: os.utime(r / "instruction.md", (1, 1)), False),
    ("other mode bits", lambda r: (r / "task.toml").chmod(0o600), False),
    ("compiled leftovers", lambda r: (r / "tests/__pycache__").mkdir(), False),
]


@pytest.mark.parametrize(
    ("change", "counts"), [c[1:] for c in CHANGES], ids=[c[0] for c in CHANGES]
)
def test_the_digest_follows_what_makes_the_task(
    tmp_path: Path, change: Callable[[Path], object], counts: bool
) -> None:
    root = make(tmp_path / "t")
    for path in root.rglob("*"):
        path.chmod(0o755 if path.is_dir() else 0o644)
    before = read_task(root).digest
    change(root)
    assert (read_task(root).digest != before) is counts


def test_the_digest_does_not_depend_on_the_place(tmp_path: Path) -> None:
    one, other = make(tmp_path / "a" / "t"), make(tmp_path / "b" / "u")
    assert read_task(one).digest == read_task(other).digest


# --- what is refused ------------------------------------------------------------------------


def _toml(text: str) -> Callable[[Path], object]:
    return lambda root: (root / "task.toml").write_text(text)


def _gone(name: str) -> Callable[[Path], object]:
    return lambda root: (root / name).unlink()


BAD: list[tuple[str, Callable[[Path], object], str]] = [
    ("no task.toml", _gone("task.toml"), "no task.toml"),
    ("broken TOML", _toml('[task]\nname = "a\n'), "broken TOML.*line 2"),
    ("TOML with a key of a thousand parts", _toml("metadata." + "a." * 1000 + "a = 1"),
     "a key of more than 64 parts"),
    ("TOML with a million parts", _toml("[" + "a." * 500_000 + "a]"), "more than 64 parts"),
    ("TOML of too many levels", _toml("a = " + "[" * 5000), "nested too deep"),
    ("TOML of 65 levels", _toml("a = " + "[" * 65 + "]" * 65), "nested deeper than 64"),
    ("TOML that is not UTF-8", lambda r: (r / "task.toml").write_bytes(b"\xff"), "byte 0xff at 0"),
    ("TOML that is huge", _toml("#" * (1 << 20 | 1)), "at most 1048576 bytes"),
    ("no instruction", _gone("instruction.md"), "no instruction.md"),
    ("an empty instruction", lambda r: (r / "instruction.md").write_text(" \n"), "is empty"),
    ("only a canary", lambda r: (r / "instruction.md").write_text("# canary\n"), "is empty"),
    ("no Dockerfile", _gone("environment/Dockerfile"), "no environment/Dockerfile and no"),
    ("an empty Dockerfile", lambda r: (r / "environment/Dockerfile").write_text(""), "is empty"),
    ("a missing COPY source",
     lambda r: (r / "environment/Dockerfile").write_text("FROM x\nCOPY app.py /app/\n"),
     "COPY source 'app.py' is not in"),
    ("COPY sources of two folders",
     lambda r: (r / "environment/Dockerfile").write_text("FROM x\nCOPY tests nope /t\n"),
     "COPY source 'tests' is not in .*, nor is 'nope' in"),
    ("no test script", _gone("tests/test.sh"), "no tests/test.sh"),
    ("a pipe", lambda r: os.mkfifo(r / "tests/pipe"), "special file"),
    ("task.toml as a pipe", lambda r: ((r / "task.toml").unlink(), os.mkfifo(r / "task.toml")),
     "special file"),
    ("a link that leaves", lambda r: (r / "tests/up").symlink_to("/etc/passwd"), "leaves the"),
    ("a link upwards", lambda r: (r / "environment/up").symlink_to("../../.."),
     "leaves the folder environment/"),
    ("a link to another part", lambda r: (r / "tests/s").symlink_to("../solution/solve.sh"),
     "leaves the folder tests/"),
    ("an absolute link", lambda r: (r / "tests/s").symlink_to(r / "tests/test.sh"),
     "leaves the folder tests/"),
    ("a contradiction", _toml('[verifier]\nenvironment_mode = "shared"\nenvironment = {}\n'),
     "contradicts"),
    ("compose", lambda r: (r / "environment/docker-compose.yaml").write_text("{}"),
     "docker-compose.yaml: services: expected a table of services, found nothing"),
    ("Windows", _toml('[environment]\nos = "Windows"\n'), "only Linux"),
    ("a timeout of text", _toml('[agent]\ntimeout_sec = "soon"\n'),
     "agent.timeout_sec: expected a finite number, found 'soon'"),
    ("a timeout of zero", _toml("[verifier]\ntimeout_sec = 0\n"), "more than 0 seconds, found 0"),
    ("a timeout without end", _toml("[agent]\ntimeout_sec = inf\n"), "a finite number, found inf"),
    ("a table that is none", _toml("agent = 3\n"), "agent: expected a table, found 3"),
    ("a size without unit", _toml('[environment]\nmemory = "2048"\n'), "a size such as"),
    ("two sizes", _toml('[environment]\nmemory = "2G"\nmemory_mb = 1\n'), "contradicts"),
    ("a network mode", _toml('[environment]\nnetwork_mode = "vpn"\n'), "no-network"),
    ("hosts without a list", _toml('[environment]\nallowed_hosts = ["a"]\n'), "allowlist"),
    ("a relative workdir", _toml('[environment]\nworkdir = "app"\n'), "an absolute path"),
    ("a variable not set", _toml('[environment]\nenv = {K = "${NOT_SET_HERE}"}\n'),
     "environment.env.K: the variable NOT_SET_HERE is not set"),
    ("a variable's name", _toml('[environment]\nenv = {"A=B" = "c"}\n'), "of shell variables"),
    ("too many variables", _toml('[verifier]\nenv = {A = "' + "x" * 9**5 + '"}\n'), "at most"),
    ("a variable no shell takes", _toml('[verifier]\nenv = {"MY-VAR" = "c"}\n'), "found 'MY-VAR'"),
    ("a name that climbs", _toml('[task]\nname = "../x"\n'), "org/name"),
    ("a name of several lines", _toml('[task]\nname = "a\\nb"\n'), "a line of text"),
]  # fmt: skip


@pytest.mark.parametrize(("harm", "message"), [b[1:] for b in BAD], ids=[b[0] for b in BAD])
def test_a_bad_folder_is_refused_with_its_path_and_the_reason(
    tmp_path: Path, harm: Callable[[Path], object], message: str
) -> None:
    root = make(tmp_path / "t")
    harm(root)
    with pytest.raises(TaskError, match=message) as refused:
        read_task(root, {})
    assert str(root) in str(refused.value)
    assert "\n" not in str(refused.value)


def test_a_path_that_is_no_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(TaskError, match="expected a task folder, found a file"):
        read_task(tmp_path / "file")
    with pytest.raises(TaskError, match="expected a task folder, found nothing"):
        read_task(tmp_path / "absent")


def test_a_file_that_may_not_be_read_is_named(tmp_path: Path) -> None:
    root = make(tmp_path / "t")
    (root / "task.toml").unlink()
    (root / "task.toml").mkdir()
    with pytest.raises(TaskError, match="expected a regular file"):
        read_task(root)


# --- the Dockerfile's sources ---------------------------------------------------------------

SOURCES = [
    ("COPY a.txt b.txt /x/", []),
    ("COPY a.txt nope.txt /x/", ["nope.txt"]),
    ("copy --chown=1:1 nope /x", ["nope"]),
    ("COPY --from=build /nope /x", []),
    ('COPY ["a.txt", "no pe", "/x"]', ["no pe"]),
    ("COPY a.txt \\\n  # why\n  nope \\\n  /x", ["nope"]),
    ("COPY *.txt /x", []),
    ("COPY *.csv /x", ["*.csv"]),
    ("COPY . /x", []),
    ("COPY / /x", []),
    ("COPY /a.txt /x", []),
    ("COPY ../a.txt /x", ["../a.txt"]),
    ("COPY $SRC /x", []),
    ("ADD https://example.org/x.tar /x", []),
    ("ADD git@example.org:x/y.git /x", []),
    ("COPY <<EOF /x\nCOPY nope /y\nEOF\nCOPY a.txt /z", []),
    ("RUN cat <<'EOF' > f\nCOPY nope /y\nEOF\n", []),
    ("# COPY nope /x", []),
    ("RUN echo COPY nope /x", []),
    ("COPY", []),
]


@pytest.mark.parametrize(("dockerfile", "missing"), SOURCES)
def test_sources_are_looked_up_as_docker_would(
    tmp_path: Path, dockerfile: str, missing: list[str]
) -> None:
    for name in ("a.txt", "b.txt"):
        (tmp_path / name).write_text("")
    assert missing_sources(f"FROM x\n{dockerfile}\n", tmp_path) == missing


# --- fuzz -----------------------------------------------------------------------------------

KEYS = st.sampled_from(
    "task agent verifier environment solution metadata env name timeout_sec user memory memory_mb "
    "cpus network_mode allowed_hosts allow_internet workdir docker_image os steps tags category "
    "storage gpus healthcheck environment_mode version artifacts".split()
)
VALUES: st.SearchStrategy[str] = st.recursive(
    st.sampled_from(['"2G"', '""', '"a\\u0000b"', "1", "-1", "0", "1e400", "nan", "inf", "true",
                     "9" * 400, '"${X}"', '"${X:-}"', "2026-01-02", "'''\n'''", '"public"', "[]"]),
    lambda inner: st.lists(inner, max_size=2).map(lambda i: f"[{', '.join(i)}]")
    | st.tuples(KEYS, inner).map(lambda i: f"{{{i[0]} = {i[1]}}}"),
    max_leaves=5,
)  # fmt: skip
LINES = st.one_of(
    KEYS.map(lambda key: f"[{key}]"),
    st.tuples(KEYS, VALUES).map(lambda pair: f"{pair[0]} = {pair[1]}"),
    st.text(max_size=20),
)


@given(st.lists(LINES, max_size=6).map("\n".join))
@settings(max_examples=200, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_no_task_toml_makes_the_reader_crash(tmp_path: Path, toml: str) -> None:
    root = tmp_path / "t"
    if not root.exists():
        make(root)
    (root / "task.toml").write_bytes(toml.encode("utf-8", "surrogatepass"))
    try:
        one = read_harbor(root, {})
    except TaskError as e:
        assert str(root) in str(e)
    else:
        assert one.task.name


@given(st.text())
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_no_dockerfile_makes_the_lookup_crash(tmp_path: Path, text: str) -> None:
    missing_sources(text, tmp_path)
    missing_sources(f"COPY {text} /x", tmp_path)
