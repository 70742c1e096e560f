"""Tallies of pairs for the tests of the report, put together by hand."""

from typing import Any

from headrace.preferences.made import Made, MadeFrom
from headrace.preferences.tally import Outcomes, PairsTally, SideTally


def run_named(run: str, policy_version: str = "a" * 64, **fields: Any) -> MadeFrom:
    plain: dict[str, Any] = {
        "created": "2026-01-02T03:04:05Z",
        "headrace": "0.1.0",
        "policy": "vllm",
        "model": "small",
        "tasks": 4,
        "tasks_digest": "b" * 64,
        "config_digest": "c" * 64,
    }
    return MadeFrom(run=run, policy_version=policy_version, **(plain | fields))


def made(**fields: Any) -> Made:
    plain: dict[str, Any] = {
        "command": "headrace pairs runs/one --out pairs",
        "kind": "pairs",
        "format": "trl",
        "runs": (run_named("one"),),
        "mixed_policies": False,
        "licence": "unknown",
        "options": {"rules": [{"name": "margin", "kind": "margin", "per_task": None}]},
        "attempts": 8,
        "left_out": {},
        "rows": {"train": 4},
    }
    return Made(**(plain | fields))


def side(turns: tuple[int, ...], tokens: tuple[int, ...], score: float) -> SideTally:
    """Of one score, which is the reward too."""
    scores = (score,) * len(turns)
    return SideTally(turns=turns, sampled_tokens=tokens, scores=scores, rewards=scores)


def tally(chosen: SideTally, rejected: SideTally, **fields: Any) -> PairsTally:
    """Of one rule; every task is mixed."""
    pairs = len(chosen.turns)
    both = zip(chosen.scores, rejected.scores, strict=True)
    plain: dict[str, Any] = {
        "made": made(),
        "outcomes": Outcomes(mixed=pairs),
        "groups": pairs,
        "pairs_by_rule": {"margin": pairs},
        "left_out_by_rule": {"margin": {}},
        "margins": tuple(c - r for c, r in both),
        "divergence_turns": (0,) * pairs,
    }
    return PairsTally(chosen=chosen, rejected=rejected, **(plain | fields))


def small() -> PairsTally:
    """Four pairs: the chosen one has fewer turns in two, as many in one, more in one."""
    return tally(
        side((2, 3, 5, 9), (100, 200, 300, 400), 1.0),
        side((4, 6, 5, 8), (150, 250, 350, 300), 0.25),
        divergence_turns=(0, 1, 1, 3),
    )


def leaning(short: int, long: int, same: int = 0) -> PairsTally:
    """Pairs in which the chosen one has ten tokens against twenty, and the other way round."""
    chosen = (10,) * short + (20,) * long + (10,) * same
    rejected = (20,) * short + (10,) * long + (10,) * same
    turns = (3,) * len(chosen)
    return tally(side(turns, chosen, 1.0), side(turns, rejected, 0.0))


def nothing(**fields: Any) -> PairsTally:
    """No pair at all."""
    return tally(side((), (), 1.0), side((), (), 0.0), **fields)
