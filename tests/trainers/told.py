"""What the loading programs share; each is run by a trainer's own Python, so it imports little.

A program is called `python loads_X.py ASKED TOLD`. ASKED is a JSON object: by name, a question and
its words. TOLD is written: by name, the facts or the error. Trainers print what they like.
"""

import json
import sys
import traceback
from collections.abc import Callable, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

IGNORED = -100


def learned(tokenizer: Any, ids: Sequence[int], labels: Sequence[int]) -> list[str]:
    """The text of each unbroken run of tokens that the loss counts."""
    marked = zip(ids, (label != IGNORED for label in labels), strict=True)
    runs = groupby(marked, key=lambda pair: pair[1])
    return [tokenizer.decode([i for i, _ in run]) for counted, run in runs if counted]


def masked(ids: Sequence[int], mask: Sequence[int]) -> list[int]:
    """Labels out of a mask."""
    return [token if bit else IGNORED for token, bit in zip(ids, mask, strict=True)]


def answer(**known: Callable[..., dict[str, Any]]) -> None:
    """Answer every question with the function of its name."""
    asked, told = map(Path, sys.argv[1:])
    answers = {}
    for name, (what, *words) in json.loads(asked.read_text()).items():
        try:
            answers[name] = {"facts": known[what](*words)}
        except Exception:  # the capture point: what a trainer refuses fails its own test only
            answers[name] = {"error": traceback.format_exc()}
    told.write_text(json.dumps(answers))
