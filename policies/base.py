"""The seam of every policy: `Policy` and `Session`.

A policy decides; it never touches a sandbox. The engine runs what an `Action` asks for and hands
the results back. One session per episode; sessions of one policy share its clients.
"""

from collections.abc import Sequence
from contextlib import AbstractAsyncContextManager
from typing import Protocol

from headrace.types import Action, CommandResult, Record, StopReason, Task


class Budget(Record, frozen=True, kw_only=True):
    """What is left for the next call."""

    max_tokens: int | None = None
    """Sampled tokens left in the episode; None: no limit."""
    deadline_s: float | None = None
    """Seconds left of the agent's time; None: no limit."""


class ModelLoad(Record, frozen=True, kw_only=True):
    """How busy the model server is; of several replicas, the sums and the fullest cache."""

    kv_use: float
    """Key-value cache in use, in [0, 1]."""
    running: int
    waiting: int
    preemptions: float
    """Since the server started."""
    prefix_queries: float = 0.0
    """Prompt tokens looked up in the prefix cache since the server started,"""
    prefix_hits: float = 0.0
    """and those found there."""
    age_s: float = 0.0
    """Seconds since the server said so."""


class Stop(Exception):
    """A session ends the episode for a named reason, such as `context_full`. Not an error."""

    def __init__(self, reason: StopReason, detail: str = "") -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason = reason
        self.detail = detail


class Session(Protocol):
    """One episode's conversation with a policy."""

    prompt: str
    """The text shown first; empty for policies that render none. Set once `act` has run."""
    opening: str
    """The first message of `prompt`, before a model's template. Set once `act` has run."""

    async def act(self, results: Sequence[CommandResult], budget: Budget) -> Action:
        """The next action, given the results of the previous action's commands.

        The first call gets no results. Raises `Stop`, or `PolicyError` when the call failed for
        good. Cancelling aborts the request.
        """

    def observation(self) -> str:
        """What the policy was shown for the results of the last `act`, as text."""


class Policy(Protocol):
    """Opens sessions. An async context manager that owns its server and clients."""

    name: str
    """`vllm`, `oracle`, `noop`, `scripted` or `replay`."""
    version: str
    """Digest of everything that decides what it does."""
    terminal: bool
    """Whether its commands may be keystrokes, so that its sandboxes need a terminal."""

    def session(self, task: Task, sample: int) -> AbstractAsyncContextManager[Session]:
        """A session for attempt `sample` at `task`."""

    async def load(self) -> ModelLoad | None:
        """How busy its server is; None: it has none, or it does not say. Never raises."""

    async def __aenter__(self) -> "Policy": ...

    async def __aexit__(self, *exc: object) -> None: ...


class NoServer:
    """A policy that asks no model server."""

    async def load(self) -> ModelLoad | None:
        """See `Policy.load`."""
        return None
