"""Pairs out of runs: read once, propose, look at the records of what was proposed, write.

Rules: one record of each side is in memory at a time; the folder is there when it is whole, and
not at all when there is no pair. What makes a pair is decided in `pairing` and `settling`, what a
row looks like in the formats.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any, Final, NamedTuple

import msgspec

from headrace.engine.shards import Damage
from headrace.preferences import card
from headrace.preferences.attempt import Attempt
from headrace.preferences.counting import Counting, attempts_left_out
from headrace.preferences.formats.base import Context, PairFormat
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
from headrace.preferences.pair import Pair, Pairing
from headrace.preferences.pairing import Key, Proposed, groups, key_of, outcomes, propose
from headrace.preferences.rules import Rule
from headrace.preferences.settling import Needs, settle, where
from headrace.preferences.source import Source, model_of, told
from headrace.preferences.splits import split_of
from headrace.preferences.tally import Outcomes, PairsTally

INDEX: Final = "index.jsonl"
"""Every pair without its trajectories, one a line, in the order of the rows."""

Finish = Callable[[PairsTally, Path], None]
"""Writes more into the new folder, such as the report."""


class PairsMade(NamedTuple):
    """What came of it."""

    tally: PairsTally
    written: int
    """Pairs. 0: nothing was written."""
    damages: tuple[Damage, ...]


class _Found(NamedTuple):
    """A proposed pair and the rule that proposes it."""

    two: Proposed
    rule: Rule


def make_pairs(
    runs: Sequence[Path],
    out: Path,
    *,
    rules: Sequence[Rule],
    format: PairFormat,
    overwrite: bool = False,
    allow_mixed_policies: bool = False,
    validation: float = 0.0,
    gamma: float | None = None,
    licence: str = UNKNOWN_LICENCE,
    command: str = "",
    on_progress: OnProgress | None = None,
    finish: Finish | None = None,
) -> PairsMade:
    """Write the pairs of one or several runs of a task set as the folder `out`. Blocking.

    `validation`: the share of the tasks whose pairs go to the validation split. Without a pair
    nothing is written, and what is at `out` stays. Raises `RunFolderError` for runs that do not
    belong together and for an `out` that is in use, `StoreError` when the disk fails.
    `on_progress` is called once for each attempt and each proposed pair.
    """
    refuse_numbers(validation, gamma)
    source = Source(runs, allow_mixed_policies=allow_mixed_policies)
    refuse_tokenizers(source, format)
    refuse_place(out, runs)
    making = _Making(source, rules, format, on_progress or silent)
    given = {"validation": validation, "gamma": gamma, "licence": licence, "command": command}
    try:
        with replacing(out, overwrite=overwrite) as folder:
            making.write(folder, context(source, gamma), validation)
            if not making.written:
                raise Nothing
            tally = making.tally(digests(folder), given)
            write_made(folder, tally.made)
            card.write(folder, tally.made)
            if finish is not None:
                finish(tally, folder)
    except Nothing:
        tally = making.tally({}, given)
    return PairsMade(tally, making.written, tuple(source.damages))


def no_groups(tally: PairsTally) -> bool:
    """Whether no task has a second attempt, so that no rule could make a pair."""
    alone = (counts.get("alone", 0) for counts in tally.left_out_by_rule.values())
    return all(count == tally.groups for count in alone)


class _Making:
    """One set of pairs in the making."""

    def __init__(
        self, source: Source, rules: Sequence[Rule], format: PairFormat, tell: OnProgress
    ) -> None:
        self._counting = Counting(rules)
        self._source = source
        self._rules = rules
        self._format = format
        self._needs = Needs(format.needs_tokens, format.needs_shared_prompt)
        self._tell = tell
        self._runs = tuple(manifest.run for manifest in source.manifests)
        self._attempts = 0
        self._outcomes = Outcomes()
        self._groups = 0

    @property
    def written(self) -> int:
        """Pairs."""
        return sum(self._counting.pairs.values())

    def write(self, folder: Path, context: Context, validation: float) -> None:
        """Rows and index."""
        encoder = msgspec.json.Encoder()
        with (
            (folder / INDEX).open("wb") as index,
            self._format.open(folder, context) as writer,
        ):
            for pairing in self._pairings(self._proposed()):
                pair = pairing.pair
                split = split_of(pair.task_digest, validation)
                rows = writer.add(split, pairing)
                if rows:
                    index.write(encoder.encode(pair) + b"\n")
                    self._counting.add(pair, split, rows)
                else:
                    self._counting.left_out[pair.rule]["format"] += 1

    def tally(self, files: Mapping[str, str], given: Mapping[str, Any]) -> PairsTally:
        """What came of it. `files`: their digests. `given`: what the caller asked for."""
        source, counting = self._source, self._counting
        made = Made(
            command=spelled(given["command"]),
            kind="pairs",
            format=self._format.name,
            runs=made_from(source),
            mixed_policies=source.mixed,
            licence=spelled(given["licence"]),
            options={
                "rules": [rule.model_dump() for rule in self._rules],
                "validation": given["validation"],
                "gamma": given["gamma"],
            },
            attempts=self._attempts,
            left_out=attempts_left_out(counting.left_out),
            rows=dict(counting.rows),
            files=dict(files),
            damaged=tuple(spelled(told(damage)) for damage in source.damages),
        )
        return counting.tally(made, self._outcomes, self._groups)

    def _proposed(self) -> list[_Found]:
        """What the rules propose, so ordered that the records of neighbours lie close."""
        found = groups(self._read(), mixed=self._source.mixed)
        self._outcomes, self._groups = outcomes(found), len(found)
        proposed: list[_Found] = []
        for group in found:
            for rule in self._rules:
                proposal = propose(group, rule)
                proposed += [_Found(two, rule) for two in proposal.pairs]
                self._counting.left_out[rule.name].update(proposal.left_out)
        proposed.sort(key=_place)  # stable: of one pair, the first rule stays first
        return proposed

    def _read(self) -> Iterator[Attempt]:
        for attempt, _ in self._source.episodes():
            self._attempts += 1
            self._tell("read", self._attempts, None)
            yield attempt

    def _pairings(self, proposed: Sequence[_Found]) -> Iterator[Pairing]:
        done = 0
        for _, several in groupby(proposed, key=_place):
            same = list(several)
            yield from self._settled(same)
            done += len(same)
            self._tell("paired", done, len(proposed))

    def _settled(self, same: Sequence[_Found]) -> Iterator[Pairing]:
        """The pairs of two attempts: one for each turn that a rule begins them at."""
        two = same[0].two
        chosen, rejected = self._source.fetch(two.chosen), self._source.fetch(two.rejected)
        models = {model_of(self._source.manifests[one.run]) for one in (two.chosen, two.rejected)}
        at = where(chosen, rejected, one_tokenizer=len(models) == 1)
        starts: set[int] = set()
        for found in same:
            pair = settle(found.two, found.rule, at, runs=self._runs, needs=self._needs)
            if isinstance(pair, Pair) and pair.start in starts:
                pair = "duplicate"
            if isinstance(pair, str):
                self._counting.left_out[found.rule.name][pair] += 1
                continue
            starts.add(pair.start)
            yield Pairing(pair, chosen, rejected)


def _place(found: _Found) -> tuple[Key, Key, Key]:
    chosen, rejected = key_of(found.two.chosen), key_of(found.two.rejected)
    return max(chosen, rejected), chosen, rejected
