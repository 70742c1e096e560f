"""Where two trajectories part, exactly.

Rule: tokens are compared as the server saw them; text only where there are no tokens. Pure.
"""

from headrace.preferences.pair import Divergence
from headrace.types import Episode, Segment, Span

_TOKEN_BYTES = 4


def divergence(a: Episode, b: Episode) -> Divergence:
    """Where `a` and `b` part, in their first context; both are of one task."""
    if a.segments and b.segments:
        return _of_tokens(a.segments[0], b.segments[0])
    return _of_text(a, b)


def shared_prefix(a: bytes, b: bytes) -> int:
    """The number of tokens that both streams begin with. Takes logarithmically many comparisons."""
    low, high = 0, min(len(a), len(b)) // _TOKEN_BYTES
    left, right = memoryview(a), memoryview(b)
    while low < high:
        middle = (low + high + 1) // 2
        start, end = low * _TOKEN_BYTES, middle * _TOKEN_BYTES
        if left[start:end] == right[start:end]:
            low = middle
        else:
            high = middle - 1
    return low


def _of_tokens(a: Segment, b: Segment) -> Divergence:
    shared = shared_prefix(a.token_ids, b.token_ids)
    turn = 0
    for one, other in zip(a.spans, b.spans, strict=False):
        if not (_within(one, shared) and _within(other, shared) and one == other):
            # The prompts before the two samples differ where the shared part ends before both.
            in_observation = one.start != other.start or shared < one.start
            turn = min(one.turn, other.turn)
            return Divergence(turn=turn, tokens=shared, in_observation=in_observation)
        turn = one.turn + 1
    return Divergence(turn=turn, tokens=shared, in_observation=False)


def _within(span: Span, shared: int) -> bool:
    return span.end <= shared


def _of_text(a: Episode, b: Episode) -> Divergence:
    turn = 0
    for one, other in zip(a.turns, b.turns, strict=False):
        if turn and a.observations[turn - 1 : turn] != b.observations[turn - 1 : turn]:
            return Divergence(turn=turn, tokens=0, in_observation=True)
        if (one.text, one.commands) != (other.text, other.commands):
            break
        turn += 1
    return Divergence(turn=turn, tokens=0, in_observation=False)
