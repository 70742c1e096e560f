"""From merged data to a `RunConfig`, or the problems in words.

Rule: every problem is told, with its dotted path, what was expected and what was found. Keys are
never dropped and values never converted, except that `"none"` stands for None, which TOML lacks,
where a key allows it. Where a problem stands in the file is the business of `configs/places.py`.
"""

import difflib
import json
from collections.abc import Iterator, Mapping, Sequence
from math import isfinite
from typing import Any

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from headrace.configs.fields import NONE, Field, Table, default_type, either, tables, variants
from headrace.configs.models import RunConfig
from headrace.configs.places import Keys, Problem, at


def validate(data: Mapping[str, Any]) -> tuple[RunConfig | None, list[Problem]]:
    """The configuration, or None and all that is wrong with it."""
    data = _with_types(data, "")
    try:
        return RunConfig.model_validate(_strict(data, data, ""), strict=True), []
    except ValidationError as e:
        found = [p for error in e.errors(include_url=False) for p in _problems(error, data)]
        return None, list(dict.fromkeys(found))


def _with_types(data: Mapping[str, Any], above: str) -> dict[str, Any]:
    """The data, where a table that comes in several types names the default one if it names none.

    Otherwise to set one key of the default policy would take naming its type first.
    """
    typed: dict[str, Any] = {}
    for name, value in data.items():
        path = f"{above}{name}"
        if isinstance(value, Mapping):
            value = _with_types(value, f"{path}.")
            if path in variants() and "type" not in value:
                value = {"type": default_type(path), **value}
        typed[name] = value
    return typed


def _strict(value: Any, root: Mapping[str, Any], path: str) -> Any:
    """The data as the strict models want it: tuples for lists, None for `"none"`."""
    if isinstance(value, Mapping):
        below = f"{path}." if path else ""
        return {key: _strict(item, root, below + key) for key, item in value.items()}
    if isinstance(value, list):
        return tuple(_strict(item, root, path) for item in value)
    if value == NONE:
        field = _field(path, root)
        return None if field and field.nullable else value
    return value


def _present(root: Mapping[str, Any]) -> Iterator[Table]:
    """The tables that exist for this data: of a table with types, those of its type, or all."""
    for table in tables():
        if table.variant is not None:
            path, tag = table.variant
            chosen = at(root, path.split("."))
            kind = chosen.get("type") if isinstance(chosen, Mapping) else None
            if kind in variants()[path] and kind != tag:
                continue
        yield table


def _field(path: str, root: Mapping[str, Any]) -> Field | None:
    above, _, name = path.rpartition(".")
    found = (t.fields[name] for t in _present(root) if t.path == above and name in t.fields)
    return next(found, None)


def _problems(error: ErrorDetails, data: Mapping[str, Any]) -> Iterator[Problem]:
    loc = list(error["loc"])
    for path, tags in variants().items():
        depth = path.count(".") + 1
        if [".".join(map(str, loc[:depth])), *loc[depth : depth + 1]] in [[path, t] for t in tags]:
            del loc[depth]
    kind, value = error["type"], error["input"]
    if kind not in ("extra_forbidden", "missing") and (first := _kind_at(loc, data)):
        del loc[first:]
        # one error for each, which then say the same
        kind, value = "none of several kinds", at(data, [str(part) for part in loc])
    keys = tuple(str(part) for part in loc if isinstance(part, str))
    index = "".join(f"[{part}]" for part in loc if isinstance(part, int))
    path = ".".join(keys)
    match kind:
        case "extra_forbidden":
            yield Problem(keys=keys, message=f"{path}: unknown key; {_meant(keys, data)}")
        case "missing":
            field = _field(path, data)
            words = f"; expected {field.words}: {field.text}" if field else ""
            yield Problem(keys=keys, message=f"{path}: missing{words}")
        case "union_tag_invalid":
            yield from _wrong_type_of_table(path, value, data)
        case "value_error":
            words = error["msg"].removeprefix("Value error, ")
            yield Problem(keys=keys, message=f"{path}: {words}")
        case _:
            message = _expected(path, index, kind, value, data)
            yield Problem(keys=keys, message=message)


def _kind_at(loc: Sequence[int | str], data: Mapping[str, Any]) -> int:
    """Where an error's place names the kind of value that was tried for a key; 0: nowhere."""
    for first in range(1, len(loc)):
        field = _field(".".join(map(str, loc[:first])), data)
        if isinstance(loc[first], str) and field is not None and not field.is_table:
            return first
    return 0


def _wrong_type_of_table(
    path: str, table: Mapping[str, Any], data: Mapping[str, Any]
) -> Iterator[Problem]:
    known = list(variants()[path])
    quoted = [f'"{tag}"' for tag in known]
    near = _closest(str(table["type"]), known)
    hint = f"; did you mean {near}?" if near else ""
    message = f"{path}.type: expected {either(quoted)}, found {_shown(table['type'])}{hint}"
    keys = tuple(path.split("."))
    yield Problem(keys=(*keys, "type"), message=message)
    names = {name for t in _present(data) if t.path == path for name in t.fields}
    for name in table.keys() - names:
        here = (*keys, name)
        yield Problem(keys=here, message=f"{path}.{name}: unknown key; {_meant(here, data)}")


def _expected(path: str, index: str, kind: str, found: Any, data: Mapping[str, Any]) -> str:
    field = _field(path, data)
    words = field.words if field else "something else"
    if index and words.startswith("a list of "):
        words = "a " + words.removeprefix("a list of ").removesuffix("s")
    of_type = f" ({_kind(found)})" if kind.endswith("_type") else ""
    near = _closest(found, field.choices) if field else None
    hint = f"; did you mean {near}?" if near else ""
    if kind == "string_type" and not isinstance(found, Mapping | tuple):
        hint = "; put it in quotes"
    return f"{path}{index}: expected {words}, found {_shown(found)}{of_type}{hint}"


def _closest(found: Any, known: Sequence[str]) -> str | None:
    near = difflib.get_close_matches(str(found), known, n=1, cutoff=0.5)
    return f'"{near[0]}"' if near else None


def _shown(value: Any) -> str:
    if isinstance(value, Mapping):
        return "a table"
    if value is None:
        return f'"{NONE}"'
    if isinstance(value, tuple):
        text = "[" + ", ".join(_shown(item) for item in value) + "]"
    elif isinstance(value, bool | str | int) or (isinstance(value, float) and isfinite(value)):
        text = json.dumps(value, ensure_ascii=False)
    else:
        text = str(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _kind(value: Any) -> str:
    for kind, words in (
        (bool, "true or false"),
        (str, "a string"),
        (int, "a whole number"),
        (float, "a number"),
        (tuple, "a list"),
        (Mapping, "a table"),
    ):
        if isinstance(value, kind):
            return words
    return "None" if value is None else "a date or time"


def _meant(keys: Keys, data: Mapping[str, Any]) -> str:
    """The known keys that an unknown one was probably meant to be."""
    above, name = ".".join(keys[:-1]), keys[-1]
    here = {n: f.path for t in _present(data) if t.path == above for n, f in t.fields.items()}
    near = difflib.get_close_matches(name, here, n=2, cutoff=0.6)
    ratios = [difflib.SequenceMatcher(None, n, name).ratio() for n in near]
    paths = [here[n] for n, ratio in zip(near, ratios, strict=True) if ratio > ratios[0] - 0.05]
    shown = [f"`{path}`" for path in paths]
    shown += [p for p in _elsewhere(name, 1.0) if p not in shown]
    shown = shown or list(_elsewhere(name, 0.8))
    own = next((p for p in shown if p.startswith(f"`{'.'.join(keys)}` (")), None)
    if own is not None:
        return f"it belongs to {own.split('(')[1].rstrip(')')}"
    if shown:
        return f"did you mean {either(shown[:3])}?"
    table = f"[{above}]" if above else "the top of the file"
    return f"{table} has {', '.join(here)}" if here else f"there is no table [{above}]"


def _elsewhere(name: str, cutoff: float) -> Iterator[str]:
    """Keys of that name, or nearly, in any table; with the type they need, if they need one."""
    known: dict[str, list[str]] = {}
    for table in tables():
        for field in table.fields.values():
            if field.name == "type":
                continue
            only = f" ({table.variant[0]}.type {table.variant[1]})" if table.variant else ""
            known.setdefault(field.name, []).append(f"`{field.path}`{only}")
    for match in difflib.get_close_matches(name, known, n=1, cutoff=cutoff):
        yield from known[match]
