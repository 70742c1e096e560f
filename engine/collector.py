"""Python's cyclic collector while episodes run: seldom, and not over what was there before.

Rule: what exists when the block begins is left out of collections until it ends. A young
generation is large, so that thousands of live episodes are not looked through again and again: a
look at all objects of 4,000 episodes stops the loop for 100 ms and more. Nothing is switched off,
so cycles are still found; what they may hold until then is bounded by the thresholds.
"""

import gc
from collections.abc import Iterator
from contextlib import contextmanager

THRESHOLDS = (10_000, 5, 10)
"""Objects that a generation may gain before it is looked through: 10,000, 50,000, 500,000."""


@contextmanager
def seldom() -> Iterator[None]:
    """Put back as it was when the block ends. Blocks for about 100 ms at first."""
    before = gc.get_threshold()
    gc.collect()  # else what is garbage now would be kept
    gc.freeze()
    gc.set_threshold(*THRESHOLDS)
    try:
        yield
    finally:
        gc.set_threshold(*before)
        gc.unfreeze()
