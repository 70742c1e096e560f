"""One attempt after another through the filters of a selection: its split, or why it is left out.

Rules: the filters are asked in one order, and the first that leaves an attempt out has it; what the
others would have done is counted beside. A near-duplicate is one of something that was kept, so
that is asked last. It reads no run and writes no file.
"""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Final, NamedTuple

from headrace.engine.run_folder import RunManifest
from headrace.preferences.attempt import Attempt
from headrace.preferences.duplicates import Duplicates
from headrace.preferences.filters import NOT_SOLVED, Seen, Selection, faults, informative
from headrace.preferences.formats.base import FAILURES, TRAIN, Selected
from headrace.preferences.hints import has_hints, without_hints
from headrace.preferences.overlap import Overlap
from headrace.preferences.scores import scores
from headrace.preferences.splits import split_of
from headrace.types import Episode

OVERLAP: Final = "overlap"
DUPLICATE: Final = "duplicate"
HINTED: Final = "hinted"
NO_TOKENS: Final = "no_tokens"


class Wants(NamedTuple):
    """What the format of the data asks of a trajectory."""

    tokens: bool
    """Without a token stream it cannot be written."""
    writes_tokens: bool
    """Where there are tokens they are written, so a hint cannot be taken out."""


class Kept(NamedTuple):
    """A trajectory that came through."""

    split: str
    item: Selected


class Sieve:
    """The filters of one selection, and what they have seen."""

    def __init__(
        self,
        selection: Selection,
        wants: Wants,
        *,
        call_tokens: Sequence[int | None],
        validation: float = 0.0,
        overlap: Overlap | None = None,
    ) -> None:
        """`call_tokens`: by position of the run (see `call_tokens`).

        Raises `UsageError` where the filters need an extra that is not installed.
        """
        self.failed: Counter[str] = Counter()
        """Attempts that each filter would leave out, first or not."""
        self._selection = selection
        self._wants = wants
        self._call_tokens = call_tokens
        self._validation = validation
        self._overlap = overlap if OVERLAP in selection.filters else None
        self._before: dict[bool, Duplicates] = {}
        if DUPLICATE in selection.filters:
            # A failure that looks like a success is not the same thing twice.
            self._before = {one: Duplicates(selection.min_similarity) for one in (True, False)}

    def sift(self, attempt: Attempt, episode: Episode) -> Kept | str:
        """The trajectory as it is to be written, or the name of the filter that leaves it out."""
        selection = self._selection
        hinted = not selection.keep_hints and has_hints(episode, selection.hint_start)
        if not selection.keep_hints:
            episode = without_hints(episode, selection.hint_start, selection.hint_end)
        found = list(self._faults(attempt, episode, hinted=hinted))
        self.failed.update(found)
        split = self._split(attempt, found)
        if split is None:
            return found[0]
        if self._before and self._before[episode.verdict.passed].repeats(episode):
            self.failed[DUPLICATE] += 1
            return DUPLICATE
        found_scores = scores(attempt, episode, costly=selection.scores)
        return Kept(split, Selected(attempt, episode, found_scores))

    def _faults(self, attempt: Attempt, episode: Episode, *, hinted: bool) -> Iterator[str]:
        yield from faults(Seen(attempt, episode, self._call_tokens[attempt.run]), self._selection)
        if hinted and self._wants.writes_tokens and episode.segments:
            yield HINTED
        if self._wants.tokens and not episode.segments:
            yield NO_TOKENS
        if self._overlap is not None:
            said = "\n".join(turn.text for turn in episode.turns)
            shares = (self._overlap.share(text) for text in (episode.instruction, said))
            if any(share > self._selection.max_overlap for share in shares):
                yield OVERLAP

    def _split(self, attempt: Attempt, found: Sequence[str]) -> str | None:
        """Failures are of the tasks that are trained on: whoever adds them adds no other task."""
        split = split_of(attempt.task_digest, self._validation)
        if not found:
            return split
        is_failure = self._selection.failures and list(found) == [NOT_SOLVED]
        if is_failure and split == TRAIN and informative(attempt, self._selection):
            return FAILURES
        return None


def call_tokens(manifest: RunManifest) -> int | None:
    """The most tokens that one call of a run may sample; None where that is not known."""
    policy = manifest.config.get("policy")
    sampling = policy.get("sampling") if isinstance(policy, Mapping) else None
    most = sampling.get("max_tokens") if isinstance(sampling, Mapping) else None
    return most if isinstance(most, int) else None
