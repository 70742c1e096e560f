"""What an episode is handed: its slot of the plan, the parts of the run, its line to the driver."""

import asyncio
from pathlib import Path
from typing import Protocol

import msgspec

from headrace.engine.limits import EpisodeLimits
from headrace.policies.base import Policy
from headrace.sandbox.base import Limits, Provider
from headrace.types import Task, Turn
from headrace.verifiers.base import Verifier

LARGE_AT_ONCE = 2


class Planned(msgspec.Struct, frozen=True, kw_only=True):
    """One slot of the plan."""

    id: str
    task: Task
    sample: int
    limits: EpisodeLimits
    sandbox: Limits
    network: bool
    """The run follows what the task asks for; False: loopback only, whatever it asks."""


class Parts(msgspec.Struct, frozen=True, kw_only=True):
    """What every episode of a run shares."""

    provider: Provider
    policy: Policy
    verifier: Verifier
    strict: bool = False
    """Steps sum up as the official harness does (`verifier.compat`)."""
    artifacts: Path | None = None
    """Folder that gets a folder for each episode with artifacts; None: they are not kept."""
    large: asyncio.Semaphore = msgspec.field(
        default_factory=lambda: asyncio.Semaphore(LARGE_AT_ONCE)
    )
    """Taken while a large artifact is in memory, however many episodes verify."""


class Stages(Protocol):
    """How an episode tells where it is, and waits for a verify slot."""

    def prepared(self) -> None: ...

    def turn(self, turn: Turn, sampled_tokens: int) -> None: ...

    async def acted(self) -> None:
        """Returns when the episode may verify."""

    def again(self) -> None:
        """A step is graded and the agent goes on with the next."""

    def verified(self) -> None: ...
