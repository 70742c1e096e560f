"""Rows for TRL's KTOTrainer: each trajectory alone, with whether it solved its task.

Rule: `label` is the verdict and nothing else. Failures of a selection are in a file of their own;
KTO needs both. `docs/reference/exports.md` says what other trainers want.
"""

from collections.abc import Iterator
from typing import Final

from headrace.preferences.formats import rows
from headrace.preferences.formats.base import Context, JsonTrajectories, Row, Selected


def kto(item: Selected, context: Context) -> Iterator[Row]:
    """One row for each conversation."""
    for row, one in rows.spoken(item):
        first, *rest = one.messages()
        row["prompt"] = [first]
        row["completion"] = rest
        row["label"] = item.episode.verdict.passed
        yield row


KTO: Final = JsonTrajectories("kto", "TRL's KTOTrainer: `prompt`, `completion`, `label`", kto)
