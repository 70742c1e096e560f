"""The policy that asks a model: conversation in, action out, every token kept.

Rule: what the server sampled goes back to it as it came, so the stream of a session is exactly
what the model saw. A session holds the conversation; the policy holds the server, the connection
and the tokenizer that all sessions share. How text becomes commands is the agent protocol's work;
when the episode ends is the engine's, but for a full context and a spent token budget.
"""

import hashlib
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Self

from headrace.aio import in_thread
from headrace.configs.models import VllmConfig
from headrace.errors import ConfigError, PolicyError, ServerGone, ServerLost
from headrace.policies.base import Budget, ModelLoad, Session, Stop
from headrace.policies.client import Completion, CompletionClient, Model, Request
from headrace.policies.protocols.base import AgentProtocol, Parsed
from headrace.policies.protocols.confirm import session_protocol
from headrace.policies.protocols.instruction import instruction_of
from headrace.policies.protocols.registry import protocol
from headrace.policies.rendering import Chat
from headrace.policies.server import VllmServer
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

REVISION = 2
"""Raised when conversations are built in another way."""
_LEAST_USEFUL_TOKENS = 32
"""A sample with less room than this is not asked for: the context counts as full."""
_LONG_TEXT_CHARS = 2000
"""Longer text is tokenised in a thread: it takes a microsecond a character."""


class VllmPolicy:
    """Sessions with one model, behind a server we start or one that runs at `base_url`."""

    name = "vllm"

    def __init__(
        self,
        config: VllmConfig,
        *,
        seed: int = 0,
        log_path: Path | None = None,
        progress: Callable[[str], None] | None = None,
    ) -> None:
        """Check the model folder and name the version. Blocks: reads some megabytes."""
        self._config = config
        self._seed = seed
        self._log_path = log_path or cache_folder().parent / "logs" / "vllm.log"
        self._on_progress = _in_words(progress)
        self._protocol = protocol(config.protocol)
        self.terminal = self._protocol.terminal
        self._needs_weights = config.base_url is None and "dummy" not in config.server.args
        if config.model != SMALL_MODEL:
            check_model(model_folder(config.model), weights=self._needs_weights)
        self.version = self._version()
        self._stack = AsyncExitStack()
        self._server: VllmServer | None = None

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
            base_url = config.base_url or await self._start_server(folder)
            self._client = await self._stack.enter_async_context(
                CompletionClient(
                    base_url, timeout_s=config.request_timeout_s, retries=config.retries
                )
            )
            self._model = _choose_model(await self._client.models(), config.served_model_name)
            self._context_len = _context_len(self._model, config)
        except BaseException:
            await self._stack.aclose()
            raise
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self._stack.aclose()

    async def _start_server(self, folder: Path) -> str:
        config = self._config
        server = VllmServer(
            config.server,
            folder,
            config.served_model_name or folder.name,
            self._log_path,
            on_progress=self._on_progress,
        )
        self._server = await self._stack.enter_async_context(server)
        return self._server.base_url

    @property
    def server(self) -> VllmServer | None:
        """The server we started, for those who watch it."""
        return self._server

    def session(self, task: Task, sample: int) -> AbstractAsyncContextManager[Session]:
        """A conversation about `task`; attempts differ by their seed and repeat with it."""
        return self._session(task, sample)

    @asynccontextmanager
    async def _session(self, task: Task, sample: int) -> AsyncIterator[Session]:
        if self._server is not None:
            await self._server.ready()  # here, for a restart is not the agent's time
        agent = session_protocol(self._protocol, confirm=self._config.confirm)
        yield _Conversation(self, agent, self._chat, task, sample)

    async def load(self) -> ModelLoad | None:
        """See `Policy.load`."""
        if self._server is not None and not self._server.up:
            return None
        try:
            found = await self._client.metrics()
        except PolicyError:
            return None
        return load_of(found)

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
        """One call. `ServerGone` if the server is not up or dies under it."""
        if self._server is not None:
            if not self._server.up:
                raise ServerGone(self._server.down or "vLLM is being started again")
            self._client.base_url = self._server.base_url
        try:
            return await self._client.complete(request, session_id=session_id)
        except ServerGone as e:
            if self._server is not None and self._server.down:
                raise ServerGone(self._server.down) from e
            if self._server is None and not await self._client.healthy():
                hint = "Start it again and give the same command: it goes on from here"
                raise ServerLost(f"{e}. {hint}") from e
            raise

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
        self._id = hashlib.sha256(
            f"{policy.version}\0{task.digest}\0{sample}\0{time.time_ns()}".encode()
        ).hexdigest()[:32]
        self._stream: list[int] = []
        """Every id so far, prompts and samples."""
        self._sampled: tuple[int, ...] = ()
        self._previous: Parsed | None = None
        self._turn = 0
        self._shown = ""
        self.prompt = ""

    async def act(self, results: Sequence[CommandResult], budget: Budget) -> Action:
        started = time.perf_counter()
        added = await self._next_ids(results)
        prompt = [*self._stream, *added]
        request = self._policy.request(
            prompt,
            self._policy.room(len(prompt), budget),
            self._policy.seed(self._task, self._sample, self._turn),
        )
        found = await self._policy.sample(request, self._id)
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
            message = self._agent.opening(instruction_of(self._task))
            ids = await _off_loop(message, self._chat.opening, message)
            self.prompt = self._chat.vocabulary.decode(ids, control=True)
            return ids
        message = self._shown = self._agent.observe(self._previous, results)
        before = self._stream[: len(self._stream) - len(self._sampled)]
        return await _off_loop(message, self._chat.extension, before, self._sampled, message)


async def _off_loop(
    text: str, call: Callable[..., tuple[int, ...]], *arguments: object
) -> tuple[int, ...]:
    if len(text) > _LONG_TEXT_CHARS:
        return await in_thread(call, *arguments)
    return call(*arguments)


def load_of(metrics: Mapping[str, float]) -> ModelLoad:
    """A vLLM server's metrics, by name and summed over labels, as its load."""

    def value(name: str) -> float:
        return metrics.get(f"vllm:{name}", metrics.get(f"vllm:{name}_total", 0.0))

    return ModelLoad(
        kv_use=min(1.0, value("kv_cache_usage_perc")),
        running=int(value("num_requests_running")),
        waiting=int(value("num_requests_waiting")),
        preemptions=value("num_preemptions"),
        prefix_queries=value("prefix_cache_queries"),
        prefix_hits=value("prefix_cache_hits"),
    )


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
