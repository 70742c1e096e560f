"""Trajectories out of runs: read once, filter, score, split, write.

Rules: one episode is in memory at a time; the folder is there when it is whole, and not at all when
nothing was selected. Who is let through is decided in `sieve`, what a row looks like in the
formats.
"""

from array import array
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple

import msgspec

from headrace.engine.evaluate import Spread, spread
from headrace.engine.shards import Damage
from headrace.preferences import card
from headrace.preferences.filters import Selection
from headrace.preferences.formats.base import (
    FAILURES,
    TRAIN,
    VALIDATION,
    Selected,
    TrajectoryFormat,
    Writer,
)
from headrace.preferences.inventory import digests, write_made
from headrace.preferences.made import Made, made_from, spelled
from headrace.preferences.making import (
    UNKNOWN_LICENCE,
    Nothing,
    OnProgress,
    context,
    refuse_numbers,
    refuse_place,
    refuse_tokenizers,
    silent,
)
from headrace.preferences.output import replacing
from headrace.preferences.overlap import Overlap
from headrace.preferences.sieve import Sieve, Wants, call_tokens
from headrace.preferences.source import Source, told
from headrace.types import Record

SELECTION_SCHEMA: Final = 1
SELECTION_FILE: Final = "selection.json"
SEVERAL_CONTEXTS: Final = "several_contexts"
NOT_HELD: Final = "not_held"


class SplitTally(Record, frozen=True, kw_only=True):
    """One split of what was written."""

    rows: int
    trajectories: int
    tasks: int
    scores: dict[str, Spread]
    """Of the trajectories, by name of the score."""


class SelectionTally(Record, frozen=True, kw_only=True):
    """What a selection came to: `selection.json`."""

    schema: int = SELECTION_SCHEMA
    selection: dict[str, Any]
    """Every setting with its value, defaults included."""
    attempts: int
    """Read: those that are left out and the trajectories of all splits."""
    left_out: dict[str, int]
    """By the first filter that left them out."""
    failed: dict[str, int]
    """What each filter would leave out, first or not; `not_solved` has the failures too."""
    splits: dict[str, SplitTally]
    """Those with a row."""
    damaged: tuple[str, ...] = ()
    """What could not be read."""

    @property
    def rows(self) -> dict[str, int]:
        """By split."""
        return {name: split.rows for name, split in self.splits.items()}


class Selecting(NamedTuple):
    """What came of it."""

    tally: SelectionTally
    damages: tuple[Damage, ...]

    @property
    def written(self) -> int:
        """Rows. 0: nothing was written."""
        return sum(self.tally.rows.values())


def select(
    runs: Sequence[Path],
    out: Path,
    *,
    selection: Selection,
    format: TrajectoryFormat,
    validation: float = 0.0,
    overwrite: bool = False,
    allow_mixed_policies: bool = False,
    gamma: float | None = None,
    licence: str = UNKNOWN_LICENCE,
    benchmarks: Sequence[Path] = (),
    command: str = "",
    on_progress: OnProgress | None = None,
) -> Selecting:
    """Write the selected trajectories of one or several runs as the folder `out`. Blocking.

    `validation`: the share of the tasks whose trajectories go to the validation split.
    `benchmarks`: folders of tasks or texts that nothing written may overlap with. Without a row
    nothing is written, and what is at `out` stays. Raises `RunFolderError` for runs that do not
    belong together and for an `out` that is in use, `UsageError` for a benchmark without a text,
    a share or discount outside [0, 1] and an extra that is not installed, `StoreError` when the
    disk fails.
    """
    refuse_numbers(validation, gamma)
    source = Source(runs, allow_mixed_policies=allow_mixed_policies)
    refuse_tokenizers(source, format)
    refuse_place(out, runs)
    sieve = Sieve(
        selection,
        Wants(tokens=format.needs_tokens, writes_tokens=format.writes_tokens),
        call_tokens=[call_tokens(manifest) for manifest in source.manifests],
        validation=validation,
        overlap=Overlap(benchmarks, words=selection.overlap_words) if benchmarks else None,
    )
    selecting = _Selecting(source, sieve, selection)
    try:
        with replacing(out, overwrite=overwrite) as folder:
            with format.open(folder, context(source, gamma)) as writer:
                selecting.write(writer, on_progress or silent)
            tally = selecting.tally()
            if not tally.splits:
                raise Nothing
            (folder / SELECTION_FILE).write_bytes(
                msgspec.json.format(msgspec.json.encode(tally), indent=2) + b"\n"
            )
            options = {
                "selection": tally.selection,
                "validation": validation,
                "gamma": gamma,
                "benchmarks": [spelled(path.absolute().name) for path in benchmarks],
            }
            made = _made(
                tally, source, digests(folder), options,
                command=command, format=format.name, licence=licence,
            )  # fmt: skip
            write_made(folder, made)
            card.write(folder, made)
    except Nothing:
        tally = selecting.tally()
    return Selecting(tally, tuple(source.damages))


def _made(
    tally: SelectionTally, source: Source, files: dict[str, str], options: dict[str, Any], *,
    command: str, format: str, licence: str,
) -> Made:  # fmt: skip
    return Made(
        command=spelled(command),
        kind="trajectories",
        format=format,
        runs=made_from(source),
        mixed_policies=source.mixed,
        licence=spelled(licence),
        options=options,
        attempts=tally.attempts,
        left_out=tally.left_out,
        rows=tally.rows,
        files=files,
        damaged=tally.damaged,
    )


class _Selecting:
    """One selection in the making: it counts, and keeps no record."""

    def __init__(self, source: Source, sieve: Sieve, selection: Selection) -> None:
        self._source = source
        self._sieve = sieve
        self._selection = selection
        self._attempts = 0
        self._left_out: Counter[str] = Counter()
        self._splits = {name: _Split() for name in (TRAIN, VALIDATION, FAILURES)}

    def write(self, writer: Writer[Selected], tell: OnProgress) -> None:
        """Read everything once and write what is selected."""
        for attempt, episode in self._source.episodes():
            self._attempts += 1
            found = self._sieve.sift(attempt, episode)
            if isinstance(found, str):
                self._left_out[found] += 1
            elif rows := writer.add(found.split, found.item):
                self._splits[found.split].add(found.item, rows)
            else:
                self._left_out[SEVERAL_CONTEXTS if attempt.contexts > 1 else NOT_HELD] += 1
            tell("read", self._attempts, None)

    def tally(self) -> SelectionTally:
        return SelectionTally(
            selection=self._selection.model_dump(mode="json"),
            attempts=self._attempts,
            left_out=dict(self._left_out.most_common()),
            failed=dict(self._sieve.failed.most_common()),
            splits={name: split.tally() for name, split in self._splits.items() if split.rows},
            damaged=tuple(spelled(told(damage)) for damage in self._source.damages),
        )


class _Split:
    """One split so far, in numbers: eight bytes a score."""

    def __init__(self) -> None:
        self.rows = 0
        self._trajectories = 0
        self._tasks: set[str] = set()
        self._scores: dict[str, array[float]] = {}

    def add(self, item: Selected, rows: int) -> None:
        self.rows += rows
        self._trajectories += 1
        self._tasks.add(item.attempt.task_digest)
        for name, value in item.scores.items():
            self._scores.setdefault(name, array("d")).append(value)

    def tally(self) -> SplitTally:
        spreads = {name: spread(values) for name, values in self._scores.items()}
        return SplitTally(
            rows=self.rows,
            trajectories=self._trajectories,
            tasks=len(self._tasks),
            scores={name: found for name, found in spreads.items() if found is not None},
        )
