"""How long tasks took in earlier runs.

Rule: read from shards, folded task by task in constant memory for each; what cannot be read is
left out, for an order is no result.
"""

from collections.abc import Iterable
from pathlib import Path

from headrace.engine.reader import latest_episodes
from headrace.engine.resume import is_owed
from headrace.engine.run_folder import read_manifest


def seconds_by_task(runs: Iterable[Path]) -> dict[str, float]:
    """Mean seconds of an episode by task digest, from the graded episodes of these run folders.

    Raises `RunFolderError` for a folder that is no run. Blocking.
    """
    sums: dict[str, tuple[float, int]] = {}
    for run in runs:
        read_manifest(run)
        for episode in latest_episodes(run, on_damage=lambda damage: None):
            if is_owed(episode):
                continue
            timing = episode.timing
            seconds, n = sums.get(episode.task_digest, (0.0, 0))
            took = timing.prepare_s + timing.act_s + timing.verify_s
            sums[episode.task_digest] = (seconds + took, n + 1)
    return {digest: seconds / n for digest, (seconds, n) in sums.items()}
