"""`FakePolicy`: a policy in memory, for tests and measurements of the engine.

Rule: every session makes the same number of turns of one command each, with as many token ids as a
model would have, after a time that a seed decides. It reads nothing of the task or the results.

What it is not: a model. Its text and its ids mean nothing, and no rate of it says anything about
one.
"""

import asyncio
import random
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager

from headrace.policies.base import Budget, ModelLoad, Session
from headrace.policies.version import version_of
from headrace.types import Action, Command, CommandResult, Sample, Task

_WORDS = "Look at what is there, then change one thing and look again. "


class FakePolicy:
    """See `Policy`. Also a source of `ModelLoad`: whatever `load_of` says."""

    name = "fake"
    terminal = False

    def __init__(
        self,
        *,
        turns: int = 20,
        prompt_tokens: int = 50,
        sampled_tokens: int = 50,
        think_s: float = 0.0,
        command: str = "true",
        seed: int = 0,
        load_of: Callable[[int], ModelLoad | None] = lambda calls: None,
    ) -> None:
        """`think_s` is the mean time of a call, uniform between half and one and a half of it.

        `load_of` is asked with the calls in flight.
        """
        self._turns = turns
        self._prompt_ids = tuple(range(1000, 1000 + prompt_tokens))
        self._token_ids = tuple(range(2000, 2000 + sampled_tokens))
        self._logprobs = (-0.5,) * sampled_tokens
        self._text = (_WORDS * (1 + sampled_tokens // 12))[: 4 * sampled_tokens]
        self._think_s = think_s
        self._command = (Command(text=command),)
        self._seed = seed
        self._load_of = load_of
        self.calls = 0
        """In flight."""
        self.most_calls = 0
        self.version = version_of(
            fake=1, turns=turns, prompt=prompt_tokens, sampled=sampled_tokens, command=command
        )

    async def __aenter__(self) -> "FakePolicy":
        return self

    async def __aexit__(self, *exc: object) -> None:
        return None

    async def load(self) -> ModelLoad | None:
        """See `Policy.load`."""
        return self._load_of(self.calls)

    def session(self, task: Task, sample: int) -> AbstractAsyncContextManager[Session]:
        """See `Policy.session`."""
        return self._session(task, sample)

    @asynccontextmanager
    async def _session(self, task: Task, sample: int) -> AsyncIterator[Session]:
        yield _FakeSession(self, random.Random(f"{self._seed}/{task.digest}/{sample}"))

    async def call(self, chance: random.Random) -> Sample:
        """One call of the model that is not there."""
        self.calls += 1
        self.most_calls = max(self.most_calls, self.calls)
        try:
            await asyncio.sleep(self._think_s * (0.5 + chance.random()))
        finally:
            self.calls -= 1
        return Sample(
            prompt_ids=self._prompt_ids,
            token_ids=self._token_ids,
            logprobs=self._logprobs,
            finish_reason="stop",
        )

    def action(self, turn: int, sample: Sample, policy_s: float) -> Action:
        """What a session answers in `turn`, counted from 1."""
        return Action(
            text=self._text,
            commands=self._command,
            done=turn >= self._turns,
            sample=sample,
            policy_s=policy_s,
        )


class _FakeSession:
    """See `Session`."""

    prompt = opening = "Do what the task says."

    def __init__(self, policy: FakePolicy, chance: random.Random) -> None:
        self._policy = policy
        self._chance = chance
        self._turn = 0

    async def act(self, results: Sequence[CommandResult], budget: Budget) -> Action:
        loop = asyncio.get_running_loop()
        begun = loop.time()
        sample = await self._policy.call(self._chance)
        self._turn += 1
        return self._policy.action(self._turn, sample, loop.time() - begun)

    def observation(self) -> str:
        return "exit code 0"
