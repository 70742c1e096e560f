"""Token ids in, token ids out: the client of a vLLM server.

Rule: a call ends in a `Completion` whose prompt is, id by id, the one that was sent, or in a typed
error. It is tried again only while nothing of an answer has come, and within its deadline.
Cancelling a call closes its connection, on which the server aborts the request. Answers are not
streamed: one body instead of a chunk per token costs both sides far less.
"""

import asyncio
import random
from collections.abc import Sequence
from typing import Any, Self

import msgspec

from headrace.errors import PolicyError, ServerGone
from headrace.policies.connections import Connections, NoAnswer, Reply
from headrace.types import Record

_CONNECT_TIMEOUT_S = 10.0
_SIDE_TIMEOUT_S = 10.0
"""Deadline of health and metrics."""
_PATIENT_S = 60.0
"""Where a busy server must not be taken for none."""
_KEEPALIVE_S = 4.0
"""Below uvicorn's five seconds, so that an idle connection is closed by us and not under us."""
_FIRST_BACKOFF_S = 0.2
_TRY_AGAIN_STATUS = frozenset({429, 500, 502, 503, 504})


class Request(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The body of a `/v1/completions` call. What a server would default is sent all the same."""

    model: str
    prompt: Sequence[int] | msgspec.Raw
    max_tokens: int
    temperature: float
    top_p: float
    top_k: int
    seed: int | None = None
    stop: tuple[str, ...] = ()
    stop_token_ids: tuple[int, ...] = ()
    structured_outputs: dict[str, Any] | None = None


_FIXED = msgspec.json.encode(
    {
        "logprobs": 0,
        "return_token_ids": True,
        "add_special_tokens": False,
        # a model folder may carry penalties of its own; log-probabilities would not show them
        "repetition_penalty": 1.0,
        "min_p": 0.0,
    }
)


class Completion(Record, frozen=True, kw_only=True):
    """What the server sampled."""

    text: str
    """As the server decoded it, without stop strings and control tokens."""
    token_ids: tuple[int, ...]
    logprobs: tuple[float, ...]
    """Of each sampled token under the model, before temperature and truncation."""
    finish_reason: str


class Model(msgspec.Struct, frozen=True, kw_only=True):
    """One entry of `/v1/models`."""

    id: str
    root: str | None = None
    max_model_len: int | None = None


class _Models(msgspec.Struct, frozen=True):
    data: tuple[Model, ...]


class _Logprobs(msgspec.Struct, frozen=True):
    token_logprobs: tuple[float | None, ...]


class _Choice(msgspec.Struct, frozen=True):
    text: str
    finish_reason: str | None = None
    token_ids: tuple[int, ...] | None = None
    prompt_token_ids: msgspec.Raw = msgspec.Raw()
    """As it came: decoding thousands of ids costs more than all the rest of an answer."""
    logprobs: _Logprobs | None = None


class _Answer(msgspec.Struct, frozen=True):
    choices: tuple[_Choice, ...]


_decode_answer = msgspec.json.Decoder(_Answer).decode
_decode_ids = msgspec.json.Decoder(list[int]).decode
_decode_models = msgspec.json.Decoder(_Models).decode


class CompletionClient:
    """Calls one server. An async context manager that owns its connections."""

    def __init__(self, base_url: str, *, timeout_s: float = 600.0, retries: int = 2) -> None:
        self._connections = Connections(
            base_url.rstrip("/").removesuffix("/v1"),
            keep_s=_KEEPALIVE_S,
            connect_timeout_s=_CONNECT_TIMEOUT_S,
        )
        self._timeout_s = timeout_s
        self._retries = retries

    async def __aenter__(self) -> Self:
        await self._connections.__aenter__()
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self._connections.__aexit__(*exc)

    @property
    def base_url(self) -> str:
        """May be set anew: a server that was restarted can have another port."""
        return self._connections.base_url

    @base_url.setter
    def base_url(self, base_url: str) -> None:
        self._connections.base_url = base_url

    async def complete(self, request: Request, *, session_id: str | None = None) -> Completion:
        """Sample once. `ServerGone` when no server answers, `PolicyError` when it refuses."""
        prompt = msgspec.Raw(msgspec.json.encode(request.prompt))
        body = _joined(msgspec.json.encode(msgspec.structs.replace(request, prompt=prompt)), _FIXED)
        headers = {"Content-Type": "application/json"}
        if session_id is not None:
            headers["X-Session-ID"] = session_id
        try:
            async with asyncio.timeout(self._timeout_s):
                answer = await self._post_until_answered("/v1/completions", body, headers)
        except _Failing as e:
            # a server whose engine died answers a while longer, with nothing but errors
            if not await self.healthy():
                raise ServerGone(str(e)) from e
            raise PolicyError(str(e)) from e
        except TimeoutError:
            raise PolicyError(
                f"{self.base_url}: expected an answer within {self._timeout_s:.0f} s, found none; "
                "raise policy.request_timeout_s or lower engine.live"
            ) from None
        return _read_completion(answer, prompt)

    async def _post_until_answered(self, path: str, body: bytes, headers: dict[str, str]) -> bytes:
        for tried in range(self._retries + 1):
            try:
                return await self._post(path, body, headers)
            except _NothingCame as e:
                if tried == self._retries:
                    raise e.final from e
            # spread out, so that a thousand sessions do not come back in the same instant
            await asyncio.sleep(_FIRST_BACKOFF_S * 2**tried * (0.5 + random.random()))
        raise AssertionError("unreachable")

    async def _post(self, path: str, body: bytes, headers: dict[str, str]) -> bytes:
        try:
            reply = await self._connections.request("POST", path, body, headers)
        except OSError as e:
            gone = ServerGone(f"{self.base_url}: the model server stopped answering: {_words(e)}")
            if isinstance(e, NoAnswer) and e.status == 200:
                raise gone from e
            raise _NothingCame(gone) from e
        if reply.status == 200:
            return reply.body
        found = reply.body.decode(errors="replace")[:500]
        refused = f"{self.base_url}{path}: refused with {reply.status}: {found}"
        if reply.status in _TRY_AGAIN_STATUS:
            raise _NothingCame(_Failing(refused))
        raise PolicyError(refused)

    # --- side channels ---

    async def healthy(self, *, patient: bool = False) -> bool:
        """Whether the server answers and its engine lives."""
        try:
            status, _ = await self._get("/health", _PATIENT_S if patient else _SIDE_TIMEOUT_S)
        except ServerGone:
            return False
        return status == 200

    async def models(self) -> tuple[Model, ...]:
        """What the server serves."""
        status, data = await self._get("/v1/models", _PATIENT_S)
        try:
            if status == 200:
                return _decode_models(data).data
        except msgspec.MsgspecError as e:
            raise PolicyError(f"{self.base_url}/v1/models: expected models, found: {e}") from None
        raise PolicyError(f"{self.base_url}/v1/models: refused with {status}; is this vLLM?")

    async def metrics(self) -> dict[str, float]:
        """The server's metrics by name, summed over labels."""
        status, data = await self._get("/metrics")
        if status != 200:
            raise PolicyError(f"{self.base_url}/metrics: refused with {status}; is this vLLM?")
        return read_metrics(data.decode(errors="replace"))

    async def _get(self, path: str, timeout_s: float = _SIDE_TIMEOUT_S) -> Reply:
        try:
            async with asyncio.timeout(timeout_s):
                try:
                    return await self._connections.request("GET", path)
                except NoAnswer as e:
                    if not e.kept or e.status is not None:
                        raise
                    return await self._connections.request("GET", path, fresh=True)
        except OSError as e:
            raise ServerGone(
                f"{self.base_url}: expected a model server, found none: {_words(e)}"
            ) from e


class _NothingCame(Exception):
    """No byte of an answer came; the call may be made again."""

    def __init__(self, final: PolicyError) -> None:
        super().__init__(str(final))
        self.final = final


class _Failing(PolicyError):
    """The server answers with errors of its own."""


def _words(error: BaseException) -> str:
    return str(error) or type(error).__name__


def _joined(a: bytes, b: bytes) -> bytes:
    """Two JSON objects, neither of them empty, as one."""
    return b"%b,%b" % (a[:-1], b[1:])


def _read_completion(data: bytes, prompt: msgspec.Raw) -> Completion:
    try:
        answer = _decode_answer(data)
    except msgspec.MsgspecError as e:
        raise PolicyError(f"expected a completion, found {data[:200]!r}: {e}") from None
    if len(answer.choices) != 1:
        raise PolicyError(f"expected one completion, found {len(answer.choices)}")
    choice = answer.choices[0]
    seen = bytes(choice.prompt_token_ids)
    if choice.token_ids is None or seen in (b"", b"null") or choice.logprobs is None:
        raise PolicyError(
            "expected token ids and log-probabilities, found a server that leaves them out; "
            "headrace needs vLLM 0.11 or newer"
        )
    if seen != bytes(prompt):
        _compare(seen, bytes(prompt))
    logprobs = choice.logprobs.token_logprobs
    if len(logprobs) != len(choice.token_ids):
        raise PolicyError(
            f"expected a log-probability per token, found {len(logprobs)} for "
            f"{len(choice.token_ids)} tokens"
        )
    return Completion(
        text=choice.text,
        token_ids=choice.token_ids,
        logprobs=tuple(0.0 if value is None else value for value in logprobs),
        finish_reason=choice.finish_reason or "abort",
    )


def _compare(seen: bytes, sent: bytes) -> None:
    """Ids that were written in another way are the same; other ids are an error."""
    try:
        found, wanted = _decode_ids(seen), _decode_ids(sent)
    except msgspec.MsgspecError as e:
        raise PolicyError(f"expected prompt token ids, found {seen[:200]!r}: {e}") from None
    if found != wanted:
        raise PolicyError(
            f"expected the server to see the {len(wanted)} prompt tokens it was sent, "
            f"found {len(found)} or others; is something rewriting prompts?"
        )


def read_metrics(text: str) -> dict[str, float]:
    """Prometheus text as name to value, summed over labels; histogram buckets are left out."""
    totals: dict[str, float] = {}
    for line in text.splitlines():
        if not line or line.startswith("#"):
            continue
        series, _, value = line.rpartition(" ")
        name = series.partition("{")[0]
        if name.endswith("_bucket"):
            continue
        try:
            totals[name] = totals.get(name, 0.0) + float(value)
        except ValueError:
            continue
    return totals
