"""Our exact format: a trajectory as the token streams that the server saw, and what it was worth.

Rules: the bytes of token ids and log-probabilities are the stored ones, never decoded, encoded or
rendered again. A record says itself what it is (`kind`, `schema`), so no reader takes it for an
`Episode` or the other way round. No text: whoever wants words reads another format.

The token that ends a turn belongs to the turn if the policy sampled it: then the turn's span holds
it. A sample that was cut before that token gets it from the next prompt; the policy did not sample
it, and no span holds it.

`docs/reference/exact.md` is the format.
"""

import hashlib
import json
from typing import Final

from headrace.preferences.pair import Pair, Pairing
from headrace.preferences.phi import turn_weights
from headrace.types import Episode, Record, Segment, StopReason, TestOutcome

EXACT_SCHEMA: Final = 1


class ExactEpisode(Record, frozen=True, kw_only=True, tag_field="kind", tag="episode"):
    """One trajectory."""

    schema: int = EXACT_SCHEMA
    id: str
    """Of the episode in its run."""
    task: str
    task_digest: str
    category: str | None = None
    group: str
    """Equal: attempts of one policy and one model at one task (see `group_of`)."""
    sample: int
    """Position in the group."""
    reward: float | None
    pass_ratio: float | None
    """Share of the counted tests that passed; None without tests."""
    tests: tuple[TestOutcome, ...]
    policy: str
    policy_version: str
    run: str
    """Id of the run."""
    model: str | None
    """As the run was given it: the tokenizer that the ids are of."""
    stop_reason: StopReason
    turns: int
    """The policy's turns, those without a token included."""
    segments: tuple[Segment, ...]
    """The streams as stored: one for each context. A span is a turn's tokens, and 1 in the loss
    mask; all other tokens are 0 there."""
    weights: tuple[float, ...] | None = None
    """The DMPO weight of each turn, as many as `turns`; None unless they were asked for."""


class ExactPair(Record, frozen=True, kw_only=True, tag_field="kind", tag="pair"):
    """A preference pair; the weights of both sides count from `pair.start`."""

    schema: int = EXACT_SCHEMA
    pair: Pair
    chosen: ExactEpisode
    rejected: ExactEpisode


Exact = ExactEpisode | ExactPair


def exact_episode(
    episode: Episode, *, run: str, model: str | None, gamma: float | None = None, start: int = 0
) -> ExactEpisode:
    """The record of an episode of `run`. With `gamma` it has DMPO weights, from turn `start` on."""
    turns = len(episode.turns)
    return ExactEpisode(
        id=episode.id,
        task=episode.task,
        task_digest=episode.task_digest,
        category=episode.category,
        group=group_of(episode.task_digest, episode.policy_version, model),
        sample=episode.sample,
        reward=episode.verdict.reward,
        pass_ratio=episode.verdict.pass_ratio,
        tests=episode.verdict.tests,
        policy=episode.policy,
        policy_version=episode.policy_version,
        run=run,
        model=model,
        stop_reason=episode.stop_reason,
        turns=turns,
        segments=streams_of(episode),
        weights=None if gamma is None else turn_weights(turns, gamma, start=start),
    )


def exact_pair(
    pairing: Pairing, *, models: dict[str, str | None], gamma: float | None = None
) -> ExactPair:
    """The record of a pair. `models`: by id of the run."""
    pair, start = pairing.pair, pairing.pair.start
    chosen, rejected = (
        exact_episode(episode, run=side.run, model=models[side.run], gamma=gamma, start=start)
        for side, episode in ((pair.chosen, pairing.chosen), (pair.rejected, pairing.rejected))
    )
    return ExactPair(pair=pair, chosen=chosen, rejected=rejected)


def streams_of(episode: Episode) -> tuple[Segment, ...]:
    """The streams that have tokens; of an episode without its hints (`hints.py`) none has."""
    return tuple(segment for segment in episode.segments if segment.token_ids)


def group_of(task_digest: str, policy_version: str, model: str | None) -> str:
    """Identity of the attempts that are compared with each other: 16 hexadecimal digits."""
    identity = json.dumps([task_digest, policy_version, model]).encode()
    return hashlib.sha256(identity).hexdigest()[:16]
