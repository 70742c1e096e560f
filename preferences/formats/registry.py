"""The formats by their names on the command line.

Rule: plain tables; a format's module is imported when it is asked for, so that no library of one
format is needed for another.
"""

from collections.abc import Mapping, Sequence
from importlib import import_module
from typing import Any, Final, cast

from headrace.errors import UsageError
from headrace.preferences.formats.base import PairFormat, TrajectoryFormat

_FOLDER = "headrace.preferences.formats."

PAIRS: Mapping[str, str] = {
    "index": "index.PAIRS",
    "jsonl": "jsonl.PAIRS",
    "trl": "trl.DPO",
    "ms-swift": "swift.RLHF",
    "llama-factory": "llama_factory.DPO",
    "axolotl": "axolotl.DPO",
    "exact": "exact.PAIRS",
    "datasets": "datasets.PAIRS",
}
"""Formats of pairs: name to object, below this folder."""

TRAJECTORIES: Mapping[str, str] = {
    "jsonl": "jsonl.EPISODES",
    "trl": "trl.SFT",
    "ms-swift": "swift.SFT",
    "llama-factory": "llama_factory.SFT",
    "axolotl": "axolotl.SFT",
    "kto": "kto.KTO",
    "litecoder": "sharegpt.LITECODER",
    "atif": "atif.ATIF",
    "exact": "exact.EPISODES",
    "datasets": "datasets.EPISODES",
    "parquet": "parquet.EPISODES",
}
"""Formats of single trajectories. `harbor-job` is none: it writes a run, not a selection."""

WEIGHTED_PAIRS: Final = ("exact", "datasets", "ms-swift")
WEIGHTED_TRAJECTORIES: Final = ("exact", "datasets", "parquet")
"""Those that have a place for DMPO weights."""


def pair_format(name: str) -> PairFormat:
    """The format of that name. Raises `UsageError`."""
    return cast(PairFormat, _load(PAIRS, name, "pairs"))


def trajectory_format(name: str) -> TrajectoryFormat:
    """The format of that name. Raises `UsageError`."""
    return cast(TrajectoryFormat, _load(TRAJECTORIES, name, "trajectories"))


def refuse_gamma(name: str, weighted: Sequence[str]) -> None:
    """Raises `UsageError` unless the format has a place for DMPO weights."""
    if name not in weighted:
        raise UsageError(
            f"--gamma: {name} has no place for DMPO weights; leave it out, or take"
            f" {', '.join(weighted[:-1])} or {weighted[-1]}"
        )


def _load(table: Mapping[str, str], name: str, what: str) -> Any:
    if name not in table:
        known = ", ".join(table)
        raise UsageError(f"expected a format of {what} ({known}), found {name!r}")
    module, _, attribute = table[name].rpartition(".")
    return getattr(import_module(_FOLDER + module), attribute)
