"""What a folder of data was made from, and how: `made.json` beside the rows, and the data card.

Rule: data only, and everything that another person needs to make the same files again.
"""

from typing import Any

import headrace
from headrace.engine.evaluation_report import digest_of
from headrace.engine.run_folder import RunManifest
from headrace.preferences.source import Source, model_name
from headrace.types import Record

MADE_SCHEMA = 1
MADE_FILE = "made.json"


class MadeFrom(Record, frozen=True, kw_only=True):
    """One run."""

    run: str
    created: str
    headrace: str
    policy: str
    policy_version: str
    model: str | None
    tasks: int
    tasks_digest: str
    config_digest: str


class Made(Record, frozen=True, kw_only=True):
    """`made.json`."""

    schema: int = MADE_SCHEMA
    headrace: str = headrace.__version__
    command: str
    """As it was given, with the folders' names and not their places."""
    kind: str
    """`pairs` or `trajectories`."""
    format: str
    runs: tuple[MadeFrom, ...]
    mixed_policies: bool
    licence: str
    """As the caller says, an SPDX name; `unknown` where nobody said."""
    options: dict[str, Any]
    """The rules or the filters, resolved: every value, defaults included."""
    attempts: int
    """Read."""
    left_out: dict[str, int]
    """By reason."""
    rows: dict[str, int]
    """Written, by split."""
    files: dict[str, str] = {}
    """sha256 of each file, by name; without this one and the card."""
    damaged: tuple[str, ...] = ()


def spelled(text: str) -> str:
    """`text` as it can be stored: what is not UTF-8, as in the name of a folder, is spelled out."""
    return text.encode("utf-8", "backslashreplace").decode()


def made_from(source: Source) -> tuple[MadeFrom, ...]:
    """The runs of a source."""
    return tuple(_one(manifest) for manifest in source.manifests)


def _one(manifest: RunManifest) -> MadeFrom:
    return MadeFrom(
        run=manifest.run,
        created=manifest.created,
        headrace=manifest.headrace,
        policy=manifest.policy,
        policy_version=manifest.policy_version,
        model=model_name(manifest),
        tasks=len(manifest.tasks),
        tasks_digest=digest_of(manifest.tasks),
        config_digest=manifest.config_digest,
    )
