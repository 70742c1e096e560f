"""Terminal-Bench 1.0 folders: what is read, what is warned of, what is refused."""

import os
from pathlib import Path
from typing import Any

import pytest

from headrace.errors import TaskError
from headrace.tasks.compose_variables import Variables, env_file
from headrace.tasks.reading import Read
from headrace.tasks.terminal_bench_1 import read_terminal_bench_1
from headrace.types import Command, Task

TASK = "instruction: Do it.\ndifficulty: easy\n"
COMPOSE = """\
services:
  client:
    build:
      dockerfile: Dockerfile
    image: ${T_BENCH_TASK_DOCKER_CLIENT_IMAGE_NAME}
    container_name: ${T_BENCH_TASK_DOCKER_CLIENT_CONTAINER_NAME}
    command: [ "sh", "-c", "sleep infinity" ]
    environment:
      - TEST_DIR=${T_BENCH_TEST_DIR}
    volumes:
      - ${T_BENCH_TASK_LOGS_PATH}:${T_BENCH_CONTAINER_LOGS_PATH}
      - ${T_BENCH_TASK_AGENT_LOGS_PATH}:${T_BENCH_CONTAINER_AGENT_LOGS_PATH}
"""
OFFICIAL_BASE = "ghcr.io/laude-institute/t-bench/ubuntu-24-04:20250624"
DATA = Path(__file__).parent / "data" / "terminal-bench-1"


def folder(root: Path, **files: str | None) -> Path:
    """A task; `__` in a name is a dot, `_s_` a slash, None leaves the file out."""
    texts: dict[str, str | None] = {
        "task.yaml": TASK,
        "docker-compose.yaml": COMPOSE,
        "Dockerfile": "FROM debian\nWORKDIR /work\n",
        "run-tests.sh": "true\n",
        "solution.sh": "true\n",
        "tests/test_outputs.py": "",
    }
    texts |= {name.replace("_s_", "/").replace("__", "."): text for name, text in files.items()}
    for name, text in texts.items():
        if text is not None:
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            (root / name).write_text(text)
    return root


def read(root: Path, environ: dict[str, str] | None = None, **files: str | None) -> Read:
    return read_terminal_bench_1(folder(root, **files), environ or {})


def task(root: Path, **files: str | None) -> Task:
    return read(root, **files).task


def with_yaml(root: Path, text: str) -> Read:
    return read(root, task__yaml=text)


def with_service(root: Path, lines: str, environ: dict[str, str] | None = None) -> Read:
    """The standard compose file with further lines in its service."""
    added = "".join(f"    {line}\n" for line in lines.splitlines())
    return read(root, environ, **{"docker-compose__yaml": COMPOSE + added})


# --- task.yaml ------------------------------------------------------------------------------


def test_the_official_defaults_are_taken(tmp_path: Path) -> None:
    found = read(tmp_path / "some task")
    one = found.task
    assert found.warnings == ()
    assert (one.name, one.format, one.instruction) == ("some task", "terminal-bench-1", "Do it.")
    assert (one.agent.timeout_s, one.verifier.timeout_s) == (360.0, 60.0)
    assert (one.category, one.difficulty, one.tags) == ("software_engineering", "easy", ())
    assert (one.verifier.kind, one.verifier.parser) == ("terminal-bench-1", "pytest")
    assert (one.verifier.same_shell, one.verifier.user) == (False, "root")
    assert one.verifier.script == f"{tmp_path}/some task/run-tests.sh"
    assert one.verifier.tests == (f"{tmp_path}/some task/tests",)
    assert (one.environment.network.mode, one.environment.compose) == ("public", None)


def test_every_field_is_read(tmp_path: Path) -> None:
    found = with_yaml(
        tmp_path,
        "# canary\ninstruction: |-\n  Do it.\nauthor_name: A\nauthor_email: a@b\n"
        "difficulty: hard\ncategory: security\ntags: [a, b-c]\nparser_name: swebench\n"
        "max_agent_timeout_sec: 30000\nmax_test_timeout_sec: 90.5\nrun_tests_in_same_shell: true\n"
        "disable_asciinema: true\nestimated_duration_sec: null\nexpert_time_estimate_min: 5\n"
        "junior_time_estimate_min: 7.5\n",
    )
    one = found.task
    assert found.warnings == ()
    assert (one.difficulty, one.category, one.tags) == ("hard", "security", ("a", "b-c"))
    assert (one.agent.timeout_s, one.verifier.timeout_s) == (30000.0, 90.5)
    assert (one.verifier.parser, one.verifier.same_shell, one.verifier.user) == (
        "swebench", True, None,
    )  # fmt: skip
    assert one.metadata["author_name"] == "A"
    assert one.metadata["estimated_duration_sec"] is None
    assert one.metadata["junior_time_estimate_min"] == 7.5


TOLERATED = [
    ("difficulty: Medium", "difficulty: 'Medium' is none of", {"difficulty": "medium"}),
    ("difficulty: very hard", "it is read as 'very hard'", {"difficulty": "very hard"}),
    ("difficulty: null", "difficulty: missing", {"difficulty": None}),
    ("category: null", "category: empty; 'software_engineering' is taken",
     {"category": "software_engineering"}),
    ("category: 7", "category: 7 is read as text", {"category": "7"}),
    ("tags: null", "tags: empty", {"tags": ()}),
    ("tags: one", "tags: expected a list of words, found 'one'", {"tags": ("one",)}),
    ("tags: [1, b]", "tags: expected a list of words", {"tags": ("1", "b")}),
    ("max_agent_timout_sec: 9", "unknown key 'max_agent_timout_sec'; did you mean "
     "'max_agent_timeout_sec'?", {}),
    ("language: go", "unknown key 'language'", {}),
    ("name: x", "unknown key 'name'", {"name": "t"}),
    ("descriptions: [{key: base, description: Old.}]", "descriptions: not used",
     {"instruction": "Do it."}),
    ("category: a\ncategory: b", "the key 'category' is there twice", {"category": "b"}),
]  # fmt: skip


@pytest.mark.parametrize(("line", "warning", "fields"), TOLERATED, ids=[t[0] for t in TOLERATED])
def test_what_can_mean_one_thing_only_is_read_with_a_warning(
    tmp_path: Path, line: str, warning: str, fields: dict[str, Any]
) -> None:
    text = TASK if line.startswith(("category", "tags", "max", "lang", "name", "desc")) else ""
    found = with_yaml(tmp_path / "t", f"{text or 'instruction: Do it.'}\n{line}\n")
    assert len(found.warnings) == 1, found.warnings
    assert warning in found.warnings[0]
    for name, value in fields.items():
        assert getattr(found.task, name) == value


def test_numbers_and_switches_written_as_text_are_read_with_a_warning(tmp_path: Path) -> None:
    found = with_yaml(
        tmp_path,
        f"{TASK}max_agent_timeout_sec: '120'\nmax_test_timeout_sec: null\n"
        "run_tests_in_same_shell: 'true'\nparser_name: null\n",
    )
    assert (found.task.agent.timeout_s, found.task.verifier.timeout_s) == (120.0, 60.0)
    assert (found.task.verifier.same_shell, found.task.verifier.parser) == (True, "pytest")
    assert sorted(warning.split(":")[0] for warning in found.warnings) == [
        "max_agent_timeout_sec", "max_test_timeout_sec", "parser_name", "run_tests_in_same_shell",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("lines", "instruction"),
    [
        ("description: Old form.", "Old form."),
        ("descriptions: [{key: base, description: Base.}, {key: hard, description: No.}]", "Base."),
        ("descriptions: [{key: only, description: Only.}]", "Only."),
        ("descriptions: [Plain.]", "Plain."),
    ],
)
def test_older_forms_of_the_instruction_are_read(
    tmp_path: Path, lines: str, instruction: str
) -> None:
    found = with_yaml(tmp_path, f"difficulty: easy\n{lines}\n")
    assert found.task.instruction == instruction
    assert len(found.warnings) == 1
    assert "descriptions" not in found.task.metadata


def test_an_instruction_that_names_a_description_is_the_descriptions(tmp_path: Path) -> None:
    found = with_yaml(
        tmp_path,
        "instruction: base\ndifficulty: easy\ndescriptions:\n"
        "  - {key: base, description: Solve it.}\n  - {key: problem, description: 'What?'}\n",
    )
    assert found.task.instruction == "Solve it.\n\nWhat?"
    assert found.warnings == (
        "instruction: 'base' names a description; all 2 are the instruction, where the official "
        "harness gives the word alone",
    )


def test_canary_lines_of_the_instruction_are_left_out(tmp_path: Path) -> None:
    text = "difficulty: easy\ninstruction: |\n  # terminal-bench-canary GUID 1\n\n  Do it.\n"
    assert with_yaml(tmp_path, text).task.instruction == "Do it.\n"


REFUSED = [
    ("", "the file says nothing"),
    ("# a comment\n", "the file says nothing"),
    ("- a\n- b\n", "expected keys and values"),
    ("just text", "expected keys and values, found 'just text'"),
    ("a: [", "broken YAML: line"),
    ("difficulty: easy\n", "instruction: expected text, found nothing"),
    ("instruction: 7\ndifficulty: easy\n", "instruction: expected text, found 7"),
    ("instruction: ' '\ndifficulty: easy\n", "the instruction is empty"),
    ("instruction: '# canary x'\ndifficulty: easy\n", "the instruction is empty"),
    ("description: [x]\ndifficulty: easy\n", "instruction: expected text, found nothing"),
    ("difficulty: easy\ndescriptions: [{key: a, description: A}, {key: b, description: B}]\n",
     "descriptions: expected one description"),
    ("instruction: x\ndifficulty: 4\n", "difficulty: expected easy, medium, hard or unknown"),
    (f"{TASK}parser_name: junit\n", "parser_name: expected one of pytest, swebench"),
    (f"{TASK}parser_name: pytests\n", "did you mean 'pytest'?"),
    (f"{TASK}max_agent_timeout_sec: soon\n", "max_agent_timeout_sec: expected a finite number"),
    (f"{TASK}max_agent_timeout_sec: 0\n", "expected more than 0 seconds"),
    (f"{TASK}max_test_timeout_sec: -1\n", "expected more than 0 seconds"),
    (f"{TASK}max_test_timeout_sec: .inf\n", "expected a finite number"),
    (f"{TASK}max_test_timeout_sec: true\n", "expected a finite number"),
    (f"{TASK}run_tests_in_same_shell: maybe\n", "expected true or false"),
    (f"{TASK}tags: [[a]]\n", "tags: expected a list of words"),
    (f"{TASK}category: [a]\n", "category: expected text"),
    (f"{TASK}expert_time_estimate_min: long\n", "expected a finite number"),
    (f"{TASK}a: &a [*a]\n", "inside its own anchor"),
]  # fmt: skip


@pytest.mark.parametrize(("text", "said"), REFUSED, ids=range(len(REFUSED)))
def test_what_cannot_be_read_is_refused_with_its_key(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(TaskError) as caught:
        with_yaml(tmp_path, text)
    assert str(caught.value).startswith(f"{tmp_path}/task.yaml: ")
    assert said in str(caught.value)


# --- the folder -----------------------------------------------------------------------------


def test_a_folder_without_its_files_is_refused(tmp_path: Path) -> None:
    for number, (files, said) in enumerate(
        [
            ({"task__yaml": None}, "no task.yaml"),
            ({"run-tests__sh": None}, "no run-tests.sh, the script that grades the task"),
            ({"Dockerfile": None}, "no Dockerfile"),
            ({"Dockerfile": "\n"}, "the file is empty"),
            ({"Dockerfile": "FROM x\nCOPY gone /"}, "COPY source 'gone' is not in"),
        ]
    ):
        with pytest.raises(TaskError, match=said):
            read(tmp_path / str(number), **files)
    with pytest.raises(TaskError, match="expected a task folder, found nothing"):
        read_terminal_bench_1(tmp_path / "nowhere")


def test_a_folder_without_tests_or_compose_is_read_with_a_warning(tmp_path: Path) -> None:
    found = read(tmp_path, **{"tests_s_test_outputs__py": None, "docker-compose__yaml": None})
    assert found.task.verifier.tests == ()
    assert found.task.environment.dockerfile == f"{tmp_path}/Dockerfile"
    assert found.warnings == (
        "no docker-compose.yaml; the Dockerfile in the folder is taken",
        "no tests/ folder; run-tests.sh alone goes to /tests",
    )


def test_a_task_without_solution_has_none(tmp_path: Path) -> None:
    assert task(tmp_path, solution__sh=None).solution is None


def test_a_solution_script_is_one_file_for_oracle(tmp_path: Path) -> None:
    solution = task(tmp_path, solution__yaml="- command: x\n").solution
    assert solution is not None
    assert (solution.path, solution.target) == (f"{tmp_path}/solution.sh", "/oracle")
    assert (solution.script, solution.keystrokes) == ("solution.sh", ())


def test_a_solution_in_yaml_is_typed(tmp_path: Path) -> None:
    text = (
        "- command: nano x\n  min_timeout_sec: 0.5\n"
        "- command: Hello\n  append_enter: false\n"
        "- command: C-x\n  block: false\n"
        "- command: make\n  block: true\n  max_timeout_sec: 9\n"
        "- command: ''\n"
    )
    solution = task(tmp_path, solution__sh=None, solution__yaml=text).solution
    assert solution is not None
    assert [(c.text, c.timeout_s) for c in solution.keystrokes] == [
        ("nano x", 0.1), ("Enter", 0.5),
        ("Hello", 0.1),
        ("C-x", 0.1), ("Enter", 0.1),
        ("make", 0.1), ("Enter", 9.0),
        ("Enter", 0.1),
    ]  # fmt: skip
    assert all(command.keys for command in solution.keystrokes)
    assert solution.keystrokes[0] == Command(text="nano x", keys=True, timeout_s=0.1)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "expected a list of commands, found nothing"),
        ("command: x", "expected a list of commands"),
        ("- x", "[0]: expected keys and values"),
        ("- {min_timeout_sec: 1}", "[0].command: expected text, found nothing"),
        ("- {command: x, block: [1]}", "[0].block: expected true or false"),
        ("- {command: x, max_timeout_sec: -1}", "[0].max_timeout_sec: expected more than 0"),
    ],
)
def test_a_broken_solution_costs_the_oracle_only(tmp_path: Path, text: str, said: str) -> None:
    found = read(tmp_path, solution__sh=None, solution__yaml=text)
    assert found.task.solution is None
    assert said in found.warnings[0]


def test_every_file_of_the_folder_counts_for_the_digest(tmp_path: Path) -> None:
    first = task(tmp_path).digest
    assert task(tmp_path).digest == first
    for name in ("tests_s_data__txt", "task-deps_s__env", "README", "solution__sh"):
        changed = task(tmp_path, **{name: "more"}).digest
        assert changed != first
        first = changed
    (tmp_path / "run-tests.sh").chmod(0o755)
    assert read_terminal_bench_1(tmp_path).task.digest != first


def test_leftovers_of_tools_do_not_count(tmp_path: Path) -> None:
    first = task(tmp_path).digest
    (tmp_path / "tests" / "__pycache__").mkdir()
    (tmp_path / "tests" / "__pycache__" / "x.pyc").write_text("x")
    assert read_terminal_bench_1(tmp_path).task.digest == first


def test_links_that_leave_the_task_and_special_files_are_refused(tmp_path: Path) -> None:
    root = folder(tmp_path / "t", data_s_x="x")
    (root / "data" / "link").symlink_to("../solution.sh")  # within the build context
    read_terminal_bench_1(root)
    (root / "tests" / "link").symlink_to("../solution.sh")
    with pytest.raises(TaskError, match="leaves the folder tests/"):
        read_terminal_bench_1(root)
    (root / "tests" / "link").unlink()
    (root / "out").symlink_to("/etc/passwd")
    with pytest.raises(TaskError, match="leaves the task folder"):
        read_terminal_bench_1(root)
    (root / "out").unlink()
    os.mkfifo(root / "pipe")
    with pytest.raises(TaskError, match="special file"):
        read_terminal_bench_1(root)


# --- the image ------------------------------------------------------------------------------


def test_the_standard_compose_file_is_a_plain_recipe(tmp_path: Path) -> None:
    environment = task(tmp_path).environment
    assert (environment.dockerfile, environment.context) == (
        f"{tmp_path}/Dockerfile", str(tmp_path),
    )  # fmt: skip
    assert (environment.env, environment.workdir) == ({"TEST_DIR": "/tests"}, None)
    assert (environment.image, environment.compose) == (None, None)


@pytest.mark.parametrize(
    ("dockerfile", "workdir"),
    [
        (f"FROM {OFFICIAL_BASE}\n", "/app"),
        (f"FROM {OFFICIAL_BASE}\nWORKDIR /x\n", None),
        ("FROM debian\n", None),
        (f"ARG BASE={OFFICIAL_BASE}\nFROM $BASE\n", "/app"),
        (f"FROM {OFFICIAL_BASE} AS a\nWORKDIR /x\nFROM debian\n", None),
        (f"FROM debian AS a\nWORKDIR /x\nFROM {OFFICIAL_BASE}\n", "/app"),
        (f"FROM {OFFICIAL_BASE} AS base\nFROM base\n", "/app"),
        (f"FROM {OFFICIAL_BASE} AS base\nWORKDIR /x\nFROM base\n", None),
        ("no Dockerfile at all", None),
    ],
)
def test_the_official_base_images_bring_their_working_directory(
    tmp_path: Path, dockerfile: str, workdir: str | None
) -> None:
    assert task(tmp_path, Dockerfile=dockerfile).environment.workdir == workdir


def test_an_entrypoint_runs_so_it_is_not_told_of(tmp_path: Path) -> None:
    found = read(tmp_path, Dockerfile='FROM debian\nENTRYPOINT ["/start.sh"]\n')
    assert (found.task.inert, found.warnings) == ((), ())


def test_a_build_context_of_its_own_is_found(tmp_path: Path) -> None:
    compose = COMPOSE.replace("dockerfile: Dockerfile", "context: ./client")
    files = {"client_s_Dockerfile": "FROM x\nCOPY a /\n", "client_s_a": "a"}
    found = task(tmp_path, **{"docker-compose__yaml": compose}, **files).environment
    assert (found.context, found.dockerfile) == (
        f"{tmp_path}/client",
        f"{tmp_path}/client/Dockerfile",
    )
    short = COMPOSE.replace("build:\n      dockerfile: Dockerfile", "build: client")
    assert task(tmp_path, **{"docker-compose__yaml": short}).environment.context == found.context
    for bad in ("../..", "/etc"):
        with pytest.raises(TaskError, match=r"build\.context: expected a place in the task folder"):
            read(tmp_path, **{"docker-compose__yaml": compose.replace("./client", bad)})


PLAIN = [
    ("working_dir: /srv/x/", {"workdir": "/srv/x"}),
    ("deploy: {resources: {limits: {cpus: '2.5', memory: 3G}}}", {"cpus": 2.5, "memory_mb": 3072}),
    ("cpus: 1\nmem_limit: 512m", {"cpus": 1.0, "memory_mb": 512}),
    ("mem_limit: 1073741824", {"memory_mb": 1024}),
    ("network_mode: none", {}),
    ("tty: true\nstdin_open: true\nrestart: always", {}),
    ("privileged: false\nports: []\ntmpfs: null", {}),
]


@pytest.mark.parametrize(("lines", "fields"), PLAIN, ids=[p[0] for p in PLAIN])
def test_what_a_sandbox_has_anyway_needs_no_compose(
    tmp_path: Path, lines: str, fields: dict[str, Any]
) -> None:
    found = with_service(tmp_path, lines)
    assert found.task.environment.compose is None
    assert found.warnings == ()
    for name, value in fields.items():
        assert getattr(found.task.environment, name) == value
    expected = "none" if "network_mode" in lines else "public"
    assert found.task.environment.network.mode == expected


def test_a_user_of_the_service_is_the_agents(tmp_path: Path) -> None:
    assert with_service(tmp_path, "user: 1000").task.agent.user == "1000"


NEEDS = [
    "ports: ['80:80']", "tmpfs: /tmp", "privileged: true", "shm_size: 1g", "hostname: x",
    "healthcheck: {test: 'true'}", "network_mode: host", "extra_hosts: ['a:1.2.3.4']",
    "cap_add: [SYS_ADMIN]", "env_file: .env", "networks: [x]", "entrypoint: /start.sh",
    "deploy: {resources: {reservations: {devices: [{driver: nvidia}]}}}",
]  # fmt: skip


@pytest.mark.parametrize("lines", NEEDS)
def test_what_matters_keeps_its_compose_file(tmp_path: Path, lines: str) -> None:
    found = with_service(tmp_path, lines)
    compose = found.task.environment.compose
    assert compose is not None
    assert (compose.path, compose.context) == (f"{tmp_path}/docker-compose.yaml", str(tmp_path))
    assert (compose.service, compose.services) == ("client", ("client",))
    assert found.warnings == ()


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ('[ "sh", "-c", "sleep infinity" ]', '["sh", "-c", "service ssh start; sleep infinity"]'),
        ("dockerfile: Dockerfile", "dockerfile: Dockerfile\n      args: {A: b}"),
        ("dockerfile: Dockerfile", "dockerfile: Dockerfile\n      target: last"),
        ("    volumes:", "    volumes:\n      - ./:/app"),
        ("services:", "services:\n  server: {image: x}"),
    ],
)
def test_work_of_the_container_keeps_its_compose_file(tmp_path: Path, old: str, new: str) -> None:
    found = task(tmp_path, **{"docker-compose__yaml": COMPOSE.replace(old, new)})
    assert found.environment.compose is not None
    assert found.environment.compose.service == "client"


@pytest.mark.parametrize(
    "command", ["sleep infinity", "tail -f /dev/null", "[bash]", "null", "['sh','-c','sleep 1d']",
                '["bash","-c","while true; do sleep 3600; done"]'],
)  # fmt: skip
def test_a_command_that_only_waits_is_none(tmp_path: Path, command: str) -> None:
    text = COMPOSE.replace('[ "sh", "-c", "sleep infinity" ]', command)
    assert task(tmp_path, **{"docker-compose__yaml": text}).environment.compose is None


def test_the_only_service_is_the_client_whatever_its_name(tmp_path: Path) -> None:
    text = "version: '3'\nservices:\n  agent-environment:\n    build: .\n    command: bash\n"
    found = read(tmp_path, **{"docker-compose__yaml": text})
    assert found.task.environment.dockerfile == f"{tmp_path}/Dockerfile"
    assert found.warnings == (
        "docker-compose.yaml: services: no service is called client; the only one, "
        "agent-environment, is taken",
    )


def test_the_client_is_the_service_with_the_harness_container_name(tmp_path: Path) -> None:
    text = COMPOSE.replace("  client:", "  agent:") + "  db:\n    image: postgres\n"
    for name in ("T_BENCH_TASK_DOCKER_CLIENT_CONTAINER_NAME", "COMPOSE_PROJECT_NAME"):
        named = text.replace("T_BENCH_TASK_DOCKER_CLIENT_CONTAINER_NAME", name)
        found = read(tmp_path, **{"docker-compose__yaml": named})
        compose = found.task.environment.compose
        assert compose is not None and found.warnings == ()
        assert (compose.service, compose.services) == ("agent", ("agent", "db"))


def test_a_ready_image_needs_no_dockerfile(tmp_path: Path) -> None:
    text = COMPOSE.replace("    build:\n      dockerfile: Dockerfile\n", "")
    text = text.replace("${T_BENCH_TASK_DOCKER_CLIENT_IMAGE_NAME}", "debian:${VERSION:-12}")
    found = task(tmp_path, **{"docker-compose__yaml": text, "Dockerfile": None})
    assert (found.environment.image, found.environment.dockerfile) == ("debian:12", None)


COMPOSE_REFUSED = [
    ("", "the file says nothing"),
    ("x: 1", "services: expected at least one service, found nothing"),
    ("services: {}", "services: expected at least one service"),
    ("services: [a]", "services: expected at least one service"),
    ("services: {client: 5}", "services.client: expected keys and values, found 5"),
    ("services: {a: {image: x}, b: {image: y}}", "or one called client, found a, b"),
    ("services: {client: {image: x}, client: {image: y}}", "is there twice"),
    ("services: {client: {image: x, depends_on: [db]}}", "there is no service 'db'"),
    ("services: {client: {image: x, depends_on: [b]}, b: {image: y, depends_on: {client: {}}}}",
     "client, b wait for each other"),
    ("services: {client: {build: 5}}", "build: expected a folder"),
    ("services: {client: {image: x, environment: 5}}", "environment: expected variables"),
    ("services: {client: {image: x, environment: {A B: c}}}", "names of shell variables"),
    ("services: {client: {image: x, working_dir: app}}", "working_dir: expected an absolute path"),
    ("services: {client: {image: x, mem_limit: much}}", "memory: expected a size such as"),
    ("services: {client: {image: x, cpus: many}}", "cpus: expected a number"),
    ("services: {client: {image: 'x${', command: bash}}", "expected $NAME, ${NAME} or $$"),
    ("services: {client: {image: '${A:?is needed}'}}", "the variable A is not set here: is needed"),
    ("services: {client: {image: '${A:-b'}}", "expected a closing brace"),
    ("services: {client: {image: x, command: 'echo \"'}}", "command: expected a command"),
    ("services: {client: {image: x, volumes: a}}", "volumes: expected a list"),
    ("services: {client: {image: x, deploy: 3}}", "deploy: expected resources"),
]  # fmt: skip


@pytest.mark.parametrize(("text", "said"), COMPOSE_REFUSED, ids=range(len(COMPOSE_REFUSED)))
def test_a_broken_compose_file_is_refused_with_its_key(
    tmp_path: Path, text: str, said: str
) -> None:
    with pytest.raises(TaskError) as caught:
        read(tmp_path, **{"docker-compose__yaml": text})
    assert str(caught.value).startswith(f"{tmp_path}/docker-compose.yaml: ")
    assert said in str(caught.value)


def test_a_misspelt_key_of_the_service_is_named(tmp_path: Path) -> None:
    found = with_service(tmp_path, "enviroment: [A=1]")
    assert found.warnings == (
        "docker-compose.yaml: unknown key 'services.client.enviroment'; did you mean "
        "'environment'?",
    )
    assert found.task.environment.compose is not None  # docker compose has the last word


def test_variables_come_from_the_harness_this_machine_and_dot_env(tmp_path: Path) -> None:
    lines = "working_dir: ${DIR:-/fallback}\nmem_limit: ${SIZE}\nuser: $WHO"
    folder(tmp_path, __env="SIZE=2G\n# no\nWHO='me'\n")
    found = with_service(tmp_path, lines, {"WHO": "you"})
    assert found.task.environment.workdir == "/fallback"
    assert (found.task.environment.memory_mb, found.task.agent.user) == (2048, "you")
    assert found.warnings == ("docker-compose.yaml: takes the variable WHO of this machine",)


def test_a_variable_that_is_not_set_is_empty_and_told_of(tmp_path: Path) -> None:
    text = COMPOSE.replace("- TEST_DIR=", "- A=x${NOPE}y\n      - ALONE\n      - TEST_DIR=")
    found = read(tmp_path, **{"docker-compose__yaml": text})
    assert found.task.environment.env == {"TEST_DIR": "/tests", "A": "xy"}
    assert found.warnings == ("docker-compose.yaml: the variable NOPE is not set; it is empty",)


@pytest.mark.parametrize(
    ("text", "filled"),
    [
        ("$A-${A}", "a-a"), ("$$A ${E}|", "$A |"), ("${E:-d}${E-d}", "d"), ("${N:-d}${N-d}", "dd"),
        ("${A:+y}${E:+y}${E+y}${N+y}", "yy"), ("${N:-${A}}${N:-${M:-z}}", "az"),
        ("${A:-${N:?no}}", "a"), ("${A:?no}", "a"), ("a=b $$ $$$$", "a=b $ $$"),
    ],
)  # fmt: skip
def test_variables_are_replaced_as_docker_compose_does(text: str, filled: str) -> None:
    assert Variables({"A": "a", "E": ""}).fill(text, "f") == filled


def test_variables_nested_without_end_are_refused() -> None:
    with pytest.raises(TaskError, match="nested deeper than 16"):
        Variables({}).fill("${A:-" * 2000, "f")


def test_a_dot_env_file_is_read() -> None:
    text = 'A=1\nexport B = "two words" \nC=x # note\n#D=4\nnonsense\nE=\n'
    assert env_file(text) == {"A": "1", "B": "two words", "C": "x", "E": ""}


def test_our_own_small_tasks_are_read_without_a_warning() -> None:
    for root in sorted(path for path in DATA.iterdir() if path.is_dir()):
        assert read_terminal_bench_1(root, {}).warnings == (), root


def test_the_copies_of_the_shared_script_are_equal() -> None:
    """Each task folder stands alone, as the public ones do."""
    copies = list(DATA.parent.glob("terminal-bench-1*/*/tests/lib.sh"))
    assert len(copies) > 10
    assert len({copy.read_bytes() for copy in copies}) == 1
