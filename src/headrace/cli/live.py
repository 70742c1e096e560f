"""`headrace top`, `limits` and `trace`: into a run, and new bounds for one that goes on."""

from pathlib import Path
from typing import Annotated, Literal

import typer

Run = Annotated[Path, typer.Argument(metavar="RUN", help="A run folder.")]


def top(
    run: Run,
    once: Annotated[bool, typer.Option("--once", help="One picture, then end.")] = False,
) -> None:
    """Show what a run is doing: stages, rates, its slowest episodes, model and machine.

    It reads the run folder, from any process and without touching the run. In a pipe it prints
    one picture.
    """
    from rich.console import Console

    from headrace.cli.top import follow
    from headrace.engine.run_folder import read_manifest
    from headrace.engine.status import read
    from headrace.errors import RunFolderError

    read_manifest(run)
    if not read(run):
        raise RunFolderError(
            f"{run}: expected the status of a run, found none: its episodes have not begun, or an "
            "older version ran it"
        )
    follow(run, Console(), once=once)


def limits(
    run: Run,
    live: Annotated[
        str | None,
        typer.Option(
            "--live",
            metavar="N|auto",
            help="Episodes alive at once, or `auto` again, if the run began with that.",
        ),
    ] = None,
    preparing: Annotated[
        int | None, typer.Option("--preparing", metavar="N", help="Sandboxes started at once.")
    ] = None,
    verifying: Annotated[
        int | None, typer.Option("--verifying", metavar="N", help="Verifiers at once.")
    ] = None,
    warm: Annotated[
        int | None, typer.Option("--warm", metavar="N", help="Sandboxes kept open ahead.")
    ] = None,
) -> None:
    """Change the bounds of a run while it goes on; without options, print what was asked for.

    In force within two seconds. Nothing that is live is ended. A resumed run starts from its
    configuration again.
    """
    import time

    from headrace.engine import live_limits, status
    from headrace.engine.live_limits import LiveLimits
    from headrace.engine.run_folder import read_manifest

    read_manifest(run)
    asked = LiveLimits(live=_live(live), preparing=preparing, verifying=verifying, warm=warm)
    if asked == LiveLimits():
        found = live_limits.read(run)
        typer.echo("nothing was asked for" if found is None else live_limits.words(found))
        return
    both = live_limits.write(run, asked)
    typer.echo(f"asked for: {live_limits.words(both)}")
    if not any(one.running(time.time()) for one in status.read(run)):
        typer.echo("no process of this run is at work, so nobody heard it", err=True)


def trace(
    run: Run,
    out: Annotated[
        Path, typer.Option("--out", "-o", metavar="FILE", help="The JSON file to write.")
    ],
) -> None:
    """Write a run's timeline for Perfetto (ui.perfetto.dev) or a browser's own trace viewer.

    A row is a place among the live episodes; in it follow start, policy, commands and verifier.
    """
    from headrace.engine.run_folder import read_manifest
    from headrace.engine.trace import Stored, write_trace

    read_manifest(run)
    stored = Stored(run)
    written = write_trace(stored, out)
    for damage in stored.damage:
        typer.echo(f"unreadable: {damage}", err=True)
    typer.echo(f"{written} episode{'' if written == 1 else 's'} in {out}")


def _live(given: str | None) -> int | Literal["auto"] | None:
    from headrace.errors import UsageError

    if given is None:
        return None
    if given == "auto":
        return "auto"
    try:
        return int(given)
    except ValueError:
        raise UsageError(f"--live: expected a number or `auto`, found {given!r}") from None
