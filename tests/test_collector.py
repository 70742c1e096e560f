"""The cyclic collector while episodes run."""

import gc
import weakref

import pytest

from headrace.engine import collector
from headrace.types import Command, Turn


class Node:
    """Can be part of a cycle."""

    def __init__(self) -> None:
        self.itself = self


def test_what_was_there_before_is_left_alone_until_the_block_ends() -> None:
    before = gc.get_freeze_count()
    with collector.seldom():
        assert gc.get_freeze_count() > before + 1000
    assert gc.get_freeze_count() == 0


def test_its_thresholds_hold_in_the_block_and_the_old_ones_after_an_error() -> None:
    before = gc.get_threshold()
    with pytest.raises(ZeroDivisionError), collector.seldom():
        assert gc.get_threshold() == collector.THRESHOLDS != before
        1 / 0  # noqa: B018
    assert gc.get_threshold() == before


def test_a_cycle_made_in_the_block_is_still_collected_in_it() -> None:
    with collector.seldom():
        node = Node()
        gone = weakref.ref(node)
        del node
        assert gone() is not None
        more = [Node() for _ in range(2 * collector.THRESHOLDS[0])]
        assert gone() is None
        assert len(more) == 2 * collector.THRESHOLDS[0]


def test_records_are_nothing_to_the_collector() -> None:
    turn = Turn(text="x", commands=(Command(text="true"),))
    assert not gc.is_tracked(turn)
