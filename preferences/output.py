"""A folder of data: written beside its place, and put there in one step when it is whole.

Rule: what is at the place stays until then; nothing is left of a write that failed or was stopped.
"""

import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from headrace.engine.run_folder import not_writable
from headrace.errors import RunFolderError, StoreError
from headrace.preferences.made import MADE_FILE


@contextmanager
def replacing(out: Path, *, overwrite: bool) -> Iterator[Path]:
    """A new folder to fill; it is `out` when the block ends without an error. Blocking.

    Raises `RunFolderError` when `out` is there and not to be overwritten, is a file, or is in a
    place that cannot be written; `StoreError` when the disk fails.
    """
    out = out.absolute()
    _refuse(out, overwrite)
    fresh = out.with_name(f".{out.name}.{secrets.token_hex(4)}.tmp")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        fresh.mkdir()
    except OSError as e:
        raise not_writable(f"{out} cannot be made", e) from e
    try:
        try:
            yield fresh
            _put(fresh, out)
        except OSError as e:
            raise StoreError(f"{out} cannot be written: {e.strerror or e}") from e
    finally:
        shutil.rmtree(fresh, ignore_errors=True)


def _refuse(out: Path, overwrite: bool) -> None:
    if out.is_dir() and not out.is_symlink():
        if not any(out.iterdir()):
            return
        if overwrite and (out / MADE_FILE).exists():
            return
        if overwrite:
            raise RunFolderError(
                f"{out} is no folder of data (it has no {MADE_FILE}), so it is not replaced; give"
                " another with --out"
            )
        raise RunFolderError(
            f"{out} is there already; give another folder with --out, or --overwrite to replace it"
        )
    if out.exists() or out.is_symlink():
        raise RunFolderError(f"{out} is no folder; expected a new one, give another with --out")


def _put(fresh: Path, out: Path) -> None:
    """Two renames: between them there is no folder, and never half of one."""
    if not out.exists():
        os.rename(fresh, out)
        return
    old = out.with_name(f".{out.name}.{secrets.token_hex(4)}.old")
    os.rename(out, old)
    try:
        os.rename(fresh, out)
    except OSError:
        os.rename(old, out)
        raise
    shutil.rmtree(old, ignore_errors=True)
