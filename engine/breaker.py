"""Stops sandbox starts while the sandbox engine fails, and tries one before going on.

Rule: pure; `now` is an argument. Closed, it allows everything. After `failures` starts in a row
have failed it opens: no start for a pause, which doubles with each failed probe up to a longest
one. Then one start is allowed as a probe: if it succeeds the breaker closes, else it stays open.

Starts that were under way when it opened are not ended; what they come to counts as any other.
"""

from headrace.errors import ContractError

FAILURES = 5
PAUSE_S = 5.0
LONGEST_S = 120.0


class Breaker:
    """One sandbox engine's."""

    def __init__(
        self, failures: int = FAILURES, pause_s: float = PAUSE_S, longest_s: float = LONGEST_S
    ) -> None:
        if failures < 1 or not 0 < pause_s <= longest_s:
            raise ContractError(
                f"expected at least one failure and a pause in (0, {longest_s}], "
                f"found {failures} and {pause_s}"
            )
        self._failures = failures
        self._first_pause_s = pause_s
        self._longest_s = longest_s
        self._in_a_row = 0
        self._pause_s = pause_s
        self._open_until: float | None = None
        self._probing = False
        self.opened = 0
        """How often it has opened, failed probes not counted."""

    @property
    def is_open(self) -> bool:
        return self._open_until is not None

    def allowance(self, now: float) -> int | None:
        """Starts allowed now; None: as many as other bounds allow."""
        if self._open_until is None:
            return None
        return 0 if self._probing or now < self._open_until else 1

    def next_at(self) -> float | None:
        """When a probe will be allowed; None when nothing has to be waited for by the clock."""
        return None if self._probing else self._open_until

    def begun(self) -> None:
        """A start that was allowed has begun."""
        if self.is_open:
            self._probing = True

    def succeeded(self) -> None:
        """A start came to an open sandbox: the engine works."""
        self._in_a_row = 0
        self._open_until = None
        self._probing = False
        self._pause_s = self._first_pause_s

    def failed(self, now: float) -> None:
        """A start failed for a reason of the engine's, not of the task's image."""
        self._in_a_row += 1
        if self._probing:
            self._probing = False
            self._pause_s = min(self._longest_s, 2 * self._pause_s)
            self._open_until = now + self._pause_s
        elif self._open_until is None and self._in_a_row >= self._failures:
            self.opened += 1
            self._open_until = now + self._pause_s

    def abandoned(self) -> None:
        """A start ended without saying anything about the engine: it was cancelled."""
        self._probing = False
