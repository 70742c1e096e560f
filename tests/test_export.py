"""JSON lines lose nothing."""

import base64
import json
import math
from array import array
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.engine.export import json_line, json_lines, readable_record
from headrace.engine.reader import find_one
from headrace.engine.resume import is_owed
from headrace.engine.shards import ShardWriter
from headrace.errors import RunFolderError
from headrace.types import (
    Command,
    CommandResult,
    Episode,
    Segment,
    Span,
    StopReason,
    TestOutcome,
    Turn,
    Verdict,
)


def episode(
    id: str = "e1", stdout: bytes = b"ok\n", logprobs: tuple[float, ...] = (0.0, -0.5)
) -> Episode:
    turn = Turn(
        text='{"commands": []}',
        commands=(Command(text="ls"),),
        results=(CommandResult(exit_code=0, stdout=stdout, stderr=b"\xe9 latin"),),
    )
    segment = Segment(
        token_ids=array("I", range(len(logprobs))).tobytes(),
        logprobs=array("f", logprobs).tobytes(),
        spans=(Span(turn=0, start=1, end=len(logprobs)),),
    )
    return Episode(
        id=id,
        task="org/slug",
        task_digest="d",
        sample=0,
        policy="vllm",
        policy_version="v",
        provider="docker",
        instruction="Do it.",
        turns=(turn,),
        segments=(segment,),
        stop_reason=StopReason.DONE,
        verdict=Verdict(reward=1.0, tests=(TestOutcome(name="t", status="passed"),)),
    )


def write(run: Path, *episodes: Episode) -> None:
    (run / "shards").mkdir()
    writer = ShardWriter(run / "shards", 0, level=3, fsync=False)
    encoder = msgspec.msgpack.Encoder()
    writer.append([(e.id, is_owed(e), encoder.encode(e)) for e in episodes])
    writer.seal()


def test_a_line_has_text_numbers_and_every_field() -> None:
    line = json_line(episode())
    assert line.count(b"\n") == 1
    record = json.loads(line)
    assert set(record) == set(Episode.__struct_fields__)
    assert record["segments"] == [
        {"token_ids": [0, 1], "logprobs": [0.0, -0.5], "spans": [[0, 1, 2]]}
    ]
    assert record["turns"][0]["results"][0]["stdout"] == "ok\n"
    assert record["stop_reason"] == "done"
    assert record["verdict"]["tests"] == [["t", "passed"]]


def test_bytes_that_are_not_text_are_there_twice() -> None:
    result = readable_record(episode())["turns"][0]["results"][0]
    assert result["stderr"] == "\ufffd latin"
    assert base64.b64decode(result["stderr_base64"]) == b"\xe9 latin"
    assert "stdout_base64" not in result


@given(st.binary())
def test_any_output_can_be_had_back(stdout: bytes) -> None:
    result = json.loads(json_line(episode(stdout=stdout)))["turns"][0]["results"][0]
    encoded = result.get("stdout_base64")
    back = base64.b64decode(encoded) if encoded is not None else result["stdout"].encode()
    assert back == stdout


@given(st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), min_size=1))
def test_log_probabilities_are_those_that_were_stored(values: list[float]) -> None:
    record = json.loads(json_line(episode(logprobs=tuple(values))))
    assert array("f", record["segments"][0]["logprobs"]).tolist() == values


def test_a_log_probability_that_is_no_number_becomes_null() -> None:
    record = json.loads(json_line(episode(logprobs=(-math.inf, math.nan))))
    assert record["segments"][0]["logprobs"] == [None, None]


def test_the_lines_of_a_run_are_in_storing_order(tmp_path: Path) -> None:
    write(tmp_path, episode("b"), episode("a"))
    assert [json.loads(line)["id"] for line in json_lines(tmp_path)] == ["b", "a"]


def test_the_start_of_an_id_is_enough(tmp_path: Path) -> None:
    write(tmp_path, episode("abcd"), episode("abxy"), episode("q"), episode("qq"))
    assert find_one(tmp_path, "abc", on_damage=print).id == "abcd"
    assert find_one(tmp_path, "q", on_damage=print).id == "q"
    with pytest.raises(RunFolderError, match="2 episodes begin with ab: abcd, abxy; give more"):
        find_one(tmp_path, "ab", on_damage=print)
    with pytest.raises(RunFolderError, match="has no episode zz"):
        find_one(tmp_path, "zz", on_damage=print)
