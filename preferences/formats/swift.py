"""Rows for ms-swift: `messages`, and `rejected_messages` of a pair, with a loss for each answer.

Rule: `loss` is on every message, for ms-swift's own default in preference training is the last
answer alone. An answer that could not be read as an action, or is empty, has none when a
trajectory is imitated; of a pair, every answer from its start on has one.

`loss_scale` has the DMPO weight of each answer where a discount was given. ms-swift's own trainers
do not multiply a preference loss by it; one that does is the user's to write (what its template
makes of the weights: `docs/reference/exports.md`).
"""

from collections.abc import Iterator
from typing import Any, Final

from headrace.preferences.conversation import Conversation
from headrace.preferences.formats import rows
from headrace.preferences.formats.base import (
    Context,
    JsonPairs,
    JsonTrajectories,
    Row,
    Selected,
)
from headrace.preferences.pair import Pairing
from headrace.preferences.phi import turn_weights


def sft(item: Selected, context: Context) -> Iterator[Row]:
    """One row for each conversation."""
    turns = item.episode.turns
    for row, one in rows.spoken(item):
        messages: list[dict[str, Any]] = []
        for said in one.said:
            read = bool(said.text) and not turns[said.turn].problems
            messages.append({"role": "user", "content": said.shown, "loss": False})
            messages.append({"role": "assistant", "content": said.text, "loss": read})
        row["messages"] = messages
        yield row


def rlhf(pairing: Pairing, context: Context) -> Iterator[Row]:
    """One row. The two sides need no common prompt."""
    given = rows.sides(pairing)
    if given is None:
        return
    row = rows.about(pairing)
    row["messages"] = _side(given.chosen, given.start, context.gamma)
    row["rejected_messages"] = _side(given.rejected, given.start, context.gamma)
    yield row


def _side(one: Conversation, start: int, gamma: float | None) -> list[dict[str, Any]]:
    messages: list[dict[str, Any]] = []
    for position, said in enumerate(one.said):
        messages.append({"role": "user", "content": said.shown, "loss": False})
        messages.append({"role": "assistant", "content": said.text, "loss": position >= start})
    if gamma is not None:
        weights = turn_weights(len(one.said), gamma, start=start)
        for shown, answer, weight in zip(messages[::2], messages[1::2], weights, strict=True):
            shown["loss_scale"], answer["loss_scale"] = 0.0, weight
    return messages


SFT: Final = JsonTrajectories("ms-swift", "ms-swift's `sft`: `messages` with `loss`", sft)
RLHF: Final = JsonPairs(
    "ms-swift", "ms-swift's `rlhf`: `messages` and `rejected_messages` with `loss`", rlhf
)
