"""The numbers of `bench.peers`: medians over rounds, their spread, and the table in Markdown.

Rule: the table is made from the metrics as they are stored, so that README.md and
docs/performance.md can be written, and checked, from `bench/results/peers.json`.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median

from bench.peers.programs import Outcome
from bench.peers.systems import SYSTEMS, System

BEGIN, END = "<!-- peers: python -m bench.peers.docs -->", "<!-- /peers -->"
NOTHING = "No result is stored in this checkout: `python -m bench.peers.run` prints the table."

Metrics = Mapping[str, float | None]


def metrics(
    systems: Sequence[System], outcomes: Mapping[str, Sequence[Outcome]]
) -> dict[str, float | None]:
    """`NAME_eps_s` and what stands around it, by system; then what the targets are about."""
    found: dict[str, float | None] = {}
    for system in systems:
        found.update(_of_one(system, outcomes[system.name]))
    return found | ratios(found)


def _of_one(system: System, rounds: Sequence[Outcome]) -> dict[str, float | None]:
    rates = [outcome.eps_s for outcome in rounds]
    cpu = [o.cpu_s / o.episodes for o in rounds if o.cpu_s is not None]
    measured = {
        "eps_s": median(rates),
        "eps_s_least": min(rates),
        "eps_s_most": max(rates),
        "rounds": len(rounds),
        "round_s": median(outcome.seconds for outcome in rounds),
        "at_once": system.best,
        "cpu_s": median(cpu) if cpu else None,
    }
    return {f"{system.name}_{what}": value for what, value in measured.items()}


def ratios(found: Metrics) -> dict[str, float | None]:
    """Ours over the floor, and over Harbor, where both sides were measured."""
    pairs = {
        "docker_over_floor": ("headrace_docker", "docker_floor"),
        "docker_over_lean_floor": ("headrace_docker", "docker_lean_floor"),
        "docker_over_harbor": ("headrace_docker", "harbor"),
        "namespace_over_harbor": ("headrace_namespace", "harbor"),
    }
    told: dict[str, float | None] = {}
    for name, (ours, theirs) in pairs.items():
        above, below = found.get(f"{ours}_eps_s"), found.get(f"{theirs}_eps_s")
        if above is not None and below:
            told[name] = above / below
    return told


def markdown(found: Metrics) -> str:
    """The table of what was measured."""
    rows = [
        "| system | episodes/s | rounds | over Harbor | client CPU each | at once (default) |",
        "|---|---|---|---|---|---|",
    ]
    rows += [_row(system, found) for system in SYSTEMS if f"{system.name}_eps_s" in found]
    return "\n".join(rows)


def _row(system: System, found: Metrics) -> str:
    def value(what: str) -> float | None:
        return found.get(f"{system.name}_{what}")

    rate, harbor, cpu = value("eps_s") or 0.0, found.get("harbor_eps_s"), value("cpu_s")
    used = f"{value('at_once'):.0f}"
    cells = (
        system.title,
        f"**{_short(rate)}**",
        f"{_short(value('eps_s_least') or 0.0)} to {_short(value('eps_s_most') or 0.0)}",
        f"{_short(rate / harbor)} x" if harbor and not system.floor else "",
        _seconds(cpu) if cpu is not None else "",
        f"{used} ({system.default})" if system.default else used,
    )
    return f"| {' | '.join(cells)} |"


def _short(value: float) -> str:
    """Two or three digits that mean something."""
    if value >= 100:
        return f"{value:,.0f}"
    return f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def _seconds(value: float) -> str:
    return f"{value:.1f} s" if value >= 1 else f"{value * 1000:.0f} ms"


def with_table(page: str, table: str) -> str:
    """`page` with `table` between the two marks. `ValueError` where a mark is not there once."""
    if page.count(BEGIN) != 1 or page.count(END) != 1:
        raise ValueError(f"expected {BEGIN} and {END}, once each")
    before, _, rest = page.partition(BEGIN)
    return f"{before}{BEGIN}\n{table}\n{END}{rest.partition(END)[2]}"


def pages(root: Path) -> tuple[Path, ...]:
    """Where the table stands."""
    return (root / "README.md", root / "docs" / "performance.md")
