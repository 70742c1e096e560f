"""A selection from run folder to files: who is in which split, who is left out, what is told."""

import asyncio
import hashlib
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.preferences.runs import Act, episode, make_run, said, spoil, store

from headrace.errors import RunFolderError, UsageError
from headrace.preferences.filters import EVERYTHING, SFT, Selection
from headrace.preferences.formats.registry import TRAJECTORIES, trajectory_format
from headrace.preferences.made import Made
from headrace.preferences.selection import Selecting, SelectionTally, select
from headrace.types import Episode, StopReason, VerdictFault

WORDS = "one two three four five six seven eight nine ten eleven twelve thirteen"


def chosen(
    run: Path | Sequence[Path], out: Path, selection: Selection = SFT, format: str = "trl",
    **options: Any,
) -> Selecting:  # fmt: skip
    runs = [run] if isinstance(run, Path) else run
    return select(runs, out, selection=selection, format=trajectory_format(format), **options)


def rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def own(task: str, sample: int = 0, reward: float | None = 1.0, **fields: Any) -> Episode:
    """An attempt whose commands are of this attempt alone."""
    turns = said(*(f"{word} {task}-{sample}-{n}" for n, word in enumerate(("ls", "vi", "make"))))
    return episode(task, sample, reward, **({"turns": turns} | fields))


def mixed() -> list[Episode]:
    """One attempt for each thing that can be wrong, and two that are right."""
    done = [*said("ls the", "make it"), Act("I am done", None, (), done=True)]
    bad = Act("?", None, (), problems=("no JSON object found",))
    return [
        own("org/a"),
        own("org/b"),
        own("org/c", fault=VerdictFault.INFRASTRUCTURE),
        own("org/d", reward=0.0),
        own("org/e", turns=()),
        own("org/f", turns=[*said("x 1", "y 2"), bad]),
        own("org/g", stop=StopReason.CONTEXT_FULL),
        own("org/h", turns=said(*["make all"] * 4)),
        own("org/i", turns=[*said("who"), Act("I cannot help with that", None, ())]),
        own("org/j", turns=said("cat /tests/x", "id")),
        own("org/k", reward=0.0, tests={"a": True, "b": False}, turns=done),
        own("org/l", reward=0.0, tests={"a": True, "b": False}),
        own("org/m", sample=0),
        own("org/m", sample=1, turns=said("ls org/m-0-0", "vi org/m-0-1", "make org/m-0-2")),
    ]  # fmt: skip


# --- who is selected ------------------------------------------------------------------------


def test_each_attempt_is_left_out_by_the_first_filter_and_the_others_are_told(
    tmp_path: Path,
) -> None:
    found = chosen(make_run(tmp_path / "run", mixed()), tmp_path / "out")
    assert found.tally.left_out == {
        "infrastructure": 1, "not_solved": 2, "empty": 1, "malformed": 1, "truncated": 1,
        "looping": 1, "refusal": 1, "test_access": 1, "duplicate": 1,
    }  # fmt: skip
    assert found.tally.failed["not_solved"] == 4  # the one without a verdict, and the failure
    assert found.tally.failed["false_success"] == 1
    assert {row["task"] for row in rows(tmp_path / "out" / "train.jsonl")} == {
        "org/a", "org/b", "org/m"
    }  # fmt: skip
    assert [row["task"] for row in rows(tmp_path / "out" / "failures.jsonl")] == ["org/l"]
    assert found.tally.rows == {"train": 3, "failures": 1}
    assert found.written == 4


def test_left_out_and_selected_together_are_the_attempts(tmp_path: Path) -> None:
    tally = chosen(make_run(tmp_path / "run", mixed()), tmp_path / "out").tally
    selected = sum(split.trajectories for split in tally.splits.values())
    assert tally.attempts == len(mixed()) == selected + sum(tally.left_out.values())


def test_failures_are_no_training_data_and_are_written_only_when_wanted(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", mixed())
    found = chosen(run, tmp_path / "out", Selection(failures=False))
    assert list(found.tally.splits) == ["train"]
    assert found.tally.left_out["not_solved"] == 3
    assert not (tmp_path / "out" / "failures.jsonl").exists()


def test_everything_is_every_attempt_the_format_can_hold(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", mixed())
    found = chosen(run, tmp_path / "out", EVERYTHING, "jsonl")
    assert (found.written, found.tally.left_out, found.tally.failed) == (len(mixed()), {}, {})
    found = chosen(run, tmp_path / "rows", EVERYTHING, "trl")
    assert (found.written, found.tally.left_out) == (len(mixed()) - 1, {"not_held": 1})


def test_rows_for_kto_are_successes_and_failures_with_their_label(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", mixed())
    found = chosen(run, tmp_path / "out", Selection(outcomes="all"), "kto")
    labels = {row["task"]: row["label"] for row in rows(tmp_path / "out" / "train.jsonl")}
    assert labels == {
        "org/a": True, "org/b": True, "org/m": True,
        "org/d": False, "org/k": False, "org/l": False,
    }  # fmt: skip
    assert "failures" not in found.tally.splits


def test_a_success_and_a_failure_alike_are_no_duplicates(tmp_path: Path) -> None:
    turns = said("ls -la", "make all", "make check")
    alike = [own("org/a", turns=turns), own("org/a", 1, 0.0, turns=turns)]
    found = chosen(make_run(tmp_path / "run", alike), tmp_path / "out", Selection(outcomes="all"))
    assert (found.written, found.tally.left_out) == (2, {})


def test_the_first_of_two_duplicates_stays_over_all_runs(tmp_path: Path) -> None:
    turns = said("ls -la", "make all", "make check")
    first = make_run(tmp_path / "first", [own("org/a", 3, turns=turns)])
    second = make_run(tmp_path / "second", [own("org/a", 0, turns=turns), own("org/b")])
    found = chosen([first, second], tmp_path / "out")
    assert found.tally.left_out == {"duplicate": 1}
    kept = {row["id"] for row in rows(tmp_path / "out" / "train.jsonl")}
    assert kept == {own("org/a", 3).id, own("org/b").id}


def test_of_an_attempt_that_was_tried_again_the_newest_record_counts(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", [own("org/a", fault=VerdictFault.INFRASTRUCTURE)])
    asyncio.run(store(run, [own("org/a")]))
    found = chosen(run, tmp_path / "out")
    assert (found.tally.attempts, found.written) == (1, 1)


def test_an_answer_as_long_as_a_call_may_be_is_truncated(tmp_path: Path) -> None:
    long = own("org/a", turns=said("word " * 40, "id"))
    run = make_run(
        tmp_path / "run", [long, own("org/b")], settings=["policy.sampling.max_tokens=30"]
    )
    assert chosen(run, tmp_path / "out").tally.left_out == {"truncated": 1}


# --- overlap and hints ----------------------------------------------------------------------


def test_words_of_a_benchmark_in_instruction_or_answers_are_overlap(tmp_path: Path) -> None:
    asked = own("org/a", instruction=f"Please do {WORDS}.")
    said_it = own("org/b", turns=[Act(f"As I know: {WORDS}", "ok", ("ls",)), ("id", None)])
    shown = own("org/c", turns=[Act("I look", WORDS, ("ls",)), ("who", None)])
    run = make_run(tmp_path / "run", [asked, said_it, shown])
    folder = tmp_path / "bench"
    folder.mkdir()
    (folder / "task.txt").write_text(f"Solve: {WORDS}")
    found = chosen(run, tmp_path / "out", benchmarks=[folder])
    assert found.tally.left_out == {"overlap": 2}
    assert [row["task"] for row in rows(tmp_path / "out" / "train.jsonl")] == ["org/c"]
    without = Selection(filters=("duplicate",))
    assert chosen(run, tmp_path / "all", without, benchmarks=[folder]).written == 3
    with pytest.raises(UsageError, match="nowhere: expected a folder of tasks or texts"):
        chosen(run, tmp_path / "none", benchmarks=[tmp_path / "nowhere"])


def hinted() -> Episode:
    hint = "<headrace-hint>the port is 81</headrace-hint>"
    return own("org/a", instruction=f"Fix it.{hint}", opening=f"Task: Fix it.{hint}")


@pytest.mark.parametrize("format", ["trl", "ms-swift", "llama-factory", "axolotl", "litecoder"])
def test_a_marked_hint_is_in_no_text(tmp_path: Path, format: str) -> None:
    run = make_run(tmp_path / "run", [hinted()])
    assert chosen(run, tmp_path / "out", format=format).written == 1
    written = b"".join(p.read_bytes() for p in (tmp_path / "out").glob("train*"))
    assert b"Fix it." in written
    assert b"port" not in written
    kept = Selection(keep_hints=True)
    chosen(run, tmp_path / "kept", kept, format)
    assert b"port" in b"".join(p.read_bytes() for p in (tmp_path / "kept").glob("train*"))


@pytest.mark.parametrize("format", ["exact", "datasets", "parquet", "atif", "jsonl"])
def test_tokens_with_a_hint_are_left_out_unless_it_is_kept(tmp_path: Path, format: str) -> None:
    run = make_run(tmp_path / "run", [hinted(), own("org/b")])
    found = chosen(run, tmp_path / "out", format=format)
    assert (found.written, found.tally.left_out) == (1, {"hinted": 1})
    assert chosen(run, tmp_path / "kept", Selection(keep_hints=True), format).written == 2


def test_a_hinted_record_without_tokens_is_stripped(tmp_path: Path) -> None:
    one = msgspec.structs.replace(hinted(), segments=())
    run = make_run(tmp_path / "run", [one])
    assert chosen(run, tmp_path / "out", format="jsonl").written == 1
    assert b"port" not in (tmp_path / "out" / "train.jsonl").read_bytes()


@pytest.mark.parametrize("format", ["jsonl", "atif", "parquet"])
def test_a_hint_that_a_command_printed_is_in_no_output_either(tmp_path: Path, format: str) -> None:
    shown = "out\n<headrace-hint>the port is 81</headrace-hint>\n"
    one = own("org/a", turns=[Act("ls", shown, ("ls",)), ("id", None)], tokens=False)
    run = make_run(tmp_path / "run", [one])
    assert chosen(run, tmp_path / "out", format=format).written == 1
    parts = [p.read_bytes() for p in (tmp_path / "out").rglob("*") if p.is_file()]
    if format == "parquet":
        table = pytest.importorskip("pyarrow.parquet").read_table(tmp_path / "out/train.parquet")
        parts.append(repr(table.to_pylist()).encode())
    assert b"is 81" not in b"".join(parts)


# --- splits ---------------------------------------------------------------------------------


@settings(
    max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(st.sets(st.integers(0, 99), min_size=1, max_size=12), st.floats(0, 1))
def test_no_task_is_in_train_and_validation_nor_a_failure_of_a_held_out_task(
    tmp_path_factory: pytest.TempPathFactory, tasks: set[int], validation: float
) -> None:
    folder = tmp_path_factory.mktemp("split")
    attempts = [
        own(f"org/{task}", sample, reward, tests={"a": True})
        for task in tasks
        for sample, reward in enumerate((1.0, 1.0, 0.0))
    ]
    run = make_run(folder / "run", attempts)
    found = chosen(run, folder / "out", validation=validation)
    train, held, failed = (
        [row["task"] for row in rows(folder / "out" / f"{split}.jsonl")]
        for split in ("train", "validation", "failures")
    )
    assert set(train) & set(held) == set(failed) & set(held) == set()
    assert len(train) + len(held) == 2 * len(tasks)
    assert set(failed) == set(train)
    for split, written in (("train", train), ("validation", held), ("failures", failed)):
        if written:
            assert found.tally.splits[split].tasks == len(set(written))


# --- what is told ---------------------------------------------------------------------------


def test_the_files_tell_how_they_were_made(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", mixed())
    found = chosen(
        run, tmp_path / "out", licence="MIT", command="headrace export run", gamma=0.5,
        validation=0.25,
    )  # fmt: skip
    out = tmp_path / "out"
    made = msgspec.json.decode((out / "made.json").read_bytes(), type=Made)
    assert (made.kind, made.format, made.licence) == ("trajectories", "trl", "MIT")
    assert (made.command, made.rows) == ("headrace export run", found.tally.rows)
    assert made.left_out == found.tally.left_out
    assert made.options["selection"]["loop_repeats"] == 4
    assert (made.options["validation"], made.options["gamma"]) == (0.25, 0.5)
    data = {path.name for path in out.iterdir()} - {"made.json", "README.md"}
    assert set(made.files) == data
    for name, digest in made.files.items():
        assert hashlib.sha256((out / name).read_bytes()).hexdigest() == digest
    tally = msgspec.json.decode((out / "selection.json").read_bytes(), type=SelectionTally)
    assert tally == found.tally
    assert "MIT" in (out / "README.md").read_text()


def test_scores_are_on_each_row_and_summed_up_by_split(tmp_path: Path) -> None:
    found = chosen(make_run(tmp_path / "run", mixed()), tmp_path / "out")
    row = rows(tmp_path / "out" / "train.jsonl")[0]
    assert set(row["scores"]) == set(found.tally.splits["train"].scores)
    turns = found.tally.splits["train"].scores["turns"]
    assert (turns.attempts, turns.median) == (3, 3.0)


def test_a_damaged_run_is_read_as_far_as_it_can_be_and_that_is_told(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", [own("org/a")])
    asyncio.run(store(run, [own("org/b")]))
    spoil(run)
    found = chosen(run, tmp_path / "out")
    assert found.written == 1
    assert len(found.damages) == 1
    assert found.tally.damaged[0].startswith("run/shards/")
    assert str(tmp_path) not in (tmp_path / "out" / "made.json").read_text()


# --- what is refused ------------------------------------------------------------------------


def test_nothing_selected_writes_nothing_and_counts(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", [own("org/a", reward=0.0)])
    found = chosen(run, tmp_path / "out")
    assert (found.written, found.tally.left_out) == (0, {"not_solved": 1})
    assert os.listdir(tmp_path) == ["run"]


def test_nothing_selected_leaves_what_was_there(tmp_path: Path) -> None:
    chosen(make_run(tmp_path / "good", [own("org/a")]), tmp_path / "out")
    before = (tmp_path / "out" / "train.jsonl").read_bytes()
    bad = make_run(tmp_path / "bad", [own("org/a", reward=0.0)])
    assert chosen(bad, tmp_path / "out", overwrite=True).written == 0
    assert (tmp_path / "out" / "train.jsonl").read_bytes() == before


def test_runs_of_several_policies_are_refused_unless_allowed(tmp_path: Path) -> None:
    one = make_run(tmp_path / "one", [own("org/a")])
    other = make_run(tmp_path / "other", [own("org/b", policy_version="b" * 64)])
    with pytest.raises(RunFolderError, match="expected runs of one policy, found 2"):
        chosen([one, other], tmp_path / "out")
    assert chosen([one, other], tmp_path / "out", allow_mixed_policies=True).written == 2
    made = msgspec.json.decode((tmp_path / "out" / "made.json").read_bytes(), type=Made)
    assert made.mixed_policies


def test_tokens_of_several_tokenizers_are_refused_and_their_text_is_not(tmp_path: Path) -> None:
    one = make_run(tmp_path / "one", [own("org/a")])
    other = make_run(tmp_path / "other", [own("org/b")], model="another")
    with pytest.raises(RunFolderError, match="expected runs of one tokenizer, for exact"):
        chosen([one, other], tmp_path / "out", format="exact", allow_mixed_policies=True)
    assert chosen([one, other], tmp_path / "out", allow_mixed_policies=True).written == 2


def test_an_attempt_without_tokens_is_counted_where_tokens_are_needed(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", [own("org/a"), own("org/b", tokens=False)])
    found = chosen(run, tmp_path / "out", format="exact")
    assert (found.written, found.tally.left_out) == (1, {"no_tokens": 1})


@pytest.mark.parametrize("name", TRAJECTORIES)
def test_every_format_takes_a_selection(tmp_path: Path, name: str) -> None:
    run = make_run(tmp_path / "run", mixed())
    found = chosen(run, tmp_path / "out", format=name, validation=0.5)
    assert list(found.tally.splits) == ["train", "validation", "failures"]
    assert found.written == 4
    assert (tmp_path / "out" / "made.json").exists()
