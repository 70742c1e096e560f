"""An episode as an ATIF trajectory, the interchange format of Harbor.

Rule: what ATIF has a place for goes there, in the words Terminus-2 uses; the rest (verdict, group,
loss mask, limits reached) goes under `extra.headrace`, so that `atif_import` gives the episode
back. Pure. A `step` of ATIF is the opening or one turn; `ATIF_VERSION` is the newest that
Harbor knows; it adds sound to 1.7, which has every field used here.
"""

import base64
import math
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from typing import Any, Final

import msgspec

from headrace.types import Command, CommandResult, Episode, Segment, Span, Turn

ATIF_VERSION: Final = "ATIF-v1.8"
EXTRA: Final = "headrace"
"""Our key in every `extra`."""
KEYS, SHELL, COMPLETE, UPLOAD = "bash_command", "bash", "mark_task_complete", "upload"
"""Functions of the tool calls; the first and the third are Terminus-2's."""
NO_LOGPROB: Final = -9999.0
"""Stands for a log-probability that is not finite; JSON has none."""

_Json = dict[str, Any]


def trajectory(episode: Episode, *, model: str | None = None, step: str | None = None) -> _Json:
    """The ATIF document of an episode, or of one step of a task of several.

    `model`: the name of the model, which a run knows and an episode does not.
    """
    turns = [
        (number, turn)
        for number, turn in enumerate(episode.turns)
        if step is None or turn.step == step
    ]
    samples = _samples(episode.segments)
    steps = [_opening(episode, step)]
    for number, turn in turns:
        shown = episode.observations[number] if number < len(episode.observations) else ""
        steps.append(_agent_step(len(steps) + 1, number, turn, shown, samples.get(number)))
    document: _Json = {
        "schema_version": ATIF_VERSION,
        "session_id": episode.id,
        "trajectory_id": episode.id if step is None else f"{episode.id}-{step}",
        "agent": _agent(episode, model, [turn for _, turn in turns]),
        "steps": steps,
        "final_metrics": _totals(episode, steps),
        "extra": {EXTRA: extra(episode)},
    }
    return document


def extra(episode: Episode) -> _Json:
    """What ATIF has no place for: everything but the turns, the tokens and the policy's words."""
    told = ("turns", "observations", "segments", "prompt")
    record: _Json = msgspec.to_builtins(
        {name: getattr(episode, name) for name in episode.__struct_fields__ if name not in told}
    )
    record["loss_mask"] = [
        [[span.turn, span.start, span.end] for span in segment.spans]
        for segment in episode.segments
    ]
    record["shown"] = len(episode.observations)
    return record


def text_of(result: CommandResult) -> str:
    """What a command printed, as a person would have seen it."""
    shown = result.stdout + result.stderr
    if not shown and result.screen is not None:
        shown = result.screen
    return shown.decode("utf-8", "replace")


# --- agent and steps ------------------------------------------------------------------------


def _agent(episode: Episode, model: str | None, turns: Sequence[Turn]) -> _Json:
    used = {call["function_name"] for turn in turns for call in _calls(0, turn)}
    agent: _Json = {"name": episode.policy, "version": episode.policy_version}
    if model is not None:
        agent["model_name"] = model
    agent["tool_definitions"] = [_definition(name) for name in _PARAMETERS if name in used]
    return agent


def _opening(episode: Episode, step: str | None) -> _Json:
    message = episode.prompt or episode.instruction or (f"Step {step}" if step else "")
    opening: _Json = {"step_id": 1, "source": "user", "message": message}
    if episode.started_at:
        opening["timestamp"] = datetime.fromtimestamp(episode.started_at, UTC).isoformat()
    return opening


def _agent_step(
    step_id: int, number: int, turn: Turn, shown: str, sample: "_Sampled | None"
) -> _Json:
    calls = list(_calls(number, turn))
    step: _Json = {"step_id": step_id, "source": "agent", "message": turn.text}
    if calls:
        step["tool_calls"] = calls
    results = _results(number, turn, shown)
    if results:
        step["observation"] = {"results": results}
    if sample is not None:
        step["metrics"] = sample.metrics()
    step["llm_call_count"] = 0 if sample is None else 1
    step["extra"] = {EXTRA: _turn_extra(number, turn)}
    return step


def _turn_extra(number: int, turn: Turn) -> _Json:
    told: _Json = {"turn": number, "policy_s": turn.policy_s, "command_s": turn.command_s}
    if turn.problems:
        told["problems"] = list(turn.problems)
    if turn.warnings:
        told["warnings"] = list(turn.warnings)
    if turn.step:
        told["step"] = turn.step
    return told


# --- tool calls and their results -----------------------------------------------------------


def _calls(number: int, turn: Turn) -> Iterator[_Json]:
    for position, up in enumerate(turn.uploads):
        # Only where it goes: where it came from is a path of the machine that ran it.
        yield _call(f"upload_{number}_{position}", UPLOAD, {"target": up.target})
    for position, command in enumerate(turn.commands):
        ran = turn.results[position] if position < len(turn.results) else None
        call = _call(_call_id(number, position), *_function(command))
        told = {"ran": False} if ran is None else _outcome(ran)
        yield call | {"extra": {EXTRA: told}}
    if turn.done:
        yield _call(f"complete_{number}", COMPLETE, {})


def _call(call_id: str, function: str, arguments: _Json) -> _Json:
    return {"tool_call_id": call_id, "function_name": function, "arguments": arguments}


def _call_id(number: int, position: int) -> str:
    return f"call_{number}_{position}"


def _function(command: Command) -> tuple[str, _Json]:
    limit = {} if command.timeout_s is None else {"duration": command.timeout_s}
    if command.keys:
        return KEYS, {"keystrokes": command.text} | limit
    limit = {} if command.timeout_s is None else {"timeout_s": command.timeout_s}
    return SHELL, {"command": command.text} | limit


def _outcome(result: CommandResult) -> _Json:
    """The fields of a result that are not at their default; bytes that are no text in base64."""
    told: _Json = {"exit_code": result.exit_code, "duration_s": result.duration_s}
    for name in ("stdout_cut", "stderr_cut", "timed_out", "shell_lost"):
        if getattr(result, name):
            told[name] = getattr(result, name)
    for name in ("stdout", "stderr", "screen"):
        data = getattr(result, name)
        if data:
            told |= _bytes(name, data)
    return told


def _bytes(name: str, data: bytes) -> _Json:
    try:
        return {name: data.decode()}
    except UnicodeDecodeError:
        return {f"{name}_base64": base64.b64encode(data).decode("ascii")}


def _results(number: int, turn: Turn, shown: str) -> list[_Json]:
    """What the policy was shown; for one that is shown nothing, what each command printed."""
    if shown:
        return [{"content": shown}]
    return [
        {"source_call_id": _call_id(number, position), "content": text_of(result)}
        for position, result in enumerate(turn.results)
    ]


_PARAMETERS: Final[dict[str, _Json]] = {
    KEYS: {"keystrokes": {"type": "string"}, "duration": {"type": "number"}},
    SHELL: {"command": {"type": "string"}, "timeout_s": {"type": "number"}},
    UPLOAD: {"target": {"type": "string"}},
    COMPLETE: {},
}
_SAYS: Final = {
    KEYS: "Type keystrokes into the terminal and wait.",
    SHELL: "Run a command in the persistent shell.",
    UPLOAD: "Bring a folder of the task into the sandbox.",
    COMPLETE: "Say that the task is finished.",
}


def _definition(name: str) -> _Json:
    parameters = {"type": "object", "properties": _PARAMETERS[name]}
    function = {"name": name, "description": _SAYS[name], "parameters": parameters}
    return {"type": "function", "function": function}


# --- tokens ---------------------------------------------------------------------------------


class _Sampled(msgspec.Struct, frozen=True):
    """The policy call of one turn, as tokens."""

    segment: Segment
    span: Span

    def metrics(self) -> _Json:
        tokens, logprobs = self.segment.tokens(), self.segment.token_logprobs()
        start, end = self.span.start, self.span.end
        return {
            "prompt_tokens": start,
            "completion_tokens": end - start,
            "prompt_token_ids": tokens[:start].tolist(),
            "completion_token_ids": tokens[start:end].tolist(),
            "logprobs": [_logprob(value) for value in logprobs[start:end]],
        }


def _samples(segments: Sequence[Segment]) -> dict[int, _Sampled]:
    return {
        span.turn: _Sampled(segment=segment, span=span)
        for segment in segments
        for span in segment.spans
    }


def _logprob(value: float) -> float:
    """Nine significant digits give every float32 back."""
    return float(f"{value:.9g}") if math.isfinite(value) else NO_LOGPROB


def _totals(episode: Episode, steps: Sequence[_Json]) -> _Json:
    totals: _Json = {"total_steps": len(steps)}
    metrics = [step["metrics"] for step in steps if "metrics" in step]
    if metrics:
        totals["total_prompt_tokens"] = sum(m["prompt_tokens"] for m in metrics)
        totals["total_completion_tokens"] = sum(m["completion_tokens"] for m in metrics)
    if episode.verdict.reward is not None:
        totals["extra"] = {"reward": episode.verdict.reward}
    return totals
