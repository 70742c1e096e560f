"""`.harborignore`: which files of a `tests/` or `solution/` folder stay on this machine.

Rule: gitignore's syntax and precedence; a file counts for its own folder and all below; what is
in an ignored folder cannot be taken back. The `.harborignore` files themselves stay here too. It
says what matches; who packs leaves it out.
"""

import os
import stat
from pathlib import Path
from typing import TYPE_CHECKING

from headrace.errors import TaskError

if TYPE_CHECKING:
    from pathspec import GitIgnoreSpec

NAME = ".harborignore"
MAX_BYTES = 1 << 18


class HarborIgnore:
    """The rules of one folder, read as its paths are asked for."""

    def __init__(self, folder: str | Path) -> None:
        self._folder = os.fspath(folder)
        self._specs: dict[str, GitIgnoreSpec | None] = {}

    def excludes(self, name: str, *, is_folder: bool = False) -> bool:
        """Whether `name`, relative and with forward slashes, or a folder above it is ignored.

        `TaskError` for a `.harborignore` that cannot be read.
        """
        parts = name.split("/")
        specs: list[tuple[int, GitIgnoreSpec]] = []
        for depth in range(len(parts)):
            spec = self._spec("/".join(parts[:depth]))
            if spec is not None:
                specs.append((depth, spec))
            slash = "/" if is_folder or depth + 1 < len(parts) else ""
            ignored = False
            for base, rules in specs:
                found = rules.check_file("/".join(parts[base : depth + 1]) + slash)
                ignored = ignored if found.include is None else found.include
            if ignored:
                return True
        return parts[-1] == NAME

    def _spec(self, folder: str) -> "GitIgnoreSpec | None":
        if folder not in self._specs:
            path = os.path.join(self._folder, folder, NAME)
            self._specs[folder] = _read(path) if os.path.lexists(path) else None
        return self._specs[folder]


def _read(path: str) -> "GitIgnoreSpec":
    from pathspec import GitIgnoreSpec  # few tasks need it

    try:
        if not stat.S_ISREG(os.lstat(path).st_mode):
            raise TaskError(f"{path}: expected a regular file")
        with open(path, "rb") as file:
            data = file.read(MAX_BYTES + 1)
        if len(data) > MAX_BYTES:
            raise TaskError(f"{path}: expected at most {MAX_BYTES} bytes")
        return GitIgnoreSpec.from_lines(data.decode("utf-8-sig").splitlines())
    except UnicodeDecodeError:
        raise TaskError(f"{path}: expected UTF-8") from None
    except ValueError as e:
        raise TaskError(f"{path}: not a pattern as gitignore knows them: {e}") from None
    except OSError as e:
        raise TaskError(f"{path}: {e.strerror}") from None
