"""Which split a task belongs to.

Rule: by the task and nothing else, so that no trajectory of a task that is trained on is in the
validation split, in whatever run it is, and a larger share only adds tasks. Pure.
"""

import hashlib

from headrace.preferences.formats.base import TRAIN, VALIDATION

_SALT = b"headrace split\0"
_RANGE = 1 << 64


def split_of(task_digest: str, validation: float) -> str:
    """`validation` for about that share of the tasks, `train` for the others."""
    hashed = hashlib.sha256(_SALT + task_digest.encode()).digest()
    place = int.from_bytes(hashed[:8], "big") / _RANGE
    return VALIDATION if place < validation else TRAIN
