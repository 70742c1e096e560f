"""Pairs as rows: what the two share, where they part, and what a format cannot hold.

Loading the files with the trainers themselves is in `tests/trainers`.
"""

import json
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from tests.preferences.runs import Act, episode

from headrace.preferences.divergence import divergence
from headrace.preferences.formats import axolotl, llama_factory, swift, trl
from headrace.preferences.formats.base import TRAIN, VALIDATION, Context, Row
from headrace.preferences.pair import Pair, Pairing, Side
from headrace.preferences.phi import turn_weights
from headrace.types import Episode

CONTEXT = Context(models=("m",), runs=("run1",))
FORMATS: dict[str, Any] = {
    "trl": trl.DPO,
    "ms-swift": swift.RLHF,
    "llama-factory": llama_factory.DPO,
    "axolotl": axolotl.DPO,
}
PER_TURN = ("llama-factory", "axolotl")
WHOLE = ("trl", "ms-swift")
every_format = pytest.mark.parametrize("name", FORMATS)

OPENING = "Task: do org/a.\nTerminal:\n$ "
WON = [("ls", "a.txt"), ("make", "ok"), ("done", None)]
LOST = [("ls", "a.txt"), ("rm a.txt", "gone")]


def side(one: Episode) -> Side:
    return Side(
        episode=one.id,
        run="run1",
        sample=one.sample,
        policy_version=one.policy_version,
        reward=one.verdict.reward,
        pass_ratio=None,
        score=one.verdict.reward or 0.0,
        turns=len(one.turns),
        sampled_tokens=one.sampled_tokens,
        stop_reason=one.stop_reason.value,
    )


def pairing(
    won: Sequence[Any], lost: Sequence[Any], start: int = 0, opening: str = "", **fields: Any
) -> Pairing:
    """`opening`: of the loser, where it is another one."""
    chosen = episode("org/a", 0, 1.0, turns=won, **fields)
    rejected = episode("org/a", 1, 0.0, turns=lost, opening=opening, **fields)
    pair = Pair(
        id="p1",
        task="org/a",
        task_digest=chosen.task_digest,
        rule="margin",
        score="reward",
        margin=1.0,
        chosen=side(chosen),
        rejected=side(rejected),
        start=start,
        divergence=divergence(chosen, rejected),
    )
    return Pairing(pair, chosen, rejected)


def write(
    name: str, folder: Path, *items: Pairing, context: Context = CONTEXT, split: str = TRAIN
) -> tuple[list[int], list[Row]]:
    folder.mkdir(exist_ok=True)
    with FORMATS[name].open(folder, context) as writer:
        counts = [writer.add(split, item) for item in items]
    path = folder / f"{split}.jsonl"
    data = path.read_bytes() if path.exists() else b""
    return counts, [json.loads(line) for line in data.splitlines()]


def row_of(name: str, folder: Path, item: Pairing, context: Context = CONTEXT) -> Row:
    counts, (row,) = write(name, folder, item, context=context)
    assert counts == [1]
    return row


def refused(name: str, folder: Path, item: Pairing) -> bool:
    counts, rows = write(name, folder, item)
    return (counts, rows) == ([0], [])


def user(text: str, **fields: Any) -> dict[str, Any]:
    return {"role": "user", "content": text, **fields}


def assistant(text: str, **fields: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": text, **fields}


ABOUT = {"id": "p1", "task": "org/a", "score_chosen": 1.0, "score_rejected": 0.0}


# --- golden rows ----------------------------------------------------------------------------


def test_a_pair_for_trl_is_the_rest_of_both_trajectories(tmp_path: Path) -> None:
    assert row_of("trl", tmp_path, pairing(WON, LOST, start=1)) == ABOUT | {
        "prompt": [user(OPENING), assistant("ls"), user("a.txt")],
        "chosen": [assistant("make"), user("ok"), assistant("done")],
        "rejected": [assistant("rm a.txt")],
    }


def test_a_pair_of_whole_trajectories_begins_after_the_opening(tmp_path: Path) -> None:
    row = row_of("trl", tmp_path, pairing(WON, LOST))
    assert row["prompt"] == [user(OPENING)]
    assert row["rejected"] == [assistant("ls"), user("a.txt"), assistant("rm a.txt")]


def test_a_pair_for_ms_swift_is_two_whole_dialogues_with_a_loss_from_its_start(
    tmp_path: Path,
) -> None:
    shared = [user(OPENING, loss=False), assistant("ls", loss=False), user("a.txt", loss=False)]
    assert row_of("ms-swift", tmp_path, pairing(WON, LOST, start=1)) == ABOUT | {
        "messages": [
            *shared,
            assistant("make", loss=True),
            user("ok", loss=False),
            assistant("done", loss=True),
        ],
        "rejected_messages": [*shared, assistant("rm a.txt", loss=True)],
    }


def test_with_a_discount_ms_swift_rows_have_dmpo_weights(tmp_path: Path) -> None:
    context = CONTEXT._replace(gamma=0.5)
    row = row_of("ms-swift", tmp_path, pairing(WON, LOST, start=1), context)
    answers = row["messages"][1::2]
    assert [m["loss_scale"] for m in answers] == list(turn_weights(3, 0.5, start=1))
    assert [m["loss_scale"] for m in row["rejected_messages"][1::2]] == [0.0, 1.0]
    assert {m["loss_scale"] for m in row["messages"][::2]} == {0.0}


def test_a_pair_for_llama_factory_is_two_answers_and_a_ranked_registration(tmp_path: Path) -> None:
    assert row_of("llama-factory", tmp_path, pairing(WON, LOST, start=1)) == ABOUT | {
        "conversations": [
            {"from": "human", "value": OPENING},
            {"from": "gpt", "value": "ls"},
            {"from": "human", "value": "a.txt"},
        ],
        "chosen": {"from": "gpt", "value": "make"},
        "rejected": {"from": "gpt", "value": "rm a.txt"},
    }
    assert json.loads((tmp_path / "dataset_info.json").read_text()) == {
        "train": {
            "file_name": "train.jsonl",
            "ranking": True,
            "formatting": "sharegpt",
            "columns": {
                "messages": "conversations",
                "chosen": "chosen",
                "rejected": "rejected",
            },
        }
    }


def test_a_pair_for_axolotl_is_two_answers_and_a_configuration(tmp_path: Path) -> None:
    assert row_of("axolotl", tmp_path, pairing(WON, LOST, start=1)) == ABOUT | {
        "messages": [user(OPENING), assistant("ls"), user("a.txt")],
        "chosen": assistant("make"),
        "rejected": assistant("rm a.txt"),
    }
    strategy = {"ds_type": "json", "split": "train", "type": "chat_template.default"}
    assert yaml.safe_load((tmp_path / "axolotl.yml").read_text()) == {
        "rl": "dpo",
        "datasets": [{"path": "train.jsonl"} | strategy],
    }
    write("axolotl", tmp_path, pairing(WON, LOST, start=1), split=VALIDATION)
    found = yaml.safe_load((tmp_path / "axolotl.yml").read_text())
    assert found["test_datasets"] == [{"path": "validation.jsonl"} | strategy]


# --- what does not fit ----------------------------------------------------------------------


@every_format
def test_a_pair_that_says_the_same_is_no_row(name: str, tmp_path: Path) -> None:
    assert refused(name, tmp_path, pairing(WON, WON))
    assert refused(name, tmp_path, pairing(WON, WON[:1], start=1)), "one is the other's beginning"


@every_format
def test_an_episode_of_several_contexts_is_no_side_of_a_row(name: str, tmp_path: Path) -> None:
    assert refused(name, tmp_path, pairing([*WON[:2], Act("x", "y", reset=True)], LOST))


@pytest.mark.parametrize("name", [n for n in FORMATS if n != "ms-swift"])
def test_a_shared_prompt_that_is_not_shared_is_no_row(name: str, tmp_path: Path) -> None:
    """A pair whose prompt is one side's would say that the other answered what it never saw."""
    assert refused(name, tmp_path, pairing(WON, LOST, start=1, opening="Another task"))
    seen = [("ls", "b.txt"), ("make", None)]
    assert refused(name, tmp_path, pairing(WON, seen, start=1))
    acted = [("dir", "a.txt"), ("rm a.txt", None)]
    assert refused(name, tmp_path, pairing(WON, acted, start=1))


def test_ms_swift_holds_pairs_that_begin_differently(tmp_path: Path) -> None:
    row = row_of("ms-swift", tmp_path, pairing(WON, LOST, opening="Another task"))
    first, other = row["messages"][0], row["rejected_messages"][0]
    assert (first["content"], other["content"]) == (OPENING, "Another task")


@pytest.mark.parametrize("name", PER_TURN)
def test_formats_of_one_turn_hold_no_pair_that_begins_with_the_same_answer(
    name: str, tmp_path: Path
) -> None:
    assert FORMATS[name].needs_shared_prompt
    assert refused(name, tmp_path, pairing(WON, LOST, start=0))


@pytest.mark.parametrize("name", WHOLE)
def test_formats_of_trajectories_need_no_differing_first_answer(name: str, tmp_path: Path) -> None:
    assert not FORMATS[name].needs_shared_prompt
    assert write(name, tmp_path, pairing(WON, LOST, start=0))[0] == [1]


@every_format
def test_only_axolotl_cannot_hold_an_empty_answer(name: str, tmp_path: Path) -> None:
    """It looks for the answer's text in the rendered dialogue and finds nothing at its start."""
    item = pairing(WON, [("ls", "a.txt"), ("", "again")], start=1)
    assert refused(name, tmp_path, item) == (name == "axolotl")


# --- any pair -------------------------------------------------------------------------------

words = st.text(st.characters(codec="utf-8"), max_size=8)
turns = st.lists(st.tuples(words, words), max_size=4)


def dialogue(messages: Sequence[dict[str, Any]]) -> list[tuple[str, str]]:
    assert [m["role"] for m in messages] == ["user", "assistant"] * (len(messages) // 2)
    texts = [m["content"] for m in messages]
    return list(zip(texts[::2], texts[1::2], strict=True))


def told(one: Episode) -> list[tuple[str, str]]:
    shown = [one.opening, *one.observations]
    return [(shown[number], turn.text) for number, turn in enumerate(one.turns)]


@given(shared=turns, won=turns, lost=turns)
def test_any_pair_comes_back_as_its_trajectories(
    shared: list[tuple[str, str]], won: list[tuple[str, str]], lost: list[tuple[str, str]]
) -> None:
    item = pairing([*shared, *won], [*shared, *lost], start=len(shared))
    with tempfile.TemporaryDirectory() as folder:
        found = {name: write(name, Path(folder, name), item)[1] for name in WHOLE}
    sides = [told(item.chosen), told(item.rejected)]
    rests = [one[len(shared) :] for one in sides]
    holds = all(rests) and rests[0] != rests[1]
    assert [len(rows) for rows in found.values()] == [holds, holds]
    for row in found["ms-swift"]:
        assert [dialogue(row["messages"]), dialogue(row["rejected_messages"])] == sides
        for messages in (row["messages"], row["rejected_messages"]):
            losses = [message["loss"] for message in messages]
            before = 2 * len(shared)
            assert losses == [False] * before + [False, True] * ((len(messages) - before) // 2)
    for row in found["trl"]:
        for part, one in zip(("chosen", "rejected"), sides, strict=True):
            assert dialogue(row["prompt"] + row[part]) == one
            assert row[part][0]["role"] == "assistant"


@pytest.mark.parametrize("name", PER_TURN)
@given(shared=turns, won=words, lost=words, after=turns)
def test_any_pair_of_one_turn_has_its_two_answers(
    name: str, shared: list[tuple[str, str]], won: str, lost: str, after: list[tuple[str, str]]
) -> None:
    item = pairing([*shared, (won, "x"), *after], [*shared, (lost, "y")], start=len(shared))
    with tempfile.TemporaryDirectory() as folder:
        _, rows = write(name, Path(folder), item)
    holds = won != lost and (name != "axolotl" or bool(won and lost))
    assert len(rows) == holds
    columns = {"llama-factory": ("value", "conversations"), "axolotl": ("content", "messages")}
    text, messages = columns[name]
    for row in rows:
        assert (row["chosen"][text], row["rejected"][text]) == (won, lost)
        whole = [message[text] for message in row[messages]]
        assert whole == [t for pair in told(item.chosen) for t in pair][: len(whole)]
        assert len(whole) == 2 * len(shared) + 1
