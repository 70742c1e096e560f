"""The files of a folder of data: their digests, and `made.json` that lists them.

Rule: the list is of every file that is data; not of itself, nor of what is only for people.
"""

import hashlib
from pathlib import Path

import msgspec

from headrace.preferences.card import CARD_FILE
from headrace.preferences.made import MADE_FILE, Made


def digests(folder: Path) -> dict[str, str]:
    """sha256 of each file below a folder, by its name from there."""
    found = (path for path in sorted(folder.rglob("*")) if path.is_file())
    named = {path.relative_to(folder).as_posix(): path for path in found}
    return {
        name: _sha256(path) for name, path in named.items() if name not in (MADE_FILE, CARD_FILE)
    }


def write_made(folder: Path, made: Made) -> None:
    """Write `made.json`."""
    data = msgspec.json.format(msgspec.json.encode(made), indent=2) + b"\n"
    (folder / MADE_FILE).write_bytes(data)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
