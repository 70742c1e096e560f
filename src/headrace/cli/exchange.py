"""`headrace export` and `headrace import`: a run in other programs' words, and back."""

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from headrace.engine.shards import Damage

LEFT_OUT = 2


class Format(StrEnum):
    """What a run can be exported as."""

    ATIF = "atif"
    HARBOR_JOB = "harbor-job"
    JSONL = "jsonl"


def export(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="A run folder.")],
    format: Annotated[
        Format, typer.Option("--format", help="What to write; see docs/howto/exchange.md.")
    ],
    out: Annotated[
        Path,
        typer.Option("--out", "-o", metavar="DIR", help="The folder to write; new or empty."),
    ],
) -> None:
    """Write a run as ATIF trajectories, as a Harbor job folder, or as JSON lines.

    Of an episode that was tried again only the newest record is written.
    """
    from headrace.engine.exchange import export_run

    damages: list[Damage] = []
    written = export_run(run, format.value, out, on_damage=damages.append)
    for damage in damages:
        typer.echo(f"unreadable: {damage}", err=True)
    typer.echo(f"{written} episode{'' if written == 1 else 's'} in {out}")
    if damages:
        raise typer.Exit(LEFT_OUT)


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
