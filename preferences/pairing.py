"""Which attempts make a pair: the decision of every rule, and the reasons against.

Rule: pure, and the same for the same attempts in any order. Both sides of a pair are attempts at
one task. What only the whole records can decide is in `settling`.
"""

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from heapq import heapify, heappop, heapreplace
from itertools import combinations
from typing import Final, NamedTuple

from headrace.engine.reader import Place
from headrace.preferences.attempt import NO_TESTS, Attempt
from headrace.preferences.rules import Rule
from headrace.preferences.tally import Outcomes
from headrace.types import StopReason

Key = tuple[int, Place]
Order = tuple[int, str, int, str, Place]
REWARD, PASS_RATIO = "reward", "pass_ratio"


class Reason(NamedTuple):
    """Why something was left out."""

    of: str
    """What is counted: `groups`, `attempts` or `pairs`."""
    text: str


REASONS: Final[Mapping[str, Reason]] = {
    "alone": Reason("groups", "one attempt, where a pair takes two"),
    "infrastructure": Reason("attempts", "failed by the infrastructure"),
    "cancelled": Reason("attempts", "stopped with their run"),
    "no_turns": Reason("attempts", "without a turn"),
    "several_contexts": Reason("attempts", "of several contexts or steps, so no one conversation"),
    "no_tests": Reason("attempts", "without tests, where pass ratios are compared"),
    "timeout": Reason("attempts", "ran out of time, so they lose against nobody"),
    "too_few": Reason("groups", "fewer than two attempts left"),
    "one_outcome": Reason("groups", "all attempts left have one score"),
    "no_near_miss": Reason("groups", "no two attempts differ in one test"),
    "tie": Reason("pairs", "equal scores"),
    "margin": Reason("pairs", "scores too close"),
    "winner_too_low": Reason("pairs", "the winner's score is too low"),
    "capped": Reason("pairs", "beyond the most that a task may give"),
    "no_tokens": Reason("pairs", "a side without a token stream"),
    "identical": Reason("pairs", "both sides are the same"),
    "one_continues_the_other": Reason("pairs", "no turn differs: one side ends earlier"),
    "diverged_in_observation": Reason("pairs", "shown different things after the same turns"),
    "duplicate": Reason("pairs", "another rule made the same pair before"),
    "format": Reason("pairs", "the format cannot hold them"),
}
"""Every reason there is; the later ones only the records, or the format, can give."""


class Proposed(NamedTuple):
    """A pair as far as the attempts tell."""

    chosen: Attempt
    rejected: Attempt
    score: str
    """`reward` or `pass_ratio`: what was compared."""
    chosen_score: float
    rejected_score: float
    margin: float
    tie: bool


class Proposal(NamedTuple):
    """What a rule makes of a group."""

    pairs: tuple[Proposed, ...]
    left_out: Counter[str]
    """By reason, see `REASONS`."""


class _Scored(NamedTuple):
    attempt: Attempt
    score: float


_Two = tuple[_Scored, _Scored]


def groups(attempts: Iterable[Attempt], *, mixed: bool) -> list[list[Attempt]]:
    """The attempts at each task by each policy, by sample; of all policies together if `mixed`."""
    found: dict[tuple[str, str], list[Attempt]] = defaultdict(list)
    for one in attempts:
        found[one.task_digest, "" if mixed else one.policy_version].append(one)
    return [sorted(found[key], key=_order) for key in sorted(found)]


def key_of(one: Attempt) -> Key:
    """An attempt's identity: two runs may hold attempts of one id."""
    return one.run, one.place


def outcomes(found: Iterable[Sequence[Attempt]]) -> Outcomes:
    """How many groups won always, never, and now and then."""
    counts = Counter(_outcome(group) for group in found)
    return Outcomes(**counts)


def propose(group: Sequence[Attempt], rule: Rule) -> Proposal:
    """The pairs that a rule makes of the attempts at one task."""
    if len(group) < 2:
        return Proposal((), Counter(alone=1))
    score = _compared(group, rule)
    usable, left_out = _usable(sorted(group, key=_order), rule, score)
    if len(usable) < 2:
        return Proposal((), left_out + Counter(too_few=1))
    if not rule.ties and len({one.score for one in usable}) == 1:
        return Proposal((), left_out + Counter(one_outcome=1))
    best = max(one.score for one in usable)
    left_out["timeout"] += sum(one.score < best and not _may_lose(one, rule) for one in usable)
    fitting: list[Proposed] = []
    for two in _candidates(usable, rule, left_out):
        found = _weighed(two, rule, score)
        if isinstance(found, Proposed):
            fitting.append(found)
        else:
            left_out[found] += 1
    kept = _spread(fitting, rule.per_task)
    left_out["capped"] += len(fitting) - len(kept)
    return Proposal(tuple(kept), +left_out)


# --- attempts -------------------------------------------------------------------------------


def _order(one: Attempt) -> Order:
    return one.sample, one.policy_version, one.run, one.id, one.place


def _outcome(group: Sequence[Attempt]) -> str:
    won = [(one.reward or 0.0) >= 1.0 for one in group if one.counted]
    if not won:
        return "uncounted"
    if all(won):
        return "no_loss"
    return "mixed" if any(won) else "no_win"


def _compared(group: Sequence[Attempt], rule: Rule) -> str:
    if rule.score != "auto":
        return PASS_RATIO if rule.score == "pass-ratio" else REWARD
    counted = [one for one in group if one.counted]
    return PASS_RATIO if all(one.pass_ratio is not None for one in counted) else REWARD


def _usable(group: Iterable[Attempt], rule: Rule, score: str) -> tuple[list[_Scored], Counter[str]]:
    usable: list[_Scored] = []
    left_out: Counter[str] = Counter()
    for one in group:
        reason = _why_not(one, rule, score)
        if reason is None:
            usable.append(_Scored(one, _score(one, score)))
        else:
            left_out[reason] += 1
    return usable, left_out


def _why_not(one: Attempt, rule: Rule, score: str) -> str | None:
    if one.stop_reason is StopReason.CANCELLED:
        return "cancelled"
    if not one.counted and not rule.infrastructure:
        return "infrastructure"
    if not one.turns:
        return "no_turns"
    if one.contexts != 1:
        return "several_contexts"
    if one.counted and score == PASS_RATIO and one.pass_ratio is None:
        return "no_tests"
    return None


def _score(one: Attempt, score: str) -> float:
    """A counted attempt without a reward did not solve its task: its verifier broke on it."""
    value = one.pass_ratio if score == PASS_RATIO else one.reward
    return value or 0.0 if one.counted else 0.0


def _may_lose(one: _Scored, rule: Rule) -> bool:
    return rule.timeouts or not one.attempt.out_of_time


# --- candidates -----------------------------------------------------------------------------


def _candidates(usable: list[_Scored], rule: Rule, left_out: Counter[str]) -> list[_Two]:
    """The twos that a kind looks at, the better one first."""
    # Equal scores stand in the order of the samples: by length, every pair would favour one.
    ranked = sorted(usable, key=lambda one: (-one.score, not one.attempt.counted))
    match rule.kind:
        case "margin" | "first-divergence":
            return list(_outside_in(ranked, rule))
        case "best-worst":
            return list(_outside_in(ranked, rule))[:1]
        case "all-margins":
            return [two for two in combinations(ranked, 2) if _may_lose(two[1], rule)]
        case "near-miss":
            found = [two for two in combinations(ranked, 2) if _one_test_apart(*two)]
            left_out["no_near_miss"] += not found
            return [two for two in found if _may_lose(two[1], rule)]
        case "litecoder":
            first = usable[:2]
            return list(_outside_in([one for one in ranked if one in first], rule))


def _outside_in(ranked: Sequence[_Scored], rule: Rule) -> Iterator[_Two]:
    """Best with worst, second best with second worst, and so on."""
    high, low = 0, len(ranked) - 1
    while high < low:
        if _may_lose(ranked[low], rule):
            yield ranked[high], ranked[low]
            high += 1
        low -= 1


def _one_test_apart(winner: _Scored, loser: _Scored) -> bool:
    """The winner passes all that the loser passes, and one test more."""
    a, b = winner.attempt, loser.attempt
    same = a.tests == b.tests != NO_TESTS
    return same and a.passed & b.passed == b.passed and (a.passed ^ b.passed).bit_count() == 1


def _weighed(two: _Two, rule: Rule, score: str) -> Proposed | str:
    """The pair of two attempts, or why it is none."""
    winner, loser = two
    # Ratios are floats: 8/12 and 5/12 shall be a margin of 0.25 apart.
    margin = round(winner.score - loser.score, 9)
    tie = margin <= 0
    if tie:
        winner, loser = sorted(two, key=lambda one: _effort(one.attempt))
        if not (rule.ties and winner.attempt.counted and _may_lose(loser, rule)):
            return "tie"
    elif margin < rule.min_margin:
        return "margin"
    if winner.score < rule.min_winner:
        return "winner_too_low"
    return Proposed(winner.attempt, loser.attempt, score, winner.score, loser.score, margin, tie)


def _effort(one: Attempt) -> tuple[bool, int, int, Order]:
    return not one.counted, one.sampled_tokens, one.turns, _order(one)


# --- the cap --------------------------------------------------------------------------------


def _spread(fitting: Sequence[Proposed], most: int | None) -> list[Proposed]:
    """Largest margin first; an attempt comes again only after those that did not come yet."""
    used: Counter[Key] = Counter()
    heap = [(0, -two.margin, index) for index, two in enumerate(fitting)]
    heapify(heap)
    kept: list[Proposed] = []
    while heap and (most is None or len(kept) < most):
        uses, margin, index = heap[0]
        two = fitting[index]
        now = used[key_of(two.chosen)] + used[key_of(two.rejected)]
        if now > uses:  # it only grows, so the first that is up to date is the least used
            heapreplace(heap, (now, margin, index))
            continue
        heappop(heap)
        used[key_of(two.chosen)] += 1
        used[key_of(two.rejected)] += 1
        kept.append(two)
    return kept
