"""What only the whole records of a proposed pair can decide: where they part, and what that rules
out.

Rule: pure. A pair whose two sides shall answer one prompt begins at the first turn that differs,
and is none where there is no such prompt.
"""

import hashlib
from collections.abc import Sequence
from typing import Final, NamedTuple

import msgspec

from headrace.preferences.attempt import Attempt
from headrace.preferences.divergence import divergence
from headrace.preferences.pair import Divergence, Pair, Side
from headrace.preferences.pairing import Proposed
from headrace.preferences.rules import Rule
from headrace.types import Episode


class Needs(NamedTuple):
    """What every pair must have, whatever its rule; see `PairFormat`."""

    tokens: bool = False
    shared_prompt: bool = False


NOTHING: Final = Needs()


def where(chosen: Episode, rejected: Episode, *, one_tokenizer: bool = True) -> Divergence:
    """Where the two part. Tokens of two tokenizers say nothing of each other: then, by text."""
    if one_tokenizer and chosen.segments and rejected.segments:
        return divergence(chosen, rejected)
    if _first_shown(chosen) != _first_shown(rejected):
        return Divergence(turn=0, tokens=0, in_observation=True)
    return divergence(_text_only(chosen), _text_only(rejected))


def settle(
    found: Proposed, rule: Rule, at: Divergence, *, runs: Sequence[str], needs: Needs = NOTHING
) -> Pair | str:
    """The pair, or the reason why it is none (see `pairing.REASONS`).

    `at`: from `where`. `runs`: the id of each run, by `Attempt.run`.
    """
    chosen, rejected = found.chosen, found.rejected
    if needs.tokens and not (chosen.tokens and rejected.tokens):
        return "no_tokens"
    if at.turn == chosen.turns == rejected.turns:
        return "identical"
    shared = needs.shared_prompt or rule.kind == "first-divergence"
    if shared and at.in_observation:
        return "diverged_in_observation"
    if shared and at.turn >= min(chosen.turns, rejected.turns):
        return "one_continues_the_other"
    start = at.turn if shared else 0
    return Pair(
        id=_id(found, rule, start, runs),
        task=chosen.task,
        task_digest=chosen.task_digest,
        rule=rule.name,
        score=found.score,
        margin=found.margin,
        chosen=_side(chosen, found.chosen_score, runs),
        rejected=_side(rejected, found.rejected_score, runs),
        tie=found.tie,
        off_policy=chosen.policy_version != rejected.policy_version,
        start=start,
        divergence=at,
    )


def _id(found: Proposed, rule: Rule, start: int, runs: Sequence[str]) -> str:
    """With the runs: two runs of one configuration have attempts of one id."""
    identity = [
        [runs[found.chosen.run], found.chosen.id],
        [runs[found.rejected.run], found.rejected.id],
        rule.name,
        start,
    ]
    return hashlib.sha256(msgspec.json.encode(identity)).hexdigest()[:16]


def _side(one: Attempt, score: float, runs: Sequence[str]) -> Side:
    return Side(
        episode=one.id,
        run=runs[one.run],
        sample=one.sample,
        policy_version=one.policy_version,
        reward=one.reward,
        pass_ratio=one.pass_ratio,
        score=score,
        turns=one.turns,
        sampled_tokens=one.sampled_tokens,
        stop_reason=one.stop_reason.value,
    )


def _first_shown(episode: Episode) -> str:
    return episode.opening or episode.prompt or episode.instruction


def _text_only(episode: Episode) -> Episode:
    return msgspec.structs.replace(episode, segments=())
