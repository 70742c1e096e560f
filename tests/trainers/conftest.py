"""A small real run, its exports, and each trainer's own Python to load them with."""

import asyncio
import json
import os
import subprocess
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from tests.preferences import runs
from tests.trainers import conversations
from tests.trainers.small_model import make_model
from typer.testing import CliRunner

from headrace.cli.app import app
from headrace.errors import ConfigError
from headrace.policies.weights import SMALL_MODEL, ready_model
from headrace.types import Episode

ROOT = Path(__file__).parent.parent.parent
TRAINERS = ROOT / ".trainers"
HERE = Path(__file__).parent
LIMIT_S = 170.0

Export = Callable[..., Path]
Questions = Mapping[str, Sequence[object]]


class Told:
    """The answers to questions, by name."""

    def __init__(self, answers: Mapping[str, dict[str, Any]]) -> None:
        self._answers = answers

    def __getitem__(self, name: str) -> Any:
        """The facts; the test fails where the trainer did."""
        answer = self._answers[name]
        if "error" in answer:
            pytest.fail(answer["error"], pytrace=False)
        return answer["facts"]


Ask = Callable[[str, str, Questions], Told]


@pytest.fixture(scope="session")
def ask(tmp_path_factory: pytest.TempPathFactory) -> Ask:
    """Asks a trainer's own code about files; skips, with the reason, where it is not installed.

    `ask(trainer, program, questions)`: all in one process, for to import a trainer takes longer
    than to answer. Each question gets a folder to write to as its last word. Nothing is looked up
    on a network: hubs are told to be offline, and the caches are of this session.
    """
    home = tmp_path_factory.mktemp("home")

    def ask(trainer: str, program: str, questions: Questions) -> Told:
        python = TRAINERS / trainer / "bin" / "python"
        if not (TRAINERS / trainer / ".installed").exists():
            pytest.skip(f"no {trainer} in .trainers: scripts/install-trainers.sh")
        work = tmp_path_factory.mktemp(trainer)
        (home / trainer).mkdir(exist_ok=True)
        asked, told = work / "asked.json", work / "told.json"
        words = {
            name: [*map(str, question), str(work / name)] for name, question in questions.items()
        }
        asked.write_text(json.dumps(words))
        done = subprocess.run(
            [python, HERE / program, asked, told],
            capture_output=True,
            text=True,
            timeout=LIMIT_S,
            cwd=work,
            env=_environment(home / trainer),
        )
        assert done.returncode == 0, (done.stdout[-1000:], done.stderr[-4000:])
        return Told(json.loads(told.read_text()))

    return ask


def _environment(home: Path) -> dict[str, str]:
    """No GPU, no network, nothing sent to anybody, and no cache of the user's."""
    offline = ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "HF_DATASETS_OFFLINE")
    silent = ("HF_HUB_DISABLE_TELEMETRY", "AXOLOTL_DO_NOT_TRACK", "DO_NOT_TRACK")
    kept = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    return (
        kept
        | dict.fromkeys((*offline, *silent), "1")
        | {
            "HOME": str(home),
            "TMPDIR": str(home),
            "HF_HOME": str(home / "huggingface"),
            "MODELSCOPE_CACHE": str(home / "modelscope"),
            "CUDA_VISIBLE_DEVICES": "",
            "TOKENIZERS_PARALLELISM": "false",
            "OMP_NUM_THREADS": "2",
        }
    )


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of two random layers with the tokenizer of the small model."""
    try:
        small = asyncio.run(ready_model(SMALL_MODEL, weights=False))
    except ConfigError as e:
        pytest.skip(str(e))
    return make_model(small, tmp_path_factory.mktemp("model") / "two-layers")


@pytest.fixture(scope="session")
def episodes(model: Path) -> list[Episode]:
    """See `conversations.episodes`."""
    return conversations.episodes(model)


@pytest.fixture(scope="session")
def run(model: Path, episodes: list[Episode], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run folder of them."""
    return runs.make_run(tmp_path_factory.mktemp("runs") / "run", episodes, model=str(model))


@pytest.fixture(scope="session")
def export(run: Path, tmp_path_factory: pytest.TempPathFactory) -> Export:
    """`export(command, format, *options)`: the folder that `headrace` writes of the run."""

    def export(command: str, format: str, *options: str) -> Path:
        out = tmp_path_factory.mktemp("out") / f"{command}-{format}"
        words = [command, str(run), "--format", format, "--out", str(out), *options]
        done = CliRunner().invoke(app, words)
        assert done.exit_code == 0, done.output
        return out

    return export
