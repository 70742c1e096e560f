"""Where two trajectories part, exactly."""

from array import array

import msgspec
from hypothesis import given
from hypothesis import strategies as st
from tests.preferences.runs import Act, episode, said

from headrace.preferences.divergence import divergence, shared_prefix
from headrace.preferences.pair import Divergence
from headrace.preferences.settling import where
from headrace.types import Episode

ids = st.lists(st.integers(0, 3), max_size=40)


def packed(tokens: list[int]) -> bytes:
    return array("I", tokens).tobytes()


def of(*texts: str, tokens: bool = True) -> Episode:
    return episode(turns=said(*texts), tokens=tokens)


@given(ids, ids, ids)
def test_the_shared_prefix_is_what_a_loop_counts(
    shared: list[int], a: list[int], b: list[int]
) -> None:
    one, other = shared + a, shared + b
    counted = 0
    for left, right in zip(one, other, strict=False):
        if left != right:
            break
        counted += 1
    assert shared_prefix(packed(one), packed(other)) == counted


def test_tokens_that_share_bytes_are_not_shared() -> None:
    """0x01000000 and 0x01000001 differ in one byte of four."""
    assert shared_prefix(packed([7, 0x01000000]), packed([7, 0x01000001])) == 1


def test_the_first_turn_that_differs_is_told() -> None:
    a, b = of("ls", "make", "done"), of("ls", "rm x", "done")
    start = a.segments[0].spans[1].start
    assert divergence(a, b) == Divergence(turn=1, tokens=start, in_observation=False)


def test_a_turn_that_begins_alike_differs_all_the_same() -> None:
    a, b = of("ls", "cat one"), of("ls", "cat two")
    found = divergence(a, b)
    assert (found.turn, found.in_observation) == (1, False)
    assert found.tokens == a.segments[0].spans[1].start + 1, "`cat` is shared"


def test_a_turn_that_goes_on_differs_from_one_that_ends() -> None:
    found = divergence(of("ls", "cat"), of("ls", "cat x"))
    assert (found.turn, found.in_observation) == (1, False)


def test_other_results_of_the_same_turn_part_in_the_observation() -> None:
    a = episode(turns=[("date", "Monday"), ("done", None)])
    b = episode(turns=[("date", "Tuesday"), ("done", None)])
    for one, other in ((a, b), (b, a)):
        found = divergence(one, other)
        assert (found.turn, found.in_observation) == (1, True)


def test_a_longer_result_of_the_same_turn_parts_in_the_observation() -> None:
    a = episode(turns=[("ls", "a"), ("done", None)])
    b = episode(turns=[("ls", "a b"), ("done", None)])
    assert divergence(a, b).in_observation


def test_other_openings_part_in_the_observation() -> None:
    for tokens in (True, False):
        a = episode(opening="Do it. ", tokens=tokens)
        b = episode(opening="Do it now. ", tokens=tokens)
        found = where(a, b)
        assert (found.turn, found.in_observation) == (0, True)


def test_a_trajectory_that_the_other_continues_parts_at_its_end() -> None:
    for tokens in (True, False):
        a, b = of("ls", "make", tokens=tokens), of("ls", "make", "done", tokens=tokens)
        for one, other in ((a, b), (b, a)):
            found = divergence(one, other)
            assert (found.turn, found.in_observation) == (2, False)


def test_equal_trajectories_part_nowhere() -> None:
    for tokens in (True, False):
        found = divergence(of("ls", "done", tokens=tokens), of("ls", "done", tokens=tokens))
        assert (found.turn, found.in_observation) == (2, False)


def test_without_tokens_text_and_commands_are_compared() -> None:
    a = episode(turns=[Act("I look", "x", commands=("ls",)), Act("so", None)], tokens=False)
    b = episode(turns=[Act("I look", "x", commands=("ls -a",)), Act("so", None)], tokens=False)
    assert divergence(a, b) == Divergence(turn=0, tokens=0, in_observation=False)
    assert divergence(a, of("ls")) == Divergence(turn=0, tokens=0, in_observation=False)


def test_tokens_of_two_tokenizers_are_not_compared() -> None:
    a = of("ls", "make")
    other_ids = packed([token + 1 for token in a.segments[0].tokens()])
    segment = msgspec.structs.replace(a.segments[0], token_ids=other_ids)
    b = msgspec.structs.replace(of("ls", "make"), segments=(segment,))
    assert where(a, b).in_observation
    assert where(a, b, one_tokenizer=False) == Divergence(turn=2, tokens=0, in_observation=False)


turns = st.lists(
    st.tuples(st.sampled_from(["a", "b", "a b", ""]), st.sampled_from(["x", "y", "x y"])),
    min_size=1,
    max_size=4,
)


@given(turns, turns)
def test_tokens_and_text_part_at_the_same_turn(
    a: list[tuple[str, str]], b: list[tuple[str, str]]
) -> None:
    by_tokens = divergence(episode(turns=a), episode(turns=b))
    by_text = divergence(episode(turns=a, tokens=False), episode(turns=b, tokens=False))
    assert (by_tokens.turn, by_tokens.in_observation) == (by_text.turn, by_text.in_observation)
