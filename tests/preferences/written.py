"""What a format is given, out of a run of `tests/preferences/runs.py`, and writing it."""

from collections.abc import Iterable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Protocol, TypeVar

from headrace.preferences.attempt import Attempt
from headrace.preferences.divergence import divergence
from headrace.preferences.formats.base import TRAIN, Context, Selected, Writer
from headrace.preferences.pair import Pair, Pairing, Side
from headrace.preferences.source import Source, model_of
from headrace.types import Episode

T = TypeVar("T")
Item = TypeVar("Item", contravariant=True)


class Format(Protocol[Item]):
    def open(self, folder: Path, context: Context) -> AbstractContextManager[Writer[Item]]: ...


def context(source: Source, gamma: float | None = None) -> Context:
    """Of these runs."""
    return Context(
        models=tuple(model_of(manifest) for manifest in source.manifests),
        runs=tuple(manifest.run for manifest in source.manifests),
        gamma=gamma,
    )


def selected(source: Source) -> list[Selected]:
    """Every trajectory, with two scores."""
    return [
        Selected(attempt, episode, {"turns": float(len(episode.turns)), "recoveries": 0.5})
        for attempt, episode in source.episodes()
    ]


def pairings(source: Source, start: int = 0) -> list[Pairing]:
    """The first attempt of each task over the second."""
    by_task: dict[str, list[tuple[Attempt, Episode]]] = {}
    for attempt, episode in source.episodes():
        by_task.setdefault(attempt.task, []).append((attempt, episode))
    return [_pairing(source, both[0], both[1], start) for both in by_task.values()]


def write(
    format: Format[T], folder: Path, context: Context, items: Iterable[T], split: str = TRAIN
) -> list[int]:
    """The rows that each item became."""
    folder.mkdir()
    with format.open(folder, context) as writer:
        return [writer.add(split, item) for item in items]


def _pairing(
    source: Source, chosen: tuple[Attempt, Episode], rejected: tuple[Attempt, Episode], start: int
) -> Pairing:
    pair = Pair(
        id=f"{chosen[0].id}-{rejected[0].id}",
        task=chosen[0].task,
        task_digest=chosen[0].task_digest,
        rule="margin",
        score="reward",
        margin=0.5,
        chosen=_side(source, chosen[0]),
        rejected=_side(source, rejected[0]),
        start=start,
        divergence=divergence(chosen[1], rejected[1]),
    )
    return Pairing(pair, chosen[1], rejected[1])


def _side(source: Source, attempt: Attempt) -> Side:
    return Side(
        episode=attempt.id,
        run=source.manifests[attempt.run].run,
        sample=attempt.sample,
        policy_version=attempt.policy_version,
        reward=attempt.reward,
        pass_ratio=attempt.pass_ratio,
        score=attempt.reward or 0.0,
        turns=attempt.turns,
        sampled_tokens=attempt.sampled_tokens,
        stop_reason=attempt.stop_reason,
    )
