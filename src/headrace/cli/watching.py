"""How far a command is that reads whole runs: one line on a terminal, nothing elsewhere."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from headrace.preferences.making import OnProgress

TOLD_EVERY = 500
"""Episodes or pairs between two looks at the display."""


@contextmanager
def watching() -> "Iterator[OnProgress | None]":
    """A line on a terminal that says how far it is; nothing elsewhere."""
    from rich.console import Console

    console = Console(stderr=True)
    if not console.is_terminal:
        yield None
        return
    with console.status("reading") as status:

        def tell(what: str, done: int, of: int | None) -> None:
            if done % TOLD_EVERY == 0:
                status.update(f"{what} {done:,}" + (f" of {of:,}" if of is not None else ""))

        yield tell
