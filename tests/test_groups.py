"""Groups: complete without stragglers when told to, and long tasks first."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.engine.groups import Groups, longest_first
from headrace.errors import ContractError


def group_of(n: int, *, enough: int | None = 2, patience: float = 2.0) -> Groups:
    groups = Groups(enough, patience)
    for i in range(n):
        groups.begun("g", f"e{i}", 0.0)
    return groups


def test_a_group_waits_for_all_unless_told_otherwise() -> None:
    groups = group_of(3, enough=None)
    groups.ended("g", "e0", 1, graded=True)
    groups.ended("g", "e1", 1, graded=True)
    assert groups.stragglers(1e9) == []
    assert groups.next_at() is None
    assert not groups.complete("g")


def test_a_straggler_has_the_patience_of_its_slowest_graded_sibling() -> None:
    groups = group_of(3)
    groups.ended("g", "e0", 3, graded=True)
    assert groups.next_at() is None
    groups.ended("g", "e1", 5, graded=True)
    assert groups.next_at() == 10
    assert groups.stragglers(10) == []
    assert groups.stragglers(10.1) == ["e2"]


def test_an_infrastructure_failure_completes_no_group() -> None:
    groups = group_of(3)
    groups.ended("g", "e0", 3, graded=False)
    groups.ended("g", "e1", 5, graded=True)
    assert not groups.complete("g")
    assert groups.stragglers(1e9) == []


def test_what_was_graded_before_counts_and_sets_no_pace() -> None:
    groups = group_of(1)
    groups.known("g", 2)
    assert groups.complete("g")
    assert groups.stragglers(1e9) == []


def test_a_sibling_that_began_late_has_its_own_time() -> None:
    groups = group_of(2)
    groups.begun("g", "late", 100)
    groups.ended("g", "e0", 3, graded=True)
    groups.ended("g", "e1", 4, graded=True)
    assert groups.stragglers(107) == []
    assert groups.stragglers(109) == ["late"]


@pytest.mark.parametrize(("enough", "patience"), [(0, 2.0), (1, 0.5)])
def test_settings_without_sense_are_refused(enough: int, patience: float) -> None:
    with pytest.raises(ContractError):
        Groups(enough, patience)


def test_unknown_tasks_go_first_then_the_longest() -> None:
    assert longest_first(["a", "b", "c", "d"], {"a": 1, "c": 9}) == ["b", "d", "c", "a"]


@given(
    st.lists(st.sampled_from("abcdef"), unique=True),
    st.dictionaries(st.sampled_from("abcdxy"), st.floats(0, 100)),
)
def test_ordering_loses_no_group(groups: list[str], seconds: dict[str, float]) -> None:
    assert sorted(longest_first(groups, seconds)) == sorted(groups)
