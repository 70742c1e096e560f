"""What a run tells whoever watches: frozen records, sent in order from one loop.

Rule: events are for display and tests. Nothing is decided from them, and losing one loses no data.
"""

from collections.abc import Callable

from headrace.types import Record


class RunStarted(Record, frozen=True, kw_only=True, tag=True):
    """The plan is known and the first episode may start."""

    run: str
    planned: int
    """Episodes of the whole plan."""
    skipped: int
    """Of those, already in the run folder."""
    dropped: int = 0
    """Of those, not due: their groups are complete without them."""
    provider: str
    provider_reason: str
    policy: str


class Preparing(Record, frozen=True, kw_only=True, tag=True):
    """Something slow happens before episodes run: images, weights, the model server."""

    what: str
    fraction: float | None = None
    """In [0, 1] where it is known."""


class EpisodeStarted(Record, frozen=True, kw_only=True, tag=True):
    id: str
    task: str
    sample: int


class StageEntered(Record, frozen=True, kw_only=True, tag=True):
    id: str
    stage: str
    """`prepare`, `act`, `verify` or `store`."""


class TurnFinished(Record, frozen=True, kw_only=True, tag=True):
    id: str
    sampled_tokens: int


class EpisodeRetried(Record, frozen=True, kw_only=True, tag=True):
    """The infrastructure failed; the episode goes back to the queue."""

    id: str
    error: str


class EpisodeFinished(Record, frozen=True, kw_only=True, tag=True):
    """The episode is durable."""

    id: str
    task: str
    sample: int
    reward: float | None
    fault: str | None
    stop_reason: str
    tries: int
    failure: str = ""
    """What failed, when the infrastructure did."""


class EpisodeDropped(Record, frozen=True, kw_only=True, tag=True):
    """Its group is complete without it: no record, and not owed."""

    id: str
    task: str
    sample: int


class Note(Record, frozen=True, kw_only=True, tag=True):
    """A line the user should see once."""

    text: str


class Stopping(Record, frozen=True, kw_only=True, tag=True):
    mode: str
    """`finishing`: no new episodes, a grace period for the others; `cancelling`: at once."""
    reason: str


class RunFinished(Record, frozen=True, kw_only=True, tag=True):
    """The last event of every run, however it ended."""

    finished: int
    owed: int


Event = (
    RunStarted
    | Preparing
    | EpisodeStarted
    | StageEntered
    | TurnFinished
    | EpisodeRetried
    | EpisodeFinished
    | EpisodeDropped
    | Note
    | Stopping
    | RunFinished
)
OnEvent = Callable[[Event], None]


def ignore(event: Event) -> None:
    """An `OnEvent` for callers that do not watch."""
