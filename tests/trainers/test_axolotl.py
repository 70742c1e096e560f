"""What axolotl's own strategies make of our rows, read as the `axolotl.yml` beside them says."""

from pathlib import Path

import pytest
from tests.trainers.conftest import Ask, Export, Told
from tests.trainers.conversations import END, TASKS, said, streams, winners

from headrace.types import Episode

pytestmark = [pytest.mark.trainers, pytest.mark.timeout(180)]


@pytest.fixture(scope="module")
def told(ask: Ask, export: Export, model: Path) -> Told:
    """axolotl's answers."""
    pairs = export("pairs", "axolotl", "--rule", "first-divergence")
    questions = {
        "sft": ("sft", export("export", "axolotl"), model),
        "dpo": ("dpo", pairs, model),
    }
    return ask("axolotl", "loads_axolotl.py", questions)


def test_axolotl_trains_on_the_policys_words_only(told: Told, episodes: list[Episode]) -> None:
    found = told["sft"]
    # It shuffles before it tokenises.
    assert sorted(found["learned"]) == sorted(said(winners(episodes), END))
    assert sorted(ids[:-1] for ids in found["ids"]) == sorted(streams(winners(episodes)))


def test_axolotl_reads_per_turn_pairs(told: Told) -> None:
    found = told["dpo"]
    rows = sorted(zip(found["chosen"], found["rejected"], found["prompt"], strict=True))
    wanted = sorted(TASKS.values(), key=lambda words: words.right)
    for words, (chosen, rejected, prompt) in zip(wanted, rows, strict=True):
        assert (chosen, rejected) == (words.right + END, words.wrong + END)
        assert words.look in prompt and words.shown in prompt
