"""Episodes from ATIF trajectories, our own exports and everybody else's.

Rules: a file becomes one episode or one `TrajectoryError`; nothing is invented. Tokens are there
when the file has ids, the verdict when the file, the Harbor trial around it or the caller has it;
otherwise the episode has no reward, the reason `not_graded`, and is left out of every rate. An
export of ours gives back the episode it came from, but for the paths of uploads.

It runs nothing, and it does not make tasks of trajectories.
"""

import base64
import hashlib
from collections.abc import Mapping, Sequence
from datetime import datetime
from itertools import zip_longest
from pathlib import Path
from typing import Any, Final

import msgspec

from headrace.engine.atif import COMPLETE, EXTRA, KEYS, UPLOAD
from headrace.engine.atif_reading import (
    Document,
    Metrics,
    Step,
    ToolCall,
    finite,
    read_document,
    text_of,
)
from headrace.engine.resume import episode_id
from headrace.errors import TrajectoryError
from headrace.policies.transcript import Transcript
from headrace.policies.version import version_of
from headrace.types import (
    Command,
    CommandResult,
    Episode,
    Sample,
    Segment,
    StopReason,
    Turn,
    Upload,
    Verdict,
    VerdictFault,
)

PROVIDER: Final = "imported"
NOT_GRADED: Final = Verdict(
    reward=None,
    fault=VerdictFault.INFRASTRUCTURE,
    reason="not_graded: the trajectory came without a reward; give one with --rewards",
)
"""Of what nobody graded: left out of every rate, as an infrastructure failure is."""
_COMMANDS: Final = ("command", "cmd", "script")
"""Arguments that hold a shell command, whatever the function is called."""


class Around(msgspec.Struct, frozen=True):
    """What is known of a trajectory from outside its file."""

    task: str | None = None
    verdict: Verdict | None = None
    """Of the trial; the verdict in an export of ours says more and stands."""
    given: Verdict | None = None
    """The caller's: it goes over every other."""
    stop_reason: StopReason | None = None
    sample: int = 0


def read_episode(path: Path, around: Around) -> Episode:
    """The episode in a file. Raises `TrajectoryError`."""
    return to_episode(read_document(path), around, name=str(path))


def to_episode(document: Document, around: Around, *, name: str) -> Episode:
    """The episode of a document. Raises `TrajectoryError` when our own part of it is broken."""
    turns, observations, segments = _turns(document)
    opening = _opening(document.steps)
    base = _ours(document, name)
    if base is None:
        base = _foreign(document, around, opening, turns)
    if around.given is not None:
        base = msgspec.structs.replace(base, verdict=around.given)
    return msgspec.structs.replace(
        base,
        prompt="" if opening == base.instruction else opening,
        turns=tuple(turns),
        observations=tuple(observations),
        segments=segments,
    )


# --- who, what and how it ended -------------------------------------------------------------


def _ours(document: Document, name: str) -> Episode | None:
    """The episode without its turns, from an export of ours; None for everybody else's."""
    told = (document.extra or {}).get(EXTRA)
    if not isinstance(told, Mapping):
        return None
    record = {key: value for key, value in told.items() if key not in ("loss_mask", "shown")}
    try:
        return msgspec.convert(record, Episode)
    except msgspec.ValidationError as e:
        raise TrajectoryError(f"{name}: extra.{EXTRA} is not of an episode: {e}") from None


def _foreign(document: Document, around: Around, opening: str, turns: Sequence[Turn]) -> Episode:
    agent = document.agent
    version = version_of(name=agent.name, version=agent.version, model=agent.model_name)
    task = around.task or f"imported-{_digest(opening)[:12]}"
    digest = _digest(task, opening)
    last = turns[-1].done if turns else False
    return Episode(
        id=episode_id(digest, version, around.sample),
        task=task,
        task_digest=digest,
        sample=around.sample,
        policy=agent.name,
        policy_version=version,
        provider=PROVIDER,
        instruction=opening,
        stop_reason=around.stop_reason or (StopReason.DONE if last else StopReason.MAX_TURNS),
        stop_detail="" if around.stop_reason or last else "the trajectory ends here",
        verdict=around.verdict or NOT_GRADED,
        started_at=_unix(document.steps[0].timestamp),
    )


def _digest(*parts: str) -> str:
    return hashlib.sha256("\0".join(("atif", *parts)).encode()).hexdigest()


def _opening(steps: Sequence[Step]) -> str:
    """What was said before the agent's first step."""
    said = []
    for step in steps:
        if step.source == "agent":
            break
        said.append(text_of(step.message))
    return "\n\n".join(said)


def _unix(timestamp: str | None) -> float:
    try:
        return datetime.fromisoformat((timestamp or "").replace("Z", "+00:00")).timestamp()
    except (ValueError, OverflowError):
        return 0.0


# --- turns ----------------------------------------------------------------------------------


def _turns(document: Document) -> tuple[list[Turn], list[str], tuple[Segment, ...]]:
    turns: list[Turn] = []
    shown: list[list[str]] = []
    tokens = _Tokens()
    for step in document.steps:
        if step.is_copied_context:
            continue
        if step.source != "agent":
            if turns:
                shown[-1].append(text_of(step.message))
            continue
        notes = tokens.add(len(turns), step)
        turns.append(_turn(step, notes))
        shown.append(_shown(step))
    observations = ["\n\n".join(text for text in texts if text) for texts in shown]
    del observations[_count_shown(document, observations) :]
    return turns, observations, tokens.transcript.segments()


def _count_shown(document: Document, observations: Sequence[str]) -> int:
    """How many of them there were: as our export says, else up to the last that is not empty."""
    told = _mapping((document.extra or {}).get(EXTRA)).get("shown")
    if isinstance(told, int) and 0 <= told:
        return told
    return max((n for n, text in enumerate(observations, 1) if text), default=0)


def _shown(step: Step) -> list[str]:
    """Results that are of no one call: what the policy was shown, in our exports."""
    results = step.observation.results if step.observation else []
    ours = isinstance((step.extra or {}).get(EXTRA), Mapping)
    return [text_of(r.content) for r in results if not (ours and r.source_call_id is not None)]


def _turn(step: Step, notes: Sequence[str]) -> Turn:
    message = text_of(step.message)
    if step.reasoning_content:
        message = f"<think>\n{step.reasoning_content}\n</think>\n{message}"
    ours = _mapping((step.extra or {}).get(EXTRA))
    commands, results, warnings = _commands(step)
    uploads = tuple(
        Upload(source="", target=str(call.arguments.get("target", "")))
        for call in step.tool_calls or ()
        if call.function_name == UPLOAD
    )
    return Turn(
        text=message,
        uploads=uploads,
        commands=tuple(commands),
        results=tuple(results),
        done=any(call.function_name == COMPLETE for call in step.tool_calls or ()),
        problems=_texts(ours.get("problems")),
        warnings=(*_texts(ours.get("warnings")), *warnings, *notes),
        policy_s=finite(ours.get("policy_s")) or 0.0,
        command_s=finite(ours.get("command_s")) or 0.0,
        step=str(ours.get("step", "")),
    )


def _commands(step: Step) -> tuple[list[Command], list[CommandResult], list[str]]:
    """Commands in order, the results of those that ran, and what was no command."""
    commands: list[Command] = []
    results: list[CommandResult] = []
    warnings: list[str] = []
    for call in step.tool_calls or ():
        if call.function_name in (COMPLETE, UPLOAD):
            continue
        command = _command(call)
        if command is None:
            warnings.append(f"the tool call {call.function_name} is no shell command")
            continue
        commands.append(command)
        result = _result(call, step)
        if result is not None and len(results) == len(commands) - 1:
            results.append(result)
    return commands, results, warnings


def _command(call: ToolCall) -> Command | None:
    arguments = call.arguments
    keystrokes = arguments.get("keystrokes")
    if call.function_name == KEYS and isinstance(keystrokes, str):
        return Command(text=keystrokes, keys=True, timeout_s=finite(arguments.get("duration")))
    for name in _COMMANDS:
        if isinstance(arguments.get(name), str):
            limit = finite(arguments.get("timeout_s"))
            return Command(text=arguments[name], timeout_s=limit)
    return None


def _result(call: ToolCall, step: Step) -> CommandResult | None:
    """Ours as it was; of others the text that was given for this call, if any was."""
    ours = (call.extra or {}).get(EXTRA)
    if isinstance(ours, Mapping):
        return None if ours.get("ran") is False else _own_result(ours)
    contents = [
        text_of(result.content)
        for result in (step.observation.results if step.observation else ())
        if result.source_call_id == call.tool_call_id
    ]
    if not contents:
        return None
    return CommandResult(exit_code=None, stdout="\n".join(contents).encode())


def _own_result(told: Mapping[str, Any]) -> CommandResult:
    fields = {
        name: told[name]
        for name in CommandResult.__struct_fields__
        if name in told and name not in ("stdout", "stderr", "screen")
    }
    for name in ("stdout", "stderr", "screen"):
        data = _data(told, name)
        if data is not None:
            fields[name] = data
    try:
        return msgspec.convert({"exit_code": None} | fields, CommandResult)
    except msgspec.ValidationError:
        return CommandResult(exit_code=None)


def _data(told: Mapping[str, Any], name: str) -> bytes | None:
    text, encoded = told.get(name), told.get(f"{name}_base64")
    if isinstance(text, str):
        return text.encode()
    try:
        return base64.b64decode(encoded, validate=True) if isinstance(encoded, str) else None
    except ValueError:  # no base64, or no ASCII
        return None


# --- tokens ---------------------------------------------------------------------------------


class _Tokens:
    """Prompts and samples of the steps, joined into segments where one prompt extends another."""

    def __init__(self) -> None:
        self.transcript = Transcript()
        self._stream: list[int] = []

    def add(self, turn: int, step: Step) -> list[str]:
        """Take the step's tokens; what is odd about them."""
        metrics = step.metrics
        if metrics is None or not metrics.completion_token_ids or not metrics.prompt_token_ids:
            return []
        if (step.llm_call_count or 1) > 1:
            return ["its tokens are of several calls and were left out"]
        prompt, sampled = metrics.prompt_token_ids, metrics.completion_token_ids
        if not all(0 <= token < 1 << 32 for token in (*prompt, *sampled)):
            return ["its token ids are out of range and were left out"]
        logprobs, notes = _logprobs(metrics, len(sampled))
        known = len(self._stream)
        extends = known > 0 and prompt[:known] == self._stream
        self.transcript.add(
            turn,
            Sample(
                prompt_ids=tuple(prompt[known:] if extends else prompt),
                token_ids=tuple(sampled),
                logprobs=logprobs,
                finish_reason="stop",
                new_segment=not extends,
            ),
        )
        self._stream = [*prompt, *sampled]
        return notes


def _logprobs(metrics: Metrics, count: int) -> tuple[tuple[float, ...], list[str]]:
    given = metrics.logprobs or []
    if len(given) == count:
        return tuple(given), []
    filled = [a if a is not None else 0.0 for a, _ in zip_longest(given[:count], range(count))]
    return tuple(filled), [f"{len(given)} log-probabilities for {count} tokens; the rest are 0.0"]


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _texts(value: Any) -> tuple[str, ...]:
    return tuple(str(item) for item in value) if isinstance(value, list) else ()
