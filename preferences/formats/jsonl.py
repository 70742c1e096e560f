"""JSON lines with everything: the records as `headrace shards cat` prints them.

Rule: nothing is lost (see `engine.export`). A line of a pair is the pair and both episodes.
"""

from collections.abc import Iterator

from headrace.engine.export import readable_record
from headrace.preferences.formats.base import (
    Context,
    JsonPairs,
    JsonTrajectories,
    Row,
    Selected,
)
from headrace.preferences.pair import Pairing


def _pair(pairing: Pairing, context: Context) -> Iterator[Row]:
    yield {
        "pair": pairing.pair,
        "chosen": readable_record(pairing.chosen),
        "rejected": readable_record(pairing.rejected),
    }


def _episode(selected: Selected, context: Context) -> Iterator[Row]:
    row = readable_record(selected.episode)
    if selected.scores:
        row["scores"] = dict(selected.scores)
    yield row


PAIRS = JsonPairs(
    name="jsonl",
    about="JSON lines: the pair and both whole records.",
    rows=_pair,
)
EPISODES = JsonTrajectories(
    name="jsonl",
    about="JSON lines: the whole record.",
    writes_tokens=True,
    rows=_episode,
)
