"""Run by the newest `datasets`: what it reads in a folder of ours.

Question: folder FOLDER.
"""

from typing import Any

from datasets import load_dataset
from told import answer


def folder(path: str, out: str) -> dict[str, Any]:
    """The rows of every split."""
    splits = load_dataset(path)
    return {name: list(rows) for name, rows in splits.items()}


if __name__ == "__main__":
    answer(folder=folder)
