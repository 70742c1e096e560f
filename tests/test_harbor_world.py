"""What an environment is made of: compose files, build contexts, and what `.harborignore` keeps."""

import os
import shutil
from pathlib import Path

import pytest

from headrace.errors import TaskError
from headrace.tasks.harbor import read_harbor, read_task

EXAMPLES = Path(__file__).resolve().parent / "data" / "harbor"
COMPOSE = "environment/docker-compose.yaml"


def example(tmp_path: Path, name: str) -> Path:
    """A copy of an example that a test may change."""
    return Path(shutil.copytree(EXAMPLES / name, tmp_path / name))


def without_image(root: Path) -> None:
    """`root` without its ready image: then only the folder can say how the world is made."""
    text = (root / "task.toml").read_text()
    (root / "task.toml").write_text(text.replace('docker_image = "headrace/base:bookworm"\n', ""))


# --- compose --------------------------------------------------------------------------------


def test_a_compose_file_is_read_with_its_services() -> None:
    task = read_task(EXAMPLES / "compose-two")
    compose = task.environment.compose
    assert compose is not None
    assert (compose.service, compose.services) == ("main", ("main", "store"))
    assert compose.path == str(EXAMPLES / "compose-two" / COMPOSE)
    assert compose.context == str(EXAMPLES / "compose-two" / "environment")
    assert (task.environment.image, task.environment.upload_context) == (
        "headrace/base:bookworm",
        False,
    )


def test_a_yml_file_is_a_file_of_the_task(tmp_path: Path) -> None:
    root = example(tmp_path, "compose-two")
    (root / COMPOSE).rename(root / "environment" / "docker-compose.yml")
    environment = read_task(root).environment
    assert (environment.compose, environment.upload_context) == (None, True)


def test_the_main_service_comes_from_the_image_where_the_file_has_none(tmp_path: Path) -> None:
    root = example(tmp_path, "compose-two")
    (root / COMPOSE).write_text("services:\n  store:\n    image: x\n")
    compose = read_task(root).environment.compose
    assert compose is not None
    assert (compose.service, compose.services) == ("main", ("main", "store"))


def test_the_only_service_is_taken_with_a_warning(tmp_path: Path) -> None:
    root = example(tmp_path, "compose-two")
    without_image(root)
    (root / COMPOSE).write_text("services:\n  agent:\n    image: x\n")
    one = read_harbor(root)
    assert (one.task.environment.compose, one.task.environment.image) == (None, "x")
    assert any("the agent works in its only one, 'agent'" in said for said in one.warnings)


BOMB = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{chr(98 + i)}: &{chr(98 + i)} [{', '.join([f'*{chr(97 + i)}'] * 9)}]\n" for i in range(9)
)
BAD: list[tuple[str, str, str]] = [
    ("no services", "version: '3'\n", "services: expected a table of services, found nothing"),
    ("a list", "- a\n", "expected a compose file with services"),
    ("nothing", "", "expected a compose file with services, found nothing"),
    ("no main", "services: {a: {image: x}, b: {image: x}}\n", "expected a service 'main' .* a, b"),
    ("a service of text", "services: {main: x}\n", "services.main: expected a table, found 'x'"),
    ("a name of a service", "services: {'a b': {}}\n", "'a b' is no name of a service"),
    ("a circle", "services: {main: {depends_on: [a]}, a: {depends_on: {main: {}}}}\n",
     "depends_on goes in a circle: main -> a -> main"),
    ("itself", "services: {main: {depends_on: [main]}}\n", "in a circle: main -> main"),
    ("a circle of extends",
     "services: {main: {extends: {service: a}}, a: {extends: main}}\n",
     "extends goes in a circle: main -> a -> main"),
    ("a service that is not there", "services: {main: {depends_on: [db]}}\n",
     "main needs the service 'db', which is not there"),
    ("a bomb", BOMB, "values once aliases are expanded"),
    ("an alias of itself", "a: &a [*a]\n", "inside its own anchor"),
    ("levels without end", "a: " + "[" * 500, "nested deeper than"),
    ("an object", "services: {main: !!python/object/apply:os.system ['true']}\n", "broken YAML"),
    ("a key twice", "services: {main: {image: x, image: y}}\n", "'image' is there twice"),
    ("broken", "services: [\n", "broken YAML: line"),
]  # fmt: skip


@pytest.mark.parametrize(("text", "message"), [b[1:] for b in BAD], ids=[b[0] for b in BAD])
def test_a_bad_compose_file_is_refused(tmp_path: Path, text: str, message: str) -> None:
    root = example(tmp_path, "compose-two")
    without_image(root)
    (root / COMPOSE).write_text(text)
    with pytest.raises(TaskError, match=message) as refused:
        read_task(root)
    assert str(root / COMPOSE) in str(refused.value)


PLAIN: list[tuple[str, str, str | None]] = [
    ("nothing of its own", "{}", "environment"),
    ("what Harbor's template says",
     "{build: {context: '${CONTEXT_DIR}'}, image: '${MAIN_IMAGE_NAME}', command: [sh, -c, "
     "sleep infinity], environment: ['TEST_DIR=${TEST_DIR}'], volumes: "
     "['${HOST_VERIFIER_LOGS_PATH}:${ENV_VERIFIER_LOGS_PATH}'], "
     "deploy: {resources: {limits: {cpus: '${CPUS}', memory: '${MEMORY}'}}}}", "environment"),
    ("the task folder as context",
     "{build: {context: '${CONTEXT_DIR}/..', dockerfile: environment/Dockerfile}}", "."),
    ("privileges", "{privileged: true}", None),
    ("a command that works", "{command: mysqld}", None),
    ("a mount", "{volumes: ['./data:/data']}", None),
    ("a health check of its own", "{healthcheck: {test: 'true'}}", None),
    ("a user", "{user: agent}", None),
    ("no network", "{network_mode: none}", None),
    ("a context outside", "{build: ../..}", None),
    ("no such Dockerfile", "{build: {context: ., dockerfile: Other}}", None),
]  # fmt: skip


@pytest.mark.parametrize(("service", "context"), [p[1:] for p in PLAIN], ids=[p[0] for p in PLAIN])
def test_one_service_that_asks_for_nothing_needs_no_compose(
    tmp_path: Path, service: str, context: str | None
) -> None:
    root = example(tmp_path, "users")
    (root / COMPOSE).write_text(f"services: {{main: {service}}}\n")
    environment = read_task(root).environment
    if context is None:
        assert environment.compose is not None
    else:
        assert environment.compose is None
        assert environment.context == os.path.normpath(root / context)
        assert environment.dockerfile == str(root / "environment" / "Dockerfile")


def test_a_plain_service_gives_what_it_says(tmp_path: Path) -> None:
    root = example(tmp_path, "users")
    with (root / "task.toml").open("a") as file:
        file.write('cpus = 4\nmemory_mb = 100\nenv = {A = "toml"}\n')
    (root / COMPOSE).write_text(
        "services: {main: {working_dir: /srv, environment: {A: file, B: '${WHO}'}, cpus: 2}}\n"
    )
    one = read_harbor(root, {"WHO": "me"})
    assert one.warnings == (f"{root / COMPOSE}: takes the variable WHO of this machine",)
    environment = one.task.environment
    assert (environment.workdir, environment.cpus, environment.memory_mb) == ("/srv", 2.0, 100)
    assert environment.env == {"A": "toml", "B": "me"}


def test_a_variable_of_this_machine_in_a_verifiers_compose_file_is_told_once(
    tmp_path: Path,
) -> None:
    root = example(tmp_path, "separate-verifier")
    (root / "tests" / "docker-compose.yaml").write_text(
        "services: {main: {environment: {B: '${WHO}'}}}\n"
    )
    one = read_harbor(root, {"WHO": "me"})
    assert one.task.verifier.environment is not None
    assert one.task.verifier.environment.env == {"B": "me"}
    told = f"{root / 'tests' / 'docker-compose.yaml'}: takes the variable WHO of this machine"
    assert one.warnings == (told,)


# --- build contexts -------------------------------------------------------------------------


def test_what_is_only_in_the_task_folder_makes_it_the_context(tmp_path: Path) -> None:
    root = example(tmp_path, "users")
    (root / "app").mkdir()
    (root / "app" / "main.py").write_text("1\n")
    with (root / "environment" / "Dockerfile").open("a") as file:
        file.write("COPY app/ /app/\nCOPY environment/Dockerfile /\n")
    one = read_harbor(root)
    assert one.task.environment.context == str(root)
    assert one.warnings == (
        f"{root}/environment/Dockerfile: COPY source 'app/' is not in {root}/environment; the "
        "build context is the task folder, which has it",
    )
    (root / "app" / "main.py").write_text("2\n")
    assert read_task(root).digest != one.task.digest


def test_a_compose_file_may_build_from_the_task_folder(tmp_path: Path) -> None:
    root = example(tmp_path, "compose-two")
    without_image(root)
    (root / "notes.md").write_text("1\n")
    (root / "environment" / "Dockerfile").write_text("FROM x\nCOPY made-by-a-script /x\n")
    (root / COMPOSE).write_text(
        "services: {main: {build: {context: '${CONTEXT_DIR}/..', "
        "dockerfile: environment/Dockerfile}}}\n"
    )
    one = read_harbor(root)
    assert one.task.environment.context == str(root)
    assert "COPY source 'made-by-a-script' is not in" in one.warnings[0]
    (root / "notes.md").write_text("2\n")
    assert read_task(root).digest != one.task.digest


@pytest.mark.parametrize("source", ["tests", "./tests/test.sh", "solution/", "."])
def test_tests_and_solutions_in_the_agents_image_are_a_leak(tmp_path: Path, source: str) -> None:
    root = example(tmp_path, "users")
    with (root / "environment" / "Dockerfile").open("a") as file:
        file.write(f"COPY environment/Dockerfile {source} /x/\n")
    assert any(f"leak: COPY brings {source!r}" in said for said in read_harbor(root).warnings)


def test_an_image_and_a_dockerfile_are_both_kept(tmp_path: Path) -> None:
    root = example(tmp_path, "users")
    with (root / "task.toml").open("a") as file:
        file.write('docker_image = "registry.example.org/gone:1"\n')
    environment = read_task(root).environment
    assert environment.image == "registry.example.org/gone:1"
    assert environment.dockerfile == str(root / "environment" / "Dockerfile")


# --- .harborignore --------------------------------------------------------------------------


def test_what_is_ignored_may_be_what_no_task_may_hold(tmp_path: Path) -> None:
    root = example(tmp_path, "users")
    (root / "tests" / ".venv").mkdir()
    (root / "tests" / ".venv" / "python").symlink_to("/usr/bin/python3")
    os.mkfifo(root / "tests" / ".venv" / "pipe")
    with pytest.raises(TaskError, match="special file|leaves the folder"):
        read_task(root)
    (root / "tests" / ".harborignore").write_text(".venv/\n")
    before = read_task(root).digest
    (root / "tests" / ".harborignore").write_text(".venv\n")
    assert read_task(root).digest != before


def test_a_script_that_is_ignored_grades_nothing(tmp_path: Path) -> None:
    root = example(tmp_path, "users")
    (root / "tests" / ".harborignore").write_text("*.sh\n")
    with pytest.raises(TaskError, match="harborignore keeps the script from the sandbox"):
        read_task(root)
    (root / "tests" / ".harborignore").write_bytes(b"\xff")
    with pytest.raises(TaskError, match="harborignore: expected UTF-8"):
        read_task(root)


def test_a_harborignore_that_does_not_count_is_told(tmp_path: Path) -> None:
    root = example(tmp_path, "users")
    (root / ".harborignore").write_text("*\n")
    assert "counts inside tests/ and solution/ only" in read_harbor(root).warnings[0]


# --- odd folders ----------------------------------------------------------------------------


def test_a_folder_whose_name_is_no_text_is_refused_in_readable_words(tmp_path: Path) -> None:
    name = os.fsdecode(os.fsencode(tmp_path) + b"/t\xff")
    shutil.copytree(EXAMPLES / "users", name)
    with pytest.raises(TaskError, match="expected a path in UTF-8") as refused:
        read_task(name)
    assert str(refused.value).isprintable()


def test_files_without_end_are_refused_before_they_are_read(tmp_path: Path) -> None:
    root = example(tmp_path, "users")
    with (root / "tests" / "huge").open("wb") as file:
        file.truncate(9 << 30)
    with pytest.raises(TaskError, match="at most 200000 files and 8 GiB in one task"):
        read_task(root)
