"""Digests that name what decides what a policy does. Rule: equal parts, equal digest, anywhere."""

import hashlib
from typing import Any

import msgspec


def version_of(**parts: Any) -> str:
    """Sixteen hex digits over the parts, keys in sorted order. Parts are plain data."""
    data = msgspec.json.encode(parts, order="deterministic")
    return hashlib.sha256(data).hexdigest()[:16]
