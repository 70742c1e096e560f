"""What a Dockerfile's COPY and ADD want from the build context, and whether it is there.

Rule: a light reading. Sources with variables, from other stages, from the network and
here-documents are taken as there, and so is everything of a text that is no Dockerfile: the
builder has the last word.
"""

import os
import re
from collections.abc import Iterator
from pathlib import Path

from headrace.errors import ImageError
from headrace.tasks.dockerfile import Instruction, parse

_GLOB = re.compile(r"[*?\[]")
_REMOTE = re.compile(r"(https?|git|ssh)://|git@|\S+\.git(#|$)")


def context_sources(dockerfile: str) -> list[str]:
    """The sources that the build context must hold, as written."""
    try:
        instructions = parse(dockerfile)
    except ImageError:
        return []
    return [source for one in instructions for source in _sources(one)]


def missing_sources(dockerfile: str, context: Path) -> list[str]:
    """Those of `context_sources` that `context` does not hold."""
    return missing(context_sources(dockerfile), context)


def missing(sources: list[str], context: Path) -> list[str]:
    """Those of `sources` that `context` does not hold."""
    return [source for source in sources if not _exists(source, context)]


def _sources(instruction: Instruction) -> Iterator[str]:
    if instruction.name not in ("COPY", "ADD") or instruction.heredoc:
        return
    if "from" in instruction.flags or "<<" in instruction.value:
        return
    words = instruction.words
    if words is None:
        words = () if instruction.value.startswith("[") else tuple(instruction.value.split())
    for word in words[:-1]:
        if not (_REMOTE.match(word) or "$" in word or "\0" in word):
            yield word


def _exists(source: str, context: Path) -> bool:
    relative = os.path.normpath(source.lstrip("/") or ".")
    if relative == ".." or relative.startswith("../"):
        return False
    try:
        if not _GLOB.search(relative):
            return os.path.lexists(context / relative)
        return next(context.glob(relative), None) is not None
    except (ValueError, re.error, OSError):
        return True  # a pattern that Python reads differently: left to the builder
