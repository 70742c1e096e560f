"""Catalogues: which folders are tasks, which of them are meant, and what is said of the others."""

import importlib.util
import time
import unicodedata
from pathlib import Path
from types import ModuleType

import pytest

from headrace.errors import TaskError
from headrace.tasks import catalog
from headrace.tasks.catalog import read_any

ROOT = Path(__file__).resolve().parent.parent


def make(root: Path, name: str = "org/hello") -> Path:
    """A small Harbor task."""
    (root / "tests").mkdir(parents=True)
    (root / "task.toml").write_text(f'[task]\nname = "{name}"\n[environment]\ndocker_image = "x"\n')
    (root / "instruction.md").write_text("Write hello.\n")
    (root / "tests" / "test.sh").write_text("#!/bin/sh\n")
    return root


def several(root: Path, *names: str) -> Path:
    for name in names:
        make(root / name, f"org/{name}")
    return root


def test_a_broken_folder_stops_none_of_the_others(tmp_path: Path) -> None:
    root = several(tmp_path, "b", "a", "broken")
    (root / "broken" / "task.toml").write_text("=")
    (root / "notes").mkdir()
    (root / ".cache").mkdir()
    found = catalog.load(str(root))
    assert [task.name for task in found.tasks] == ["org/a", "org/b"]
    assert [Path(p.path).name for p in found.problems] == ["broken"]
    assert "broken TOML" in found.problems[0].message
    assert (found.skipped, found.notes) == (1, ())


def test_one_task_folder_is_a_catalogue_of_one(tmp_path: Path) -> None:
    assert [t.name for t in catalog.load(str(make(tmp_path / "t"))).tasks] == ["org/hello"]


@pytest.mark.parametrize(
    ("include", "exclude", "limit", "names"),
    [
        ((), (), None, ["a1", "a2", "b1"]),
        (("a*",), (), None, ["a1", "a2"]),
        (("org/a*",), ("*2",), None, ["a1"]),
        ((), ("a?",), None, ["b1"]),
        ((), (), 2, ["a1", "a2"]),
    ],
)
def test_filters_take_names_with_or_without_organisation(
    tmp_path: Path,
    include: tuple[str, ...],
    exclude: tuple[str, ...],
    limit: int | None,
    names: list[str],
) -> None:
    found = catalog.load(str(several(tmp_path, "b1", "a2", "a1")), include, exclude, limit)
    assert [task.name.removeprefix("org/") for task in found.tasks] == names


COMPOSED, TAKEN_APART = (unicodedata.normalize(form, "café") for form in ("NFC", "NFD"))


@pytest.mark.parametrize(
    ("pattern", "names"),
    [
        ("Build", ["Build"]),
        ("build", ["build"]),
        ("[bB]uild", ["Build", "build"]),
        (COMPOSED, [COMPOSED]),
        (TAKEN_APART, [TAKEN_APART]),
        ("caf?", [TAKEN_APART, COMPOSED]),
        ("a[1]", ["a[1]"]),
        ("folder-of-a1", ["a1"]),
    ],
)
def test_names_that_differ_in_case_or_form_stay_addressable(
    tmp_path: Path, pattern: str, names: list[str]
) -> None:
    for number, name in enumerate(("Build", "build", COMPOSED, TAKEN_APART, "a[1]")):
        make(tmp_path / f"t{number}", f"org/{name}")
    make(tmp_path / "folder-of-a1", "org/a1")
    found = catalog.load(str(tmp_path), include=(pattern,))
    assert [task.name.removeprefix("org/") for task in found.tasks] == names


def test_a_pattern_that_matches_nothing_is_refused(tmp_path: Path) -> None:
    with pytest.raises(TaskError, match="matches none of 1 tasks; did you mean 'hello'"):
        catalog.load(str(several(tmp_path, "hello")), include=("helo",))


def test_the_second_of_two_tasks_of_one_name_is_a_problem(tmp_path: Path) -> None:
    make(tmp_path / "a")
    make(tmp_path / "b")
    found = catalog.load(str(tmp_path))
    assert [task.path for task in found.tasks] == [str(tmp_path / "a")]
    assert [problem.path for problem in found.problems] == [str(tmp_path / "b")]
    assert f"{tmp_path / 'a'} is called 'org/hello' too" in found.problems[0].message


# --- sources --------------------------------------------------------------------------------


def test_a_source_that_is_nothing_lists_the_packs() -> None:
    with pytest.raises(TaskError, match=r"bundled pack \(first-steps\), found nothing$"):
        catalog.load("no-such-pack")


@pytest.mark.parametrize(
    "name", ["terminal-bench@2.0", "terminal-bench-core==0.1.1", "org/set@head"]
)
def test_the_name_of_a_dataset_is_told_to_be_cloned(name: str) -> None:
    with pytest.raises(TaskError, match="none is downloaded: clone its repository and give"):
        catalog.load(name)


@pytest.mark.parametrize("name", ["a\0b", "x" * 5000, "a\nb"])
def test_a_source_that_can_be_no_path_is_refused_in_one_line(name: str) -> None:
    with pytest.raises(TaskError) as refused:
        catalog.load(name)
    assert "\n" not in str(refused.value)


def test_tasks_one_folder_deeper_are_taken_with_a_note(tmp_path: Path) -> None:
    several(tmp_path / "tasks", "a", "b")
    (tmp_path / "docs").mkdir()
    found = catalog.load(str(tmp_path))
    assert [task.name for task in found.tasks] == ["org/a", "org/b"]
    assert found.notes == (
        f"{tmp_path} holds no tasks itself; those of its folder tasks/ are taken",
    )


def test_tasks_in_several_folders_deeper_are_left_to_choose(tmp_path: Path) -> None:
    several(tmp_path / "tasks", "a")
    several(tmp_path / "more", "b")
    with pytest.raises(TaskError, match=r"in more/, tasks/: give the path of one"):
        catalog.load(str(tmp_path))


def test_a_folder_without_tasks_says_what_was_expected(tmp_path: Path) -> None:
    (tmp_path / "x").mkdir()
    with pytest.raises(TaskError, match=r"expected task\.toml or task\.yaml here or in its"):
        catalog.load(str(tmp_path))
    with pytest.raises(TaskError, match=r"expected one of task\.toml or task\.yaml, found none"):
        read_any(tmp_path / "x")


def test_the_file_says_the_format(tmp_path: Path) -> None:
    make(tmp_path / "harbor")
    old = tmp_path / "old"
    (old / "tests").mkdir(parents=True)
    (old / "task.yaml").write_text("instruction: Write hello.\ndifficulty: easy\n")
    (old / "Dockerfile").write_text("FROM x\n")
    (old / "run-tests.sh").write_text("#!/bin/bash\n")
    (old / "tests" / "test_outputs.py").write_text("def test_it(): pass\n")
    found = catalog.load(str(tmp_path))
    assert found.problems == ()
    assert [(t.name, t.format) for t in found.tasks] == [
        ("old", "terminal-bench-1"),
        ("org/hello", "harbor"),
    ]


def test_the_bundled_pack_is_found_by_name_and_read_without_a_word() -> None:
    found = catalog.load("first-steps")
    assert found.tasks
    assert (found.problems, found.warnings, found.skipped) == ((), {}, 0)


# --- numbers --------------------------------------------------------------------------------


def task_folders() -> ModuleType:
    """The generator of the benchmarks; `bench` is no package that tests can import."""
    spec = importlib.util.spec_from_file_location(
        "task_folders", ROOT / "bench" / "task_folders.py"
    )
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_six_hundred_folders_are_read_in_two_seconds(tmp_path: Path) -> None:
    task_folders().write_folders(tmp_path)
    begun = time.process_time()
    found = catalog.load(str(tmp_path))
    assert time.process_time() - begun < 2.0
    assert (len(found.tasks), len(found.problems)) == (599, 3)
    assert all("COPY source 'not-shipped/'" in problem.message for problem in found.problems)
