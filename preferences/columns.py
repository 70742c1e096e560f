"""The columns of what is written as Parquet: names, types and meanings, and the rows.

Rules: data only: the schema, the data card and `docs/reference/exact.md` are all made from, or
checked against, these tables. A column of tokens is given as the bytes of its little-endian values,
as stored; no list of Python numbers is made of it.
"""

import struct
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final, NamedTuple

from headrace.preferences.conversation import conversations
from headrace.preferences.exact import ExactEpisode, ExactPair
from headrace.types import Episode, Segment

UINT8, UINT32, FLOAT32 = "list<uint8>", "list<uint32>", "list<float32>"
PACKED: Final = {UINT8: 1, UINT32: 4, FLOAT32: 4}
"""Types whose values are given as bytes, and the bytes of one element."""

Row = dict[str, Any]


class Column(NamedTuple):
    """One column."""

    name: str
    type: str
    """As `arrow.py` spells it."""
    about: str


WEIGHTS: Final = "token_weights"
"""Of the columns of tokens, the one that is there only with a gamma."""

_WHO: Final = (
    Column("group", "string", "equal: attempts of one policy and one model at one task"),
    Column("sample", "int64", "position in the group"),
    Column("reward", "float64", "the verifier's, 0 to 1; null where it left none"),
    Column("pass_ratio", "float64", "share of the counted tests that passed; null without tests"),
    Column("tests", "list<struct<name,status>>", "each test: passed, failed, skipped or error"),
    Column("policy", "string", "kind of policy"),
    Column("policy_version", "string", "digest of all that decides what the policy does"),
    Column("run", "string", "id of the run"),
    Column("model", "string", "the model as the run was given it; the ids are its tokenizer's"),
    Column("stop_reason", "string", "why the agent's part ended"),
    Column("turns", "int64", "the policy's turns"),
)

_TASK: Final = (
    Column("task", "string", "name of the task"),
    Column("task_digest", "string", "sha256 of the task's files: its identity"),
    Column("category", "string", "of the task; null where it has none"),
)

_TOKENS: Final = (
    Column("token_ids", UINT32, "token ids as the server saw and sent them"),
    Column("loss_mask", UINT8, "1: the policy sampled the token; else 0"),
    Column("logprobs", FLOAT32, "as the server said when it sampled; 0.0 for other tokens"),
    Column("spans", "list<struct<turn,start,end>>", "the tokens [start, end) of each turn"),
    Column(WEIGHTS, FLOAT32, "DMPO weight of each token; only with --gamma"),
)

_STARTS: Final = Column(
    "stream_starts", "list<int64>",
    "where each context begins in the columns of tokens; [0] for one. Contexts do not see each"
    " other: give each to the model alone",
)  # fmt: skip

_SCORES: Final = Column("scores", "list<struct<name,value>>", "see docs/howto/sft-data.md")

STREAM_COLUMNS: Final = (
    Column("id", "string", "of the episode"),
    *_TASK,
    *_WHO,
    Column("context", "int64", "which of the episode's contexts this row is, from 0"),
    Column("contexts", "int64", "how many it has, each a row of its own"),
    *_TOKENS,
    _SCORES,
)
"""The `datasets` folder of trajectories: a row is one context."""

EPISODE_COLUMNS: Final = (
    Column("id", "string", "of the episode"),
    *_TASK,
    *_WHO,
    Column("messages", "list<struct<role,content>>", "what was shown (user), what was said"),
    Column("message_starts", "list<int64>", "where each context begins in `messages`"),
    *_TOKENS,
    _STARTS,
    _SCORES,
)
"""The `parquet` format: a row is one episode. The columns of tokens are empty without tokens."""

_SIDE: Final = (Column("id", "string", "of the episode"), *_WHO, *_TOKENS, _STARTS)

PAIR_COLUMNS: Final = (
    Column("id", "string", "of the pair"),
    *_TASK,
    Column("rule", "string", "name of the rule that paired them"),
    Column("score", "string", "what was compared: reward or pass_ratio"),
    Column("margin", "float64", "by how much the chosen one is better"),
    Column("tie", "bool", "equal scores; the one that sampled less is the chosen one"),
    Column("off_policy", "bool", "the two are of different policies"),
    Column("start", "int64", "the turn the pair begins with; before it is the shared prompt"),
    Column("divergence_turn", "int64", "the first turn whose sample differs"),
    Column("divergence_tokens", "int64", "length of the longest shared token prefix"),
    Column("divergence_in_observation", "bool", "shown different things after the same actions"),
    *(Column(f"{side}_{name}", kind, f"{side}: {about}")
      for side in ("chosen", "rejected") for name, kind, about in _SIDE),
)  # fmt: skip
"""The `datasets` folder of pairs: a row is one pair."""


def columns_of(table: Sequence[Column], *, gamma: float | None) -> tuple[Column, ...]:
    """Those that are written: without a gamma none has weights."""
    return tuple(c for c in table if gamma is not None or not c.name.endswith(WEIGHTS))


def stream_rows(record: ExactEpisode, scores: Mapping[str, float]) -> Iterable[Row]:
    """A row for each context of an episode."""
    for number, segment in enumerate(record.segments):
        row = _task_cells(record) | _who_cells(record) | _token_cells(record, (segment,), 0)
        del row["stream_starts"]
        row |= {"id": record.id, "context": number, "contexts": len(record.segments)}
        yield row | {"scores": _score_cells(scores)}


def episode_row(record: ExactEpisode, episode: Episode, scores: Mapping[str, float]) -> Row:
    """The row of an episode, with its text."""
    messages: list[dict[str, str]] = []
    starts: list[int] = []
    for one in conversations(episode):
        starts.append(len(messages))
        messages += one.messages()
    row = _task_cells(record) | _who_cells(record) | _token_cells(record, record.segments, 0)
    row |= {"id": record.id, "messages": messages, "message_starts": starts}
    return row | {"scores": _score_cells(scores)}


def pair_row(record: ExactPair) -> Row:
    """The row of a pair."""
    pair = record.pair
    row = _task_cells(record.chosen) | {
        "id": pair.id,
        "rule": pair.rule,
        "score": pair.score,
        "margin": pair.margin,
        "tie": pair.tie,
        "off_policy": pair.off_policy,
        "start": pair.start,
        "divergence_turn": pair.divergence.turn,
        "divergence_tokens": pair.divergence.tokens,
        "divergence_in_observation": pair.divergence.in_observation,
    }
    for side, episode in (("chosen", record.chosen), ("rejected", record.rejected)):
        cells = {"id": episode.id} | _who_cells(episode)
        cells |= _token_cells(episode, episode.segments, pair.start)
        row |= {f"{side}_{name}": value for name, value in cells.items()}
    return row


def _task_cells(record: ExactEpisode) -> Row:
    return {"task": record.task, "task_digest": record.task_digest, "category": record.category}


def _who_cells(record: ExactEpisode) -> Row:
    return {
        "group": record.group,
        "sample": record.sample,
        "reward": record.reward,
        "pass_ratio": record.pass_ratio,
        "tests": [{"name": test.name, "status": test.status} for test in record.tests],
        "policy": record.policy,
        "policy_version": record.policy_version,
        "run": record.run,
        "model": record.model,
        "stop_reason": record.stop_reason.value,
        "turns": record.turns,
    }


def _token_cells(record: ExactEpisode, segments: Sequence[Segment], start: int) -> Row:
    """The streams one after another; turns before `start` are prompt and have no loss."""
    starts, mask, weights = [], bytearray(), bytearray()
    spans: list[dict[str, int]] = []
    for segment in segments:
        begin, length = len(mask), len(segment.token_ids) // 4
        starts.append(begin)
        mask += bytes(length)
        weights += bytes(4 * length)
        for turn, first, end in ((s.turn, begin + s.start, begin + s.end) for s in segment.spans):
            spans.append({"turn": turn, "start": first, "end": end})
            if turn >= start:
                mask[first:end] = b"\x01" * (end - first)
            if record.weights is not None:
                packed = struct.pack("<f", record.weights[turn])
                weights[4 * first : 4 * end] = packed * (end - first)
    return {
        "token_ids": b"".join(segment.token_ids for segment in segments),
        "loss_mask": mask,
        "logprobs": b"".join(segment.logprobs for segment in segments),
        "spans": spans,
        WEIGHTS: weights,
        "stream_starts": starts,
    }


def _score_cells(scores: Mapping[str, float]) -> list[dict[str, Any]]:
    return [{"name": name, "value": value} for name, value in scores.items()]
