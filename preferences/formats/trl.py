"""Rows for TRL: `messages` for its SFTTrainer, `prompt`, `chosen`, `rejected` for its DPOTrainer.

Rule: the columns are TRL's own; the others (`id`, `task`, ...) are dropped by its trainers. The
chosen and the rejected part of a pair are whole rests of trajectories, observations included: TRL
takes the loss over all of it. Numbers and limits: `docs/reference/exports.md`.
"""

from collections.abc import Iterator
from typing import Final

from headrace.preferences.formats import rows
from headrace.preferences.formats.base import (
    Context,
    JsonPairs,
    JsonTrajectories,
    Row,
    Selected,
)
from headrace.preferences.pair import Pairing


def sft(item: Selected, context: Context) -> Iterator[Row]:
    """One row for each conversation."""
    for row, one in rows.spoken(item):
        row["messages"] = one.messages()
        yield row


def dpo(pairing: Pairing, context: Context) -> Iterator[Row]:
    """One row, or none where the two do not begin with the same prompt."""
    given = rows.sides(pairing)
    prompt = None if given is None else rows.prompt(given)
    if given is None or prompt is None:
        return
    row = rows.about(pairing)
    row["prompt"] = prompt
    row["chosen"] = given.chosen.messages(given.start)[1:]
    row["rejected"] = given.rejected.messages(given.start)[1:]
    yield row


SFT: Final = JsonTrajectories("trl", "TRL's SFTTrainer: `messages`", sft)
DPO: Final = JsonPairs("trl", "TRL's DPOTrainer: `prompt`, `chosen`, `rejected`", dpo)
