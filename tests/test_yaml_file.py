"""YAML of task folders: plain values, two dialects, and bombs that do not go off."""

import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.errors import TaskError
from headrace.tasks.yaml_file import MAX_BYTES, parse_yaml, read_yaml


def value(text: str, *, compose: bool = False) -> Any:
    return parse_yaml(text, "f.yaml", compose=compose).value


WORDS = "a: yes\nb: 22:22\nc: 2024-01-02\nd: ~\ne: 1.5\nf: 010\n8080: x\non: 1\ng:\n"


def test_a_task_file_is_read_as_yaml_1_1() -> None:
    assert value(WORDS) == {
        "a": True, "b": 1342, "c": "2024-01-02", "d": None, "e": 1.5, "f": 8, "8080": "x", "on": 1,
        "g": None,
    }  # fmt: skip


def test_a_compose_file_is_read_as_yaml_1_2() -> None:
    assert value(WORDS, compose=True) == {
        "a": "yes", "b": "22:22", "c": "2024-01-02", "d": None, "e": 1.5, "f": 10, "8080": "x",
        "on": 1, "g": None,
    }  # fmt: skip


@pytest.mark.parametrize("compose", [False, True])
def test_anchors_and_merge_keys_are_resolved(compose: bool) -> None:
    text = "base: &b {x: 1, y: 2}\nlist: &l [1]\ncopy: *l\nown:\n  <<: *b\n  y: 3\n"
    assert value(text, compose=compose) == {
        "base": {"x": 1, "y": 2}, "list": [1], "copy": [1], "own": {"x": 1, "y": 3},
    }  # fmt: skip


def test_the_last_of_two_equal_keys_counts_in_a_task_file_with_a_warning() -> None:
    read = parse_yaml("a: 1\nb: 0\na: 2\n", "f.yaml")
    assert read.value == {"a": 2, "b": 0}
    assert read.warnings == ("line 3: the key 'a' is there twice; the last one counts",)


def test_two_equal_keys_break_a_compose_file() -> None:
    with pytest.raises(TaskError, match=r"line 3, column 1: the key 'a' is there twice"):
        value("a: 1\nb: 0\na: 2\n", compose=True)


BOMB = "a0: &a0 [x,x,x,x,x,x,x,x,x]\n" + "".join(
    f"a{i}: &a{i} [{','.join([f'*a{i - 1}'] * 9)}]\n" for i in range(1, 12)
)
MERGES = "m0: &m0 {x: 1}\n" + "".join(
    f"m{i}: &m{i} {{<<: [{','.join([f'*m{i - 1}'] * 9)}]}}\n" for i in range(1, 12)
)
CHAIN = "c0: &c0 [x]\n" + "".join(f"c{i}: &c{i} [*c{i - 1}]\n" for i in range(1, 200))
BROKEN = [
    ("a billion laughs", BOMB, "more than 100000 values"),
    ("merges that multiply", MERGES, "more than 100000 values"),
    ("a chain of anchors", CHAIN, "nested deeper than 64 once aliases are expanded"),
    ("a list in itself", "a: &a [*a]", "inside its own anchor"),
    ("a map in itself", "a: &a {b: {c: *a}}", "inside its own anchor"),
    ("ten thousand brackets", "[" * 10_000, "nested deeper than 64"),
    ("deep flow maps", "{a: " * 10_000, "nested deeper than 64"),
    ("too many values", "- x\n" * 200_000, "more than 100000 values"),
    ("too many bytes", "#" * (MAX_BYTES + 1), "expected at most 1048576 characters"),
    ("an object", "a: !!python/object/apply:os.system [echo]", "could not determine"),
    ("bytes", "a: !!binary aGVsbG8=", "a value is bytes"),
    ("a set", "a: !!set {x}", "a value is set"),
    ("two documents", "a: 1\n---\nb: 2\n", "another document"),
    ("a key that is a list", "? [a, b]\n: 1\n", "expected a plain word as key"),
    ("an endless number", "a: " + "9" * 5000, "4300 digits"),
    ("a number that is none", "a: !!int x", "invalid literal"),
    ("a date that is none", "a: !!timestamp x", "broken YAML"),
    ("an anchor that is not there", "a: *nope", "undefined alias"),
    ("a control character", "a: \x01", "control characters are not allowed"),
    ("a tab as indent", "a:\n\tb: 1", "line 2, column 1"),
    ("an open quote", 'a: "b', "line 1"),
]


@pytest.mark.parametrize("compose", [False, True])
@pytest.mark.parametrize(("text", "said"), [b[1:] for b in BROKEN], ids=[b[0] for b in BROKEN])
def test_what_is_no_plain_document_is_refused_at_once(text: str, said: str, compose: bool) -> None:
    if compose and said in ("4300 digits", "broken YAML"):
        said = "f.yaml: "
    begun = time.process_time()
    with pytest.raises(TaskError, match="f.yaml: ") as caught:
        value(text, compose=compose)
    assert said in str(caught.value)
    assert time.process_time() - begun < 5


def test_a_file_is_named_with_its_line(tmp_path: Path) -> None:
    (tmp_path / "task.yaml").write_text("a: 1\nb: [\n")
    with pytest.raises(TaskError, match=r"/task\.yaml: broken YAML: line 3, column 1"):
        read_yaml(tmp_path, "task.yaml")


def test_a_file_with_windows_lines_and_a_mark_is_read(tmp_path: Path) -> None:
    (tmp_path / "task.yaml").write_bytes(b"\xef\xbb\xbfa: 1\r\nb: |-\r\n  x\r\n  y\r\n")
    assert read_yaml(tmp_path, "task.yaml").value == {"a": 1, "b": "x\ny"}


@given(st.text(alphabet="ab:-[]{}&*!|>'\"#,?%@\n\t 019~<\\.x", max_size=60), st.booleans())
def test_any_text_is_a_value_or_a_task_error(text: str, compose: bool) -> None:
    try:
        found = value(text, compose=compose)
    except TaskError:
        return
    assert found is None or isinstance(found, dict | list | str | int | float)
