"""A run folder into files of other programs, and files of theirs into a run folder.

Rule: one episode is in memory at a time; a folder that is not empty is never written into. What a
file means is decided in `atif`, `atif_import` and `harbor_job`.
"""

import json
import secrets
import shutil
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import msgspec

import headrace
from headrace.aio import in_thread
from headrace.engine import atif
from headrace.engine.atif_import import Around, read_episode
from headrace.engine.atif_reading import finite
from headrace.engine.export import json_line
from headrace.engine.harbor_job import JobWriter, slug
from headrace.engine.reader import OnDamage, latest_episodes
from headrace.engine.run_folder import (
    RUN_FILE,
    RunManifest,
    not_writable,
    read_manifest,
    write_atomically,
)
from headrace.engine.store import Store
from headrace.errors import RunFolderError, StoreError, TrajectoryError
from headrace.types import Record, StopReason, Verdict, VerdictFault

ARTIFACTS: Final = "artifacts"
"""The folder of a run that holds what was collected, by episode."""
TRAJECTORY: Final = "trajectory.json"
"""What Harbor calls the trajectory of a trial."""
NAMED: Final = 10
"""Files that are named when nothing at all could be imported."""
_FAULTS: Final = {
    "RewardFileNotFoundError": "reward_missing",
    "RewardFileEmptyError": "reward_empty",
    "VerifierOutputParseError": "reward_unparsable",
    "VerifierTimeoutError": "verifier_timeout",
}


class Imported(Record, frozen=True, kw_only=True):
    """What an import came to."""

    episodes: int
    left_out: tuple[str, ...]
    """A message for each file that is no trajectory."""


# --- out ------------------------------------------------------------------------------------


def export_run(run: Path, format: str, out: Path, *, on_damage: OnDamage) -> int:
    """Write the newest record of every episode as `atif`, `harbor-job` or `jsonl`; how many.

    Raises `RunFolderError` for a run that is none or a folder that is in use, `StoreError` when it
    cannot be written.
    """
    manifest = read_manifest(run)
    writers = {"atif": _export_atif, "harbor-job": _export_job, "jsonl": _export_lines}
    with filling(out):
        try:
            return writers[format](run, out, manifest, on_damage)
        except OSError as e:
            raise StoreError(f"{out} cannot be written: {e.strerror or e}") from e


def _export_atif(run: Path, out: Path, manifest: RunManifest, on_damage: OnDamage) -> int:
    model, written = _model(manifest), 0
    for episode in latest_episodes(run, on_damage=on_damage):
        document = atif.trajectory(episode, model=model)
        path = out / f"{slug(episode.task)[:100]}__{slug(episode.id)}.json"
        path.write_bytes(msgspec.json.encode(document) + b"\n")
        written += 1
    return written


def _export_job(run: Path, out: Path, manifest: RunManifest, on_damage: OnDamage) -> int:
    writer = JobWriter(out, run=manifest.run, dataset=_dataset(manifest), model=_model(manifest))
    written = 0
    for episode in latest_episodes(run, on_damage=on_damage):
        # An imported id is anybody's word: only a plain name is a folder of this run.
        plain = Path(episode.id).name == episode.id and episode.id != ".."
        writer.add(episode, run / ARTIFACTS / episode.id if plain else None)
        written += 1
    writer.finish()
    return written


def _export_lines(run: Path, out: Path, manifest: RunManifest, on_damage: OnDamage) -> int:
    written = 0
    with (out / "episodes.jsonl").open("wb") as file:
        for episode in latest_episodes(run, on_damage=on_damage):
            file.write(json_line(episode))
            written += 1
    return written


def _model(manifest: RunManifest) -> str | None:
    """The model's name; of one in a folder, the folder's."""
    policy = manifest.config.get("policy")
    model = policy.get("model") if isinstance(policy, Mapping) else None
    return Path(model).name if isinstance(model, str) and model else None


def _dataset(manifest: RunManifest) -> str:
    tasks = manifest.config.get("tasks")
    source = tasks.get("source") if isinstance(tasks, Mapping) else None
    return Path(source).name or "tasks" if isinstance(source, str) else "tasks"


@contextmanager
def filling(out: Path) -> Iterator[None]:
    """A new or empty folder; empty again when the block fails or is stopped. Blocking.

    Half an export looks like a whole one, and would refuse the same command.
    """
    _empty_folder(out)
    try:
        yield
    except BaseException:
        for path in out.iterdir():
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink(missing_ok=True)
        raise


def _empty_folder(out: Path) -> None:
    try:
        out.mkdir(parents=True, exist_ok=True)
        found = next(out.iterdir(), None)
    except OSError as e:
        raise not_writable(f"{out} cannot be made", e) from e
    if found is not None:
        raise RunFolderError(
            f"{out} is not empty (it has {found.name}); give a new folder with --out"
        )


# --- in -------------------------------------------------------------------------------------


async def import_run(source: Path, out: Path, rewards: Path | None = None) -> Imported:
    """Make the run folder `out` of the trajectories at `source`.

    Raises `TrajectoryError` when there are none to read or `rewards` is broken, `RunFolderError`
    for a folder in use.
    """
    given = {} if rewards is None else await in_thread(_read_rewards, rewards)
    paths = await in_thread(_trajectories, source)
    with filling(out):
        return await _imported(paths, out, given)


async def _imported(paths: Sequence[Path], out: Path, given: Mapping[str, float]) -> Imported:
    samples: Counter[tuple[str, str]] = Counter()
    tasks: dict[str, str] = {}
    policies: dict[str, str] = {}
    left_out: list[str] = []
    async with Store(out) as store:
        for path in paths:
            try:
                around = await in_thread(_around, path, given)
                episode = await in_thread(read_episode, path, around)
                key = (episode.task_digest, episode.policy_version)
                if episode.provider == "imported" and samples[key]:  # the next of its group
                    around = msgspec.structs.replace(around, sample=samples[key])
                    episode = await in_thread(read_episode, path, around)
            except TrajectoryError as e:
                left_out.append(str(e))
                continue
            samples[key] += 1
            tasks[episode.task] = episode.task_digest
            policies[episode.policy] = episode.policy_version
            await store.append(episode)
    if not samples:
        shown = "\n".join(f"  {line}" for line in left_out[:NAMED])
        raise TrajectoryError(f"expected at least one ATIF trajectory, found none:\n{shown}")
    await in_thread(_write_manifest, out, tasks, policies)
    return Imported(episodes=samples.total(), left_out=tuple(left_out))


def _trajectories(source: Path) -> list[Path]:
    """One file; the trials of a Harbor job; or every JSON file below a folder."""
    if source.is_file():
        return [source]
    if not source.is_dir():
        raise TrajectoryError(f"expected a trajectory or a folder of them, found nothing: {source}")
    found = sorted(source.glob(f"*/agent/{TRAJECTORY}")) or sorted(source.rglob("*.json"))
    if not found:
        raise TrajectoryError(f"{source} has no JSON file: expected ATIF trajectories")
    return found


def _around(path: Path, rewards: Mapping[str, float]) -> Around:
    """What is known from the trial's result beside the file, and from the caller."""
    result = _trial_result(path)
    around = Around() if result is None else _of_trial(result)
    if rewards:
        for name in _names(path):
            if name in rewards:
                value = rewards[name]
                verdict = Verdict(reward=min(1.0, max(0.0, value)), rewards={"reward": value})
                return msgspec.structs.replace(around, given=verdict)
    return around


def _names(path: Path) -> Iterator[str]:
    yield path.stem
    yield path.parent.parent.name  # of a Harbor trial
    document = _object(path) or {}
    for key in ("trajectory_id", "session_id"):
        if isinstance(document.get(key), str):
            yield document[key]


def _trial_result(path: Path) -> dict[str, Any] | None:
    if path.name != TRAJECTORY or path.parent.name != "agent":
        return None
    return _object(path.parent.parent / "result.json")


def _object(path: Path) -> dict[str, Any] | None:
    """The JSON object in a regular file; None for anything else."""
    try:
        found = json.loads(path.read_bytes()) if path.is_file() else None
    except (OSError, ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) else None


def _of_trial(result: Mapping[str, Any]) -> Around:
    task = result.get("task_name")
    error = result.get("exception_info")
    kind = error.get("exception_type") if isinstance(error, Mapping) else None
    graded = result.get("verifier_result")
    rewards = graded.get("rewards") if isinstance(graded, Mapping) else None
    verdict = None
    if isinstance(rewards, Mapping) and rewards:
        verdict = _verdict(rewards)
    elif isinstance(error, Mapping) and kind in _FAULTS:
        reason = f"{_FAULTS[kind]}: {error.get('exception_message')}"
        verdict = Verdict(reward=None, fault=VerdictFault.VERIFIER, reason=reason)
    return Around(
        task=task if isinstance(task, str) else None,
        verdict=verdict,
        stop_reason=StopReason.AGENT_TIMEOUT if kind == "AgentTimeoutError" else None,
    )


def _verdict(rewards: Mapping[str, Any]) -> Verdict | None:
    numbers = {str(key): finite(value) for key, value in rewards.items()}
    values = {key: value for key, value in numbers.items() if value is not None}
    if not values:
        return None
    reward = values.get("reward", sum(values.values()) / len(values))
    return Verdict(reward=min(1.0, max(0.0, reward)), rewards=values)


def _read_rewards(path: Path) -> dict[str, float]:
    try:
        return msgspec.json.decode(path.read_bytes(), type=dict[str, float])
    except OSError as e:
        raise TrajectoryError(f"{path} cannot be read: {e.strerror or e}") from e
    except (msgspec.MsgspecError, UnicodeDecodeError) as e:
        raise TrajectoryError(
            f'{path}: expected a reward by name, such as {{"a-trajectory": 1.0}}: {e}'
        ) from None


def _write_manifest(out: Path, tasks: Mapping[str, str], policies: Mapping[str, str]) -> None:
    manifest = RunManifest(
        run=secrets.token_hex(6),
        created=time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        headrace=headrace.__version__,
        config={"imported": "atif"},
        config_digest="",
        tasks=dict(tasks),
        policy=", ".join(sorted(policies)),
        policy_version=", ".join(sorted(policies.values())),
        provider="imported",
    )
    data = msgspec.json.format(msgspec.json.encode(manifest), indent=2) + b"\n"
    write_atomically(out / RUN_FILE, data)
