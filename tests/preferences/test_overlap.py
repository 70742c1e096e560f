"""Overlap with benchmarks: exact n-grams of words, out of tasks or of text files."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.errors import UsageError
from headrace.preferences.overlap import Overlap, benchmark_texts
from headrace.tasks.catalog import PACKS

WORDS = "one two three four five six seven eight nine ten eleven twelve thirteen"


def folder_of(path: Path, **texts: str) -> Path:
    path.mkdir(exist_ok=True)
    for name, text in texts.items():
        (path / name).write_text(text)
    return path


def test_thirteen_words_in_a_row_overlap_and_twelve_do_not(tmp_path: Path) -> None:
    known = Overlap([folder_of(tmp_path, a=f"before {WORDS} after")])
    assert known.share(f"x {WORDS} y") == 1 / 3
    assert known.share(WORDS) == 1.0
    assert known.share(WORDS.removesuffix(" thirteen") + " more") == 0.0
    assert known.share(WORDS.removesuffix(" thirteen")) == 0.0


def test_case_and_signs_between_words_do_not_matter(tmp_path: Path) -> None:
    known = Overlap([folder_of(tmp_path, a=WORDS)])
    assert known.share(f"({WORDS.upper().replace(' ', ', ')})!") == 1.0


def test_the_words_of_an_n_gram_are_data(tmp_path: Path) -> None:
    known = Overlap([folder_of(tmp_path, a="alpha beta gamma")], words=2)
    assert known.share("beta gamma delta") == 0.5
    assert len(known) == 2


@given(st.lists(st.sampled_from("abc"), max_size=12), st.lists(st.sampled_from("abc"), max_size=12))
def test_it_is_the_share_of_n_grams_that_are_there(
    tmp_path_factory: pytest.TempPathFactory, ours: list[str], theirs: list[str]
) -> None:
    folder = folder_of(tmp_path_factory.mktemp("b"), a=" ".join([*theirs, "c", "c"]))
    known = Overlap([folder], words=2)
    theirs = [*theirs, "c", "c"]
    there = {(a, b) for a, b in zip(theirs, theirs[1:], strict=False)}
    grams = list(zip(ours, ours[1:], strict=False))
    expected = sum(gram in there for gram in grams) / len(grams) if grams else 0.0
    assert known.share(" ".join(ours)) == expected


def test_of_a_folder_of_tasks_the_instructions_are_read() -> None:
    texts = list(benchmark_texts(PACKS / "first-steps"))
    folders = [p for p in (PACKS / "first-steps").iterdir() if p.is_dir()]
    assert len(texts) == len(folders)
    known = Overlap([PACKS / "first-steps"])
    instruction = next(PACKS.glob("first-steps/*/instruction.md")).read_text()
    assert known.share(instruction) == 1.0
    assert known.share(next(PACKS.glob("first-steps/*/tests/grading.py")).read_text()) == 0.0


def test_a_task_that_cannot_be_read_is_compared_by_its_files(tmp_path: Path) -> None:
    folder_of(tmp_path / "broken", **{"task.toml": "[", "instruction.md": WORDS})
    assert Overlap([tmp_path]).share(WORDS) == 1.0


def test_of_another_folder_every_text_below_it_is_read(tmp_path: Path) -> None:
    folder_of(tmp_path / "deep", **{"b.txt": WORDS})
    (tmp_path / "data.bin").write_bytes(b"\xff\xfe" + WORDS.encode())
    (tmp_path / "nul.bin").write_bytes(b"\0" + WORDS.encode())
    (tmp_path / "loop").symlink_to(tmp_path)
    (tmp_path / "nowhere").symlink_to(tmp_path / "gone")
    assert list(benchmark_texts(tmp_path)) == [WORDS]


@pytest.mark.parametrize("name", ["empty", "nowhere", "file"])
def test_a_folder_without_a_text_is_refused(tmp_path: Path, name: str) -> None:
    folder_of(tmp_path / "empty", short="too short")
    (tmp_path / "file").write_text(WORDS)
    with pytest.raises(UsageError, match="expected"):
        Overlap([tmp_path / name])
