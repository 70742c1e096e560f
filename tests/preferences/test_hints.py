"""Marked hints go from what the policy was shown, and from nothing else."""

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.preferences.runs import Act, episode

from headrace.preferences.filters import SFT
from headrace.preferences.hints import has_hints, stripped, without_hints
from headrace.types import Command, CommandResult, Turn

START, END = SFT.hint_start, SFT.hint_end


def marked(text: str) -> str:
    return f"{START}{text}{END}"


@pytest.mark.parametrize(
    ("text", "left"),
    [
        ("nothing here", "nothing here"),
        (f"a {marked('x')} b", "a  b"),
        (f"a\n{marked('x')}\nb", "a\nb"),
        (f"{marked('x')}\nb", "b"),
        (f"a{marked('x')}\nb", "a\nb"),
        (f"{marked('x')}{marked('y')}z{marked('')}", "z"),
        (f"a {START} to the end", "a "),
        (f"a {END} b", f"a {END} b"),
        (f"a {START}{START}x{END} b", "a  b"),
    ],
)
def test_what_is_between_the_marks_goes_with_them(text: str, left: str) -> None:
    assert stripped(text, START, END) == left


@given(st.lists(st.sampled_from([START, END, "a", "\n", " "]), max_size=20))
def test_no_mark_begins_in_what_is_left_and_nothing_else_goes(parts: list[str]) -> None:
    text = "".join(parts)
    left = stripped(text, START, END)
    assert START not in left
    assert stripped(left, START, END) == left
    if START not in text:
        assert left == text


def test_instruction_opening_prompt_and_observations_are_stripped_and_words_are_not() -> None:
    hinted = f"do it{marked('see /etc')}."
    one = episode(
        instruction=hinted,
        opening=f"Task: {hinted}",
        turns=[Act(f"I was told {marked('x')}", f"out{marked('more')}", ("ls",)), ("id", None)],
    )
    assert has_hints(one, START)
    clean = without_hints(one, START, END)
    assert (clean.instruction, clean.opening) == ("do it.", "Task: do it.")
    assert clean.prompt == "<user>Task: do it.<assistant>"
    assert clean.observations == ("out",)
    assert [turn.text for turn in clean.turns] == [turn.text for turn in one.turns]
    assert not has_hints(clean, START)


def test_what_commands_printed_is_stripped_and_other_bytes_stay() -> None:
    hint = marked("x").encode()
    printed = CommandResult(exit_code=0, stdout=b"\xffa" + hint, stderr=hint, screen=b"$ " + hint)
    turn = Turn(text="ls", commands=(Command(text="ls"),), results=(printed,))
    one = episode(turns=[("ls", None)])
    clean = without_hints(msgspec.structs.replace(one, turns=(turn,)), START, END)
    (result,) = clean.turns[0].results
    assert (result.stdout, result.stderr, result.screen) == (b"\xffa", b"", b"$ ")
    assert clean.segments == one.segments, (
        "the policy was not shown it: its tokens are as they were"
    )


def test_what_is_stripped_has_no_tokens_and_keeps_its_spans() -> None:
    one = episode(opening=f"Task {marked('x')}")
    clean = without_hints(one, START, END)
    assert [s.token_ids + s.logprobs for s in clean.segments] == [b""]
    assert clean.segments[0].spans == one.segments[0].spans
    assert clean.sampled_tokens == one.sampled_tokens


def test_an_episode_without_hints_stays_the_very_same() -> None:
    one = episode()
    assert without_hints(one, START, END) is one
