"""`headrace pairs --follow`: pairs on stdout while a run goes on.

Rule: a line is a row of the `jsonl` format, or of the index, out as soon as the pair is certain;
all else that is said is on stderr.
"""

import asyncio
import os
import sys
from collections.abc import Sequence
from contextlib import aclosing
from pathlib import Path
from typing import TYPE_CHECKING

import typer

if TYPE_CHECKING:
    from headrace.engine.reader import OnDamage
    from headrace.engine.shards import Damage
    from headrace.preferences.rules import Rule

NOTHING = 1
LEFT_OUT = 2
BEGIN_S = 30.0
"""For a run that is started at the same time."""
OF_FOLDERS = ("out", "validation", "gamma", "licence", "overwrite", "json", "allow_mixed_policies")
"""Options that say something about the folder of a finished run, by parameter."""


def refuse_others(context: typer.Context, runs: Sequence[Path], format: str) -> None:
    """Raises `UsageError` for what goes with a folder and not with following."""
    from headrace.errors import UsageError

    given = [name for name in OF_FOLDERS if _is_given(context, name)]
    if given:
        told = ", ".join("--" + name.replace("_", "-") for name in given)
        raise UsageError(
            f"--follow prints pairs and writes no folder; leave out {told}, or run `headrace pairs`"
            " without --follow once the run has ended"
        )
    if format not in ("jsonl", "index"):
        raise UsageError(
            "--follow prints JSON lines: expected --format jsonl or index, found"
            f" {format}; for {format} run"
            " `headrace pairs` without --follow once the run has ended"
        )
    if len(runs) > 1:
        raise UsageError(f"--follow: expected one run, found {len(runs)}; start one for each")


def follow_pairs(run: Path, rules: "Sequence[Rule]", *, whole: bool) -> None:
    """Print the pairs of a run as they come, until it has ended; `whole`: with trajectories."""
    from headrace.engine.run_folder import RUN_FILE

    if not os.path.exists(run / RUN_FILE):  # no error where it may not be looked at
        typer.echo(f"waiting up to {BEGIN_S:.0f} s for {run} to begin", err=True)
    damages: list[Damage] = []

    def tell(damage: "Damage") -> None:
        damages.append(damage)
        typer.echo(f"unreadable: {damage}", err=True)

    printed = asyncio.run(_print(run, rules, tell, whole=whole))
    why = "" if printed else f"; `headrace pairs {run} --out DIR` counts the reasons"
    typer.echo(f"{run} has ended: {printed} pair{'' if printed == 1 else 's'}{why}", err=True)
    if not printed:
        raise typer.Exit(NOTHING)
    if damages:
        raise typer.Exit(LEFT_OUT)


async def _print(run: Path, rules: "Sequence[Rule]", on_damage: "OnDamage", *, whole: bool) -> int:
    import msgspec

    from headrace.preferences import follow
    from headrace.preferences.formats.base import Context
    from headrace.preferences.formats.jsonl import PAIRS

    encoder = msgspec.json.Encoder()
    printed = 0
    async with aclosing(follow(run, rules, begin_s=BEGIN_S, on_damage=on_damage)) as pairs:
        async for pairing in pairs:
            context = Context(models=(None,), runs=(pairing.pair.chosen.run,))
            for row in PAIRS.rows(pairing, context) if whole else (pairing.pair,):
                sys.stdout.buffer.write(encoder.encode(row) + b"\n")
            sys.stdout.buffer.flush()
            printed += 1
    return printed


def _is_given(context: typer.Context, name: str) -> bool:
    source = context.get_parameter_source(name)
    return source is not None and source.name == "COMMANDLINE"
