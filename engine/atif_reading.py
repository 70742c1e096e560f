"""ATIF documents as records: what of the format is looked at, and what is refused.

Rule: versions 1.0 to 1.8 read alike, for later ones only add fields; unknown fields are passed
over, wrong types and broken references are a `TrajectoryError` that names the place. Pure but for
`read_document`. What a document means for us is in `atif_import.py`.
"""

import math
import stat
from pathlib import Path
from typing import Any, Final

import msgspec

from headrace.errors import TrajectoryError

MAX_BYTES: Final = 512 << 20
VERSIONS: Final = tuple(f"ATIF-v1.{minor}" for minor in range(9))


class Part(msgspec.Struct):
    """A part of a message: text, or a picture or sound by its path."""

    type: str
    text: str | None = None
    source: dict[str, Any] | None = None


Content = str | list[Part] | None


class ToolCall(msgspec.Struct):
    tool_call_id: str
    function_name: str
    arguments: dict[str, Any]
    extra: dict[str, Any] | None = None


class Result(msgspec.Struct):
    source_call_id: str | None = None
    content: Content = None


class Observation(msgspec.Struct):
    results: list[Result]


class Metrics(msgspec.Struct):
    prompt_token_ids: list[int] | None = None
    completion_token_ids: list[int] | None = None
    logprobs: list[float] | None = None


class Step(msgspec.Struct):
    step_id: int
    source: str
    message: Content
    timestamp: str | None = None
    reasoning_content: str | None = None
    tool_calls: list[ToolCall] | None = None
    observation: Observation | None = None
    metrics: Metrics | None = None
    is_copied_context: bool | None = None
    llm_call_count: int | None = None
    extra: dict[str, Any] | None = None


class Agent(msgspec.Struct):
    name: str
    version: str
    model_name: str | None = None


class Document(msgspec.Struct):
    schema_version: str
    agent: Agent
    steps: list[Step]
    session_id: str | None = None
    trajectory_id: str | None = None
    extra: dict[str, Any] | None = None


def read_document(path: Path) -> Document:
    """The document in a file. Raises `TrajectoryError`."""
    try:
        found = path.stat()
        if not stat.S_ISREG(found.st_mode):  # a FIFO would be waited for, a device has no end
            raise TrajectoryError(f"{path}: expected a trajectory, found no regular file")
        if found.st_size > MAX_BYTES:
            raise TrajectoryError(f"{path} has {found.st_size} bytes; at most {MAX_BYTES} are read")
        data = path.read_bytes()
    except OSError as e:
        raise TrajectoryError(f"{path} cannot be read: {e.strerror or e}") from e
    return parse_document(data, str(path))


def parse_document(data: bytes, name: str) -> Document:
    """The document in `data`. Raises `TrajectoryError` with `name` in front."""
    try:
        document = msgspec.json.decode(data, type=Document)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as e:
        raise TrajectoryError(f"{name} is not an ATIF trajectory: {e}") from None
    wrong = _wrong(document)
    if wrong is not None:
        raise TrajectoryError(f"{name} is not an ATIF trajectory: {wrong}")
    return document


def text_of(content: Content) -> str:
    """The text of a message; parts that are none by their kind and place."""
    if content is None or isinstance(content, str):
        return content or ""
    return "\n".join(
        part.text if part.text is not None else f"[{part.type}: {(part.source or {}).get('path')}]"
        for part in content
    )


def finite(value: Any) -> float | None:
    """A finite number, or None for anything else."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        number = float(value)
    except OverflowError:
        return None
    return number if math.isfinite(number) else None


def _wrong(document: Document) -> str | None:
    if document.schema_version not in VERSIONS:
        return (
            f"schema_version is {document.schema_version!r};"
            f" expected {VERSIONS[0]} to {VERSIONS[-1]}"
        )
    if not document.steps:
        return "it has no steps"
    for number, step in enumerate(document.steps, 1):
        if step.step_id != number:
            return f"step {number} has step_id {step.step_id}; expected 1, 2, 3 and so on"
        if step.source not in ("system", "user", "agent"):
            return f"step {number} is of {step.source!r}; expected system, user or agent"
        wrong = _wrong_calls(step)
        if wrong is not None:
            return f"step {number}: {wrong}"
    return None


def _wrong_calls(step: Step) -> str | None:
    calls = {call.tool_call_id for call in step.tool_calls or ()}
    if step.source != "agent" and (calls or step.metrics is not None):
        return f"tool calls and metrics are for agents, not for {step.source}"
    for result in step.observation.results if step.observation else ():
        if result.source_call_id is not None and result.source_call_id not in calls:
            return f"a result of {result.source_call_id!r}, which is no tool call of this step"
    return None
