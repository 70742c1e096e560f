"""What a verifier wrote as reward, read as Harbor reads it.

Rule: pure, and every way to be unreadable has a name: `reward_missing`, `reward_empty`,
`reward_unparsable`, `reward_not_finite`. A `reward.json` that is there decides, even when it is
broken and `reward.txt` is not. A byte order mark and line ends of any kind are accepted.
"""

import json
import math
from typing import Any

from headrace.types import Record

MAX_BYTES = 1 << 20
SHOWN_CHARS = 80


class Rewards(Record, frozen=True, kw_only=True):
    """The numbers a verifier wrote."""

    values: dict[str, float]
    """Unclamped; at least one."""

    @property
    def reward(self) -> float:
        """The value of `reward`, else the only value, else the mean of all; within [0, 1]."""
        values = self.values
        raw = values["reward"] if "reward" in values else sum(values.values()) / len(values)
        return min(1.0, max(0.0, raw))


class RewardFault(Record, frozen=True, kw_only=True):
    """Why there is no reward."""

    kind: str
    detail: str

    def __str__(self) -> str:
        return f"{self.kind}: {self.detail}"


def read_reward_json(data: bytes) -> Rewards | RewardFault:
    """The rewards of a `reward.json`: an object of finite numbers; true and false are 1 and 0."""
    text = _text(data, "reward.json")
    if isinstance(text, RewardFault):
        return text
    try:
        document = json.loads(text)
    except (ValueError, RecursionError) as e:
        return _unparsable(f"reward.json is not JSON ({e}): {_show(text)}")
    if not isinstance(document, dict):
        return _unparsable(f"reward.json: expected an object of numbers, found {_show(text)}")
    if not document:
        return RewardFault(kind="reward_missing", detail="reward.json is an object without numbers")
    values: dict[str, float] = {}
    for key, value in document.items():
        if not isinstance(value, int | float):
            return _unparsable(f"reward.json: {_show(key)} is {_show(value)}, expected a number")
        number = _float(value)
        if not math.isfinite(number):
            return RewardFault(kind="reward_not_finite", detail=f"reward.json: {_show(key)}")
        values[_encodable(key)] = number
    return Rewards(values=values)


def read_reward_txt(data: bytes) -> Rewards | RewardFault:
    """The reward of a `reward.txt`: one number."""
    text = _text(data, "reward.txt")
    if isinstance(text, RewardFault):
        return text
    try:
        number = float(text)
    except ValueError:
        return _unparsable(f"reward.txt: expected a number, found {_show(text)}")
    if not math.isfinite(number):
        return RewardFault(kind="reward_not_finite", detail=f"reward.txt is {_show(text)}")
    return Rewards(values={"reward": number})


def _text(data: bytes, name: str) -> str | RewardFault:
    try:
        text = data.decode("utf-8-sig").strip()
    except UnicodeDecodeError as e:
        return _unparsable(f"{name} is not UTF-8: byte 0x{data[e.start]:02x} at {e.start}")
    return text or RewardFault(kind="reward_empty", detail=f"{name} is empty")


def _unparsable(detail: str) -> RewardFault:
    return RewardFault(kind="reward_unparsable", detail=detail)


def _float(value: int | float) -> float:
    try:
        return float(value)
    except OverflowError:
        return math.inf


def _show(value: Any) -> str:
    text = _encodable(repr(value))
    return text if len(text) <= SHOWN_CHARS else text[: SHOWN_CHARS - 3] + "..."


def _encodable(text: str) -> str:
    return text.encode("utf-8", "replace").decode()
