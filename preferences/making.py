"""What both orchestrators, of pairs and of selections, do before the first row.

Rule: nothing here reads a record.
"""

from collections.abc import Callable
from pathlib import Path

from headrace.errors import RunFolderError
from headrace.preferences.formats.base import Context, PairFormat, TrajectoryFormat
from headrace.preferences.source import Source, model_of

OnProgress = Callable[[str, int, int | None], None]
"""What is done (`read` or `paired`), how many so far, and of how many where that is known."""


def silent(what: str, done: int, of: int | None) -> None:
    """An `OnProgress` for callers who do not watch."""


def context(out: Path, source: Source, gamma: float | None) -> Context:
    """What a format's writer may know of the whole."""
    return Context(
        name=out.absolute().name,
        models=tuple(model_of(manifest) for manifest in source.manifests),
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
