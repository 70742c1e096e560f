"""How much of a text stands in a benchmark, in n-grams of words.

Rule: exact. An n-gram is so many words in a row, a word is a run of letters, digits or `_`, and
case is ignored. Of a folder of tasks the instructions are read; of any other folder every text
file below it, so that solutions or tests are compared by naming the folder they are in.

Memory: about 200 bytes for each word of the benchmarks. What is asked about is not kept.
"""

import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

from headrace.errors import TaskError, UsageError
from headrace.tasks import catalog

WORDS: Final = 13
TEXT_BYTES: Final = 4 << 20
"""A larger file is taken for data."""
_WORD = re.compile(r"\w+")


class Overlap:
    """The n-grams of some benchmarks."""

    def __init__(self, folders: Sequence[Path], *, words: int = WORDS) -> None:
        """Reads the folders. Raises `UsageError` for one without a text of that many words."""
        self._words = words
        self._known: set[str] = set()
        for folder in folders:
            found = 0
            for text in benchmark_texts(folder):
                grams = self._grams(text)
                found += len(grams)
                self._known.update(grams)
            if not found:
                raise UsageError(
                    f"{folder}: expected tasks or texts of {words} words or more to compare with,"
                    " found none; give another folder, or leave it out"
                )

    def __len__(self) -> int:
        return len(self._known)

    def share(self, text: str) -> float:
        """The share of the text's n-grams that stand in a benchmark; 0.0 for a shorter text."""
        grams = self._grams(text)
        return sum(gram in self._known for gram in grams) / len(grams) if grams else 0.0

    def _grams(self, text: str) -> list[str]:
        words, n = _WORD.findall(text.lower()), self._words
        return [" ".join(words[i : i + n]) for i in range(len(words) - n + 1)]


def benchmark_texts(folder: Path) -> Iterator[str]:
    """The instructions of a folder of tasks, or the text files of any other.

    A task that cannot be read is compared by its files. Raises `UsageError` for what is no folder.
    """
    if not os.path.isdir(folder):  # no error for a name that cannot be looked up
        found = "a file" if os.path.exists(folder) else "nothing"
        raise UsageError(f"{folder}: expected a folder of tasks or texts, found {found}")
    try:
        found_tasks = catalog.load(str(folder.resolve()))
    except TaskError:
        yield from _files(folder)
        return
    for task in found_tasks.tasks:
        yield "\n\n".join([task.instruction, *(step.instruction for step in task.steps)])
    for problem in found_tasks.problems:
        yield from _files(Path(problem.path))


def _files(folder: Path) -> Iterator[str]:
    for parent, folders, names in os.walk(folder):
        folders.sort()
        for name in sorted(names):
            text = _text(Path(parent) / name)
            if text is not None:
                yield text


def _text(path: Path) -> str | None:
    """The text in a regular file; None for anything else."""
    try:
        if not path.is_file() or path.stat().st_size > TEXT_BYTES:
            return None
        text = path.read_bytes().decode()
    except UnicodeDecodeError:
        return None
    except OSError as e:
        raise UsageError(f"{path} cannot be read: {e.strerror or e}") from e
    return None if "\0" in text else text
