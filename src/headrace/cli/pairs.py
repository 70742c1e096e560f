"""`headrace pairs`: preference pairs out of the groups of runs."""

import sys
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from headrace.preferences.pairs import PairsMade
    from headrace.preferences.rules import Rule
    from headrace.preferences.tally import PairsTally

NOTHING = 1
LEFT_OUT = 2


class Format(StrEnum):
    """What pairs are written as; `preferences/formats/registry.py` has their code."""

    INDEX = "index"
    JSONL = "jsonl"
    TRL = "trl"
    MS_SWIFT = "ms-swift"
    LLAMA_FACTORY = "llama-factory"
    AXOLOTL = "axolotl"
    EXACT = "exact"
    DATASETS = "datasets"


class Kind(StrEnum):
    """The kinds of rules; `preferences/rules.py` says what they do."""

    MARGIN = "margin"
    BEST_WORST = "best-worst"
    ALL_MARGINS = "all-margins"
    NEAR_MISS = "near-miss"
    FIRST_DIVERGENCE = "first-divergence"
    LITECODER = "litecoder"


class Score(StrEnum):
    """What a rule compares."""

    AUTO = "auto"
    REWARD = "reward"
    PASS_RATIO = "pass-ratio"


Runs = Annotated[list[Path], typer.Argument(metavar="RUN", help="Run folders of one task set.")]
Out = Annotated[
    Path | None, typer.Option("--out", "-o", metavar="DIR", help="The folder to write.")
]
As = Annotated[
    Format | None,
    typer.Option(
        "--format",
        help="What to write: index (which pairs, without their trajectories), or a format of"
        " docs/reference/exports.md. Left out: index; jsonl with --follow.",
    ),
]
RuleKinds = Annotated[
    list[Kind] | None,
    typer.Option(
        "--rule",
        metavar="KIND",
        help="How pairs are made: margin (if none is given), best-worst, all-margins, near-miss,"
        " first-divergence or litecoder; may be repeated. See docs/howto/pairs.md.",
    ),
]
RulesFile = Annotated[
    Path | None,
    typer.Option("--rules", metavar="FILE", help="Rules as [[rule]] tables of a TOML file."),
]
Compared = Annotated[
    Score | None,
    typer.Option(
        "--score",
        help="What is compared; auto: the share of passed tests where all attempts have tests.",
    ),
]
MinMargin = Annotated[
    float | None,
    typer.Option("--min-margin", metavar="SCORE", help="Between the two, at least."),
]
MinWinner = Annotated[
    float | None,
    typer.Option("--min-winner", metavar="SCORE", help="Of the chosen one, at least."),
]
PerTask = Annotated[
    int | None,
    typer.Option("--per-task", metavar="N", help="Pairs of a task and a rule, at most."),
]
KeepTimeouts = Annotated[
    bool, typer.Option("--keep-timeouts", help="Take losers that ran out of time.")
]
KeepTies = Annotated[
    bool,
    typer.Option("--keep-ties", help="Take equal scores too: the one that sampled less wins."),
]
KeepInfrastructure = Annotated[
    bool,
    typer.Option(
        "--keep-infrastructure",
        help="Take attempts that the infrastructure failed, as losers with score 0.",
    ),
]
Validation = Annotated[
    float,
    typer.Option(
        "--validation",
        metavar="SHARE",
        min=0,
        max=1,
        help="Of the tasks, whose pairs go to a split of their own.",
    ),
]
Gamma = Annotated[
    float | None,
    typer.Option(
        "--gamma",
        metavar="G",
        min=0,
        max=1,
        help="Write DMPO weights with this discount too; exact, datasets and ms-swift have a"
        " place.",
    ),
]
Licence = Annotated[
    str, typer.Option("--licence", metavar="SPDX", help="Of the data, for its card.")
]
AllowMixedPolicies = Annotated[
    bool,
    typer.Option(
        "--allow-mixed-policies",
        help="Take runs of several policies; a pair may then join two of them.",
    ),
]
Overwrite = Annotated[
    bool, typer.Option("--overwrite", help="Replace the folder, in one step, when all is made.")
]
Follow = Annotated[
    bool,
    typer.Option(
        "--follow",
        help="Print the pairs of one run as JSON lines while it goes on, in place of a folder.",
    ),
]
JsonFile = Annotated[
    Path | None,
    typer.Option("--json", metavar="FILE", help="Write the report as JSON here too."),
]


def pairs(
    context: typer.Context,
    runs: Runs,
    out: Out = None,
    format: As = None,
    rule: RuleKinds = None,
    rules: RulesFile = None,
    score: Compared = None,
    min_margin: MinMargin = None,
    min_winner: MinWinner = None,
    per_task: PerTask = None,
    keep_timeouts: KeepTimeouts = False,
    keep_ties: KeepTies = False,
    keep_infrastructure: KeepInfrastructure = False,
    validation: Validation = 0.0,
    gamma: Gamma = None,
    licence: Licence = "unknown",
    allow_mixed_policies: AllowMixedPolicies = False,
    overwrite: Overwrite = False,
    json: JsonFile = None,
    follow: Follow = False,
) -> None:
    """Make preference pairs of the attempts at each task, with a report.

    Needs runs with two or more attempts at a task. Without a pair nothing is written,
    the reasons are shown, and the exit code is 1. With --follow the pairs of a
    run are printed while it goes on.
    """
    from headrace.cli.following import follow_pairs, refuse_others
    from headrace.errors import UsageError

    options = {
        "score": score and score.value,
        "min_margin": min_margin,
        "min_winner": min_winner,
        "per_task": per_task,
        "timeouts": keep_timeouts or None,
        "ties": keep_ties or None,
        "infrastructure": keep_infrastructure or None,
    }
    asked = _rules(rules, [kind.value for kind in rule or ()], options)
    if follow:
        shown = format or Format.JSONL
        refuse_others(context, runs, shown.value)
        follow_pairs(runs[0], asked, whole=shown is Format.JSONL)
        return
    if out is None:
        raise UsageError("expected --out DIR, the folder to write, or --follow; found neither")
    _make(
        runs, out, (format or Format.INDEX).value, json,
        rules=asked, overwrite=overwrite, allow_mixed_policies=allow_mixed_policies,
        validation=validation, gamma=gamma, licence=licence,
    )  # fmt: skip


def _make(runs: list[Path], out: Path, format: str, json: Path | None, **options: Any) -> None:
    """Write the folder, then show the report and what is left to say."""
    from headrace.cli.given import as_given
    from headrace.cli.reports import save
    from headrace.cli.shows import result_console
    from headrace.cli.watching import watching
    from headrace.engine.evaluation_report import encoded
    from headrace.preferences.formats.registry import WEIGHTED_PAIRS, pair_format, refuse_gamma
    from headrace.preferences.pairs import make_pairs
    from headrace.preferences.pairs_files import write_pairs_report
    from headrace.preferences.pairs_report import pairs_report
    from headrace.preferences.pairs_tables import render_pairs

    if options["gamma"] is not None:
        refuse_gamma(format, WEIGHTED_PAIRS)

    def report_too(tally: "PairsTally", folder: Path) -> None:
        write_pairs_report(pairs_report(tally), folder)

    with watching() as tell:
        made = make_pairs(
            runs,
            out,
            format=pair_format(format),
            command=as_given(sys.argv),
            on_progress=tell,
            finish=report_too,
            **options,
        )
    found = pairs_report(made.tally)
    if json is not None:
        save(json, encoded(found))
    result_console().print(render_pairs(found))
    _end(made, out)


def _rules(file: Path | None, kinds: list[str], options: dict[str, Any]) -> "tuple[Rule, ...]":
    from headrace.errors import UsageError
    from headrace.preferences.rules import load_rules, rule_of

    if file is None:
        return tuple(rule_of(kind, **options) for kind in dict.fromkeys(kinds or ["margin"]))
    names = {"timeouts": "keep-timeouts", "ties": "keep-ties", "infrastructure":
             "keep-infrastructure"}  # fmt: skip
    given = [name for name, value in options.items() if value is not None]
    told = ["--" + names.get(name, name).replace("_", "-") for name in given]
    if kinds:
        told.insert(0, "--rule")
    if told:
        raise UsageError(
            f"expected rules from {file} or from options, found both (--rules and"
            f" {', '.join(told)}); put the values into the file"
        )
    return load_rules(file)


def _end(made: "PairsMade", out: Path) -> None:
    """What is left to say, and the exit code."""
    from headrace.engine.evaluation_files import PAGE, REPORT
    from headrace.preferences.pairs import no_groups

    for damage in made.damages:
        typer.echo(f"unreadable: {damage}", err=True)
    if not made.written:
        if no_groups(made.tally):
            typer.echo(_no_groups(made.tally), err=True)
        typer.echo(f"no pairs: nothing is written, {out} stays as it was", err=True)
        raise typer.Exit(NOTHING)
    typer.echo(f"{made.written} pair{'' if made.written == 1 else 's'} in {out}")
    typer.echo(f"report: {out / REPORT / PAGE}")
    if made.damages:
        raise typer.Exit(LEFT_OUT)


def _no_groups(tally: "PairsTally") -> str:
    if not tally.groups:
        return "expected attempts at tasks, found none stored; run the tasks first"
    tasks = f"{tally.groups} task{'' if tally.groups == 1 else 's'}"
    return (
        f"expected groups of two or more attempts at a task, found {tasks} with one each; run with"
        " --attempts 2 or more, or give several runs of the same tasks"
    )
