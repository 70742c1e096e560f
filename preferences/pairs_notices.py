"""What to know of a set of pairs before any number of it, as sentences. Pure.

Rule: a leaning of length is told when its interval excludes one half and it is large enough to be
learnt; a small one in very many pairs is not.
"""

from collections.abc import Iterator, Mapping, Sequence

from headrace.engine.evaluation_page import number, percent
from headrace.preferences.compared import Compared, Leaning
from headrace.preferences.made import Made
from headrace.preferences.pairing import REASONS
from headrace.preferences.tally import Outcomes, PairsTally

NAMED = 8
"""So many things are listed in a sentence."""
LEANS = 0.6
"""The share of the pairs that differ from which on a leaning is told."""


def notices(
    tally: PairsTally, turns: Compared, tokens: Compared, reward: Compared
) -> Iterator[str]:
    """The sentences; none where pairs are of one policy, every task gives some, and none leans."""
    pairs, measured = sum(tally.pairs_by_rule.values()), len(tally.chosen.turns)
    if not pairs:
        yield "No pair was made; the reasons are counted below, by rule."
    yield from _length(tokens, "samples {less} tokens than")
    yield from _length(turns, "takes {less} turns than")
    if reward.less:
        yield (
            f"In {counted(reward.less, 'pair')} the chosen one has the lower reward: the rule"
            " compared the share of passed tests."
        )
    yield from _policies(tally.made)
    yield from _not_read(tally.made)
    yield from _without_pairs(tally.outcomes)
    for rule, n in tally.pairs_by_rule.items():
        if pairs and not n:
            yield f"The rule {rule} made no pair: {_why(tally.left_out_by_rule.get(rule, {}))}."
    if pairs > measured:
        yield (
            f"Lengths, scores and rewards are of {number(measured)} of the {number(pairs)} pairs,"
            " evenly taken; counts are of all."
        )


def leans(found: Leaning | None) -> bool:
    """Whether it is one that a model could learn."""
    if found is None:
        return False
    one_sided = found.low > 0.5 or found.high < 0.5
    return one_sided and max(found.share, 1 - found.share) >= LEANS


def leaning(found: Leaning | None) -> str:
    """The share of the pairs that differ in which the chosen one has less, with its interval."""
    if found is None:
        return "none differs"
    return f"{percent(found.share)} ({100 * found.low:.1f} to {100 * found.high:.1f})"


def counted(count: int, noun: str) -> str:
    return f"{number(count)} {noun}{'' if count == 1 else 's'}"


def reasons(counts: Mapping[str, int]) -> list[tuple[str, str, int]]:
    """Why things were left out, what they are and how many, the most frequent first."""
    ordered = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    return [(*_in_words(reason, n), n) for reason, n in ordered if n]


def _length(found: Compared, verb: str) -> Iterator[str]:
    at = found.leaning
    if at is None or not leans(at):
        return
    fewer = at.share > 0.5
    share = at.share if fewer else 1 - at.share
    low, high = (at.low, at.high) if fewer else (1 - at.high, 1 - at.low)
    word = "fewer" if fewer else "more"
    apart = abs(found.difference or 0)
    median = f"{number(apart)} {word}" if apart else "as many"
    yield (
        f"Length: the chosen one {verb.format(less=word)} the rejected one in {percent(share)} of"
        f" the {number(at.pairs)} pairs that differ (95 % interval {percent(low)} to"
        f" {percent(high)}), {median} in the median. A model may learn to be"
        f" {'short' if fewer else 'long'}."
    )


def _policies(made: Made) -> Iterator[str]:
    versions = tuple(dict.fromkeys(f"{m.policy} {m.policy_version[:12]}" for m in made.runs))
    if made.mixed_policies and len(versions) > 1:
        yield (
            f"Attempts of {len(versions)} policies are mixed ({_first(versions)}): a pair may join"
            " two of them, and is then off-policy for at least one."
        )


def _not_read(made: Made) -> Iterator[str]:
    if made.damaged:
        yield f"Unreadable, and so in no pair: {_first(made.damaged)}."
    left = sum(made.left_out.values())
    if left:
        told = _first([f"{why} {number(n)}" for why, _, n in reasons(made.left_out)])
        yield f"{number(left)} of {counted(made.attempts, 'attempt')} left out: {told}."


def _without_pairs(outcomes: Outcomes) -> Iterator[str]:
    kinds = (
        ("no win", outcomes.no_win),
        ("no loss", outcomes.no_loss),
        ("no attempt that counts", outcomes.uncounted),
    )
    without = sum(n for _, n in kinds)
    if without:
        told = ", ".join(f"{kind} in {number(n)}" for kind, n in kinds if n)
        yield (
            f"Of {counted(without + outcomes.mixed, 'task')}, {number(without)} cannot give a pair"
            f" of a win and a loss: {told}."
        )


def _why(counts: Mapping[str, int]) -> str:
    found = [f"{why} ({number(n)} {what})" for why, what, n in reasons(counts)]
    return _first(found) if found else "there was nothing to pair"


def _in_words(reason: str, count: int) -> tuple[str, str]:
    known = REASONS.get(reason)
    if known is None:
        return reason, "case" if count == 1 else "cases"
    # Where policies are not mixed a group is a task, and where they are, too.
    what = "tasks" if known.of == "groups" else known.of
    return known.text, what.removesuffix("s") if count == 1 else what


def _first(things: Sequence[str]) -> str:
    more = [f"and {len(things) - NAMED} more"] if len(things) > NAMED else []
    return "; ".join([*things[:NAMED], *more])
