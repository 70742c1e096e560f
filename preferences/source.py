"""The runs that data is made of: opened together, refused when they do not belong together.

Rules: one pass reads every record once and keeps an `Attempt` of it; a single episode is read again
by its place. Runs of several policies or tokenizers are a mistake unless it is said that they are
not, and then that is recorded.
"""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Final

import msgspec

from headrace.engine.reader import Fetcher, latest_placed
from headrace.engine.run_folder import RunManifest, read_manifest
from headrace.engine.shards import Damage
from headrace.errors import RunFolderError
from headrace.preferences.attempt import Attempt, attempt
from headrace.types import Episode

_ONE_POLICY: Final = (
    "Give runs of one policy, or --allow-mixed-policies for off-policy data; it is recorded with"
    " what is made"
)


class Source:
    """One or several runs of the same task set. Blocking."""

    def __init__(self, runs: Sequence[Path], *, allow_mixed_policies: bool = False) -> None:
        """Raises `RunFolderError` for what is no run, a run that is named twice, and, with the
        list, for several policies or tokenizers; `allow_mixed_policies` allows the policies, and
        the tokenizers for what is made of text.
        """
        self.paths = tuple(runs)
        self.mixed = allow_mixed_policies
        self.manifests = tuple(read_manifest(run) for run in runs)
        self.damages: list[Damage] = []
        """What could not be read, as far as was read."""
        self._fetchers: dict[int, Fetcher] = {}
        self._policy: tuple[str, str] | None = None
        """Name and version of the first attempt's, where only one is allowed."""
        _once_each(self.paths, self.manifests)
        if not allow_mixed_policies:
            _of_one(self.paths, self.manifests)

    @property
    def tokenizers(self) -> tuple[str, ...]:
        """The models whose tokenizers the streams are of, each once."""
        return tuple(dict.fromkeys(model_of(manifest) or "unknown" for manifest in self.manifests))

    def episodes(self) -> Iterator[tuple[Attempt, Episode]]:
        """The newest record of every attempt, run by run in the order of storing.

        Raises `RunFolderError` for a run that holds attempts of several policies, as one that was
        imported can, unless they may be mixed.
        """
        for number, run in enumerate(self.paths):
            for place, episode in latest_placed(run, on_damage=self.damages.append):
                self.refuse_another(episode, run)
                yield attempt(episode, number, place), episode

    def refuse_another(self, episode: Episode, run: Path) -> None:
        """Raises `RunFolderError` for an attempt of another policy than the first one's."""
        if self.mixed:
            return
        policy = episode.policy, episode.policy_version
        self._policy = self._policy or policy
        if policy[1] != self._policy[1]:
            both = " and ".join(
                f"{name} {version[:12]}" for name, version in (self._policy, policy)
            )
            raise RunFolderError(
                f"expected attempts of one policy, found {both} in {run}. {_ONE_POLICY}"
            )

    def fetch(self, wanted: Attempt) -> Episode:
        """The whole record of an attempt. Raises `RunFolderError` if it is damaged."""
        fetcher = self._fetchers.get(wanted.run)
        if fetcher is None:
            fetcher = self._fetchers[wanted.run] = Fetcher(self.paths[wanted.run])
        return fetcher.get(wanted.place)


def told(damage: Damage) -> str:
    """Damage in words, with the run's folder and not its place."""
    shard = Path(damage.shard)
    named = shard.relative_to(shard.parent.parent.parent)
    return str(msgspec.structs.replace(damage, shard=named.as_posix()))


def model_of(manifest: RunManifest) -> str | None:
    """The model as the run was given it; None for policies without one."""
    policy = manifest.config.get("policy")
    model = policy.get("model") if isinstance(policy, Mapping) else None
    return model if isinstance(model, str) and model else None


def model_name(manifest: RunManifest) -> str | None:
    """The model as others may know it: of one in a folder, the folder's name and not its place."""
    model = model_of(manifest)
    return None if model is None else Path(model).name or model


def _once_each(paths: Sequence[Path], manifests: Sequence[RunManifest]) -> None:
    seen: dict[str, Path] = {}
    for path, manifest in zip(paths, manifests, strict=True):
        if manifest.run in seen:
            raise RunFolderError(
                f"expected each run once, found {manifest.run} in {seen[manifest.run]} and {path}"
            )
        seen[manifest.run] = path


def _of_one(paths: Sequence[Path], manifests: Sequence[RunManifest]) -> None:
    for what, each in (
        ("tokenizer", [model_of(m) or "none" for m in manifests]),
        ("policy", [f"{m.policy} {m.policy_version[:12]}" for m in manifests]),
    ):
        if len(set(each)) > 1:
            lines = "\n".join(f"  {path}: {it}" for path, it in zip(paths, each, strict=True))
            raise RunFolderError(
                f"expected runs of one {what}, found {len(set(each))}:\n{lines}\n{_ONE_POLICY}"
            )
