"""The policy that repeats the commands of recorded episodes.

Rule: the same files and commands in the same turns with the same deadlines as recorded for the
same task (by digest) and sample; what the commands print now is not compared. It does not read run
folders: the engine hands it what was recorded.
"""

from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager

from msgspec import structs

from headrace.errors import PolicyError
from headrace.policies.base import NoServer
from headrace.policies.listed import ListedSession
from headrace.policies.version import version_of
from headrace.types import Action, Task, Turn

Recorded = Callable[[str, int], Sequence[Turn]]
"""The turns of (task digest, sample); empty when that episode was not recorded."""


class ReplayPolicy(NoServer):
    """Repeats turns that were recorded."""

    name = "replay"
    terminal = True  # what was recorded may be keystrokes

    def __init__(self, recorded: Recorded, *, source: str) -> None:
        """`source` identifies the recorded run: it decides what the policy does."""
        self._recorded = recorded
        self.version = version_of(name=self.name, rules=1, source=source)

    @asynccontextmanager
    async def session(self, task: Task, sample: int) -> AsyncIterator[ListedSession]:
        """Raises `PolicyError` when there is no recorded episode for the task and sample."""
        step = task.metadata.get("step", "")
        turns = [t for t in self._recorded(task.digest, sample) if t.step in ("", step)]
        if not turns:
            raise PolicyError(
                f"nothing recorded for task {task.name!r} (digest {task.digest[:12]}), "
                f"sample {sample}: its files changed, or the recorded run never finished it"
            )
        yield ListedSession([_repeat(turn, task) for turn in turns])

    async def __aenter__(self) -> "ReplayPolicy":
        return self

    async def __aexit__(self, *exc: object) -> None:
        return None


def _repeat(turn: Turn, task: Task) -> Action:
    uploads = turn.uploads
    if task.solution is not None:  # the recorded path may be another machine's
        own, target = task.solution.path, task.solution.target
        uploads = tuple(
            structs.replace(up, source=own) if up.target == target else up for up in uploads
        )
    return Action(text=turn.text, uploads=uploads, commands=turn.commands, done=turn.done)
