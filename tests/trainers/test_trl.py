"""What TRL's own trainers make of our rows, and that a step of training on them goes through."""

from math import isfinite, log
from pathlib import Path

import pytest
from tests.trainers.conftest import Ask, Export, Told
from tests.trainers.conversations import END, TASKS, said, streams, winners

from headrace.types import Episode

pytestmark = [pytest.mark.trainers, pytest.mark.timeout(180)]


@pytest.fixture(scope="module")
def told(ask: Ask, export: Export, model: Path) -> Told:
    """TRL's answers."""
    rows, folder = export("export", "trl"), export("export", "datasets", "--select", "sft")
    pairs, later = export("pairs", "trl"), export("pairs", "trl", "--rule", "first-divergence")
    questions = {
        "sft": ("sft", rows / "train.jsonl", model, "assistant"),
        "all": ("sft", rows / "train.jsonl", model, "all"),
        "failures": ("sft", rows / "failures.jsonl", model, "assistant"),
        "exact": ("exact", folder, model),
        "dpo": ("dpo", pairs / "train.jsonl", model),
        "later": ("dpo", later / "train.jsonl", model),
        "kto": ("kto", export("export", "kto") / "train.jsonl", model),
    }
    return ask("trl", "loads_trl.py", questions)


def test_trl_trains_on_the_policys_words_only_and_on_the_tokens_that_were_sampled(
    told: Told, episodes: list[Episode]
) -> None:
    found = told["sft"]
    assert found["learned"] == said(winners(episodes), END)
    # The template ends a message with a new line, which the policy never samples.
    assert [ids[:-1] for ids in found["ids"]] == streams(winners(episodes))
    assert isfinite(found["loss"])


def test_trl_trains_on_what_was_shown_too_when_it_is_not_told_otherwise(told: Told) -> None:
    found = told["all"]
    for words, (everything,) in zip(TASKS.values(), found["learned"], strict=True):
        assert words.shown in everything and words.look in everything


def test_trl_trains_on_the_exact_folder_without_tokenising_anything(
    told: Told, episodes: list[Episode]
) -> None:
    found = told["exact"]
    assert found["ids"] == streams(winners(episodes))
    assert found["learned"] == said(winners(episodes), END)
    assert isfinite(found["loss"])


def test_output_that_spells_the_end_of_a_turn_ends_one_for_trl_and_not_in_the_exact_stream(
    told: Told, episodes: list[Episode]
) -> None:
    found = told["failures"]
    losers = [episode for episode in episodes if not episode.verdict.passed]
    (end,) = {stream[-1] for stream in streams(losers)}
    assert [stream.count(end) for stream in streams(losers)] == [10, 10]
    assert [ids.count(end) for ids in found["ids"]] == [10, 11]


def test_trls_dpo_counts_observations_in_its_loss(told: Told) -> None:
    found = told["dpo"]
    sides = zip(found["prompt"], found["chosen"], found["rejected"], strict=True)
    for words, (prompt, (chosen,), (rejected,)) in zip(TASKS.values(), sides, strict=True):
        assert "Task: do org/" in prompt and words.look not in prompt
        for text, turns in ((chosen, words.winner()), (rejected, words.loser())):
            assert text.startswith(words.look)
            assert all(one in text and (shown or "") in text for one, shown in turns)
    # Before the first step the model is its own reference.
    assert found["loss"] == pytest.approx(log(2), abs=1e-4)


def test_trls_dpo_begins_after_the_shared_prompt_of_a_first_divergence(told: Told) -> None:
    found = told["later"]
    sides = zip(found["prompt"], found["chosen"], found["rejected"], strict=True)
    for words, (prompt, (chosen,), (rejected,)) in zip(TASKS.values(), sides, strict=True):
        assert words.look in prompt and words.shown in prompt
        assert chosen.startswith(words.right) and rejected.startswith(words.wrong)


def test_trls_kto_reads_every_trajectory_with_its_label(told: Told) -> None:
    found = told["kto"]
    assert found["labels"] == [True, False, True, False]
    for words, good, bad in zip(
        TASKS.values(), found["completion"][::2], found["completion"][1::2], strict=True
    ):
        assert good.startswith(words.look) and bad.startswith(words.look)
        assert words.wrong not in good and words.wrong in bad
    assert isfinite(found["loss"])
