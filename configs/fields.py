"""What the models say about themselves: every table and key, its type in words, its text.

Rule: read from the models' JSON schema, never written down twice. The loader takes its error
texts from here and `scripts/config_reference.py` the reference page. Nothing here does I/O.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

from headrace.configs.models import RunConfig

NONE = "none"
"""How TOML, which has no null, says None for a key that allows it."""


@dataclass(frozen=True, kw_only=True)
class Field:
    """One key of a table."""

    name: str
    path: str
    """Dotted, from the root of the file."""
    words: str
    """What is expected, such as `a whole number above 0, or "none"`."""
    choices: tuple[str, ...]
    nullable: bool
    is_table: bool
    required: bool
    default: Any
    text: str


@dataclass(frozen=True, kw_only=True)
class Table:
    """One table of the file. A table with a `variant` is there only under that `type`."""

    path: str
    variant: tuple[str, str] | None
    """The table whose `type` decides, and the `type` that has this table."""
    text: str
    fields: Mapping[str, Field]


@cache
def tables() -> tuple[Table, ...]:
    """All tables, root first, in the order of the models."""
    schema = RunConfig.model_json_schema()
    return tuple(_tables(schema, schema["$defs"], "", None))


@cache
def variants() -> Mapping[str, tuple[str, ...]]:
    """For each table that comes in several types, the names of the types."""
    found: dict[str, tuple[str, ...]] = {}
    for table in tables():
        if table.variant and table.path == table.variant[0]:
            found[table.path] = (*found.get(table.path, ()), table.variant[1])
    return found


def default_type(path: str) -> str:
    """The type of a table that comes in several, when the file names none."""
    above, _, name = path.rpartition(".")
    table = next(t for t in tables() if t.path == above and name in t.fields)
    return str(table.fields[name].default["type"])


def _tables(
    schema: Mapping[str, Any],
    defs: Mapping[str, Any],
    path: str,
    variant: tuple[str, str] | None,
) -> Iterator[Table]:
    required = schema.get("required", ())
    below: list[tuple[Mapping[str, Any], str, tuple[str, str] | None]] = []
    fields: dict[str, Field] = {}
    for name, prop in schema["properties"].items():
        here = f"{path}.{name}" if path else name
        if "discriminator" in prop:
            below += [
                (_resolve({"$ref": ref}, defs), here, (here, _tag({"$ref": ref}, defs)))
                for ref in (option["$ref"] for option in prop["oneOf"])
            ]
        elif "$ref" in prop:
            below.append((_resolve(prop, defs), here, variant))
        fields[name] = _field(name, here, prop, name in required, defs)
    yield Table(path=path, variant=variant, text=schema.get("description", ""), fields=fields)
    for child, child_path, child_variant in below:
        yield from _tables(child, defs, child_path, child_variant)


def _resolve(prop: Mapping[str, Any], defs: Mapping[str, Any]) -> Mapping[str, Any]:
    found: Mapping[str, Any] = defs[prop["$ref"].removeprefix("#/$defs/")]
    return found


def _tag(prop: Mapping[str, Any], defs: Mapping[str, Any]) -> str:
    return str(_resolve(prop, defs)["properties"]["type"]["const"])


def _field(
    name: str, path: str, prop: Mapping[str, Any], required: bool, defs: Mapping[str, Any]
) -> Field:
    options = prop.get("anyOf", [prop])
    values = [option for option in options if option.get("type") != "null"]
    nullable = len(values) < len(options)
    value = values[0]
    is_table = "$ref" in value or "discriminator" in value
    text = prop.get("description", "")
    if "$ref" in value:
        text = text or _resolve(value, defs).get("description", "")
    return Field(
        name=name,
        path=path,
        words=either([_words(v) for v in values]) + (f', or "{NONE}"' if nullable else ""),
        choices=tuple(
            c for v in values for c in v.get("enum", [v["const"]] if "const" in v else [])
        ),
        nullable=nullable,
        is_table=is_table,
        required=required,
        default=prop.get("default"),
        text=text,
    )


def _words(value: Mapping[str, Any]) -> str:
    if "$ref" in value or "discriminator" in value:
        return "a table"
    if "const" in value or "enum" in value:
        return either([f'"{c}"' for c in value.get("enum", [value.get("const")])])
    match value["type"]:
        case "integer":
            return "a whole number" + _bounds(value)
        case "number":
            return "a number" + _bounds(value)
        case "boolean":
            return "true or false"
        case "array":
            more = "one or more " if value.get("minItems") else ""
            return f"a list of {more}{_words(value['items']).removeprefix('a ')}s"
        case other:
            return f"a {other}"


def _bounds(value: Mapping[str, Any]) -> str:
    if "minimum" in value and "maximum" in value:
        return f" from {value['minimum']:g} to {value['maximum']:g}"
    parts = [
        f"{word} {value[key]:g}"
        for key, word in (
            ("exclusiveMinimum", "above"),
            ("minimum", "at least"),
            ("exclusiveMaximum", "below"),
            ("maximum", "at most"),
        )
        if key in value
    ]
    return " " + " and ".join(parts) if parts else ""


def either(words: list[str]) -> str:
    """`a`, `a or b`, `a, b or c`."""
    return " or ".join([", ".join(words[:-1]), words[-1]] if len(words) > 1 else words)
