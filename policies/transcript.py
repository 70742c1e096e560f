"""Samples, turn by turn, as the token stream the server saw.

Rule: ids are kept as they came, never from text. It knows no server and no tokenizer, so any
policy whose actions carry a `Sample` can be recorded with it.
"""

import sys
from array import array
from collections.abc import Iterable

from headrace.errors import ContractError
from headrace.types import Sample, Segment, Span


class Transcript:
    """Grows by one sample per turn; `segments` packs what is there."""

    def __init__(self) -> None:
        self._closed: list[Segment] = []
        self._open = _OpenSegment()

    def add(self, turn: int, sample: Sample) -> None:
        """Append the sample of `turn`: its new prompt tokens, then what the policy sampled.

        `ContractError` when ids and log-probabilities differ in number.
        """
        if len(sample.token_ids) != len(sample.logprobs):
            raise ContractError(
                f"turn {turn}: expected one log-probability per sampled token, "
                f"found {len(sample.logprobs)} for {len(sample.token_ids)} tokens"
            )
        if sample.new_segment and self._open.token_ids:
            self._closed.append(self._open.pack())
            self._open = _OpenSegment()
        self._open.prompt(sample.prompt_ids)
        self._open.sampled(turn, sample.token_ids, sample.logprobs)

    def segments(self) -> tuple[Segment, ...]:
        """Every segment so far, the open one last; empty when no sample was added."""
        if not self._open.token_ids:
            return tuple(self._closed)
        return (*self._closed, self._open.pack())


class _OpenSegment:
    def __init__(self) -> None:
        self.token_ids = array("I")
        self._logprobs = array("f")
        self._spans: list[Span] = []

    def prompt(self, token_ids: Iterable[int]) -> None:
        before = len(self.token_ids)
        self.token_ids.extend(token_ids)
        self._logprobs.frombytes(bytes(4 * (len(self.token_ids) - before)))

    def sampled(self, turn: int, token_ids: Iterable[int], logprobs: Iterable[float]) -> None:
        start = len(self.token_ids)
        self.token_ids.extend(token_ids)
        self._logprobs.extend(logprobs)
        if len(self.token_ids) > start:
            self._spans.append(Span(turn=turn, start=start, end=len(self.token_ids)))

    def pack(self) -> Segment:
        return Segment(
            token_ids=_little_endian(self.token_ids),
            logprobs=_little_endian(self._logprobs),
            spans=tuple(self._spans),
        )


def _little_endian(values: "array[int] | array[float]") -> bytes:
    if sys.byteorder == "little":
        return values.tobytes()
    swapped = values[:]
    swapped.byteswap()
    return swapped.tobytes()
