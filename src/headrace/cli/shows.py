"""`headrace show` and `headrace shards cat`: reading a run, while it goes on or afterwards."""

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from headrace.engine.shards import Damage

shards = typer.Typer(no_args_is_help=True, help="Read a run's shards.")

Run = Annotated[Path, typer.Argument(metavar="RUN", help="A run folder.")]
UNREADABLE = 2
PIPE_WIDTH = 120
"""Columns where there is no terminal to ask: wide enough for text to be read."""
NARROWEST = 80
"""Columns in a narrower terminal too: it wraps lines, where a table would lose its numbers."""
WIDEST = 4096
"""Columns that a table may take where there is no terminal to fit it into."""


def show(
    run: Run,
    episode: Annotated[
        str | None,
        typer.Option(
            "--episode",
            metavar="ID",
            help="One episode, turn by turn; the start of its id is enough.",
        ),
    ] = None,
) -> None:
    """Show a run as a table, or one of its trajectories readably."""
    from headrace.engine.readable import render_episode, render_run
    from headrace.engine.reader import find_one, latest_episodes
    from headrace.engine.run_folder import read_manifest

    read_manifest(run)
    console = result_console()
    if episode is None:
        console.print(render_run(latest_episodes(run, on_damage=_warn)))
        return
    console.print(render_episode(find_one(run, episode, on_damage=_warn)))


@shards.command("cat")
def cat(run: Run) -> None:
    """Print every stored episode as one line of JSON, in the order of storing.

    An episode that was tried again under the same id comes more than once; the last one counts.
    """
    from headrace.engine.export import json_lines
    from headrace.engine.run_folder import read_manifest

    read_manifest(run)
    damages: list[Damage] = []
    for line in json_lines(run, on_damage=damages.append):
        sys.stdout.buffer.write(line)
    sys.stdout.buffer.flush()
    for damage in damages:
        _warn(damage)
    if damages:
        raise typer.Exit(UNREADABLE)


def _warn(damage: "Damage") -> None:
    typer.echo(f"unreadable: {damage}", err=True)


def result_console() -> "Console":
    """For results on stdout."""
    from rich.console import Console

    console = Console(highlight=False)
    if not console.is_terminal and "COLUMNS" not in os.environ:
        console = Console(highlight=False, width=PIPE_WIDTH)
    console.width = max(console.width, NARROWEST)
    return console


def print_table(table: "Table") -> None:
    """A table on stdout. Where there is no terminal to fit it into, no cell is folded."""
    from rich.console import Console

    console = result_console()
    if not console.is_terminal:
        unbound = Console(highlight=False, width=WIDEST)
        console.width = max(console.width, unbound.measure(table).maximum)
    console.print(table)
