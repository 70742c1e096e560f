"""What ms-swift's own template makes of our rows, and that a step of training goes through."""

from math import isfinite, log
from pathlib import Path

import pytest
from tests.trainers.conftest import Ask, Export, Told
from tests.trainers.conversations import END, TASKS, said, streams, winners

from headrace.types import Episode

pytestmark = [pytest.mark.trainers, pytest.mark.timeout(180)]

CLOSE = f"{END}\n"
"""ms-swift counts the new line after the end of a turn too."""


@pytest.fixture(scope="module")
def told(ask: Ask, export: Export, model: Path) -> Told:
    """ms-swift's answers."""
    pairs = export("pairs", "ms-swift")
    later = export("pairs", "ms-swift", "--rule", "first-divergence")
    weighted = export("pairs", "ms-swift", "--gamma", "1")
    rows = export("export", "ms-swift")
    questions = {
        "sft": ("sft", rows / "train.jsonl", model),
        "failures": ("sft", rows / "failures.jsonl", model),
        "litecoder": ("sft", export("export", "litecoder") / "train.json", model),
        "weights": ("weights", weighted / "train.jsonl", model),
        "dpo": ("dpo", pairs / "train.jsonl", model),
        "later": ("dpo", later / "train.jsonl", model),
    }
    return ask("ms-swift", "loads_swift.py", questions)


def test_ms_swift_trains_on_the_policys_words_only(told: Told, episodes: list[Episode]) -> None:
    found = told["sft"]
    assert found["learned"] == said(winners(episodes), CLOSE)
    assert [ids[:-1] for ids in found["ids"]] == streams(winners(episodes))
    assert isfinite(found["loss"])


def test_ms_swift_does_not_imitate_an_answer_that_could_not_be_read(told: Told) -> None:
    found = told["failures"]
    readable, unreadable = TASKS.values()
    assert found["learned"] == [
        [text + CLOSE for text, _ in readable.loser()],
        [text + CLOSE for text, _ in unreadable.loser() if text != unreadable.wrong],
    ]


def test_ms_swift_reads_litecoders_schema_as_it_is(told: Told, episodes: list[Episode]) -> None:
    assert told["litecoder"]["learned"] == said(winners(episodes), CLOSE)


def test_ms_swift_carries_the_weight_of_each_turn_but_not_to_the_end_of_the_turn(
    told: Told,
) -> None:
    # The end of a turn is put under the loss after the weights were given out.
    for first, second, last in told["weights"]["chosen"]:
        assert first == [1.0]
        assert second == [pytest.approx(2 / 3), 1.0]
        assert last == [pytest.approx(1 / 3), 1.0]


def test_ms_swift_keeps_whole_rejected_trajectories_and_counts_no_observation(told: Told) -> None:
    found = told["dpo"]
    sides = zip(found["chosen"], found["rejected"], found["whole"], strict=True)
    for words, (chosen, rejected, whole) in zip(TASKS.values(), sides, strict=True):
        assert chosen == [text + CLOSE for text, _ in words.winner()]
        assert rejected == [text + CLOSE for text, _ in words.loser()]
        assert all((shown or "") in whole for _, shown in words.loser())
    # Before the first step the model is its own reference.
    assert found["loss"] == pytest.approx(log(2), abs=1e-4)


def test_ms_swift_counts_no_turn_before_a_first_divergence(told: Told) -> None:
    found = told["later"]
    sides = zip(found["chosen"], found["rejected"], strict=True)
    for words, (chosen, rejected) in zip(TASKS.values(), sides, strict=True):
        assert chosen == [text + CLOSE for text, _ in words.winner()[1:]]
        assert rejected == [text + CLOSE for text, _ in words.loser()[1:]]
