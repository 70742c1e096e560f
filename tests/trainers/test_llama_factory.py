"""What LLaMA-Factory's own readers make of our rows, and that a step of training goes through."""

import json
import shutil
from math import isfinite, log
from pathlib import Path

import pytest
from tests.trainers.conftest import Ask, Export, Told
from tests.trainers.conversations import END, TASKS, said, streams, winners

from headrace.types import Episode

pytestmark = [pytest.mark.trainers, pytest.mark.timeout(180)]

CLOSE = f"{END}\n"
"""LLaMA-Factory counts the new line after the end of a turn too."""


@pytest.fixture(scope="module")
def told(ask: Ask, export: Export, model: Path, tmp_path_factory: pytest.TempPathFactory) -> Told:
    """LLaMA-Factory's answers."""
    pairs = export("pairs", "llama-factory", "--rule", "first-divergence")
    litecoder = registered(
        export("export", "litecoder") / "train.json", tmp_path_factory.mktemp("litecoder")
    )
    questions = {
        "sft": ("sft", export("export", "llama-factory"), "train", model),
        "dpo": ("dpo", pairs, "train", model),
        "litecoder": ("sft", litecoder, "litecoder", model),
    }
    return ask("llamafactory", "loads_llamafactory.py", questions)


def registered(file: Path, folder: Path) -> Path:
    """LiteCoder's file as somebody registers it who has it from its authors."""
    shutil.copy(file, folder / "litecoder-sft.json")
    entry = {
        "file_name": "litecoder-sft.json",
        "formatting": "sharegpt",
        "columns": {"messages": "conversations"},
    }
    (folder / "dataset_info.json").write_text(json.dumps({"litecoder": entry}))
    return folder


def test_llama_factory_trains_on_the_policys_words_only(
    told: Told, episodes: list[Episode]
) -> None:
    found = told["sft"]
    assert found["learned"] == said(winners(episodes), CLOSE)
    assert [ids[:-1] for ids in found["ids"]] == streams(winners(episodes))
    assert isfinite(found["loss"])


def test_llama_factory_reads_per_turn_pairs(told: Told) -> None:
    found = told["dpo"]
    sides = zip(found["chosen"], found["rejected"], found["whole"], strict=True)
    for words, (chosen, rejected, whole) in zip(TASKS.values(), sides, strict=True):
        assert (chosen, rejected) == ([words.right + CLOSE], [words.wrong + CLOSE])
        assert words.look in whole and words.shown in whole
    # Before the first step the model is its own reference.
    assert found["loss"] == pytest.approx(log(2), abs=1e-4)


def test_llama_factory_reads_litecoders_schema(told: Told, episodes: list[Episode]) -> None:
    found = told["litecoder"]
    assert found["learned"] == said(winners(episodes), CLOSE)
    assert isfinite(found["loss"])
