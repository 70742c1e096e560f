"""`headrace export`: a run's trajectories as other programs read them, chosen or whole."""

import sys
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from headrace.engine.shards import Damage
    from headrace.preferences.filters import Selection
    from headrace.preferences.selection import Selecting

NOTHING = 1
LEFT_OUT = 2


class Format(StrEnum):
    """What trajectories are written as; `preferences/formats/registry.py` has their code."""

    JSONL = "jsonl"
    TRL = "trl"
    MS_SWIFT = "ms-swift"
    LLAMA_FACTORY = "llama-factory"
    AXOLOTL = "axolotl"
    KTO = "kto"
    LITECODER = "litecoder"
    ATIF = "atif"
    HARBOR_JOB = "harbor-job"
    EXACT = "exact"
    DATASETS = "datasets"
    PARQUET = "parquet"


TRAINING = frozenset(
    {
        Format.TRL, Format.MS_SWIFT, Format.LLAMA_FACTORY, Format.AXOLOTL, Format.KTO,
        Format.LITECODER,
    }
)  # fmt: skip
"""Formats of which a trainer imitates every row: these are selected for unless told otherwise."""
WHOLE = frozenset({Format.ATIF, Format.JSONL, Format.HARBOR_JOB})
"""Formats of a whole run, as `engine/exchange.py` writes them where nothing is selected."""

Runs = Annotated[list[Path], typer.Argument(metavar="RUN", help="Run folders of one task set.")]
As = Annotated[
    Format,
    typer.Option(
        "--format",
        metavar="FORMAT",  # the names in a row would be wider than a terminal
        help=f"What to write: {', '.join(Format)}. See docs/reference/exports.md.",
    ),
]
Out = Annotated[
    Path, typer.Option("--out", "-o", metavar="DIR", help="The folder to write; new or empty.")
]
Select = Annotated[
    str | None,
    typer.Option(
        "--select",
        metavar="SELECTION",
        help="sft, everything, or a TOML file with [selection]; see docs/howto/sft-data.md."
        " Left out: sft for the formats of trainers, everything for the others.",
    ),
]
MinPassRatio = Annotated[
    float | None,
    typer.Option(
        "--min-pass-ratio",
        metavar="SHARE",
        min=0,
        max=1,
        help="Take what passed this share of its tests. Left out: what has reward 1.",
    ),
]
Failures = Annotated[
    bool | None,
    typer.Option(
        "--failures/--no-failures",
        help="Write informative failures as a split of their own, or do not.",
    ),
]
Benchmark = Annotated[
    list[Path] | None,
    typer.Option(
        "--benchmark",
        metavar="DIR",
        help="Leave out what shares 13 words in a row with these tasks or texts; may be repeated.",
    ),
]
Validation = Annotated[
    float | None,
    typer.Option(
        "--validation",
        metavar="SHARE",
        min=0,
        max=1,
        help="Of the tasks, whose trajectories go to a split of their own. Left out: none.",
    ),
]
Gamma = Annotated[
    float | None,
    typer.Option(
        "--gamma",
        metavar="G",
        min=0,
        max=1,
        help="Write DMPO weights with this discount too; exact, datasets and parquet have a place.",
    ),
]
Licence = Annotated[
    str | None, typer.Option("--licence", metavar="SPDX", help="Of the data, for its card.")
]
KeepHints = Annotated[bool, typer.Option("--keep-hints", help="Leave marked hints where they are.")]
AllowMixedPolicies = Annotated[
    bool, typer.Option("--allow-mixed-policies", help="Take runs of several policies.")
]
Overwrite = Annotated[
    bool, typer.Option("--overwrite", help="Replace the folder, in one step, when all is made.")
]


def export(
    runs: Runs,
    format: As,
    out: Out,
    select: Select = None,
    min_pass_ratio: MinPassRatio = None,
    failures: Failures = None,
    benchmark: Benchmark = None,
    validation: Validation = None,
    gamma: Gamma = None,
    licence: Licence = None,
    keep_hints: KeepHints = False,
    allow_mixed_policies: AllowMixedPolicies = False,
    overwrite: Overwrite = False,
) -> None:
    """Write the trajectories of runs for a trainer, or a run as another program knows it.

    Of an episode that was tried again only the newest record counts. atif, jsonl and
    harbor-job without any other option write the whole run and nothing beside it. If
    nothing is selected, nothing is written, and the exit code is 1.
    """
    from headrace.preferences.formats.registry import WEIGHTED_TRAJECTORIES, refuse_gamma

    given = [
        name
        for name, value in (
            ("--select", select), ("--min-pass-ratio", min_pass_ratio), ("--failures", failures),
            ("--benchmark", benchmark or None), ("--validation", validation), ("--gamma", gamma),
            ("--licence", licence), ("--keep-hints", keep_hints or None),
            ("--allow-mixed-policies", allow_mixed_policies or None),
            ("--overwrite", overwrite or None),
        )
        if value is not None
    ]  # fmt: skip
    if format is Format.HARBOR_JOB:
        _refuse_selection(runs, given)
    if gamma is not None:
        refuse_gamma(format.value, WEIGHTED_TRAJECTORIES)
    if format in WHOLE and not given and len(runs) == 1:
        _whole(runs[0], format, out)
        return
    chosen = _selection(
        format, select, min_pass_ratio=min_pass_ratio, failures=failures,
        keep_hints=keep_hints or None,
    )  # fmt: skip
    _refuse_idle(format, chosen, benchmark, min_pass_ratio, failures)
    found = _select(
        runs, out, chosen, format,
        validation=validation or 0.0, overwrite=overwrite, gamma=gamma, licence=licence,
        allow_mixed_policies=allow_mixed_policies, benchmarks=benchmark or (),
    )  # fmt: skip
    _end(found, out)


def _whole(run: Path, format: Format, out: Path) -> None:
    from headrace.engine.exchange import export_run

    damages: list[Damage] = []
    written = export_run(run, format.value, out, on_damage=damages.append)
    for damage in damages:
        typer.echo(f"unreadable: {damage}", err=True)
    typer.echo(f"{written} episode{'' if written == 1 else 's'} in {out}")
    if damages:
        raise typer.Exit(LEFT_OUT)


def _select(
    runs: list[Path], out: Path, chosen: "Selection", format: Format, *,
    licence: str | None, **options: Any,
) -> "Selecting":  # fmt: skip
    from headrace.cli.given import as_given
    from headrace.cli.shows import result_console
    from headrace.cli.watching import watching
    from headrace.preferences.formats.registry import trajectory_format
    from headrace.preferences.making import UNKNOWN_LICENCE
    from headrace.preferences.selection import select as selected
    from headrace.preferences.selection_tables import render_selection

    with watching() as tell:
        found = selected(
            runs,
            out,
            selection=chosen,
            format=trajectory_format(format.value),
            licence=licence or UNKNOWN_LICENCE,
            command=as_given(sys.argv),
            on_progress=tell,
            **options,
        )
    result_console().print(render_selection(found.tally))
    return found


def _end(found: "Selecting", out: Path) -> None:
    """What is left to say, and the exit code."""
    for damage in found.damages:
        typer.echo(f"unreadable: {damage}", err=True)
    if not found.written:
        typer.echo(f"nothing is selected: nothing is written, {out} stays as it was", err=True)
        raise typer.Exit(NOTHING)
    typer.echo(f"{found.written} row{'' if found.written == 1 else 's'} in {out}")
    if found.damages:
        raise typer.Exit(LEFT_OUT)


def _selection(format: Format, select: str | None, **options: Any) -> "Selection":
    """The one that was named, with what single options say."""
    from headrace.preferences.selection_file import selection_of

    chosen = selection_of(select or ("sft" if format in TRAINING else "everything"))
    update = {name: value for name, value in options.items() if value is not None}
    # KTO learns from both, and its rows say which is which.
    if format is Format.KTO and "outcomes" not in chosen.model_fields_set:
        update["outcomes"] = "all"
    return chosen.model_copy(update=update) if update else chosen


def _refuse_selection(runs: list[Path], given: list[str]) -> None:
    from headrace.errors import UsageError

    if len(runs) > 1 or given:
        what = f"{len(runs)} runs" if len(runs) > 1 else ", ".join(given)
        raise UsageError(
            f"harbor-job writes one whole run: expected one RUN and no other option, found {what};"
            " atif has the same trajectories and can be selected"
        )


def _refuse_idle(
    format: Format, chosen: "Selection", benchmark: list[Path] | None, ratio: float | None,
    failures: bool | None,
) -> None:  # fmt: skip
    """Options that this selection would pass over in silence."""
    from headrace.errors import UsageError

    if benchmark and "overlap" not in chosen.filters:
        raise UsageError(
            "--benchmark: this selection does not ask for overlap; take --select sft, or a file"
            ' whose filters have "overlap"'
        )
    if chosen.outcomes != "all":
        return
    named = "" if format is Format.KTO else "--select sft, or "  # for kto that is both, too
    for option, value in (("--min-pass-ratio", ratio), ("--failures", failures or None)):
        if value is not None:
            raise UsageError(
                f"{option}: this selection takes successes and failures alike; take {named}a file"
                ' with outcomes = "solved"'
            )
