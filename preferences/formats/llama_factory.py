"""Rows for LLaMA-Factory in ShareGPT's words, and the `dataset_info.json` that registers them.

Rule: the names are its defaults (`human` and `gpt`), so nothing has to be mapped. Its preference
stage knows one answer after one shared prompt; a pair becomes the two answers of its first turn.
There is no `system` column: LLaMA-Factory then takes its template's own, and `default_system`
decides.
"""

import json
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Final

from headrace.preferences.formats import rows
from headrace.preferences.formats.base import Context, Row, Selected
from headrace.preferences.formats.described import (
    DescribedPairs,
    DescribedTrajectories,
    Description,
)
from headrace.preferences.pair import Pairing

FILE: Final = "dataset_info.json"


def sft(item: Selected, context: Context) -> Iterator[Row]:
    """One row for each conversation."""
    for row, one in rows.spoken(item):
        row["conversations"] = rows.sharegpt(one.said)
        yield row


def dpo(pairing: Pairing, context: Context) -> Iterator[Row]:
    """One row, or none where the two differ before the turn that the pair begins with."""
    given = rows.sides(pairing)
    both = None if given is None else rows.answers(given)
    if given is None or both is None or rows.prompt(given) is None:
        return
    row = rows.about(pairing)
    conversation = rows.sharegpt(given.chosen.said[: given.start + 1])
    row["conversations"] = conversation[:-1]  # without the answer
    row["chosen"], row["rejected"] = ({"from": "gpt", "value": text} for text in both)
    yield row


def _info(entry: dict[str, Any]) -> Callable[[Sequence[str]], str]:
    def text(splits: Sequence[str]) -> str:
        info = {split: {"file_name": f"{split}.jsonl"} | entry for split in splits}
        return json.dumps(info, indent=2) + "\n"

    return text


_DIALOGUES: Final = {"formatting": "sharegpt", "columns": {"messages": "conversations"}}
_RANKED: Final = {
    "ranking": True,
    "formatting": "sharegpt",
    "columns": {"messages": "conversations", "chosen": "chosen", "rejected": "rejected"},
}

SFT: Final = DescribedTrajectories(
    "llama-factory",
    "LLaMA-Factory's `sft`: ShareGPT `conversations` and dataset_info.json",
    sft,
    Description(FILE, _info(_DIALOGUES)),
)
DPO: Final = DescribedPairs(
    "llama-factory",
    "LLaMA-Factory's `dpo`: `conversations`, and the two answers of one turn",
    dpo,
    Description(FILE, _info(_RANKED)),
    needs_shared_prompt=True,
)
