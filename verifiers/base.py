"""The seam of every verifier: from the sandbox the agent left behind to a `Verdict`."""

from typing import Protocol

from headrace.sandbox.base import Sandbox
from headrace.types import Task, Verdict


class Verifier(Protocol):
    """Grades one sandbox."""

    async def verify(self, task: Task, sandbox: Sandbox) -> Verdict:
        """Bring the tests, run them, read what they left.

        A verifier that misbehaves (no reward, an unreadable one, no end) is a `Verdict` with
        `fault = "verifier"`. Raises only `InfrastructureError`.
        """
