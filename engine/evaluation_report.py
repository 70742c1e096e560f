"""A run's evaluation with where it comes from and what it leaves out, as data.

Rules: what is left out is said before any number; the report is a function of the run folder, so
it can be made again at any time, while the run goes on too. How it looks is in
`evaluation_markdown.py`, `evaluation_page.py` and `evaluation_tables.py`.
"""

import hashlib
import json
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec

from headrace.engine import summary
from headrace.engine.evaluate import Evaluation, TaskResult, evaluate_outcomes
from headrace.engine.outcomes import Outcome, outcome
from headrace.engine.reader import latest_episodes
from headrace.engine.run_folder import RunManifest, read_manifest
from headrace.errors import RunFolderError
from headrace.types import Record

REPORT_SCHEMA = 1
NAMED = 8
"""So many tasks are named in a sentence; the others are counted there and listed in the JSON."""


_FILTERS = ("include", "exclude", "limit")


class Provenance(Record, frozen=True, kw_only=True):
    """What was run."""

    run: str
    created: str
    """When the run folder was made, UTC."""
    headrace: str
    """The version that made it."""
    tasks_source: str
    tasks: int
    """Tasks that were read from it."""
    tasks_chosen: str = ""
    """How they were chosen from it: `tasks.include`, `exclude` and `limit`; empty for all."""
    tasks_digest: str
    """sha256 over the names and digests of all of them: equal digests mean equal tasks."""
    policy: str
    policy_version: str
    model: str | None
    provider: str
    network: str
    compat: str
    """How verdicts are read: `correct`, or `strict` as the official harness does."""
    attempts: int
    """Planned for each task."""
    seed: int
    config_digest: str
    versions: dict[str, str] = {}
    """Of the last session."""
    wall_s: float | None = None
    """Of the last session."""


class LeftOut(Record, frozen=True, kw_only=True):
    """What the rates are not about."""

    refused: dict[str, str] = {}
    """Tasks that were never tried, with the reason."""
    uncounted: dict[str, str] = {}
    """Tasks whose every attempt failed by the infrastructure, with what failed."""
    not_tried: tuple[str, ...] = ()
    """Tasks of the run without any attempt stored."""
    short: dict[str, int] = {}
    """Tasks with some but fewer counted attempts than planned, with how many."""
    attempts: int = 0
    """Attempts that the infrastructure failed."""
    missing: int = 0
    """Attempts planned and not stored."""
    damaged: tuple[str, ...] = ()
    """What could not be read of the run folder."""


class Report(Record, frozen=True, kw_only=True):
    """`evaluation.json`."""

    schema: int = REPORT_SCHEMA
    provenance: Provenance
    left_out: LeftOut
    evaluation: Evaluation


def report(run: Path, *, seed: int = 0) -> Report:
    """Read a run folder and evaluate it. Blocking.

    Raises `RunFolderError` for what is no run, and for attempts by more than one policy.
    """
    manifest = read_manifest(run)
    damaged: list[str] = []
    outcomes = [
        outcome(episode)
        for episode in latest_episodes(run, on_damage=lambda found: damaged.append(str(found)))
    ]
    _one_policy(run, outcomes)
    evaluation = evaluate_outcomes(outcomes, seed=seed)
    last = summary.read(run)
    refused = last.refused if last is not None else {}
    return Report(
        provenance=provenance(manifest, last),
        left_out=left_out(manifest, evaluation, refused, tuple(damaged)),
        evaluation=evaluation,
    )


def provenance(manifest: RunManifest, last: summary.Summary | None) -> Provenance:
    """What was run. `last`: the summary of the last session, if there is one."""
    config = manifest.config
    return Provenance(
        run=manifest.run,
        created=manifest.created,
        headrace=manifest.headrace,
        tasks_source=str(_at(config, "tasks", "source", default="unknown")),
        tasks=len(manifest.tasks),
        tasks_chosen=_chosen(config),
        tasks_digest=digest_of(manifest.tasks),
        policy=manifest.policy,
        policy_version=manifest.policy_version,
        model=_at(config, "policy", "model", default=None),
        provider=manifest.provider,
        network=str(_at(config, "sandbox", "network", default="unknown")),
        compat=str(_at(config, "verifier", "compat", default="unknown")),
        attempts=int(_at(config, "attempts", default=1)),
        seed=int(_at(config, "seed", default=0)),
        config_digest=manifest.config_digest,
        versions=last.versions if last else {},
        wall_s=last.wall_s if last else None,
    )


def _chosen(config: Mapping[str, Any]) -> str:
    """The filters over the source that a run was given."""
    given = {name: _at(config, "tasks", name, default=None) for name in _FILTERS}
    return "; ".join(
        f"{name} {', '.join(map(str, value)) if isinstance(value, list | tuple) else value}"
        for name, value in given.items()
        if value
    )


def digest_of(tasks: Mapping[str, str]) -> str:
    """One digest of many tasks, from their digests by name."""
    return hashlib.sha256(json.dumps(sorted(tasks.items())).encode()).hexdigest()


def left_out(
    manifest: RunManifest,
    evaluation: Evaluation,
    refused: Mapping[str, str],
    damaged: tuple[str, ...],
) -> LeftOut:
    """What the rates are not about, given what there is."""
    planned = int(_at(manifest.config, "attempts", default=1))
    tried = {task.digest for task in evaluation.by_task}
    expected = {name: d for name, d in manifest.tasks.items() if name not in refused}
    stored = {task.digest: len(task.samples) for task in evaluation.by_task}
    return LeftOut(
        refused=dict(sorted(refused.items())),
        uncounted={t.name: _what_failed(t) for t in evaluation.by_task if not t.attempts},
        not_tried=tuple(sorted(name for name, d in expected.items() if d not in tried)),
        short={t.name: t.attempts for t in evaluation.by_task if 0 < t.attempts < planned},
        attempts=evaluation.left_out,
        missing=sum(max(0, planned - stored.get(d, 0)) for d in set(expected.values())),
        damaged=damaged,
    )


def notices(found: Report) -> list[str]:
    """What a reader must know before any number, as sentences; empty for a complete run."""
    out, left = [], found.left_out
    if found.provenance.tasks_chosen:
        out.append(
            f"A choice of the tasks of {found.provenance.tasks_source}:"
            f" {found.provenance.tasks_chosen}."
        )
    if left.refused:
        out.append(
            f"{_count(len(left.refused), 'task')} left out before anything started:"
            f" {_listed(left.refused)}."
        )
    if left.uncounted:
        out.append(
            f"{_count(len(left.uncounted), 'task')} without a counted attempt, in no rate:"
            f" {_listed(left.uncounted)}."
        )
    if left.not_tried:
        names = dict.fromkeys(left.not_tried, "")
        out.append(f"{_count(len(left.not_tried), 'task')} not tried yet: {_listed(names)}.")
    if left.attempts:
        kinds = ", ".join(f"{kind} {n}" for kind, n in found.evaluation.infrastructure.items())
        out.append(
            f"{_count(left.attempts, 'attempt')} failed by the infrastructure ({kinds}): left out"
            " of every rate, not counted as failures of the policy."
        )
    if left.missing:
        out.append(f"{_count(left.missing, 'attempt')} planned and not made yet.")
    if left.short:
        few = {name: f"{n} of {found.provenance.attempts}" for name, n in left.short.items()}
        out.append(
            f"{_count(len(few), 'task')} with fewer counted attempts than planned; a rate over k"
            f" attempts is over the tasks that have k: {_listed(few)}."
        )
    if left.damaged:
        out.append(f"Unreadable, and so not counted: {'; '.join(left.damaged)}.")
    differ = found.evaluation.readings_differ
    if differ:
        out.append(
            f"{_count(differ, 'attempt')} read otherwise under the other verifier.compat:"
            f" pass@1 is {_under(found.evaluation)}."
        )
    return out


def encoded(record: Record) -> bytes:
    """A record as JSON for files."""
    return msgspec.json.format(msgspec.json.encode(record), indent=1) + b"\n"


def _one_policy(run: Path, outcomes: list[Outcome]) -> None:
    versions = Counter(o.policy for o in outcomes)
    if len(versions) > 1:
        shown = ", ".join(f"{v[:12]} ({_count(n, 'attempt')})" for v, n in versions.most_common(4))
        raise RunFolderError(
            f"{run}: expected attempts by one policy, found {len(versions)} versions: {shown}."
            " Rates over a mixture mean nothing; keep one folder for each policy"
        )


def _what_failed(task: TaskResult) -> str:
    kinds = Counter(sample.fault or "unknown" for sample in task.samples)
    return ", ".join(f"{kind} {n}" for kind, n in sorted(kinds.items()))


def _at(config: Mapping[str, Any], *keys: str, default: Any) -> Any:
    found: Any = config
    for key in keys:
        found = found.get(key) if isinstance(found, Mapping) else None
    return default if found is None else found


def _under(evaluation: Evaluation) -> str:
    rates = evaluation.readings.items()
    return ", ".join(f"{100 * e.value:.1f} % read {compat}" for compat, e in rates)


def _listed(named: Mapping[str, str]) -> str:
    shown = [f"{name} ({what})" if what else name for name, what in list(named.items())[:NAMED]]
    more = [f"and {len(named) - NAMED} more"] if len(named) > NAMED else []
    return "; ".join([*shown, *more])


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"
