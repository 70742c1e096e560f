"""YAML files of task folders, read with bounds.

Rule: what comes back is plain (dict with text keys, list, str, int, float, bool, None) and as large
as the file says it is: size, depth and the size after aliases are expanded are limited before
anything is built, and an alias inside its own anchor is refused. No tag makes an object. It knows
nothing of what the files mean.

Two dialects: `task.yaml` is read as its harness reads it (YAML 1.1: `yes` is true, the last of two
equal keys wins); compose files as `docker compose` does (YAML 1.2: `yes` and `22:22` are text, two
equal keys are an error).
"""

import datetime
import re
from pathlib import Path
from typing import Any

import yaml

from headrace.errors import TaskError
from headrace.tasks.harbor_files import read_text
from headrace.types import Record

MAX_BYTES = 1 << 20
MAX_NODES = 100_000
"""After every alias has been replaced by what it stands for."""
MAX_DEPTH = 64

_BASE: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
"""libyaml's parser where PyYAML was built with it: the same results, ten times as fast."""


class Yaml(Record, frozen=True, kw_only=True):
    """What a file holds."""

    value: Any
    warnings: tuple[str, ...] = ()
    """Keys that are there twice."""


def read_yaml(root: Path, name: str, *, compose: bool = False) -> Yaml:
    """The document in the file `name` of `root`. `TaskError` with its path and line."""
    return parse_yaml(read_text(root, name, MAX_BYTES), str(root / name), compose=compose)


def parse_yaml(text: str, where: str, *, compose: bool = False) -> Yaml:
    """The one document in `text`; `where` goes in front of every message."""
    base = _ComposeLoader if compose else _TaskLoader
    try:
        _measure(text, where)
        loader = base(text)
        try:
            value = loader.get_single_data()
        finally:
            loader.dispose()
        return Yaml(value=_plain(value, where), warnings=tuple(loader.repeated))
    except yaml.MarkedYAMLError as e:
        if "nesting depth" in (e.problem or ""):  # libyaml looks ahead, and has a bound of its own
            raise TaskError(f"{where}: nested deeper than {MAX_DEPTH}") from None
        raise TaskError(f"{where}: broken YAML: {_located(e)}") from None
    except (
        yaml.YAMLError,
        ArithmeticError,
        AttributeError,
        LookupError,
        TypeError,
        ValueError,
    ) as e:
        # PyYAML lets the errors of its own conversions through
        detail = " ".join(str(e).split()) or type(e).__name__
        raise TaskError(f"{where}: broken YAML: {detail[:200]}") from None
    except RecursionError:
        raise TaskError(f"{where}: broken YAML: nested too deep") from None


def _located(e: yaml.MarkedYAMLError) -> str:
    problem = e.problem or e.context or "unreadable"
    if e.problem_mark is None:
        return problem
    return f"line {e.problem_mark.line + 1}, column {e.problem_mark.column + 1}: {problem}"


def _measure(text: str, where: str) -> None:
    """Refuse what would be too large or too deep, from the parser's events alone."""
    if len(text) > MAX_BYTES:
        raise TaskError(f"{where}: expected at most {MAX_BYTES} characters, found {len(text)}")
    sizes: dict[str, tuple[int, int]] = {}
    open_anchors: list[str | None] = []
    totals: list[list[int]] = [[0, 0]]  # nodes and depth of each open collection
    for event in yaml.parse(text, Loader=_BASE):
        if isinstance(event, yaml.AliasEvent):
            if event.anchor in open_anchors:
                raise TaskError(f"{where}: the alias *{event.anchor} is inside its own anchor")
            size, depth = sizes.get(event.anchor or "", (1, 0))
        elif isinstance(event, yaml.ScalarEvent):
            size, depth = 1, 0
            if event.anchor:
                sizes[event.anchor] = (size, depth)
        elif isinstance(event, yaml.CollectionStartEvent):
            open_anchors.append(event.anchor)
            totals.append([1, 0])
            if len(totals) > MAX_DEPTH:
                raise TaskError(f"{where}: nested deeper than {MAX_DEPTH}")
            continue
        elif isinstance(event, yaml.CollectionEndEvent):
            size, depth = totals.pop()
            depth += 1
            anchor = open_anchors.pop()
            if anchor:
                sizes[anchor] = (size, depth)
        else:
            continue
        totals[-1][0] += size
        totals[-1][1] = max(totals[-1][1], depth)
        if totals[-1][0] > MAX_NODES:
            raise TaskError(f"{where}: more than {MAX_NODES} values once aliases are expanded")
        if len(totals) + depth > MAX_DEPTH:
            raise TaskError(f"{where}: nested deeper than {MAX_DEPTH} once aliases are expanded")


class _Loader(_BASE):  # type: ignore[misc]
    """Keys are the text they are written as, and equal ones are noticed."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.repeated: list[str] = []

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[str, Any]:
        """The mapping of `node`, merge keys (`<<`) resolved."""
        if not isinstance(node, yaml.MappingNode):
            raise yaml.constructor.ConstructorError(
                None, None, "expected a mapping", node.start_mark
            )
        self._notice_repeated(node)
        self.flatten_mapping(node)
        return {_key(key): self.construct_object(value, deep=True) for key, value in node.value}

    def _notice_repeated(self, node: yaml.MappingNode) -> None:
        seen: set[str] = set()
        for key, _ in node.value:
            name = _key(key)
            if name in seen and name != "<<":
                self._repeated(name, key)
            seen.add(name)

    def _repeated(self, name: str, key: yaml.Node) -> None:
        line = key.start_mark.line + 1
        self.repeated.append(f"line {line}: the key {name!r} is there twice; the last one counts")


def _key(node: yaml.Node) -> str:
    if not isinstance(node, yaml.ScalarNode):
        raise yaml.constructor.ConstructorError(
            None, None, "expected a plain word as key", node.start_mark
        )
    return str(node.value)


class _TaskLoader(_Loader):
    """YAML 1.1, as PyYAML's safe loader reads it."""


class _ComposeLoader(_Loader):
    """The core schema of YAML 1.2."""

    yaml_implicit_resolvers: dict[str, list[tuple[str, re.Pattern[str]]]] = {}

    def _repeated(self, name: str, key: yaml.Node) -> None:
        raise yaml.constructor.ConstructorError(
            None, None, f"the key {name!r} is there twice", key.start_mark
        )


for _tag, _pattern, _first in (
    ("null", r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    ("bool", r"true|True|TRUE|false|False|FALSE", list("tTfF")),
    ("int", r"[-+]?[0-9]+", list("-+0123456789")),
    (
        "float",
        r"[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?",
        list("-+.0123456789"),
    ),
    ("merge", r"<<", ["<"]),
):
    _ComposeLoader.add_implicit_resolver(
        f"tag:yaml.org,2002:{_tag}", re.compile(f"^(?:{_pattern})$"), _first
    )


def _construct_decimal(loader: Any, node: yaml.ScalarNode) -> int:
    return int(loader.construct_scalar(node))  # YAML 1.2: `010` is ten


_ComposeLoader.add_constructor("tag:yaml.org,2002:int", _construct_decimal)


def _plain(value: Any, where: str) -> Any:
    if isinstance(value, dict):
        return {_text(key): _plain(item, where) for key, item in value.items()}
    if isinstance(value, list):
        return [_plain(item, where) for item in value]
    if isinstance(value, str):
        return _text(value)
    if value is None or isinstance(value, bool | int | float):
        return value
    if isinstance(value, datetime.date):
        return value.isoformat()
    raise TaskError(f"{where}: a value is {type(value).__name__}, expected text, a number, a "
                    "list or a table")  # fmt: skip


def _text(text: str) -> str:
    """Escapes can name half of a character pair, which no encoding takes."""
    return text.encode("utf-8", "replace").decode()
