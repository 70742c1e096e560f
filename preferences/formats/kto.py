"""Rows for TRL's KTOTrainer: each trajectory alone, with whether it solved its task.

Rule: `label` is the verdict and nothing else. KTO needs successes and failures; the command line
selects both for it. An attempt that does not count (the infrastructure failed it, or it was
cancelled) has no verdict, and is no row. `docs/reference/exports.md` says what other trainers want.
"""

from collections.abc import Iterator
from typing import Final

from headrace.preferences.formats import rows
from headrace.preferences.formats.base import Context, JsonTrajectories, Row, Selected


def kto(item: Selected, context: Context) -> Iterator[Row]:
    """One row for each conversation."""
    if not item.attempt.counted:
        return
    for row, one in rows.spoken(item):
        first, *rest = one.messages()
        row["prompt"] = [first]
        row["completion"] = rest
        row["label"] = item.episode.verdict.passed
        yield row


KTO: Final = JsonTrajectories("kto", "TRL's KTOTrainer: `prompt`, `completion`, `label`", kto)
