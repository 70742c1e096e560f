"""Whose build may go on: at most so many at once, and never two that make the same layer.

Rule: a build is a chain of steps, bottom first. It waits while the first step that it still needs
is being made by another; then it finds that step in its builder's cache. A step that has failed
twice is not made a third time: who needs it hears the same reason. `Turns` is pure; `BuildTurns`
puts waiting around it.
"""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

from headrace.errors import ImageError

TRIES = 2
"""Of one step, over all builds that need it."""


class Turns:
    """The state: who runs, who waits, which steps are made. No `await`."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._waiting: dict[int, tuple[str, ...]] = {}
        self._running: dict[int, tuple[str, ...]] = {}
        self._made: set[str] = set()
        self._tries: Counter[str] = Counter()
        self._reasons: dict[str, str] = {}

    def submit(self, id: int, steps: Sequence[str]) -> None:
        """One build asks for its turn. Those that asked first come first."""
        self._waiting[id] = tuple(steps)

    def grants(self) -> list[int]:
        """Every build that may begin now. Each grant is given once."""
        granted = []
        making = {step for steps in self._running.values() for step in steps}
        for id, steps in list(self._waiting.items()):
            if len(self._running) >= self._limit:
                break
            left = self._left(steps)
            if not left or left[0] not in making:
                del self._waiting[id]
                self._running[id] = left
                making.update(left)
                granted.append(id)
        return granted

    def made(self, id: int, step: str) -> None:
        """A build has that step and all below it."""
        steps = self._running[id]
        if step in steps:
            done = steps.index(step) + 1
            self._made.update(steps[:done])
            self._running[id] = steps[done:]

    def failed(self, id: int, reason: str) -> None:
        """A build's next step failed for a reason that lies in the step."""
        for step in self._running[id][:1]:
            self._tries[step] += 1
            self._reasons[step] = reason

    def ended(self, id: int) -> None:
        """A build runs or waits no longer."""
        self._waiting.pop(id, None)
        self._running.pop(id, None)

    def hopeless(self, steps: Sequence[str]) -> str | None:
        """Why a build of these steps cannot succeed, once one of them has failed too often."""
        for step in steps:
            if self._tries[step] >= TRIES:
                return self._reasons[step]
        return None

    def snapshot(self) -> dict[str, int]:
        return {
            "running": len(self._running),
            "waiting": len(self._waiting),
            "made": len(self._made),
        }

    def __repr__(self) -> str:
        return f"<Turns {self.snapshot()}>"

    def _left(self, steps: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(step for step in steps if step not in self._made)


class Turn:
    """The turn of one build, while it lasts."""

    def __init__(self, turns: "BuildTurns", id: int) -> None:
        self._turns = turns
        self._id = id

    def made(self, step: str) -> None:
        """That step and all below it are there for others too."""
        self._turns.state.made(self._id, step)
        self._turns.wake()

    def failed(self, reason: str) -> None:
        """The next step failed, and would fail again."""
        self._turns.state.failed(self._id, reason)


class BuildTurns:
    """Waits for turns. One for each provider."""

    def __init__(self, limit: int) -> None:
        self.state = Turns(limit)
        self._granted: dict[int, asyncio.Event] = {}
        self._count = 0

    @asynccontextmanager
    async def take(self, steps: Sequence[str]) -> AsyncIterator[Turn]:
        """A turn for a build of these steps. Raises `ImageError` when it cannot succeed.

        It waits as long as builds before it take; each of those has a deadline of its own.
        """
        self._count += 1
        id = self._count
        granted = self._granted[id] = asyncio.Event()
        self.state.submit(id, steps)
        try:
            self.wake()
            await granted.wait()
            reason = self.state.hopeless(steps)
            if reason is not None:
                raise ImageError(f"a step it shares with others failed {TRIES} times: {reason}")
            yield Turn(self, id)
        finally:
            self.state.ended(id)
            self._granted.pop(id, None)
            self.wake()

    def wake(self) -> None:
        """Let everyone begin who may."""
        for id in self.state.grants():
            self._granted[id].set()
