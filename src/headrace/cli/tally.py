"""Folds a run's events into counts and rates.

Rule: pure. `now_s` is an argument, nothing is printed here, and every count is kept as a plain
number, so that another thread may read it at any time.
"""

from collections import Counter, deque
from dataclasses import dataclass

from headrace.engine.events import (
    EpisodeDropped,
    EpisodeFinished,
    EpisodeRetried,
    EpisodeStarted,
    Event,
    Preparing,
    RunFinished,
    RunStarted,
    StageEntered,
    Stopping,
    TurnFinished,
)

WINDOW_S = 15.0
"""Rates are over this much of the past: long enough to be steady, short enough to show a stall."""


@dataclass(frozen=True, kw_only=True)
class Rates:
    """What happens per second."""

    turns_s: float
    tokens_s: float
    episodes_s: float


class Tally:
    """Counts of one run so far."""

    def __init__(self, now_s: float) -> None:
        self.started_s = now_s
        self.began_s: float | None = None
        """When the first episode started: images, weights and server are behind it."""
        self.planned = 0
        self.skipped = 0
        self.finished = 0
        self.passed = 0
        self.failed = 0
        self.infra_failures = 0
        self.retried = 0
        self.dropped = 0
        self.turns = 0
        self.tokens = 0
        self.preparing: Preparing | None = None
        self.stopping: Stopping | None = None
        self._stages: dict[str, str] = {}
        self._in_stage: Counter[str] = Counter()
        self._marks: deque[tuple[float, int, int, int]] = deque([(now_s, 0, 0, 0)])

    @property
    def live(self) -> int:
        return len(self._stages)

    @property
    def starting(self) -> int:
        return self._in_stage["prepare"]

    @property
    def acting(self) -> int:
        return self._in_stage["act"]

    @property
    def verifying(self) -> int:
        return self._in_stage["verify"]

    @property
    def done(self) -> int:
        """Episodes of the plan that are in the run folder."""
        return self.skipped + self.finished

    @property
    def pass_rate(self) -> float | None:
        """Share of the episodes with a verdict that passed; infrastructure failures have none."""
        scored = self.passed + self.failed
        return self.passed / scored if scored else None

    def add(self, event: Event, now_s: float) -> None:
        """Take one event into account."""
        match event:
            case RunStarted():
                self.planned, self.skipped = event.planned, event.skipped
                self.dropped = event.dropped
                self.preparing = None
            case Preparing():
                self.preparing = event if event.fraction is None or event.fraction < 1 else None
            case EpisodeStarted():
                self._enter(event.id, "prepare")
                self.preparing = None
                self.began_s = now_s if self.began_s is None else self.began_s
            case StageEntered():
                self._enter(event.id, event.stage)
            case TurnFinished():
                self.turns += 1
                self.tokens += event.sampled_tokens
            case EpisodeRetried():
                self.retried += 1
                self._leave(event.id)
            case EpisodeFinished():
                self._leave(event.id)
                self._finish(event)
            case EpisodeDropped():
                self._leave(event.id)
                self.dropped += 1
            case Stopping():
                self.stopping = event
            case RunFinished():
                self.preparing = None
        self._mark(now_s)

    def rates(self, now_s: float) -> Rates:
        """Rates over the last `WINDOW_S` seconds."""
        recent = [mark for mark in tuple(self._marks) if mark[0] >= now_s - WINDOW_S]
        since, turns, tokens, finished = recent[0] if recent else (now_s - WINDOW_S, *self._now())
        return self._rates(now_s - since, turns, tokens, finished)

    def overall(self, now_s: float) -> Rates:
        """Rates since the first episode started."""
        return self._rates(now_s - (self.began_s or now_s), 0, 0, 0)

    def _rates(self, seconds: float, turns: int, tokens: int, finished: int) -> Rates:
        seconds = max(seconds, 1.0)  # a rate over less than a second says nothing
        return Rates(
            turns_s=(self.turns - turns) / seconds,
            tokens_s=(self.tokens - tokens) / seconds,
            episodes_s=(self.finished - finished) / seconds,
        )

    def _now(self) -> tuple[int, int, int]:
        return self.turns, self.tokens, self.finished

    def _mark(self, now_s: float) -> None:
        if now_s - self._marks[-1][0] >= 0.5:
            self._marks.append((now_s, *self._now()))
        while len(self._marks) > 1 and self._marks[0][0] < now_s - WINDOW_S:
            self._marks.popleft()

    def _finish(self, event: EpisodeFinished) -> None:
        self.finished += 1
        if event.reward is None and event.fault != "verifier":
            self.infra_failures += 1
        elif event.reward is not None and event.reward >= 1.0:
            self.passed += 1
        else:
            self.failed += 1

    def _enter(self, id: str, stage: str) -> None:
        self._leave(id)
        self._stages[id] = stage
        self._in_stage[stage] += 1

    def _leave(self, id: str) -> None:
        stage = self._stages.pop(id, None)
        if stage is not None:
            self._in_stage[stage] -= 1
