"""Where a model's reasoning ends and its answer begins.

Rule: reasoning is text up to the first `</think>`; an opening `<think>` may be missing, because
chat templates write it for the model. It knows no other marks.
"""

import re

import msgspec

_CLOSE = re.compile(r"</think(?:ing)?>", re.IGNORECASE)
_OPEN = re.compile(r"\s*<think(?:ing)?>", re.IGNORECASE)
_SURROGATE = re.compile("[\ud800-\udfff]")


class Split(msgspec.Struct, frozen=True):
    """A model's text in two."""

    answer: str
    has_reasoning: bool = False
    unfinished: bool = False
    """The reasoning was begun and never ended: there is no answer."""


def split_reasoning(text: str) -> Split:
    """`text` without its reasoning."""
    if close := _CLOSE.search(text):
        return Split(text[close.end() :], has_reasoning=True)
    if _OPEN.match(text):
        return Split("", has_reasoning=True, unfinished=True)
    return Split(text)


def encodable(text: str) -> str:
    """`text` with lone surrogates replaced, so that it can be stored as UTF-8."""
    return _SURROGATE.sub("\ufffd", text)
