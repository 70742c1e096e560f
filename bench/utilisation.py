"""How busy the device is, second by second, and a plot of it.

Rule: read from outside, once a second: `nvidia-smi` for a GPU, `/proc/stat` for processors. A
phase is what the caller says it is doing; samples between phases are kept out of the plot.
"""

import asyncio
import subprocess
import time
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from statistics import fmean

import jinja2
import msgspec

from headrace.aio import in_thread

EVERY_S = 1.0
ANSWER_S = 10.0
TEMPLATE = Path(__file__).with_name("utilisation.svg.j2")
WIDTH, HEIGHT = 900, 300
LEFT, RIGHT, TOP, BOTTOM = 60, 884, 40, 250
TICKS = 8
"""At most, under the axis."""
STEPS_S = (5, 10, 30, 60, 120, 300, 600, 1200, 3600)
NVIDIA = ("nvidia-smi", "--query-gpu=utilization.gpu", "--format=csv,noheader,nounits")


class Busy(msgspec.Struct, frozen=True):
    """One sample."""

    at_s: float
    share: float
    """In [0, 1]; the mean of several GPUs."""
    phase: str


class Utilisation:
    """Samples while `watch` runs. `phase` may be set at any time; empty: between phases."""

    def __init__(self, device: str, *, every_s: float = EVERY_S) -> None:
        """`device`: `cuda` or `cpu`."""
        self._device = device
        self._every_s = every_s
        self._begun = time.monotonic()
        self._ticks = (0, 0)
        self.phase = ""
        self.samples: list[Busy] = []

    async def watch(self) -> None:
        """Until cancelled."""
        await in_thread(self._share)  # the processors' share is one between two looks
        while True:
            await asyncio.sleep(self._every_s)
            phase = self.phase
            share = await in_thread(self._share)
            if share is not None:
                self.samples.append(Busy(time.monotonic() - self._begun, share, phase))

    def mean(self, phase: str) -> float | None:
        """Of the samples of one phase; None: there are none."""
        shares = [one.share for one in self.samples if one.phase == phase]
        return fmean(shares) if shares else None

    def _share(self) -> float | None:
        if self._device == "cpu":
            return self._processors()
        try:
            done = subprocess.run(NVIDIA, capture_output=True, timeout=ANSWER_S, check=True)
            return fmean(float(line) for line in done.stdout.split()) / 100
        except (OSError, subprocess.SubprocessError, ValueError):
            return None

    def _processors(self) -> float | None:
        fields = [int(field) for field in Path("/proc/stat").read_text().split("\n")[0].split()[1:]]
        idle, total = fields[3] + fields[4], sum(fields[:8])
        (idle_before, total_before), self._ticks = self._ticks, (idle, total)
        if total == total_before:
            return None
        return 1 - (idle - idle_before) / (total - total_before)


class Part(msgspec.Struct, frozen=True):
    """A phase in the plot."""

    name: str
    kind: str
    """`rollout` or `raw`: its colour."""
    line: str
    left: float
    width: float
    mean: float


def plot(samples: Sequence[Busy], title: str, path: Path) -> None:
    """Write the samples of all phases as an SVG picture, one after the other. Blocking."""
    phases = list(dict.fromkeys(one.phase for one in samples if one.phase))
    runs = [(name, [one for one in samples if one.phase == name]) for name in phases]
    total = sum(_long(run) for _, run in runs)
    if not total:
        return
    scale = (RIGHT - LEFT) / total
    parts, at = [], float(LEFT)
    for name, run in runs:
        width = _long(run) * scale
        parts.append(_part(name, run, at, width, scale))
        at += width
    step = next((s for s in STEPS_S if total / s <= TICKS), STEPS_S[-1])
    template = jinja2.Environment(autoescape=True, trim_blocks=True).from_string(
        TEMPLATE.read_text()
    )
    text = template.render(
        title=title,
        parts=parts,
        x_ticks=[(LEFT + s * scale, s) for s in range(0, int(total) + 1, step)],
        y_ticks=[(_y(n / 4), 25 * n) for n in range(5)],
        width=WIDTH,
        height=HEIGHT,
        left=LEFT,
        right=RIGHT,
        top=TOP,
        bottom=BOTTOM,
    )
    path.write_text(text)


def _part(name: str, run: Sequence[Busy], left: float, width: float, scale: float) -> Part:
    points = [f"{left + (one.at_s - run[0].at_s) * scale:.1f},{_y(one.share):.1f}" for one in run]
    return Part(
        name=name,
        kind="raw" if name.endswith("raw") else "rollout",
        line="M" + " L".join(points),
        left=left,
        width=width,
        mean=fmean(one.share for one in run),
    )


def _long(run: Sequence[Busy]) -> float:
    return sum(b.at_s - a.at_s for a, b in pairwise(run))


def _y(share: float) -> float:
    return BOTTOM - min(1.0, share) * (BOTTOM - TOP)
