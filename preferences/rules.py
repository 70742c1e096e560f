"""The rules of pairing as data: which attempts make a pair, and which do not.

Rule: a rule is its values; what they do is in `pairing`. Every mistake in a file is told at once,
with its place. Reads one file and writes nothing.
"""

import difflib
import re
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Final, Literal, get_args

from pydantic import Field, PositiveInt, ValidationError, model_validator
from pydantic_core import ErrorDetails

from headrace.configs.fields import either
from headrace.configs.models import Section
from headrace.errors import ConfigError

Kind = Literal["margin", "best-worst", "all-margins", "near-miss", "first-divergence", "litecoder"]
Share = Annotated[float, Field(ge=0, le=1)]

KINDS: Final[tuple[str, ...]] = get_args(Kind)
_BY_TESTS: Final = {"score": "pass-ratio", "min_margin": 0.0, "min_winner": 0.0}
_DEFAULTS: Final[Mapping[str, Mapping[str, Any]]] = {
    "all-margins": {"per_task": 4},
    "near-miss": {**_BY_TESTS, "per_task": 4},
    "litecoder": _BY_TESTS,
}
"""Where a kind's defaults are others than the fields say."""
_HEADER = re.compile(r"\s*\[\[\s*rule\s*\]\]")


class Rule(Section):
    """One way to make pairs of the attempts at one task."""

    name: Annotated[str, Field(min_length=1)] = ""
    """Recorded with each pair; left out: the kind."""
    kind: Kind
    """`margin`: best with worst, second best with second worst, while the margin holds.
    `best-worst`: the first of those. `all-margins`: every two whose margin holds. `near-miss`: the
    winner passes what the loser passes and exactly one test more. `first-divergence`: as `margin`,
    begun at the first turn that differs. `litecoder`: the first two attempts, if their pass ratios
    differ."""
    score: Literal["auto", "reward", "pass-ratio"] = "auto"
    """What is compared. `auto`: the pass ratio where every attempt of the group has tests, else
    the reward. `near-miss` and `litecoder` compare pass ratios."""
    min_margin: Share = 0.25
    """The winner's score less the loser's, at least. `near-miss` and `litecoder`: 0."""
    min_winner: Share = 0.5
    """The winner's score, at least. `near-miss` and `litecoder`: 0."""
    per_task: PositiveInt | None = None
    """Pairs of one group, at most; None: no limit. `all-margins` and `near-miss`: 4."""
    timeouts: bool = False
    """Take losers that ran out of time."""
    ties: bool = False
    """Take pairs of equal score too, whatever the margin; the one that sampled less wins."""
    infrastructure: bool = False
    """Take attempts that the infrastructure failed, as losers with score 0."""

    @model_validator(mode="before")
    @classmethod
    def _with_defaults(cls, data: Any) -> Any:
        if not isinstance(data, Mapping) or not isinstance(data.get("kind"), str):
            return data
        kind: str = data["kind"]
        return {"name": kind, **_DEFAULTS.get(kind, {}), **data}

    @model_validator(mode="after")
    def _compares_what_its_kind_does(self) -> "Rule":
        if self.kind in ("near-miss", "litecoder") and self.score != "pass-ratio":
            raise ValueError(
                f"{self.kind} compares pass ratios; leave score out, or take another kind"
            )
        return self


def rule_of(kind: str, **options: Any) -> Rule:
    """The rule of a kind with these values; what is None keeps its default.

    Raises `ConfigError`, whose message names the values as the options of the command line.
    """
    given = {key: value for key, value in options.items() if value is not None}
    rule, problems = _validated({"kind": kind, **given})
    if rule is not None:
        return rule
    told = [f"--{'rule' if key == 'kind' else key.replace('_', '-')}: {m}" if key
            else f"--rule {kind}: {m}" for key, m in problems]  # fmt: skip
    raise _error("options", told)


def load_rules(path: Path) -> tuple[Rule, ...]:
    """The rules of a TOML file, its `[[rule]]` tables in order. Raises `ConfigError`."""
    text = _read(path)
    try:
        data = tomllib.loads(text)
    except tomllib.TOMLDecodeError as e:
        raise ConfigError(f"{path}: this is not TOML: {e}") from e
    tables = data.get("rule")
    told = [
        f"{path}: {key}: unknown key; the file has [[rule]] tables"
        for key in data.keys() - {"rule"}
    ]
    if not isinstance(tables, list) or not tables or not all(isinstance(t, dict) for t in tables):
        told.append(f"{path}: rule: expected at least one [[rule]] table, found {_found(tables)}")
        raise _error(str(path), told)
    rules: list[Rule | None] = []
    placed: list[tuple[int, str]] = []
    for number, table in enumerate(tables):
        rule, problems = _validated(table)
        for key, message in problems:
            line = _line(text, number, key)
            where = f"{path}:{line}: rule[{number}]{'.' if key else ''}{key}"
            placed.append((line, f"{where}: {message}"))
        rules.append(rule)
    told += [line for _, line in sorted(placed)]
    told += _told_twice(path, text, rules)
    if told:
        raise _error(str(path), told)
    return tuple(rule for rule in rules if rule is not None)


# --- problems in words ----------------------------------------------------------------------


def _read(path: Path) -> str:
    try:
        return path.read_bytes().decode()
    except UnicodeDecodeError as e:
        raise ConfigError(f"{path}: expected UTF-8 text, found other bytes") from e
    except OSError as e:
        raise ConfigError(f"{path}: cannot be read: {e.strerror}; expected a TOML file") from e


def _validated(data: Mapping[str, Any]) -> tuple[Rule | None, list[tuple[str, str]]]:
    """The rule, or what is wrong with it: key and message."""
    given = {key: None if key == "per_task" and value == "none" else value
             for key, value in data.items()}  # fmt: skip
    try:
        return Rule.model_validate(given, strict=True), []
    except ValidationError as e:
        return None, [_problem(error) for error in e.errors(include_url=False)]


def _problem(error: ErrorDetails) -> tuple[str, str]:
    key = str(error["loc"][0]) if error["loc"] else ""
    if error["type"] == "extra_forbidden":
        near = difflib.get_close_matches(key, Rule.model_fields, n=1)
        known = f"did you mean {near[0]}?" if near else f"a rule has {', '.join(Rule.model_fields)}"
        return key, f"unknown key; {known}"
    if error["type"] == "value_error":
        return key, error["msg"].removeprefix("Value error, ")
    schema = Rule.model_json_schema()["properties"].get(key, {})
    if error["type"] == "missing":
        return key, f"missing; expected {_expected(schema)}"
    choices = [str(choice) for choice in schema.get("enum", ())]
    near = difflib.get_close_matches(str(error["input"]), choices, n=1, cutoff=0.5)
    hint = f'; did you mean "{near[0]}"?' if near else ""
    return key, f"expected {_expected(schema)}, found {_found(error['input'])}{hint}"


def _expected(schema: Mapping[str, Any]) -> str:
    if "enum" in schema:
        return either([f'"{choice}"' for choice in schema["enum"]])
    if "anyOf" in schema:
        return 'a whole number above 0, or "none"'
    return {
        "boolean": "true or false",
        "number": "a number from 0 to 1",
        "string": "a string that is not empty",
    }[schema["type"]]


def _found(value: Any) -> str:
    match value:
        case None:
            return "nothing"
        case bool():
            return str(value).lower()
        case str():
            return f'"{value}"' if len(value) < 60 else f'"{value[:57]}..."'
        case Mapping():
            return "a single table; write [[rule]]"
        case list():
            return "a list"
        case _:
            return str(value)


def _told_twice(path: Path, text: str, rules: Sequence[Rule | None]) -> Iterator[str]:
    names: set[str] = set()
    for number, rule in enumerate(rules):
        if rule is not None and rule.name in names:
            where = f"{path}:{_line(text, number, 'name')}: rule[{number}].name"
            yield f'{where}: expected names that differ, found "{rule.name}" again; give it a name'
        if rule is not None:
            names.add(rule.name)


def _line(text: str, number: int, key: str) -> int:
    """Where a key of a table stands, or the table's header."""
    header, seen = 0, -1
    for line, content in enumerate(text.splitlines(), start=1):
        if _HEADER.match(content):
            seen += 1
            header = line if seen <= number else header
        elif seen == number and key and re.match(rf"\s*[\"']?{re.escape(key)}[\"']?\s*=", content):
            return line
    return header


def _error(where: str, told: Sequence[str]) -> ConfigError:
    if len(told) == 1:
        return ConfigError(told[0])
    lines = "\n".join(f"  {line}" for line in told)
    return ConfigError(f"{len(told)} problems in {where}:\n{lines}")
