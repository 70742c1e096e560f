"""What pairing and selection need of an episode: so small that a hundred thousand fit in memory.

Rule: everything is read from one record; nothing here opens a file.
"""

import hashlib

from headrace.engine.reader import Place
from headrace.engine.resume import is_owed
from headrace.types import Episode, Record, StopReason, Verdict

NO_TESTS = b""


class Attempt(Record, frozen=True, kw_only=True):
    """One counted or uncounted attempt at one task, and where its record lies."""

    run: int
    """Position of the run among those given."""
    place: Place
    id: str
    task: str
    task_digest: str
    category: str | None = None
    sample: int
    policy_version: str
    counted: bool
    """False: the infrastructure failed it or it was cancelled; it says nothing of the policy."""
    reward: float | None
    pass_ratio: float | None
    """Share of the counted tests that passed; None without tests."""
    tests: bytes
    """Digest of the names of the counted tests; equal digests: equal names. Empty without any."""
    passed: int
    """Bit i: the i-th counted test by name passed."""
    turns: int
    sampled_tokens: int
    tokens: int
    """Of the whole stream."""
    contexts: int
    """Token streams, or steps of the task where there are no tokens: one conversation each."""
    stop_reason: StopReason

    @property
    def out_of_time(self) -> bool:
        """It was ended by the clock, not by what it did."""
        return self.stop_reason is StopReason.AGENT_TIMEOUT


def attempt(episode: Episode, run: int, place: Place) -> Attempt:
    """The part of an episode that pairing and selection look at."""
    tests, passed = _tests(episode.verdict)
    return Attempt(
        run=run,
        place=place,
        id=episode.id,
        task=episode.task,
        task_digest=episode.task_digest,
        category=episode.category,
        sample=episode.sample,
        policy_version=episode.policy_version,
        counted=not is_owed(episode),
        reward=episode.verdict.reward,
        pass_ratio=episode.verdict.pass_ratio,
        tests=tests,
        passed=passed,
        turns=len(episode.turns),
        sampled_tokens=episode.sampled_tokens,
        tokens=sum(len(s.token_ids) // 4 for s in episode.segments),
        contexts=len(episode.segments) or len({turn.step for turn in episode.turns}),
        stop_reason=episode.stop_reason,
    )


def _tests(verdict: Verdict) -> tuple[bytes, int]:
    counted = sorted((t.name, t.status == "passed") for t in verdict.tests if t.status != "skipped")
    if not counted:
        return NO_TESTS, 0
    names = "\0".join(name for name, _ in counted)
    bits = sum(passed << i for i, (_, passed) in enumerate(counted))
    return hashlib.sha256(names.encode()).digest()[:16], bits
