"""The scores, each on trajectories whose score is plain to see."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace
from tests.preferences.runs import Act, episode, said

from headrace.engine.reader import Place
from headrace.preferences.attempt import Attempt, attempt
from headrace.preferences.scores import OBSERVATION_BYTES, observation_use, recoveries, scores
from headrace.types import Command, CommandResult, Episode, Turn


def use(*turns: tuple[str, str | None], instruction: str = "Do it.") -> float:
    return observation_use(episode(turns=turns, instruction=instruction))


def tried(*commands: tuple[str, int]) -> Episode:
    """A turn for each command and its exit code."""
    return episode(turns=[Act(text, "", (text,), exit_code=code) for text, code in commands])


# --- observation_use ------------------------------------------------------------------------


def test_a_name_out_of_a_listing_is_use_of_it() -> None:
    assert use(("ls", "report.csv"), ("head /data/report.csv", None)) == 1.0


def test_a_name_that_the_instruction_has_is_no_use() -> None:
    asked = "Sum up report.csv."
    assert use(("ls", "report.csv"), ("head report.csv", None), instruction=asked) == 0.0


def test_what_was_shown_before_the_last_observation_is_no_use() -> None:
    turns = [("ls", "report.csv"), ("pwd", "/home/user report.csv"), ("cat report.csv", None)]
    assert use(*turns) == 0.0


def test_what_the_policy_typed_itself_is_no_use_when_the_terminal_echoes_it() -> None:
    assert use(("touch made.txt", "$ touch made.txt"), ("cat made.txt", None)) == 0.0


def test_a_part_of_a_word_is_no_word() -> None:
    assert use(("ls", "reports-of-old"), ("cat port", None)) == 0.0


def test_short_words_do_not_count() -> None:
    assert use(("ls", "abc"), ("cat abc", None)) == 0.0
    assert use(("ls", "abcd"), ("cat abcd", None)) == 1.0


def test_the_share_is_over_actions_after_the_first_turn() -> None:
    turns = [("ls", "main.c"), ("cat main.c", "int main"), ("make test", None)]
    assert use(*turns) == 0.5
    assert use(("ls", None)) == 0.0


def test_turns_without_a_command_are_no_actions() -> None:
    turns = [Act("ls", "main.c"), Act("hm", "?", ()), Act("", "x", (" ",)), Act("cat main.c", None)]
    assert observation_use(episode(turns=turns)) == 0.0  # shown three turns ago
    del turns[1:3]
    assert observation_use(episode(turns=turns)) == 1.0


def test_the_middle_of_a_long_observation_is_not_looked_at() -> None:
    filler = "x " * OBSERVATION_BYTES
    assert use(("ls", f"{filler} main.c {filler}"), ("cat main.c", None)) == 0.0
    assert use(("ls", f"{filler} main.c"), ("cat main.c", None)) == 1.0
    assert use(("ls", f"main.c {filler}"), ("cat main.c", None)) == 1.0


@given(st.lists(st.tuples(st.text("ab/ .", max_size=12), st.text("ab/ .", max_size=12))))
def test_it_is_what_the_definition_says(turns: list[tuple[str, str]]) -> None:
    one = episode(turns=turns or [("x", "y")], instruction="abab", opening="abba")

    def words(text: str) -> set[str]:
        found = (word.removesuffix(".") for word in text.replace("/", " ").split())
        return {word for word in found if len(word) >= 4}

    used = actions = 0
    for number, turn in enumerate(one.turns):
        command = turn.commands[0].text
        if number == 0 or not command.strip():
            continue
        before = words(f"{one.instruction} {one.opening}")
        for earlier in range(number):
            before |= words(one.turns[earlier].commands[0].text)
            before |= words(one.observations[earlier]) if earlier < number - 1 else set()
        actions += 1
        used += bool(words(command) & (words(one.observations[number - 1]) - before))
    assert observation_use(one) == (used / actions if actions else 0.0)


# --- recoveries -----------------------------------------------------------------------------


def test_a_later_success_of_the_same_program_is_a_recovery() -> None:
    assert recoveries(tried(("make all", 2), ("vi Makefile", 0), ("make test", 0))) == 1


def test_the_same_arguments_to_another_program_are_one() -> None:
    assert recoveries(tried(("pythn run.py --fast", 127), ("python3 run.py --fast", 0))) == 1


def test_another_success_is_none() -> None:
    assert recoveries(tried(("make all", 2), ("ls", 0))) == 0
    assert recoveries(tried(("ls", 0), ("make", 0))) == 0
    assert recoveries(tried(("make", 2), ("make", 2))) == 0


def test_several_failures_of_a_program_are_made_up_for_once() -> None:
    assert recoveries(tried(("make", 2), ("make", 2), ("make", 0), ("make", 0))) == 1


def test_the_program_is_behind_what_only_prepares_it() -> None:
    failed = "cd /app && CC=clang sudo make all"
    assert recoveries(tried((failed, 2), ("export X=1; make", 0))) == 1
    assert recoveries(tried(("cd /nowhere", 1), ("cd /app", 0))) == 0


def typed(*answers: tuple[str, bytes]) -> Episode:
    turns = tuple(
        Turn(
            text=keys,
            commands=(Command(text=keys, keys=True),),
            results=(CommandResult(exit_code=None, stdout=printed),),
        )
        for keys, printed in answers
    )
    return replace(episode(tokens=False), turns=turns)


def test_keystrokes_fail_by_what_they_print() -> None:
    printed = b"bash: gti: command not found\n"
    assert recoveries(typed(("gti log\n", printed), ("git log\n", b"commit 1\n"))) == 1
    assert recoveries(typed(("gti log\n", b"fine"), ("git log\n", b"commit 1\n"))) == 0


def test_a_timed_out_command_failed() -> None:
    one = episode(turns=[("make", "x"), ("make", None)])
    timed_out = CommandResult(exit_code=0, timed_out=True)
    first = Turn(text="make", commands=one.turns[0].commands, results=(timed_out,))
    assert recoveries(one) == 0
    assert recoveries(replace(one, turns=(first, one.turns[1]))) == 1


def seen(one: Episode) -> Attempt:
    return attempt(one, 0, Place(0, 0, 0))


# --- all of them ----------------------------------------------------------------------------


@pytest.mark.parametrize("costly", [True, False])
def test_every_trajectory_has_the_same_scores(costly: bool) -> None:
    cheap = ["turns", "sampled_tokens", "problems"]
    names = ["observation_use", "recoveries", *cheap] if costly else cheap
    for one in (episode(), episode(turns=()), episode(tokens=False)):
        assert list(scores(seen(one), one, costly=costly)) == names


def test_turns_tokens_and_problems_are_counted() -> None:
    turns = [*said("ls", "pwd"), Act("?", None, (), problems=("no JSON object found",))]
    one = episode(turns=turns)
    found = scores(seen(one), one)
    assert (found["turns"], found["problems"]) == (3.0, 1.0)
    assert found["sampled_tokens"] == float(one.sampled_tokens)
