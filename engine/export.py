"""Episodes as JSON lines, for people and for other programs.

Rule: nothing is lost: bytes that are not UTF-8 are there a second time in base64, token ids and
log-probabilities are numbers that give the stored ones back exactly. It reads; it stores nothing.
"""

import base64
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec

from headrace.engine.reader import OnDamage, read_episodes
from headrace.types import Episode, Segment

_encoder = msgspec.json.Encoder()


def json_lines(run: Path, *, on_damage: OnDamage | None = None) -> Iterator[bytes]:
    """Every stored episode of a run as one line of JSON, newline included, in storing order."""
    for episode in read_episodes(run, on_damage=on_damage):
        yield json_line(episode)


def json_line(episode: Episode) -> bytes:
    """One episode as one line of JSON, newline included."""
    return _encoder.encode(readable_record(episode)) + b"\n"


def readable_record(episode: Episode) -> dict[str, Any]:
    """The fields of an episode under their own names, as JSON can hold them.

    `stdout` and `stderr` are text with U+FFFD for what is not UTF-8, and then the bytes are in
    `stdout_base64` or `stderr_base64` too. A segment's `token_ids` and `logprobs` are lists.
    """
    record: dict[str, Any] = msgspec.to_builtins(episode, builtin_types=(bytes,))
    for turn in record["turns"]:
        for result in turn["results"]:
            result |= _text("stdout", result["stdout"]) | _text("stderr", result["stderr"])
    for stored, segment in zip(record["segments"], episode.segments, strict=True):
        stored["token_ids"] = segment.tokens().tolist()
        stored["logprobs"] = _logprobs(segment)
    return record


def _text(name: str, data: bytes) -> dict[str, str]:
    try:
        return {name: data.decode()}
    except UnicodeDecodeError:
        encoded = base64.b64encode(data).decode("ascii")
        return {name: data.decode(errors="replace"), f"{name}_base64": encoded}


def _logprobs(segment: Segment) -> list[float]:
    """Nine significant digits give every float32 back, and are half as long as all of them."""
    return [float(f"{value:.9g}") for value in segment.token_logprobs()]
