"""Whatever a file says, it is an episode or a `TrajectoryError`, and an episode can be stored."""

import json
from typing import Any

import msgspec
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from headrace.engine import atif
from headrace.engine.atif_import import Around, to_episode
from headrace.engine.atif_reading import parse_document
from headrace.engine.export import json_line
from headrace.errors import TrajectoryError
from headrace.types import Episode

CALL = {
    "tool_call_id": "c1",
    "function_name": "bash_command",
    "arguments": {"keystrokes": "ls\n", "duration": 0.5},
    "extra": {
        "headrace": {"exit_code": 0, "stdout": "x", "stderr_base64": "/w==", "duration_s": 1}
    },
}
STEP = {
    "step_id": 2,
    "source": "agent",
    "message": [{"type": "text", "text": "hi"}, {"type": "image", "source": {"path": "p"}}],
    "reasoning_content": "hm",
    "tool_calls": [CALL],
    "observation": {"results": [{"source_call_id": "c1", "content": "x"}]},
    "metrics": {"prompt_token_ids": [1], "completion_token_ids": [2, 3], "logprobs": [-1.0, -2.0]},
    "llm_call_count": 1,
    "extra": {"headrace": {"turn": 0, "policy_s": 1.0, "warnings": ["w"]}},
}
DOCUMENT = {
    "schema_version": "ATIF-v1.7",
    "agent": {"name": "a", "version": "1", "model_name": "m"},
    "steps": [
        {"step_id": 1, "source": "user", "message": "Do.", "timestamp": "2026-01-02T03:04:05Z"},
        STEP,
    ],
    "extra": {"other": 1},
}

anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.text(max_size=8) | st.just("headrace"), inner, max_size=3)
    ),
    max_leaves=6,
)


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The path of every node below the root."""
    items: Any = ()
    if isinstance(value, dict):
        items = value.items()
    elif isinstance(value, list):
        items = enumerate(value)
    return [place for key, child in items for place in ((*path, key), *places(child, (*path, key)))]


@settings(max_examples=400, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(st.tuples(st.sampled_from(places(DOCUMENT)), anything), min_size=1, max_size=3))
@example([(("steps", 1, "metrics", "logprobs"), [1e300])])
@example([(("steps", 1, "metrics", "prompt_token_ids"), [2**40])])
@example([(("steps", 1, "metrics", "prompt_token_ids"), [-1])])
@example([(("steps", 1, "tool_calls", 0, "extra", "headrace", "stderr_base64"), "\x80")])
@example([(("steps", 0, "timestamp"), "9999-12-31T23:59:59+00:00")])
@example([(("steps", 1, "tool_calls", 0, "arguments", "duration"), 10**400)])
def test_any_document_is_an_episode_or_a_named_error(
    changes: list[tuple[tuple[Any, ...], Any]],
) -> None:
    document = json.loads(json.dumps(DOCUMENT))
    for path, value in changes:
        node = document
        try:
            for key in path[:-1]:
                node = node[key]
            node[path[-1]] = value
        except (KeyError, IndexError, TypeError):
            continue  # an earlier change took the place away
    data = json.dumps(document).encode()
    try:
        episode = to_episode(parse_document(data, "x"), Around(), name="x")
    except TrajectoryError as e:
        assert str(e).startswith("x")
        return
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(episode), type=Episode) is not None
    json_line(episode)
    msgspec.json.encode(atif.trajectory(episode))
