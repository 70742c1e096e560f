"""A run as a job folder of Harbor: what its viewer, its models and its converters read.

Rule: one trial folder per episode, the newest record of each id, written one at a time; the job's
own files come last. What Harbor has no word for stays in the trajectory's `extra`. There are no
lock files: Harbor cannot resume or regrade an exported job, for it did not run it.
"""

import shutil
import uuid
from collections import defaultdict
from collections.abc import Iterable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import msgspec

from headrace.engine import atif
from headrace.types import Episode, StopReason, Verdict

AGENT_TIMEOUT: Final = "AgentTimeoutError"
ERRORS: Final = {
    "reward_missing": "RewardFileNotFoundError",
    "reward_empty": "RewardFileEmptyError",
    "reward_unparsable": "VerifierOutputParseError",
    "reward_not_finite": "VerifierOutputParseError",
    "verifier_timeout": "VerifierTimeoutError",
}
"""Harbor's names of what left an episode without a reward."""
TASK_CHARS: Final = 32
"""Of the task's name in a trial's folder, as Harbor has it."""

_Json = dict[str, Any]


class JobWriter:
    """Writes one job folder: `add` each episode, then `finish`. Blocking."""

    def __init__(self, out: Path, *, run: str, dataset: str, model: str | None) -> None:
        self._out = out
        self._run = run
        self._dataset = dataset
        self._model = model
        self._id = str(uuid.uuid5(uuid.NAMESPACE_OID, f"headrace:{run}"))
        self._names: set[str] = set()
        self._evals: dict[str, _Eval] = defaultdict(_Eval)
        self._agents: dict[str, _Json] = {}
        self._errored = 0
        self._tokens = [0, 0]
        self._first = self._last = 0.0

    def add(self, episode: Episode, artifacts: Path | None = None) -> str:
        """Write the trial of an episode; its folder's name. `artifacts`: its collected files."""
        name = self._name(episode)
        folder = self._out / name
        agent = _agent_config(episode, self._model)
        config = {
            "task": {"path": episode.task, "source": self._dataset},
            "trial_name": name,
            "trials_dir": self._out.name,
            "agent": agent,
            "environment": {"type": "docker"},
            "job_id": self._id,
        }
        result = _trial_result(episode, name, config, self._dataset, self._model)
        _write(folder / "config.json", config)
        _write(folder / "result.json", result)
        _write_agent(folder / "agent", episode, self._model, None)
        _write_verifier(folder / "verifier", episode.verdict)
        for step in episode.steps:
            place = folder / "steps" / (slug(step.name).strip(".") or "step")
            _write_agent(place / "agent", episode, self._model, step.name)
            _write_verifier(place / "verifier", step.verdict)
        _write_artifacts(folder / "artifacts", episode, artifacts)
        _write_log(folder, episode, result["exception_info"])
        self._count(episode, name, result)
        self._agents[agent["name"]] = agent
        return name

    def finish(self) -> None:
        """Write the job's own configuration and result."""
        trials = len(self._names)
        stats: _Json = {
            "n_completed_trials": trials,
            "n_errored_trials": self._errored,
            "evals": {key: found.stats() for key, found in self._evals.items()},
        }
        if any(self._tokens):
            stats |= {"n_input_tokens": self._tokens[0], "n_output_tokens": self._tokens[1]}
        result = {
            "id": self._id,
            "started_at": _time(self._first),
            "updated_at": _time(self._last),
            "finished_at": _time(self._last),
            "n_total_trials": trials,
            "stats": stats,
        }
        config = {
            "job_name": self._out.name,
            "jobs_dir": self._out.parent.name or ".",
            "agents": list(self._agents.values()),
            "datasets": [{"path": self._dataset}],
        }
        _write(self._out / "config.json", config)
        _write(self._out / "result.json", result)
        _write_text(self._out / "job.log", f"exported from the headrace run {self._run}\n")

    def _name(self, episode: Episode) -> str:
        """`<task>__<id>`, with as much of the id as makes it the only one."""
        task = slug(episode.task)[:TASK_CHARS].rstrip("_-") or "task"
        for length in (7, len(episode.id)):
            name = f"{task}__{slug(episode.id)[:length]}"
            if name not in self._names:
                break
        self._names.add(name)
        return name

    def _count(self, episode: Episode, name: str, result: _Json) -> None:
        key = "__".join(filter(None, (episode.policy, self._model, self._dataset)))
        rewards = (result["verifier_result"] or {}).get("rewards")
        error = result["exception_info"]
        self._evals[key].add(name, rewards, None if error is None else error["exception_type"])
        self._errored += error is not None
        self._tokens[0] += result["agent_result"].get("n_input_tokens", 0)
        self._tokens[1] += result["agent_result"].get("n_output_tokens", 0)
        end = episode.started_at + _lived_s(episode)
        self._first = min(self._first or episode.started_at, episode.started_at)
        self._last = max(self._last, end)


class _Eval:
    """The figures of one agent on one dataset, as Harbor counts them."""

    def __init__(self) -> None:
        self._graded = 0
        self._sums: dict[str, float] = defaultdict(float)
        self._trials = 0
        self._rewards: dict[str, dict[str, list[str]]] = defaultdict(lambda: defaultdict(list))
        self._errors: dict[str, list[str]] = defaultdict(list)

    def add(self, trial: str, rewards: dict[str, float] | None, error: str | None) -> None:
        self._trials += 1
        if rewards is not None:
            self._graded += 1
            for key, value in rewards.items():
                self._rewards[key][_number(value)].append(trial)
                self._sums[key] += value
        if error is not None:
            self._errors[error].append(trial)

    def stats(self) -> _Json:
        means = {key: total / self._trials for key, total in sorted(self._sums.items())}
        return {
            "n_trials": self._graded,
            "n_errors": sum(map(len, self._errors.values())),
            "metrics": [means] if means else [],
            "reward_stats": self._rewards,
            "exception_stats": self._errors,
        }


def slug(name: str) -> str:
    """The last part of a task's name, of letters a folder may have."""
    last = name.rpartition("/")[2] or name
    return "".join(c if c.isascii() and (c.isalnum() or c in "-_.") else "-" for c in last)


# --- one trial ------------------------------------------------------------------------------


def _trial_result(
    episode: Episode, name: str, config: _Json, dataset: str, model: str | None
) -> _Json:
    timing, start = episode.timing, episode.started_at
    prepared = start + timing.prepare_s
    acted = prepared + timing.act_s
    info: _Json = {"name": episode.policy, "version": episode.policy_version}
    if model is not None:
        info["model_info"] = {"name": model, "provider": episode.policy}
    return {
        "id": str(uuid.uuid5(uuid.NAMESPACE_OID, f"headrace:{episode.id}")),
        "task_name": episode.task,
        "trial_name": name,
        "trial_uri": f"headrace:{episode.id}",
        "task_id": {"path": episode.task},
        "source": dataset,
        "task_checksum": episode.task_digest,
        "config": config,
        "agent_info": info,
        "agent_result": _agent_result(episode),
        "verifier_result": _verifier_result(episode.verdict),
        "exception_info": _exception(episode),
        "started_at": _time(start),
        "finished_at": _time(start + _lived_s(episode)),
        "environment_setup": _span(start, prepared),
        "agent_execution": _span(prepared, acted),
        "verifier": _span(acted, acted + timing.verify_s),
        "step_results": [_step_result(step.name, step.verdict) for step in episode.steps] or None,
    }


def _agent_config(episode: Episode, model: str | None) -> _Json:
    return {"name": episode.policy} | ({} if model is None else {"model_name": model})


def _agent_result(episode: Episode) -> _Json:
    """Token counts: an input counts as often as it was sent."""
    spans = [span for segment in episode.segments for span in segment.spans]
    result: _Json = {
        "metadata": {
            "n_episodes": len(episode.turns),
            "stop_reason": episode.stop_reason.value,
            "sample": episode.sample,
        }
    }
    if spans:
        result["n_input_tokens"] = sum(span.start for span in spans)
        result["n_output_tokens"] = episode.sampled_tokens
    return result


def _verifier_result(verdict: Verdict) -> _Json | None:
    if verdict.reward is None:
        return None
    return {"rewards": verdict.rewards or {"reward": verdict.reward}}


def _step_result(name: str, verdict: Verdict) -> _Json:
    return {"step_name": name, "verifier_result": _verifier_result(verdict)}


def _exception(episode: Episode) -> _Json | None:
    """The error Harbor would have recorded; the agent's comes before the verifier's, as there."""
    verdict = episode.verdict
    if episode.stop_reason is StopReason.AGENT_TIMEOUT:
        kind, message = AGENT_TIMEOUT, episode.stop_detail or "the agent's time was over"
    elif episode.failure is not None:
        kind, message = episode.failure.error, episode.failure.message
    elif verdict.fault is not None:
        reason = verdict.reason or verdict.fault.value
        kind = ERRORS.get(reason.partition(":")[0], f"{verdict.fault.value.title()}Error")
        message = reason
    else:
        return None
    end = episode.started_at + _lived_s(episode)
    return {
        "exception_type": kind,
        "exception_message": message,
        "exception_traceback": f"{kind}: {message}",
        "occurred_at": _time(end),
    }


def _write_agent(folder: Path, episode: Episode, model: str | None, step: str | None) -> None:
    _write(folder / "trajectory.json", atif.trajectory(episode, model=model, step=step))


def _write_verifier(folder: Path, verdict: Verdict) -> None:
    _write_text(folder / "test-stdout.txt", verdict.log_tail)
    result = _verifier_result(verdict)
    if result is None:
        return
    if list(result["rewards"]) == ["reward"]:
        _write_text(folder / "reward.txt", f"{_number(result['rewards']['reward'])}\n")
    else:
        _write(folder / "reward.json", result["rewards"])


def _write_artifacts(folder: Path, episode: Episode, artifacts: Path | None) -> None:
    if not episode.artifacts:
        return
    if artifacts is not None and artifacts.is_dir():
        shutil.copytree(artifacts, folder, symlinks=True, dirs_exist_ok=True)
    status = {"missing": "failed"}
    entries = [
        {
            "source": kept.source,
            "destination": f"artifacts/{kept.destination}",
            "type": "directory" if (folder / kept.destination).is_dir() else "file",
            "status": status.get(kept.status, kept.status),
            "service": kept.service,
        }
        for kept in episode.artifacts
    ]
    _write(folder / "manifest.json", entries)


def _write_log(folder: Path, episode: Episode, error: _Json | None) -> None:
    line = f"{episode.id}: {episode.stop_reason.value} after {len(episode.turns)} turns\n"
    _write_text(folder / "trial.log", line)
    if error is not None:
        _write_text(folder / "exception.txt", error["exception_traceback"] + "\n")


def _lived_s(episode: Episode) -> float:
    timing = episode.timing
    return timing.prepare_s + timing.act_s + timing.verify_s


def _span(start: float, end: float) -> _Json:
    return {"started_at": _time(start), "finished_at": _time(end)}


def _time(unix: float) -> str:
    return datetime.fromtimestamp(unix, UTC).isoformat()


def _number(value: float) -> str:
    return f"{value:g}" if value == int(value) else repr(value)


def _write(path: Path, value: _Json | Iterable[Any]) -> None:
    _write_bytes(path, msgspec.json.format(msgspec.json.encode(value), indent=2) + b"\n")


def _write_text(path: Path, text: str) -> None:
    """In UTF-8, whatever the locale says."""
    _write_bytes(path, text.encode())


def _write_bytes(path: Path, data: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
