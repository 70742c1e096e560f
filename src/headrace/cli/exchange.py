"""`headrace import`: trajectories in other programs' words as a run; `export.py` is the way out."""

from pathlib import Path
from typing import Annotated

import typer

LEFT_OUT = 2


def import_(
    path: Annotated[
        Path,
        typer.Argument(
            metavar="PATH", help="An ATIF file, a folder of them, or a Harbor job folder."
        ),
    ],
    out: Annotated[
        Path, typer.Option("--out", "-o", metavar="RUN", help="The run folder to make.")
    ],
    rewards: Annotated[
        Path | None,
        typer.Option(
            "--rewards",
            metavar="FILE",
            help="JSON: a reward by trajectory id, session id or file name without its suffix.",
        ),
    ] = None,
) -> None:
    """Make a run folder of ATIF trajectories, for `show`, `export` and `report`.

    A file that is no trajectory is named and left out; the others are imported.
    """
    import asyncio

    from headrace.engine.exchange import import_run

    done = asyncio.run(import_run(path, out, rewards))
    for problem in done.left_out:
        typer.echo(f"left out: {problem}", err=True)
    typer.echo(f"{done.episodes} episode{'' if done.episodes == 1 else 's'} in {out}")
    if done.left_out:
        raise typer.Exit(LEFT_OUT)
