"""The policy that asks a model: conversation in, action out, every token kept.

Rule: what the server sampled goes back to it as it came, so the stream of a session is exactly
what the model saw. A session holds the conversation; the policy holds the servers and the
tokenizer that all sessions share. How text becomes commands is the agent protocol's work;
when the episode ends is the engine's, but for a full context and a spent token budget.
"""

import asyncio
import hashlib
import time
from collections import OrderedDict
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import NamedTuple, Self, TypeVar

from headrace.aio import in_thread
from headrace.configs.models import VllmConfig
from headrace.errors import ConfigError, PolicyError
from headrace.policies.base import Budget, ModelLoad, Session, Stop
from headrace.policies.client import Completion, Model, Request
from headrace.policies.protocols.base import AgentProtocol, Parsed
from headrace.policies.protocols.confirm import session_protocol
from headrace.policies.protocols.instruction import instruction_of
from headrace.policies.protocols.registry import protocol
from headrace.policies.rendering import Chat
from headrace.policies.server import VllmServer
from headrace.policies.servers import Servers
from headrace.policies.version import version_of
from headrace.policies.weights import (
    SMALL_MODEL,
    OnProgress,
    cache_folder,
    check_model,
    model_folder,
    model_identity,
    ready_model,
)
from headrace.types import Action, CommandResult, Sample, StopReason, Task

T = TypeVar("T")

REVISION = 2
"""Raised when conversations are built in another way."""
_LEAST_USEFUL_TOKENS = 32
"""A sample with less room than this is not asked for: the context counts as full."""
_LONG_TEXT_CHARS = 2000
"""Longer text is tokenised in a thread: it takes a microsecond a character."""
_OPENINGS = 64
"""First prompts that are kept: the attempts at a task begin alike, and about together."""


class VllmPolicy:
    """Sessions with one model, behind servers we start or that run at `base_url`."""

    name = "vllm"

    def __init__(
        self,
        config: VllmConfig,
        *,
        seed: int = 0,
        log_path: Path | None = None,
        progress: Callable[[str], None] | None = None,
        agent: AgentProtocol | None = None,
    ) -> None:
        """Check the model folder and name the version. Blocks: reads some megabytes.

        `agent`: a protocol of one's own, in place of the one that `config` names.
        """
        self._config = config
        self._seed = seed
        self._log_path = log_path or cache_folder().parent / "logs" / "vllm.log"
        self._on_progress = _in_words(progress)
        self._protocol = agent or protocol(config.protocol)
        self.terminal = self._protocol.terminal
        self._needs_weights = config.base_url is None and "dummy" not in config.server.args
        if config.model != SMALL_MODEL:
            check_model(model_folder(config.model), weights=self._needs_weights)
        self.version = self._version()
        self._stack = AsyncExitStack()
        self._openings: OrderedDict[str, _Kept] = OrderedDict()

    def _version(self) -> str:
        config = self._config
        return version_of(
            revision=REVISION,
            model=model_identity(config.model),
            served=config.served_model_name,
            max_model_len=config.server.max_model_len,
            protocol=[self._protocol.name, self._protocol.version],
            confirm=config.confirm,
            structured=config.structured,
            sampling=config.sampling.model_dump(mode="json"),
        )

    async def __aenter__(self) -> Self:
        config = self._config
        try:
            folder = await ready_model(config.model, self._on_progress, weights=self._needs_weights)
            self._chat = await in_thread(Chat, folder)
            self._servers = await self._stack.enter_async_context(
                Servers(config, folder, self._log_path, on_progress=self._on_progress)
            )
            self._model = _choose_model(await self._servers.models(), config.served_model_name)
            self._context_len = _context_len(self._model, config)
        except BaseException:
            await self._stack.aclose()
            raise
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self._stack.aclose()

    @property
    def servers(self) -> Servers:
        """The servers behind it, for those who watch them."""
        return self._servers

    @property
    def server(self) -> VllmServer | None:
        """The first server we started; None: none is ours."""
        return next(iter(self._servers.started), None)

    def session(self, task: Task, sample: int) -> AbstractAsyncContextManager[Session]:
        """A conversation about `task`; attempts differ by their seed and repeat with it."""
        return self._session(task, sample)

    @asynccontextmanager
    async def _session(self, task: Task, sample: int) -> AsyncIterator[Session]:
        await self._servers.ready()  # here, for a restart is not the agent's time
        agent = session_protocol(self._protocol, confirm=self._config.confirm)
        conversation = _Conversation(self, agent, self._chat, task, sample)
        try:
            yield conversation
        finally:
            self._servers.forget(conversation.id)

    async def load(self) -> ModelLoad | None:
        """See `Policy.load`."""
        return await self._servers.load()

    async def opening(self, message: str) -> "Opening":
        """The first prompt of a conversation that begins with `message`."""
        kept = self._openings.get(message)
        if kept is None:
            kept = self._openings[message] = _Kept()
            if len(self._openings) > _OPENINGS:
                self._openings.popitem(last=False)
        else:
            self._openings.move_to_end(message)
        async with kept.lock:
            if kept.found is None:
                kept.found = await _off_loop(message, _opened, self._chat, message)
            return kept.found

    def request(self, prompt: Sequence[int], max_tokens: int, seed: int) -> Request:
        """What is sent for one sample."""
        sampling = self._config.sampling
        end = self._chat.end_of_turn_id
        return Request(
            model=self._model.id,
            prompt=prompt,
            max_tokens=max_tokens,
            temperature=sampling.temperature,
            top_p=sampling.top_p,
            top_k=sampling.top_k,
            seed=seed if sampling.temperature > 0 else None,
            stop=sampling.stop,
            stop_token_ids=() if end is None else (end,),
            structured_outputs=self._structure(),
        )

    def _structure(self) -> dict[str, object] | None:
        if not self._config.structured:
            return None
        schema, grammar = self._protocol.schema(), self._protocol.grammar()
        if schema is not None:
            return {"json": schema}
        return None if grammar is None else {"grammar": grammar}

    async def sample(self, request: Request, session_id: str) -> Completion:
        """One call. `ServerGone` if no server is up or all die under it."""
        return await self._servers.complete(request, session_id)

    def room(self, prompt: int, budget: Budget) -> int:
        """Tokens that may be sampled after `prompt` tokens. Raises `Stop` when too few."""
        wanted = self._config.sampling.max_tokens
        if budget.max_tokens is not None:
            if budget.max_tokens < 1:
                raise Stop(StopReason.MAX_TOKENS, "the episode's budget of tokens is spent")
            wanted = min(wanted, budget.max_tokens)
        left = self._context_len - prompt
        if left < min(wanted, _LEAST_USEFUL_TOKENS):
            raise Stop(
                StopReason.CONTEXT_FULL,
                f"the next prompt has {prompt} of {self._context_len} tokens",
            )
        return min(wanted, left)

    def seed(self, task: Task, sample: int, turn: int) -> int:
        """The seed of one call: equal in every run with the same seed, else different."""
        named = f"{self._seed}\0{task.digest}\0{sample}\0{turn}".encode()
        return int.from_bytes(hashlib.sha256(named).digest()[:6], "big")


class _Conversation:
    """One session: the messages as text for the record, as ids for the model."""

    def __init__(
        self, policy: VllmPolicy, agent: AgentProtocol, chat: Chat, task: Task, sample: int
    ) -> None:
        self._policy = policy
        self._agent = agent
        self._chat = chat
        self._task = task
        self._sample = sample
        self.id = hashlib.sha256(
            f"{policy.version}\0{task.digest}\0{sample}\0{time.time_ns()}".encode()
        ).hexdigest()[:32]
        self._stream: list[int] = []
        """Every id so far, prompts and samples."""
        self._sampled: tuple[int, ...] = ()
        self._previous: Parsed | None = None
        self._turn = 0
        self._shown = ""
        self.prompt = self.opening = ""

    async def act(self, results: Sequence[CommandResult], budget: Budget) -> Action:
        started = time.perf_counter()
        added = await self._next_ids(results)
        prompt = [*self._stream, *added]
        request = self._policy.request(
            prompt,
            self._policy.room(len(prompt), budget),
            self._policy.seed(self._task, self._sample, self._turn),
        )
        found = await self._policy.sample(request, self.id)
        if not found.token_ids or found.finish_reason not in ("stop", "length"):
            raise PolicyError(
                f"expected a sample, found {len(found.token_ids)} tokens that ended with "
                f"{found.finish_reason!r}; did the server abort the request?"
            )
        parsed = self._agent.parse(found.text)
        self._stream = [*prompt, *found.token_ids]
        self._sampled, self._previous = found.token_ids, parsed
        self._turn += 1
        return Action(
            text=found.text,
            commands=parsed.commands,
            done=parsed.done,
            problems=parsed.problems,
            warnings=parsed.warnings,
            sample=Sample(
                prompt_ids=added,
                token_ids=found.token_ids,
                logprobs=found.logprobs,
                finish_reason=found.finish_reason,
            ),
            policy_s=time.perf_counter() - started,
        )

    def observation(self) -> str:
        return self._shown

    async def _next_ids(self, results: Sequence[CommandResult]) -> tuple[int, ...]:
        """The ids between the last sample and the next one."""
        if self._previous is None:
            message = self.opening = self._agent.opening(instruction_of(self._task))
            found = await self._policy.opening(message)
            self.prompt = found.text
            return found.ids
        message = self._shown = self._agent.observe(self._previous, results)
        before = self._stream[: len(self._stream) - len(self._sampled)]
        return await _off_loop(message, self._chat.extension, before, self._sampled, message)


class Opening(NamedTuple):
    """A first prompt."""

    ids: tuple[int, ...]
    text: str
    """What they say, as the model sees it."""


class _Kept:
    """A first prompt that one attempt makes and the others wait for."""

    def __init__(self) -> None:
        self.lock = asyncio.Lock()
        self.found: Opening | None = None


def _opened(chat: Chat, message: str) -> Opening:
    ids = chat.opening(message)
    return Opening(ids, chat.vocabulary.decode(ids, control=True))


async def _off_loop(text: str, call: Callable[..., T], *arguments: object) -> T:
    if len(text) > _LONG_TEXT_CHARS:
        return await in_thread(call, *arguments)
    return call(*arguments)


def _choose_model(served: Sequence[Model], name: str | None) -> Model:
    for model in served:
        if name is None or model.id == name:
            return model
    known = ", ".join(model.id for model in served) or "none"
    raise ConfigError(
        f"policy.served_model_name: expected {name or 'a model'!r} on the server, found: {known}"
    )


def _context_len(model: Model, config: VllmConfig) -> int:
    length = model.max_model_len or config.server.max_model_len
    if length is None:
        raise ConfigError(
            f"policy.server.max_model_len: the server does not say the context length of "
            f"{model.id!r}; set it"
        )
    return length


def _in_words(progress: Callable[[str], None] | None) -> OnProgress:
    """Progress as lines, one for each new step and each further tenth of it."""
    last = ""

    def tell(what: str, fraction: float | None) -> None:
        nonlocal last
        tenths = "" if fraction is None else f" ({int(fraction * 10) * 10} %)"
        if progress is not None and what + tenths != last:
            last = what + tenths
            progress(last)

    return tell
