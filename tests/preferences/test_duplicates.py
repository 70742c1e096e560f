"""Near-duplicates: what is one, what is none, and the same answer every time."""

import random
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.preferences.runs import episode, said

from headrace.errors import UsageError
from headrace.preferences.duplicates import FOUND, PERMUTATIONS, Duplicates, bands, shingles
from headrace.types import Episode

ROOT = Path(__file__).parent.parent.parent
ASKED = "Make the build pass on a machine without the network and leave every test as it is. " * 9


def acting(number: int, *, commands: int = 20, changed: int = 0, asked: str = ASKED) -> Episode:
    """An attempt whose commands are those of `number`, the last `changed` of them others."""

    def drawn(seed: str, count: int) -> list[str]:
        chance = random.Random(seed)
        return [" ".join(f"w{chance.randrange(10**6)}" for _ in range(8)) for _ in range(count)]

    own = drawn(f"{number}", commands)[: commands - changed]
    return episode(turns=said(*own, *drawn(f"{number} other", changed)), instruction=asked)


def test_the_same_commands_at_the_same_task_are_a_duplicate() -> None:
    before = Duplicates(0.9)
    assert not before.repeats(acting(1))
    assert before.repeats(acting(1))
    assert len(before) == 1


def test_a_little_changed_is_a_duplicate_and_much_changed_is_none() -> None:
    before = Duplicates(0.9)
    before.repeats(acting(1, commands=100))
    assert before.repeats(acting(1, commands=100, changed=2))
    assert not before.repeats(acting(1, commands=100, changed=30))


def test_other_commands_at_the_same_task_are_none_however_long_the_task_is() -> None:
    before = Duplicates(0.9)
    assert not before.repeats(acting(1, commands=2, asked=ASKED * 20))
    assert not before.repeats(acting(2, commands=2, asked=ASKED * 20))


def test_the_same_few_commands_at_another_task_are_none() -> None:
    before = Duplicates(0.9)
    turns = said("ls", "cat README")
    tasks = ("Sort the words of a file.", "Count what is in the log.", "Mend the service.")
    assert [before.repeats(episode(turns=turns, instruction=t)) for t in tasks] == [False] * 3


def test_what_is_left_out_is_not_kept_so_likeness_does_not_creep() -> None:
    before = Duplicates(0.9)
    before.repeats(acting(1, commands=100))
    answers = [before.repeats(acting(1, commands=100, changed=n)) for n in range(40)]
    assert answers[0]
    assert not all(answers)
    assert len(before) == 1 + answers.count(False)


def test_trajectories_without_commands_or_instruction_are_compared_too() -> None:
    before = Duplicates(0.9)
    assert not before.repeats(episode(turns=(), instruction=""))
    assert before.repeats(episode(turns=(), instruction=""))


@given(st.text(" ab", max_size=40), st.text(" ab", max_size=40))
def test_there_are_always_shingles_and_most_are_of_the_commands(asked: str, typed: str) -> None:
    one = episode(turns=[(typed, None)], instruction=asked)
    alone = episode(turns=[(typed, None)], instruction="")
    found = shingles(one)
    assert found
    assert len(found) - len(shingles(alone)) <= max(1, len(set(found)) // 4)


@pytest.mark.parametrize("similarity", [0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 1.0])
def test_a_pair_at_the_threshold_is_nearly_always_compared(similarity: float) -> None:
    count, size = bands(similarity)
    assert count * size <= PERMUTATIONS
    assert 1 - (1 - similarity**size) ** count >= FOUND


def test_another_process_gives_the_same_answers() -> None:
    code = (
        "from tests.preferences.test_duplicates import acting\n"
        "from headrace.preferences.duplicates import Duplicates\n"
        "before = Duplicates(0.9)\n"
        "print([before.repeats(acting(n % 5, commands=40, changed=n % 4)) for n in range(20)])"
    )
    seen = {
        subprocess.run(
            [sys.executable, "-c", code],
            capture_output=True, text=True, check=True, cwd=ROOT, env={"PYTHONHASHSEED": seed},
        ).stdout
        for seed in ("1", "2")
    }  # fmt: skip
    assert len(seen) == 1
    assert "True" in min(seen)


def test_without_the_extra_the_message_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "datasketch", None)
    with pytest.raises(UsageError, match=r"pip install 'headrace\[data\]'"):
        Duplicates(0.9)
