"""What both orchestrators, of pairs and of selections, do before the first row.

Rule: nothing here reads a record.
"""

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

from headrace.errors import RunFolderError, UsageError
from headrace.preferences.formats.base import Context, PairFormat, TrajectoryFormat
from headrace.preferences.phi import check_gamma
from headrace.preferences.source import Source, model_name

UNKNOWN_LICENCE: Final = "unknown"

OnProgress = Callable[[str, int, int | None], None]
"""What is done (`read` or `paired`), how many so far, and of how many where that is known."""


class Nothing(Exception):
    """Leaves the new folder, so that nothing becomes of it."""


def silent(what: str, done: int, of: int | None) -> None:
    """An `OnProgress` for callers who do not watch."""


def context(source: Source, gamma: float | None) -> Context:
    """What a format's writer may know of the whole."""
    return Context(
        models=tuple(model_name(manifest) for manifest in source.manifests),
        runs=tuple(manifest.run for manifest in source.manifests),
        gamma=gamma,
    )


def refuse_tokenizers(source: Source, format: PairFormat | TrajectoryFormat) -> None:
    """Ids of two tokenizers are not one language. Raises `RunFolderError`."""
    if format.needs_tokens and len(source.tokenizers) > 1:
        raise RunFolderError(
            f"expected runs of one tokenizer, for {format.name} is made of tokens; found"
            f" {', '.join(source.tokenizers)}. Give runs of one model, or a format of text such as"
            " trl"
        )


def refuse_numbers(validation: float, gamma: float | None) -> None:
    """Raises `UsageError` for what is no share and no discount."""
    if not 0.0 <= validation <= 1.0:
        raise UsageError(f"expected a share from 0 to 1 for validation, found {validation}")
    if gamma is not None:
        check_gamma(gamma)


def refuse_place(out: Path, runs: Sequence[Path]) -> None:
    """To overwrite a run with its data would lose it. Raises `RunFolderError`."""
    place = Path(os.path.realpath(out))
    for run in runs:
        stored = Path(os.path.realpath(run))
        if place in (stored, *stored.parents):
            raise RunFolderError(f"{out} holds the run {run}; give another folder with --out")
