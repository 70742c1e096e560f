"""Which images a set of tasks needs, what they share, and in what order they are built.

Rule: planning reads task folders and talks to no engine. Two recipes that would make the same
image are one image; builds that begin alike share the layers they begin with; what cannot be
built is found here, before anything is built, as a `Finding` of each task concerned.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from enum import StrEnum
from pathlib import Path

from headrace.errors import ImageError
from headrace.sandbox import image_layers
from headrace.sandbox.image_layers import Chain, Layer, read_chain
from headrace.tasks.recipes import recipes_of
from headrace.types import EnvironmentRecipe, Record, Task

REPOSITORY = "headrace/task"


class FindingKind(StrEnum):
    """Why an image cannot be built as it stands."""

    COPY_SOURCE_MISSING = "copy_source_missing"
    UNREADABLE = "unreadable"
    """No Dockerfile, no context, or text that is no Dockerfile."""
    NOTHING_NAMED = "nothing_named"
    """Neither an image nor a Dockerfile."""
    NEEDS_BUILDKIT = "needs_buildkit"
    UNKNOWN_BASE = "unknown_base"
    """The provider has no registry and does not know the image of a `FROM`."""
    NOT_UNDERSTOOD = "not_understood"
    """The provider's own builder does not understand the Dockerfile."""


class Finding(Record, frozen=True, kw_only=True):
    """Something that stops a build, known before it."""

    kind: FindingKind
    message: str


class PlannedImage(Record, frozen=True, kw_only=True):
    """One image and who needs it."""

    name: str
    """What a build here calls it, or the name of the ready image."""
    recipe: EnvironmentRecipe
    """Of the first task that needs it."""
    tasks: tuple[str, ...]
    """Names, in the order given. A task whose verifier has an image of its own is in both."""
    layers: tuple[str, ...] = ()
    """Keys, bottom first. Empty: nothing is built."""
    shared: int = 0
    """How many of `layers` another image has too."""
    bases: tuple[str, ...] = ()
    buildkit: tuple[str, ...] = ()
    """What of it only BuildKit understands, with line numbers."""
    context_bytes: int = 0
    """Size of the build context."""
    findings: tuple[Finding, ...] = ()

    @property
    def built(self) -> bool:
        """Whether it is made from a Dockerfile; else it is a ready image."""
        return self.recipe.dockerfile is not None


class ImagePlan(Record, frozen=True, kw_only=True):
    """The images of a set of tasks, in the order to build them."""

    images: tuple[PlannedImage, ...]
    """Images that share layers are beside each other, the largest family first."""
    layers: dict[str, Layer]
    """Every distinct layer by its key; parents before children."""
    tasks: int
    layers_naive: int
    """Layers that one build per task makes, each image from nothing."""
    file_layers_naive: int
    """Of these, the ones that change files."""

    @property
    def layers_distinct(self) -> int:
        return len(self.layers)

    @property
    def file_layers_distinct(self) -> int:
        return sum(layer.changes_files for layer in self.layers.values())

    @property
    def factor(self) -> float:
        """How many times fewer layers are built than by one build per task."""
        return self.layers_naive / self.layers_distinct if self.layers else 1.0

    @property
    def context_bytes(self) -> int:
        return sum(image.context_bytes for image in self.images)

    @property
    def findings(self) -> dict[str, tuple[Finding, ...]]:
        """By task name, for tasks that have any."""
        found: dict[str, tuple[Finding, ...]] = {}
        for image in self.images:
            for task in image.tasks if image.findings else ():
                found[task] = (*found.get(task, ()), *image.findings)
        return found


def plan_images(tasks: Sequence[Task]) -> ImagePlan:
    """The images of `tasks`. Blocking; never raises for what a task folder holds."""
    drafts: dict[tuple[str, ...], _Draft] = {}
    naive = file_naive = 0
    for task in tasks:
        for recipe in _made(task):
            draft = _Draft(recipe)
            draft = drafts.setdefault(draft.identity, draft)
            draft.needed_by(task.name)
            naive += len(draft.layers)
            file_naive += sum(layer.changes_files for layer in draft.layers)
    counts = Counter(layer.key for draft in drafts.values() for layer in _distinct(draft.layers))
    ordered = sorted(drafts.values(), key=lambda draft: _place(draft, counts))
    return ImagePlan(
        images=tuple(draft.planned(counts) for draft in ordered),
        layers={layer.key: layer for draft in ordered for layer in draft.layers},
        tasks=len(tasks),
        layers_naive=naive,
        file_layers_naive=file_naive,
    )


def _made(task: Task) -> Iterator[EnvironmentRecipe]:
    """The environments of a task that have an image of their own."""
    for recipe in recipes_of(task):
        if recipe.compose is None or recipe.image or recipe.dockerfile:
            yield recipe  # else every service is built or pulled by `docker compose`


def name_of(chain: Chain) -> str:
    """The name of the image that a chain makes."""
    return f"{REPOSITORY}:{chain.key}"


def lacks_of(chain: Chain, recipe: EnvironmentRecipe) -> tuple[Finding, ...]:
    """The files that a build would ask for in vain."""
    return tuple(
        Finding(
            kind=FindingKind.COPY_SOURCE_MISSING,
            message=f"{recipe.dockerfile}: line {lack.line}: expected {lack.source} in the build "
            f"context {recipe.context or Path(recipe.dockerfile or '').parent}, found none",
        )
        for lack in chain.lacks
    )


class _Draft:
    """An image while the tasks that need it are collected."""

    def __init__(self, recipe: EnvironmentRecipe) -> None:
        self.recipe = recipe
        self.chain: Chain | None = None
        self.findings: tuple[Finding, ...] = ()
        self._tasks: dict[str, None] = {}
        if recipe.dockerfile is not None:
            self._read(recipe.dockerfile, recipe.context or str(Path(recipe.dockerfile).parent))
        elif recipe.image is None:
            message = "expected an image or a Dockerfile in the task's environment: neither"
            self.findings = (Finding(kind=FindingKind.NOTHING_NAMED, message=message),)

    def _read(self, dockerfile: str, context: str) -> None:
        try:
            self.chain = read_chain(dockerfile, context)
            self.findings = lacks_of(self.chain, self.recipe)
        except ImageError as e:
            self.findings = (Finding(kind=FindingKind.UNREADABLE, message=str(e)),)

    @property
    def identity(self) -> tuple[str, ...]:
        if self.chain is not None and not self.findings:
            return ("built", self.chain.key, self.recipe.image or "")
        if self.recipe.dockerfile is None:
            return ("ready", self.recipe.image or "")
        return (self.recipe.image or "", self.recipe.dockerfile, self.recipe.context or "")

    @property
    def layers(self) -> tuple[Layer, ...]:
        """What a build makes; nothing where none can succeed."""
        return self.chain.layers if self.chain is not None and not self.findings else ()

    def needed_by(self, task: str) -> None:
        self._tasks[task] = None

    def planned(self, counts: Mapping[str, int]) -> PlannedImage:
        keys = tuple(layer.key for layer in self.layers)
        chain, recipe = self.chain, self.recipe
        return PlannedImage(
            name=name_of(chain) if chain is not None else recipe.image or "",
            recipe=recipe,
            tasks=tuple(self._tasks),
            layers=keys,
            shared=sum(counts[key] > 1 for key in keys),
            bases=chain.bases if chain is not None else (),
            buildkit=chain.buildkit if chain is not None else (),
            context_bytes=_size(recipe) if keys else 0,
            findings=self.findings,
        )


def _distinct(layers: Iterable[Layer]) -> Iterable[Layer]:
    return {layer.key: layer for layer in layers}.values()


def _place(draft: _Draft, counts: Mapping[str, int]) -> tuple[tuple[int, str], ...]:
    """Where an image stands: at each layer the branch with the most images comes first."""
    return tuple((-counts[layer.key], layer.key) for layer in draft.layers)


def _size(recipe: EnvironmentRecipe) -> int:
    assert recipe.dockerfile is not None
    context = recipe.context or str(Path(recipe.dockerfile).parent)
    return image_layers.context_bytes(recipe.dockerfile, context)
