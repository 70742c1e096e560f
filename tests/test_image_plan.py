"""Which images tasks need and what they share, decided without building anything."""

import subprocess
import sys
import tempfile
import time
from pathlib import Path

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headrace.sandbox.images import FindingKind, ImagePlan, plan_images
from headrace.tasks.catalog import load
from headrace.types import AgentRecipe, ComposeFile, EnvironmentRecipe, Task, VerifierRecipe

ROOT = Path(__file__).parents[1]
HEAD = "FROM debian:12\nENV A=1\nRUN one\nRUN two\n"


def recipe(folder: Path, dockerfile: str, files: dict[str, str] | None = None) -> EnvironmentRecipe:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "Dockerfile").write_text(dockerfile)
    for name, content in (files or {}).items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(content)
    return EnvironmentRecipe(dockerfile=str(folder / "Dockerfile"), context=str(folder))


def task(name: str, environment: EnvironmentRecipe, **changes: object) -> Task:
    made = Task(
        name=name,
        digest=name,
        path="/nowhere",
        format="harbor",
        instruction="",
        environment=environment,
        agent=AgentRecipe(),
        verifier=VerifierRecipe(),
    )
    return msgspec.structs.replace(made, **changes)


def plan_of(root: Path, *dockerfiles: str) -> ImagePlan:
    recipes = [recipe(root / str(i), text) for i, text in enumerate(dockerfiles)]
    return plan_images([task(str(i), made) for i, made in enumerate(recipes)])


def only_name(made: EnvironmentRecipe) -> str:
    (image,) = plan_images([task("t", made)]).images
    return image.name


# --- what is one image ---


def test_tasks_with_the_same_content_need_one_image(tmp_path: Path) -> None:
    plan = plan_of(tmp_path, HEAD, HEAD)
    (image,) = plan.images
    assert image.tasks == ("0", "1")
    assert (plan.layers_naive, plan.layers_distinct, plan.factor) == (6, 3, 2.0)
    assert (plan.file_layers_naive, plan.file_layers_distinct) == (4, 2)


def test_a_common_head_is_planned_once(tmp_path: Path) -> None:
    plan = plan_of(tmp_path, HEAD + "RUN a\n", HEAD + "RUN b\n", "FROM debian:12\nRUN c\n")
    assert (plan.layers_naive, plan.layers_distinct) == (9, 6)
    assert sorted(image.shared for image in plan.images) == [0, 3, 3]


def test_what_is_not_copied_does_not_count(tmp_path: Path) -> None:
    text = "FROM a\nCOPY data/ /app/\n"
    one = recipe(tmp_path / "one", text, {"data/x": "1", "task.yaml": "one"})
    two = recipe(tmp_path / "two", text, {"data/x": "1", "task.yaml": "two"})
    assert only_name(one) == only_name(two)


def test_a_changed_source_mode_or_instruction_is_another_image(tmp_path: Path) -> None:
    text = "FROM a\nCOPY data/ /app/\n"
    names = {only_name(recipe(tmp_path / "1", text, {"data/x": "1"}))}
    names.add(only_name(recipe(tmp_path / "2", text, {"data/x": "2"})))
    names.add(only_name(recipe(tmp_path / "3", text, {"data/y": "1"})))
    names.add(only_name(recipe(tmp_path / "4", text + "USER me\n", {"data/x": "1"})))
    names.add(only_name(recipe(tmp_path / "5", text.replace("FROM a", "FROM b"), {"data/x": "1"})))
    names.add(only_name(recipe(tmp_path / "6", "ARG A=2\n" + text, {"data/x": "1"})))
    runs = recipe(tmp_path / "7", text, {"data/x": "1"})
    (tmp_path / "7" / "data" / "x").chmod(0o755)
    names.add(only_name(runs))
    assert len(names) == 6  # an argument that nothing uses changes nothing


def test_an_argument_before_from_counts_where_it_is_used(tmp_path: Path) -> None:
    text = "ARG V={}\nFROM a\nARG V\nRUN echo $V\n"
    assert only_name(recipe(tmp_path / "1", text.format(1))) != only_name(
        recipe(tmp_path / "2", text.format(2))
    )


def test_what_a_stage_takes_from_another_counts(tmp_path: Path) -> None:
    text = "FROM a AS build\nRUN make {}\nFROM b\nCOPY --from=build /x /x\n"
    one, two = (recipe(tmp_path / name, text.format(name)) for name in ("one", "two"))
    assert only_name(one) != only_name(two)
    plan = plan_images([task("1", one), task("2", two)])
    assert (plan.layers_naive, plan.layers_distinct) == (4, 4)


def test_a_bound_context_counts_whole(tmp_path: Path) -> None:
    text = "FROM a\nRUN --mount=type=bind,target=/src make\n"
    one = recipe(tmp_path / "one", text, {"x": "1"})
    two = recipe(tmp_path / "two", text, {"x": "2"})
    assert only_name(one) != only_name(two)


def test_the_image_of_a_verifier_is_planned_too(tmp_path: Path) -> None:
    own = recipe(tmp_path / "tests", HEAD + "COPY test.sh /tests/\n", {"test.sh": "true"})
    made = task(
        "t", recipe(tmp_path / "environment", HEAD), verifier=VerifierRecipe(environment=own)
    )
    plan = plan_images([made])
    assert [image.tasks for image in plan.images] == [("t",), ("t",)]
    assert (plan.layers_naive, plan.layers_distinct) == (7, 4)


def test_ready_images_and_compose_files_are_not_built(tmp_path: Path) -> None:
    compose = ComposeFile(path=str(tmp_path / "docker-compose.yaml"), context=str(tmp_path))
    plan = plan_images(
        [
            task("ready", EnvironmentRecipe(image="debian:12")),
            task("several", EnvironmentRecipe(compose=compose)),
        ]
    )
    assert [(image.name, image.built) for image in plan.images] == [("debian:12", False)]
    assert (plan.layers_naive, plan.factor) == (0, 1.0)


# --- what cannot be built ---


@pytest.mark.parametrize(
    ("text", "kind", "said"),
    [
        ("FROM a\nCOPY gone /x\n", FindingKind.COPY_SOURCE_MISSING, "line 2: expected gone"),
        ("FROM a\nENV D=gone\nADD $D/*.c /x/\n", FindingKind.COPY_SOURCE_MISSING, "gone/*.c"),
        ('FROM a\nCOPY ["gone", "/x"]\n', FindingKind.COPY_SOURCE_MISSING, "expected gone"),
        ("RUN true\n", FindingKind.UNREADABLE, "FROM was expected first"),
        ("", FindingKind.UNREADABLE, "a FROM instruction was expected"),
        ("\0\1 no\n", FindingKind.UNREADABLE, "line 1: an instruction was expected"),
        ("FROM a b c d\n", FindingKind.UNREADABLE, "one image was expected"),
    ],
)
def test_what_cannot_be_built_is_found_before_and_costs_its_task_alone(
    tmp_path: Path, text: str, kind: FindingKind, said: str
) -> None:
    plan = plan_of(tmp_path, text, HEAD)
    (found,) = plan.findings.pop("0")
    assert found.kind is kind
    assert said in found.message
    assert "1" not in plan.findings
    assert plan.layers_naive == 3


def test_sources_that_are_elsewhere_are_not_looked_for(tmp_path: Path) -> None:
    text = "FROM a AS b\nFROM b\nCOPY --from=b x y\nADD https://e.org/f /f\nCOPY <<F /g\nx\nF\n"
    assert plan_of(tmp_path, text).findings == {}


def test_neither_an_image_nor_a_dockerfile_is_a_finding(tmp_path: Path) -> None:
    gone = EnvironmentRecipe(dockerfile=str(tmp_path / "Dockerfile"))
    plan = plan_images([task("nothing", EnvironmentRecipe()), task("gone", gone)])
    kinds = {name: found[0].kind for name, found in plan.findings.items()}
    assert kinds == {"nothing": FindingKind.NOTHING_NAMED, "gone": FindingKind.UNREADABLE}


# --- any set of Dockerfiles ---

lines = st.sampled_from(["RUN a", "RUN b", "ENV A=1", "COPY f /f", "WORKDIR /x", "USER me"])
sets = st.lists(st.lists(lines, max_size=6), min_size=1, max_size=8)


@settings(max_examples=60, deadline=None)
@given(sets)
def test_for_any_dockerfiles_layers_are_shared_as_far_as_they_begin_alike(
    files: list[list[str]],
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        made = [
            recipe(Path(folder) / str(i), "\n".join(["FROM a", *own, ""]), {"f": "same"})
            for i, own in enumerate(files)
        ]
        plan = plan_images([task(str(i), one) for i, one in enumerate(made)])
    prefixes = {tuple(own[: n + 1]) for own in files for n in range(len(own))}
    assert plan.layers_distinct == len(prefixes) <= plan.layers_naive
    assert len(plan.images) == len({tuple(own) for own in files})
    assert sorted(name for image in plan.images for name in image.tasks) == sorted(
        str(i) for i in range(len(files))
    )


@settings(max_examples=60, deadline=None)
@given(sets)
def test_for_any_dockerfiles_those_that_begin_alike_are_built_one_after_the_other(
    files: list[list[str]],
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        made = [
            recipe(Path(folder) / str(i), "\n".join(["FROM a", *own, ""]), {"f": "same"})
            for i, own in enumerate(files)
        ]
        plan = plan_images([task(str(i), one) for i, one in enumerate(made)])
    for key in plan.layers:
        at = [i for i, image in enumerate(plan.images) if key in image.layers]
        assert at == list(range(at[0], at[-1] + 1))
    seen: set[str] = set()
    for layer in plan.layers.values():
        assert layer.parent in seen or layer.parent not in plan.layers
        seen.add(layer.key)


# --- a large set ---


def test_602_folders_are_planned_within_a_second_and_share_most_layers(tmp_path: Path) -> None:
    folder = tmp_path / "tasks"
    program = [sys.executable, "-m", "bench.task_folders", str(folder)]
    subprocess.run(program, cwd=ROOT, check=True, capture_output=True, timeout=60)
    tasks = load(str(folder)).tasks
    begun = time.process_time()
    plan = plan_images(tasks)
    assert time.process_time() - begun < 1.0
    assert plan.tasks >= 599  # the reader leaves out three that copy what is not there
    assert plan.factor >= 5.0
    assert plan.file_layers_naive / plan.file_layers_distinct >= 4.0
