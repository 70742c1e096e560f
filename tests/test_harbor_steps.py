"""Tasks of several steps, and verifiers of their own: who inherits what, and from where."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from headrace.errors import TaskError
from headrace.tasks.harbor import read_harbor, read_task
from headrace.types import Artifact, CollectHook, HealthCheck, NetworkPolicy, Task

EXAMPLES = Path(__file__).resolve().parent / "data" / "harbor"


def example(tmp_path: Path, name: str) -> Path:
    """A copy of an example that a test may change."""
    return Path(shutil.copytree(EXAMPLES / name, tmp_path / name))


def add(root: Path, toml: str) -> Path:
    """`toml` behind what the task.toml says."""
    with (root / "task.toml").open("a") as file:
        file.write(f"\n{toml}\n")
    return root


@pytest.mark.parametrize("name", sorted(path.name for path in EXAMPLES.iterdir() if path.is_dir()))
def test_every_example_is_read_without_a_word(name: str) -> None:
    one = read_harbor(EXAMPLES / name, {})
    assert (one.task.name, one.warnings, one.task.inert) == (f"examples/{name}", (), ())


# --- steps ----------------------------------------------------------------------------------


def test_steps_have_their_own_and_inherit_the_rest() -> None:
    root = EXAMPLES / "steps-two"
    task = read_task(root)
    collect, count = task.steps
    assert (task.instruction, task.reward_strategy) == ("", "mean")
    assert (collect.name, count.name) == ("collect", "count")
    assert collect.instruction.startswith("Write the words")
    assert (collect.agent.timeout_s, count.agent.timeout_s) == (120.0, 60.0)
    assert (collect.min_reward, count.min_reward) == ({"reward": 1.0}, {})
    assert (collect.verifier.env, count.verifier.env) == ({"WANTED": "words"}, {"WANTED": "total"})
    assert (collect.verifier.timeout_s, count.verifier.timeout_s) == (60.0, 60.0)
    assert collect.healthcheck is None
    assert count.healthcheck == HealthCheck(
        command="test -e /app/more.txt", interval_s=1.0, retries=2
    )
    assert (collect.files, count.files) == (None, str(root / "steps" / "count" / "workdir"))
    assert task.artifacts == (Artifact(source="/app/words.txt"),)
    assert count.artifacts == (Artifact(source="/app/total.txt"),)


def test_a_steps_tests_lie_over_the_shared_ones() -> None:
    root = EXAMPLES / "steps-two"
    for step in read_task(root).steps:
        assert step.verifier.tests == (
            str(root / "tests"),
            str(root / "steps" / step.name / "tests"),
        )
        assert step.solution is not None
        assert step.solution.path == str(root / "steps" / step.name / "solution")


def test_a_step_without_a_solution_folder_has_the_tasks(tmp_path: Path) -> None:
    root = example(tmp_path, "steps-two")
    shutil.move(root / "steps" / "count" / "solution", root / "solution")
    solution = read_task(root).steps[1].solution
    assert solution is not None and solution.path == str(root / "solution")


def test_a_step_without_a_script_has_the_shared_one(tmp_path: Path) -> None:
    root = example(tmp_path, "steps-two")
    shutil.move(root / "steps" / "count" / "tests" / "test.sh", root / "tests" / "test.sh")
    assert read_task(root).steps[1].verifier.script == "test.sh"


def test_what_a_step_says_of_its_agent_and_verifier_counts(tmp_path: Path) -> None:
    root = example(tmp_path, "steps-two")
    text = (root / "task.toml").read_text()
    text = text.replace("[agent]\n", '[agent]\nuser = "one"\nnetwork_mode = "public"\n')
    text = text.replace(
        "[verifier]\n", '[verifier]\nuser = "one"\ncollect = [{ command = "a" }]\n', 1
    )
    text = text.replace(
        "[steps.verifier]\n",
        '[steps.verifier]\nuser = 7\ntimeout_sec = 9\nnetwork_mode = "no-network"\n'
        'collect = [{ command = "b", service = "main", timeout_sec = 3, user = "root" }]\n',
    )
    (root / "task.toml").write_text(text)
    collect, count = read_task(root).steps
    assert (collect.agent.user, count.agent.network) == ("one", NetworkPolicy(mode="public"))
    assert (collect.verifier.user, count.verifier.user) == ("one", "7")
    assert (collect.verifier.network, count.verifier.network) == (None, NetworkPolicy(mode="none"))
    assert count.verifier.timeout_s == 9.0
    first = CollectHook(command="a")
    second = CollectHook(command="b", timeout_s=3.0, user="root")
    assert (collect.verifier.collect, count.verifier.collect) == ((first,), (first, second))


def _renamed(name: str) -> Callable[[str], str]:
    return lambda text: text.replace('name = "count"', f"name = {name}")


STEPS: list[tuple[str, Callable[[str], str], str]] = [
    ("no name", lambda t: t.replace('name = "count"\n', ""), r"steps\[1\].name: expected the name"),
    ("a name that climbs", _renamed('"../x"'), r"steps\[1\].name: expected the name of a folder"),
    ("two dots", _renamed('".."'), "the name of a folder"),
    ("a device", _renamed('"aux.txt"'), "the name of a folder"),
    ("a trailing dot", _renamed('"count."'), "the name of a folder"),
    ("a separator", _renamed('"a/b"'), "the name of a folder"),
    ("a very long name", _renamed(f'"{"x" * 256}"'), "the name of a folder"),
    ("a name twice", _renamed('"collect"'), "'collect' is the name of another step"),
    ("a name twice but for case", _renamed('"Collect"'), "'Collect' is the name of another step"),
    ("no folder", _renamed('"other"'), "no folder steps/other/"),
    ("a number as name", _renamed("3"), "the name of a folder .*, found 3"),
    ("a gate of text", lambda t: t.replace("min_reward = 1.0", 'min_reward = "high"'),
     r"steps\[0\].min_reward: expected a finite number, found 'high'"),
    ("a gate of keys that are text", lambda t: t.replace("= 1.0", '= { a = "x" }'),
     r"steps\[0\].min_reward.a: expected a finite number"),
    ("a strategy", lambda t: t.replace('"mean"', '"best"'), '"mean" or "final", found \'best\''),
    ("steps that are no tables", lambda t: t.split("[[steps]]")[0] + "steps = [1]\n",
     "unknown|a list of tables"),
]  # fmt: skip


@pytest.mark.parametrize(("change", "message"), [s[1:] for s in STEPS], ids=[s[0] for s in STEPS])
def test_a_bad_step_is_refused_by_name(
    tmp_path: Path, change: Callable[[str], str], message: str
) -> None:
    root = example(tmp_path, "steps-two")
    text = change((root / "task.toml").read_text())
    if text.endswith("steps = [1]\n"):
        text = "steps = [1]\n"
    (root / "task.toml").write_text(text)
    with pytest.raises(TaskError, match=message) as refused:
        read_task(root)
    assert str(root) in str(refused.value)


def test_steps_of_a_key_are_gated_by_that_key(tmp_path: Path) -> None:
    root = example(tmp_path, "steps-two")
    text = (root / "task.toml").read_text().replace("= 1.0", "= { style = 0.5, reward = 1 }")
    (root / "task.toml").write_text(text)
    assert read_task(root).steps[0].min_reward == {"style": 0.5, "reward": 1.0}


def test_what_a_task_of_steps_does_not_use_is_told(tmp_path: Path) -> None:
    root = example(tmp_path, "steps-two")
    (root / "instruction.md").write_text("Nobody reads this.\n")
    (root / "steps" / "later").mkdir()
    (root / "steps" / "count" / "trajectory.json").write_text("{}")
    one = read_harbor(root)
    assert one.warnings == (
        "instruction.md is not used: each step has its own",
        "steps/later is not used: no [[steps]] of task.toml has this name",
    )
    assert one.task.inert == ("steps/count/trajectory.json",)


def test_the_digest_follows_the_files_of_the_steps(tmp_path: Path) -> None:
    root = example(tmp_path, "steps-two")
    before = read_task(root).digest
    (root / "steps" / "count" / "workdir" / "more.txt").write_text("six\n")
    assert read_task(root).digest != before


def test_a_link_between_steps_is_refused(tmp_path: Path) -> None:
    root = example(tmp_path, "steps-two")
    (root / "steps" / "count" / "tests" / "x").symlink_to("../../collect/tests/test.sh")
    with pytest.raises(TaskError, match="leaves the folder steps/count/tests/ of the task"):
        read_task(root)


# --- separate verifiers ---------------------------------------------------------------------


def test_a_tests_folder_with_a_dockerfile_is_the_verifiers_image() -> None:
    root = EXAMPLES / "separate-verifier"
    verifier = read_task(root).verifier
    assert verifier.environment is not None
    assert verifier.environment.dockerfile == str(root / "tests" / "Dockerfile")
    assert verifier.environment.context == str(root / "tests")
    assert (verifier.environment.image, verifier.environment.upload_context) == (None, False)
    assert (verifier.environment.cpus, verifier.environment.memory_mb) == (1.0, 512)
    assert verifier.environment.network == NetworkPolicy(mode="none")
    assert verifier.tests == ()


def test_a_verifier_in_a_copy_of_the_agents_environment_is_brought_its_tests(
    tmp_path: Path,
) -> None:
    root = example(tmp_path, "separate-verifier")
    (root / "tests" / "Dockerfile").unlink()
    task = read_task(root)
    assert task.verifier.environment is not None
    assert task.verifier.environment.image == task.environment.image
    assert task.verifier.tests == (str(root / "tests"),)
    # the settings are those of [verifier.environment], which names no workdir
    assert (task.verifier.environment.workdir, task.verifier.environment.cpus) == (None, 1.0)


def test_a_separate_verifier_without_settings_has_the_agents(tmp_path: Path) -> None:
    root = example(tmp_path, "separate-verifier")
    text = (root / "task.toml").read_text().split("[verifier.environment]")[0]
    (root / "task.toml").write_text(text)
    environment = read_task(root).verifier.environment
    assert environment is not None
    assert (environment.workdir, environment.image) == ("/app", None)
    assert environment.dockerfile == str(root / "tests" / "Dockerfile")


def test_a_shared_verifier_does_not_use_its_dockerfile_and_says_so(tmp_path: Path) -> None:
    root = example(tmp_path, "separate-verifier")
    text = (root / "task.toml").read_text().split("[verifier.environment]")[0]
    (root / "task.toml").write_text(text.replace('"separate"', '"shared"'))
    one = read_harbor(root)
    assert one.task.verifier.environment is None
    assert one.task.verifier.tests == (str(root / "tests"),)
    assert "tests describes an image, which is not used" in one.warnings[0]


def _image_of(task: Task) -> str:
    """Where the last verifier gets its image: the ready image, or the Dockerfile's folder."""
    environment = task.steps[1].verifier.environment
    assert environment is not None
    if environment.image is not None:
        return environment.image
    assert environment.dockerfile is not None
    return str(Path(environment.dockerfile).parent.relative_to(task.path))


def test_the_first_image_in_the_order_of_the_format_counts(tmp_path: Path) -> None:
    root = example(tmp_path, "steps-two")
    text = (root / "task.toml").read_text()
    of_task = '[verifier.environment]\ndocker_image = "task:1"\n'
    of_step = '[steps.verifier.environment]\ndocker_image = "step:1"\n'
    (root / "task.toml").write_text(text.replace("[environment]", f"{of_task}\n[environment]", 1))
    add(root, of_step)
    for folder in ("tests", "steps/count/tests"):
        (root / folder / "Dockerfile").write_text("FROM headrace/base:bookworm\n")
    seen = [_image_of(read_task(root))]
    (root / "task.toml").write_text((root / "task.toml").read_text().replace(of_step, ""))
    seen.append(_image_of(read_task(root)))
    (root / "steps/count/tests/Dockerfile").unlink()
    seen.append(_image_of(read_task(root)))
    emptied = (root / "task.toml").read_text().replace('docker_image = "task:1"\n', "")
    (root / "task.toml").write_text(emptied)
    seen.append(_image_of(read_task(root)))
    assert read_task(root).steps[1].verifier.tests == ()
    (root / "tests/Dockerfile").unlink()
    task = read_task(root)
    seen.append(_image_of(task))
    assert seen == ["step:1", "steps/count/tests", "task:1", "tests", "headrace/base:bookworm"]
    assert len(task.steps[1].verifier.tests) == 2


def test_an_image_with_the_tests_needs_no_script_here(tmp_path: Path) -> None:
    root = example(tmp_path, "separate-verifier")
    (root / "tests" / "test.sh").unlink()
    (root / "tests" / "Dockerfile").write_text("FROM graders/of-this:1\n")
    assert read_task(root).verifier.tests == ()
    shutil.rmtree(root / "tests")
    with pytest.raises(TaskError, match=r"no tests/test\.sh, the script that grades the task"):
        read_task(root)


def test_a_step_may_share_where_the_task_separates(tmp_path: Path) -> None:
    root = example(tmp_path, "steps-two")
    text = (root / "task.toml").read_text()
    text = text.replace("[verifier]\n", '[verifier]\nenvironment_mode = "separate"\n', 1)
    text = text.replace("[steps.verifier]\n", '[steps.verifier]\nenvironment_mode = "shared"\n')
    (root / "task.toml").write_text(text)
    collect, count = read_task(root).steps
    assert collect.verifier.environment is not None
    assert count.verifier.environment is None
