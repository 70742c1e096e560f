"""The policy that does nothing and says it is done: what a verifier must not reward."""

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

from headrace.policies.base import Budget, NoServer
from headrace.policies.version import version_of
from headrace.types import Action, CommandResult, Task


class NoopPolicy(NoServer):
    """Ends every episode in its first turn."""

    name = "noop"
    version = version_of(name="noop", rules=1)
    terminal = False

    @asynccontextmanager
    async def session(self, task: Task, sample: int) -> AsyncIterator["NoopSession"]:
        yield NoopSession()

    async def __aenter__(self) -> "NoopPolicy":
        return self

    async def __aexit__(self, *exc: object) -> None:
        return None


class NoopSession:
    """Says it is done."""

    prompt = opening = ""

    async def act(self, results: Sequence[CommandResult], budget: Budget) -> Action:
        return Action(text="Nothing to do.", done=True)

    def observation(self) -> str:
        return ""
