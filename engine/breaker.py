"""Stops sandbox starts while the sandbox engine fails, and tries one before going on.

Rule: pure; `now` is an argument. Closed, it allows everything. After `failures` starts in a row
have failed it opens: no start for a pause, which doubles with each failed probe up to a longest
one. Then one start is allowed as a probe: if it succeeds the breaker closes, else it stays open.

Starts that were under way when it opened are not ended; what they come to counts as any other.

An engine that does not answer at all (`gone`) opens it at once, is probed at the first pause again
and again, and is given up when it has not come back within `outage_s`. Where nothing is left to be
started there is no probe: an engine that nobody has missed for so long has been back meanwhile.
"""

from headrace.errors import ContractError

FAILURES = 5
PAUSE_S = 5.0
LONGEST_S = 120.0


class Breaker:
    """One sandbox engine's."""

    def __init__(
        self,
        failures: int = FAILURES,
        pause_s: float = PAUSE_S,
        longest_s: float = LONGEST_S,
        outage_s: float = 0.0,
    ) -> None:
        if failures < 1 or not 0 < pause_s <= longest_s or outage_s < 0:
            raise ContractError(
                f"expected at least one failure, a pause in (0, {longest_s}] and an outage of 0 "
                f"or more, found {failures}, {pause_s} and {outage_s}"
            )
        self._outage_s = outage_s
        self._gone_since: float | None = None
        self._missed_at = 0.0
        """When it did not answer last."""
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

    @property
    def is_gone(self) -> bool:
        """The engine did not answer at all when it was last asked for something."""
        return self._gone_since is not None

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
        self._gone_since = None
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

    def gone(self, now: float, *, starting: bool) -> bool:
        """The engine does not answer; returns whether it may still come back.

        `starting`: it was asked for a start, so that a probe is over; else for something of an
        open sandbox.
        """
        unmissed = not starting and not self._probing and now - self._missed_at > self._outage_s
        if self._gone_since is None or unmissed:
            self._gone_since = now
        self._missed_at = now
        if self._open_until is None:
            self.opened += 1
            self._open_until = now + self._first_pause_s
        elif starting and self._probing:
            self._probing = False
            self._open_until = now + self._first_pause_s
        return now - self._gone_since < self._outage_s

    def abandoned(self) -> None:
        """A start ended without saying anything about the engine: it was cancelled."""
        self._probing = False
