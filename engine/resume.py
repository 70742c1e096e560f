"""What a run still owes: pure functions over ids.

Rule: identity is content, so the same attempt has the same id in every process and on every
machine. Nothing here reads a folder.
"""

import hashlib
import json
from collections.abc import Container, Iterable

from headrace.types import Episode, StopReason, VerdictFault


def episode_id(task_digest: str, policy_version: str, sample: int) -> str:
    """Identity of one attempt: 16 hexadecimal digits."""
    identity = json.dumps([task_digest, policy_version, sample]).encode()
    return hashlib.sha256(identity).hexdigest()[:16]


def is_owed(episode: Episode) -> bool:
    """Whether a stored attempt does not count and is to be made again.

    The infrastructure failed, or the run was stopped in the middle of it.
    """
    return (
        episode.verdict.fault is VerdictFault.INFRASTRUCTURE
        or episode.stop_reason is StopReason.CANCELLED
    )


def owed(planned: Iterable[str], finished: Container[str]) -> tuple[str, ...]:
    """The planned ids that are not finished, in plan order, each once."""
    return tuple(key for key in dict.fromkeys(planned) if key not in finished)
