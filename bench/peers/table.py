"""The numbers of `bench.peers`: medians over rounds, their spread, and the table in Markdown."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median

from bench.peers.programs import Outcome


@dataclass(frozen=True)
class Line:
    """One system over all rounds."""

    name: str
    title: str
    default: str
    used: int
    outcomes: Sequence[Outcome]

    @property
    def eps_s(self) -> float:
        return median(outcome.eps_s for outcome in self.outcomes)

    @property
    def spread(self) -> tuple[float, float]:
        """The slowest and the fastest round."""
        rates = [outcome.eps_s for outcome in self.outcomes]
        return min(rates), max(rates)

    @property
    def cpu_s(self) -> float | None:
        """Processor seconds of the client per episode; None where it is not measured."""
        used = [o.cpu_s / o.episodes for o in self.outcomes if o.cpu_s is not None]
        return median(used) if used else None


def metrics(lines: Sequence[Line]) -> dict[str, float | None]:
    """`NAME_eps_s` and what stands around it, and each as a multiple of Harbor's."""
    found: dict[str, float | None] = {}
    for line in lines:
        found[f"{line.name}_eps_s"] = line.eps_s
        found[f"{line.name}_eps_s_least"], found[f"{line.name}_eps_s_most"] = line.spread
        found[f"{line.name}_round_s"] = median(outcome.seconds for outcome in line.outcomes)
        if line.cpu_s is not None:
            found[f"{line.name}_cpu_s"] = line.cpu_s
    rates = {line.name: line.eps_s for line in lines}
    found.update(ratios(rates))
    return found


def ratios(rates: Mapping[str, float]) -> dict[str, float | None]:
    """What the targets are about: ours over the floor, and over Harbor."""
    pairs = {
        "docker_over_floor": ("headrace_docker", "docker_floor"),
        "docker_over_harbor": ("headrace_docker", "harbor"),
        "namespace_over_harbor": ("headrace_namespace", "harbor"),
    }
    return {
        name: rates[ours] / rates[theirs]
        for name, (ours, theirs) in pairs.items()
        if ours in rates and theirs in rates
    }


def markdown(lines: Sequence[Line]) -> str:
    """The table as README and docs/performance.md have it."""
    harbor = next((line.eps_s for line in lines if line.name == "harbor"), None)
    rows = [
        "| system | episodes/s | rounds | over Harbor | client CPU each | at once (default) |",
        "|---|---|---|---|---|---|",
    ]
    for line in lines:
        least, most = line.spread
        over = "" if harbor is None else f"{_short(line.eps_s / harbor)} x"
        cpu = "" if line.cpu_s is None else _seconds(line.cpu_s)
        used = f"{line.used} ({line.default})" if line.default else str(line.used)
        cells = (line.title, f"**{_short(line.eps_s)}**", f"{_short(least)} to {_short(most)}")
        rows.append("| " + " | ".join((*cells, over, cpu, used)) + " |")
    return "\n".join(rows)


def _short(value: float) -> str:
    """Two or three digits that mean something."""
    if value >= 100:
        return f"{value:,.0f}"
    return f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def _seconds(value: float) -> str:
    return f"{value:.1f} s" if value >= 1 else f"{value * 1000:.0f} ms"
