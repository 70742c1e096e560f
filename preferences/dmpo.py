"""DMPO's loss in plain numpy: what a trainer's own is checked against.

    -log sigmoid( sum_t beta phi(t, Tw) logratio_w(t) - sum_t beta phi(t, Tl) logratio_l(t) )

where logratio(t) is the sum, over the tokens that the policy sampled in turn t, of its
log-probability less the reference's.

Rules: sums, never means over tokens or turns; what the policy did not sample has no weight, so it
may hold anything, NaN too; T counts turns from where the pair begins (`phi.py`). The token that
ends a turn has its turn's weight where the policy sampled it. It trains nothing and knows no
tokenizer. Sources: DMPO, arXiv 2406.14868; its use on terminals, LiteCoder, arXiv 2605.29559.
"""

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from headrace.errors import ContractError
from headrace.preferences.phi import check_gamma, phi, turn_weights
from headrace.types import Span

__all__ = [
    "Batch",
    "Gradients",
    "Streams",
    "loss",
    "phi",
    "token_turns",
    "token_weights",
    "weights",
]

Floats = NDArray[np.float64]

NO_TURN = -1


class Streams(NamedTuple):
    """One side of a batch. Rows are padded to one length; several contexts of one trajectory stand
    one after another in its row.
    """

    policy: Floats
    """Log-probabilities of the policy that is trained; shape (pairs, tokens)."""
    reference: Floats
    """Of the reference policy, for the same tokens; shape (pairs, tokens)."""
    turn: NDArray[np.int64]
    """The turn that each token was sampled in, from 0 where the pair begins; -1 for all other
    tokens and for padding (see `token_turns`); shape (pairs, tokens)."""
    turns: NDArray[np.int64]
    """T: the turns from where the pair begins, those without tokens included; shape (pairs,)."""


class Batch(NamedTuple):
    """Pairs: row i of one side belongs to row i of the other. The two may differ in length."""

    chosen: Streams
    rejected: Streams


class Gradients(NamedTuple):
    """Of the loss, with respect to `Streams.policy` of each side; their shapes."""

    chosen: Floats
    rejected: Floats


def weights(turns: int, gamma: float) -> Floats:
    """phi of each turn; shape (turns,)."""
    return np.array(turn_weights(turns, gamma))


def token_weights(
    spans: Iterable[Span], length: int, gamma: float, *, turns: int | None = None, start: int = 0
) -> Floats:
    """The weight of each of the `length` tokens of a stream; shape (length,).

    `turns`: of the whole trajectory; None: the last span's is the last. `start`: the turn that the
    pair begins with (`Pair.start`).
    """
    spans = tuple(spans)
    if turns is None:
        turns = max((span.turn + 1 for span in spans), default=0)
    by_turn = turn_weights(turns, gamma, start=start)
    out = np.zeros(length)
    for span in spans:
        out[span.start : span.end] = by_turn[span.turn]
    return out


def token_turns(spans: Iterable[Span], length: int, *, start: int = 0) -> NDArray[np.int64]:
    """The turn of each of the `length` tokens of a stream, counted from `start`; -1 for none, and
    before `start`. A row of `Streams.turn`, or a part of one.
    """
    out = np.full(length, NO_TURN, np.int64)
    for span in spans:
        out[span.start : span.end] = max(span.turn - start, NO_TURN)
    return out


def loss(batch: Batch, beta: float, gamma: float) -> tuple[float, Gradients]:
    """The mean loss over the pairs of a batch, and its gradients.

    Raises `UsageError` for a gamma outside [0, 1], `ContractError` for arrays whose shapes are not
    those of `Streams`, and for an empty batch.
    """
    check_gamma(gamma)
    pairs = len(batch.chosen.turns)
    if pairs == 0 or pairs != len(batch.rejected.turns):
        raise ContractError(f"expected pairs, found {pairs} chosen, {len(batch.rejected.turns)}")
    chosen, rejected = (_weights(side, gamma) for side in batch)
    margin = beta * (_sums(batch.chosen, chosen) - _sums(batch.rejected, rejected))
    # -log sigmoid(m) = log(1 + exp(-m)), and its derivative -sigmoid(-m): neither overflows so.
    each = np.logaddexp(0.0, -margin)
    slope = -np.exp(-np.logaddexp(0.0, margin)) * beta / pairs
    return float(each.mean()), Gradients(slope[:, None] * chosen, -slope[:, None] * rejected)


def _weights(side: Streams, gamma: float) -> Floats:
    """The weight of every token; shape (pairs, tokens)."""
    shape = side.policy.shape
    if len(shape) != 2 or side.reference.shape != shape or side.turn.shape != shape:
        raise ContractError(
            f"expected policy, reference and turn of one shape (pairs, tokens), found {shape},"
            f" {side.reference.shape} and {side.turn.shape}"
        )
    if side.turns.shape != shape[:1] or (side.turn >= side.turns[:, None]).any():
        raise ContractError("expected the number of turns of each row, and no token of a later one")
    out = np.zeros(shape)
    for row, turn, turns in zip(out, side.turn, side.turns, strict=True):
        sampled = turn > NO_TURN
        row[sampled] = weights(int(turns), gamma)[turn[sampled]]
    return out


def _sums(side: Streams, weight: Floats) -> Floats:
    """The weighted log-ratio of every row; shape (pairs,)."""
    ratios = np.zeros_like(weight)
    np.subtract(side.policy, side.reference, out=ratios, where=weight > 0.0)
    total: Floats = (weight * ratios).sum(axis=1)
    return total
