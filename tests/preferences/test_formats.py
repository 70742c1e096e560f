"""Trajectories as rows: every format says exactly what is stored, in the trainer's own words.

Loading the files with the trainers themselves is in `tests/trainers`.
"""

import json
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from tests.preferences.runs import Act, episode, make_run, said

from headrace.engine import atif as engine_atif
from headrace.engine.reader import Place
from headrace.preferences.attempt import attempt
from headrace.preferences.formats import (
    atif,
    axolotl,
    kto,
    llama_factory,
    registry,
    sharegpt,
    swift,
    trl,
)
from headrace.preferences.formats.base import FAILURES, TRAIN, VALIDATION, Context, Row, Selected
from headrace.preferences.source import Source
from headrace.types import Episode, StopReason, VerdictFault

ROOT = Path(__file__).parent.parent.parent
HARBOR = ROOT / ".harbor" / "bin" / "python"
PAGE = (ROOT / "docs" / "reference" / "exports.md").read_text()
ONE_RUN = Context(models=("/models/tiny",), runs=("run1",))
TWO_RUNS = Context(models=("a", None), runs=("run1", "run2"))
Dialogue = list[tuple[str, str]]
"""What was shown and what was said, turn by turn."""


class Read(NamedTuple):
    """How a format's rows are read back."""

    format: Any
    dialogue: Callable[[Row], Dialogue]


def openai(messages: Sequence[dict[str, Any]]) -> Dialogue:
    assert [m["role"] for m in messages] == ["user", "assistant"] * (len(messages) // 2)
    texts = [m["content"] for m in messages]
    return list(zip(texts[::2], texts[1::2], strict=True))


def human(messages: Sequence[dict[str, str]]) -> Dialogue:
    assert [m["from"] for m in messages] == ["human", "gpt"] * (len(messages) // 2)
    assert {frozenset(m) for m in messages} == {frozenset({"from", "value"})}
    texts = [m["value"] for m in messages]
    return list(zip(texts[::2], texts[1::2], strict=True))


READS = {
    "trl": Read(trl.SFT, lambda row: openai(row["messages"])),
    "ms-swift": Read(swift.SFT, lambda row: openai(row["messages"])),
    "llama-factory": Read(llama_factory.SFT, lambda row: human(row["conversations"])),
    "axolotl": Read(axolotl.SFT, lambda row: openai(row["messages"])),
    "kto": Read(kto.KTO, lambda row: openai(row["prompt"] + row["completion"])),
    "litecoder": Read(sharegpt.LITECODER, lambda row: human(row["conversations"])),
}
every_format = pytest.mark.parametrize("name", READS)


def select(one: Episode, run: int = 0, **scores: float) -> Selected:
    return Selected(attempt(one, run, Place(shard=0, offset=0, position=0)), one, scores)


def write(
    name: str, folder: Path, items: Sequence[Selected], split: str = TRAIN
) -> tuple[list[int], list[Row]]:
    """How many rows each item became, and the rows of the file."""
    with READS[name].format.open(folder, ONE_RUN) as writer:
        counts = [writer.add(split, item) for item in items]
    return counts, rows_of(folder, split)


def rows_of(folder: Path, split: str = TRAIN) -> list[Row]:
    array = folder / f"{split}.json"
    if array.exists():
        found: list[Row] = msgspec.json.decode(array.read_bytes())
        return found
    lines = folder / f"{split}.jsonl"
    data = lines.read_bytes() if lines.exists() else b""
    return [json.loads(line) for line in data.splitlines()]


def golden(name: str, folder: Path, one: Episode) -> Row:
    counts, (row,) = write(name, folder, [select(one)])
    assert counts == [1]
    return row


# --- all formats ----------------------------------------------------------------------------


@every_format
def test_a_stored_run_is_exported_word_for_word(name: str, small_run: Path, tmp_path: Path) -> None:
    items = [Selected(a, e, {}) for a, e in Source([small_run]).episodes()]
    counts, rows = write(name, tmp_path, items)
    assert counts == [1, 1, 1, 1]
    opening = "Task: do org/{}.\nTerminal:\n$ "
    ran = "$ {0}\nran {0}\n[exit code 0]".format
    assert [READS[name].dialogue(row) for row in rows] == [
        [(opening.format("a"), "ls"), (ran("ls"), "make"), (ran("make"), "done")],
        [(opening.format("a"), "ls"), (ran("ls"), "rm -r ."), (ran("rm -r ."), "done")],
        [(opening.format("b"), "pwd"), (ran("pwd"), "done")],
        [(opening.format("b"), "id"), (ran("id"), "done")],
    ]


@every_format
def test_what_was_shown_after_the_last_answer_is_left_out(name: str, tmp_path: Path) -> None:
    one = episode(turns=[("ls", "seen"), ("make", "never answered")])
    _, (row,) = write(name, tmp_path, [select(one)])
    assert READS[name].dialogue(row) == [(one.opening, "ls"), ("seen", "make")]


@every_format
def test_each_context_of_an_episode_is_a_row(name: str, tmp_path: Path) -> None:
    acts = [Act("a", "x"), Act("b", "fresh", step="one"), Act("c", "z", step="two", reset=True)]
    one = episode(turns=acts)
    counts, rows = write(name, tmp_path, [select(one), select(episode("org/b"))])
    assert counts == [3, 1]
    told = [READS[name].dialogue(row) for row in rows]
    assert told[:3] == [[(one.opening, "a")], [("x", "b")], [("fresh", "c")]]
    if name == "litecoder":
        assert [row["id"] for row in rows] == [0, 1, 2, 3]
    else:
        assert [row["id"] for row in rows[:3]] == [f"{one.id}#{n}" for n in range(3)]
        assert "#" not in rows[3]["id"]


@every_format
def test_a_policy_that_never_said_a_word_is_no_row(name: str, tmp_path: Path) -> None:
    silent = episode(turns=[("", "x"), ("", "y")])
    counts, rows = write(name, tmp_path, [select(silent), select(episode(turns=[]))])
    assert (counts, rows) == ([0, 0], [])


@every_format
def test_an_empty_answer_among_others_stays(name: str, tmp_path: Path) -> None:
    _, (row,) = write(name, tmp_path, [select(episode(turns=[("", "again"), ("ls", None)]))])
    assert [text for _, text in READS[name].dialogue(row)] == ["", "ls"]


@every_format
def test_all_rows_and_all_messages_have_the_same_keys_and_no_null(
    name: str, tmp_path: Path
) -> None:
    """`datasets` takes a column's type from the first rows it reads."""
    graded = [episode("org/a", 0, 1.0), episode("org/b", 0, 0.0), episode("org/c", 0, 0.25)]
    ungraded = episode("org/d", fault=VerdictFault.VERIFIER)
    _, rows = write(name, tmp_path, [select(one, length=2) for one in [*graded, ungraded]])
    shapes = {json.dumps(shape(row)) for row in rows}
    assert len(shapes) == 1
    assert "null" not in shapes.pop()


def shape(value: Any) -> Any:
    """Keys and types; of a list, those of its members, each once."""
    if isinstance(value, dict):
        return {key: shape(member) for key, member in value.items()}
    if isinstance(value, list):
        return sorted({json.dumps(shape(member)) for member in value})
    return "null" if value is None else type(value).__name__


@every_format
def test_each_split_has_a_file_and_an_empty_one_has_none(name: str, tmp_path: Path) -> None:
    with READS[name].format.open(tmp_path, ONE_RUN) as writer:
        writer.add(FAILURES, select(episode("org/a")))
        writer.add(VALIDATION, select(episode("org/b")))
        writer.add(FAILURES, select(episode("org/c")))
    assert len(rows_of(tmp_path, FAILURES)) == 2
    assert len(rows_of(tmp_path, VALIDATION)) == 1
    assert {path.stem for path in tmp_path.glob("*.json*")} - {"dataset_info"} == {
        FAILURES, VALIDATION,
    }  # fmt: skip


words = st.text(st.characters(codec="utf-8"), max_size=12)
acts = st.builds(
    Act, text=words, shown=words, step=st.sampled_from(["", "one"]), reset=st.booleans()
)


@given(turns=st.lists(acts, max_size=6), tokens=st.booleans(), last=words | st.none())
@every_format
def test_any_conversation_comes_back_as_it_was(
    name: str, turns: list[Act], tokens: bool, last: str | None
) -> None:
    if turns:
        turns[-1] = turns[-1]._replace(shown=last)
    one = episode(turns=turns, tokens=tokens)
    with tempfile.TemporaryDirectory() as folder:
        (count,), rows = write(name, Path(folder), [select(one)])
    expected = [d for d in contexts(one, turns, tokens) if any(text for _, text in d)]
    assert [READS[name].dialogue(row) for row in rows] == expected
    assert count == len(expected)


def contexts(one: Episode, turns: Sequence[Act], tokens: bool) -> Iterator[Dialogue]:
    """What the acts say, without asking the code under test."""
    dialogue: Dialogue = []
    for number, act in enumerate(turns):
        new_step = number > 0 and act.step != turns[number - 1].step
        if number and (new_step or (act.reset and tokens)):
            yield dialogue
            dialogue = []
        dialogue.append((turns[number - 1].shown or "" if number else one.opening, act.text))
    if dialogue:
        yield dialogue


def test_the_reference_page_has_every_format() -> None:
    for name in {**registry.TRAJECTORIES, **registry.PAIRS}:
        assert f"| [`{name}`](" in PAGE, name


@every_format
def test_the_example_on_the_reference_page_is_a_row(name: str, tmp_path: Path) -> None:
    """axolotl's is TRL's, as the page says."""
    sections = {part.partition("\n")[0].lower(): part for part in PAGE.split("\n## ")[1:]}
    section = sections["trl" if name == "axolotl" else name]
    example = json.loads(section.split("```json\n")[1].split("```")[0])
    _, rows = write(name, tmp_path, [select(PLAIN), select(PLAIN)])
    assert shape(example) == shape(rows if isinstance(example, list) else rows[0])


# --- each by itself -------------------------------------------------------------------------

PLAIN = episode("org/a", 0, 1.0, turns=[("ls", "a.txt"), ("done", "x")])
OPENING = "Task: do org/a.\nTerminal:\n$ "


def test_a_row_for_trl(tmp_path: Path) -> None:
    assert golden("trl", tmp_path, PLAIN) == {
        "id": PLAIN.id,
        "task": "org/a",
        "reward": 1.0,
        "messages": [
            {"role": "user", "content": OPENING},
            {"role": "assistant", "content": "ls"},
            {"role": "user", "content": "a.txt"},
            {"role": "assistant", "content": "done"},
        ],
    }


def test_a_row_for_ms_swift_says_which_answers_count(tmp_path: Path) -> None:
    assert golden("ms-swift", tmp_path, PLAIN) == {
        "id": PLAIN.id,
        "task": "org/a",
        "reward": 1.0,
        "messages": [
            {"role": "user", "content": OPENING, "loss": False},
            {"role": "assistant", "content": "ls", "loss": True},
            {"role": "user", "content": "a.txt", "loss": False},
            {"role": "assistant", "content": "done", "loss": True},
        ],
    }


def test_for_ms_swift_an_answer_that_could_not_be_read_is_not_imitated(tmp_path: Path) -> None:
    turns = [Act("{", "no JSON", problems=("no JSON",)), Act("", "again"), Act("ls", None)]
    row = golden("ms-swift", tmp_path, episode(turns=turns))
    assert [m["loss"] for m in row["messages"][1::2]] == [False, False, True]


def test_a_row_for_llama_factory_and_the_file_that_registers_it(tmp_path: Path) -> None:
    assert golden("llama-factory", tmp_path, PLAIN) == {
        "id": PLAIN.id,
        "task": "org/a",
        "reward": 1.0,
        "conversations": [
            {"from": "human", "value": OPENING},
            {"from": "gpt", "value": "ls"},
            {"from": "human", "value": "a.txt"},
            {"from": "gpt", "value": "done"},
        ],
    }
    assert json.loads((tmp_path / "dataset_info.json").read_text()) == {
        "train": {
            "file_name": "train.jsonl",
            "formatting": "sharegpt",
            "columns": {"messages": "conversations"},
        }
    }


def test_a_row_for_axolotl_and_the_configuration_that_reads_it(tmp_path: Path) -> None:
    trl_folder, folder = tmp_path / "trl", tmp_path / "axolotl"
    trl_folder.mkdir()
    folder.mkdir()
    assert golden("axolotl", folder, PLAIN) == golden("trl", trl_folder, PLAIN)
    assert yaml.safe_load((folder / "axolotl.yml").read_text()) == {
        "datasets": [
            {"path": "train.jsonl", "ds_type": "json", "split": "train", "type": "chat_template"}
        ]
    }


@pytest.mark.parametrize("name", ["axolotl", "llama-factory"])
def test_the_description_names_the_splits_there_are(name: str, tmp_path: Path) -> None:
    with READS[name].format.open(tmp_path, ONE_RUN) as writer:
        for split in (TRAIN, VALIDATION, FAILURES):
            writer.add(split, select(PLAIN))
    if name == "axolotl":
        found = yaml.safe_load((tmp_path / "axolotl.yml").read_text())
        paths = [found[key][0]["path"] for key in ("datasets", "test_datasets")]
        assert paths == ["train.jsonl", "validation.jsonl"]
    else:
        assert list(json.loads((tmp_path / "dataset_info.json").read_text())) == [
            TRAIN, VALIDATION, FAILURES,
        ]  # fmt: skip


@pytest.mark.parametrize("name", ["axolotl", "llama-factory"])
def test_an_export_that_failed_describes_nothing(name: str, tmp_path: Path) -> None:
    with pytest.raises(KeyError), READS[name].format.open(tmp_path, ONE_RUN) as writer:
        writer.add(TRAIN, select(PLAIN))
        raise KeyError
    assert [path.name for path in tmp_path.iterdir()] == ["train.jsonl"]


def test_a_row_for_kto(tmp_path: Path) -> None:
    assert golden("kto", tmp_path, PLAIN) == {
        "id": PLAIN.id,
        "task": "org/a",
        "reward": 1.0,
        "prompt": [{"role": "user", "content": OPENING}],
        "completion": [
            {"role": "assistant", "content": "ls"},
            {"role": "user", "content": "a.txt"},
            {"role": "assistant", "content": "done"},
        ],
        "label": True,
    }


@pytest.mark.parametrize(("reward", "label"), [(1.0, True), (0.99, False), (0.0, False)])
def test_the_label_of_kto_is_the_verdict(reward: float, label: bool, tmp_path: Path) -> None:
    row = golden("kto", tmp_path, episode(reward=reward))
    assert (row["label"], row["reward"]) == (label, reward)


def test_a_verdict_without_a_reward_counts_as_not_solved(tmp_path: Path) -> None:
    row = golden("kto", tmp_path, episode(fault=VerdictFault.VERIFIER))
    assert (row["label"], row["reward"]) == (False, 0.0)


@pytest.mark.parametrize(
    "fields", [{"fault": VerdictFault.INFRASTRUCTURE}, {"stop": StopReason.CANCELLED}]
)
def test_an_attempt_that_does_not_count_is_no_failure_for_kto(
    fields: dict[str, Any], tmp_path: Path
) -> None:
    one = select(episode(reward=0.0, **fields))
    assert not one.attempt.counted
    assert write("kto", tmp_path, [one]) == ([0], [])


def test_scores_of_the_selection_are_in_the_row(tmp_path: Path) -> None:
    _, (row,) = write("trl", tmp_path, [select(PLAIN, recoveries=2, uses=0.5)])
    assert row["scores"] == {"recoveries": 2.0, "uses": 0.5}


def test_litecoders_file_is_one_array_numbered_over_all_files(tmp_path: Path) -> None:
    with sharegpt.LITECODER.open(tmp_path, ONE_RUN) as writer:
        for split in (TRAIN, VALIDATION, TRAIN):
            writer.add(split, select(PLAIN))
    assert [row["id"] for row in rows_of(tmp_path)] == [0, 2]
    assert rows_of(tmp_path, VALIDATION) == [
        {
            "id": 1,
            "conversations": [
                {"from": "human", "value": OPENING},
                {"from": "gpt", "value": "ls"},
                {"from": "human", "value": "a.txt"},
                {"from": "gpt", "value": "done"},
            ],
        }
    ]


# --- ATIF -----------------------------------------------------------------------------------


def test_atif_is_the_document_of_the_exchange_a_file_for_each_episode(tmp_path: Path) -> None:
    several = episode("org/b", turns=[Act("a", "x"), Act("b", "y", reset=True)])
    with atif.ATIF.open(tmp_path, ONE_RUN) as writer:
        counts = [writer.add(TRAIN, select(PLAIN)), writer.add(FAILURES, select(several))]
    assert counts == [1, 1], "contexts are steps of one document"
    path = tmp_path / TRAIN / f"a__{PLAIN.id}.json"
    expected = engine_atif.trajectory(PLAIN, model="tiny")
    assert json.loads(path.read_text()) == json.loads(msgspec.json.encode(expected))
    assert expected["schema_version"] == "ATIF-v1.8"
    assert [p.name for p in (tmp_path / FAILURES).iterdir()] == [f"b__{several.id}.json"]


def test_an_attempt_of_two_runs_is_two_files(tmp_path: Path) -> None:
    with atif.ATIF.open(tmp_path, TWO_RUNS) as writer:
        for run in (0, 1):
            writer.add(TRAIN, select(PLAIN, run))
    names = sorted(path.name for path in (tmp_path / TRAIN).iterdir())
    assert names == [f"a__{PLAIN.id}__run1.json", f"a__{PLAIN.id}__run2.json"]


def test_harbor_accepts_what_atif_writes(tmp_path: Path) -> None:
    if not HARBOR.exists():
        pytest.skip("no Harbor in .harbor: scripts/install-harbor.sh .harbor")
    run = make_run(tmp_path / "run", [PLAIN, episode("org/b", turns=said("a", "b"))])
    with atif.ATIF.open(tmp_path, ONE_RUN) as writer:
        for one, record in Source([run]).episodes():
            writer.add(TRAIN, Selected(one, record, {}))
    files = sorted((tmp_path / TRAIN).iterdir())
    reads = ROOT / "tests" / "exchange" / "harbor_reads.py"
    done = subprocess.run(
        [HARBOR, reads, "atif", *files], capture_output=True, text=True, timeout=100, check=True
    )
    told = [json.loads(line) for line in done.stdout.splitlines()]
    assert [entry["errors"] for entry in told] == [[], []]


@pytest.mark.parametrize("name", registry.TRAJECTORIES)
def test_the_formats_that_write_tokens_say_so(name: str, tmp_path: Path) -> None:
    """Nothing can be taken out of a stream, so a selection asks them (`hinted`)."""
    (segment,) = PLAIN.segments
    other = msgspec.structs.replace(segment, token_ids=bytes(len(segment.token_ids)))
    found = []
    for number, one in enumerate((PLAIN, msgspec.structs.replace(PLAIN, segments=(other,)))):
        folder = tmp_path / str(number)
        folder.mkdir()
        form = registry.trajectory_format(name)
        with form.open(folder, Context(models=("m",), runs=("r",))) as writer:
            assert writer.add(TRAIN, select(one)) == 1
        found.append({p.name: p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()})
    assert (found[0] != found[1]) == form.writes_tokens
