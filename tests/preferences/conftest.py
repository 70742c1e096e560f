"""What the tests of `preferences` share. `tests/preferences/runs.py` has the builders.

Import them: `from tests.preferences.runs import Act, episode, make_run, said, store, spoil`. The
fixtures are the same functions, and a small run that most tests can do with.
"""

from collections.abc import Callable
from pathlib import Path

import pytest
from tests.preferences import runs

from headrace.types import Episode


@pytest.fixture(scope="session")
def make_episode() -> Callable[..., Episode]:
    """`runs.episode`."""
    return runs.episode


@pytest.fixture(scope="session")
def make_run() -> Callable[..., Path]:
    """`runs.make_run`."""
    return runs.make_run


@pytest.fixture
def small_run(tmp_path: Path) -> Path:
    """Two tasks of two attempts: of `org/a` one wins and one loses, of `org/b` both win."""
    return runs.make_run(tmp_path / "small", small_episodes())


def small_episodes() -> list[Episode]:
    """Those of `small_run`."""
    won, lost = {"t1": True, "t2": True}, {"t1": True, "t2": False}
    return [
        runs.episode("org/a", 0, 1.0, tests=won, turns=runs.said("ls", "make", "done")),
        runs.episode("org/a", 1, 0.0, tests=lost, turns=runs.said("ls", "rm -r .", "done")),
        runs.episode("org/b", 0, 1.0, tests=won, turns=runs.said("pwd", "done")),
        runs.episode("org/b", 1, 1.0, tests=won, turns=runs.said("id", "done")),
    ]
