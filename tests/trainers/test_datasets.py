"""What the newest `datasets` reads in our folders."""

from array import array
from typing import Any

import pytest
from tests.trainers.conftest import Ask, Export, Told

from headrace.types import Episode

pytestmark = [pytest.mark.trainers, pytest.mark.timeout(180)]


@pytest.fixture(scope="module")
def told(ask: Ask, export: Export) -> Told:
    """What is in the folders."""
    folders = {
        "exact": export("export", "datasets", "--select", "sft"),
        "weighted": export("pairs", "datasets", "--gamma", "1"),
        "parquet": export("export", "parquet", "--select", "sft"),
        "trajectories": export("export", "trl"),
        "pairs": export("pairs", "trl"),
    }
    questions = {name: ("folder", folder) for name, folder in folders.items()}
    return ask("datasets", "loads_datasets.py", questions)


def test_datasets_loads_the_exact_folder_and_its_tokens_equal_the_stored(
    told: Told, episodes: list[Episode]
) -> None:
    stored = {episode.id: episode for episode in episodes}
    rows = [row for split in told["exact"].values() for row in split]
    assert {row["id"] for row in rows} == set(stored)
    for row in rows:
        same(row, "", stored[row["id"]])
        assert bytes(row["loss_mask"]) == stored[row["id"]].segments[0].loss_mask()
    rewards = {name: {row["reward"] for row in rows} for name, rows in told["exact"].items()}
    assert rewards == {"train": {1.0}, "failures": {0.0}}


def test_datasets_loads_exact_pairs_with_their_weights(told: Told, episodes: list[Episode]) -> None:
    stored = {episode.id: episode for episode in episodes}
    (rows,) = told["weighted"].values()
    assert len(rows) == 2
    for row in rows:
        for side in ("chosen_", "rejected_"):
            episode = stored[row[f"{side}id"]]
            same(row, side, episode)
            spans = episode.segments[0].spans
            weights = row[f"{side}token_weights"]
            assert weights[spans[0].start] == 1.0
            assert weights[spans[-1].end - 1] == pytest.approx(1 / len(spans))


def test_datasets_loads_parquet(told: Told, episodes: list[Episode]) -> None:
    stored = {episode.id: episode for episode in episodes}
    assert counts(told["parquet"]) == {"train": 2, "failures": 2}
    for row in told["parquet"]["train"]:
        episode = stored[row["id"]]
        assert [m["content"] for m in row["messages"][1::2]] == [t.text for t in episode.turns]
        same(row, "", episode)


def test_datasets_loads_a_folder_of_json_lines_by_its_card(told: Told) -> None:
    assert counts(told["trajectories"]) == {"train": 2, "failures": 2}
    assert counts(told["pairs"]) == {"train": 2}


def counts(splits: dict[str, list[Any]]) -> dict[str, int]:
    """Rows of each split."""
    return {name: len(rows) for name, rows in splits.items()}


def same(row: dict[str, Any], side: str, episode: Episode) -> None:
    """The columns of a side are the stored bytes."""
    (segment,) = episode.segments
    assert array("I", row[f"{side}token_ids"]).tobytes() == segment.token_ids
    assert array("f", row[f"{side}logprobs"]).tobytes() == segment.logprobs
