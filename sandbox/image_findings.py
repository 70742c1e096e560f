"""What stops an image on one provider, known before anything is built.

Rule: the same questions that the provider itself asks before it builds; nothing is built or
pulled. What stops an image everywhere is in the plan already.
"""

from collections.abc import Sequence
from pathlib import Path

import msgspec

from headrace.aio import in_thread
from headrace.errors import ImageError
from headrace.sandbox.docker_buildx import Buildx
from headrace.sandbox.images import Finding, FindingKind, ImagePlan, PlannedImage
from headrace.sandbox.namespace_buildah import Buildah
from headrace.sandbox.namespace_images import is_known
from headrace.sandbox.namespace_plan import plan


async def found_on(provider: str, images: ImagePlan, *, builder: str = "auto") -> ImagePlan:
    """The plan with what stops its images on `docker` or `namespace` among its findings."""
    lacks = await (Buildx("") if provider == "docker" else Buildah(None)).lacks()
    if builder in ("classic", "own"):
        lacks = f"images.builder = {builder!r}"
    if provider == "docker":
        found = [_on_docker(image, lacks) for image in images.images]
    else:
        found = await in_thread(lambda: [_on_namespace(one, lacks) for one in images.images])
    changed = [
        msgspec.structs.replace(image, findings=(*image.findings, *more))
        for image, more in zip(images.images, found, strict=True)
    ]
    return msgspec.structs.replace(images, images=tuple(changed))


def _on_docker(image: PlannedImage, lacks: str | None) -> Sequence[Finding]:
    if not image.buildkit or image.findings or lacks is None:
        return ()
    message = (
        f"{image.recipe.dockerfile}: it uses {', '.join(image.buildkit)}, which needs BuildKit; "
        f"the engine's classic builder has none, and {lacks}"
    )
    return (Finding(kind=FindingKind.NEEDS_BUILDKIT, message=message),)


def _on_namespace(image: PlannedImage, lacks: str | None) -> Sequence[Finding]:
    recipe = image.recipe
    if image.findings:
        return ()
    if recipe.dockerfile is None:
        return _unknown((recipe.image or "",), "the task")
    unknown = _unknown(image.bases, recipe.dockerfile)
    if unknown or (recipe.image is not None and _is_there(recipe.image)):
        return unknown
    try:
        plan(Path(recipe.dockerfile), Path(recipe.context or Path(recipe.dockerfile).parent))
    except ImageError as e:
        if lacks is not None:
            message = f"{e}; or install buildah: {lacks}"
            return (Finding(kind=FindingKind.NOT_UNDERSTOOD, message=message),)
    return ()


def _unknown(bases: Sequence[str], where: str) -> Sequence[Finding]:
    return [
        Finding(
            kind=FindingKind.UNKNOWN_BASE,
            message=f"{where}: image {base} is not known to the namespace provider, which has no "
            "registry: use headrace/base:bookworm, a Debian 12, an image archive, or docker",
        )
        for base in bases
        if not _is_there(base)
    ]


def _is_there(base: str) -> bool:
    return is_known(base) or Path(base).is_file()
