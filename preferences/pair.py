"""A preference pair: two attempts at one task, the better one first, and the rule that paired them.

Rule: data only. A pair names its episodes; `Pairing` brings their records.
"""

from typing import NamedTuple

from headrace.types import Episode, Record

PAIR_SCHEMA = 1


class Side(Record, frozen=True, kw_only=True):
    """One of the two attempts."""

    episode: str
    run: str
    """Id of its run."""
    sample: int
    policy_version: str
    reward: float | None
    pass_ratio: float | None
    score: float
    """What the rule compared."""
    turns: int
    sampled_tokens: int
    stop_reason: str


class Divergence(Record, frozen=True, kw_only=True):
    """Where two trajectories part."""

    turn: int
    """The first turn whose sample differs; the number of turns of the shorter one if none does."""
    tokens: int
    """Length of the longest shared token prefix, exactly; 0 without tokens."""
    in_observation: bool
    """They were shown different things after the same actions: `turn` has no shared prompt."""


class Pair(Record, frozen=True, kw_only=True):
    """What is known of a pair without its trajectories."""

    schema: int = PAIR_SCHEMA
    id: str
    """Digest of both episodes and the rule."""
    task: str
    task_digest: str
    rule: str
    """Name of the rule; `made.json` beside the pairs holds its values."""
    score: str
    """`reward` or `pass_ratio`: what was compared."""
    margin: float
    chosen: Side
    rejected: Side
    tie: bool = False
    """Equal scores; the one that sampled less is the chosen one."""
    off_policy: bool = False
    """The two are of different policies."""
    start: int = 0
    """The turn the pair begins with; what is before it is the shared prompt."""
    divergence: Divergence


class Pairing(NamedTuple):
    """A pair with its records."""

    pair: Pair
    chosen: Episode
    rejected: Episode
