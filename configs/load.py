"""From a TOML file or preset and `--set` overrides to a `RunConfig`, or one clear error.

Rule: every problem is told at once, each with its place. `configs/check.py` finds the problems,
`configs/places.py` where they stand. Relative paths in values stay as they are: they are read
from the working directory.
"""

import difflib
import hashlib
import json
import tomllib
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

from headrace.configs.check import validate
from headrace.configs.fields import default_type, variants
from headrace.configs.models import RunConfig
from headrace.configs.places import Override, Problem, Source, at, report
from headrace.errors import ConfigError


def load(source: str | Path | None, overrides: Sequence[str | Override] = ()) -> RunConfig:
    """The configuration in a file or bundled preset, with `dotted.key=value` overrides.

    `None` starts from the defaults. Raises `ConfigError` naming every problem.
    """
    return _merged(
        Source(name="", text="", data={}) if source is None else _read(source), overrides
    )


def load_stored(
    name: str, data: Mapping[str, Any], overrides: Sequence[str | Override] = ()
) -> RunConfig:
    """A resolved configuration that was stored, with overrides. `name`: where it is stored.

    Raises `ConfigError` as `load` does, for instance for keys of another version.
    """
    return _merged(Source(name=name, text="", data=dict(data)), overrides)


def _merged(file: Source, overrides: Sequence[str | Override]) -> RunConfig:
    given, unread = _parse_all(overrides)
    data, clashes = _merge(file.data, given)
    config, problems = validate(data)
    told = unread + report([*clashes, *problems], file, given)
    if len(told) > 1:
        lines = "\n".join(f"  {line}" for line in told)
        raise ConfigError(f"{len(told)} problems in the configuration:\n{lines}")
    if config is None or told:
        raise ConfigError(told[0])
    return config


def presets() -> tuple[str, ...]:
    """Names of the bundled presets."""
    folder = resources.files("headrace.configs") / "presets"
    return tuple(sorted(p.name.removesuffix(".toml") for p in folder.iterdir()))


def resolved(config: RunConfig) -> dict[str, Any]:
    """Every key with its value, defaults included, as plain JSON data."""
    data: dict[str, Any] = config.model_dump(mode="json")
    return data


def digest(config: RunConfig | Mapping[str, Any]) -> str:
    """sha256 over the canonical JSON of the resolved configuration."""
    data = resolved(config) if isinstance(config, RunConfig) else config
    canonical = json.dumps(
        data, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False
    )
    return hashlib.sha256(canonical.encode()).hexdigest()


class Absent:
    """Stands in a difference for a key that one side does not have."""

    def __repr__(self) -> str:
        return "(absent)"


ABSENT = Absent()


def difference(a: Mapping[str, Any], b: Mapping[str, Any]) -> list[tuple[str, Any, Any]]:
    """Dotted paths at which two resolved configurations differ, with both values."""
    flat_a, flat_b = _flat(a), _flat(b)
    return [
        (path, flat_a.get(path, ABSENT), flat_b.get(path, ABSENT))
        for path in sorted(flat_a.keys() | flat_b.keys())
        if flat_a.get(path, ABSENT) != flat_b.get(path, ABSENT)
    ]


def _flat(data: Mapping[str, Any], above: str = "") -> dict[str, Any]:
    out: dict[str, Any] = {}
    for key, value in data.items():
        if isinstance(value, Mapping):
            out |= _flat(value, f"{above}{key}.")
        else:
            out[above + key] = value
    return out


# --- reading --------------------------------------------------------------------------------


def _read(source: str | Path) -> Source:
    path = Path(source)
    if not path.exists() and str(source) in presets():
        entry = resources.files("headrace.configs") / "presets" / f"{source}.toml"
        name, raw = f"preset {source}", entry.read_bytes()
    else:
        name, raw = str(path), _bytes(path)
    try:
        text = raw.decode()
    except UnicodeDecodeError as e:
        line = raw[: e.start].count(b"\n") + 1
        raise ConfigError(
            f"{name}:{line}: expected UTF-8 text, found byte 0x{raw[e.start]:02x}"
        ) from e
    try:
        return Source(name=name, text=text, data=tomllib.loads(text))
    except tomllib.TOMLDecodeError as e:
        raise ConfigError(f"{name}: this is not TOML: {_place(str(e), text)}") from e


def _bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError as e:
        raise ConfigError(_not_found(path)) from e
    except IsADirectoryError as e:
        raise ConfigError(f"{path}: expected a TOML file, found a folder.{_beside(path)}") from e
    except OSError as e:
        raise ConfigError(f"{path}: cannot be read: {e.strerror}") from e


def _not_found(path: Path) -> str:
    known = presets()
    near = difflib.get_close_matches(path.name.removesuffix(".toml"), known, n=1, cutoff=0.6)
    hint = f" Did you mean the preset `{near[0]}`?" if near else ""
    return (
        f"{path}: no such file, and no preset of that name.{hint}{_beside(path.parent)}"
        f" Presets: {', '.join(known)}."
    )


def _beside(folder: Path) -> str:
    try:
        files = sorted(p.name for p in folder.glob("*.toml"))
    except OSError:
        return ""
    return f" In {folder}: {', '.join(files[:8])}." if files else ""


def _place(message: str, text: str) -> str:
    """Turn "(at end of document)" into a line and column, as every other message has."""
    if not message.endswith("(at end of document)"):
        return message
    lines = text.rstrip("\n").split("\n")
    return message.removesuffix("(at end of document)") + (
        f"(at line {len(lines)}, column {len(lines[-1]) + 1}: the end of the file)"
    )


def _parse_all(options: Sequence[str | Override]) -> tuple[list[Override], list[str]]:
    given: list[Override] = []
    wrong: list[str] = []
    for option in options:
        try:
            given.append(option if isinstance(option, Override) else parse_override(option))
        except ConfigError as e:
            wrong.append(str(e))
    return given, wrong


def parse_override(option: str) -> Override:
    """`dotted.key=value`; the value is TOML, and a bare word is a string."""
    shown = f"--set {option}"
    key, equals, value = option.partition("=")
    keys = tuple(part.strip() for part in key.split("."))
    if not equals or not all(keys):
        raise ConfigError(f"{shown}: expected dotted.key=value, such as limits.max_turns=4")
    return Override(keys=keys, value=_value(value.strip(), shown), shown=shown)


def _value(text: str, shown: str) -> Any:
    try:
        data = tomllib.loads(f"value = {text}")
    except tomllib.TOMLDecodeError as e:
        if text[:1] in ("[", "{", '"', "'"):  # meant as TOML: a bare word starts otherwise
            raise ConfigError(f"{shown}: the value is not TOML: {e}") from e
        return text
    return data["value"] if len(data) == 1 else text


# --- merging --------------------------------------------------------------------------------


def _merge(
    data: Mapping[str, Any], overrides: Sequence[Override]
) -> tuple[dict[str, Any], list[Problem]]:
    """The data with the overrides on top.

    An override that gives a table another `type` begins that table afresh: the old type's keys
    would all be unknown.
    """
    merged: dict[str, Any] = _copy(data)
    problems: list[Problem] = []
    kinds = [o for o in overrides if o.keys[-1] == "type" and ".".join(o.keys[:-1]) in variants()]
    for override in kinds:
        path = override.keys[:-1]
        table = at(merged, path)
        if isinstance(table, dict):
            kind = table.get("type", default_type(".".join(path)))
            if kind != override.value:
                table.clear()
    for override in [*kinds, *overrides]:
        table = merged
        for depth, key in enumerate(override.keys[:-1], start=1):
            child = table.setdefault(key, {})
            if not isinstance(child, dict):
                here = override.keys[:depth]
                message = f"{'.'.join(here)} is no table: it has no key `{override.keys[depth]}`"
                problems.append(Problem(keys=override.keys, message=message))
                break
            table = child
        else:
            table[override.keys[-1]] = override.value
    return merged, problems


def _copy(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _copy(item) for key, item in value.items()}
    return value
