"""What the rows of the text formats are made of.

Rules: text is the stored text, whole and unchanged; nothing is rendered. A dialogue begins with
what the policy was shown, alternates, and ends with the policy's own words: what it was shown
after its last turn is left out. No system message is invented. All messages of a format have the
same keys, and no value is null: `datasets` infers one type for a column from its first megabytes.

A context in which the policy never said a word becomes no row. An empty answer among others stays,
for it is what happened.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from headrace.preferences.conversation import Conversation, Said, conversations
from headrace.preferences.formats.base import Row, Selected
from headrace.preferences.pair import Pairing


class Sides(NamedTuple):
    """The two conversations of a pair; both go on after turn `start` of the policy's."""

    start: int
    chosen: Conversation
    rejected: Conversation


def spoken(item: Selected) -> Iterator[tuple[Row, Conversation]]:
    """Each conversation of a trajectory, with what a row says of it beside its messages.

    The id is the episode's; of several contexts each has `#n` after it.
    """
    episode = item.episode
    found = conversations(episode)
    for one in found:
        if not any(said.text for said in one.said):
            continue
        row: Row = {
            "id": episode.id if len(found) == 1 else f"{episode.id}#{one.number}",
            "task": episode.task,
            # What a verifier left unreadable counts as not solved, as in every rate.
            "reward": float(episode.verdict.reward or 0.0),
        }
        if item.scores:
            row["scores"] = {name: float(score) for name, score in item.scores.items()}
        yield row, one


def sides(pairing: Pairing) -> Sides | None:
    """The two sides of a pair; None where they do not differ in text after its start."""
    found = conversations(pairing.chosen), conversations(pairing.rejected)
    if not len(found[0]) == len(found[1]) == 1:
        return None
    start, (chosen,), (rejected,) = pairing.pair.start, *found
    if not start < min(len(chosen.said), len(rejected.said)):
        return None
    if chosen.said[start:] == rejected.said[start:]:
        return None
    return Sides(start, chosen, rejected)


def prompt(given: Sides) -> list[dict[str, str]] | None:
    """The messages up to the first answer that the pair is about; None if they are not shared."""
    before, other = (side.said[: given.start + 1] for side in (given.chosen, given.rejected))
    shared = all(a.shown == b.shown for a, b in zip(before, other, strict=True)) and all(
        a.text == b.text for a, b in zip(before[:-1], other[:-1], strict=True)
    )
    if not shared:
        return None
    messages = given.chosen.messages(0, given.start)
    messages.append({"role": "user", "content": before[-1].shown})
    return messages


def answers(given: Sides) -> tuple[str, str] | None:
    """The chosen and the rejected answer at the start of a pair; None if they are one text."""
    chosen, rejected = given.chosen.said[given.start].text, given.rejected.said[given.start].text
    return None if chosen == rejected else (chosen, rejected)


def about(pairing: Pairing) -> Row:
    """What a row says of a pair beside its messages.

    Not `margin`: reward trainers would subtract it in their loss.
    """
    pair = pairing.pair
    return {
        "id": pair.id,
        "task": pair.task,
        "score_chosen": float(pair.chosen.score),
        "score_rejected": float(pair.rejected.score),
    }


def sharegpt(said: Sequence[Said]) -> list[dict[str, str]]:
    """Turns as ShareGPT messages."""
    out: list[dict[str, str]] = []
    for one in said:
        out.append({"from": "human", "value": one.shown})
        out.append({"from": "gpt", "value": one.text})
    return out
