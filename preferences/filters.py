"""Which trajectories are worth imitating: the settings, and a predicate for each reason not to.

Rule: a predicate is pure, looks at one record, and its name is the count it ends up in. All of them
are asked of every attempt, so that the report says what else was wrong. What needs more than the
record is elsewhere: `overlap`, `duplicates`, `hints`.
"""

import re
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from functools import cache
from typing import Annotated, Final, Literal, NamedTuple, get_args

from pydantic import AfterValidator, Field, PositiveInt

from headrace.configs.models import Section
from headrace.preferences.attempt import Attempt
from headrace.types import Episode, Turn

Share = Annotated[float, Field(ge=0, le=1)]
Text = Annotated[str, Field(min_length=1)]
Filter = Literal[
    "infrastructure", "empty", "malformed", "truncated", "looping", "refusal", "test_access",
    "false_success", "overlap", "duplicate",
]  # fmt: skip
Ending = Literal[
    "done", "max_turns", "max_tokens", "context_full", "agent_timeout", "policy_error",
    "sandbox_error",
]  # fmt: skip

NOT_SOLVED: Final = "not_solved"
"""The count of what success is asked of, and did not succeed."""
ENDED_INSIDE: Final = (
    "the answer ended", "the bash block has no closing", "mended a missing } at the end",
    "mended a missing ] at the end",
)  # fmt: skip
"""How our protocols' problems and warnings begin for a text that ends in the middle."""


def _are_paths(given: tuple[str, ...]) -> tuple[str, ...]:
    if any(not one.rstrip("/") for one in given):
        raise ValueError("expected paths, found '/', below which everything is")
    return given


def _are_patterns(given: tuple[str, ...]) -> tuple[str, ...]:
    for one in given:
        try:
            re.compile(one)
        except re.error as e:
            raise ValueError(f"expected regular expressions, found {one!r}: {e}") from None
    return given


class Selection(Section):
    """Which trajectories are exported, and what is measured of them."""

    outcomes: Literal["solved", "all"] = "solved"
    """`solved` leaves out what is no success (`not_solved`); `all` does not ask."""
    min_pass_ratio: Share | None = None
    """Success is this share of the tests, or of the reward where there are none; None: reward 1."""
    filters: tuple[Filter, ...] = get_args(Filter)
    """The filters that are asked besides success."""
    failures: bool = True
    """Write informative failures at tasks of the training split as a split of their own. Needs
    outcomes `solved`."""
    failure_min_passed: PositiveInt = 1
    """A failure is informative with so many passed tests, ..."""
    failure_min_turns: PositiveInt = 5
    """... or with so many turns."""
    max_problem_share: Share = 0.2
    """`malformed`: a larger share of turns could not be read as an action."""
    clean_end: bool = True
    """`malformed`: also where the last turn could not be read."""
    truncated_by: tuple[Ending, ...] = ("max_tokens", "context_full")
    """`truncated`: it ended for one of these reasons."""
    loop_longest: PositiveInt = 4
    """`looping`: a block of at most so many actions ..."""
    loop_repeats: Annotated[int, Field(ge=2)] = 4
    """... comes so many times in a row."""
    refusals: Annotated[tuple[str, ...], AfterValidator(_are_patterns)] = (
        r"\bI(?:['’]m| am) (?:sorry|afraid)\b.{0,20}\bI (?:can(?:['’]t|not| not)|am unable)\b",
        r"\bI (?:can(?:['’]t|not| not)|won['’]t|will not) (?:help(?! but\b)|assist|comply|fulfil)",
        r"\bI(?:['’]m| am) (?:unable|not able) to (?:help|assist|comply|fulfil)",
        r"\bI (?:must|have to) (?:refuse|decline)\b",
        r"\bI (?:refuse|decline) to\b",
        r"\b[Aa]s an AI\b",
    )
    """`refusal`: regular expressions over the words of turns without a command; case is ignored."""
    test_paths: Annotated[tuple[Text, ...], AfterValidator(_are_paths)] = (
        "/tests", "/solution", "/oracle", "/logs/verifier",
    )  # fmt: skip
    """`test_access`: a command names one of these, and the task itself does not."""
    max_overlap: Share = 0.0
    """`overlap`: a larger share of a text's n-grams is in a benchmark."""
    overlap_words: PositiveInt = 13
    """Words of an n-gram."""
    min_similarity: Annotated[float, Field(ge=0.5, le=1)] = 0.9
    """`duplicate`: at least so similar to one that was kept before it."""
    hint_start: Text = "<headrace-hint>"
    """Begins a text that the policy was shown and a model is not to be."""
    hint_end: Text = "</headrace-hint>"
    """Ends it."""
    keep_hints: bool = False
    """Leave hints where they are."""
    scores: bool = True
    """Also compute the scores that take time: `observation_use` and `recoveries`."""


SFT: Final = Selection()
EVERYTHING: Final = Selection(
    outcomes="all", filters=(), failures=False, keep_hints=True, scores=False
)
"""Every attempt that the format can hold, uncounted ones too, as it was stored."""


class Seen(NamedTuple):
    """What a predicate looks at."""

    attempt: Attempt
    episode: Episode
    call_tokens: int | None = None
    """The most tokens that one call of its run may sample, if that is known."""


def solved(attempt: Attempt, selection: Selection) -> bool:
    """Whether it is a success in the sense of the selection."""
    reward = attempt.reward or 0.0
    if selection.min_pass_ratio is None or reward >= 1.0:
        return reward >= 1.0
    ratio = reward if attempt.pass_ratio is None else attempt.pass_ratio
    return ratio >= selection.min_pass_ratio


def informative(attempt: Attempt, selection: Selection) -> bool:
    """Whether a failure shows enough to be kept as one."""
    return (
        attempt.passed.bit_count() >= selection.failure_min_passed
        or attempt.turns >= selection.failure_min_turns
    )


def uncounted(seen: Seen, selection: Selection) -> bool:
    """`infrastructure`: it failed the attempt, or the attempt was cancelled."""
    return not seen.attempt.counted


def empty(seen: Seen, selection: Selection) -> bool:
    """`empty`: the policy never said a word."""
    return not any(turn.text and not turn.text.isspace() for turn in seen.episode.turns)


def malformed(seen: Seen, selection: Selection) -> bool:
    """`malformed`: too many turns, or the last one, could not be read as an action."""
    turns = seen.episode.turns
    broken = sum(bool(turn.problems) for turn in turns)
    if not broken:
        return False
    at_the_end = bool(turns[-1].problems) and selection.clean_end
    return at_the_end or broken > selection.max_problem_share * len(turns)


def truncated(seen: Seen, selection: Selection) -> bool:
    """`truncated`: budget or context ended it, or one of its samples was ended by length.

    A record has no finish reason. A sample was ended by length when it has as many tokens as its
    run allowed one call, or when our protocols found its text to end in the middle. What cannot be
    told: a sample that the rest of the context or of the budget cut, in the last turn, between two
    of its words; a cut in an imported trajectory whose text can be read.
    """
    episode, most = seen.episode, seen.call_tokens
    if episode.stop_reason in selection.truncated_by:
        return True
    if most is not None and any(
        span.end - span.start >= most for segment in episode.segments for span in segment.spans
    ):
        return True
    return any(
        note.startswith(ENDED_INSIDE)
        for turn in episode.turns
        if turn.problems or turn.warnings
        for note in (*turn.problems, *turn.warnings)
    )


def looping(seen: Seen, selection: Selection) -> bool:
    """`looping`: a block of actions came several times in a row, with nothing between.

    An action is the commands of one turn. Turns without any, and those that only wait, are passed
    over: they neither make a loop nor end one.
    """
    actions = [action for turn in seen.episode.turns if (action := _action(turn))]
    return repeats(actions, selection.loop_longest, selection.loop_repeats)


def refusal(seen: Seen, selection: Selection) -> bool:
    """`refusal`: the policy refused in words, in a turn in which it did nothing."""
    return any(
        pattern.search(turn.text)
        for turn in seen.episode.turns
        if not turn.commands
        for pattern in _compiled(selection.refusals)
    )


def touches_tests(seen: Seen, selection: Selection) -> bool:
    """`test_access`: a command names a path of the tests or the solution that the task does not.

    Not seen: a path that is put together from parts, or reached from a folder above it.
    """
    pattern = _paths(selection.test_paths)
    if pattern is None:
        return False
    episode = seen.episode
    commands = "\n".join(command.text for turn in episode.turns for command in turn.commands)
    named = set(pattern.findall(commands))
    return bool(named) and not named <= set(
        pattern.findall(f"{episode.instruction}\n{episode.opening}")
    )


def false_success(seen: Seen, selection: Selection) -> bool:
    """`false_success`: the policy says it is done, and the verdict says it is no success.

    Not asked with outcomes `all`: there the verdict goes with the trajectory.
    """
    return (
        selection.outcomes == "solved"
        and any(turn.done for turn in seen.episode.turns)
        and not solved(seen.attempt, selection)
    )


def not_solved(seen: Seen, selection: Selection) -> bool:
    """`not_solved`: it is no success. Asked with outcomes `solved`."""
    return selection.outcomes == "solved" and not solved(seen.attempt, selection)


PREDICATES: Final[Mapping[str, Callable[[Seen, Selection], bool]]] = {
    "infrastructure": uncounted,
    NOT_SOLVED: not_solved,
    "empty": empty,
    "malformed": malformed,
    "truncated": truncated,
    "looping": looping,
    "refusal": refusal,
    "test_access": touches_tests,
    "false_success": false_success,
}
"""By the name of the count, in the order of asking."""


def faults(seen: Seen, selection: Selection) -> Iterator[str]:
    """The names of all predicates that leave it out, in the order of asking."""
    asked = {NOT_SOLVED, *selection.filters}
    for name, leaves_out in PREDICATES.items():
        if name in asked and leaves_out(seen, selection):
            yield name


def repeats(actions: Sequence[Hashable], longest: int, times: int) -> bool:
    """Whether a block of at most `longest` actions comes `times` times in a row."""
    for size in range(1, longest + 1):
        run = 0
        for one, later in zip(actions, actions[size:], strict=False):
            run = run + 1 if one == later else 0
            if run >= size * (times - 1):
                return True
    return False


def _action(turn: Turn) -> tuple[str, ...]:
    return tuple(text for command in turn.commands if (text := command.text.strip()))


@cache
def _compiled(patterns: tuple[str, ...]) -> tuple[re.Pattern[str], ...]:
    return tuple(re.compile(pattern, re.IGNORECASE) for pattern in patterns)


@cache
def _paths(paths: tuple[str, ...]) -> re.Pattern[str] | None:
    """Any of the paths as a whole: none of `/app/tests`, `$HERE/tests`, `*/tests`, `/tests2` and
    `/tests.log` is `/tests`.
    """
    if not paths:
        return None
    names = "|".join(re.escape(path.rstrip("/")) for path in sorted(paths, key=len, reverse=True))
    return re.compile(rf"(?<![\w.~*?)}}\]/-])/*({names})(?![\w-]|\.\w)")
