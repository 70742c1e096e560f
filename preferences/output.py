"""A folder of data: written beside its place, and put there in one step when it is whole.

Rule: what is at the place stays until then; nothing is left of a write that failed or was stopped.
"""

import ctypes
import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

from headrace.engine.run_folder import not_writable
from headrace.errors import RunFolderError, StoreError
from headrace.preferences.made import MADE_FILE

_libc = ctypes.CDLL(None, use_errno=True)
_AT_FDCWD: Final = -100
_RENAME_EXCHANGE: Final = 2


@contextmanager
def replacing(out: Path, *, overwrite: bool) -> Iterator[Path]:
    """A new folder to fill; it is `out` when the block ends without an error. Blocking.

    Raises `RunFolderError` when `out` is there and not to be overwritten, is a file, or is in a
    place that cannot be written; `StoreError` when the disk fails.
    """
    out = out.absolute()
    _refuse(out, overwrite)
    missing = [folder for folder in out.parents if not os.path.exists(folder)]
    fresh = out.with_name(f".{out.name}.{secrets.token_hex(4)}.tmp")
    try:
        try:
            out.parent.mkdir(parents=True, exist_ok=True)
            fresh.mkdir()
        except OSError as e:
            raise not_writable(f"{out} cannot be made", e) from e
        try:
            yield fresh
            _refuse(out, overwrite)  # somebody else may have been there meanwhile
            _put(fresh, out)
        except OSError as e:
            raise StoreError(f"{out} cannot be written: {e.strerror or e}") from e
    finally:
        shutil.rmtree(fresh, ignore_errors=True)
        for folder in missing:  # innermost first; those that hold something stay
            with suppress(OSError):
                folder.rmdir()


def _refuse(out: Path, overwrite: bool) -> None:
    try:
        _refuse_what_is_there(out, overwrite)
    except OSError as e:
        raise not_writable(f"{out} cannot be made", e) from e


def _refuse_what_is_there(out: Path, overwrite: bool) -> None:
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
    """Afterwards what was at `out` is gone, or at `fresh`."""
    try:
        os.rename(fresh, out)  # nothing is there, or an empty folder
    except OSError:
        if not out.is_dir():
            raise
        _exchange(fresh, out)


def _exchange(fresh: Path, out: Path) -> None:
    call = getattr(_libc, "renameat2", None)
    names = (_AT_FDCWD, os.fsencode(fresh), _AT_FDCWD, os.fsencode(out))
    if call is None or call(*names, _RENAME_EXCHANGE) != 0:
        in_two_steps(fresh, out)


def in_two_steps(fresh: Path, out: Path) -> None:
    """Where the file system cannot exchange two names; a stop between the steps is undone."""
    old = out.with_name(f".{out.name}.{secrets.token_hex(4)}.old")
    try:
        os.rename(out, old)
        os.rename(fresh, out)
    except BaseException:
        if old.exists() and not out.exists():
            os.rename(old, out)
        raise
    shutil.rmtree(old, ignore_errors=True)
