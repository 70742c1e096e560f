"""How much a turn counts in DMPO: the weight of turn t of T, from the discount.

Rules: pure, and without numpy, for the exact format writes weights too. T counts the policy's
turns, not tokens. A pair that begins after a shared prompt counts from there: the turns before it
are no decision between the two, so they have no weight and are not in T.

Source: DMPO, arXiv 2406.14868, equation of phi.
"""

import math

from headrace.errors import ContractError, UsageError


def phi(turn: int, turns: int, gamma: float) -> float:
    """The weight of turn `turn` (from 0) of `turns`: 1 for the first, then ever less.

    `gamma**t * (1 - gamma**(T - t)) / (1 - gamma**T)`; its limit `(T - t) / T` at gamma 1, and the
    first turn alone at gamma 0. Raises `UsageError` for a gamma outside [0, 1], `ContractError`
    for a turn that is not there.
    """
    check_gamma(gamma)
    if not 0 <= turn < turns:
        raise ContractError(f"expected a turn in [0, {turns}), found {turn}")
    if gamma == 0.0:
        return 1.0 if turn == 0 else 0.0
    # Powers less one, from the logarithm: 1 - gamma**T itself loses every digit near gamma 1.
    rate = math.log(gamma)
    if rate == 0.0:
        return (turns - turn) / turns
    return math.exp(turn * rate) * math.expm1((turns - turn) * rate) / math.expm1(turns * rate)


def turn_weights(turns: int, gamma: float, *, start: int = 0) -> tuple[float, ...]:
    """The weight of each of a trajectory's `turns`; 0 before `start`, where the pair begins.

    Raises as `phi`.
    """
    check_gamma(gamma)
    counted = max(0, turns - start)
    return (0.0,) * (turns - counted) + tuple(phi(t, counted, gamma) for t in range(counted))


def check_gamma(gamma: float) -> None:
    """Raises `UsageError` unless it is in [0, 1]."""
    if not 0.0 <= gamma <= 1.0:
        raise UsageError(f"expected a gamma from 0 to 1, found {gamma}; give another discount")
