"""Samples become segments, token by token."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.errors import ContractError
from headrace.policies.transcript import Transcript
from headrace.types import Sample, Segment, Span

ids = st.lists(st.integers(0, 2**32 - 1), max_size=8).map(tuple)


def sample(prompt: tuple[int, ...], tokens: tuple[int, ...], *, new: bool = False) -> Sample:
    return Sample(
        prompt_ids=prompt,
        token_ids=tokens,
        logprobs=tuple(-0.5 for _ in tokens),
        finish_reason="stop",
        new_segment=new,
    )


def test_an_empty_transcript_has_no_segments() -> None:
    assert Transcript().segments() == ()


def test_two_turns_make_one_stream_with_a_span_each() -> None:
    transcript = Transcript()
    transcript.add(0, sample((1, 2, 3), (4, 5)))
    transcript.add(1, sample((6,), (7,)))
    (segment,) = transcript.segments()
    assert list(segment.tokens()) == [1, 2, 3, 4, 5, 6, 7]
    assert segment.spans == (Span(turn=0, start=3, end=5), Span(turn=1, start=6, end=7))
    assert list(segment.token_logprobs()) == [0, 0, 0, -0.5, -0.5, 0, -0.5]
    assert list(segment.loss_mask()) == [0, 0, 0, 1, 1, 0, 1]


def test_a_context_reset_begins_a_segment() -> None:
    transcript = Transcript()
    transcript.add(0, sample((1,), (2,)))
    transcript.add(1, sample((9, 9), (3,), new=True))
    first, second = transcript.segments()
    assert list(first.tokens()) == [1, 2]
    assert list(second.tokens()) == [9, 9, 3]
    assert second.spans == (Span(turn=1, start=2, end=3),)


def test_a_reset_before_anything_leaves_no_empty_segment() -> None:
    transcript = Transcript()
    transcript.add(0, sample((1,), (2,), new=True))
    assert len(transcript.segments()) == 1


def test_tokens_without_a_logprob_each_are_refused() -> None:
    bad = Sample(prompt_ids=(1,), token_ids=(2, 3), logprobs=(0.0,), finish_reason="stop")
    with pytest.raises(ContractError, match="found 1 for 2 tokens"):
        Transcript().add(0, bad)


def test_reading_a_transcript_does_not_end_it() -> None:
    transcript = Transcript()
    transcript.add(0, sample((1,), (2,)))
    transcript.segments()
    transcript.add(1, sample((3,), (4,)))
    assert [list(s.tokens()) for s in transcript.segments()] == [[1, 2, 3, 4]]


@given(st.lists(st.tuples(ids, ids.filter(bool), st.booleans()), min_size=1, max_size=12))
def test_every_sample_lies_at_its_span_whatever_came_before(
    turns: list[tuple[tuple[int, ...], tuple[int, ...], bool]],
) -> None:
    transcript = Transcript()
    for turn, (prompt, tokens, new) in enumerate(turns):
        transcript.add(turn, sample(prompt, tokens, new=new))
    found: dict[int, list[int]] = {}
    segment: Segment
    for segment in transcript.segments():
        stream = list(segment.tokens())
        for span in segment.spans:
            found[span.turn] = stream[span.start : span.end]
        assert len(segment.logprobs) == len(segment.token_ids)
    assert found == {turn: list(tokens) for turn, (_, tokens, _) in enumerate(turns)}
    total = sum(len(prompt) + len(tokens) for prompt, tokens, _ in turns)
    assert sum(len(s.token_ids) // 4 for s in transcript.segments()) == total
