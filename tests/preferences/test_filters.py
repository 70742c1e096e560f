"""Each filter by what it leaves out and what it lets through, and the file that sets them."""

from pathlib import Path
from typing import Any, get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.preferences.runs import Act, episode, said

from headrace.engine.reader import Place
from headrace.errors import ConfigError
from headrace.preferences import filters
from headrace.preferences.attempt import attempt
from headrace.preferences.filters import EVERYTHING, SFT, Seen, Selection, repeats
from headrace.preferences.selection_file import load_selection, selection_of
from headrace.preferences.selection_tables import MEANING
from headrace.types import Episode, StopReason, VerdictFault

MANUAL = Path(__file__).parent.parent.parent / "docs" / "howto" / "sft-data.md"


def seen(one: Episode, call_tokens: int | None = None) -> Seen:
    return Seen(attempt(one, 0, Place(0, 0, 0)), one, call_tokens)


def faults(one: Episode, selection: Selection = SFT, call_tokens: int | None = None) -> list[str]:
    return list(filters.faults(seen(one, call_tokens), selection))


def typed(*commands: str) -> list[Act]:
    return [Act(f"I type {number}", "ok", (text,)) for number, text in enumerate(commands)]


# --- success --------------------------------------------------------------------------------


def test_a_plain_success_has_no_fault() -> None:
    assert faults(episode()) == []


def test_success_is_reward_one_and_a_partial_reward_is_none() -> None:
    assert faults(episode(reward=0.99)) == ["not_solved"]
    assert faults(episode(reward=0.99), Selection(outcomes="all")) == []


def test_with_a_ratio_success_is_that_share_of_the_tests() -> None:
    half = episode(reward=0.0, tests={"a": True, "b": False})
    assert faults(half, Selection(min_pass_ratio=0.5)) == []
    assert faults(half, Selection(min_pass_ratio=0.51)) == ["not_solved"]


def test_with_a_ratio_and_without_tests_the_reward_is_the_share() -> None:
    assert faults(episode(reward=0.5), Selection(min_pass_ratio=0.5)) == []
    assert faults(episode(reward=0.4), Selection(min_pass_ratio=0.5)) == ["not_solved"]


def test_what_the_infrastructure_failed_or_was_cancelled_is_left_out() -> None:
    failed = episode(fault=VerdictFault.INFRASTRUCTURE)
    assert faults(failed, Selection(outcomes="all")) == ["infrastructure"]
    stopped = episode(stop=StopReason.CANCELLED)
    assert faults(stopped) == ["infrastructure"]


def test_a_failure_is_informative_with_a_passed_test_or_enough_turns() -> None:
    def informative(one: Episode) -> bool:
        return filters.informative(seen(one).attempt, Selection(failure_min_turns=3))

    assert informative(episode(reward=0.0, tests={"a": True, "b": False}))
    assert informative(episode(reward=0.0, turns=said("a", "b", "c")))
    assert not informative(episode(reward=0.0, tests={"a": False}, turns=said("a", "b")))


# --- form -----------------------------------------------------------------------------------


def test_a_policy_that_never_said_a_word_is_empty() -> None:
    assert "empty" in faults(episode(turns=()))
    assert "empty" in faults(episode(turns=[Act(" \n", None, ())]))


def test_a_fifth_of_broken_turns_is_let_through_and_more_is_malformed() -> None:
    bad = Act("?", commands=(), problems=("no JSON object found",))
    assert faults(episode(turns=[bad, *said(*"abcd")])) == []
    assert faults(episode(turns=[bad, *said(*"abc")])) == ["malformed"]
    assert faults(episode(turns=[bad, *said("a")]), Selection(max_problem_share=0.5)) == []


def test_a_broken_last_turn_is_malformed_unless_that_is_allowed() -> None:
    turns = [*said(*"abcdefgh"), Act("?", None, (), problems=("no JSON object found",))]
    assert faults(episode(turns=turns)) == ["malformed"]
    assert faults(episode(turns=turns), Selection(clean_end=False)) == []


@pytest.mark.parametrize("stop", [StopReason.MAX_TOKENS, StopReason.CONTEXT_FULL])
def test_what_budget_or_context_ended_is_truncated(stop: StopReason) -> None:
    assert faults(episode(stop=stop)) == ["truncated"]


def test_which_endings_are_truncations_is_data() -> None:
    ended = episode(stop=StopReason.MAX_TURNS)
    assert faults(ended) == []
    assert faults(ended, Selection(truncated_by=("max_turns",))) == ["truncated"]


def test_a_sample_as_long_as_a_call_may_be_was_cut() -> None:
    one = episode()
    longest = max(span.end - span.start for span in one.segments[0].spans)
    assert faults(one, call_tokens=longest) == ["truncated"]
    assert faults(one, call_tokens=longest + 1) == []
    assert faults(episode(tokens=False), call_tokens=1) == []


@pytest.mark.parametrize("problem", filters.ENDED_INSIDE)
def test_an_answer_that_our_protocols_found_to_end_in_the_middle_was_cut(problem: str) -> None:
    turns = [Act("{", commands=(), problems=(f"{problem}: as it is",)), *said(*"abcdef")]
    assert faults(episode(turns=turns)) == ["truncated"]


# --- behaviour ------------------------------------------------------------------------------


def test_the_same_action_four_times_in_a_row_is_a_loop_and_three_times_is_none() -> None:
    assert faults(episode(turns=typed("make", "make", "make", "ls"))) == []
    assert faults(episode(turns=typed("ls", "make", "make", "make", "make"))) == ["looping"]


def test_a_block_of_actions_four_times_in_a_row_is_a_loop() -> None:
    assert faults(episode(turns=typed(*["vi a", "make"] * 4))) == ["looping"]
    assert faults(episode(turns=typed(*["vi a", "make"] * 3, "ls"))) == []
    assert faults(episode(turns=typed(*["a", "b", "c", "d", "e"] * 4))) == []  # longer than four


def test_the_same_command_with_others_between_is_no_loop() -> None:
    assert faults(episode(turns=typed("make", "a", "make", "b", "make", "c", "make", "d"))) == []


def test_waiting_neither_makes_a_loop_nor_ends_one() -> None:
    assert faults(episode(turns=typed("", "", "", "", ""))) == []
    assert faults(episode(turns=typed("make", "", "make", " ", "make", "make"))) == ["looping"]


@given(st.lists(st.sampled_from("abc"), max_size=30), st.integers(1, 4), st.integers(2, 5))
def test_a_loop_is_a_block_that_stands_so_often_side_by_side(
    actions: list[str], longest: int, times: int
) -> None:
    there = any(
        actions[at : at + size] * times == actions[at : at + size * times]
        for size in range(1, longest + 1)
        for at in range(len(actions) - size * times + 1)
    )
    assert repeats(actions, longest, times) == there


@pytest.mark.parametrize(
    "words",
    [
        "I cannot help with that.",
        "I can’t assist with this request",
        "I'm sorry, but I cannot do that.",
        "I'm unable to comply.",
        "I must decline.",
        "I have to refuse to go on",
        "As an AI model I have no opinion",
    ],
)
def test_a_refusal_in_words_is_one(words: str) -> None:
    assert faults(episode(turns=[*said("ls"), Act(words, None, ())])) == ["refusal"]


@pytest.mark.parametrize(
    "words",
    [
        "The server refused to answer, so I cannot connect.",
        "It declines the request; I'll help it along.",
        "I can help with that.",
        "I can't help but notice that port 80 is in use.",
        "The task is complete.",
    ],
)
def test_words_of_failing_and_helping_are_no_refusal(words: str) -> None:
    assert faults(episode(turns=[*said("ls"), Act(words, None, ())])) == []


def test_a_refusal_is_not_looked_for_where_the_policy_acted() -> None:
    turns = [Act("I cannot help with that. Let me look.", "ok", ("ls",)), *said("id")]
    assert faults(episode(turns=turns)) == []


@pytest.mark.parametrize(
    ("command", "left_out"),
    [
        ("cat /tests/test_outputs.py", True),
        ("ls /tests", True),
        ("cp /solution/solve.sh .", True),
        ("echo 1 > /logs/verifier/reward.txt", True),
        ("bash -c 'cat </oracle/x'", True),
        ("ls /app/tests", False),
        ("ls ./tests /tests2 /tests-old", False),
        ("pytest tests", False),
        ("cat /logs/verifier2", False),
        ("ls /tests/", True),
        ("ls /tests* //tests", True),
        ("cd /tests; ls", True),
        ("find / -path /tests -prune", True),
        ("cat /app//tests/x", False),
        ("find . -not -path '*/tests/*'", False),
        ('ls "${HERE}/tests" $(pwd)/tests $HOME/tests', False),
        ("echo 4 > /solution.txt; tee /tests.log", False),
    ],
)
def test_a_command_that_names_the_tests_is_left_out(command: str, left_out: bool) -> None:
    assert faults(episode(turns=typed("pwd", command))) == (["test_access"] if left_out else [])


def test_a_path_that_the_task_itself_names_is_no_access() -> None:
    turns = typed("ls /tests/data", "id")
    assert faults(episode(instruction="Fix what is in /tests/data.", turns=turns)) == []
    assert faults(episode(instruction="See /solution", turns=turns)) == ["test_access"]


def test_a_claim_of_success_that_the_verdict_denies_is_false() -> None:
    turns = [*said("ls"), Act("done", None, (), done=True)]
    assert faults(episode(turns=turns)) == []
    assert faults(episode(reward=0.0, turns=turns)) == ["not_solved", "false_success"]
    assert faults(episode(reward=0.0, turns=turns), Selection(outcomes="all")) == []
    assert faults(episode(reward=0.6, turns=turns), Selection(min_pass_ratio=0.5)) == []


def test_all_faults_are_told_and_success_comes_first() -> None:
    turns = [*typed(*["cat /tests/x"] * 4), Act("done", None, (), done=True)]
    one = episode(reward=0.0, turns=turns, stop=StopReason.MAX_TOKENS)
    assert faults(one) == ["not_solved", "truncated", "looping", "test_access", "false_success"]


def test_a_filter_that_is_not_asked_leaves_nothing_out() -> None:
    turns = typed(*["cat /tests/x"] * 4)
    assert faults(episode(turns=turns), Selection(filters=("looping",))) == ["looping"]
    assert faults(episode(reward=None, turns=turns), EVERYTHING) == []


def test_every_filter_and_setting_is_told_in_the_manual() -> None:
    page = MANUAL.read_text()
    told = {*get_args(filters.Filter), *filters.PREDICATES, *Selection.model_fields}
    assert [name for name in sorted(told) if name not in page] == []
    assert set(get_args(filters.Filter)) | set(filters.PREDICATES) <= set(MEANING)


# --- the file -------------------------------------------------------------------------------


def written(folder: Path, text: str) -> Path:
    path = folder / "mine.toml"
    path.write_text(text)
    return path


def test_a_file_sets_what_it_names_and_nothing_else(tmp_path: Path) -> None:
    path = written(
        tmp_path,
        '[selection]\nmin_pass_ratio = 0.5\nfilters = ["looping"]\ntruncated_by = ["max_turns"]\n',
    )
    assert load_selection(path) == Selection(
        min_pass_ratio=0.5, filters=("looping",), truncated_by=("max_turns",)
    )
    assert selection_of("sft") == SFT
    assert load_selection(written(tmp_path, "[selection]\n")) == SFT


def test_every_default_can_be_written_in_a_file(tmp_path: Path) -> None:
    def toml(value: Any) -> str:
        if isinstance(value, tuple):
            return f"[{', '.join(map(toml, value))}]"
        if isinstance(value, bool):
            return str(value).lower()
        if isinstance(value, str):
            return f"'''{value}'''"
        return '"none"' if value is None else str(value)

    lines = [f"{name} = {toml(value)}" for name, value in SFT.model_dump().items()]
    assert load_selection(written(tmp_path, "\n".join(["[selection]", *lines]))) == SFT


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("[selection]\nmin_pas_ratio = 1", ":2: selection.min_pas_ratio: unknown key; did you"),
        ("[selection]\nmin_pass_ratio = 2", ":2: selection.min_pass_ratio: expected a number less"),
        ('[selection]\nfilters = ["loops"]', ":2: selection.filters[0]: expected 'infrastr"),
        ('[selection]\ntest_paths = ["/"]', ":2: selection.test_paths: expected paths, found"),
        ('[selection]\nrefusals = ["("]', ":2: selection.refusals: expected regular expressions"),
        ("[selection]\nfailures = 1", ":2: selection.failures: expected a valid boolean, found 1"),
        ("[selection]\ntest_paths = [1]", ":2: selection.test_paths[0]: expected a valid string"),
        ("[rules]\na = 1", "mine.toml: selection: expected a [selection] table, found none"),
        ("selection = 1", "selection: expected a [selection] table, found another value"),
        ("[selection", "this is not TOML"),
    ],
)
def test_a_mistake_in_a_file_is_told_with_its_place(tmp_path: Path, text: str, told: str) -> None:
    with pytest.raises(ConfigError) as error:
        load_selection(written(tmp_path, text))
    assert told in str(error.value)
    assert "tuple" not in str(error.value)


def test_all_mistakes_are_told_at_once(tmp_path: Path) -> None:
    path = written(tmp_path, "x = 1\n[selection]\nloop_repeats = 1\nclean_end = 2\n")
    with pytest.raises(ConfigError, match=r"^3 problems in the selection:\n") as error:
        load_selection(path)
    assert [line.split(":")[1] for line in str(error.value).splitlines()[1:]] == ["1", "3", "4"]


def test_a_file_that_is_not_there_is_told_with_the_names_that_are(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="expected sft, everything or a TOML file"):
        selection_of(str(tmp_path / "nowhere.toml"))
    with pytest.raises(ConfigError, match="cannot be read: Is a directory"):
        selection_of(str(tmp_path))
