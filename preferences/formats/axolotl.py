"""Rows for axolotl, and `axolotl.yml`, the part of its configuration that reads them.

Rule: the columns are its defaults, so the configuration maps nothing. Its preference strategy
takes one answer after a shared prompt, and cuts it out of a rendered dialogue by searching for its
text: an empty answer would be the whole dialogue, so such a pair is not written.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Final

from headrace.preferences.formats import rows
from headrace.preferences.formats.base import TRAIN, VALIDATION, Context, Row, Selected
from headrace.preferences.formats.described import (
    DescribedPairs,
    DescribedTrajectories,
    Description,
)
from headrace.preferences.pair import Pairing

FILE: Final = "axolotl.yml"
_HEAD: Final = """\
# Add base_model, sequence_len (longer rows are dropped) and how to train; then start axolotl in
# this folder, for the paths below are relative to where it is started.
"""


def sft(item: Selected, context: Context) -> Iterator[Row]:
    """One row for each conversation."""
    for row, one in rows.spoken(item):
        row["messages"] = one.messages()
        yield row


def dpo(pairing: Pairing, context: Context) -> Iterator[Row]:
    """One row; none where the two differ before its first turn, or an answer there is empty."""
    given = rows.sides(pairing)
    both = None if given is None else rows.answers(given)
    prompt = None if given is None else rows.prompt(given)
    if both is None or prompt is None or not all(both):
        return
    row = rows.about(pairing)
    row["messages"] = prompt
    row["chosen"], row["rejected"] = ({"role": "assistant", "content": text} for text in both)
    yield row


def _config(strategy: str, *, first: str = "") -> Callable[[Sequence[str]], str]:
    def text(splits: Sequence[str]) -> str:
        given = [("datasets", TRAIN), ("test_datasets", VALIDATION)]
        parts = [_dataset(key, split, strategy) for key, split in given if split in splits]
        return _HEAD + first + "".join(parts)

    return text


def _dataset(key: str, split: str, strategy: str) -> str:
    # `split` is of the file, whose only one is called train, whatever it holds.
    return (
        f"{key}:\n  - path: {split}.jsonl\n    ds_type: json\n    split: train\n"
        f"    type: {strategy}\n"
    )


SFT: Final = DescribedTrajectories(
    "axolotl",
    "axolotl's `chat_template`: `messages` and axolotl.yml",
    sft,
    Description(FILE, _config("chat_template")),
)
DPO: Final = DescribedPairs(
    "axolotl",
    "axolotl's `rl: dpo`: `messages`, and the two answers of one turn",
    dpo,
    Description(FILE, _config("chat_template.default", first="rl: dpo\n")),
    needs_shared_prompt=True,
)
