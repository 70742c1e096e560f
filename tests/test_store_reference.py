"""The page on the format says what the code does: a stranger's reader works from it."""

import asyncio
import re
from pathlib import Path
from typing import Any

import msgspec
import pytest

from headrace.engine import frames, run_folder, store
from headrace.types import EPISODE_SCHEMA, CommandResult, Episode, StopReason, Turn, Verdict

PAGE = (Path(__file__).parent.parent / "docs" / "reference" / "store.md").read_text()


def episode(id: str, **fields: Any) -> Episode:
    turn = Turn(text="t", results=(CommandResult(exit_code=0, stdout=b"\xff"),))
    plain: dict[str, Any] = {
        "task": "org/slug",
        "task_digest": "d",
        "sample": 0,
        "policy": "scripted",
        "policy_version": "v",
        "provider": "docker",
        "instruction": "i",
        "turns": (turn,),
        "stop_reason": StopReason.DONE,
        "verdict": Verdict(reward=1.0),
    }
    return Episode(id=id, **(plain | fields))


async def fill(run: Path, episodes: list[Episode]) -> None:
    async with store.Store(run) as shards:
        for item in episodes:
            await shards.append(item)


@pytest.mark.parametrize("torn", [0, 1, 60], ids=["sealed", "torn trailer", "torn index"])
def test_the_reader_on_the_page_reads_what_the_store_writes(tmp_path: Path, torn: int) -> None:
    (code,) = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    names: dict[str, Any] = {}
    exec(code, names)
    asyncio.run(fill(tmp_path, [episode("a"), episode("b"), episode("a", tries=2)]))
    asyncio.run(fill(tmp_path, [episode("b", tries=3), episode("c")]))
    last = tmp_path / "shards" / "000001.hrs"
    data = last.read_bytes()
    last.write_bytes(data[: len(data) - torn])
    found = {key: msgspec.convert(r, Episode) for key, r in names["records"](tmp_path).items()}
    assert found == {
        "a": episode("a", tries=2),
        "b": episode("b", tries=3),
        "c": episode("c"),
    }


def test_the_page_names_the_sizes_and_limits_of_the_code() -> None:
    assert f"### Header, {frames.SHARD_HEADER_BYTES} bytes" in PAGE
    assert f"### Frame, {frames.FRAME_HEADER_BYTES} bytes" in PAGE
    assert f"the last {frames.TRAILER_BYTES} bytes of the file" in PAGE
    assert " ".join(f"{byte:02X}" for byte in frames.MAGIC) in PAGE
    assert f"| `{frames.SEALED.decode()}` |" in PAGE
    assert f"format of shards: {frames.FORMAT}." in PAGE
    assert f"schema of episodes: {EPISODE_SCHEMA}." in PAGE
    assert frames.MAX_DIRECTORY_BYTES == 2**26
    assert frames.MAX_RAW_BYTES == 2**30
    assert store.BLOCK_BYTES == 4 << 20


def test_the_page_lists_every_key_that_may_differ() -> None:
    table = PAGE[PAGE.index("| key | why |") : PAGE.index("The id of an episode")]
    told = set(re.findall(r"`([a-z_.*]+)`", table))
    short = {key for key in told if key.startswith(".")}
    full = (told - short) | {f"policy.server{key}" for key in short}
    assert full == set(run_folder.MAY_DIFFER)
